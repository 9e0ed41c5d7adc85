"""Small-scale fading."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Key


def rayleigh(
    key: Key[Array, ""], antennas: int, users: int, dtype: DTypeLike | None = None
) -> Complex[Array, "antennas users"]:
    """Independent CN(0, 1) coefficients: rich scattering, no line of sight, E|h|^2 = 1.

    `dtype` is complex64 or complex128 and follows jax's default float when left out. A key gives
    other numbers in the other precision.
    """
    chosen = jnp.result_type(complex) if dtype is None else dtype
    return jax.random.normal(key, (antennas, users), dtype=chosen)
