"""SigLIP's text tower and both towers in Flax, with Hugging Face's parameter names.

The image tower is `clip.CLIPVision` with other flags.

Reference: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from rmtllmf_jax.models.clip import CLIP, CLIPText, CLIPVision, Layer, TextEmbeddings
from rmtllmf_jax.models.heads import Head, unit_length
from rmtllmf_jax.models.layers import LayerNorm, Layers, Level, in_full
from rmtllmf_jax.models.shapes import CLIPShape, SiglipShape, SiglipTextShape, TextShape


class SiglipText(nn.Module):
    """Padded tokens in, a linear map of the last one's feature out.

    This is `pooler_output` of `SiglipTextModel`. Attention is not causal, and sees the padding.
    """

    shape: SiglipTextShape

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch features"]:
        x = TextEmbeddings(self.shape, name="embeddings")(tokens)
        x = Level(partial(Layers, self.shape, Layer, name="layers"), name="encoder")(x)
        norm = LayerNorm(epsilon=self.shape.layer_norm_eps, name="final_layer_norm")
        return nn.Dense(self.shape.features, name="head")(norm(in_full(x[:, -1])))


class Siglip(nn.Module):
    """Both towers, with features in a shared space, and scale and bias of the logits."""

    shape: SiglipShape
    text_parts: ClassVar[tuple[str, ...]] = ("text_model", "logit_scale", "logit_bias")
    """Names of the parameters that a zero-shot head depends on."""

    def setup(self) -> None:
        """Name the parts as checkpoints do."""
        self.vision_model = CLIPVision(self.shape.vision)
        self.text_model = SiglipText(self.shape.text)
        # What training began with, in the paper.
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(jnp.log(10.0)), (1,))
        self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), (1,))

    def image_features(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch features"]:
        """Return the features of normalised images, not of unit length."""
        return self.vision_model(images)

    def text_features(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch features"]:
        """Return the features of texts, not of unit length."""
        return self.text_model(tokens)

    @nn.nowrap
    def zero_shot(self, params: PyTree, directions: Float[Array, "classes features"]) -> Head:
        """Return the head for classes with these text features, of unit length.

        Its logits are those of `SiglipModel`: their sigmoid is the probability that image and text
        belong together. Among the classes of a task the bias, the same for all, changes nothing.
        """
        kernel = jnp.exp(params["logit_scale"]).astype(jnp.float32) * directions.T
        bias = jnp.full(len(directions), params["logit_bias"][0], jnp.float32)
        return Head(kernel, bias, unit=True)

    def __call__(
        self, images: Float[Array, "images size size channels"], tokens: Int[Array, "texts tokens"]
    ) -> Float[Array, "images texts"]:
        """Return the logits: cosines between images and texts, scaled and shifted."""
        features = self.image_features(images), self.text_features(tokens)
        image, text = map(unit_length, features)
        return jnp.exp(self.logit_scale) * image @ text.T + self.logit_bias


def two_towers(shape: CLIPShape | SiglipShape) -> CLIP | Siglip:
    """Return the model of both towers."""
    return Siglip(shape) if isinstance(shape, SiglipShape) else CLIP(shape)


def text_tower(shape: TextShape | SiglipTextShape) -> CLIPText | SiglipText:
    """Return only the text tower."""
    return SiglipText(shape) if isinstance(shape, SiglipTextShape) else CLIPText(shape)
