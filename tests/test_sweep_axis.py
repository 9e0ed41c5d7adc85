"""Levels of an axis: each is the preset with another number, in one compiled program."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from rmtllmf_jax import channel
from rmtllmf_jax.channel import ATTACKS, Link, Lmmse, get_preset
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.sweep.axis import AXES, NO_AXIS, Axis, link_mse, link_sent, parse_axis
from rmtllmf_jax.uplink import Scenario

PAPER = get_preset("paper")
KEY = jax.random.key(3)
LEVELS = (-10.0, 0.0, 10.0, 20.0)
ATTACKED = [name for name in ATTACKS if name != "none"]


def at(preset: Any, axis: str, level: float) -> Any:
    """Return the preset whose own number is the level."""
    names = {"snr_db": "edge_snr_db", "budget_db": "attack_budget_db"}
    return replace(preset, **{names[axis]: level})


def link(scenario: str, preset: Any = PAPER, receiver: channel.Receiver = channel.SIC) -> Link:
    attack = Scenario(scenario).attack
    assert attack is not None
    return Link(preset, attack, receiver)


# The MSE at a level


@pytest.mark.parametrize(
    ("scenario", "receiver"),
    [
        ("ideal", channel.SIC),
        ("strongest_user", channel.SIC),
        pytest.param("strongest_user", Lmmse(), marks=pytest.mark.slow),
    ],
)
def test_a_level_of_snr_is_the_preset_with_that_snr(
    scenario: str, receiver: channel.Receiver
) -> None:
    for level in (-5.0, 17.5):
        found = link_mse(KEY, link(scenario, PAPER, receiver), "snr_db", level)
        expected = link(scenario, at(PAPER, "snr_db", level), receiver).mse(KEY)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_level_of_the_budget_is_the_preset_with_that_budget() -> None:
    for level in (-5.0, 17.5):
        found = link_mse(KEY, link("strongest_user"), "budget_db", level)
        expected = link("strongest_user", at(PAPER, "budget_db", level)).mse(KEY)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["snr_db", "budget_db"])
@pytest.mark.parametrize("scenario", ATTACKED)
@pytest.mark.parametrize("preset", ["paper", "umi_nlos"])
def test_every_attack_at_every_level(axis: str, scenario: str, preset: str) -> None:
    chosen = get_preset(preset)
    for level in (-5.0, 5.0, 20.0):
        found = link_mse(KEY, link(scenario, chosen), axis, level)
        expected = link(scenario, at(chosen, axis, level)).mse(KEY)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("axis", "level"),
    [("snr_db", PAPER.edge_snr_db), ("budget_db", PAPER.attack_budget_db)],
)
def test_the_presets_own_level_changes_nothing(axis: str, level: float) -> None:
    own = link_mse(KEY, link("strongest_user"), "", None)
    np.testing.assert_allclose(link_mse(KEY, link("strongest_user"), axis, level), own, rtol=1e-5)
    np.testing.assert_allclose(own, link("strongest_user").mse(KEY), rtol=1e-5)


def test_more_power_is_less_error_and_more_attack_is_more() -> None:
    quieter = [float(link_mse(KEY, link("ideal"), "snr_db", x).mean()) for x in LEVELS]
    assert quieter == sorted(quieter, reverse=True)
    louder = [float(link_mse(KEY, link("strongest_user"), "budget_db", x).mean()) for x in LEVELS]
    assert louder == sorted(louder)
    assert len({*quieter, *louder}) == 8


@pytest.mark.parametrize("preset", ["paper", "mse=.1,.2,.3"])
def test_a_level_of_the_mse_is_that_mse(preset: str) -> None:
    found = link_mse(KEY, link("ideal", get_preset(preset)), "mse", 0.07)
    np.testing.assert_allclose(found, 0.07, rtol=1e-6)
    assert found.shape == (get_preset(preset).users,)


@pytest.mark.parametrize("axis", AXES)
def test_clean_has_no_level_and_no_error(axis: str) -> None:
    levels = (1.0, 2.0) if axis in ("users", "antennas") else (0.1, 0.2)
    assert Axis(axis, levels).levels_of("clean") == [()]
    assert Axis(axis, levels).levels_of("ideal") == [(axis, level) for level in levels]
    assert NO_AXIS.levels_of("ideal") == NO_AXIS.levels_of("clean") == [()]


@pytest.mark.parametrize(
    ("axis", "level", "changes"),
    [
        ("users", 3.0, {"users": 3}),
        ("antennas", 20.0, {"antennas": 20}),
        ("k_factor_db", 6.0, {"fading": channel.Rician(6.0)}),
        ("correlation", 0.7, {"fading": channel.Kronecker(0.7)}),
        ("c0_db", -20.0, {}),
    ],
)
def test_a_level_of_the_cell_is_another_preset(
    axis: str, level: float, changes: dict[str, Any]
) -> None:
    Axis(axis, (level,)).require_fitting(PAPER)
    found = link_mse(KEY, link("strongest_user"), axis, level)
    expected = link("strongest_user", replace(PAPER, **changes)).mse(KEY)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# The joint receiver's covariance


@pytest.mark.parametrize(("axis", "level"), [("snr_db", 7.0), ("budget_db", 3.0)])
def test_the_covariance_at_a_level_is_the_presets(axis: str, level: float) -> None:
    joint = link("strongest_user", PAPER, Lmmse())
    found = np.asarray(link_sent(KEY, joint, axis, level).errors)
    there = at(PAPER, axis, level)
    h = np.asarray(channel.draw_channel(there, KEY), complex)
    strongest = h[:, np.argmax(np.linalg.norm(h, axis=0))]
    power = 10 ** (there.attack_budget_db / 10)
    jammer = power * np.outer(strongest, strongest.conj()) / np.linalg.norm(strongest) ** 2
    noisy = np.eye(len(h)) + jammer
    expected = np.linalg.inv(np.eye(h.shape[1]) + h.conj().T @ np.linalg.solve(noisy, h))
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    mse = link_mse(KEY, joint, axis, level)
    np.testing.assert_allclose(mse, np.diag(found).real, rtol=2e-3)


def test_without_a_level_the_covariance_is_that_of_the_preset() -> None:
    joint = link("sum_rate", PAPER, Lmmse())
    own = link_sent(KEY, joint, "", None).errors
    there = link_sent(KEY, joint, "snr_db", PAPER.edge_snr_db).errors
    given = link_sent(KEY, joint, "mse", 0.2).errors
    np.testing.assert_allclose(own, there, atol=1e-5)
    np.testing.assert_array_equal(own, given)


# One compile


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes every trace of what turns a channel into MSEs."""
    seen: list[str] = []
    receive = Link.over

    def noting(*arguments: Any, **options: Any) -> Any:
        seen.append("trace")
        return receive(*arguments, **options)

    monkeypatch.setattr(Link, "over", noting)
    return seen


def test_levels_and_draws_are_data_of_one_program(traces: list[str]) -> None:
    preset = replace(PAPER, antennas=12)  # which no other test has compiled for
    for axis in ("snr_db", "budget_db"):
        for level in (0.0, 5.0, -3.5):
            for draw in range(2):
                link_mse(jax.random.fold_in(KEY, draw), link("strongest_user", preset), axis, level)
    louder = replace(preset, attack_budget_db=1.0)
    link_mse(KEY, link("strongest_user", louder), "budget_db", 2.0)
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
        ("users=2,2.5", "users must be whole numbers >= 1, got 2.5"),
        ("correlation=1", "correlation must be finite and >= 0"),
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
        Axis(name, (1.0,)).require_fitting(PAPER)
    Axis("mse", (0.1,)).require_fitting(direct)
    NO_AXIS.require_fitting(direct)


@pytest.mark.parametrize("scenario", ["clean", "ideal", *ATTACKED])
def test_an_axis_needs_a_scenario_that_depends_on_it(scenario: str) -> None:
    NO_AXIS.require_meaning(scenario)
    Axis("snr_db", (0.0,)).require_meaning(scenario)
    if scenario in ATTACKED:
        Axis("budget_db", (0.0,)).require_meaning(scenario)
        with pytest.raises(
            InputError, match=f"the scenario '{Scenario(scenario)}' attacks a channel"
        ):
            Axis("mse", (0.1,)).require_meaning(scenario)
        return
    Axis("mse", (0.1,)).require_meaning(scenario)
    if scenario == "ideal":
        with pytest.raises(InputError, match="the scenario 'ideal' has no attacker"):
            Axis("budget_db", (0.0,)).require_meaning(scenario)
    else:
        Axis("budget_db", (0.0,)).require_meaning(scenario)
