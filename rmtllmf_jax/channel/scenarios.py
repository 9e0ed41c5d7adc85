"""Scenarios: the rows of a figure, and the per-user MSE that each of them leaves."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel.attacks import Attack, get_attack
from rmtllmf_jax.channel.presets import ChannelPreset
from rmtllmf_jax.channel.realisation import draw_channel, gram, received_power
from rmtllmf_jax.channel.receivers import receiver_mse
from rmtllmf_jax.common.errors import require_known

SCENARIOS: Mapping[str, str | None] = MappingProxyType(
    {
        "clean": None,
        "ideal": "none",
        "white": "white",
        "white_in_range": "white_in_range",
        "sum_rate": "sum_rate",
        "strongest_user": "strongest_user",
    }
)
"""Scenario -> attack; `clean` has no channel at all, `ideal` has thermal noise only."""


def user_mse_from_channel(
    h_tilde: Complex[Array, "antennas users"],
    attack: str | Attack,
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""] = 1.0,
    order: str | None = "weakest_first",
) -> Float[Array, " users"]:
    """MSE of every user, in user order, over a given channel.

    R-MTLLMF (arXiv 2411.18220), eq. (5). `h_tilde` is H diag(sqrt p); `attack` a name of `ATTACKS`
    or a function of the same signature; `budget` >= 0 and `noise` > 0 in the unit of |h~|^2;
    `order` one of `ORDERS` or `None` for joint LMMSE. Differentiable in channel, budget and noise
    except where two received powers tie (the SIC order swaps, the strongest user changes) and,
    under `sum_rate`, where the channel loses rank.

    **Raises:** `InputError` for an unknown attack or order.
    """
    act = get_attack(attack, antennas=h_tilde.shape[0]) if isinstance(attack, str) else attack
    gram_matrix = gram(h_tilde)
    return receiver_mse(act(gram_matrix, budget, noise), received_power(gram_matrix), order)


def user_mse(scenario: str, preset: ChannelPreset, key: Key[Array, ""]) -> Float[Array, " users"]:
    """MSE of every user, in user order, over the channel that `key` draws from `preset`.

    Scenarios share the draw: one key is one cell, whoever attacks it. `scenario` and `preset` are
    static under `jax.jit`; batch over keys with `jax.vmap`.

    **Raises:** `InputError` that names the nearest scenario.
    """
    attack = SCENARIOS[require_known("scenario", scenario, SCENARIOS)]
    if attack is None:
        return jnp.zeros(preset.users)
    h_tilde = draw_channel(preset, key)
    return user_mse_from_channel(h_tilde, attack, preset.attack_budget, order=preset.order)
