"""The merging coefficient of every rule and size: by a law, by a number, or on validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sweep_fixtures import (
    GRID,
    PAIR,
    SETTINGS,
    TASKS,
    Tables,
    accuracy,
    engine_like,
    merged,
    tables_of,
)

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.evaluation.metrics import Accuracy
from rmtllmf_jax.fusion import (
    Average,
    Dare,
    DareTies,
    Lata,
    TaskArithmetic,
    Ties,
    one_of,
    parse_method,
)
from rmtllmf_jax.fusion.scale import MEAN_SCALES, SUM_SCALES
from rmtllmf_jax.report.io import read_scales
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.job import Job, finetuned_job
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.scales import scales_by_size, validation_jobs
from rmtllmf_jax.sweep.so_far import results_so_far
from rmtllmf_jax.sweep.stage import Stage

VALIDATION = replace(SETTINGS, scale="validation")
EVERY = Grid(
    choose_combinations(TASKS, None, 0),
    ("clean",),
    ("none", "control"),
    1,
    1,
    (TaskArithmetic(), Ties()),
)


def scale_of(engine: Engine, scale: str, grid: Grid, folder: Path) -> tuple[Any, Any]:
    with Stage(engine_like(engine, replace(SETTINGS, scale=scale)), folder) as stage:
        chosen, curve = scales_by_size(stage, grid)
    assert all(method == rule for (rule, _), (method, _) in chosen.items())
    return {key: scale for key, (_, scale) in chosen.items()}, curve


def test_scale_by_law_and_by_number(sweep_engine: Engine, tmp_path: Path) -> None:
    power, curve = scale_of(sweep_engine, "power-law", EVERY, tmp_path / "law")
    law = {2: pytest.approx(0.7176, abs=1e-4), 3: pytest.approx(0.5503, abs=1e-4)}
    assert power == {
        (rule, size): 1.0 if rule == Ties() else law[size] for rule in EVERY.rules for size in law
    }
    for scale, by_size in (
        ("0.25", {2: 0.25, 3: 0.25}),
        ("1/N", {2: 1 / 2, 3: 1 / 3}),
        ("1/sqrt(N)", {2: 2**-0.5, 3: 3**-0.5}),
    ):
        found, _ = scale_of(sweep_engine, scale, EVERY, tmp_path / "number")
        assert found == pytest.approx(
            {(rule, size): by_size[size] for rule in EVERY.rules for size in by_size}
        )
    assert not curve
    assert not list(tmp_path.iterdir())  # nothing was computed


def test_rules_that_average_have_a_natural_scale(sweep_engine: Engine, tmp_path: Path) -> None:
    rules = (Average(), Ties(), Ties(normalise=False), Dare(), DareTies(), Lata())
    scales, _ = scale_of(sweep_engine, "power-law", replace(EVERY, rules=rules), tmp_path)
    assert {rule for (rule, size), scale in scales.items() if scale == 1} == {Average(), Ties()}


@pytest.fixture(scope="session")
def validated(sweep_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    engine = engine_like(sweep_engine, VALIDATION)
    return tables_of(engine, EVERY, tmp_path_factory.mktemp("validated"))


def test_validation_takes_the_best_of_the_curve(validated: Tables) -> None:
    curve, results = validated["scales"], validated["results"]
    assert list(curve.columns) == [
        "combination",
        "size",
        "rule",
        "method",
        "scale",
        "normalised",
    ]
    for rule, scales in (("task_arithmetic", SUM_SCALES), ("ties", MEAN_SCALES)):
        rows = curve[curve["rule"] == rule]
        assert len(rows) == 4 * len(scales)
        assert set(rows["scale"]) == set(scales)
    best = curve.groupby(["rule", "size", "scale"])["normalised"].mean()
    for rule in map(described, EVERY.rules):
        for size in (2, 3):
            cells = results[(results["size"] == size) & (results["rule"] == rule)]
            chosen = cells.loc[cells["protection"] == "none", "scale"]
            assert chosen.nunique() == 1
            # Ties are common on so few images, and equal up to the order of a sum.
            there = best[rule, size]
            assert there[chosen.iloc[0]] == pytest.approx(there.max(), rel=1e-12)
    assert best.nunique() > 3
    assert (results.loc[results["protection"] == "control", "scale"] == 0).all()


def test_validation_chooses_options_too(sweep_engine: Engine, tmp_path: Path) -> None:
    """As a sweep over each method of its own would: the best of all methods' curves."""
    several = one_of(Ties(), density=[0.05, 0.9])
    grid = Grid((PAIR, TASKS), ("clean", "ideal"), ("none",), 1, 1, (several, TaskArithmetic()))
    with pytest.raises(InputError, match=r"ties\(density=\[0.05, 0.9\]\) leaves its options to be"):
        tables_of(sweep_engine, grid, tmp_path / "law")
    engine = engine_like(sweep_engine, VALIDATION)
    tables = tables_of(engine, grid, tmp_path / "store")
    curve, results = tables["scales"], tables["results"]
    rule = "ties(density=[0.05, 0.9])"
    configuration = {"grid": grid.record(), "settings": {"error_model": "independent"}}
    so_far = pd.DataFrame(results_so_far(str(tmp_path / "store"), configuration))
    assert set(so_far["rule"]) == {rule, "task_arithmetic"}
    own = curve[curve["rule"] == rule]
    assert set(own["method"]) == {"ties(density=0.05)", "ties(density=0.9)"}
    means = own.groupby(["size", "method", "scale"])["normalised"].mean()
    for size in (2, 3):
        cells = results[(results["size"] == size) & (results["rule"] == rule)]
        ((method, scale),) = set(zip(cells["method"], cells["scale"], strict=True))
        assert means[size, method, scale] == pytest.approx(means[size].max(), rel=1e-12)
        named = replace(grid, rules=(parse_method(method),))
        alone = tables_of(engine, named, tmp_path / "store")["results"].query("size == @size")
        assert list(alone["rule"]) == [method] * len(cells)
        if alone["scale"].iloc[0] == scale:
            assert list(alone["score"]) == list(cells["score"])
    path = tmp_path / "scales.parquet"
    curve.to_parquet(path)
    kept = read_scales(path)
    assert (kept[kept["rule"] == rule].groupby("size")["method"].nunique() == 1).all()


def test_validation_curve_is_measured_on_validation_images(
    validated: Tables, sweep_engine: Engine
) -> None:
    inputs = sweep_engine.inputs
    rows = validated["scales"].query("rule == 'task_arithmetic'")
    curve = rows.set_index(["combination", "scale"])["normalised"]
    for scale in (0.1, 0.7):
        model = merged(inputs, PAIR, scale)
        ratios = [
            accuracy(inputs, model, task, "validation")
            / accuracy(inputs, inputs.finetuned(TASKS.index(task)), task, "validation")
            for task in PAIR
        ]
        assert curve["dtd+mnist", scale] == np.mean(ratios)


def test_validation_does_not_look_at_the_test_split(sweep_engine: Engine, tmp_path: Path) -> None:
    class Blind(Engine):
        @property
        def _test(self) -> Any:  # type: ignore[override]
            raise AssertionError("the test split was read")

    grid = replace(EVERY, combinations=(PAIR,))
    with Stage(engine_like(sweep_engine, VALIDATION, kind=Blind), tmp_path) as stage:
        stage.complete([finetuned_job(task, "validation") for task in TASKS], "references")
        scales, curve = scales_by_size(stage, grid)
        assert len(scales) == 2
        assert len(curve) == len(SUM_SCALES) + len(MEAN_SCALES)
        with pytest.raises(AssertionError, match="the test split was read"):
            stage.complete([finetuned_job("mnist", "test")], "references")


def finish(folder: Path, job: Job, correct: int) -> None:
    """Leave a result of 10 samples per task as if a sweep had computed it."""
    with CellStore(folder / "cells") as parts:
        tasks = job.cell.combination
        uplink = {task: {"kappa": 1.0, "mse": 0.0, "mse_mean": 0.0, "uses": 0.0} for task in tasks}
        sums = dict.fromkeys(tasks, (float(correct), 10.0))
        parts.add(job.hash, job.rows(sums, Accuracy(), uplink))


def test_a_grid_that_grows_may_choose_another_scale(sweep_engine: Engine, tmp_path: Path) -> None:
    """Cells of the smaller grid are then computed again, under the scale that the table says."""
    small = Grid((PAIR,), ("clean",), ("none", "control"), 1, 1)
    large = replace(small, combinations=(PAIR, ("dtd", "svhn"), ("mnist", "svhn")))
    for task in TASKS:
        finish(tmp_path, finetuned_job(task, "validation"), 10)
    for job in validation_jobs(large):
        best = 0.1 if job.cell.combination == PAIR else 0.7
        finish(tmp_path, job, 10 if job.scale == best else 5)
    engine = engine_like(sweep_engine, VALIDATION)
    for grid, scale in ((small, 0.1), (large, 0.7)):
        table = tables_of(engine, grid, tmp_path)["results"]
        model = merged(engine.inputs, PAIR, scale)
        rows = table[(table["combination"] == "dtd+mnist") & (table["protection"] == "none")]
        assert list(rows["scale"]) == [scale] * 2
        for row in rows.itertuples():
            assert row.score == accuracy(engine.inputs, model, row.task)


def test_validation_without_validation_images_is_refused(
    sweep_engine: Engine, tmp_path: Path
) -> None:
    data = [
        replace(d, validation=d.validation.take(np.arange(0))) for d in sweep_engine.inputs.data
    ]
    bare = engine_like(sweep_engine, VALIDATION, replace(sweep_engine.inputs, data=tuple(data)))
    with pytest.raises(InputError, match="no validation sample of dtd, mnist, svhn"):
        tables_of(bare, GRID, tmp_path)


def test_a_useless_fine_tuned_model_is_named(sweep_engine: Engine, tmp_path: Path) -> None:
    finish(tmp_path, finetuned_job("mnist", "test"), 0)
    with pytest.raises(InputError, match="fine-tuned model of mnist has accuracy 0 on the test"):
        tables_of(sweep_engine, replace(EVERY, protections=("none",)), tmp_path)
