"""Gray-mapped square QAM: bits to symbols and back, hard and soft, and what AWGN does to them.

A square QAM of order M is two independent PAMs of sqrt(M) amplitudes, so that every decision here
is taken one axis at a time. A symbol carries log2 M bits, most significant first: the first half
selects the in-phase amplitude, the second half the quadrature one. Along an axis, neighbours
differ in one bit (reflected Gray code). Symbols have unit average energy.

`sinr` is the *unbiased* SINR: 1/mu - 1 behind a biased MMSE mu (`receivers.unbiased_sinr`), and
slicing needs the unbiased estimate, the MMSE estimate divided by 1 - mu.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Complex, Float, Int, Real

from rmtllmf_jax.common.errors import InputError, require_known

QAM_ORDERS = (4, 16, 64, 256)
"""Sizes of the constellations."""

METHODS = ("log_map", "max_log")
"""Soft demodulation: exact, or with the nearest point of either kind alone."""


def bits_per_symbol(order: int) -> int:
    """log2 of the constellation's size.

    **Raises:** `InputError` for an order that is not one of `QAM_ORDERS`.
    """
    if order not in QAM_ORDERS:
        known = ", ".join(map(str, QAM_ORDERS))
        raise InputError(f"unknown QAM order {order!r}, expected one of {known}.")
    return order.bit_length() - 1


def integers_to_bits(values: Int[Array, "*batch"], count: int) -> Int[Array, "*batch bits"]:
    """The `count` lowest binary digits, most significant first."""
    return values[..., None] >> jnp.arange(count - 1, -1, -1, dtype=values.dtype) & 1


def bits_to_integers(bits: Int[Array, "*batch bits"]) -> Int[Array, "*batch"]:
    """The integers whose binary digits, most significant first, are `bits`."""
    weights = 1 << jnp.arange(bits.shape[-1] - 1, -1, -1, dtype=bits.dtype)
    return jnp.sum(bits * weights, axis=-1, dtype=bits.dtype)


def constellation(order: int, dtype: DTypeLike | None = None) -> Complex[Array, " order"]:
    """All symbols; number k carries the binary digits of k.

    `dtype` is complex64 or complex128; by default it follows jax's default float.

    >>> (constellation(4) * 2**0.5).round().tolist()
    [(-1-1j), (-1+1j), (1-1j), (1+1j)]
    """
    return modulate(integers_to_bits(jnp.arange(order), bits_per_symbol(order)), dtype)


def modulate(
    bits: Int[Array, "*batch bits"], dtype: DTypeLike | None = None
) -> Complex[Array, "*batch"]:
    """Symbols of unit average energy; the length of the last axis, log2 M, selects the order.

    `dtype` is complex64 or complex128; by default it follows jax's default float.

    **Raises:** `InputError` for a length other than 2, 4, 6 or 8.
    """
    order = 1 << bits.shape[-1]
    half = bits_per_symbol(order) // 2
    index = _gray_decode(bits_to_integers(bits.reshape(*bits.shape[:-1], 2, half)), half)
    chosen = jnp.result_type(complex) if dtype is None else dtype
    axes = _amplitudes(order, jnp.finfo(chosen).dtype)
    return jax.lax.complex(axes[index[..., 0]], axes[index[..., 1]])


def demodulate(symbols: Complex[Array, "*batch"], order: int) -> Int[Array, "*batch bits"]:
    """Hard decisions: the bits of the nearest symbol."""
    half = bits_per_symbol(order) // 2
    index = _nearest(symbols, order)
    bits = integers_to_bits(index ^ (index >> 1), half)
    return bits.reshape(*symbols.shape, 2 * half)


def nearest_symbols(symbols: Complex[Array, "*batch"], order: int) -> Complex[Array, "*batch"]:
    """Slicing: the nearest symbol. Piecewise constant, so its gradient is zero."""
    index = _nearest(symbols, order)
    axes = _amplitudes(order, jnp.real(symbols).dtype)
    return jax.lax.complex(axes[index[..., 0]], axes[index[..., 1]])


def soft_demodulate(
    symbols: Complex[Array, "*batch"],
    noise_variance: Real[ArrayLike, "*#batch"],
    order: int,
    method: str = "log_map",
) -> Float[Array, "*batch bits"]:
    """Log-likelihood ratios log P(b = 0 | y) / P(b = 1 | y): positive favours 0.

    `symbols` are unbiased, y = x + CN(0, `noise_variance`), and all x equally likely. `"log_map"`
    is exact, hence calibrated: P(b = 0) = 1 / (1 + exp(-LLR)). `"max_log"` keeps the largest term
    of each sum.

    **Raises:** `InputError` for an unknown order or method.
    """
    reduce = jax.nn.logsumexp if require_known("method", method, METHODS) == "log_map" else jnp.max
    half = bits_per_symbol(order) // 2
    axes = _amplitudes(order, jnp.real(symbols).dtype)
    distance = (_both_axes(symbols)[..., None] - axes) ** 2
    metric = -distance / jnp.asarray(noise_variance, axes.dtype)[..., None, None]
    # For each bit, the amplitudes at which it is 0 and those at which it is 1.
    index = np.arange(axes.size)
    label = (index ^ index >> 1)[:, None] >> np.arange(half - 1, -1, -1) & 1
    by_bit = np.argsort(label, axis=0, kind="stable").T.reshape(half, 2, -1)
    zero, one = jnp.moveaxis(reduce(metric[..., by_bit], axis=-1), -1, 0)
    return (zero - one).reshape(*symbols.shape, 2 * half)


def symbol_error_rate(sinr: Float[Array, "*batch"], order: int) -> Float[Array, "*batch"]:
    """Of hard decisions over AWGN: 1 - (1 - p)^2 with p = 2 (1 - 1/sqrt M) Q(sqrt(3 SINR / (M-1))).

    For 64-QAM p = (7/4) Q(sqrt(SINR / 21)). Proakis, Digital Communications, section 4.3.
    """
    bits_per_symbol(order)
    p = 2 * (1 - 1 / math.sqrt(order)) * _tail(jnp.sqrt(3 * sinr / (order - 1)))
    return p * (2 - p)


def bit_error_rate(sinr: Float[Array, "*batch"], order: int) -> Float[Array, "*batch"]:
    """Of hard decisions over AWGN, exact at every SINR: Cho and Yoon, IEEE Trans. Commun. 50(7).

    Bit k = 1 .. log2 sqrt M of an axis is wrong with probability (2 / sqrt M) sum_i s_i w_i
    Q((2i+1) sqrt(3 SINR / (M-1))); the mean over k is returned.
    """
    half = bits_per_symbol(order) // 2
    levels = 1 << half
    weight = np.zeros(levels)
    for k in range(1, half + 1):
        i = np.arange(levels - (levels >> k))
        jump = (i << (k - 1)) / levels
        sign = 1 - 2 * (np.floor(jump) % 2)
        weight[: i.size] += sign * ((1 << (k - 1)) - np.floor(jump + 0.5))
    odd = jnp.arange(1, 2 * levels, 2)
    tails = _tail(odd * jnp.sqrt(3 * sinr / (order - 1))[..., None])
    return jnp.sum(jnp.asarray(weight, sinr.dtype) * tails, axis=-1) * 2 / (levels * half)


def error_vector_magnitude(sinr: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Rms error over rms symbol, 1 / sqrt(SINR)."""
    return 1 / jnp.sqrt(sinr)


def _amplitudes(order: int, dtype: DTypeLike) -> Float[Array, " levels"]:
    """The PAM of one axis, of energy 1/2."""
    levels = math.isqrt(order)
    return jnp.asarray(_spacing(order) * (np.arange(levels) - (levels - 1) / 2), dtype)


def _spacing(order: int) -> float:
    return math.sqrt(6 / (order - 1))


def _both_axes(symbols: Complex[Array, "*batch"]) -> Float[Array, "*batch 2"]:
    return jnp.stack([jnp.real(symbols), jnp.imag(symbols)], axis=-1)


def _nearest(symbols: Complex[Array, "*batch"], order: int) -> Int[Array, "*batch 2"]:
    """Index of the nearest amplitude on either axis."""
    bits_per_symbol(order)
    last = math.isqrt(order) - 1
    index = jnp.round(_both_axes(symbols) / _spacing(order) + last / 2)
    return jnp.clip(index, 0, last).astype(jnp.int32)


def _gray_decode(code: Int[Array, "*batch"], bits: int) -> Int[Array, "*batch"]:
    """Position of a word in the reflected Gray code: the inverse of k ^ (k >> 1)."""
    return functools.reduce(jnp.bitwise_xor, [code >> shift for shift in range(bits)])


def _tail(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Q(x), the Gaussian tail."""
    return erfc(x / math.sqrt(2)) / 2
