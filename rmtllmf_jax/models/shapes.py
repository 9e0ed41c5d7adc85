"""Sizes and constants of the transformers, under their usual names: static, hashable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rmtllmf_jax.common.errors import require_known
from rmtllmf_jax.models.activations import ACTIVATIONS
from rmtllmf_jax.models.rotary import Rotary

Pool = Literal["class", "class_and_mean", "mean", "attention"]
"""The class token; it and the mean of the patches, side by side; that mean; or what a learned query
attends to among the patches."""

DTYPES = ("float32", "bfloat16")
"""Compute types of a tower; parameters keep their own."""


@dataclass(frozen=True, kw_only=True)
class TransformerShape:
    """A stack of pre-norm blocks.

    `dtype` is the compute type: `float32` follows the parameters, `bfloat16` is for accelerators
    (LayerNorm, softmax and the features stay in float32). With `remat` the backward pass recomputes
    every block in place of keeping its activations.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    activation: str
    layer_norm_eps: float
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self) -> None:
        require_known("activation", self.activation, ACTIVATIONS)
        require_known("dtype", self.dtype, DTYPES)


@dataclass(frozen=True, kw_only=True)
class ViTShape(TransformerShape):
    """An image tower: those of ViT, CLIP, DeiT, DINOv2 and SigLIP differ by these flags."""

    image_size: int
    patch_size: int
    channels: int = 3
    qkv_bias: bool = True
    class_tokens: int = 1
    """Tokens before the patches: 2 of DeiT (class and distillation), 0 of SigLIP."""
    layer_scale: bool = False
    """Whether the branches of a block are scaled by a vector each, as DINOv2's are."""
    swiglu: bool = False
    """Whether the MLP is gated: `mlp_width` is then that of gate and value each."""
    pool: Pool = "class"
    """What a feature is, after the last LayerNorm."""

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return self.grid**2 + self.class_tokens

    @property
    def features(self) -> int:
        """Length of a feature."""
        return self.width * (2 if self.pool == "class_and_mean" else 1)


@dataclass(frozen=True, kw_only=True)
class TextShape(TransformerShape):
    """A text tower: Hugging Face's `CLIPTextConfig`."""

    vocabulary: int
    positions: int
    """Longest text in tokens, start and end included."""
    end_token: int
    """The token whose feature represents the text, according to the configuration."""

    @property
    def largest_is_end(self) -> bool:
        """Whether the end token is a text's largest: the meaning of 2, a mistake in old files."""
        return self.end_token == 2


@dataclass(frozen=True, kw_only=True)
class SiglipTextShape(TransformerShape):
    """A text tower: Hugging Face's `SiglipTextConfig`."""

    vocabulary: int
    positions: int
    """Length in tokens that every text is padded to."""
    features: int
    """Length of a text's feature, which is that of an image's."""


@dataclass(frozen=True, kw_only=True)
class DecoderShape(TransformerShape):
    """A text decoder: Llama, Mistral, Qwen2 and Qwen3 differ by these flags.

    `layer_norm_eps` is that of RMSNorm (`rms_norm_eps`).
    """

    vocabulary: int
    positions: int
    """Longest text in tokens that the model was trained on."""
    kv_heads: int
    """Heads of keys and values, each of which serves heads / kv_heads queries."""
    head_dim: int
    rotary: Rotary
    tied: bool
    """Whether the table of tokens is also the last layer."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether every head's query and key go through an RMSNorm."""
    window: int | None = None
    """Longest text that attention sees in full, where a checkpoint limits it."""


@dataclass(frozen=True)
class CLIPShape:
    """Both towers and the dimension of the space they share."""

    vision: ViTShape
    text: TextShape
    projection: int


@dataclass(frozen=True)
class SiglipShape:
    """Both towers, with features in a shared space without a projection."""

    vision: ViTShape
    text: SiglipTextShape
    projection: ClassVar[None] = None
