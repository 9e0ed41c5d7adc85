"""The Vision Transformer as a Flax linen module with Hugging Face's parameter names.

DeiT and DINOv2 are selected by flags (`ViTShape`).

A leaf's path is the checkpoint's key with ``/`` for ``.`` and without the ``vit.`` prefix, for
example ``encoder/layer/0/attention/attention/query/kernel``.

References: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021. Touvron et al.,
"Training data-efficient image transformers & distillation through attention", ICML 2021. Oquab et
al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtllmf_jax.models.activations import ACTIVATIONS
from rmtllmf_jax.models.layers import (
    MLP,
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
    """Patch embeddings after the class token (and DeiT's other one), plus position embeddings."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch tokens width"]:
        init = nn.initializers.normal(0.02)
        width, tokens = self.shape.width, self.shape.tokens
        projection = partial(PatchProjection, width, self.shape.patch_size, self.shape.dtype)
        names = ("cls_token", "distillation_token")[: self.shape.class_tokens]
        first = [self.param(name, init, (1, 1, width)) for name in names]
        positions = self.param("position_embeddings", init, (1, tokens, width))
        patches = Level(partial(projection, name="projection"), name="patch_embeddings")(images)
        class_tokens = [
            jnp.broadcast_to(in_dtype(token, self.shape.dtype), (images.shape[0], 1, width))
            for token in first
        ]
        embedded = jnp.concatenate([*class_tokens, patches], axis=1)
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


class LayerScale(nn.Module):
    """A factor per feature."""

    shape: ViTShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch read width"]) -> Float[Array, "batch read width"]:
        scale = self.param("lambda1", nn.initializers.ones, (self.shape.width,))
        return x * in_dtype(scale, self.shape.dtype)


class GatedMLP(nn.Module):
    """SwiGLU: ``(silu(x W_1) * (x W_2)) W_3``, with W_1 and W_2 as one kernel."""

    shape: ViTShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch read width"]) -> Float[Array, "batch read width"]:
        both = dense(self.shape, 2 * self.shape.mlp_width, name="weights_in")(x)
        gate, value = jnp.split(both, 2, axis=-1)
        hidden = ACTIVATIONS["silu"](gate) * value
        return dense(self.shape, self.shape.width, name="weights_out")(hidden)


class Layer(nn.Module):
    """One pre-norm transformer block; returns all tokens, or only the first one."""

    shape: ViTShape
    first_only: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch read width"]:
        shape = self.shape
        norm = partial(LayerNorm, epsilon=shape.layer_norm_eps)
        names = ("norm1", "norm2") if shape.layer_scale else ("layernorm_before", "layernorm_after")
        read = slice(1 if self.first_only else None)
        y = norm(name=names[0])(x)
        y = Attention(shape, name="attention")(y[:, read], y)
        x = x[:, read] + (LayerScale(shape, name="layer_scale1")(y) if shape.layer_scale else y)
        y = norm(name=names[1])(x)
        if shape.layer_scale:
            y = GatedMLP(shape, name="mlp")(y) if shape.swiglu else MLP(shape, name="mlp")(y)
            return x + LayerScale(shape, name="layer_scale2")(y)
        y = _dense_in(shape, shape.mlp_width, "intermediate")(y)
        return x + _dense_in(shape, shape.width, "output")(ACTIVATIONS[shape.activation](y))


class VisionTransformer(nn.Module):
    """Normalised images in, a feature (`ViTShape.pool`) after the last LayerNorm out."""

    shape: ViTShape

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch size size channels"]
    ) -> Float[Array, "batch features"]:
        first_only = self.shape.pool == "class"  # then only the class token is read
        x = Embeddings(self.shape, name="embeddings")(images)
        x = Level(partial(Layers, self.shape, Layer, first_only, name="layer"), name="encoder")(x)
        norm = LayerNorm(epsilon=self.shape.layer_norm_eps, name="layernorm")
        if first_only:
            return norm(in_full(x[:, 0]))
        x = norm(in_full(x))
        return jnp.concatenate([x[:, 0], jnp.mean(x[:, self.shape.class_tokens :], axis=1)], -1)
