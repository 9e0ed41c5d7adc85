"""CLIP and SigLIP's vision encoder in Flax, with Hugging Face's parameter names.

A leaf's path is the checkpoint's key with ``/`` for ``.`` and flax's names for ``weight``
(``kernel``, ``scale``, ``embedding``), for example
``vision_model/encoder/layers/0/self_attn/q_proj/kernel``: the layout of ``flax_model.msgpack``.

References: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
ICML 2021. Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from rmtllmf_jax.models.heads import Head, unit_length
from rmtllmf_jax.models.layers import (
    MLP,
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
from rmtllmf_jax.models.shapes import (
    CLIPShape,
    SiglipTextShape,
    TextShape,
    TransformerShape,
    ViTShape,
)

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
    """Patch embeddings after the class token, if there is one, plus position embeddings."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch tokens width"]:
        shape, siglip = self.shape, not self.shape.class_tokens
        embedded = PatchProjection(
            shape.width, shape.patch_size, shape.dtype, use_bias=siglip, name="patch_embedding"
        )(images)
        positions = Embedding(shape.tokens, shape.width, name="position_embedding")()
        if not siglip:
            token = self.param("class_embedding", _INIT, (shape.width,))
            tokens = jnp.broadcast_to(in_dtype(token, shape.dtype), (len(images), 1, shape.width))
            embedded = jnp.concatenate([tokens, embedded], axis=1)
        return embedded + in_dtype(positions, shape.dtype)


class QueryAttention(nn.Module):
    """Attention of one query to all tokens, with the leaves of torch's `MultiheadAttention`."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, query: Float[Array, "batch 1 width"], x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch 1 width"]:
        width = self.shape.width
        kernel = self.param("in_proj_weight", _INIT, (3 * width, width))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * width,))
        kernels, biases = jnp.split(kernel, 3), jnp.split(bias, 3)
        q, k, v = (y @ w.T + b for y, w, b in zip((query, x, x), kernels, biases, strict=True))
        return nn.Dense(width, name="out_proj")(attend(q, k, v, self.shape.heads))


class AttentionPool(nn.Module):
    """SigLIP's head: attention pooling by a learned query, with a residual MLP."""

    shape: ViTShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        shape = replace(self.shape, dtype="float32")  # a query per image costs nothing
        probe = self.param("probe", _INIT, (1, 1, shape.width))
        query = jnp.broadcast_to(probe, (len(x), 1, shape.width))
        x = QueryAttention(shape, name="attention")(query, x)
        norm = LayerNorm(epsilon=shape.layer_norm_eps, name="layernorm")
        return (x + MLP(shape, name="mlp")(norm(x)))[:, 0]


class CLIPVision(nn.Module):
    """Normalised images in, a feature (`ViTShape.pool`) after the last LayerNorm out.

    This is the `pooler_output` of `CLIPVisionModel` (the class token's, before the projection into
    the shared space) and of `SiglipVisionModel`.
    """

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch width"]:
        norm = partial(LayerNorm, epsilon=self.shape.layer_norm_eps)
        first_only = self.shape.pool == "class"  # then only the class token is read
        x = VisionEmbeddings(self.shape, name="embeddings")(images)
        if self.shape.class_tokens:
            x = norm(name="pre_layrnorm")(x)  # the spelling of every checkpoint
        x = Level(partial(Layers, self.shape, Layer, first_only, name="layers"), name="encoder")(x)
        if first_only:
            return norm(name="post_layernorm")(in_full(x[:, 0]))
        x = norm(name="post_layernorm")(in_full(x))
        if self.shape.pool == "mean":
            return jnp.mean(x, axis=1)
        return AttentionPool(self.shape, name="head")(x)


class TextEmbeddings(nn.Module):
    """Token embeddings plus position embeddings."""

    shape: TextShape | SiglipTextShape

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
    text_parts: ClassVar[tuple[str, ...]] = ("text_model", "text_projection", "logit_scale")
    """Names of the parameters that a zero-shot head depends on, besides the projection."""

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

    @nn.nowrap
    def zero_shot(self, params: PyTree, directions: Float[Array, "classes projection"]) -> Head:
        """Return the head for classes with these text features, of unit length."""
        kernel = jnp.exp(params["logit_scale"]).astype(jnp.float32) * directions.T
        projection = jnp.asarray(params["visual_projection"]["kernel"], jnp.float32)
        return Head(kernel, jnp.zeros(len(directions), jnp.float32), projection)

    def __call__(
        self, images: Float[Array, "images size size channels"], tokens: Int[Array, "texts tokens"]
    ) -> Float[Array, "images texts"]:
        """Return the logits: scaled cosines between images and texts."""
        features = self.image_features(images), self.text_features(tokens)
        image, text = map(unit_length, features)
        return jnp.exp(self.logit_scale) * image @ text.T
