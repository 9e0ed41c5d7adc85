"""Checks of numbers that are known before a program is compiled, and `check_uplink` for later.

Traced values pass unchecked: inside `jax.jit`, `jax.vmap` and `jax.grad` they have no numbers yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from rmtllmf_jax.common.errors import InputError


def is_traced(value: Any) -> bool:
    """Whether `value` is a placeholder of a jax transformation, without numbers to check."""
    return isinstance(value, jax.core.Tracer)


def _require(
    name: str, values: Any, expected: str, holds: Callable[[np.ndarray], Any] = lambda array: True
) -> None:
    if is_traced(values):
        return
    array = np.ravel(values)
    bad = array[~(np.isfinite(array) & holds(array))]
    if bad.size:
        raise InputError(f"{name} must be {expected}, got {bad[0].item()!r}.")


def require_within(name: str, values: Any, least: float, most: float) -> None:
    """Check that all `values` are finite and within [least, most].

    **Raises:** `InputError` that names them and the first value seen outside.
    """
    limits = [f">= {least:g}"] * (least > -math.inf) + [f"<= {most:g}"] * (most < math.inf)
    expected = " and ".join(["finite", *limits])
    _require(name, values, expected, lambda array: (array >= least) & (array <= most))


def require_decibels(name: str, values: Any) -> None:
    """Check that a float can hold the ratios of all `values` in dB, see `require_within`."""
    require_within(name, values, -300.0, 300.0)


def require_positive(name: str, values: Any) -> None:
    """Check that all `values` are finite and above zero, see `require_within`."""
    _require(name, values, "finite and > 0", lambda array: array > 0)


def require_finite(name: str, values: Any) -> None:
    """Check that all `values`, real or complex, are finite, see `require_within`."""
    _require(name, values, "finite")


def require_channel(h_tilde: Any) -> None:
    """Check that H~ is one complex matrix (antennas, users), and finite.

    **Raises:** `InputError` that says what was seen.
    """
    shape, dtype = np.shape(h_tilde), getattr(h_tilde, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.complexfloating):
        seen = type(h_tilde).__name__ if dtype is None else f"{dtype} of shape {shape}"
        raise InputError(
            f"h_tilde must be a complex array (antennas, users), got {seen}: convert it with "
            "jnp.asarray(h_tilde, complex)."
        )
    if len(shape) != 2 or not all(shape):
        raise InputError(
            f"h_tilde must be one channel of shape (antennas, users), got {shape}: map over a "
            "batch of channels with jax.vmap."
        )
    require_finite("h_tilde", h_tilde)


def require_hermitian(name: str, matrix: Any, tolerance: float | None = None) -> None:
    """Check that a matrix is square, finite and Hermitian to rounding.

    `tolerance` bounds the difference of two entries; by default it is the rounding error of a
    matrix product, with some margin. The shape of a traced matrix is checked too.

    **Raises:** `InputError` that names it and what was seen.
    """
    shape = np.shape(matrix)
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise InputError(f"{name} must be a square matrix, got shape {shape}.")
    if is_traced(matrix):
        return
    array = np.asarray(matrix)
    require_finite(name, array)
    if tolerance is None:
        tolerance = np.sqrt(np.finfo(array.dtype).eps) * np.abs(array).max()
    gap = np.abs(array - array.conj().T)
    row, column = np.unravel_index(np.argmax(gap), gap.shape)
    if gap[row, column] > tolerance:
        raise InputError(
            f"{name} must be Hermitian: [{row}, {column}] is {array[row, column].item()!r} but "
            f"[{column}, {row}] is {array[column, row].item()!r}."
        )


def require_covariance(name: str, matrix: Any) -> None:
    """Check that a matrix is Hermitian and positive semidefinite to rounding.

    **Raises:** `InputError` that names it and the offending value.
    """
    if is_traced(matrix):
        return
    require_hermitian(name, matrix)
    values = np.linalg.eigvalsh(np.asarray(matrix))
    if values[0] < -np.sqrt(np.finfo(values.dtype).eps) * max(abs(values[0]), abs(values[-1])):
        raise InputError(
            f"{name} must be positive semidefinite, got the eigenvalue {values[0].item()!r}."
        )


def require_powers(budget: Any, noise: Any) -> None:
    """Check that an attack budget is >= 0 and a thermal noise power > 0, see `require_within`."""
    require_within("budget", budget, 0.0, math.inf)
    require_positive("noise", noise)


def check_uplink(h_tilde: Any, budget: Any, noise: Any = 1.0) -> None:
    """The same checks inside a compiled program, for `jax.experimental.checkify`.

    A no-op unless the program is wrapped::

        @jax.jit
        @checkify.checkify
        def safe(h_tilde, budget):
            channel.check_uplink(h_tilde, budget)
            return channel.user_mse(h_tilde, channel.attacks.SumRate(), budget)

        error, mse = safe(h_tilde, budget)
        error.throw()
    """
    checkify.check(jnp.all(jnp.isfinite(h_tilde)), "h_tilde must be finite")
    budget, noise = jnp.asarray(budget), jnp.asarray(noise)
    sound = jnp.all((budget >= 0) & jnp.isfinite(budget))
    checkify.check(sound, "budget must be finite and >= 0, got {seen}", seen=budget)
    sound = jnp.all((noise > 0) & jnp.isfinite(noise))
    checkify.check(sound, "noise must be finite and > 0, got {seen}", seen=noise)
