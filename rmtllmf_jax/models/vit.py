"""The plain Vision Transformer as a Flax linen module whose parameters carry Hugging Face names.

A leaf's path is the checkpoint's key with ``/`` for ``.`` and without the ``vit.`` prefix, for
example ``encoder/layer/0/attention/attention/query/kernel``.

Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtllmf_jax.models.activations import ACTIVATIONS
from rmtllmf_jax.models.layers import (
    LayerNorm,
    Layers,
    Level,
    PatchProjection,
    attend,
    dense,
    in_dtype,
    in_full,
)
from rmtllmf_jax.models.shapes import ViTShape


class Embeddings(nn.Module):
    """Patch embeddings behind the class token, plus position embeddings."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch tokens width"]:
        init = nn.initializers.normal(0.02)
        width, tokens = self.shape.width, self.shape.grid**2 + 1
        projection = partial(PatchProjection, width, self.shape.patch_size, self.shape.dtype)
        class_token = self.param("cls_token", init, (1, 1, width))
        positions = self.param("position_embeddings", init, (1, tokens, width))
        patches = Level(partial(projection, name="projection"), name="patch_embeddings")(images)
        class_tokens = jnp.broadcast_to(
            in_dtype(class_token, self.shape.dtype), (images.shape[0], 1, width)
        )
        embedded = jnp.concatenate([class_tokens, patches], axis=1)
        return embedded + in_dtype(positions, self.shape.dtype)


def _dense_in(shape: ViTShape, features: int, name: str) -> Level:
    return Level(partial(dense, shape, features, name="dense"), name=name)


class SelfAttention(nn.Module):
    """Queries, keys and values, and the attention between them."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, read: Float[Array, "batch read width"], x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch read width"]:
        shape = self.shape
        query, key, value = (
            dense(shape, shape.width, use_bias=shape.qkv_bias, name=name)(tokens)
            for name, tokens in (("query", read), ("key", x), ("value", x))
        )
        return attend(query, key, value, shape.heads)


class Attention(nn.Module):
    """Self-attention and its output projection."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, read: Float[Array, "batch read width"], x: Float[Array, "batch tokens width"]
    ) -> Float[Array, "batch read width"]:
        attended = SelfAttention(self.shape, name="attention")(read, x)
        return _dense_in(self.shape, self.shape.width, "output")(attended)


class Layer(nn.Module):
    """One pre-norm transformer block; returns all tokens, or only the first one."""

    shape: ViTShape
    first_only: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch read width"]:
        shape = self.shape
        norm = partial(LayerNorm, epsilon=shape.layer_norm_eps)
        read = slice(1 if self.first_only else None)
        y = norm(name="layernorm_before")(x)
        x = x[:, read] + Attention(shape, name="attention")(y[:, read], y)
        y = _dense_in(shape, shape.mlp_width, "intermediate")(norm(name="layernorm_after")(x))
        return x + _dense_in(shape, shape.width, "output")(ACTIVATIONS[shape.activation](y))


class VisionTransformer(nn.Module):
    """Normalised images in, the class token's feature after the last LayerNorm out."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch width"]:
        x = Embeddings(self.shape, name="embeddings")(images)
        # Only the class token is read.
        x = Level(partial(Layers, self.shape, Layer, True, name="layer"), name="encoder")(x)
        return LayerNorm(epsilon=self.shape.layer_norm_eps, name="layernorm")(in_full(x[:, 0]))
