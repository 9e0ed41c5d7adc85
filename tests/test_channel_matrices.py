"""Channels of a user's own as a preset: in the chain, a sweep, the objective and a command."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_fixtures import parameters_of, slopes, tiny_objective

from rmtllmf_jax import channel
from rmtllmf_jax.channel import Link, Matrices, SumRate, get_preset
from rmtllmf_jax.cli.main import main
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.gradients import user_mse, value_and_gradient
from rmtllmf_jax.sweep.axis import Axis, link_mse
from rmtllmf_jax.sweep.settings import Settings

KEY = jax.random.key(4)
RNG = np.random.default_rng(0)
BATCH = 3 * (RNG.normal(size=(5, 6, 4)) + 1j * RNG.normal(size=(5, 6, 4)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "h-1.npy", BATCH)
    return tmp_path / "h-1.npy"


@pytest.mark.parametrize("attack", [channel.NO_ATTACK, SumRate()])
def test_the_mse_is_that_of_the_matrix(attack: channel.Attack) -> None:
    found = Link(Matrices(BATCH[0], 7.0), attack).mse(KEY)
    expected = channel.user_mse(jnp.asarray(BATCH[0]), attack, 10**0.7)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_keys_pick_all_matrices_and_always_the_same() -> None:
    preset = Matrices(BATCH)
    drawn = np.asarray(channel.draw_channels(preset, KEY, 60))
    numbers = [int(np.argmin(np.abs(BATCH - h).sum(axis=(1, 2)))) for h in drawn]
    np.testing.assert_allclose(drawn, BATCH[numbers], rtol=1e-6)
    assert set(numbers) == set(range(5))
    np.testing.assert_array_equal(drawn, channel.draw_channels(preset, KEY, 60))


def test_presets_are_equal_where_their_content_is(path: Path) -> None:
    preset, real = Matrices(BATCH), Matrices(BATCH.real)
    assert preset == Matrices(str(path)) == Matrices(path) == get_preset(f"matrices({path})")
    assert hash(preset) == hash(Matrices(path))
    assert described(preset) == described(Matrices(path))
    others = [real, Matrices(BATCH, 3.0), Matrices(BATCH[:4]), Matrices(BATCH.reshape(5, 4, 6))]
    assert len({preset, *others}) == len({described(each) for each in (preset, *others)}) == 5
    assert real == Matrices(BATCH.real.astype(complex))
    assert Matrices(BATCH[0]) == Matrices(BATCH[:1])
    with pytest.raises(ValueError, match="read-only"):
        preset.matrices[0, 0, 0] = 1
    assert len(described(Matrices(BATCH, 3.0))) < 80


@pytest.mark.parametrize(
    ("h", "says"),
    [
        (np.ones(3), "(matrices, antennas, users), got shape (3,)"),
        (np.ones((0, 2)), "got shape (0, 2)"),
        (np.ones((2, 2, 2, 2)), "got shape (2, 2, 2, 2)"),
        ([[1.0, np.nan]], "the matrices must be finite, got (nan+0j)"),
        ([["one"]], "must be numbers, got list"),
        ("none.npy", "the channels none.npy cannot be read"),
    ],
)
def test_what_is_no_channel_is_refused(h: Any, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        Matrices(h)


def test_a_sweep_has_them_and_a_key_of_their_content(path: Path) -> None:
    text = f"matrices({path}, attack_budget_db=3)"
    settings = Settings(preset=text)
    assert settings.channel(4) == Matrices(BATCH, 3.0)
    before = settings.key()
    assert before["preset"] == described(Matrices(BATCH, 3.0))
    np.save(path, 2 * BATCH)
    assert settings.key() != before
    with pytest.raises(InputError, match="5 tasks need as many users"):
        settings.channel(5)


def test_the_budget_is_an_axis_and_what_is_drawn_is_none() -> None:
    preset = Matrices(BATCH)
    Axis("budget_db", (2.0,)).require_fitting(preset)
    found = link_mse(KEY, Link(preset, SumRate()), "budget_db", 2.0)
    expected = Link(replace(preset, attack_budget_db=2.0), SumRate()).mse(KEY)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for name in ("snr_db", "users", "antennas", "k_factor_db", "correlation"):
        with pytest.raises(InputError, match=f"the axis {name} changes how channels are drawn"):
            Axis(name, (0.0 if name == "correlation" else 1.0,)).require_fitting(preset)


def test_their_mse_has_a_derivative_in_powers_and_budget() -> None:
    with jax.enable_x64(True):
        link, given = Link(Matrices(BATCH), SumRate()), parameters_of("powers", "budget")
        given = jax.tree.map(lambda x: x.astype(float), given)

        def mean(parameters: Any, key: Any) -> Any:
            return jnp.mean(user_mse(parameters, link, key, given))

        for gradient, difference in slopes(mean, given, KEY).values():
            np.testing.assert_allclose(gradient, difference, rtol=1e-6)
            assert abs(gradient) > 1e-6


@pytest.mark.parametrize("name", ["distances", "positions", "path_loss_exponent"])
def test_an_objective_refuses_places(name: str) -> None:
    objective = tiny_objective("sum_rate", preset=Matrices(BATCH))
    with pytest.raises(InputError, match=f"are given, without {name}"):
        value_and_gradient(objective, parameters_of(name), KEY)


def test_the_command_takes_a_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["channel", "--preset", f"matrices({path})", "--draws", "9", "--attack", "none", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    link, keys = Link(Matrices(BATCH)), channel.draw_keys(jax.random.key(0), 9)
    assert row["mse_mean"] == pytest.approx(float(jax.vmap(link.mse)(keys).mean()), rel=1e-4)
