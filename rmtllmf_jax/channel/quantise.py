"""Real parameters to integer levels and back: what a digital link sends.

A block of parameters is normalised to unit power by its own rms, which the receiver knows, and
quantised uniformly: 2^bits cells of width 2 clip / 2^bits over [-clip, clip], each reproduced by
its middle; values outside go to the outermost cell. `clip` is in units of the rms.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Real

from rmtllmf_jax.common.errors import InputError

GAUSSIAN_CLIP: Mapping[int, float] = MappingProxyType({2: 1.991, 4: 2.682, 6: 3.330, 8: 3.938})
"""Clip of least mean squared error for a standard Gaussian, by the number of bits.

J. Max, Quantizing for Minimum Distortion, IRE Trans. Inf. Theory 6 (1960). The error is .1188 (2
bits), .01154 (4), .001040 (6) and .0000877 (8) of the block's power.
"""


def normalise(
    parameters: Float[Array, "*batch size"],
) -> tuple[Float[Array, "*batch size"], Float[Array, "*batch"]]:
    """Blocks of unit power, and the rms that each was divided by. A block of zeros stays zero.

    >>> values, scale = normalise(jnp.array([1.0, 7.0]))
    >>> print(values, scale)
    [0.2 1.4] 5.0
    """
    power = jnp.mean(jnp.square(parameters), axis=-1)
    # The inner where keeps the derivative of a block of zeros finite.
    scale = jnp.where(power > 0, jnp.sqrt(jnp.where(power > 0, power, 1)), 0)
    return parameters / jnp.where(power > 0, scale, 1)[..., None], scale


def quantise(
    values: Float[Array, "*batch"], bits: int, clip: Real[ArrayLike, ""] | None = None
) -> Int[Array, "*batch"]:
    """Levels 0 .. 2^bits - 1; `clip` defaults to `GAUSSIAN_CLIP`.

    **Raises:** `InputError` without a clip where the table has none for that many bits.

    >>> quantise(jnp.array([-0.9, 0.1, 5.0]), bits=2, clip=1.0).tolist()
    [0, 2, 3]
    """
    limit = _clip(bits, clip)
    last = (1 << bits) - 1
    cell = jnp.floor((values + limit) * ((last + 1) / (2 * limit)))
    return jnp.clip(cell, 0, last).astype(jnp.int32)


def dequantise(
    levels: Int[Array, "*batch"],
    bits: int,
    clip: Real[ArrayLike, ""] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch"]:
    """Middles of the cells, in units of the rms.

    Off by at most half a cell, clip / 2^bits, inside the clip range. By default, `dtype` follows
    jax's default float.

    **Raises:** `InputError` as `quantise` does.

    >>> dequantise(jnp.array([0, 2, 3]), bits=2, clip=1.0).tolist()
    [-0.75, 0.25, 0.75]
    """
    limit = _clip(bits, clip)
    chosen = jnp.result_type(float) if dtype is None else dtype
    middles = (2 * levels + 1).astype(chosen) / (1 << bits) - 1
    return middles * jnp.asarray(limit, chosen)


def _clip(bits: int, clip: ArrayLike | None) -> ArrayLike:
    if clip is not None:
        return clip
    if bits not in GAUSSIAN_CLIP:
        known = ", ".join(map(str, GAUSSIAN_CLIP))
        raise InputError(f"no default clip for {bits!r} bits (known: {known}): pass `clip`.")
    return GAUSSIAN_CLIP[bits]
