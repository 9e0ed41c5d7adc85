"""Layers shared by all towers, which only add the names used in their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rmtllmf_jax.models.activations import ACTIVATIONS
from rmtllmf_jax.models.shapes import TransformerShape

# Of causal attention: no more blocks of queries, which are unrolled, and none smaller.
_BLOCKS, _BLOCK = 4, 32


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with flax's parameter names ``scale`` and ``bias``.

    Computed in at least float32, returned in the type of `x`. Scale and bias are applied last, on
    rows: in the order of `flax.linen.LayerNorm` the gradient of a ViT-Ti takes 1.2 times as long on
    a CPU (benchmarks/model.py).
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        rows = _standardised(in_full(x.reshape(-1, width)), self.epsilon)
        return (rows * scale + bias).reshape(x.shape).astype(x.dtype)


class Embedding(nn.Module):
    """A table with one row per position or token."""

    rows: int
    width: int

    @nn.compact
    def __call__(self) -> Float[Array, "rows width"]:
        return self.param("embedding", nn.initializers.normal(0.02), (self.rows, self.width))


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
    """Class of one block; called with `shape`, `first_only` and `name`."""
    first_only: bool = False
    """Whether only the first token is returned, so that the last block computes no other."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch read width"]:
        # `remat` lifts a class of modules, names untouched.
        block = nn.remat(self.block) if self.shape.remat else self.block
        last = self.shape.depth - 1
        for index in range(self.shape.depth):
            first_only = self.first_only and index == last
            x = block(shape=self.shape, first_only=first_only, name=str(index))(x)
        return x


class Level(nn.Module):
    """A level of names around one module, as in checkpoints."""

    make: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
        return self.make()(x)


class MLP(nn.Module):
    """Two dense layers with the activation in between."""

    shape: TransformerShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch read width"]) -> Float[Array, "batch read width"]:
        x = ACTIVATIONS[self.shape.activation](
            dense(self.shape, self.shape.mlp_width, name="fc1")(x)
        )
        return dense(self.shape, self.shape.width, name="fc2")(x)


def in_dtype(x: Array, dtype: str) -> Array:
    """Return `x` in the compute type; `float32` leaves it unchanged, even float64."""
    return x.astype(jnp.bfloat16) if dtype == "bfloat16" else x


def in_full(x: Array) -> Array:
    """Return `x` in at least float32, the type of a tower's features."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def dense(shape: TransformerShape, features: int, **options: Any) -> nn.Dense:
    """Return a dense layer that computes in the tower's type; its parameters keep theirs."""
    dtype = jnp.bfloat16 if shape.dtype == "bfloat16" else None
    return nn.Dense(features, dtype=dtype, dot_general=_by_rows, **options)


def attend(
    query: Float[Array, "batch read width"],
    key: Float[Array, "batch tokens width"],
    value: Float[Array, "batch tokens width"],
    heads: int,
    causal: bool = False,
) -> Float[Array, "batch read width"]:
    """Multi-head attention between projected tokens; `causal` hides later tokens.

    `jax.nn.dot_product_attention` with another softmax: its own is in float32 even if everything
    else is in float64, and its derivative takes a tenth of a small model's gradient on a CPU.
    """

    def split(x: Float[Array, "batch some width"]) -> Float[Array, "batch heads some part"]:
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)

    each, others, carried = split(query), split(key), split(value)
    seen = jnp.tri(each.shape[2], others.shape[2], dtype=bool) if causal else None
    attended = _attended(each, others, carried, seen)
    return attended.transpose(0, 2, 1, 3).reshape(query.shape)


def grouped_attention(
    query: Float[Array, "batch tokens heads part"],
    key: Float[Array, "batch keys kv_heads part"],
    value: Float[Array, "batch keys kv_heads part"],
    seen: Bool[Array, "batch tokens keys"],
    causal: bool = False,
) -> Float[Array, "batch tokens heads part"]:
    """Attention in which ``heads / kv_heads`` queries in turn share a key; softmax as in `attend`.

    A query sees the keys that `seen` marks, at least one; none behind its own if `causal`, so that
    the first of a few blocks of queries need not look at the keys of the others. Keys are repeated
    and the mask is added: with an axis of groups in the products and a mask by `where`, the forward
    pass of a layer takes four to six times as long on a CPU (benchmarks/decoder.py).
    """
    tokens, shared = query.shape[1], query.shape[2] // key.shape[2]
    each, others, carried = (
        jnp.repeat(x, times, axis=2).transpose(0, 2, 1, 3)
        for x, times in ((query, 1), (key, shared), (value, shared))
    )
    size = max(_BLOCK, -(-tokens // _BLOCKS)) if causal else tokens
    attended = []
    for first in range(0, tokens, size):
        block = slice(first, first + size)
        keys = slice(first + size if causal else None)
        visible = (others[:, :, keys], carried[:, :, keys], seen[:, None, block, keys])
        attended.append(_attended(each[:, :, block], *visible))
    return jnp.concatenate(attended, axis=2).transpose(0, 2, 1, 3)


def _attended(
    query: Float[Array, "batch heads tokens part"],
    key: Float[Array, "batch heads keys part"],
    value: Float[Array, "batch heads keys part"],
    seen: Bool[Array, "..."] | None,
) -> Float[Array, "batch heads tokens part"]:
    """Softmax attention per head; `seen` broadcasts over (batch, heads, tokens, keys)."""
    exact = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=exact)
    logits *= query.shape[-1] ** -0.5
    if seen is not None:
        logits += jnp.where(seen, 0, jnp.finfo(exact).min)
    return jnp.einsum("bhts,bhsd->bhtd", _softmax(logits).astype(value.dtype), value)


def _by_rows(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs features"], *_: Any, **how: Any
) -> Float[Array, "*batch features"]:
    """``x kernel`` as one matrix product, with the signature that `flax.linen.Dense` expects.

    With more than one batch axis, XLA copies the cotangent before the kernel's gradient. On a CPU
    that gradient costs a third less if its first axis is the shorter one: a kernel that narrows is
    transposed first (the barrier keeps XLA from undoing it).
    """
    rows, precision = x.reshape(-1, x.shape[-1]), how.get("precision")
    if kernel.shape[0] > kernel.shape[1]:
        turned = jax.lax.optimization_barrier(kernel.T)
        found = jnp.einsum("ri,oi->ro", rows, turned, precision=precision)
    else:
        found = jnp.matmul(rows, kernel, precision=precision)
    return found.reshape(*x.shape[:-1], -1)


# The rules below keep little more than their results: derived step by step, a block would keep
# half as much again for its gradient.


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _standardised(x: Float[Array, "rows width"], epsilon: float) -> Float[Array, "rows width"]:
    """Every row minus its mean, divided by its standard deviation."""
    return _standardise(x, epsilon)[0]


@_standardised.defjvp
def _standardised_jvp(epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> Any:
    (change,) = tangents
    rows, per_std = _standardise(*primals, epsilon)
    along = rows * jnp.mean(rows * change, axis=-1, keepdims=True)
    return rows, per_std * (change - jnp.mean(change, axis=-1, keepdims=True) - along)


def _standardise(
    x: Float[Array, "rows width"], epsilon: float
) -> tuple[Float[Array, "rows width"], Float[Array, "rows 1"]]:
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    per_std = jax.lax.rsqrt(variance + epsilon)
    return centred * per_std, per_std


@jax.custom_jvp
def _softmax(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """`jax.nn.softmax` over the last axis; its own rule of this kind is off by default."""
    powers = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return powers / jnp.sum(powers, axis=-1, keepdims=True)


@_softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    shares = _softmax(*primals)
    change = shares * tangents[0]
    return shares, change - shares * jnp.sum(change, axis=-1, keepdims=True)
