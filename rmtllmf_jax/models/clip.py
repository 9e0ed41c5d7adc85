"""CLIP as Flax linen modules whose parameters carry Hugging Face names.

A leaf's path is the checkpoint's key with ``/`` for ``.`` and flax's names for ``weight``
(``kernel``, ``scale``, ``embedding``), for example
``vision_model/encoder/layers/0/self_attn/q_proj/kernel``: the layout of ``flax_model.msgpack``.

Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rmtllmf_jax.models.activations import ACTIVATIONS
from rmtllmf_jax.models.layers import (
    Embedding,
    LayerNorm,
    Layers,
    Level,
    PatchProjection,
    attend,
    dense,
    in_dtype,
    in_full,
)
from rmtllmf_jax.models.shapes import CLIPShape, TextShape, TransformerShape, ViTShape

_INIT = nn.initializers.normal(0.02)
_FIRST_LOGIT_SCALE = 2.6592  # log(1 / 0.07)


class Attention(nn.Module):
    """Self-attention with its four projections."""

    shape: TransformerShape
    causal: bool

    @nn.compact
    def __call__(
        self, read: Float[Array, "batch read width"], x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch read width"]:
        project = partial(dense, self.shape, self.shape.width)
        query = project(name="q_proj")(read)
        key, value = project(name="k_proj")(x), project(name="v_proj")(x)
        return project(name="out_proj")(attend(query, key, value, self.shape.heads, self.causal))


class MLP(nn.Module):
    """Two dense layers with the activation in between."""

    shape: TransformerShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        x = ACTIVATIONS[self.shape.activation](
            dense(self.shape, self.shape.mlp_width, name="fc1")(x)
        )
        return dense(self.shape, self.shape.width, name="fc2")(x)


class Layer(nn.Module):
    """One pre-norm transformer block; returns all tokens, or only the first one."""

    shape: TransformerShape
    first_only: bool = False
    causal: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch read width"]:
        norm = partial(LayerNorm, epsilon=self.shape.layer_norm_eps)
        read = slice(1 if self.first_only else None)
        y = norm(name="layer_norm1")(x)
        x = x[:, read] + Attention(self.shape, self.causal, name="self_attn")(y[:, read], y)
        return x + MLP(self.shape, name="mlp")(norm(name="layer_norm2")(x))


class CausalLayer(Layer):
    """A block in which a token attends only to itself and earlier ones."""

    causal: bool = True


class VisionEmbeddings(nn.Module):
    """Patch embeddings behind the class token, plus position embeddings."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch tokens width"]:
        shape = self.shape
        token = self.param("class_embedding", _INIT, (shape.width,))
        patches = PatchProjection(
            shape.width, shape.patch_size, shape.dtype, use_bias=False, name="patch_embedding"
        )(images)
        positions = Embedding(shape.grid**2 + 1, shape.width, name="position_embedding")()
        tokens = jnp.broadcast_to(in_dtype(token, shape.dtype), (len(images), 1, shape.width))
        embedded = jnp.concatenate([tokens, patches], axis=1)
        return embedded + in_dtype(positions, shape.dtype)


class CLIPVision(nn.Module):
    """Normalised images in, the class token's feature after the last LayerNorm out.

    That is the `pooler_output` of `CLIPVisionModel`: before the projection into the shared space.
    """

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch width"]:
        norm = partial(LayerNorm, epsilon=self.shape.layer_norm_eps)
        x = VisionEmbeddings(self.shape, name="embeddings")(images)
        x = norm(name="pre_layrnorm")(x)  # the spelling of every checkpoint
        # Only the class token is read.
        x = Level(partial(Layers, self.shape, Layer, True, name="layers"), name="encoder")(x)
        return norm(name="post_layernorm")(in_full(x[:, 0]))


class TextEmbeddings(nn.Module):
    """Token embeddings plus position embeddings."""

    shape: TextShape

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens width"]:
        shape = self.shape
        table = Embedding(shape.vocabulary, shape.width, name="token_embedding")()
        positions = Embedding(shape.positions, shape.width, name="position_embedding")()
        return in_dtype(table[tokens] + positions[: tokens.shape[1]], shape.dtype)


class CLIPText(nn.Module):
    """Tokens in, the end token's feature after the last LayerNorm out.

    What follows the end token does not matter: attention is causal.
    """

    shape: TextShape

    @nn.compact
    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch width"]:
        x = TextEmbeddings(self.shape, name="embeddings")(tokens)
        x = Level(partial(Layers, self.shape, CausalLayer, name="layers"), name="encoder")(x)
        by_size = self.shape.largest_is_end
        end = jnp.argmax(tokens if by_size else tokens == self.shape.end_token, axis=1)
        x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
        norm = LayerNorm(epsilon=self.shape.layer_norm_eps, name="final_layer_norm")
        return norm(in_full(x))


class CLIP(nn.Module):
    """Both towers, their projections into the shared space and the scale of the logits."""

    shape: CLIPShape

    def setup(self) -> None:
        """Name the parts as checkpoints do."""
        self.vision_model = CLIPVision(self.shape.vision)
        self.text_model = CLIPText(self.shape.text)
        self.visual_projection = nn.Dense(self.shape.projection, use_bias=False)
        self.text_projection = nn.Dense(self.shape.projection, use_bias=False)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(_FIRST_LOGIT_SCALE), ()
        )

    def image_features(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch projection"]:
        """Return the projected features of normalised images, not of unit length."""
        return self.visual_projection(self.vision_model(images))

    def text_features(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch projection"]:
        """Return the projected features of texts, not of unit length."""
        return self.text_projection(self.text_model(tokens))

    def __call__(
        self, images: Float[Array, "images size size channels"], tokens: Int[Array, "texts tokens"]
    ) -> Float[Array, "images texts"]:
        """Return the logits: scaled cosines between images and texts."""
        image, text = (
            x / jnp.linalg.norm(x, axis=-1, keepdims=True)
            for x in (self.image_features(images), self.text_features(tokens))
        )
        return jnp.exp(self.logit_scale) * image @ text.T
