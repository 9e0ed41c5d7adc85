"""Learned power control, attack and merging coefficients: the objective, optimised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from rmtllmf_jax import fusion
from rmtllmf_jax.channel import Attack, ChannelPreset, DirectPreset, Matrices, Preset, White
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.gradients.objective import Objective, layer_names
from rmtllmf_jax.gradients.optimise import ADAM, TOGETHER, Optimum, optimise
from rmtllmf_jax.gradients.parameters import (
    NOTHING,
    Parameters,
    attack_entries,
    channel_matrix,
    root_size,
)
from rmtllmf_jax.gradients.projections import AttackLimit, NotNegative, PowerLimits

_WHITE = White()


def learn_powers(
    objective: Objective,
    key: Key[Array, ""],
    start: Float[Array, " users"] | None = None,
    total: float | None = None,
    **options: Any,
) -> Optimum:
    """Return the powers that maximise the objective, each within full power.

    **Arguments:**

    - `start`: shares p_q / P to begin with; full power unless given. They fix the SIC order.
    - `total`: limit of the sum of the shares.
    - `options`: those of `optimise`.

    For powers that serve channels not seen yet, average over many (`Setting.channel_draws`), with
    places that stay: `Objective.holding` distances or positions, or `ChannelPreset.distances_m`,
    which compiles anew for other places.
    """
    preset = _channel_preset(objective)
    shares = jnp.ones(preset.users, objective.kappa.dtype) if start is None else start
    begin = Parameters(powers=shares)
    options = {"rule": _power_rule(total)} | options
    return optimise(objective.fixed_at(begin), begin, key, PowerLimits(total), **options)


def learn_attack(
    objective: Objective, key: Key[Array, ""], start: Attack = _WHITE, **options: Any
) -> Optimum:
    """Return the covariance of the preset's budget that minimises the objective in its channel.

    The attacks of `channel` know the channel; this one also knows the model, the tasks and the
    noise that `key` draws. It begins at the covariance of the attack `start`, and spends the whole
    budget: more noise never helps the users.

    Of an objective over several channels each has an attack of its own, as if learned on
    `objective.over(keys[k : k + 1])` with the same `key`: parameters, value and values of the
    optimum then begin with an axis of draws. Draws take turns in one compiled program.

    **Raises:** `InputError` for an objective under another scenario than `ideal`.
    """
    preset = _channel_preset(objective)
    keys = objective.channel_keys(key)
    if len(keys) != 1:
        each = [learn_attack(objective.over(one[None]), key, start, **options) for one in keys]
        return jax.tree.map(lambda *parts: jnp.stack(parts), *each)
    begin = Parameters(attack=attack_at(start, preset, keys[0], objective.held))
    options = {"rule": TOGETHER} | options
    found = optimise(_AllSpent(objective), begin, key, AttackLimit(), maximise=False, **options)
    return found._replace(parameters=_all_spent(found.parameters))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _AllSpent:
    """An objective whose attack is scaled to tr L L^H = 1: its gradient changes no budget."""

    objective: Objective

    def __call__(self, parameters: Parameters, key: Key[Array, ""]) -> Float[Array, ""]:
        return self.objective(_all_spent(parameters), key)


def _all_spent(parameters: Parameters) -> Parameters:
    assert parameters.attack is not None
    return replace(parameters, attack=parameters.attack / root_size(parameters.attack))


def attack_at(
    attack: Attack, preset: Preset, key: Key[Array, ""], held: Parameters = NOTHING
) -> Float[Array, "2 antennas antennas"]:
    """Return the `Parameters.attack` of an attack over the channel that `key` draws.

    `held`: parameters of that channel, as `Objective.holding` has them.
    """
    h_tilde = channel_matrix(held, preset, key)
    covariance = attack(h_tilde, preset.attack_budget, 1.0)
    return attack_entries(covariance, preset.attack_budget)


def learn_scales(
    objective: Objective, key: Key[Array, ""], by: str = "task", **options: Any
) -> Optimum:
    """Return the merging coefficients >= 0 that maximise the objective under its noise.

    `by`: one a `task`, or one a task and `layer` (`layer_names`). They begin at the objective's.

    **Raises:** `InputError` for another `by`.
    """
    require_known("by", by, ("task", "layer"))
    tasks = fusion.stack_size(objective.vectors)
    shape = (tasks,) if by == "task" else (tasks, len(layer_names(objective.vectors)))
    begin = Parameters(scale=jnp.full(shape, objective.scale, objective.kappa.dtype))
    return optimise(objective, begin, key, NotNegative(), **options)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["objective"],
    meta_fields=["sharpness"],
)
@dataclass(frozen=True)
class WorstMse:
    """The MSE of the worst of the tasks' users over an objective's channels, to be minimised.

    ``1/s log mean_q exp(s mu_q)``: smooth, and the maximum as the sharpness s grows. Minimised over
    powers it is the max-min power control that knows nothing of the model.
    """

    objective: Objective
    sharpness: float = 50.0

    def __call__(self, parameters: Parameters, key: Key[Array, ""]) -> Float[Array, ""]:
        """Return the mean over channels."""
        keys = self.objective.channel_keys(key)

        def worst(key: Key[Array, ""]) -> Float[Array, ""]:
            mse = self.objective.user_mse(parameters, key)
            return jax.nn.logsumexp(self.sharpness * mse, b=1 / mse.size) / self.sharpness

        return jnp.mean(jax.vmap(worst)(keys))


def max_min_powers(
    objective: Objective, key: Key[Array, ""], total: float | None = None, **options: Any
) -> Optimum:
    """Return the powers that minimise the worst user's MSE over the objective's channels."""
    begin = Parameters(powers=jnp.ones(_channel_preset(objective).users, objective.kappa.dtype))
    function = WorstMse(objective.fixed_at(begin))
    options = {"rule": _power_rule(total)} | options
    return optimise(function, begin, key, PowerLimits(total), maximise=False, **options)


def _power_rule(total: float | None) -> optax.GradientTransformation:
    return ADAM if total is None else TOGETHER


def _channel_preset(objective: Objective) -> ChannelPreset | Matrices:
    link = objective.setting.link
    preset = None if link is None else link.preset
    if preset is None or isinstance(preset, DirectPreset):
        raise InputError("a direct preset of mse or snr_db has no powers and no attacker.")
    return preset
