"""The errors of the users' symbols over one channel: attack and receiver, put together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel.attacks import (
    Attack,
    Powers,
    attack_covariance,
    attacked_gram,
    choice,
)
from rmtllmf_jax.channel.realisation import gram, received_power
from rmtllmf_jax.channel.receivers import SIC, Receiver

# What a draw's key is folded with for the receiver (0 and 1 are the channel's, 2 is `survey`'s).
_MEASURED = 3


def user_errors(
    h_tilde: Complex[Array, "antennas users"],
    attack: Attack,
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 1.0,
    receiver: Receiver = SIC,
    key: Key[Array, ""] | None = None,
    powers: Powers | None = None,
) -> Complex[Array, "users users"]:
    """E[e e^H] of the users' unit-power symbols over a given channel, in user order.

    **Arguments:**

    - `h_tilde`: H diag(sqrt p); `budget` >= 0 and `noise` > 0 in the unit of |h~|^2.
    - `attack`, `receiver`: from `channel.attacks` and `channel.receivers`, or your own.
    - `key`: that of the draw, for random attacks and for receivers that measure.
    - `powers`: the received powers on which discrete choices are based, by the name of the choice
      (`chooses`); by default those of the channel.

    Differentiable in channel, budget and noise except where two received powers tie (the SIC order
    swaps, the strongest user changes), where the channel loses rank, and where a floor-aware attack
    begins to spend power on a direction.

    **Raises:** `InputError` outside jit for a channel that is not finite, a negative budget or
    noise that is not positive (inside: `channel.check_uplink`).
    """
    if not hasattr(receiver, "from_gram"):
        covariance = attack_covariance(attack, h_tilde, budget, noise, key, powers)
        told = choice(receiver, powers) | planned(receiver, budget)
        return receiver(h_tilde, covariance, noise, measured(key), **told)
    effective = attacked_gram(attack, h_tilde, budget, noise, powers, key)
    made = choice(receiver, powers) or {"power": received_power(gram(h_tilde))}
    found: Array = receiver.from_gram(effective, **made)
    return found


def user_mse(
    h_tilde: Complex[Array, "antennas users"],
    attack: Attack,
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 1.0,
    receiver: Receiver = SIC,
    key: Key[Array, ""] | None = None,
    powers: Powers | None = None,
) -> Float[Array, " users"]:
    """MSE of every user, in user order, over a given channel: the diagonal of `user_errors`.

    R-MTLLMF (arXiv 2411.18220), eq. (5).

    >>> from rmtllmf_jax.channel.attacks import NoAttack, StrongestUser
    >>> h_tilde = jnp.array([[1.0 + 0j], [0.0]])
    >>> user_mse(h_tilde, NoAttack(), 0.0).tolist()
    [0.5]
    >>> print(user_mse(h_tilde, StrongestUser(), 3.0).round(3))
    [0.8]
    """
    return mse_of(user_errors(h_tilde, attack, budget, noise, receiver, key, powers))


def mse_of(errors: Complex[Array, "users users"]) -> Float[Array, " users"]:
    """MSE of every user: the diagonal of the errors' covariance."""
    return jnp.real(jnp.diagonal(errors))


def planned(receiver: object, budget: ArrayLike) -> dict[str, Any]:
    """Return the argument `budget` for a receiver that plans for an attacker's power."""
    return {"budget": budget} if getattr(receiver, "plans", False) else {}


def measured(key: Key[Array, ""] | None) -> Key[Array, ""] | None:
    """Return the key for a receiver's measurements in the draw of `key`."""
    return None if key is None else jax.random.fold_in(key, _MEASURED)
