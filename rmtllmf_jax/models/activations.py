"""Activations by Hugging Face's names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array


def _gelu(x: Array) -> Array:
    """Return ``x (1 + erf(x / sqrt 2)) / 2`` as torch computes it, in float32 at least.

    `jax.nn.gelu` calls erfc, which takes a CPU two and a half times as long and keeps the relative
    precision of what is nearly zero; next to the other inputs of a sum it makes no difference.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * (0.5 + 0.5 * jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}
"""Those that occur in vision transformers and CLIP."""
