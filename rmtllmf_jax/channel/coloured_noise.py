"""Noise of any covariance over a thermal floor: C = A + n I in the eigenbasis of A.

Whoever forms A + n I in float32 loses the floor once the attacker is 60 dB above it, and with the
floor all that nulling the attacker leaves. Here attack and floor stay apart: the eigenbasis of A
tells the directions that the attacker is in from those that hold the floor alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Real

from rmtllmf_jax.channel.checks import require_channel, require_covariance, require_powers
from rmtllmf_jax.channel.linalg import eigh, eigh_of_root, product
from rmtllmf_jax.channel.matrix_functions import in_basis, reciprocal, square_root
from rmtllmf_jax.channel.realisation import gram
from rmtllmf_jax.common.errors import InputError


class ColouredNoise(NamedTuple):
    """C = V D V^H of all noise, floor included; D is diagonal but for its derivative."""

    vectors: Complex[Array, "antennas antennas"]
    powers: Complex[Array, "antennas antennas"]

    def whiten(self, right: Complex[Array, "antennas m"]) -> Complex[Array, "antennas m"]:
        """D^(-1/2) V^H B: noise seen so has covariance I."""
        root = reciprocal(square_root(self.powers))
        return product(root, product(self.vectors.conj().T, right))

    def colour(self, white: Complex[Array, "antennas m"]) -> Complex[Array, "antennas m"]:
        """V D^(1/2) W: from noise of covariance I to noise of covariance C."""
        return product(self.vectors, product(square_root(self.powers), white))

    def behind(self, filters: Complex[Array, "users antennas"]) -> Complex[Array, "users users"]:
        """F C F^H, what the noise becomes behind filters F."""
        seen = product(filters, self.vectors)
        return product(product(seen, self.powers), seen.conj().T)


def coloured_noise(
    h_tilde: Complex[Array, "antennas users"],
    attack: Complex[Array, "antennas antennas"],
    noise: Real[ArrayLike, ""],
) -> ColouredNoise:
    """The noise of an attacker's covariance over the floor `noise` > 0, on the channel `h_tilde`.

    Of `attack`, what lies below the rounding of its trace counts as none: in float32 a covariance
    cannot say more, and 60 dB down that would be a jammer in every direction. Differentiable in
    both.

    **Raises:** `InputError` if `attack` is of another size than the channel, and outside jit if it
    is not Hermitian or positive semidefinite or the floor not positive.
    """
    require_channel(h_tilde)
    antennas = h_tilde.shape[0]
    if attack.shape != (antennas, antennas):
        raise InputError(
            f"attack must be {antennas} x {antennas} for {antennas} antennas, got shape "
            f"{attack.shape}."
        )
    require_covariance("attack", attack)
    values, vectors = eigh(attack)
    rounding = len(attack) * jnp.finfo(values.dtype).eps * jnp.sum(values)
    return _over_floor(attack, jnp.where(values > rounding, values, 0), vectors, noise)


def noise_of_root(
    root: Complex[Array, "antennas antennas"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""],
) -> ColouredNoise:
    """`coloured_noise` of the attack ``budget R R^H`` from its lower triangular root.

    Nothing is lost to rounding: R is its own record of directions far below the largest.
    """
    values, vectors = eigh_of_root(root)
    attack = jnp.asarray(budget, values.dtype) * product(root, root.conj().T)
    power = jax.lax.stop_gradient(jnp.asarray(budget, values.dtype))
    return _over_floor(attack, power * values, vectors, noise)


def effective_gram(
    h_tilde: Complex[Array, "antennas users"],
    attack: Complex[Array, "antennas antennas"],
    noise: Real[ArrayLike, ""],
) -> Complex[Array, "users users"]:
    """G = H~^H C^-1 H~ for the covariance C of an attacker and of the floor `noise` > 0.

    Differentiable in all arrays.

    **Raises:** `InputError` if `attack` is of another size than the channel, and outside jit
    if it is not Hermitian or positive semidefinite.

    >>> attack = jnp.diag(jnp.array([3.0 + 0j, 0.0]))
    >>> print(effective_gram(jnp.array([[2.0 + 0j], [3.0]]), attack, 1.0).real.round(3))
    [[10.]]
    """
    return gram(coloured_noise(h_tilde, attack, noise).whiten(h_tilde))


def _over_floor(attack: Array, values: Array, vectors: Array, noise: ArrayLike) -> ColouredNoise:
    require_powers(0.0, noise)
    floor = jnp.asarray(noise, values.dtype) * jnp.eye(len(attack), dtype=attack.dtype)
    return ColouredNoise(vectors, in_basis(attack, values, vectors) + floor)
