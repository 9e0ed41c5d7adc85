"""The attackers as covariance matrices over the antennas, and channels under any covariance.

`channel.attacks` never forms these matrices: what the users suffer follows from the Gram matrix.
They are for whoever wants to draw the noise, look at it, or bring a covariance of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Real

from rmtllmf_jax.channel.attacks import require_rank
from rmtllmf_jax.channel.checks import require_covariance, require_powers
from rmtllmf_jax.channel.equalise import error_covariance_of, mmse_equaliser
from rmtllmf_jax.channel.linalg import inverse, product
from rmtllmf_jax.channel.matrix_functions import congruence, eigenbasis
from rmtllmf_jax.channel.min_max_rate_attack import min_max_weights
from rmtllmf_jax.channel.realisation import gram, received_power
from rmtllmf_jax.channel.receivers import receiver_mse
from rmtllmf_jax.channel.sum_mse_attack import sum_mse_powers
from rmtllmf_jax.channel.sum_rate_attack import floor_aware_powers, sum_rate_powers
from rmtllmf_jax.common.errors import InputError, require_known

_Powers = Callable[[Array, Array, Array], tuple[Array, Array]]
_Covariance = Callable[[Array, Array, Array], Array]


def attack_covariance(
    name: str,
    h_tilde: Complex[Array, "antennas users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 1.0,
) -> Complex[Array, "antennas antennas"]:
    """The attacker's own covariance, of trace `budget`, without the thermal floor.

    `name` is one of `channel.ATTACKS`; `noise` matters to those that count the floor. Values only:
    differentiate the functions of `channel.attacks`, which know more than this matrix shows.

    **Raises:** `InputError` for an unknown attack, for more users than antennas where the attack
    has no answer, and outside jit for a negative budget.

    >>> h_tilde = jnp.array([[2.0 + 0j], [0.0]])
    >>> for name in ("white", "strongest_user"):
    ...     attack_covariance(name, h_tilde, 6.0).real.tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    [[6.0, 0.0], [0.0, 0.0]]
    """
    require_known("attack", name, COVARIANCES)
    require_powers(budget, noise)
    require_rank(name, users=h_tilde.shape[1], antennas=h_tilde.shape[0])
    real = jnp.real(h_tilde).dtype
    return COVARIANCES[name](h_tilde, jnp.asarray(budget, real), jnp.asarray(noise, real))


def effective_gram(
    h_tilde: Complex[Array, "antennas users"], covariance: Complex[Array, "antennas antennas"]
) -> Complex[Array, "users users"]:
    """G = H~^H C^-1 H~ for a covariance C of all noise, floor included.

    **Raises:** `InputError` if `covariance` is of another size than the channel, and outside jit
    if it is not Hermitian or positive semidefinite.

    >>> covariance = jnp.diag(jnp.array([4.0 + 0j, 1.0]))
    >>> print(effective_gram(jnp.array([[2.0 + 0j], [3.0]]), covariance).real.round(3))
    [[10.]]
    """
    _require_fitting("covariance", covariance, h_tilde)
    return _seen_through(h_tilde, covariance)


def user_mse_from_covariance(
    h_tilde: Complex[Array, "antennas users"],
    attack: Complex[Array, "antennas antennas"],
    noise: Real[ArrayLike, ""] = 1.0,
    order: str | None = "weakest_first",
) -> Float[Array, " users"]:
    """MSE of every user under an attacker's covariance of your own plus the floor `noise` > 0.

    The counterpart of `user_mse_from_channel`. Differentiable in all arrays.

    **Raises:** `InputError` if `attack` is of another size than the channel, and outside jit if it
    is not Hermitian or positive semidefinite.

    >>> attack = jnp.diag(jnp.array([3.0 + 0j, 0.0]))
    >>> print(user_mse_from_covariance(jnp.array([[2.0 + 0j], [0.0]]), attack).round(3))
    [0.5]
    """
    require_powers(0.0, noise)
    _require_fitting("attack", attack, h_tilde)
    total = attack + noise * jnp.eye(len(attack), dtype=attack.dtype)
    return receiver_mse(_seen_through(h_tilde, total), received_power(gram(h_tilde)), order)


def mismatched_mse(
    h_tilde: Complex[Array, "antennas users"],
    attack: Complex[Array, "antennas antennas"],
    noise: Real[ArrayLike, ""] = 1.0,
    order: str | None = "weakest_first",
) -> Float[Array, " users"]:
    """MSE of every user behind an MMSE receiver that does not know of the attacker.

    Its filters are those for the floor `noise` > 0 alone; cancellation is perfect. Never below
    `user_mse_from_covariance`, and not bounded by one: the receiver trusts what it should not.

    **Raises:** `InputError` if `attack` is of another size than the channel, and outside jit if it
    is not Hermitian or positive semidefinite.

    >>> attack = jnp.diag(jnp.array([3.0 + 0j, 0.0]))
    >>> print(mismatched_mse(jnp.array([[2.0 + 0j], [0.0]]), attack).round(3))
    [0.68]
    """
    require_powers(0.0, noise)
    _require_fitting("attack", attack, h_tilde)
    floor = jnp.asarray(noise) * jnp.eye(len(attack), dtype=attack.dtype)
    errors = error_covariance_of(mmse_equaliser(h_tilde, floor, order), h_tilde, attack + floor)
    return jnp.real(jnp.diagonal(errors))


def _require_fitting(name: str, covariance: Array, h_tilde: Array) -> None:
    antennas = h_tilde.shape[0]
    if covariance.shape != (antennas, antennas):
        raise InputError(
            f"{name} must be {antennas} x {antennas} for {antennas} antennas, got shape "
            f"{covariance.shape}."
        )
    require_covariance(name, covariance)


def _seen_through(h_tilde: Array, covariance: Array) -> Array:
    return congruence(h_tilde.conj().T, inverse(covariance))


def _none(h_tilde: Array, budget: Array, noise: Array) -> Array:
    del budget, noise
    return jnp.zeros((len(h_tilde), len(h_tilde)), h_tilde.dtype)


def _white(h_tilde: Array, budget: Array, noise: Array) -> Array:
    del noise
    return budget / len(h_tilde) * jnp.eye(len(h_tilde), dtype=h_tilde.dtype)


def _in_range(powers: _Powers) -> _Covariance:
    """The attacker who puts `powers` on the eigendirections of H~ H~^H, from those of K."""

    def covariance(h_tilde: Array, budget: Array, noise: Array) -> Array:
        values, vectors = eigenbasis(gram(h_tilde))
        sigma, _ = powers(values, budget, noise)
        return congruence(product(h_tilde, vectors), jnp.diag(sigma / values).astype(vectors.dtype))

    return covariance


def _strongest_user(h_tilde: Array, budget: Array, noise: Array) -> Array:
    del noise
    power = received_power(gram(h_tilde))
    column = h_tilde[:, jnp.argmax(power)]
    return budget * column[:, None] * column.conj() / jnp.max(power)


def _min_max_rate(h_tilde: Array, budget: Array, noise: Array) -> Array:
    del noise
    weighted = h_tilde * jnp.sqrt(min_max_weights(gram(h_tilde)))
    values, vectors = eigenbasis(gram(weighted))
    # (A A^H)^(1/2) = A V diag(s^-1/2) V^H A^H with A^H A = V diag(s) V^H.
    root = congruence(
        product(weighted, vectors), jnp.diag(1 / jnp.sqrt(values)).astype(vectors.dtype)
    )
    return budget / jnp.sum(jnp.sqrt(values)) * root


COVARIANCES: Mapping[str, _Covariance] = MappingProxyType(
    {
        "none": _none,
        "white": _white,
        "white_in_range": _in_range(
            lambda values, budget, _: (jnp.full_like(values, budget / values.size), budget)
        ),
        "sum_rate": _in_range(lambda values, budget, _: sum_rate_powers(values, budget)),
        "sum_rate_floor_aware": _in_range(floor_aware_powers),
        "strongest_user": _strongest_user,
        "min_max_rate": _min_max_rate,
        "sum_mse": _in_range(sum_mse_powers),
    }
)
"""`(h_tilde, budget, noise) -> covariance` of every attack by name."""
