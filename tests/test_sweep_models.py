"""The model of a cell: what is merged, what the noise is, and what a protection keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal
from sweep_fixtures import (
    OTHER,
    PAIR,
    RULES,
    SETTINGS,
    TASKS,
    embeddings,
    engine_like,
    merged,
    merged_by_rule,
    model,
    others,
    received,
    tables_of,
)

from rmtllmf_jax import uplink
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.defences.protection import PAPER
from rmtllmf_jax.fusion import Average, Dare, MergeMethod, TaskArithmetic, Ties, power_law
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.job import base_job, finetuned_job
from rmtllmf_jax.sweep.uplinks import Uplinks

NOISY = Cell(PAIR, "sum_rate", 0, 0, "none")


def direct(engine: Engine, *mse: float) -> Engine:
    """Return an engine whose users have these MSEs under the scenario `ideal`."""
    return engine_like(engine, replace(SETTINGS, preset=f"mse={','.join(map(str, mse))}"))


def error(engine: Engine, cell: Cell, scale: float = 0.5) -> np.ndarray:
    """Return what the noise added to a model."""
    noisy = model(engine, cell, scale)
    clean = model(engine, replace(cell, scenario="clean", axis="", level=None), scale)
    leaves = zip(jax.tree.leaves(noisy), jax.tree.leaves(clean), strict=True)
    return np.concatenate([np.ravel(a - b) for a, b in leaves]).astype(np.float64)


# References


def test_references_hold_no_vector_or_the_own_one(sweep_engine: Engine) -> None:
    inputs = sweep_engine.inputs
    (base,) = (sweep_engine.models([base_job(TASKS, "test")]),)
    assert_trees_equal(jax.tree.map(lambda leaf: leaf[0], base), inputs.base)
    own = jax.tree.map(lambda leaf: leaf[0], sweep_engine.models([finetuned_job("mnist", "test")]))
    assert_trees_equal(own, inputs.finetuned(1))


def test_control_holds_no_task_vector(sweep_engine: Engine) -> None:
    """Whatever scale, channel and level its cell says, it is the base model realigned."""
    silent = replace(
        sweep_engine.inputs, vectors=jax.tree.map(jnp.zeros_like, sweep_engine.inputs.vectors)
    )
    cell = Cell(PAIR, "clean", 0, 1, "control")
    alone = model(
        engine_like(sweep_engine, replace(SETTINGS, kappa=1.0), silent),
        replace(cell, protection="r-mtllmf"),
        0.0,
    )
    assert_trees_equal(model(sweep_engine, cell, 0.7), alone)
    assert_trees_equal(model(sweep_engine, replace(cell, scenario="sum_rate", draw=1), 0.7), alone)


# Protections


@pytest.mark.parametrize("protection", PAPER)
def test_what_a_protection_keeps_of_the_base(sweep_engine: Engine, protection: str) -> None:
    scenario = "clean" if protection == "control" else "sum_rate"
    params = model(sweep_engine, Cell(PAIR, scenario, 1, 1, protection), 0.3)
    base = sweep_engine.inputs.base
    kept = protection in ("freeze", "r-mtllmf", "control")
    for path, leaf in embeddings(params).items():
        assert np.array_equal(leaf, embeddings(base)[path]) == kept, path
    assert len(embeddings(params)) == 4
    for path, leaf in others(params).items():
        assert not np.array_equal(leaf, others(base)[path]), path


def test_protections_start_from_the_same_noisy_merge(sweep_engine: Engine) -> None:
    none, freeze, realigned, both = (
        others(model(sweep_engine, Cell(TASKS, "sum_rate", 0, 0, name), 0.3))
        for name in ("none", "freeze", "realign", "r-mtllmf")
    )
    for path, leaf in none.items():
        np.testing.assert_array_equal(freeze[path], leaf)
        # AdamW moves a parameter by the learning rate a step at most, far less than the noise.
        for moved in (realigned[path], both[path]):
            assert 0 < np.abs(moved - leaf).max() < 5 * 3e-3 * 1.5, path


# Noise


def test_a_draw_has_one_gaussian_a_user_that_all_cells_share(sweep_engine: Engine) -> None:
    """Combinations, scenarios, levels, rules and protections differ in what they make of it."""
    cells = [
        NOISY,
        replace(NOISY, combination=TASKS),
        replace(NOISY, combination=OTHER, scenario="ideal"),
        replace(NOISY, scenario="ideal", axis="mse", level=0.3),
        replace(NOISY, axis="snr_db", level=9.0),
        replace(NOISY, rule=Ties()),
    ]
    uplinks, inputs = sweep_engine.uplinks, sweep_engine.inputs
    for where in ({}, {"draw": 1}, {"seed": 1}):
        sources = uplinks.sources(replace(NOISY, **where))
        for cell in (replace(cell, **where) for cell in cells):
            factor = uplinks.factor(cell)
            sent = jax.tree.map(
                lambda tau, z, f=factor: tau + np.einsum("qs,s...->q...", f, z),
                inputs.vectors,
                sources,
            )
            chex.assert_trees_all_close(sent, received(sweep_engine, cell), rtol=1e-4, atol=1e-6)
            if cell.rule == TaskArithmetic():
                expected = merged(inputs, cell.combination, 0.3, sent)
                found = model(sweep_engine, cell, 0.3)
                chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
                frozen = model(sweep_engine, replace(cell, protection="freeze"), 0.3)
                chex.assert_trees_all_close(others(frozen), others(expected), rtol=1e-4, atol=1e-5)


def test_the_gaussians_are_those_of_the_uplink(sweep_engine: Engine) -> None:
    """Drawn with a key of seed and draw alone, not of the combination."""
    root = jax.random.fold_in(jax.random.key(SETTINGS.seed), 1)
    for seed, draw in ((0, 0), (2, 5)):
        key = jax.random.fold_in(jax.random.fold_in(root, seed), draw)
        expected = uplink.draw_sources(sweep_engine.inputs.vectors, key)
        cell = replace(NOISY, seed=seed, draw=draw)
        assert_trees_equal(sweep_engine.uplinks.sources(cell), expected)
        assert_trees_equal(sweep_engine.sources(cell), expected)


def test_the_mse_scales_the_noise_and_changes_nothing_else(sweep_engine: Engine) -> None:
    ideal = replace(NOISY, scenario="ideal")
    once = error(direct(sweep_engine, 0.01, 0.02, 0.5), ideal)
    close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4 * np.abs(once).max()}
    np.testing.assert_allclose(
        error(direct(sweep_engine, 0.04, 0.08, 0.5), ideal), 2 * once, **close
    )
    louder = error(direct(sweep_engine, 0.01, 0.02, 0.9), ideal)
    np.testing.assert_array_equal(louder, once)  # svhn is not merged
    for changed in (replace(ideal, draw=1), replace(ideal, seed=1)):
        other = error(direct(sweep_engine, 0.01, 0.02, 0.5), changed)
        assert abs(np.corrcoef(once, other)[0, 1]) < 0.1


def test_levels_of_the_mse_scale_the_noise(sweep_engine: Engine) -> None:
    at = replace(NOISY, scenario="ideal", axis="mse")
    once = error(sweep_engine, replace(at, level=0.01))
    twice = error(sweep_engine, replace(at, level=0.04))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-3, atol=1e-4 * np.abs(once).max())
    assert not np.any(error(sweep_engine, replace(at, level=0.0)))


def test_noise_has_the_standard_deviation_of_mse_and_kappa(sweep_engine: Engine) -> None:
    engine = direct(sweep_engine, 0.04, 0.09, 1.0)
    kappa = np.asarray(engine.uplinks.kappa)
    expected = 0.5 * np.hypot(kappa[0] * 0.2, kappa[1] * 0.3)
    found = error(engine, replace(NOISY, scenario="ideal"))
    assert np.std(found) == pytest.approx(expected, rel=0.05)


def test_a_kappa_of_zero_is_a_perfect_uplink(sweep_engine: Engine) -> None:
    perfect = engine_like(sweep_engine, replace(SETTINGS, kappa=0.0))
    clean = model(sweep_engine, replace(NOISY, scenario="clean"), 0.3)
    assert_trees_equal(model(perfect, NOISY, 0.3), clean)


def test_mse_of_a_draw_does_not_depend_on_what_else_is_asked(sweep_engine: Engine) -> None:
    cells = [replace(NOISY, draw=draw) for draw in (3, 1, 0, 2)]
    many = {cell: sweep_engine.uplinks.mse(cell) for cell in cells}
    for cell in cells[::-1]:
        fresh = Uplinks(sweep_engine.inputs, SETTINGS)
        np.testing.assert_array_equal(fresh.mse(cell), many[cell])


# Merge rules


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, marks=pytest.mark.slow if rule.random else (), id=described(rule))
        for rule in RULES
    ],
)
@pytest.mark.parametrize("scenario", ["clean", "sum_rate"])
def test_a_rule_merges_the_users_of_the_combination_alone(
    sweep_engine: Engine, rule: MergeMethod, scenario: str
) -> None:
    """A weight of zero is as if the user were left out."""
    combinations = [PAIR, TASKS]
    if not rule.random:  # whose masks go by the user's number
        combinations.append(OTHER)
    for combination in combinations:
        cell = Cell(combination, scenario, 1, 1, "none", rule)
        found, expected = model(sweep_engine, cell, 0.6), merged_by_rule(sweep_engine, cell, 0.6)
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=2e-5)
        frozen = model(sweep_engine, replace(cell, protection="freeze"), 0.6)
        chex.assert_trees_all_close(others(frozen), others(expected), rtol=1e-4, atol=2e-5)
        assert_trees_equal(embeddings(frozen), embeddings(sweep_engine.inputs.base))


@dataclass(frozen=True)
class Median:
    """A rule of one's own, which nobody has registered."""

    power: float = 1.0

    def __call__(self, stacked: Any, key: Any = None, *, weights: Any = None) -> Any:
        def middle(leaf: Any) -> Any:
            there = jnp.where(weights.reshape(-1, *[1] * (leaf.ndim - 1)) > 0, leaf, jnp.nan)
            return self.power * jnp.nanmedian(there, axis=0)

        return jax.tree.map(middle, stacked)


def test_a_rule_of_ones_own_is_swept(sweep_engine: Engine, tmp_path: Path) -> None:
    grid = Grid((PAIR,), ("clean",), ("none",), 1, 1, (Median(2.0), Average()))
    table = tables_of(sweep_engine, grid, tmp_path)["results"]
    scales = {"median(power=2.0)": power_law(2), "average": 1.0}
    assert table.groupby("rule")["scale"].first().to_dict() == scales
    twice, once = (
        model(sweep_engine, Cell(PAIR, "clean", 0, 0, "none", rule), scale)
        for rule, scale in ((Median(2.0), 0.5), (Average(), 1.0))  # of two the median is the mean
    )
    chex.assert_trees_all_close(twice, once, rtol=1e-5, atol=1e-6)


def test_weights_of_a_rule_are_the_users(sweep_engine: Engine) -> None:
    for rule in (TaskArithmetic, Ties):
        pair, alone = (
            model(sweep_engine, Cell(tasks, "ideal", 0, 0, "none", rule(weights=weights)), 0.5)
            for tasks, weights in ((TASKS, (0.0, 1.0, 0.0)), (("mnist",), ()))
        )
        chex.assert_trees_all_close(pair, alone, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="weights: 2 given for 3 task vectors"):
        model(sweep_engine, Cell(PAIR, "clean", 0, 0, "none", Ties(weights=(1.0, 2.0))), 0.5)


def test_a_random_rule_has_another_mask_in_another_seed(sweep_engine: Engine) -> None:
    cell = Cell(PAIR, "clean", 0, 0, "none", Dare())
    one, two = (others(model(sweep_engine, replace(cell, seed=seed), 0.5)) for seed in (0, 1))
    assert not any(np.array_equal(one[path], two[path]) for path in one if "kernel" in path)
    assert_trees_equal(others(model(sweep_engine, cell, 0.5)), one)


def test_cells_of_a_random_rule_are_not_thinned() -> None:
    """The grid keeps the clean seeds of a rule whose masks differ from seed to seed."""
    grid = Grid((PAIR,), ("clean",), ("none",), 1, 2, (Dare(), Ties()))
    assert [(cell.rule, cell.seed) for cell in grid.cells()] == [
        *((Dare(), 0), (Ties(), 0), (Dare(), 1))
    ]
