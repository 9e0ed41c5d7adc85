"""Attacks: what the users' Gram matrix K = H~^H H~ becomes under a jammer of a given power.

An attack is a pure function `(gram, budget, noise) -> G` with G = H~^H C^-1 H~, where C is the
attacker's covariance of trace `budget` plus the thermal floor `noise` on every antenna. All three
share one unit; scaling them together changes nothing. `white` alone must also be told how many
`antennas` its power is spread over; `get_attack` binds that. `channel.covariances` has the same
attackers as matrices over the antennas.

**Raises:** `InputError` outside jit for a `gram` that is not Hermitian or finite, a negative
`budget`, or a `noise` that is not positive. Inside jit see `channel.check_uplink`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Int, Real

from rmtllmf_jax.channel.checks import checked_attack
from rmtllmf_jax.channel.min_max_rate_attack import min_max_rate
from rmtllmf_jax.channel.sum_mse_attack import sum_mse
from rmtllmf_jax.channel.sum_rate_attack import sum_rate, sum_rate_floor_aware
from rmtllmf_jax.common.errors import InputError, require_at_least, require_known

Attack = Callable[
    [Complex[Array, "users users"], Real[ArrayLike, ""], Real[ArrayLike, ""]],
    Complex[Array, "users users"],
]
"""`(gram, budget, noise) -> effective gram`."""


@checked_attack
def none(
    gram: Complex[Array, "users users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""],
) -> Complex[Array, "users users"]:
    """Thermal noise alone, C = noise I: the paper's ideal channel. `budget` is not used.

    >>> none(jnp.array([[4.0 + 0j]]), 9.0, 2.0).real.tolist()
    [[2.0]]
    """
    return gram / noise


@checked_attack
def white(
    gram: Complex[Array, "users users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""],
    *,
    antennas: int,
) -> Complex[Array, "users users"]:
    """`budget` / `antennas` on every antenna: an attacker who knows nothing.

    >>> white(jnp.array([[4.0 + 0j]]), 2.0, 1.0, antennas=2).real.tolist()
    [[2.0]]
    """
    return gram / (noise + budget / antennas)


@checked_attack
def white_in_range(
    gram: Complex[Array, "users users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""],
) -> Complex[Array, "users users"]:
    """`budget` / users on each dimension of range(H): an attacker who knows the users' subspace.

    Assumes linearly independent channels, so not more users than antennas.

    >>> white_in_range(jnp.diag(jnp.array([4.0 + 0j, 8.0])), 6.0, 1.0).real.tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    return gram / (noise + budget / gram.shape[0])


@checked_attack
def strongest_user(
    gram: Complex[Array, "users users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""],
) -> Complex[Array, "users users"]:
    """All power along the strongest user: C = budget h h^H / ||h||^2 + noise I.

    R-MTLLMF (arXiv 2411.18220), problem P2 with the solution as printed. It minimises that one
    user's rate only and does not solve the printed min-max; and being of rank one it needs the
    thermal floor, without which all other users have rate infinity. Non-smooth where the strongest
    user changes (a tie of the largest received powers).

    >>> strongest_user(jnp.diag(jnp.array([4.0 + 0j, 8.0])), 7.0, 1.0).real.tolist()
    [[4.0, 0.0], [0.0, 1.0]]
    """
    return towards_user(gram, budget, noise, jnp.argmax(jnp.real(jnp.diagonal(gram))))


@checked_attack
def towards_user(
    gram: Complex[Array, "users users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""],
    user: Int[ArrayLike, ""],
) -> Complex[Array, "users users"]:
    """All power along one `user`: `strongest_user` with the choice made, and smooth."""
    power = jnp.real(jnp.diagonal(gram))
    column = gram[:, user]
    # tiny keeps a silent cell (all powers zero) finite.
    along = column[:, None] * column.conj() / jnp.maximum(power[user], jnp.finfo(power).tiny)
    # What is orthogonal to h: its row and column of the attacked user vanish identically, and
    # rounding there would be divided by the small noise and not by the large jamming power.
    others = jnp.arange(gram.shape[0]) != user
    orthogonal = jnp.where(others[:, None] & others, gram - along, 0)
    return orthogonal / noise + along / (budget + noise)


ATTACKS: Mapping[str, Callable[..., Complex[Array, "users users"]]] = MappingProxyType(
    {
        "none": none,
        "white": white,
        "white_in_range": white_in_range,
        "sum_rate": sum_rate,
        "sum_rate_floor_aware": sum_rate_floor_aware,
        "strongest_user": strongest_user,
        "min_max_rate": min_max_rate,
        "sum_mse": sum_mse,
    }
)
"""Every attack by name."""

_FULL_RANK = frozenset({"white_in_range", "min_max_rate"})
"""Attacks that are defined for linearly independent channels only."""


def get_attack(name: str, *, antennas: int) -> Attack:
    """The attack called `name` as `(gram, budget, noise) -> effective gram`.

    **Raises:** `InputError` that names the nearest attack, or for fewer than one antenna. The
    attack itself raises it for more users than antennas where that has no answer.

    >>> gram = jnp.diag(jnp.array([4.0 + 0j, 8.0]))
    >>> get_attack("white", antennas=16)(gram, 16.0, 1.0).real.tolist()
    [[2.0, 0.0], [0.0, 4.0]]
    """
    require_at_least("antennas", antennas, 1)
    attack = ATTACKS[require_known("attack", name, ATTACKS)]
    if name == "white":
        return partial(attack, antennas=antennas)
    return partial(_with_rank, name, antennas) if name in _FULL_RANK else attack


def _with_rank(name: str, antennas: int, gram: Array, budget: ArrayLike, noise: ArrayLike) -> Array:
    require_rank(name, users=gram.shape[0], antennas=antennas)
    return ATTACKS[name](gram, budget, noise)


def require_rank(name: str, *, users: int, antennas: int) -> None:
    """Check that an attack has an answer for so many users.

    **Raises:** `InputError` for more users than antennas where it has not.
    """
    if name in _FULL_RANK and users > antennas:
        raise InputError(
            f"the attack {name!r} needs linearly independent channels, so not more users than "
            f"antennas; got {users} users and {antennas} antennas."
        )
