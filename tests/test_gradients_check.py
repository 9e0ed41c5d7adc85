"""Gradients against finite differences: those of the tests, and those of the public check."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_fixtures import (
    KEY,
    PRESET,
    Orthogonal,
    features,
    link_of,
    parameters_of,
    slopes,
    tiny_objective,
)

from rmtllmf_jax import channel, uplink
from rmtllmf_jax.channel import ATTACKS, ChannelPreset, DirectPreset, Link, Lmmse
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import name_of
from rmtllmf_jax.fusion import Average, Lata, MergeMethod
from rmtllmf_jax.gradients import (
    TOLERANCE,
    Agreement,
    Objective,
    Parameters,
    check_gradient,
    user_mse,
    value,
    value_and_gradient,
)

ATTACKED = tuple(sorted(set(ATTACKS) - {"none"}))
JOINT = Link(PRESET, receiver=Lmmse())
EQUAL = replace(PRESET, fading=Orthogonal(), distances_m=(500.0,) * 4)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def assert_slopes_agree(found: dict[str, tuple[float, float]]) -> None:
    """Check every derivative to 1e-6, where there is a derivative to be seen."""
    assert found
    for name, (gradient, difference) in found.items():
        assert abs(difference) > 1e-6, name
        assert abs(gradient - difference) < 1e-6 * abs(difference), name


def of_objective(scenario: str, preset: channel.Preset, *kinds: str) -> dict:
    parameters = parameters_of(*kinds, dtype=jnp.float64)
    objective = tiny_objective(scenario, jnp.float64, preset=preset).fixed_at(parameters)
    return slopes(lambda here, it, key: it(here, key), parameters, objective, KEY)


def of_mse(
    scenario: str, preset: ChannelPreset | channel.Link, *kinds: str, **changes: Any
) -> dict:
    """Of a weighted sum of the users' MSE: what the model sees of the channel."""
    parameters = replace(parameters_of(*kinds, dtype=jnp.float64), **changes)

    def weighted(here: Parameters, reference: Parameters, key: jax.Array) -> jax.Array:
        return user_mse(here, link_of(scenario, preset), key, reference) @ jnp.linspace(1.0, 2.0, 4)

    return slopes(weighted, parameters, parameters, KEY)


def with_budget(scenario: str, *kinds: str) -> tuple[str, ...]:
    return kinds if scenario == "ideal" else (*kinds, "budget")


# The scale's shape says nothing of the place, and the other way round: they share their cases.
PLACES = {
    "distances": "scale",
    "positions": "scale_per_task",
    "positions_3d": "scale_per_layer",
}
QUICK = {("sum_rate", "positions_3d")}


def crossed() -> list[Any]:
    """Every scenario with every kind of place; most of them take long to compile."""
    every = [(scenario, place) for scenario in ("ideal", *ATTACKED) for place in PLACES]
    return [pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in every]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("scenario", "place"), crossed())
def test_gradients_in_every_parameter_under_every_scenario(scenario: str, place: str):
    kinds = ("powers", place, "path_loss_exponent", "mse_factor", PLACES[place])
    assert_slopes_agree(of_objective(scenario, PRESET, *with_budget(scenario, *kinds)))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("preset", [PRESET, pytest.param(JOINT, marks=pytest.mark.slow)])
def test_gradients_in_a_free_attack(preset: ChannelPreset):
    kinds = ("attack", "budget", "powers", "distances")
    assert_slopes_agree(of_objective("ideal", preset, *kinds))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("preset", "scale"),
    [(PRESET, "scale_per_layer"), (DirectPreset(snr_db=(9.0, 5.0, 2.0, 0.0)), "scale_per_task")],
    ids=["channel", "direct"],
)
def test_gradients_in_the_mse_itself(preset: channel.Preset, scale: str):
    assert_slopes_agree(of_objective("ideal", preset, "mse", "mse_factor", scale))


def slow_but(*quick: str) -> list[Any]:
    return [
        pytest.param(each, marks=[pytest.mark.slow] * (each not in quick))
        for each in ("ideal", *ATTACKED)
    ]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("scenario", slow_but("sum_rate"))
def test_gradients_of_the_mse_with_joint_lmmse(scenario: str):
    kinds = with_budget(scenario, "powers", "positions", "path_loss_exponent")
    assert_slopes_agree(of_mse(scenario, JOINT, *kinds))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("scenario", slow_but("sum_rate"))
def test_gradients_of_the_mse_at_repeated_eigenvalues(scenario: str):
    """All users orthogonal, of one power and place: one eigenvalue, four times, and ties."""
    equal = {"powers": jnp.full(4, 0.7), "distances": jnp.full(4, 500.0)}
    gram = channel.gram(channel.draw_channel(EQUAL, KEY))
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(4), atol=1e-12 * abs(gram[0, 0]))
    for preset in (EQUAL, channel.Link(EQUAL, receiver=channel.Lmmse())):
        kinds = with_budget(scenario, "path_loss_exponent")
        assert_slopes_agree(of_mse(scenario, preset, *kinds, **equal))


@pytest.fixture
def single_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaussians that are the same in both precisions: drawn in single, widened."""
    normal = jax.random.normal

    def single(key: Any, shape: tuple = (), dtype: Any = float) -> jax.Array:
        narrow = jnp.complex64 if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.float32
        return normal(key, shape, narrow).astype(dtype)

    monkeypatch.setattr(jax.random, "normal", single)


@pytest.mark.usefixtures("single_draws")
@pytest.mark.parametrize("scenario", slow_but())
def test_gradients_in_float32_are_those_in_float64(scenario: str):
    kinds = ["powers", "distances", "path_loss_exponent", "mse_factor", "scale_per_layer"]
    kinds += [] if scenario == "ideal" else ["budget"]

    def mine(params: Any, images: jax.Array) -> jax.Array:  # no program of other Gaussians
        return features(params, images)

    found = []
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            parameters = parameters_of(*kinds, dtype=dtype)
            objective = tiny_objective(scenario, dtype, features=mine, channel_draws=4)
            found.append(value_and_gradient(objective.fixed_at(parameters), parameters, KEY))
    (narrow, single), (wide, exact) = found
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, rtol=1e-5)
    for name in single.given():
        one, other = np.asarray(getattr(single, name)), np.asarray(getattr(exact, name))
        assert one.dtype == np.float32
        assert other.dtype == np.float64
        assert np.linalg.norm(one - other) < 1e-3 * np.linalg.norm(other), name


def wrong_features(params: Any, images: jax.Array) -> jax.Array:
    """The right features with a derivative that is one per cent too large."""
    right = features(params, images)
    return 1.01 * right - 0.01 * jax.lax.stop_gradient(right)


def checked(objective: Objective, *kinds: str, dtype: Any, seed: int = 0) -> list[Agreement]:
    parameters = parameters_of(*kinds, dtype=dtype)
    return check_gradient(objective.fixed_at(parameters), parameters, KEY, seed)


KINDS = ("powers", "positions", "budget", "mse_factor", "scale_per_layer")


def test_a_right_gradient_agrees_in_float64():
    with jax.enable_x64(True):
        objective = tiny_objective("white", jnp.float64)
        found, other = (checked(objective, *KINDS, dtype=jnp.float64, seed=n) for n in (0, 1))
    assert [each.parameter for each in found] == list(parameters_of(*KINDS).given())
    for each in found + other:
        assert each.verdict(TOLERANCE["float64"]) == "agrees", each
        assert each.relative_error < 1e-7
        assert abs(each.gradient) > 1e-5
    for one, two in zip(found, other, strict=True):
        assert one.gradient != two.gradient or one.parameter == "budget"  # another direction


@pytest.mark.parametrize("method", [Average(), Lata()], ids=name_of)
def test_gradients_agree_through_merge_methods_that_are_not_linear(method: MergeMethod):
    """Away from ties of ranks, where Lata jumps (and TIES at every zero of a vote)."""
    kinds = ("powers", "budget", "mse_factor", "scale")
    with jax.enable_x64(True):
        objective = tiny_objective("white", jnp.float64, method=method)
        found = checked(objective, *kinds, dtype=jnp.float64)
    assert len(found) == len(kinds)
    for each in found:
        assert each.verdict(TOLERANCE["float64"]) == "agrees", each
        assert abs(each.gradient) > 1e-6


@pytest.mark.slow
def test_second_derivatives_agree_through_the_loop_over_draws():
    """Under an attack that optimises: `jax.custom_jvp` would give wrong ones there."""
    with jax.enable_x64(True):
        parameters = parameters_of("powers", "budget", dtype=jnp.float64)
        objective = tiny_objective("sum_rate", jnp.float64).fixed_at(parameters)
        found = check_gradient(objective, parameters, KEY, order=2)
    for each in found:
        assert each.verdict(TOLERANCE["float64"]) == "agrees", each
        assert abs(each.gradient) > 1e-6


@pytest.mark.slow
def test_a_wrong_gradient_differs_in_float64():
    with jax.enable_x64(True):
        objective = tiny_objective("white", jnp.float64, features=wrong_features)
        found = checked(objective, "powers", "budget", "scale", dtype=jnp.float64)
    for each in found:
        assert each.verdict(TOLERANCE["float64"]) == "differs", each
        assert each.relative_error == pytest.approx(0.01 / 1.01, rel=1e-3)


@pytest.mark.slow
def test_float32_agrees_and_what_rounding_drowns_is_too_small_to_tell():
    """At an SNR of 70 dB in the parameters the powers move the score by next to nothing."""
    objective = tiny_objective("white")
    quiet = replace(objective, kappa=uplink.kappa_from_c0(objective.vectors, 70.0))
    tolerance = TOLERANCE["float32"]
    powers, scale = checked(objective, "powers", "scale", dtype=jnp.float32)
    assert scale.verdict(tolerance) == "agrees", scale
    assert powers.verdict(tolerance) == "agrees", powers
    powers, scale = checked(quiet, "powers", "scale", dtype=jnp.float32)
    assert scale.verdict(tolerance) == "agrees", scale
    assert powers.verdict(tolerance) == "too small to tell", powers
    assert powers.uncertainty > 0


NAN = float("nan")


@pytest.mark.parametrize(
    ("gradient", "difference", "uncertainty", "verdict"),
    [
        (1.0, 1.0009, 0.0, "agrees"),
        (1.0, 1.0011, 0.0, "differs"),
        (-1.0, -1.0011, 0.0, "differs"),
        (1.0, -1.0, 0.01, "differs"),
        (1.0, 1.03, 0.0098, "agrees"),
        (1.0, 1.03, 0.0095, "differs"),
        (1.0, 1.1, 0.2, "too small to tell"),
        (0.0, 0.0, 0.0, "agrees"),
        (0.0, 1e-9, 1e-9, "too small to tell"),
        (0.0, 1.0, 1e-3, "differs"),
        (NAN, 1.0, 0.0, "differs"),
        (1.0, NAN, NAN, "differs"),
    ],
)
def test_verdicts(gradient: float, difference: float, uncertainty: float, verdict: str):
    found = Agreement("powers", gradient, difference, uncertainty)
    assert found.verdict(1e-3) == verdict


def test_relative_errors():
    assert Agreement("scale", 2.0, 1.0, 0.0).relative_error == 0.5
    assert Agreement("scale", -1.0, 1.0, 0.0).relative_error == 2.0
    assert Agreement("scale", 0.0, 0.0, 0.0).relative_error == 0.0


def test_nothing_to_differentiate_in_and_discrete_choices_are_errors():
    objective = tiny_objective("white")
    with pytest.raises(InputError, match="nothing to differentiate in"):
        check_gradient(objective, Parameters(), KEY)
    with pytest.raises(InputError, match=r"the SIC order is a .*objective\.fixed_at"):
        check_gradient(objective, parameters_of("powers"), KEY)
    with pytest.raises(InputError, match=r"hard accuracy.*SoftAccuracy"):
        check_gradient(objective.scored("accuracy"), parameters_of("scale"), KEY)
    with pytest.raises(InputError, match="order must be 1"):
        check_gradient(objective, parameters_of("scale"), KEY, order=3)


def test_flags_that_a_program_leaves_behind_are_no_warning(monkeypatch: pytest.MonkeyPatch):
    """XLA computes on what pads a vector, too; NumPy would take its flags for ours."""
    name = ctypes.util.find_library("m")
    if name is None or not hasattr(library := ctypes.CDLL(name), "feraiseexcept"):
        pytest.skip("needs the C library's floating-point flags")
    parameters = parameters_of("budget")
    objective = tiny_objective("white").fixed_at(parameters)
    raised = []

    def flagged(*words: Any) -> Any:
        found = value(*words)
        raised.append(library.feraiseexcept(0x1F))  # all of them, on the usual processors
        return found

    monkeypatch.setattr("rmtllmf_jax.gradients.check.value", flagged)
    (agreement,) = check_gradient(objective, parameters, KEY)
    assert raised
    assert agreement.verdict(TOLERANCE["float32"]) != "differs"
