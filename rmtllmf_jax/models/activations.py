"""Activations by Hugging Face's names."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array


@jax.custom_jvp
def _gelu(x: Array) -> Array:
    """Return ``x (1 + erf(x / sqrt 2)) / 2`` as torch computes it, in float32 at least.

    `jax.nn.gelu` calls erfc, which takes two and a half times as long on a CPU and keeps the
    relative precision of values near zero, which makes no difference in a sum with other terms.
    """
    wide = _wide(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@_gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (change,) = primals, tangents
    wide = _wide(x)
    density = jnp.exp(-0.5 * jnp.square(wide)) * (2 * math.pi) ** -0.5
    # Another erf, of -x: XLA would store a shared one beside x for the gradient, which costs more.
    slope = 1 - _normal_cdf(-wide) + wide * density
    return _gelu(x), slope.astype(x.dtype) * change


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normal_cdf(x: Array) -> Array:
    return 0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}
"""The activations of vision transformers, CLIP and decoders of text."""
