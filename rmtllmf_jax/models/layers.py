"""Layers that all towers share; the towers only add the names that their checkpoints use."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtllmf_jax.models.shapes import TransformerShape


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with flax's parameter names ``scale`` and ``bias``.

    Computed in float32 at least, returned in the type of `x`. Scale and bias are spread over the
    rows by a product with a column of ones, so that their gradients are matrix products: XLA's
    column sums on a CPU are so slow that the gradient of a ViT-Ti takes 1.6 times as long with
    `flax.linen.LayerNorm` (benchmarks/model.py).
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        rows = in_full(x.reshape(-1, width))
        centred = rows - jnp.mean(rows, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normalised = centred * jax.lax.rsqrt(variance + self.epsilon)
        # Accelerators would round scale and bias to the short numbers of their matrix units.
        spread = partial(jnp.matmul, jnp.ones((rows.shape[0], 1), rows.dtype), precision="highest")
        return (
            (normalised * spread(scale[None]) + spread(bias[None])).reshape(x.shape).astype(x.dtype)
        )


class PatchProjection(nn.Module):
    """The patch embedding as reshape and matmul; its kernel keeps the convolution's HWIO shape."""

    width: int
    patch_size: int
    dtype: str
    use_bias: bool = True

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
        patches = images.reshape(batch, grid, patch, grid, patch, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, -1)
        embedded = in_dtype(patches, self.dtype) @ in_dtype(
            kernel.reshape(-1, self.width), self.dtype
        )
        if not self.use_bias:
            return embedded
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return embedded + in_dtype(bias, self.dtype)


class Layers(nn.Module):
    """The blocks, unrolled so that every layer keeps its own named leaves."""

    shape: TransformerShape
    block: type[nn.Module]
    """Of one block; made from `shape`, `first_only` and `name`."""
    first_only: bool = False
    """Whether the first token alone is returned, so that the last block computes no other."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch read width"]:
        # `remat` lifts a class of modules, names untouched.
        block = nn.remat(self.block) if self.shape.remat else self.block
        last = self.shape.depth - 1
        for index in range(self.shape.depth):
            first_only = self.first_only and index == last
            x = block(shape=self.shape, first_only=first_only, name=str(index))(x)
        return x


class Encoder(nn.Module):
    """A level of names around the blocks, as checkpoints have it; `layers` is the blocks' own."""

    shape: TransformerShape
    block: type[nn.Module]
    layers: str
    first_only: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch read width"]:
        return Layers(self.shape, self.block, self.first_only, name=self.layers)(x)


def in_dtype(x: Array, dtype: str) -> Array:
    """Return `x` in the type to compute in; `float32` leaves it as it is, float64 too."""
    return x.astype(jnp.bfloat16) if dtype == "bfloat16" else x


def in_full(x: Array) -> Array:
    """Return `x` in float32 at least, as features leave a tower."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def dense(shape: TransformerShape, features: int, **options: Any) -> nn.Dense:
    """Return a dense layer that computes in the tower's type, with its parameters as they are."""
    dtype = jnp.bfloat16 if shape.dtype == "bfloat16" else None
    return nn.Dense(features, dtype=dtype, **options)


def attend(
    query: Float[Array, "batch read width"],
    key: Float[Array, "batch tokens width"],
    value: Float[Array, "batch tokens width"],
    heads: int,
    causal: bool = False,
) -> Float[Array, "batch read width"]:
    """Multi-head attention between projected tokens; `causal` hides later tokens."""

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads)

    attended = jax.nn.dot_product_attention(
        split(query), split(key), split(value), is_causal=causal
    )
    return attended.reshape(query.shape)
