"""The plain Vision Transformer as a Flax linen module whose parameters carry Hugging Face names.

A leaf's path is the checkpoint's key with ``/`` for ``.`` and without the ``vit.`` prefix, for
example ``encoder/layer/0/attention/attention/query/kernel``.

Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtllmf_jax.common.errors import require_known
from rmtllmf_jax.models.layers import LayerNorm

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}
"""Hugging Face's names of the activations that occur in vision transformers."""


@dataclass(frozen=True)
class ViTShape:
    """The sizes and constants of a Vision Transformer, as in Hugging Face's `ViTConfig`."""

    image_size: int
    patch_size: int
    channels: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    activation: str
    layer_norm_eps: float
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        """Refuse activations that are not implemented."""
        require_known("activation", self.activation, ACTIVATIONS)

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


class PatchProjection(nn.Module):
    """The patch embedding as reshape and matmul; its kernel keeps the convolution's HWIO shape."""

    width: int
    patch_size: int

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch patches width"]:
        batch, size, _, channels = images.shape
        patch, grid = self.patch_size, size // self.patch_size
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
            (patch, patch, channels, self.width),
        )
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        patches = images.reshape(batch, grid, patch, grid, patch, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, -1)
        return patches @ kernel.reshape(-1, self.width) + bias


class PatchEmbeddings(nn.Module):
    """A level of names around the projection, as in the checkpoint."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch patches width"]:
        return PatchProjection(self.shape.width, self.shape.patch_size, name="projection")(images)


class Embeddings(nn.Module):
    """Patch embeddings behind the class token, plus position embeddings."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch tokens width"]:
        init = nn.initializers.normal(0.02)
        width, tokens = self.shape.width, self.shape.grid**2 + 1
        class_token = self.param("cls_token", init, (1, 1, width))
        positions = self.param("position_embeddings", init, (1, tokens, width))
        patches = PatchEmbeddings(self.shape, name="patch_embeddings")(images)
        class_tokens = jnp.broadcast_to(class_token, (images.shape[0], 1, width))
        return jnp.concatenate([class_tokens, patches], axis=1) + positions


class DenseIn(nn.Module):
    """One dense layer called ``dense``, the level of names that checkpoints put around it."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        return nn.Dense(self.features, name="dense")(x)


class SelfAttention(nn.Module):
    """Queries, keys and values, and the attention between them."""

    shape: ViTShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        heads = self.shape.heads

        def project(name: str) -> Array:
            y = nn.Dense(self.shape.width, use_bias=self.shape.qkv_bias, name=name)(x)
            return y.reshape(*x.shape[:2], heads, self.shape.width // heads)

        y = jax.nn.dot_product_attention(project("query"), project("key"), project("value"))
        return y.reshape(x.shape)


class Attention(nn.Module):
    """Self-attention and its output projection."""

    shape: ViTShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        x = SelfAttention(self.shape, name="attention")(x)
        return DenseIn(self.shape.width, name="output")(x)


class Layer(nn.Module):
    """One pre-norm transformer block."""

    shape: ViTShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        norm = partial(LayerNorm, epsilon=self.shape.layer_norm_eps)
        x = x + Attention(self.shape, name="attention")(norm(name="layernorm_before")(x))
        y = DenseIn(self.shape.mlp_width, name="intermediate")(norm(name="layernorm_after")(x))
        y = ACTIVATIONS[self.shape.activation](y)
        return x + DenseIn(self.shape.width, name="output")(y)


class Layers(nn.Module):
    """The blocks, unrolled so that every layer keeps its own named leaves."""

    shape: ViTShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        for index in range(self.shape.depth):
            x = Layer(self.shape, name=str(index))(x)
        return x


class Encoder(nn.Module):
    """A level of names around the blocks, as in the checkpoint."""

    shape: ViTShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        return Layers(self.shape, name="layer")(x)


class VisionTransformer(nn.Module):
    """Normalised images in, the class token's feature after the last LayerNorm out."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch width"]:
        x = Embeddings(self.shape, name="embeddings")(images)
        x = Encoder(self.shape, name="encoder")(x)
        # The class token alone is read, and LayerNorm works token by token.
        return LayerNorm(epsilon=self.shape.layer_norm_eps, name="layernorm")(x[:, 0])
