"""The tables of a grid on the tiny model: every number against an independent computation."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sweep_fixtures import (
    CELL,
    GRID,
    RECIPE,
    RULED,
    SETTINGS,
    TASKS,
    Tables,
    accuracy,
    merged,
    merged_by_rule,
    received,
)

from rmtllmf_jax import fusion
from rmtllmf_jax.channel import Link, get_preset
from rmtllmf_jax.common.values import described
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.samples import shot_pool
from rmtllmf_jax.training.batches import balanced_batches
from rmtllmf_jax.training.realign import realign
from rmtllmf_jax.uplink import Scenario

COLUMNS = [
    *("combination", "size", "scenario", "axis", "level", "draw", "seed", "protection", "rule"),
    *("method", "task", "scale", "kappa", "mse", "mse_mean", "uses", "error_model"),
    *("metric", "score", "base_score", "finetuned_score", "normalised"),
]
COSINES = ["scenario", "axis", "level", "draw", "seed", "protection", "task_a", "task_b"]


@pytest.fixture(scope="session")
def results(sweep_tables: Tables) -> pd.DataFrame:
    return sweep_tables["results"]


def rows_of(results: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    level = np.nan if cell.level is None else cell.level
    same = results["combination"] == "+".join(cell.combination)
    for name in ("scenario", "axis", "draw", "seed", "protection", "rule"):
        same &= results[name] == (described(cell.rule) if name == "rule" else getattr(cell, name))
    return results[same & ((results["level"] == level) | np.isnan([level] * len(results)))]


# The results table


@pytest.mark.parametrize("grid", [GRID, RULED], ids=["plain", "rules and levels"])
def test_one_row_a_cell_and_task_in_the_order_of_the_grid(
    sweep_tables: Tables, ruled_tables: Tables, grid: Grid
) -> None:
    results = (sweep_tables if grid is GRID else ruled_tables)["results"]
    expected = [
        (
            *("+".join(c.combination), c.scenario, c.axis, -1.0 if c.level is None else c.level),
            *(c.draw, c.seed, c.protection, described(c.rule), task),
        )
        for c in grid.cells()
        for task in c.combination
    ]
    seen = results[[*CELL, "task"]].fillna({"level": -1.0})
    assert list(seen.itertuples(index=False, name=None)) == expected
    assert len(set(expected)) == len(expected)
    assert list(results.columns) == COLUMNS
    assert set(results["error_model"]) == {"independent"}
    assert (results["size"] == results["combination"].str.count(r"\+") + 1).all()


def test_references_are_the_base_and_the_own_model(
    results: pd.DataFrame, ruled_tables: Tables, sweep_inputs: SweepInputs
) -> None:
    inputs = sweep_inputs
    for user, task in enumerate(TASKS):
        own = jax.tree.map(lambda base, tau, q=user: base + tau[q], inputs.base, inputs.vectors)
        for table in (results, ruled_tables["results"]):
            rows = table[table["task"] == task]
            assert (rows["base_score"] == accuracy(inputs, inputs.base, task)).all()
            assert (rows["finetuned_score"] == accuracy(inputs, own, task)).all()
    quotient = results["score"] / results["finetuned_score"]
    assert (results["normalised"] == quotient).all()
    assert results["score"].nunique() > 10  # else nothing above means anything


def test_clean_merge_is_base_plus_scaled_sum(
    results: pd.DataFrame, sweep_inputs: SweepInputs
) -> None:
    rows = results[(results["scenario"] == "clean") & (results["protection"] == "none")]
    assert len(rows) == 7
    for row in rows.itertuples():
        tasks = tuple(row.combination.split("+"))
        assert row.scale == pytest.approx(1.13 * len(tasks) ** -0.655)
        model = merged(sweep_inputs, tasks, row.scale)
        assert row.score == accuracy(sweep_inputs, model, row.task)
        assert row.mse == row.mse_mean == 0


def test_a_noisy_merge_is_that_of_the_transmitted_vectors(
    results: pd.DataFrame, sweep_engine: Engine
) -> None:
    """The noise of a seed and draw is one for all combinations, and that of `transmit`."""
    seen = 0
    for cell in GRID.cells():
        if cell.scenario == "clean" or cell.protection != "none":
            continue
        rows = rows_of(results, cell)
        sent = received(sweep_engine, cell)
        model = merged(sweep_engine.inputs, cell.combination, rows["scale"].iloc[0], sent)
        for row in rows.itertuples():
            assert row.score == accuracy(sweep_engine.inputs, model, row.task)
            seen += 1
    assert seen == 2 * 2 * 2 * 7


def test_a_merge_rule_at_a_level_is_that_of_the_transmitted_vectors(
    ruled_tables: Tables, sweep_engine: Engine
) -> None:
    for cell in RULED.cells():
        if cell.protection != "none":
            continue
        rows = rows_of(ruled_tables["results"], cell)
        assert len(rows) == len(cell.combination)
        model = merged_by_rule(sweep_engine, cell, rows["scale"].iloc[0])
        for row in rows.itertuples():
            assert row.score == accuracy(sweep_engine.inputs, model, row.task)
    by_rule = ruled_tables["results"].groupby("rule")["score"].mean()
    assert by_rule.nunique() == len(RULED.rules)


def test_mse_is_that_of_the_draw_and_user(results: pd.DataFrame) -> None:
    root = jax.random.fold_in(jax.random.key(SETTINGS.seed), 0)
    for scenario in ("ideal", "sum_rate"):
        for draw in range(2):
            key = jax.random.fold_in(root, draw)
            expected = np.asarray(Link(get_preset("paper"), Scenario(scenario).attack).mse(key))
            cell = results[(results["scenario"] == scenario) & (results["draw"] == draw)]
            for user, task in enumerate(TASKS):
                rows = cell[cell["task"] == task]
                np.testing.assert_allclose(rows["mse"], expected[user], rtol=1e-5)
    means = results.groupby(CELL, dropna=False)["mse"].transform("mean")
    np.testing.assert_allclose(results["mse_mean"], means, rtol=1e-6)
    assert results["mse"].nunique() == 1 + 2 * 2 * 3


def test_a_higher_level_of_snr_has_a_lower_mse(ruled_tables: Tables) -> None:
    ideal = ruled_tables["results"].query("scenario == 'ideal'")
    by_level = ideal.groupby(["task", "level"])["mse"].unique().unstack()
    assert list(by_level.columns) == [0.0, 12.0]
    for low, high in zip(by_level[0.0], by_level[12.0], strict=True):
        assert len(low) == len(high) == 1
        assert 0 < high[0] < low[0] < 1


def test_kappa_is_that_of_the_user(results: pd.DataFrame, sweep_inputs: SweepInputs) -> None:
    for user, task in enumerate(TASKS):
        flat = [np.ravel(leaf[user]) for leaf in jax.tree.leaves(sweep_inputs.vectors)]
        rms = np.sqrt(np.mean(np.square(np.concatenate(flat))))
        kappa = results.loc[results["task"] == task, "kappa"]
        np.testing.assert_allclose(kappa, rms * 10 ** (31 / 20), rtol=1e-5)


def test_control_is_the_base_realigned(results: pd.DataFrame, sweep_inputs: SweepInputs) -> None:
    inputs = sweep_inputs
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, _: "embeddings" in fusion.leaf_path(path), inputs.base
    )
    trainable = jax.tree.map(lambda flag: jnp.asarray(not flag), frozen)
    train = jax.jit(partial(realign, model=inputs.model, recipe=RECIPE))
    for combination in GRID.combinations:
        for seed in range(2):
            pool, places = shot_pool(
                inputs.data, SETTINGS.shots, SETTINGS.seed + seed, inputs.model
            )
            chosen = [places[TASKS.index(task)] for task in combination]
            batches = balanced_batches(chosen, 5, 8, SETTINGS.seed + seed)
            model, _ = train(inputs.base, trainable, inputs.heads, pool, jnp.asarray(batches))
            rows = rows_of(results, Cell(combination, "clean", 0, seed, "control"))
            assert list(rows["scale"]) == [0.0] * len(combination)
            for row in rows.itertuples():
                assert row.score == accuracy(inputs, model, row.task)


# Cosines


def test_cosines_of_every_channel_and_pair(sweep_tables: Tables, ruled_tables: Tables) -> None:
    # clean has one draw, seed and level; none and freeze; all pairs.
    for tables, channels in ((sweep_tables, 1 + 2 * 2 * 2), (ruled_tables, 1 + 2 * 2)):
        cosines = tables["cosines"]
        assert len(cosines) == channels * 2 * 9
        assert list(cosines.columns) == [
            *(*COSINES, "error_model", "cosine", "sign_agreement", "norm_a")
        ]
        assert set(cosines["error_model"]) == {"independent"}
        assert not cosines.duplicated(COSINES).any()
        itself = cosines[cosines["task_a"] == cosines["task_b"]]
        np.testing.assert_allclose(itself["cosine"], 1, rtol=1e-5)
        np.testing.assert_allclose(itself["sign_agreement"], 1, rtol=1e-5)


def test_cosines_are_those_of_the_received_vectors(
    sweep_tables: Tables, ruled_tables: Tables, sweep_engine: Engine
) -> None:
    for tables, cell in (
        (sweep_tables, Cell((), "clean", 0, 0, "none")),
        (sweep_tables, Cell((), "ideal", 1, 0, "none")),
        (sweep_tables, Cell((), "sum_rate", 0, 1, "none")),
        (ruled_tables, Cell((), "ideal", 0, 1, "none", axis="snr_db", level=12.0)),
    ):
        leaves = fusion.leaves_by_path(received(sweep_engine, cell))
        cosines = tables["cosines"].fillna({"level": -1.0})
        for protection in ("none", "freeze"):
            sent = [
                np.asarray(leaf, np.float64).reshape(3, -1)
                for path, leaf in leaves.items()
                if protection == "none" or "embeddings" not in path
            ]
            rows = np.concatenate(sent, axis=1)
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            seen = cosines[
                (cosines["scenario"] == cell.scenario)
                & (cosines["level"] == (-1.0 if cell.level is None else cell.level))
                & (cosines["draw"] == cell.draw)
                & (cosines["seed"] == cell.seed)
                & (cosines["protection"] == protection)
            ].pivot(index="task_a", columns="task_b")
            unit, signs = rows / norms, np.sign(rows)
            same = np.mean(signs[:, None] == signs[None], axis=2)
            np.testing.assert_allclose(seen["cosine"].to_numpy(), unit @ unit.T, atol=1e-5)
            np.testing.assert_allclose(seen["sign_agreement"].to_numpy(), same, atol=1e-3)
            np.testing.assert_allclose(
                seen["norm_a"].to_numpy(), np.broadcast_to(norms, (3, 3)), rtol=1e-5
            )
