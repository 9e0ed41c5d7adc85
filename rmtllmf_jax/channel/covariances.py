"""The attackers as covariance matrices over the antennas, and channels under any covariance.

`channel.attacks` never forms these matrices: what the users suffer follows from the Gram matrix.
They are for whoever wants to draw the noise, look at it, or bring a covariance of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Real

from rmtllmf_jax.channel.attacks import require_rank
from rmtllmf_jax.channel.checks import require_channel, require_powers
from rmtllmf_jax.channel.coloured_noise import coloured_noise
from rmtllmf_jax.channel.equalise import error_covariance_of, mmse_equaliser
from rmtllmf_jax.channel.linalg import product
from rmtllmf_jax.channel.matrix_functions import congruence, in_own_basis, reciprocal, square_root
from rmtllmf_jax.channel.min_max_rate_attack import min_max_weights
from rmtllmf_jax.channel.realisation import gram, received_power
from rmtllmf_jax.channel.receivers import receiver_mse
from rmtllmf_jax.channel.spectral_attacks import spectral_covariance
from rmtllmf_jax.channel.sum_mse_attack import SUM_MSE
from rmtllmf_jax.channel.sum_rate_attack import FLOOR_AWARE, SUM_RATE
from rmtllmf_jax.common.errors import require_known

_Covariance = Callable[[Array, Array, Array], Array]


def attack_covariance(
    name: str,
    h_tilde: Complex[Array, "antennas users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 1.0,
) -> Complex[Array, "antennas antennas"]:
    """The attacker's own covariance, of trace `budget`, without the thermal floor.

    `name` is one of `channel.ATTACKS`; `noise` matters to those that count the floor. Derivatives
    of every order in channel, budget and noise, where those of the attack itself exist.

    **Raises:** `InputError` for an unknown attack, for more users than antennas where the attack
    has no answer, and outside jit for a channel that is not finite or a negative budget.

    >>> h_tilde = jnp.array([[2.0 + 0j], [0.0]])
    >>> for name in ("white", "strongest_user"):
    ...     attack_covariance(name, h_tilde, 6.0).real.tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    [[6.0, 0.0], [0.0, 0.0]]
    """
    require_known("attack", name, COVARIANCES)
    require_channel(h_tilde)
    require_powers(budget, noise)
    require_rank(name, users=h_tilde.shape[1], antennas=h_tilde.shape[0])
    real = jnp.real(h_tilde).dtype
    return COVARIANCES[name](h_tilde, jnp.asarray(budget, real), jnp.asarray(noise, real))


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
    effective = effective_gram(h_tilde, attack, noise)
    return receiver_mse(effective, received_power(gram(h_tilde)), order)


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
    unaware = mmse_equaliser(h_tilde, jnp.zeros_like(attack), noise, order)
    errors = error_covariance_of(unaware, h_tilde, attack, noise)
    return jnp.real(jnp.diagonal(errors))


def _none(h_tilde: Array, budget: Array, noise: Array) -> Array:
    del budget, noise
    return jnp.zeros((len(h_tilde), len(h_tilde)), h_tilde.dtype)


def _white(h_tilde: Array, budget: Array, noise: Array) -> Array:
    del noise
    return budget / len(h_tilde) * jnp.eye(len(h_tilde), dtype=h_tilde.dtype)


def _white_in_range(h_tilde: Array, budget: Array, noise: Array) -> Array:
    del noise
    here, vectors = in_own_basis(gram(h_tilde))
    return budget / len(here) * congruence(product(h_tilde, vectors), reciprocal(here))


def _strongest_user(h_tilde: Array, budget: Array, noise: Array) -> Array:
    del noise
    power = received_power(gram(h_tilde))
    column = h_tilde[:, jnp.argmax(power)]
    return budget * column[:, None] * column.conj() / jnp.max(power)


def _min_max_rate(h_tilde: Array, budget: Array, noise: Array) -> Array:
    del noise
    weighted = h_tilde * jnp.sqrt(min_max_weights(gram(h_tilde)))
    # (A A^H)^(1/2) = A (A^H A)^(-1/2) A^H.
    here, vectors = in_own_basis(gram(weighted))
    root = square_root(here)
    along = congruence(product(weighted, vectors), reciprocal(root))
    return budget / jnp.real(jnp.trace(root)) * along


COVARIANCES: Mapping[str, _Covariance] = MappingProxyType(
    {
        "none": _none,
        "white": _white,
        "white_in_range": _white_in_range,
        "sum_rate": partial(spectral_covariance, SUM_RATE),
        "sum_rate_floor_aware": partial(spectral_covariance, FLOOR_AWARE),
        "strongest_user": _strongest_user,
        "min_max_rate": _min_max_rate,
        "sum_mse": partial(spectral_covariance, SUM_MSE),
    }
)
"""`(h_tilde, budget, noise) -> covariance` of every attack by name."""
