"""The objective: its values against the plain way, its transformations, its errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_fixtures import (
    EXAMPLES,
    FAST_COMPILE,
    KEY,
    PRESET,
    TASKS,
    features,
    link_of,
    parameters_of,
    slopes,
    tiny_objective,
)

from rmtllmf_jax import channel, uplink
from rmtllmf_jax.channel import (
    ATTACKS,
    ChannelPreset,
    DirectPreset,
    Link,
    Lmmse,
    SumRate,
    Unaware,
)
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import Average, Dare, RegMean, Slerp
from rmtllmf_jax.gradients import (
    Objective,
    Parameters,
    attack_entries,
    covariance_root,
    user_mse,
    value,
    value_and_gradient,
)
from rmtllmf_jax.gradients.parameters import FreeAttack, channel_matrix
from rmtllmf_jax.uplink import Coded, Reliability, Shrink, Sparse

SCENARIOS = ("ideal", *sorted(set(ATTACKS) - {"none"}))
ATTACKED = tuple(sorted(set(ATTACKS) - {"none"}))
JOINT = Link(PRESET, receiver=Lmmse())
NOTHING = Parameters()
DEAR = ("min_max_rate", "sum_mse", "sum_rate_floor_aware")
SOME_SLOW = [pytest.param(each, marks=[pytest.mark.slow] * (each in DEAR)) for each in SCENARIOS]


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def right_answers(objective: Objective, parameters: Parameters, scale: np.ndarray) -> np.ndarray:
    """Return how often the merged model is right, draw by draw, the plain way."""
    setting, found = objective.setting, []
    for draw in range(setting.channel_draws * setting.noise_draws):
        place = jax.random.fold_in(jax.random.fold_in(KEY, 0), draw // setting.noise_draws)
        noise_key = jax.random.fold_in(jax.random.fold_in(KEY, 1), draw)
        link = setting.link
        mse = jnp.zeros(TASKS) if link is None else user_mse(parameters, link, place)[:TASKS]
        noise = uplink.noise_of_sum(
            objective.vectors, jnp.asarray(scale), mse, objective.kappa, noise_key
        )
        model = jax.tree.map(
            lambda b, v, n: b + np.tensordot(scale, v, 1) + n,
            objective.base,
            objective.vectors,
            noise,
        )
        total = 0.0
        samples = objective.samples
        for images, task, labels, weights in zip(
            *samples.inputs.values(), samples.target, samples.weight, strict=True
        ):
            head = objective.heads.kernel[task], objective.heads.bias[task]
            logits = np.asarray(features(model, images)) @ head[0] + head[1]
            total += float(np.sum(weights * (np.argmax(logits, axis=-1) == labels)))
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize(
    "scenario", ["strongest_user", pytest.param("clean", marks=pytest.mark.slow)]
)
def test_accuracy_is_the_share_of_right_answers(scenario: str):
    objective = tiny_objective(scenario, metric="accuracy", noise_draws=3)
    expected = right_answers(objective, NOTHING, np.full(TASKS, 0.4, np.float32))
    assert (np.ptp(expected) > 0.02) == (scenario != "clean")
    found = value(objective, NOTHING, KEY)
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)
    assert 0.2 < found < 0.9


def test_members_leave_tasks_out_of_the_merge():
    members = jnp.array([1.0, 0.0, 1.0])
    objective = tiny_objective("white", metric="accuracy", members=members)
    expected = right_answers(objective, NOTHING, np.array([0.4, 0, 0.4], np.float32)).mean()
    np.testing.assert_allclose(value(objective, NOTHING, KEY), expected, rtol=1e-5)
    everyone = replace(objective, members=jnp.ones(TASKS))
    assert abs(value(everyone, NOTHING, KEY) - expected) > 0.02
    for kind in ("scale", "scale_per_task", "scale_per_layer"):
        given = parameters_of(kind)
        weights, every = (it.weights(given) for it in (objective, everyone))
        for some, all_of_them in zip(jax.tree.leaves(weights), jax.tree.leaves(every), strict=True):
            np.testing.assert_array_equal(some, all_of_them * members)


def test_scales_and_factors_act_leaf_by_leaf():
    """A layer's scale merges its leaf alone, and a factor multiplies the MSE of its own."""
    objective = tiny_objective("white")
    parameters = parameters_of("mse_factor", "scale_per_layer")
    mse = jnp.array([0.1, 0.2, 0.3])
    base, vectors, fused = (
        jax.tree.leaves(tree)
        for tree in (objective.base, objective.vectors, objective.fused(parameters, mse, KEY))
    )
    unit = jax.tree.leaves(
        uplink.noise_of_sum(objective.vectors, jnp.ones(3), jnp.ones(3) / 3, jnp.ones(3), KEY)
    )
    for place in range(3):
        scale, factor = (EXAMPLES[k][:, place] for k in ("scale_per_layer", "mse_factor"))
        std = np.sqrt(np.sum((scale * np.asarray(objective.kappa)) ** 2 * factor * np.asarray(mse)))
        expected = base[place] + np.tensordot(scale, vectors[place], 1) + std * unit[place]
        np.testing.assert_allclose(fused[place], expected, rtol=1e-4, atol=1e-5)


def test_fused_is_merged_with_its_noise():
    objective = tiny_objective("white")
    parameters, mse = parameters_of("mse_factor", "scale_per_layer"), jnp.array([0.1, 0.2, 0.3])
    noise = objective.noise(parameters, mse, KEY)
    fused, together, silent = (
        jax.tree.leaves(tree)
        for tree in (
            objective.fused(parameters, mse, KEY),
            objective.merged(parameters, noise),
            objective.merged(parameters, jax.tree.map(jnp.zeros_like, noise)),
        )
    )
    for place, drawn in enumerate(jax.tree.leaves(noise)):
        np.testing.assert_array_equal(together[place], fused[place])
        np.testing.assert_allclose(fused[place] - silent[place], drawn, atol=1e-5)
        assert np.std(drawn) > 0.01


def test_another_method_merges_what_was_received():
    """Noise per user, then the method; members, own weights and factors as for the sum."""
    mse, members = jnp.array([0.1, 0.2, 0.3]), jnp.array([1.0, 0.0, 1.0])
    method = Average(weights=(3.0, 1.0, 1.0))
    objective = tiny_objective("white", method=method, members=members)
    parameters = parameters_of("mse_factor")
    kappa, unit = jnp.ones(3), jnp.ones(3)
    noise = uplink.transmit(jax.tree.map(jnp.zeros_like, objective.vectors), unit, kappa, KEY)
    leaves = zip(
        *map(jax.tree.leaves, (objective.base, objective.vectors, noise)),
        jax.tree.leaves(objective.fused(parameters, mse, KEY)),
        strict=True,
    )
    for place, (base, vectors, z, fused) in enumerate(leaves):
        std = np.asarray(objective.kappa) * np.sqrt(EXAMPLES["mse_factor"][:, place] * mse)
        received = np.asarray(vectors) + np.reshape(std, (3, *[1] * base.ndim)) * z
        expected = base + 0.4 * (3 * received[0] + received[2]) / 4
        np.testing.assert_allclose(fused, expected, rtol=1e-4, atol=1e-5)
    random = tiny_objective("white", method=Dare(0.5))
    assert value(random, NOTHING, KEY) == value(random, NOTHING, KEY)
    assert value(random, NOTHING, KEY) != value(random, NOTHING, jax.random.key(5))


def test_a_method_that_needs_the_base_has_it():
    """Of two of the three users, halfway along a straight line: their mean."""
    members, mse = jnp.array([1.0, 0.0, 1.0]), jnp.array([0.1, 0.2, 0.3])
    plain, arc = (
        tiny_objective("white", method=method, members=members)
        for method in (Average(), Slerp(threshold=0.0))
    )
    for one, other in zip(
        *(jax.tree.leaves(each.fused(NOTHING, mse, KEY)) for each in (plain, arc)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    curved = tiny_objective("white", method=Slerp(), members=members)
    parameters = parameters_of("budget")
    score, slope = value_and_gradient(curved.fixed_at(parameters), parameters, KEY)
    assert jnp.isfinite(score)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_what_a_method_does_not_have_is_refused():
    with pytest.raises(InputError, match="regmean needs grams, which an objective does not have"):
        tiny_objective(method=RegMean())
    objective = tiny_objective(method=Average())
    with pytest.raises(InputError, match="one merging coefficient per task is for task arithmetic"):
        value(objective, parameters_of("scale_per_task"), KEY)
    with pytest.raises(InputError, match="the noise of a merge by average is not a sum over users"):
        objective.noise(NOTHING, jnp.ones(3), KEY)


def test_the_channel_is_drawn_once_and_again_for_choices_of_others(
    monkeypatch: pytest.MonkeyPatch,
):
    drawn: list[Parameters] = []

    def counted(parameters: Parameters, *rest: Any) -> jax.Array:
        drawn.append(parameters)
        return channel_matrix(parameters, *rest)

    monkeypatch.setattr("rmtllmf_jax.gradients.link.channel_matrix", counted)
    own, other = parameters_of("powers"), Parameters(powers=jnp.ones(4))
    user_mse(own, link_of("strongest_user"), KEY)
    assert drawn == [own]
    drawn.clear()
    user_mse(own, link_of("strongest_user"), KEY, other)
    assert drawn == [own, other]


@pytest.mark.parametrize("scenario", SOME_SLOW)
def test_user_mse_without_parameters_is_the_channels(scenario: str):
    for preset in (PRESET, JOINT):
        found = user_mse(NOTHING, link_of(scenario, preset), KEY)
        np.testing.assert_allclose(found, link_of(scenario, preset).mse(KEY), rtol=1e-5)
    own = Parameters(
        powers=jnp.ones(4),
        distances=channel.draw_distances(PRESET, KEY),
        path_loss_exponent=jnp.asarray(2.1),
    )
    if scenario in ATTACKED:
        own = replace(own, budget=jnp.asarray(PRESET.attack_budget))
    for reference in (None, own):
        np.testing.assert_allclose(
            user_mse(own, link_of(scenario), KEY, reference),
            link_of(scenario).mse(KEY),
            rtol=1e-5,
        )


def test_parameters_at_the_presets_own_values_change_nothing():
    objective = tiny_objective(
        "white", preset=replace(PRESET, distances_m=(200.0, 300.0, 400.0, 500.0))
    )
    line = jnp.array([[200.0, 0, 0], [0, 300, 0], [0, 0, 400], [300, 400, 0]])
    own = Parameters(
        powers=jnp.ones(4),
        positions=line,
        path_loss_exponent=jnp.asarray(2.1),
        budget=jnp.asarray(PRESET.attack_budget),
        mse_factor=jnp.ones((3, 3)),
        scale=jnp.asarray(0.4),
    )
    plain = value(objective, NOTHING, KEY)
    np.testing.assert_allclose(value(objective, own, KEY), plain, rtol=1e-5)
    assert abs(value(objective, replace(own, powers=0.3 * own.powers), KEY) - plain) > 1e-3


@pytest.mark.parametrize("scenario", ["ideal", "strongest_user"])
def test_fixed_choices_stay_although_received_powers_cross(scenario: str):
    preset = replace(PRESET, distances_m=(200.0, 300.0, 400.0, 500.0))
    start, end = Parameters(powers=jnp.ones(4)), Parameters(powers=10.0 ** -jnp.arange(4.0)[::-1])
    objective = tiny_objective(scenario, preset=preset)
    held = objective.fixed_at(start).user_mse(end, KEY)
    gram = channel.gram(channel.draw_channel(preset, KEY) * jnp.sqrt(end.powers))
    power = channel.received_power(channel.gram(channel.draw_channel(preset, KEY)))
    order = channel.sic_order(power, "weakest_first")
    assert list(order) != list(channel.sic_order(channel.received_power(gram), "weakest_first"))
    if scenario == "strongest_user":
        gram = channel.Towards(int(jnp.argmax(power))).from_gram(
            gram, preset.attack_budget, antennas=preset.antennas
        )
    np.testing.assert_allclose(held, channel.sic_mse(gram, order)[:TASKS], rtol=1e-5)
    assert np.max(np.abs(held - objective.user_mse(end, KEY))) > 0.01
    np.testing.assert_array_equal(
        objective.fixed_at(end).user_mse(end, KEY), objective.user_mse(end, KEY)
    )


@pytest.mark.parametrize(
    ("users", "antennas", "dtype"),
    [pytest.param(4, 6, jnp.float64, marks=pytest.mark.slow), (2, 64, jnp.float32)],
)
@pytest.mark.parametrize("attack", ["sum_rate", "white"])
def test_the_entries_of_an_attack_give_its_covariance_and_mse(
    attack: str, users: int, antennas: int, dtype: Any
):
    preset = ChannelPreset(users=users, antennas=antennas)
    with jax.enable_x64(dtype == jnp.float64):
        h_tilde = channel.draw_channel(preset, KEY)
        covariance = channel.ATTACKS[attack]()(h_tilde, preset.attack_budget)
        entries = attack_entries(covariance, preset.attack_budget)
        assert entries.dtype == dtype
        root = covariance_root(entries)
        np.testing.assert_array_equal(root, np.tril(root))
        np.testing.assert_array_equal(np.imag(np.diagonal(root)), 0)
        back = preset.attack_budget * (root @ root.conj().T)
        tolerance = 1e-6 if dtype == jnp.float64 else 1e-4
        size = float(jnp.real(jnp.trace(covariance)))
        np.testing.assert_allclose(back, covariance, atol=tolerance * size)
        free = user_mse(Parameters(attack=entries), Link(preset), KEY)
        expected = link_of(attack, preset).mse(KEY)
        np.testing.assert_allclose(free, expected, rtol=10 * tolerance)


def test_a_free_attack_keeps_the_floor_in_float32_at_80_db():
    """A jammer towards one user: the others see the floor, and the least that the root lifts it."""
    h_tilde = channel.draw_channel(PRESET, KEY)
    covariance = channel.StrongestUser()(h_tilde, 1e8)
    attack = attack_entries(covariance, 1e8)

    def mse_of(dtype: Any) -> np.ndarray:
        given = {"attack": attack, "budget": jnp.asarray(1e8)}
        entries, budget = (jnp.asarray(x, dtype) for x in given.values())
        effective = channel.attacked_gram(FreeAttack(entries), h_tilde, budget)
        return np.asarray(channel.lmmse_mse(effective))

    found = mse_of(jnp.float32)
    with jax.enable_x64(True):
        h_tilde = h_tilde.astype(complex)
        np.testing.assert_allclose(found, mse_of(jnp.float64), rtol=1e-4)


def test_a_user_at_the_base_station_has_no_channel():
    positions = jnp.array([[3.0, 4.0], [0.0, 0.0], [300.0, 400.0], [1.0, 0.0]])
    with pytest.raises(InputError, match="distances from the base station"):
        user_mse(Parameters(positions=positions), Link(PRESET), KEY)


def test_values_with_and_without_jit_with_a_gradient_and_over_keys():
    parameters = parameters_of("powers", "budget", "scale_per_task")
    objective = tiny_objective("white").fixed_at(parameters)
    keys = jax.random.split(KEY, 3)
    expected = jnp.stack([value_and_gradient(objective, parameters, key)[0] for key in keys])
    assert np.ptp(expected) > 1e-3
    together = jax.vmap(value, (None, None, 0))(objective, parameters, keys)
    np.testing.assert_allclose(together, expected, rtol=1e-5)
    np.testing.assert_allclose(objective(parameters, keys[0]), expected[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_the_hessian_in_powers_is_symmetric_and_the_gradients_slope():
    parameters = parameters_of("powers", dtype=jnp.float64)
    objective = tiny_objective("white", jnp.float64, channel_draws=1).fixed_at(parameters)
    gradient = jax.grad(lambda here: objective(here, KEY))
    step = 1e-4
    # At the point itself along every axis, and a step along each to both sides: one program.
    moves = step * jnp.concatenate([jnp.zeros((4, 4)), jnp.eye(4), -jnp.eye(4)])
    points = jax.tree.map(lambda powers: powers + moves, parameters)
    ways = jax.tree.map(lambda _: jnp.tile(jnp.eye(4), (3, 1)), parameters)
    along = jax.vmap(lambda point, way: jax.jvp(gradient, (point,), (way,)))
    around, slopes = jax.jit(along, compiler_options=FAST_COMPILE)(points, ways)
    around, hessian = around.powers[4:], slopes.powers[:4]
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-9, atol=1e-13)
    slope = (around[:4] - around[4:]) / (2 * step)
    np.testing.assert_allclose(hessian, slope, atol=1e-6)
    assert np.max(np.abs(hessian)) > 1e-3
    whole = jax.eval_shape(jax.hessian(lambda here: objective(here, KEY)), parameters)
    assert whole.powers.powers.shape == (4, 4)


def test_one_program_serves_objectives_keys_and_draws():
    traced = []

    def counted(params: Any, images: jax.Array) -> jax.Array:
        traced.append(images.shape)
        return features(params, images)

    parameters = parameters_of("powers", "scale")
    objective = tiny_objective("white", features=counted).fixed_at(parameters)
    first = value_and_gradient(objective, parameters, KEY)[0]
    traced.clear()
    others = [
        (replace(objective, kappa=2 * objective.kappa), parameters, KEY),
        (replace(objective, heads=jax.tree.map(jnp.negative, objective.heads)), parameters, KEY),
        (replace(objective, base=jax.tree.map(jnp.negative, objective.base)), parameters, KEY),
        (objective.fixed_at(parameters_of("powers", "scale")), parameters, KEY),
        (objective, replace(parameters, powers=jnp.full(4, 0.1, jnp.float32)), KEY),
        *((objective, parameters, key) for key in jax.random.split(KEY, 3)),
    ]
    found = [float(value_and_gradient(*case)[0]) for case in others]
    assert traced == []
    assert len({float(first), *found}) == 8  # the fourth is the first
    jax.eval_shape(value_and_gradient, objective.scored("margin"), parameters, KEY)
    assert traced  # the counter counts


OWN = {"distances": jnp.full(4, 300.0), "positions": jnp.full((4, 2), 300.0)}
STREET = {"path_loss": channel.UrbanMicro(3.5e9, line_of_sight=True), "min_distance_m": 10.0}
ERRORS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "powers' shape": ({}, {"powers": jnp.ones(3)}, r"'powers' must have shape \(4,\), got \(3,\)"),
    "distances' shape": ({}, {"distances": jnp.ones(5)}, "'distances' must have shape"),
    "positions' shape": ({}, {"positions": jnp.ones((4, 4))}, "'positions' must have shape"),
    "attack's shape": ({}, {"attack": jnp.ones((2, 4, 4))}, "'attack' must have shape"),
    "mse's shape": ({}, {"mse": jnp.ones(3)}, r"'mse' must have shape \(4,\), got \(3,\)"),
    "factor's shape": ({}, {"mse_factor": jnp.ones((3, 2))}, "'mse_factor' must have shape"),
    "scale's shape": ({}, {"scale": jnp.ones((3, 2))}, r"shape \(\) or \(3,\) or \(3, 3\), got"),
    "two places": ({}, OWN, "both distances and positions"),
    "power control": (
        {"preset": replace(PRESET, power_control="full")},
        {"powers": jnp.ones(4)},
        "power control 'full'",
    ),
    "two attacks": (
        {"scenario": "sum_rate"},
        {"attack": jnp.ones((2, 6, 6))},
        "in addition to that of the scenario 'sum_rate'",
    ),
    "mse and channel": (
        {},
        {"mse": jnp.ones(4), "powers": jnp.ones(4)},
        "give the MSE itself and also powers",
    ),
    "no power law": (
        {"preset": replace(PRESET, path_loss=channel.FreeSpace(3.5e9))},
        {"path_loss_exponent": jnp.asarray(2.0)},
        "needs a PowerLaw",
    ),
    "no attacker": ({}, {"budget": jnp.asarray(9.0)}, "'ideal' has no attacker"),
    "no channel": (
        {"preset": DirectPreset(mse=(0.1,) * 4)},
        {"powers": jnp.ones(4)},
        "no channel for powers",
    ),
    "powers in dB": ({}, {"powers": jnp.array([1.0, -3, 1, 1])}, "'powers' .* > 0, got -3"),
    "a silent user": ({}, {"powers": jnp.zeros(4)}, "'powers' .* > 0, got 0"),
    "budget in dB": (
        {"scenario": "sum_rate"},
        {"budget": jnp.asarray(-5.0)},
        r"'budget' \(a ratio, not dB\) must be finite and >= 0, got -5",
    ),
    "a user at the base station": ({}, {"distances": jnp.zeros(4)}, "'distances'.* > 0, got 0"),
    "a user out of range": (
        {"preset": replace(PRESET, **STREET)},
        {"distances": jnp.full(4, 1.0)},
        "for UrbanMicro.* >= 10 .* got 1",
    ),
    "heights twice": (
        {"preset": replace(PRESET, **STREET)},
        {"positions": jnp.full((4, 3), 90.0)},
        "has heights, and UrbanMicro.* has its own",
    ),
    "angles twice": (
        {"preset": replace(PRESET, fading=channel.Rician(3.0, angles_deg=[1.0, 2.0, 3.0, 4.0]))},
        {"positions": OWN["positions"]},
        "fading sets angles_deg",
    ),
    "a negative error": ({}, {"mse": jnp.array([0.1, -0.1, 1, 1])}, "'mse' .* >= 0, got -0.1"),
    "too few users": ({"preset": replace(PRESET, users=2)}, {}, "2"),
    "hard accuracy": ({"metric": "accuracy"}, {"scale": jnp.asarray(0.4)}, "hard accuracy"),
    "order": ({"scenario": "white"}, {"powers": jnp.ones(4)}, "the SIC order is a discrete choice"),
    "strongest": (
        {"scenario": "strongest_user", "preset": JOINT},
        {"distances": OWN["distances"]},
        "the strongest user is a discrete choice",
    ),
}


@pytest.mark.parametrize(("setting", "given", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_does_not_fit(setting: dict[str, Any], given: dict[str, Any], message: str):
    objective = tiny_objective(**setting)
    with pytest.raises(InputError, match=message):
        value_and_gradient(objective, Parameters(**given), KEY)


def _spaced(parameters: Parameters, key: jax.Array) -> jax.Array:
    """A line of sight to a uniform array whose spacing is the parameter `scale`."""
    phases = jnp.arange(6.0)[:, None] * jnp.sin(jnp.linspace(-1.0, 1.2, 4)) * parameters.scale
    gains = jnp.sqrt(parameters.powers) * jnp.array([3.0, 4.0, 5.0, 6.0])
    scattered = jax.random.normal(key, (6, 4), phases.dtype)
    return gains * (jnp.exp(2j * jnp.pi * phases) + 0.3 * scattered)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("scenario", ["sum_rate", "strongest_user"])
def test_a_channel_of_ones_own_has_derivatives_in_its_parameters(scenario: str):
    given = parameters_of("scale", "powers", "budget", dtype=jnp.float64)
    link = link_of(scenario)

    def mean(parameters: Parameters, key: jax.Array) -> jax.Array:
        return jnp.mean(user_mse(parameters, link, key, given, _spaced))

    found = slopes(mean, given, KEY, step=1e-3)
    assert set(found) == {"scale", "powers", "budget"}
    for gradient, difference in found.values():
        np.testing.assert_allclose(gradient, difference, rtol=1e-5)
        assert abs(gradient) > 1e-6
    objective = tiny_objective(scenario, jnp.float64, preset=PRESET)
    drawn = replace(objective, setting=replace(objective.setting, drawn=_spaced))
    np.testing.assert_allclose(
        drawn.fixed_at(given).user_mse(given, KEY),
        channel.user_mse(_spaced(given, KEY), link.attack, given.budget)[:TASKS],
        rtol=1e-9,
    )


def test_angles_of_arrival_follow_positions():
    """A user who moves on a circle keeps its power and changes its direction."""
    preset = replace(PRESET, fading=channel.Rician(k_factor_db=60.0))
    places = jnp.array([[300.0, 0.0], [0.0, 400.0], [-100.0, 200.0], [240.0, -180.0]])
    turned = places.at[0].set(300 * jnp.array([jnp.cos(1.0), jnp.sin(1.0)]))

    def channel_of(positions):
        return channel_matrix(Parameters(positions=positions), preset, KEY)

    here, there = channel_of(places), channel_of(turned)
    sines = places[:, 1] / jnp.linalg.norm(places, axis=1)
    expected = np.exp(1j * np.pi * np.arange(6)[:, None] * np.asarray(sines))
    np.testing.assert_allclose(here / here[0], expected, atol=0.02)
    np.testing.assert_allclose(abs(here[:, 0]), abs(there[:, 0]), rtol=0.02)
    assert np.min(abs(here[1:, 0] / there[1:, 0] - 1)) > 0.2
    np.testing.assert_array_equal(here[:, 1:], there[:, 1:])
    lifted = jnp.column_stack([places, jnp.zeros(4)])
    np.testing.assert_allclose(channel_of(lifted), here, rtol=1e-5)


def test_choices_that_the_parameters_do_not_move_need_not_be_fixed():
    for preset in (PRESET, JOINT):
        objective = tiny_objective("strongest_user", preset=preset)
        parameters = parameters_of("budget", "scale", "mse_factor")
        jax.eval_shape(value_and_gradient, objective, parameters, KEY)
        parameters = replace(parameters, powers=jnp.ones(4))
        with pytest.raises(InputError, match="is a discrete choice"):
            jax.eval_shape(value_and_gradient, objective, parameters, KEY)
        jax.eval_shape(value_and_gradient, objective.fixed_at(parameters), parameters, KEY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "sum_rat"}, "Did you mean 'sum_rate'"),
        ({"metric": "soft"}, "unknown metric 'soft'"),
        ({"channel_draws": 0}, "channel draws must be at least 1"),
        ({"noise_draws": 0}, "noise draws must be at least 1"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        tiny_objective(**changes)


# Defences along the chain


DEFENDED = {
    "repeat": (Link(PRESET, SumRate(), air=channel.Repeat(2)), {}),
    "hop": (Link(PRESET, SumRate(), Unaware(), channel.Hop(3)), {}),
    "minimax": (Link(PRESET, SumRate(), channel.Minimax()), {}),
    "shrink": (Link(PRESET, SumRate()), {"estimators": (Shrink(), Reliability(0.5))}),
    "sparse": (Link(PRESET, SumRate()), {"transport": Sparse(0.5)}),
    "expected": (
        Link(PRESET, SumRate()),
        {"transport": Coded(gap_db=0.0, margin_db=1.0, block=20, expected=True)},
    ),
}


@pytest.mark.parametrize("name", DEFENDED)
def test_the_gradient_through_a_defence_is_that_of_finite_differences(name: str, double: None):
    link, chosen = DEFENDED[name]
    plain = tiny_objective("sum_rate", jnp.float64, preset=link)
    objective = replace(plain, setting=replace(plain.setting, **chosen))
    assert objective.setting.linear == (not chosen)
    at = Parameters(budget=jnp.asarray(12.0))
    found, gradient = value_and_gradient(objective, at, KEY)
    assert float(found) != float(value(tiny_objective("sum_rate", jnp.float64), at, KEY))
    ends = [value(objective, Parameters(budget=at.budget + s), KEY) for s in (1e-4, -1e-4)]
    slope = float(ends[0] - ends[1]) / 2e-4
    assert abs(slope) > 1e-7 or name == "expected"
    assert float(gradient.budget) == pytest.approx(slope, rel=1e-5, abs=1e-10)


def test_the_expected_outage_has_a_derivative_by_power(double: None):
    """A coded link whose rate is planned elsewhere: its arrival moves with the SINR alone."""
    sent = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(2, 3000)))}
    coded = Coded(gap_db=0.0, block=30, expected=True)
    planned = jnp.array([0.4, 0.3])

    def energy(mse: jax.Array) -> jax.Array:
        found = coded.deliver(sent, mse, jnp.ones(2), KEY, planned=planned)
        return jnp.sum(jnp.square(found["w"]))

    at = jnp.array([0.42, 0.28])
    gradient = jax.grad(energy)(at)
    for user in range(2):
        step = jnp.zeros(2).at[user].set(1e-6)
        slope = (energy(at + step) - energy(at - step)) / 2e-6
        assert abs(float(slope)) > 0.1
        assert float(gradient[user]) == pytest.approx(float(slope), rel=1e-6)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"transport": uplink.Qam()}, "sends symbols"),
        ({"transport": Coded(plan=SumRate())}, "leave `plan` out"),
    ],
)
def test_transports_that_an_objective_does_not_follow_are_refused(
    chosen: dict[str, Any], said: str
):
    setting = tiny_objective("sum_rate").setting
    with pytest.raises(InputError, match=said):
        replace(setting, **chosen)


def test_independent_blocks_have_no_parameters():
    link = Link(PRESET, SumRate(), air=channel.Repeat(2, "independent"))
    with pytest.raises(InputError, match="take fading=same"):
        value(tiny_objective("sum_rate", preset=link), NOTHING, KEY)
