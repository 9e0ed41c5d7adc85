"""Protections along the whole chain, in a sweep: against the chain written out by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import assert_trees_equal

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.channel import ONCE, Estimated, Link, Repeat, SumRate, Unaware, get_preset
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.defences import parse_protection, protection_name
from rmtllmf_jax.runs import random_inputs
from rmtllmf_jax.sweep import Engine, Grid, Settings, one_device, run_grid
from rmtllmf_jax.sweep.axis import Axis
from rmtllmf_jax.sweep.grid import Cell
from rmtllmf_jax.sweep.uplinks import Uplinks
from rmtllmf_jax.uplink import Adapter, Coded, Scaled, Shrink, SignFlip, Sparse

INPUTS = random_inputs(0)
TASKS = tuple(sorted(INPUTS.tasks))
SETTINGS = Settings(c0_db=-20.0, eval_batch_size=64, seed=3)
ENGINE = Engine(INPUTS, SETTINGS, one_device())
PRESET = get_preset("paper")


def cell(protection: Any, scenario: str = "sum_rate", draw: int = 1, **where: Any) -> Cell:
    if isinstance(protection, str):
        protection = parse_protection(protection)
    return Cell(TASKS, scenario, draw, 0, protection, **where)


def received(protection: Any, scenario: str = "sum_rate", **where: Any) -> Any:
    """What the base station has, as the engine merges it: vectors plus F z."""
    one = cell(protection, scenario, **where)
    stacked, sources = ENGINE.received(one)
    factor = jnp.asarray(ENGINE.uplinks.factor(one))
    return jax.tree.map(jnp.add, stacked, uplink.errors(sources, factor))


def keys(draw: int = 1) -> tuple[jax.Array, jax.Array]:
    """Of the channel and of what is sent in a draw of seed 0."""
    channel, noise = (jax.random.fold_in(jax.random.key(3), each) for each in (0, 1))
    noise = jax.random.fold_in(jax.random.fold_in(noise, 0), draw)
    return jax.random.fold_in(channel, draw), noise


def by_hand(link: Link, transport: Any = uplink.GAUSSIAN, estimators: tuple = ()) -> Any:
    channel_key, key = keys()
    mse = link.mse(channel_key)[: len(TASKS)]
    kappa = uplink.kappa_from_c0(INPUTS.vectors, SETTINGS.c0_db)
    found = transport.deliver(INPUTS.vectors, mse, kappa, key)
    for estimator in estimators:
        variance = transport.variance(INPUTS.vectors, mse, kappa)
        found = estimator(found, variance, transport.energy(INPUTS.vectors), mse)
    return found


@pytest.mark.parametrize(
    ("text", "link", "rest"),
    [
        ("unaware", Link(PRESET, SumRate(), Unaware()), ()),
        ("estimated(snapshots=20)", Link(PRESET, SumRate(), Estimated(20)), ()),
        ("repeat(times=3)", Link(PRESET, SumRate(), air=Repeat(3)), ()),
        ("sparse(share=0.2)", Link(PRESET, SumRate()), (Sparse(0.2),)),
        ("coded(gap_db=1)", Link(PRESET, SumRate()), (Coded(gap_db=1.0),)),
        ("shrink(per=user)", Link(PRESET, SumRate()), (uplink.GAUSSIAN, (Shrink(per="user"),))),
        (
            "repeat(times=5)+sparse(share=0.2)+shrink+unaware",
            Link(PRESET, SumRate(), Unaware(), Repeat(5)),
            (Sparse(0.2), (Shrink(),)),
        ),
    ],
)
def test_a_protection_is_the_chain_with_its_values_in_their_places(text, link, rest):
    expected = by_hand(link, *rest)
    found = received(text)
    for path, leaf in fusion.leaves_by_path(expected).items():
        other = fusion.leaves_by_path(found)[path]
        np.testing.assert_allclose(other, leaf, rtol=1e-4, atol=1e-6 * float(jnp.abs(leaf).max()))


def test_leaves_that_are_repeated_have_less_noise_and_cost_their_share():
    paths = list(fusion.leaves_by_path(INPUTS.base))
    patterns = (paths[0],)
    text = f"repeat(times=9, patterns=({paths[0]!r},))"
    plain, found = received("none"), received(text)
    mse = np.asarray(Link(PRESET, SumRate(), air=Repeat(9)).mse(keys()[0]))[: len(TASKS)]
    once = np.asarray(Link(PRESET, SumRate()).mse(keys()[0]))[: len(TASKS)]
    for path in paths:
        sent = np.asarray(fusion.leaves_by_path(INPUTS.vectors)[path])
        less = np.asarray(fusion.leaves_by_path(found)[path]) - sent
        full = np.asarray(fusion.leaves_by_path(plain)[path]) - sent
        factor = np.sqrt(mse / once) if path == paths[0] else np.ones(len(TASKS))
        shape = (-1, *[1] * (sent.ndim - 1))
        np.testing.assert_allclose(less, full * factor.reshape(shape), rtol=1e-3, atol=1e-5)
    sizes = {path: leaf.size for path, leaf in fusion.leaves_by_path(INPUTS.base).items()}
    share = sizes[paths[0]] / sum(sizes.values())
    uses = ENGINE.uplinks.columns(cell((Repeat(9, patterns=patterns),)))[TASKS[0]]["uses"]
    assert uses == pytest.approx(1 + 8 * share)


def test_uses_are_those_of_air_and_transport_and_nothing_without_a_channel():
    def uses(text: str, scenario: str = "sum_rate") -> list[float]:
        columns = ENGINE.uplinks.columns(cell(text, scenario))
        return [columns[task]["uses"] for task in TASKS]

    assert uses("none") == [1.0] * len(TASKS)
    assert uses("repeat(times=4)+r-mtllmf") == [4.0] * len(TASKS)
    assert uses("schedule(groups=2)+coded(uses=0.5)") == [1.0] * len(TASKS)
    assert uses("repeat(times=4)", "clean") == [0.0] * len(TASKS)
    mse = np.asarray(Link(PRESET, SumRate(), air=Repeat(5)).mse(keys()[0]))[: len(TASKS)]
    expected = 5 * np.asarray(Sparse(0.1).uses_of(jnp.asarray(mse), {}))
    np.testing.assert_allclose(uses("repeat(times=5)+sparse(share=0.1)"), expected, rtol=1e-5)


def test_factors_take_fewer_uses_which_repetition_may_spend():
    sizes = {path: leaf.shape for path, leaf in fusion.leaves_by_path(INPUTS.base).items()}
    matrices = [shape for shape in sizes.values() if len(shape) > 1]
    numbers = sum(math.prod(shape[:-1]) + shape[-1] for shape in matrices)
    share = numbers / sum(map(math.prod, sizes.values()))
    every = "adapter(rank=1, targets=('.*',))"
    for text, times in ((every, 1), (f"{every}+repeat(times=3)+r-mtllmf", 3)):
        found = ENGINE.uplinks.columns(cell(text))
        assert found[TASKS[0]]["uses"] == pytest.approx(times * share)
        assert math.isnan(found[TASKS[0]]["kappa"])
    mse = jnp.asarray(Link(PRESET, SumRate()).mse(keys()[0]))[: len(TASKS)]
    kappa = uplink.kappa_from_c0(INPUTS.vectors, ENGINE.settings.c0_db)
    expected = Adapter(1, (".*",)).deliver(INPUTS.vectors, mse, kappa, keys()[1])
    pairs = (fusion.leaves_by_path(tree) for tree in (received(every), expected))
    for one, other in zip(*map(dict.values, pairs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="repeat all of them, without patterns"):
        received(f"{every}+repeat(times=2, patterns=('.*kernel',))")


def test_clean_sends_nothing_and_so_only_repairs_act():
    assert_trees_equal(received("coded+shrink+repeat", "clean", draw=0), INPUTS.vectors)


def test_rates_are_planned_for_another_attack_and_lost_where_it_is_worse():
    vectors = fusion.leaves_by_path(received("coded(plan=none)"))
    assert all(not np.any(np.asarray(leaf)) for leaf in vectors.values())  # sum_rate is worse
    safe = fusion.leaves_by_path(received("coded(plan=sum_rate)", "ideal"))
    same = fusion.leaves_by_path(received("coded"))
    for path, leaf in safe.items():
        np.testing.assert_array_equal(leaf, same[path])


def test_a_poisoned_vector_is_sent_like_any_other():
    clean = received("none", "clean+sign_flip(user=1)", draw=0)
    assert_trees_equal(clean, SignFlip(1)(INPUTS.vectors))
    # With the noise of its own size: what it carries does not change the symbols' power.
    plain, louder = received("none"), received("none", "sum_rate+scaled(user=0, factor=10)")
    for path, leaf in fusion.leaves_by_path(louder).items():
        expected = np.array(fusion.leaves_by_path(plain)[path])
        expected[0] *= 10
        np.testing.assert_allclose(leaf, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    assert uplink.Scenario((None, Scaled(2))).poisons == (Scaled(2),)


@dataclass(frozen=True)
class Halved:
    """An estimator of one's own."""

    stage: ClassVar[str] = "estimator"

    def __call__(self, received: Any, variance: Any, energy: Any, mse: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf / 2, received)


def test_a_sweep_has_them_all_and_resumes(tmp_path):
    own = (Halved(), "freeze")
    protections = (*map(parse_protection, ("none", "repeat(times=3)+freeze", "coded")), own)
    grid = Grid(
        (TASKS, TASKS[:2]),
        ("clean", "ideal", "sum_rate+sign_flip(user=1)"),
        protections,
        2,
        1,
        rules=(fusion.TaskArithmetic(), fusion.Median()),
        axis=Axis("snr_db", (0.0, 10.0)),
    )
    tables = run_grid(ENGINE, grid, tmp_path)
    results = pd.DataFrame(tables["results"])
    assert set(results["protection"]) == {
        "none",
        "repeat(times=3)+freeze",
        "coded",
        "halved+freeze",
    }
    assert np.isfinite(results["score"]).all()
    again = pd.DataFrame(run_grid(ENGINE, grid, tmp_path)["results"])
    pd.testing.assert_frame_equal(results, again)
    # Whatever stands beside it, a cell has the same numbers.
    alone = replace(grid, protections=protections[2:3], combinations=(TASKS[:2],))
    some = pd.DataFrame(run_grid(ENGINE, alone, tmp_path / "alone")["results"])
    columns = ["scenario", "level", "draw", "rule", "task", "score", "uses", "mse"]
    both = results[(results["protection"] == "coded") & (results["size"] == 2)]
    pd.testing.assert_frame_equal(
        both[columns].reset_index(drop=True), some[columns].reset_index(drop=True)
    )


@pytest.mark.parametrize(
    ("settings", "protection", "said"),
    [
        ({"transport": "qam", "c0_db": -31.0}, "shrink", "errors of known variance"),
        ({"transport": "analogue", "c0_db": -31.0}, "hop", "symbols cannot be sent"),
        ({"error_model": "equicorrelated=0.5"}, "coded", "has its own"),
        ({"preset": "snr_db=10,12,15"}, "repeat", "the air repeat needs a channel"),
        ({"error_model": "noisy_reference"}, "shrink", "those of the error model noisy_reference"),
        ({}, "repeat(patterns=('.*',))+coded", "runs over all of them"),
        ({}, "schedule(groups=9)", "9 groups for 8 users"),
        ({}, "analogue+shrink", "sends symbols"),
    ],
)
def test_what_cannot_go_together_is_refused_before_any_work(settings, protection, said):
    grid = Grid((TASKS,), ("ideal", "sum_rate"), (parse_protection(protection),), 1, 1)
    with pytest.raises(InputError, match=said):
        grid.require_fitting(replace(SETTINGS, **settings), len(TASKS))


@pytest.mark.parametrize("protection", ["repeat", "unaware+freeze"])
def test_errors_that_are_given_are_not_those_of_a_channel(protection):
    grid = Grid(
        (TASKS,), ("ideal",), (parse_protection(protection),), 1, 1, axis=Axis("mse", (0.1,))
    )
    with pytest.raises(InputError, match="the axis mse gives the users' errors"):
        grid.require_fitting(SETTINGS, len(TASKS))


def test_no_leaf_is_repeated_where_patterns_match_none():
    with pytest.raises(InputError, match="no leaf matches"):
        received("repeat(times=2, patterns=('nothing',))")


def test_the_same_draw_whatever_protects():
    """A protection that changes nothing has the numbers of none."""
    uplinks = Uplinks(INPUTS, SETTINGS)
    one, other = cell("none"), cell((ONCE, uplink.GAUSSIAN))
    np.testing.assert_array_equal(uplinks.mse(one), uplinks.mse(other))
    assert_trees_equal(received("none"), received((ONCE, uplink.GAUSSIAN)))


@pytest.mark.parametrize(
    "text",
    [
        "repeat(times=4)+sparse(share=0.25)+shrink+r-mtllmf",
        "reload+realign(shots=5, average=0.5)",
        "estimated(snapshots=64)+freeze",
    ],
)
def test_what_a_protection_is_called_can_be_read(text):
    made = parse_protection(text)
    assert protection_name(made) == text
    assert parse_protection(protection_name(made)) == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unaware+lmmse", "unaware and lmmse are two for the stage receiver"),
        ("repeat+hop", "two for the stage air"),
        ("coded+qam", "two for the stage transport"),
        ("shrinc", "shrink"),
        ("sparse(share=2)", "share"),
        ("coded(gap_db=-1)", "gap_db"),
    ],
)
def test_protections_that_nobody_can_have_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse_protection(text)
