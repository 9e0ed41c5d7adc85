"""Transports: symbols against the link by hand, the surrogate and the quantiser; in a sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweep_fixtures import OTHER, PAIR, SETTINGS, TASKS, engine_like, merged, model, tables_of

from rmtllmf_jax import channel, fusion, sweep, uplink
from rmtllmf_jax.channel import ChannelPreset, Link, SumRate
from rmtllmf_jax.channel.link import transmit
from rmtllmf_jax.channel.quantise import dequantise, normalise, quantise
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.sweep.axis import Axis, link_channel, link_mse
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.uplink import Adapter, Analogue, Qam, get_transport, transports
from rmtllmf_jax.uplink.noise import leaf_number

THREE = ChannelPreset(users=3, antennas=4, edge_snr_db=10.0)
KEY = jax.random.key(5)
SIZES = {"long": 30_000, "short": 2_000}


def vectors(users: int = 3) -> dict[str, Any]:
    """Leaves of Gaussians, each user and leaf with an rms of its own."""
    random = np.random.default_rng(0)
    return {
        name: jnp.asarray(
            random.normal(size=(users, size)) * 10.0 ** -np.arange(1, users + 1)[:, None] * scale,
            jnp.float32,
        )
        for scale, (name, size) in enumerate(SIZES.items(), start=1)
    }


def power(leaf: Any) -> np.ndarray:
    return np.mean(np.square(np.asarray(leaf, float)), axis=1)


def by_hand(sent: Any, transport: Any, key: Any, link: Link, draw: Any, **options: Any) -> Any:
    """Every leaf through `channel.link.transmit`, in one block."""
    h = channel.draw_channel(link.preset, draw)
    attack = link.attack(h, link.preset.attack_budget, 1.0)

    def one(path: tuple, leaf: jax.Array) -> jax.Array:
        of_block = jax.random.fold_in(jax.random.fold_in(key, leaf_number(path)), 0)
        flat = leaf.reshape(len(leaf), -1)
        received = transmit(flat, h, attack, 1.0, of_block, receiver=link.receiver, **options)
        return received.parameters.reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(one, sent)


def assert_alike(found: Any, expected: Any) -> None:
    """Equal but for the few decisions that rounding turns."""
    close = jax.tree.map(lambda a, b: np.isclose(a, b, 1e-4, 1e-5).ravel(), found, expected)
    assert np.mean(np.concatenate(jax.tree.leaves(close))) > 0.997


@pytest.mark.parametrize(
    ("transport", "options"),
    [
        (Qam(), {"modulation": 64}),
        (Qam(16, "decisions", 2.0), {"modulation": 16, "cancellation": "decisions", "clip": 2.0}),
        (Analogue(), {"modulation": None}),
    ],
)
def test_leaves_go_through_the_link(transport: Any, options: dict[str, Any]) -> None:
    sent, link = vectors(), Link(THREE, SumRate())
    where = link_channel(KEY, link, "", None)
    expected = by_hand(sent, transport, KEY, link, KEY, **options)
    chex.assert_trees_all_close(transport(sent, *where, KEY), expected, rtol=1e-4, atol=1e-6)


def test_long_leaves_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with noise of its own; the rms is the leaf's."""
    monkeypatch.setattr(transports, "_BLOCK", 7_000)
    sent, link = {"w": vectors()["long"]}, Link(THREE)
    where = link_channel(KEY, link, "", None)
    error = np.asarray(Analogue()(sent, *where, KEY)["w"] - sent["w"])
    mse = np.asarray(link.mse(KEY)) * power(sent["w"])
    for start in range(0, 30_000, 7_000):
        found = power(error[:, start : start + 7_000])
        np.testing.assert_allclose(found, mse, rtol=0.2)  # the last block has 2,000
    assert np.abs(np.corrcoef(error[0, :7_000], error[0, 7_000:14_000])[0, 1]) < 0.05


@pytest.mark.parametrize("users", [3, 5])
@pytest.mark.parametrize("receiver", [channel.Sic(), channel.Lmmse()])
def test_the_surrogate_of_analogue_is_exact(users: int, receiver: channel.Receiver) -> None:
    """Errors of variance rms^2 mu, leaf by leaf, also with users who have nothing to send."""
    sent, link = vectors(), Link(replace(THREE, users=users), SumRate(), receiver)
    received = Analogue()(sent, *link_channel(KEY, link, "snr_db", 5.0), KEY)
    mse = np.asarray(link_mse(KEY, link, "snr_db", 5.0))[:3]
    for name, kappa in uplink.kappa_per_leaf(sent, c0_db=0.0).items():
        found = power(received[name] - sent[name])
        tolerance = 6 * np.sqrt(2 / SIZES[name])
        np.testing.assert_allclose(found, np.asarray(kappa) ** 2 * mse, rtol=tolerance)


def test_at_high_snr_the_quantiser_alone_is_left() -> None:
    sent = vectors()
    link = Link(replace(THREE, edge_snr_db=60.0, attack_budget_db=-30.0), SumRate())
    received = Qam(16)(sent, *link_channel(KEY, link, "", None), KEY)
    for name, leaf in sent.items():
        unit, rms = normalise(leaf)
        expected = dequantise(quantise(unit, 4), 4) * rms[:, None]
        np.testing.assert_allclose(received[name], expected, rtol=1e-5)


def test_a_leaf_keeps_its_noise_and_its_type() -> None:
    sent, where = vectors(), link_channel(KEY, Link(THREE), "", None)
    alone = Qam()({"short": sent["short"]}, *where, KEY)
    np.testing.assert_array_equal(alone["short"], Qam()(sent, *where, KEY)["short"])
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), sent)
    assert Qam()(narrow, *where, KEY)["short"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qan", "transport"),
        ("qam(size=32)", "unknown QAM order 32"),
        ("qam(cancellation=magic)", "cancellation"),
        ("qam(clip=0)", "clip must be finite and > 0"),
        ("analogue(size=4)", "size"),
    ],
)
def test_unknown_transports_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        get_transport(text)
    with pytest.raises(InputError, match=message):
        Settings(transport=text)


# In a sweep

NOISY = Cell(PAIR, "sum_rate", 1, 1, "none", axis="snr_db", level=6.0)


@pytest.fixture
def make(sweep_engine: Engine) -> Callable[..., Engine]:
    """Engines with other transports and the same compiled programs."""

    def made(transport: Any = "qam", **options: Any) -> Engine:
        settings = replace(SETTINGS, transport=transport, **options)
        return engine_like(sweep_engine, settings)

    return made


def test_a_merge_is_of_what_the_link_delivers(make: Callable[..., Engine]) -> None:
    """Against `transmit`, and numpy for what is done with it; on the channel of the draw."""
    preset = replace(THREE, edge_snr_db=6.0, attack_budget_db=15.0)
    engine, here = make(Qam(16), preset=preset), replace(NOISY, axis="", level=None)
    root = jax.random.key(SETTINGS.seed)
    noise = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(root, 1), 1), 1)
    draw = jax.random.fold_in(jax.random.fold_in(root, 0), 1)
    link = Link(preset, SumRate())
    received = by_hand(engine.inputs.vectors, Qam(16), noise, link, draw, modulation=16)
    for combination in (PAIR, OTHER):
        found = model(engine, replace(here, combination=combination), 0.3)
        expected = merged(engine.inputs, combination, 0.3, received)
        assert_alike(found, expected)
    ties = model(engine, replace(here, rule=fusion.Ties()), 0.3)
    two = jax.tree.map(lambda leaf: leaf[:2], received)
    expected = jax.tree.map(lambda b, t: b + 0.3 * t, engine.inputs.base, fusion.Ties()(two))
    assert_alike(ties, expected)


def test_one_transmission_serves_all_that_is_merged_from_it(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    engine, sent = make(), []
    draw = engine.uplinks.sources
    engine.uplinks.sources = lambda cell: sent.append(cell) or draw(cell)  # type: ignore
    rules = (fusion.TaskArithmetic(), fusion.Average())
    axis = Axis("snr_db", (0.0, 9.0))
    grid = Grid((PAIR, TASKS), ("clean", "ideal"), ("none", "freeze"), 2, 1, rules, axis)
    list(engine.run([Job(cell, 0.3) for cell in grid.cells()]))
    assert [(cell.scenario, cell.draw, cell.level) for cell in sent] == [
        ("clean", 0, None),
        *(("ideal", draw, level) for draw in (0, 1) for level in (0.0, 9.0)),
    ]
    tables = tables_of(engine, grid, tmp_path)
    results = tables["results"]
    assert results["kappa"].isna().all()
    channel_rows = results["scenario"] == "ideal"
    assert set(results.loc[channel_rows, "uses"]) == {1.0}
    assert set(results.loc[~channel_rows, "uses"]) == {0.0}
    clean = model(make("gaussian"), Cell(PAIR, "clean", 0, 0, "none"), 0.3)
    chex.assert_trees_all_equal(model(engine, Cell(PAIR, "clean", 0, 0, "none"), 0.3), clean)
    assert make(Analogue()).uplinks.columns(NOISY)["dtd"]["uses"] == 0.5


def test_a_transport_has_a_key_of_its_own() -> None:
    keys = [Settings(transport=each).key() for each in ("qam", "qam(size=16)", "analogue")]
    assert [key["transport"] for key in keys] == ["qam", "qam(size=16)", "analogue"]
    assert Settings(transport=Qam(16)).key() == keys[1]
    assert Settings(transport=uplink.Gaussian()).key() == Settings().key()


class Blind:
    def __call__(self, *_: Any) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "mse=.1,.1,.1"}, "qam sends symbols over a channel, and .* has none"),
        ({"error_model": "noisy_reference"}, "the error model describes the errors of the tran"),
        ({"kappa": 1.0}, "the kappa describes"),
        ({"c0_db": -20.0}, "the c0 describes"),
        ({"receiver": Blind()}, "needs the receiver's filters"),
    ],
)
def test_what_is_the_surrogates_alone_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(transport="qam", **options).channel(3)
    Settings(transport="gaussian", **options).channel(3)


@pytest.mark.parametrize("axis", ["mse", "c0_db"])
def test_axes_of_the_surrogate_are_refused(axis: str) -> None:
    levels = Axis(axis, (0.1,))
    levels.require_fitting(THREE)
    with pytest.raises(InputError, match=f"the axis {axis} sets errors that are given"):
        levels.require_fitting(THREE, Qam())


def test_an_objective_has_the_surrogate(sweep_engine: Engine) -> None:
    with pytest.raises(InputError, match="the transport qam cannot be differentiated"):
        sweep.objective_of(sweep_engine.inputs, replace(SETTINGS, transport="qam"), "ideal")


def test_a_transport_of_ones_own(make: Callable[..., Engine]) -> None:
    class Silence:
        """Nothing arrives."""

        uses = 2.0

        def __call__(self, stacked: Any, h_tilde: Any, noise: Any, equaliser: Any, key: Any) -> Any:
            return jax.tree.map(jnp.zeros_like, stacked)

    engine = make(Silence())
    assert described(Settings(transport=Silence()).transporting)
    assert engine.uplinks.columns(NOISY)["dtd"]["uses"] == 2.0
    base = engine.inputs.base
    chex.assert_trees_all_close(model(engine, NOISY, 0.3), base, rtol=1e-6, atol=1e-7)


def test_what_cannot_carry_the_vectors_is_refused_before_anything_is_computed(
    sweep_engine: Engine, tmp_path: Path
) -> None:
    grid = Grid((PAIR,), ("sum_rate",), ((Adapter(1, targets=("nothing",)),),), 1, 1)
    with pytest.raises(InputError, match=r"the target 'nothing' of adapter.* matches none of"):
        tables_of(sweep_engine, grid, tmp_path)
    assert list(tmp_path.iterdir()) == []
