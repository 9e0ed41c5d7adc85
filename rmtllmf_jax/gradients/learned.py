"""Learned power control, attack and merging coefficients: the objective, optimised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from rmtllmf_jax import fusion
from rmtllmf_jax.channel import (
    Attack,
    ChannelPreset,
    DirectPreset,
    Matrices,
    Preset,
    White,
    attack_covariance,
)
from rmtllmf_jax.common.errors import InputError, require_at_least, require_known
from rmtllmf_jax.gradients.objective import Objective, layer_names, value
from rmtllmf_jax.gradients.optimise import ADAM, TOGETHER, Optimum, optimise
from rmtllmf_jax.gradients.parameters import (
    NOTHING,
    Parameters,
    attack_entries,
    channel_matrix,
    root_size,
)
from rmtllmf_jax.gradients.projections import AttackLimit, DefenceLimits, NotNegative, PowerLimits

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

    For powers that serve unseen channels, average over many (`Setting.channel_draws`) with fixed
    places: `Objective.holding` distances or positions, or `ChannelPreset.distances_m`, which
    recompiles for other places.
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

    With an objective over several channels, each channel has its own attack, as if learned on
    `objective.over(keys[k : k + 1])` with the same `key`: parameters, value and values of the
    optimum then begin with an axis of draws. Draws take turns in one compiled program.

    **Raises:** `InputError` for an objective under a scenario other than `ideal`.
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
    """An objective with its attack scaled to tr L L^H = 1: its gradient changes no budget."""

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

    `held`: parameters of that channel, as for `Objective.holding`.
    """
    h_tilde = channel_matrix(held, preset, key)
    covariance = attack_covariance(attack, h_tilde, preset.attack_budget, 1.0, key)
    return attack_entries(covariance, preset.attack_budget)


def learn_scales(
    objective: Objective, key: Key[Array, ""], by: str = "task", **options: Any
) -> Optimum:
    """Return the merging coefficients >= 0 that maximise the objective under its noise.

    `by`: per `task`, or per task and `layer` (`layer_names`). They start at those of the objective.

    **Raises:** `InputError` for another `by`.
    """
    require_known("by", by, ("task", "layer"))
    tasks = fusion.stack_size(objective.vectors)
    shape = (tasks,) if by == "task" else (tasks, len(layer_names(objective.vectors)))
    begin = Parameters(scale=jnp.full(shape, objective.scale, objective.kappa.dtype))
    return optimise(objective, begin, key, NotNegative(), **options)


class Saddle(NamedTuple):
    """A defence and an attack that were learned against each other.

    It belongs to the game among the strategies found, with a value between `lower` and `upper`. A
    response that was not found moves one end: an attack moves `lower` down, a defence `upper` up.
    """

    defence: Parameters
    """The defence whose worst case among the attacks is best."""
    attack: Parameters
    """The attack against which the best of the defences is worst."""
    values: Float[np.ndarray, "defences attacks"]
    """The value of each defence (a row) under each attack: first those that both began with, then
    those of every round."""

    @property
    def lower(self) -> float:
        """The score of `defence` under the worst attack: max over rows of the min over columns."""
        return float(self.values.min(axis=1).max())

    @property
    def upper(self) -> float:
        """The score of the best defence under `attack`: min over columns of the max over rows."""
        return float(self.values.max(axis=0).min())

    @property
    def gap(self) -> float:
        """`upper` - `lower`, never negative."""
        return self.upper - self.lower


def learn_defence(
    objective: Objective,
    key: Key[Array, ""],
    *,
    rounds: int = 3,
    start: Attack = _WHITE,
    least: float = 0.1,
    most: float = 10.0,
    **options: Any,
) -> Saddle:
    """Return power by leaf and merging coefficients by layer, learned against a learned attack.

    The defence is a power per leaf at equal energy (equivalently, relaxed repetition) and a
    coefficient per task and layer, which covers both shrinkage of what is received and the
    reliability of the users. Defence and attack (`learn_attack`) take turns, each the best found
    against the current one of the other; at the end every defence meets every attack.

    **Arguments:**

    - `objective`: under the scenario `ideal` and over one channel (`Objective.over`).
    - `start`: the attack that the defence responds to first.
    - `least`, `most`: limits of a leaf's power.
    - `options`: those of `optimise`, for both players.

    **Raises:** `InputError` for an objective over several channels, and as `learn_attack`.
    """
    require_at_least("rounds", rounds, 1)
    if len(keys := objective.channel_keys(key)) != 1:
        raise InputError(
            f"a defence is learned in one channel, and this objective has {len(keys)}: take "
            "objective.over(keys[k : k + 1]) for each."
        )
    sizes = tuple(leaf[0].size for leaf in jax.tree.leaves(objective.vectors))
    tasks, layers = fusion.stack_size(objective.vectors), len(layer_names(objective.vectors))
    defence = Parameters(
        leaf_powers=jnp.ones(len(sizes), objective.kappa.dtype),
        scale=jnp.full((tasks, layers), objective.scale, objective.kappa.dtype),
    )
    root = attack_at(start, _channel_preset(objective), keys[0], objective.held)
    attack, limits = Parameters(attack=root), DefenceLimits(sizes, least, most)
    attacks, defences = [attack], [defence]
    for _ in range(rounds):
        against = objective.holding(attack.filled(objective.held))
        defence = optimise(against, defence, key, limits, **options).parameters
        against = objective.holding(defence.filled(objective.held))
        found = optimise(
            _AllSpent(against),
            attack,
            key,
            AttackLimit(),
            maximise=False,
            **({"rule": TOGETHER} | options),
        )
        attack = _all_spent(found.parameters)
        defences.append(defence)
        attacks.append(attack)
    values = np.array(
        [[value(objective, _both(one, other), key) for other in attacks] for one in defences], float
    )
    best, worst = int(values.min(axis=1).argmax()), int(values.max(axis=0).argmin())
    return Saddle(defences[best], attacks[worst], values)


def _both(defence: Parameters, attack: Parameters) -> Parameters:
    return replace(defence, attack=attack.attack)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["objective"],
    meta_fields=["sharpness"],
)
@dataclass(frozen=True)
class WorstMse:
    """The MSE of the worst of the tasks' users over an objective's channels, to be minimised.

    ``1/s log mean_q exp(s mu_q)``: smooth, and tends to the maximum as the sharpness s grows.
    Minimised over powers, it gives max-min power control, which knows nothing about the model.
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
