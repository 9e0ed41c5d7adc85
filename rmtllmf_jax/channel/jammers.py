"""A physical jammer: few antennas, and hence a covariance of low rank.

With an orthonormal basis U of the subspace that the jammer reaches at the base station, the part
S = U^H H~ of the users' channels is within reach and H~ - U S is out of it. The jammer's covariance
is A = U B U^H, and with the floor n

    G = (H~ - U S)^H (H~ - U S) / n + S^H (n I + B)^-1 S:

no matrix as large as the number of antennas is inverted, and nothing cancels, so float32 suffices
at any power. The B of a given trace that leaves the least sum rate follows from a determinant: log
det(I + G) is, up to terms that B does not change, log det(I + (n I + B)^-1 L) with

    L = S (I + (H~ - U S)^H (H~ - U S) / n)^-1 S^H,

the part of the users' signals within reach that the other antennas do not know already. This is the
problem of the floor-aware sum-rate attack with the Gram matrix L: B has the eigenvectors of L and
the powers [sigma_i - n]_+ of `floor_aware_powers`. Exact, including derivatives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Key, Real

from rmtllmf_jax.channel.checks import require_channel, require_powers, require_within
from rmtllmf_jax.channel.fading import rayleigh, steering_vectors
from rmtllmf_jax.channel.linalg import eigh, inverse, product
from rmtllmf_jax.channel.matrix_functions import congruence, reciprocal
from rmtllmf_jax.channel.realisation import gram
from rmtllmf_jax.channel.spectral_attacks import FLOOR_AWARE, spectral_powers
from rmtllmf_jax.common.errors import InputError, require_at_least, require_known

_COVARIANCES = ("barrage", "worst")


class _Answer(NamedTuple):
    """The attack U B U^H in the eigenbasis of B, and the channel in that basis."""

    basis: Complex[Array, "antennas sources"]
    powers: Complex[Array, "sources sources"]
    within: Complex[Array, "sources users"]
    beyond: Complex[Array, "antennas users"]


@dataclass(frozen=True)
class Jammer:
    """A jammer with few antennas, received as A = J R J^H of rank at most their number.

    - `antennas`: columns of J, drawn from the key as independent CN(0, 1).
    - `angles`: in place of a draw, directions in degrees from broadside, one per antenna (or one
      per jammer, if there are several): `fading.steering_vectors`, half a wavelength apart. They
      set the number of antennas.
    - `covariance`: "barrage", R a multiple of I; or "worst", the R >= 0 that minimises the sum rate
      log det(I + G), chosen with knowledge of all channels and the floor.

    As for every attack, the budget is the power received over all antennas, tr A: it includes the
    jammer's distance and the scale of R and J. The sum rate is never below that under
    `SumRateFloorAware`, which "worst" equals with as many antennas as the base station. Non-smooth
    where a direction begins to be attacked; directions too close for rounding to tell apart count
    as one.
    """

    antennas: int = 2
    angles: Sequence[float] | None = None
    covariance: Literal["barrage", "worst"] = "barrage"
    random: ClassVar[bool] = True
    title: ClassVar[str] = "Jammer with few antennas"

    def __post_init__(self) -> None:
        if self.angles is not None:
            object.__setattr__(self, "angles", tuple(map(float, self.angles)))
            require_at_least("number of angles", len(self.angles), 1)
            require_within("angles", self.angles, -math.inf, math.inf)
            if self.antennas not in (Jammer.antennas, len(self.angles)):
                raise InputError(
                    f"angles must be one an antenna, {self.antennas}, got {len(self.angles)}: "
                    "leave antennas out."
                )
            object.__setattr__(self, "antennas", len(self.angles))
        require_at_least("antennas", self.antennas, 1)
        require_known("covariance of a jammer", self.covariance, _COVARIANCES)

    def __call__(
        self,
        h_tilde: Complex[Array, "antennas users"],
        budget: Real[ArrayLike, ""],
        noise: Real[ArrayLike, ""] = 1.0,
        key: Key[Array, ""] | None = None,
    ) -> Complex[Array, "antennas antennas"]:
        """The jammer's covariance at the base station, of trace `budget`; `noise` for "worst".

        **Raises:** `InputError` without `angles` and a `key`, and outside jit for a channel that is
        not finite, a negative budget or a noise that is not positive.

        >>> h_tilde = jnp.array([[1.0 + 0j], [0.0]])
        >>> bool(jnp.allclose(Jammer(angles=(0.0,))(h_tilde, 6.0), 3.0))  # all four entries
        True
        """
        answer = self._answer(h_tilde, budget, noise, key)
        return congruence(answer.basis, answer.powers)

    def from_channel(
        self,
        h_tilde: Complex[Array, "antennas users"],
        budget: Real[ArrayLike, ""],
        noise: Real[ArrayLike, ""] = 1.0,
        key: Key[Array, ""] | None = None,
    ) -> Complex[Array, "users users"]:
        """The effective Gram matrix G = H~^H (A + noise I)^-1 H~, without the covariance.

        **Raises:** `InputError` as for the covariance.

        >>> h_tilde = jnp.array([[1.0 + 0j], [-1.0]])
        >>> bool(jnp.allclose(Jammer(angles=(0.0,)).from_channel(h_tilde, 6.0), 2.0))  # no loss
        True
        """
        answer = self._answer(h_tilde, budget, noise, key)
        floor = jnp.asarray(noise, jnp.real(h_tilde).dtype)
        total = answer.powers + floor * jnp.eye(len(answer.powers), dtype=h_tilde.dtype)
        return gram(answer.beyond) / floor + congruence(answer.within.conj().T, reciprocal(total))

    def _answer(
        self, h: Array, budget: ArrayLike, noise: ArrayLike, key: Key[Array, ""] | None
    ) -> _Answer:
        require_channel(h)
        require_powers(budget, noise)
        real = jnp.real(h).dtype
        budget, noise = jnp.asarray(budget, real), jnp.asarray(noise, real)
        body = self._body(len(h), h.dtype, key)
        values, vectors = eigh(gram(body))
        reached = values > len(values) * jnp.finfo(real).eps * jnp.sum(values)
        basis = product(body, vectors) / jnp.sqrt(jnp.where(reached, values, jnp.inf))
        within = product(basis.conj().T, h)
        beyond = h - product(basis, within)
        if self.covariance == "barrage":
            share = jnp.where(reached, values, 0)
            powers = jnp.diag(budget * share / jnp.sum(share)).astype(h.dtype)
            return _Answer(basis, powers, within, beyond)
        known = jnp.eye(h.shape[1], dtype=h.dtype) + gram(beyond) / noise
        left = congruence(within, inverse(known))
        vectors, powers = spectral_powers(FLOOR_AWARE, left, budget, noise)
        return _Answer(product(basis, vectors), powers, product(vectors.conj().T, within), beyond)

    def _body(self, size: int, dtype: jnp.dtype, key: Key[Array, ""] | None) -> Array:
        """J (antennas of the base station, of the jammer)."""
        if self.angles is not None:
            angles = jnp.deg2rad(jnp.array(self.angles, jnp.finfo(dtype).dtype))
            return steering_vectors(angles, size)
        if key is None:
            raise InputError(
                "the attack jammer draws the channel of its antennas: give it a key, or angles."
            )
        return rayleigh(key, size, self.antennas, dtype)
