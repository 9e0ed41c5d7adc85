"""Levels of an axis: each is the preset with another number, in one compiled program."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from rmtllmf_jax import channel
from rmtllmf_jax.channel import SCENARIOS, get_preset
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.sweep import axis as module
from rmtllmf_jax.sweep.axis import AXES, NO_AXIS, Axis, error_covariance, parse_axis, user_mse

PAPER = get_preset("paper")
KEY = jax.random.key(3)
LEVELS = (-10.0, 0.0, 10.0, 20.0)
ATTACKED = [name for name in SCENARIOS if name not in ("clean", "ideal")]

pytestmark = pytest.mark.usefixtures("compile_fast")


def at(preset: Any, axis: str, level: float) -> Any:
    """Return the preset whose own number is the level."""
    names = {"snr_db": "edge_snr_db", "budget_db": "attack_budget_db"}
    return replace(preset, **{names[axis]: level})


# The MSE at a level


@pytest.mark.parametrize(
    ("scenario", "order"),
    [
        ("ideal", "weakest_first"),
        ("strongest_user", "weakest_first"),
        pytest.param("strongest_user", None, marks=pytest.mark.slow),
    ],
)
def test_a_level_of_snr_is_the_preset_with_that_snr(scenario: str, order: str | None) -> None:
    preset = replace(PAPER, order=order)
    for level in (-5.0, 17.5):
        found = user_mse(KEY, scenario, preset, "snr_db", level)
        expected = channel.user_mse(scenario, at(preset, "snr_db", level), KEY)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_level_of_the_budget_is_the_preset_with_that_budget() -> None:
    for level in (-5.0, 17.5):
        found = user_mse(KEY, "strongest_user", PAPER, "budget_db", level)
        expected = channel.user_mse("strongest_user", at(PAPER, "budget_db", level), KEY)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["snr_db", "budget_db"])
@pytest.mark.parametrize("scenario", ATTACKED)
@pytest.mark.parametrize("preset", ["paper", "umi_nlos"])
def test_every_attack_at_every_level(axis: str, scenario: str, preset: str) -> None:
    chosen = get_preset(preset)
    for level in (-5.0, 5.0, 20.0):
        found = user_mse(KEY, scenario, chosen, axis, level)
        expected = channel.user_mse(scenario, at(chosen, axis, level), KEY)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("axis", "level"),
    [("snr_db", PAPER.edge_snr_db), ("budget_db", PAPER.attack_budget_db)],
)
def test_the_presets_own_level_changes_nothing(axis: str, level: float) -> None:
    own = user_mse(KEY, "strongest_user", PAPER, "", None)
    np.testing.assert_allclose(user_mse(KEY, "strongest_user", PAPER, axis, level), own, rtol=1e-5)
    np.testing.assert_allclose(own, channel.user_mse("strongest_user", PAPER, KEY), rtol=1e-5)


def test_more_power_is_less_error_and_more_attack_is_more() -> None:
    quieter = [float(user_mse(KEY, "ideal", PAPER, "snr_db", x).mean()) for x in LEVELS]
    assert quieter == sorted(quieter, reverse=True)
    louder = [float(user_mse(KEY, "strongest_user", PAPER, "budget_db", x).mean()) for x in LEVELS]
    assert louder == sorted(louder)
    assert len({*quieter, *louder}) == 8


@pytest.mark.parametrize("preset", ["paper", "mse=.1,.2,.3"])
def test_a_level_of_the_mse_is_that_mse(preset: str) -> None:
    found = user_mse(KEY, "ideal", get_preset(preset), "mse", 0.07)
    np.testing.assert_allclose(found, 0.07, rtol=1e-6)
    assert found.shape == (get_preset(preset).users,)


@pytest.mark.parametrize("axis", AXES)
def test_clean_has_no_level_and_no_error(axis: str) -> None:
    assert Axis(axis, (0.1, 0.2)).levels_of("clean") == [()]
    assert Axis(axis, (0.1, 0.2)).levels_of("ideal") == [(axis, 0.1), (axis, 0.2)]
    assert NO_AXIS.levels_of("ideal") == NO_AXIS.levels_of("clean") == [()]
    assert not np.any(user_mse(KEY, "clean", PAPER, "", None))


# The joint receiver's covariance


@pytest.mark.parametrize(("axis", "level"), [("snr_db", 7.0), ("budget_db", 3.0)])
def test_the_covariance_at_a_level_is_the_presets(axis: str, level: float) -> None:
    joint = replace(PAPER, order=None)
    found = np.asarray(error_covariance(KEY, "strongest_user", joint, axis, level))
    there = at(joint, axis, level)
    h = np.asarray(channel.draw_channel(there, KEY), complex)
    strongest = h[:, np.argmax(np.linalg.norm(h, axis=0))]
    power = 10 ** (there.attack_budget_db / 10)
    jammer = power * np.outer(strongest, strongest.conj()) / np.linalg.norm(strongest) ** 2
    noisy = np.eye(len(h)) + jammer
    expected = np.linalg.inv(np.eye(h.shape[1]) + h.conj().T @ np.linalg.solve(noisy, h))
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    mse = user_mse(KEY, "strongest_user", joint, axis, level)
    np.testing.assert_allclose(mse, np.diag(found).real, rtol=2e-3)


def test_without_a_level_the_covariance_is_that_of_the_preset() -> None:
    joint = replace(PAPER, order=None)
    own = error_covariance(KEY, "sum_rate", joint, "", None)
    there = error_covariance(KEY, "sum_rate", joint, "snr_db", joint.edge_snr_db)
    given = error_covariance(KEY, "sum_rate", joint, "mse", 0.2)
    np.testing.assert_array_equal(own, there)
    np.testing.assert_array_equal(own, given)


# One compile


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every trace of what turns a channel into MSEs."""
    seen: list[str] = []
    receive = channel.user_mse_from_channel

    def noting(*arguments: Any, **options: Any) -> Any:
        seen.append("trace")
        return receive(*arguments, **options)

    monkeypatch.setattr(module.channel, "user_mse_from_channel", noting)
    return seen


def test_levels_and_draws_are_data_of_one_program(traces: list[str]) -> None:
    preset = replace(PAPER, antennas=12)  # which no other test has compiled for
    for axis in ("snr_db", "budget_db"):
        for level in (0.0, 5.0, -3.5):
            for draw in range(2):
                user_mse(jax.random.fold_in(KEY, draw), "strongest_user", preset, axis, level)
    user_mse(KEY, "strongest_user", replace(preset, attack_budget_db=1.0), "budget_db", 2.0)
    assert len(traces) == 1


# What is refused


def test_an_axis_is_read_from_its_name_and_values() -> None:
    assert parse_axis("") == NO_AXIS
    assert parse_axis("mse=.01,0.5,") == Axis("mse", (0.01, 0.5))
    assert parse_axis("budget_db=10") == Axis("budget_db", (10.0,))
    assert parse_axis("snr_db=-1e1, 0") == Axis("snr_db", (-10.0, 0.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("snr=1", "unknown axis 'snr'"),
        ("snr_db", "the axis snr_db has no level; give some, as snr_db=1,2,3"),
        ("snr_db=", "has no level"),
        ("=1,2", "unknown axis ''"),
        ("1,2", "unknown axis '1,2'"),
        ("snr_db=1,two", "expected an axis as NAME=VALUE,VALUE with a name of snr_db, mse, budget"),
        ("snr_db=1,2,1.0", "names a level twice"),
        ("snr_db=nan", "snr_db"),
        ("budget_db=inf", "budget_db"),
        ("mse=1.5", "mse"),
        ("mse=-.1", "mse"),
        ("mse=nan", "mse"),
    ],
)
def test_an_axis_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_axis(text)


@pytest.mark.parametrize("preset", ["mse=.1,.2", "snr_db=10,12"])
def test_a_channels_axis_needs_a_channel(preset: str) -> None:
    direct = get_preset(preset)
    for name in ("snr_db", "budget_db"):
        with pytest.raises(InputError, match="choose the axis mse, or a channel preset"):
            Axis(name, (1.0,)).require_fitting(direct)
        with pytest.raises(InputError, match="choose the axis mse, or a channel preset"):
            user_mse(KEY, "ideal", direct, name, 1.0)
        Axis(name, (1.0,)).require_fitting(PAPER)
    Axis("mse", (0.1,)).require_fitting(direct)
    NO_AXIS.require_fitting(direct)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_axis_needs_a_scenario_that_depends_on_it(scenario: str) -> None:
    NO_AXIS.require_meaning(scenario)
    Axis("snr_db", (0.0,)).require_meaning(scenario)
    if scenario in ATTACKED:
        Axis("budget_db", (0.0,)).require_meaning(scenario)
        with pytest.raises(InputError, match=f"the scenario '{scenario}' attacks a channel"):
            Axis("mse", (0.1,)).require_meaning(scenario)
        return
    Axis("mse", (0.1,)).require_meaning(scenario)
    if scenario == "ideal":
        with pytest.raises(InputError, match="the scenario 'ideal' has no attacker"):
            Axis("budget_db", (0.0,)).require_meaning(scenario)
    else:
        Axis("budget_db", (0.0,)).require_meaning(scenario)
