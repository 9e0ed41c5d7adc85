"""Small-scale fading: matrices H of channel coefficients with E|h|^2 = 1.

A fading is a function `(key, antennas, users) -> H`. `Rayleigh`, `Rician` and `Kronecker` are that
with their parameters bound: frozen and hashable, so that a preset can hold them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Complex, Float, Inexact, Key, Real

from rmtllmf_jax.channel.checks import (
    is_traced,
    require_decibels,
    require_hermitian,
    require_within,
)
from rmtllmf_jax.channel.linalg import correlation_root, product
from rmtllmf_jax.common.errors import InputError, require_at_least

# What the key of a Rician draw is folded with.
_ANGLES, _SCATTERED = 0, 1


@runtime_checkable
class Fading(Protocol):
    """`(key, antennas, users, dtype) -> H` with E|h|^2 = 1.

    A fading with a line of sight sets ``has_angles = True`` and also takes `angles` (users,), in
    radians from broadside, where the users have positions.
    """

    def __call__(
        self, key: Key[Array, ""], antennas: int, users: int, dtype: DTypeLike | None = None
    ) -> Complex[Array, "antennas users"]:
        """One draw of H."""


def rayleigh(
    key: Key[Array, ""], antennas: int, users: int, dtype: DTypeLike | None = None
) -> Complex[Array, "antennas users"]:
    """Independent CN(0, 1) coefficients: rich scattering, no line of sight, E|h|^2 = 1.

    `dtype` is complex64 or complex128; by default it follows jax's default float. A key gives
    different numbers in the two precisions.

    **Raises:** `InputError` for no antennas or no users.
    """
    require_at_least("antennas", antennas, 1)
    require_at_least("users", users, 1)
    return jax.random.normal(key, (antennas, users), dtype=_complex(dtype))


def steering_vectors(
    angles: Float[Array, " users"], antennas: int
) -> Complex[Array, "antennas users"]:
    """Responses exp(j pi m sin(angle)) of a uniform linear array at half a wavelength.

    `angles` in radians from broadside; m = 0 .. antennas - 1.
    """
    phase = jnp.pi * jnp.arange(antennas, dtype=angles.dtype)[:, None] * jnp.sin(angles)
    return jax.lax.complex(jnp.cos(phase), jnp.sin(phase))


def rician(
    key: Key[Array, ""],
    antennas: int,
    users: int,
    k_factor: Real[ArrayLike, ""] | Real[ArrayLike, " users"],
    angles: Float[Array, " users"] | None = None,
    dtype: DTypeLike | None = None,
) -> Complex[Array, "antennas users"]:
    """Columns h = sqrt(K / (K + 1)) a(angle) + sqrt(1 / (K + 1)) w with w ~ CN(0, I).

    `k_factor` is K >= 0, line of sight over scattered power as a ratio, for all or per user;
    a(angle) the `steering_vectors`, whose first antenna has phase 0: a common phase of a user's
    coefficients changes no rate. E|h|^2 = 1. `angles` are in radians from broadside; by default
    they are drawn uniformly from the half plane in front of the array. Differentiable in angles and
    in K > 0.

    **Raises:** `InputError` for a K below zero or anything but one angle per user.
    """
    require_within("k_factor", k_factor, 0.0, math.inf)
    scattered = rayleigh(jax.random.fold_in(key, _SCATTERED), antennas, users, dtype)
    real = jnp.finfo(scattered.dtype).dtype
    if angles is None:
        limit = math.pi / 2
        drawn = jax.random.fold_in(key, _ANGLES)
        angles = jax.random.uniform(drawn, (users,), real, minval=-limit, maxval=limit)
    if angles.shape != (users,):
        raise InputError(f"angles must be one per user, {users}, got shape {angles.shape}.")
    require_within("angles", angles, -math.inf, math.inf)
    k = jnp.asarray(k_factor, real)
    line_of_sight = steering_vectors(angles.astype(real), antennas)
    return jnp.sqrt(k / (k + 1)) * line_of_sight + jnp.sqrt(1 / (k + 1)) * scattered


def exponential_correlation(n: int, coefficient: float | Float[Array, ""]) -> Float[Array, "n n"]:
    """R_ij = r^|i - j| with -1 < r < 1: correlation along a row of antennas decays geometrically.

    S. Loyka, "Channel capacity of MIMO architecture using the exponential correlation matrix",
    IEEE Communications Letters 5(9), 2001.

    **Raises:** `InputError` for n below one or a coefficient outside.

    >>> exponential_correlation(2, 0.5).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    require_at_least("size of a correlation matrix", n, 1)
    _require_coefficient("correlation coefficient", coefficient)
    index = jnp.arange(n)
    r = jnp.asarray(coefficient, jnp.result_type(float, coefficient))
    return r ** jnp.abs(index[:, None] - index)


def kronecker(
    key: Key[Array, ""],
    receive_correlation: Inexact[Array, "antennas antennas"],
    transmit_correlation: Inexact[Array, "users users"],
    dtype: DTypeLike | None = None,
) -> Complex[Array, "antennas users"]:
    """H = R_r^(1/2) W R_t^(H/2) with W ~ CN(0, 1): E[h_iq conj h_jp] = (R_r)_ij (R_t)_pq.

    Correlation matrices are Hermitian, positive semidefinite and have ones on the diagonal, so
    that E|h|^2 = 1. Well-separated users have R_t = I. Differentiable in both matrices where they
    have full rank.

    **Raises:** `InputError` for a matrix that is not a correlation matrix.
    """
    require_correlation("receive_correlation", receive_correlation)
    require_correlation("transmit_correlation", transmit_correlation)
    antennas, users = receive_correlation.shape[0], transmit_correlation.shape[0]
    white = rayleigh(key, antennas, users, dtype)
    receive, transmit = (
        correlation_root(matrix.astype(white.dtype))
        for matrix in (receive_correlation, transmit_correlation)
    )
    return product(product(receive, white), transmit.conj().T)


def require_correlation(name: str, matrix: Inexact[Array, "rows columns"]) -> None:
    """Check that `matrix` is Hermitian positive semidefinite with ones on its diagonal.

    Traced values pass unchecked.

    **Raises:** `InputError` that says which property fails, and by how much.
    """
    tolerance = 100 * max(matrix.shape, default=1) * float(jnp.finfo(matrix.dtype).eps)
    require_hermitian(name, matrix, tolerance)
    if is_traced(matrix):
        return
    seen = np.asarray(matrix, np.complex128)
    diagonal = np.diagonal(seen).real
    off = diagonal[np.abs(diagonal - 1).argmax()]
    if abs(off - 1) > tolerance:
        raise InputError(f"{name} must have ones on its diagonal, got {off:.6g}.")
    least = np.linalg.eigvalsh(seen)[0]
    if least < -tolerance:
        raise InputError(
            f"{name} must be positive semidefinite; its least eigenvalue is {least:.3g}."
        )


@dataclass(frozen=True)
class Rayleigh:
    """`rayleigh`: rich scattering, no line of sight."""

    def __call__(
        self, key: Key[Array, ""], antennas: int, users: int, dtype: DTypeLike | None = None
    ) -> Complex[Array, "antennas users"]:
        """One draw of H."""
        return rayleigh(key, antennas, users, dtype)


@dataclass(frozen=True)
class Rician:
    """`rician`: a line of sight from each user, and scattering around it.

    **Fields:** `k_factor_db`, line of sight over scattered power; `angles_deg`, one per user from
    broadside, or `None` to draw them.

    **Raises:** `InputError` for values that are not finite.
    """

    k_factor_db: float
    angles_deg: Sequence[float] | None = None
    has_angles: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_decibels("k_factor_db", self.k_factor_db)
        if self.angles_deg is not None:
            object.__setattr__(self, "angles_deg", tuple(map(float, self.angles_deg)))
            require_within("angles_deg", self.angles_deg, -math.inf, math.inf)

    def __call__(
        self,
        key: Key[Array, ""],
        antennas: int,
        users: int,
        dtype: DTypeLike | None = None,
        angles: Float[Array, " users"] | None = None,
    ) -> Complex[Array, "antennas users"]:
        """One draw of H, at `angles` in radians if given."""
        if angles is None and self.angles_deg is not None:
            angles = jnp.deg2rad(jnp.array(self.angles_deg))
        return rician(key, antennas, users, 10 ** (self.k_factor_db / 10), angles, dtype)


@dataclass(frozen=True)
class Kronecker:
    """`kronecker` with an `exponential_correlation` at either end.

    **Fields:** `receive_correlation` between neighbouring antennas and `transmit_correlation`
    between users of neighbouring index, both in (-1, 1).

    **Raises:** `InputError` for a coefficient outside.
    """

    receive_correlation: float
    transmit_correlation: float = 0.0

    def __post_init__(self) -> None:
        _require_coefficient("receive_correlation", self.receive_correlation)
        _require_coefficient("transmit_correlation", self.transmit_correlation)

    def __call__(
        self, key: Key[Array, ""], antennas: int, users: int, dtype: DTypeLike | None = None
    ) -> Complex[Array, "antennas users"]:
        """One draw of H."""
        receive = exponential_correlation(antennas, self.receive_correlation)
        transmit = exponential_correlation(users, self.transmit_correlation)
        return kronecker(key, receive, transmit, dtype)


def _require_coefficient(name: str, value: float | Float[Array, ""]) -> None:
    if not is_traced(value) and not -1 < value < 1:
        raise InputError(f"{name} must be within (-1, 1), got {value!r}.")


def _complex(dtype: DTypeLike | None) -> np.dtype:
    return jnp.result_type(complex) if dtype is None else jnp.dtype(dtype)
