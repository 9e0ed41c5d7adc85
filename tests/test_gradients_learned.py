"""What is learned on the objective: projections, steps, powers, attacks, coefficients, the map."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_fixtures import KEY, LEAVES, PRESET, TASKS, link_of, parameters_of, tiny_objective
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rmtllmf_jax import channel, gradients
from rmtllmf_jax.channel import DirectPreset
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.gradients import (
    AttackLimit,
    DefenceLimits,
    NotNegative,
    Parameters,
    PowerLimits,
    learn_attack,
    learn_defence,
    learn_powers,
    learn_scales,
    max_min_powers,
    optimise,
    sensitivity,
    user_mse,
    value,
)
from rmtllmf_jax.gradients.optimise import ADAM, TOGETHER
from rmtllmf_jax.gradients.parameters import LEAST_POWER
from rmtllmf_jax.gradients.projections import nearest_powers

NEAREST = jax.jit(nearest_powers)
SHARES = arrays(np.float32, 5, elements=st.floats(-2, 3, width=32))


# Projections


@settings(deadline=None)
@given(powers=SHARES, total=st.floats(0.1, 6), other=SHARES)
def test_nearest_powers_are_allowed_and_nearest(powers, total, other):
    found = np.asarray(NEAREST(jnp.asarray(powers), total), float)
    assert found.min() >= LEAST_POWER * (1 - 1e-6)
    assert found.max() <= 1
    assert found.sum() <= total + 1e-4
    # No allowed point lies on the far side of the plane through the projection.
    allowed = np.clip(other.astype(float), LEAST_POWER, 1)
    if allowed.sum() > total:
        allowed = LEAST_POWER + (allowed - LEAST_POWER) * (total - 5 * LEAST_POWER) / allowed.sum()
    assert (powers - found) @ (allowed - found) <= 2e-3


def test_without_a_limit_of_the_sum_powers_are_clipped():
    found = nearest_powers(jnp.array([-1.0, 0.4, 7.0]))
    np.testing.assert_allclose(found, [LEAST_POWER, 0.4, 1.0])


def test_a_sum_of_nothing_is_refused():
    with pytest.raises(InputError, match="> 0, got 0"):
        PowerLimits(0.0)


def test_an_attack_is_scaled_back_to_its_budget_and_no_further():
    large = parameters_of("attack")
    large = replace(large, attack=3 * large.attack)
    found = gradients.covariance_root(AttackLimit()(large).attack)
    np.testing.assert_allclose(np.sum(np.abs(found) ** 2), 1, rtol=1e-5)
    root = gradients.covariance_root(large.attack)
    np.testing.assert_allclose(
        found / np.linalg.norm(found), root / np.linalg.norm(root), atol=1e-6
    )
    small = replace(large, attack=0.1 * large.attack)
    kept = gradients.covariance_root(AttackLimit()(small).attack)
    np.testing.assert_allclose(kept, 0.1 * root, atol=1e-6)


# Steps


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bowl:
    """Minus the squared distance of the powers to a centre, moved by the key."""

    centre: Any

    def __call__(self, parameters: Parameters, key: Any) -> Any:
        moved = self.centre + 1e-3 * jax.random.normal(key, self.centre.shape)
        return -jnp.sum(jnp.square(parameters.powers - moved))


BOWL = Bowl(jnp.array([0.3, 2.0, -1.0]))
START = Parameters(powers=jnp.full(3, 0.5))


def test_steps_reach_the_allowed_point_nearest_to_the_top():
    found = optimise(BOWL, START, KEY, PowerLimits(), steps=100)
    np.testing.assert_allclose(found.parameters.powers, [0.3, 1, 0], atol=0.01)
    assert found.value == max(found.values)
    assert len(found.values) == 101
    assert found.values[0] == pytest.approx(float(BOWL(START, KEY)))


def test_minimising_goes_the_other_way():
    hill = optimise(
        Bowl(jnp.array([0.3, 0.9])), replace(START, powers=jnp.full(2, 0.5)), KEY, PowerLimits(),
        steps=100, maximise=False,
    )  # fmt: skip
    np.testing.assert_allclose(hill.parameters.powers, [1, 0], atol=0.01)
    assert hill.value == min(hill.values)


def test_with_fresh_draws_the_last_parameters_are_returned():
    found = optimise(BOWL, START, KEY, PowerLimits(), steps=60, fresh=True)
    np.testing.assert_allclose(found.parameters.powers, [0.3, 1, 0], atol=0.02)
    assert found.value == found.values[-1]


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="step 0 is nan: take a smaller learning rate"):
        optimise(Bowl(jnp.full(3, jnp.nan)), START, KEY, PowerLimits(), steps=3)


def test_another_start_key_and_function_of_one_structure_compile_nothing():
    @chex.assert_max_traces(n=1)
    def top(centre: Any, powers: Any) -> Any:
        return -jnp.sum(jnp.square(powers - centre))

    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Evaluated:
        centre: Any

        def __call__(self, parameters: Parameters, key: Any) -> Any:
            return top(self.centre, parameters.powers)

    for number in range(3):
        start = Parameters(powers=jnp.full(2, 0.2 * number))
        key = jax.random.key(number)
        optimise(Evaluated(jnp.full(2, 0.1 * number)), start, key, PowerLimits(), steps=3)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slope:
    """A linear function of the attack's entries; on a ball its minimum is at -slope / |slope|."""

    slope: Any

    def __call__(self, parameters: Parameters, key: Any) -> Any:
        return jnp.sum(self.slope * parameters.attack)


def test_on_a_ball_steps_together_find_the_minimum_where_adam_leads_away():
    slope = jnp.zeros((2, 4, 4)).at[0].set(jnp.tril(jnp.full((4, 4), 0.01))).at[0, 1, 1].set(1.0)
    least = -float(jnp.linalg.norm(slope))
    for begin in (-slope / jnp.linalg.norm(slope), jnp.zeros_like(slope).at[0, 0, 0].set(1.0)):
        start, options = (
            Parameters(attack=begin),
            {"steps": 40, "learning_rate": 0.2, "maximise": False},
        )
        found = {
            rule: optimise(Slope(slope), start, KEY, AttackLimit(), rule=rule, **options)
            for rule in (TOGETHER, ADAM)
        }
        assert found[TOGETHER].values[-1] < 0.999 * least
        assert found[ADAM].values[-1] > 0.9 * least


def test_a_limited_sum_goes_where_power_is_worth_most():
    """Adam would give all the same, as all want more."""
    worth = jnp.array([1.0, 0.5, 0.4, 0.3])

    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Worth:
        worth: Any

        def __call__(self, parameters: Parameters, key: Any) -> Any:
            return jnp.sum(self.worth * parameters.powers)

    start = Parameters(powers=jnp.full(4, 0.25))
    options = {"steps": 60, "learning_rate": 0.2, "rule": TOGETHER}
    found = optimise(Worth(worth), start, KEY, PowerLimits(1.0), **options)
    assert found.value > 0.95


# Powers


@pytest.mark.slow
def test_learned_powers_are_within_their_limits_and_no_worse_than_full_power():
    objective = tiny_objective("sum_rate", channel_draws=2, noise_draws=1)
    free = learn_powers(objective, KEY, steps=8)
    assert free.value >= free.values[0]
    assert free.values[0] == pytest.approx(float(value(objective, Parameters(), KEY)), rel=1e-5)
    limited = learn_powers(objective, KEY, total=1.5, steps=8)
    assert float(jnp.sum(limited.parameters.powers)) <= 1.5 + 1e-4


def test_max_min_powers_lower_the_worst_mse_of_near_and_far_users():
    # Behind joint LMMSE a near user disturbs a far one.
    preset = replace(PRESET, antennas=4, distances_m=(150.0, 300.0, 900.0, 1000.0))
    joint = channel.Link(preset, receiver=channel.Lmmse())
    objective = tiny_objective(preset=joint, channel_draws=4)
    found = max_min_powers(objective, KEY, steps=60)
    worst = [
        np.mean([np.max(objective.user_mse(p, key)) for key in objective.channel_keys(KEY)])
        for p in (found.parameters, Parameters())
    ]
    assert worst[0] < 0.95 * worst[1]


def test_a_direct_preset_has_no_powers():
    objective = tiny_objective(preset=DirectPreset(mse=(0.1,) * 4))
    with pytest.raises(InputError, match="no powers and no attacker"):
        learn_powers(objective, KEY, steps=1)


# Attacks


@pytest.mark.parametrize(
    "start",
    [
        "white",
        pytest.param("sum_rate", marks=pytest.mark.slow),
        pytest.param("strongest_user", marks=pytest.mark.slow),
    ],
)
def test_a_learned_attack_begins_at_a_known_one_and_ends_below(start):
    objective = tiny_objective(channel_draws=1, noise_draws=4)
    begin = channel.ATTACKS[start]()
    found = learn_attack(objective, KEY, begin, steps=10, learning_rate=0.05)
    known = replace(objective, setting=replace(objective.setting, link=link_of(start)))
    assert found.values[0] == pytest.approx(float(value(known, Parameters(), KEY)), abs=1e-4)
    assert found.value < found.values[0]
    assert float(jnp.sum(jnp.square(found.parameters.attack))) <= 1 + 1e-5


def test_every_channel_has_an_attack_of_its_own():
    objective = tiny_objective(channel_draws=2, noise_draws=1)
    both = learn_attack(objective, KEY, steps=3)
    assert both.parameters.attack.shape == (2, 2, 6, 6)
    assert not np.allclose(*both.parameters.attack, atol=1e-3)
    for draw, channel_key in enumerate(objective.channel_keys(KEY)):
        alone = learn_attack(objective.over(channel_key[None]), KEY, steps=3)
        np.testing.assert_array_equal(both.parameters.attack[draw], alone.parameters.attack)
        np.testing.assert_allclose(both.values[draw], alone.values, rtol=1e-6)
        assert both.value[draw] == pytest.approx(alone.value, rel=1e-6)


@pytest.mark.parametrize("attack", ["white", "strongest_user"])
def test_the_entries_of_an_attack_are_those_of_numpys_cholesky(attack: str):
    with jax.enable_x64(True):
        h_tilde = channel.draw_channel(PRESET, KEY)
        covariance = channel.ATTACKS[attack]()(h_tilde, PRESET.attack_budget)
        entries = gradients.attack_entries(covariance, PRESET.attack_budget)
    share = np.asarray(covariance) / PRESET.attack_budget
    lifted = share + np.trace(share).real * 1e-6 / len(share) * np.eye(len(share))
    root = np.linalg.cholesky(lifted)
    np.testing.assert_allclose(entries, [root.real, root.imag], atol=1e-9)


def test_the_entries_of_an_attack_need_no_lapack():
    """Whose batches hang where several stand in one program (`channel.linalg`)."""
    covariances = jnp.tile(jnp.eye(6, dtype=jnp.complex64), (2, 1, 1))
    entries = jax.vmap(lambda each: gradients.attack_entries(each, 6.0))
    traced = str(jax.make_jaxpr(entries)(covariances))
    assert "scan" in traced
    assert "cholesky" not in traced


# Defences against attacks


@pytest.mark.slow
def test_defence_and_attack_bound_the_value_of_their_game():
    objective = tiny_objective(channel_draws=1, noise_draws=4)
    found = learn_defence(objective, KEY, rounds=2, steps=12)
    assert found.values.shape == (3, 3)  # those that both began with, and two rounds
    assert 0 <= found.gap == found.upper - found.lower
    # Every attack hurts the defence that it answers, and every defence helps against the attack.
    for number in (1, 2):
        assert found.values[number, number] < found.values[number, number - 1]
        assert found.values[number, number - 1] > found.values[number - 1, number - 1]
    # What the ends are said to be worth is what they are worth.
    attack = found.attack.attack
    worth = value(objective.holding(Parameters(attack=attack)), found.defence, KEY)
    assert found.lower - 1e-6 <= float(worth) <= found.upper + 1e-6
    undefended = learn_attack(objective, KEY, steps=12)
    assert found.lower > undefended.value
    assert float(worth) > float(value(objective, Parameters(attack=attack), KEY))
    sizes = np.array([leaf[0].size for leaf in jax.tree.leaves(objective.vectors)])
    powers = np.asarray(found.defence.leaf_powers)
    assert powers @ sizes == pytest.approx(sizes.sum(), rel=1e-4)
    assert np.ptp(powers) > 0.05
    assert float(jnp.min(found.defence.scale)) >= 0


def test_a_defence_is_learned_in_one_channel():
    with pytest.raises(InputError, match="one channel, and this objective has 2"):
        learn_defence(tiny_objective(channel_draws=2), KEY)


@pytest.mark.parametrize("scenario", ["sum_rate", "strongest_user"])
def test_leaf_powers_are_the_power_of_all_users_leaf_by_leaf(scenario):
    objective = tiny_objective(scenario)
    powers = jnp.linspace(0.5, 2.0, LEAVES)
    found = objective.user_mse(Parameters(leaf_powers=powers), KEY)
    assert found.shape == (TASKS, LEAVES)
    for leaf, power in enumerate(powers):
        alone = objective.user_mse(Parameters(powers=jnp.full(PRESET.users, power)), KEY)
        np.testing.assert_allclose(found[:, leaf], alone, rtol=1e-5)


def test_the_gradient_by_leaf_powers_is_that_of_finite_differences():
    with jax.enable_x64(True):
        objective = tiny_objective("sum_rate", jnp.float64)
        at = Parameters(leaf_powers=jnp.linspace(0.5, 2.0, LEAVES))
        found = gradients.value_and_gradient(objective, at, KEY)[1].leaf_powers
        for leaf in range(LEAVES):
            ends = [
                value(objective, replace(at, leaf_powers=at.leaf_powers.at[leaf].add(s)), KEY)
                for s in (1e-5, -1e-5)
            ]
            assert found[leaf] == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(powers=SHARES, sizes=arrays(np.int64, 5, elements=st.integers(1, 10_000)))
def test_powers_of_leaves_keep_their_energy_and_their_limits(powers, sizes):
    limits = DefenceLimits(tuple(map(int, sizes)))
    with jax.enable_x64(True):
        given_ = jnp.asarray(powers, float)
        found = np.asarray(limits(Parameters(leaf_powers=given_)).leaf_powers)
    assert found @ sizes == pytest.approx(sizes.sum(), rel=1e-6)
    assert found.min() >= limits.least - 1e-9
    assert found.max() <= limits.most + 1e-9
    # Nearest: no power may move between two inner leaves to come nearer.
    inner = (found > limits.least + 1e-6) & (found < limits.most - 1e-6)
    shift = (powers.astype(float) - found)[inner] / sizes[inner]
    if inner.any():
        assert np.ptp(shift) < 1e-6


# Coefficients


@pytest.mark.slow
@pytest.mark.parametrize(("by", "shape"), [("task", (3,)), ("layer", (3, 3))])
def test_learned_coefficients(by, shape):
    objective = tiny_objective("sum_rate")
    found = learn_scales(objective, KEY, by, steps=8)
    assert found.parameters.scale.shape == shape
    assert found.value > found.values[0]
    assert found.values[0] == pytest.approx(float(value(objective, Parameters(), KEY)), rel=1e-5)
    assert float(jnp.min(found.parameters.scale)) >= 0


def test_coefficients_are_by_task_or_by_layer():
    with pytest.raises(InputError, match="layer"):
        learn_scales(tiny_objective(), KEY, "layers")


def test_coefficients_are_not_negative():
    found = NotNegative()(Parameters(scale=jnp.array([-0.5, 0.2])))
    np.testing.assert_array_equal(found.scale, jnp.array([0, 0.2]))


# What is held


@pytest.mark.slow
def test_held_parameters_are_used_and_given_ones_go_before_them():
    held = parameters_of("distances", "powers")
    objective = tiny_objective("sum_rate")
    both = float(value(objective, held, KEY))
    assert float(value(objective.holding(held), Parameters(), KEY)) == pytest.approx(both, rel=1e-6)
    other = replace(held, powers=jnp.ones(4))
    first = Parameters(powers=jnp.ones(4))
    assert float(value(objective.holding(held), first, KEY)) == pytest.approx(
        float(value(objective, other, KEY)), rel=1e-6
    )
    assert both != pytest.approx(float(value(objective, other, KEY)), rel=1e-4)


@pytest.mark.slow
def test_given_channels_are_those_of_their_keys():
    objective = tiny_objective("sum_rate", channel_draws=2, noise_draws=1)
    keys = objective.channel_keys(KEY)
    assert float(value(objective.over(keys), Parameters(), KEY)) == float(
        value(objective, Parameters(), KEY)
    )
    expected = user_mse(Parameters(), link_of("sum_rate"), keys[1])
    np.testing.assert_allclose(expected, link_of("sum_rate").mse(keys[1]), rtol=1e-5)
    three = jax.random.split(jax.random.key(1), 3)
    assert objective.over(three).channel_keys(KEY).shape == (3,)


# The map


@pytest.mark.slow
def test_the_sensitivity_map_is_the_slope_in_all_mse_and_in_each_leaf():
    with jax.enable_x64(True):
        objective = tiny_objective("sum_rate", jnp.float64)
        keys = jax.random.split(KEY, 3)
        found = sensitivity(objective, keys)
        assert found.mean.shape == found.error.shape == (TASKS, LEAVES)
        assert found.leaves[0] == "embeddings/bias"

        def score(factor: np.ndarray) -> float:
            given = Parameters(mse_factor=jnp.asarray(factor))
            return float(np.mean([value(objective, given, key) for key in keys]))

        ones, step = np.ones((TASKS, LEAVES)), 1e-4
        slope = (score(ones * (1 + step)) - score(ones * (1 - step))) / (2 * step)
        assert found.mean.sum() == pytest.approx(slope, rel=1e-5)
        one = ones.copy()
        one[1, 2] += step
        other = ones.copy()
        other[1, 2] -= step
        assert found.mean[1, 2] == pytest.approx((score(one) - score(other)) / (2 * step), rel=1e-5)


def test_a_map_by_layer_and_the_best_leaves():
    leaves = ("embeddings/bias", "layers/0/a", "layers/0/b")
    mean = np.array([[-1.0, -4.0, 2.0], [-1.0, 0.0, 1.0]])
    found = gradients.Sensitivity(mean, np.zeros((2, 3)), leaves, (2, 8, 1))
    layers = found.by_layer()
    np.testing.assert_array_equal(layers["embeddings"], [-1, -1])
    np.testing.assert_array_equal(layers["layers/0"], [-2, 1])
    assert found.ranked() == [("embeddings/bias", 1.0), ("layers/0/a", 0.5), ("layers/0/b", -3.0)]
