"""Scenarios: the rows of a figure, and the per-user MSE that each of them leaves."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel.attacks import Attack, get_attack
from rmtllmf_jax.channel.checks import require_powers
from rmtllmf_jax.channel.presets import DirectPreset, Preset, get_preset
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
        "sum_rate_floor_aware": "sum_rate_floor_aware",
        "strongest_user": "strongest_user",
        "min_max_rate": "min_max_rate",
        "sum_mse": "sum_mse",
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
    except where two received powers tie (the SIC order swaps, the strongest user changes), where
    the channel loses rank (under `sum_rate`, `min_max_rate`), and where an attack that counts the
    floor begins to spend on a direction (`sum_rate_floor_aware`, `sum_mse`).

    **Raises:** `InputError` for an unknown attack or order, and outside jit for a channel that is
    not finite, a negative budget or noise that is not positive (inside: `channel.check_uplink`).

    >>> h_tilde = jnp.array([[1.0 + 0j], [0.0]])
    >>> user_mse_from_channel(h_tilde, "none", 0.0).tolist()
    [0.5]
    >>> print(user_mse_from_channel(h_tilde, "strongest_user", 3.0).round(3))
    [0.8]
    """
    gram_matrix = gram(h_tilde)
    require_powers(budget, noise)
    act = get_attack(attack, antennas=h_tilde.shape[0]) if isinstance(attack, str) else attack
    return receiver_mse(act(gram_matrix, budget, noise), received_power(gram_matrix), order)


def user_mse(scenario: str, preset: Preset | str, key: Key[Array, ""]) -> Float[Array, " users"]:
    """MSE of every user, in user order, over the channel that `key` draws from `preset`.

    Scenarios share the draw: one key is one cell, whoever attacks it. A `DirectPreset` draws
    nothing: `ideal` is its own errors. `scenario` and `preset` are static under `jax.jit`; batch
    over keys with `jax.vmap`.

    **Raises:** `InputError` that names the nearest scenario, or for an attack on a direct preset.

    >>> import jax
    >>> user_mse("ideal", DirectPreset(mse=(0.25, 0.5)), jax.random.key(0)).tolist()
    [0.25, 0.5]
    """
    attack, preset = SCENARIOS[require_known("scenario", scenario, SCENARIOS)], get_preset(preset)
    if attack is None:
        return jnp.zeros(preset.users)
    if isinstance(preset, DirectPreset):
        preset.require_no_attack(scenario)
        return jnp.array(preset.user_mse)
    h_tilde = draw_channel(preset, key)
    return user_mse_from_channel(h_tilde, attack, preset.attack_budget, order=preset.order)
