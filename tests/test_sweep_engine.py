"""The engine: one compile for all cells, which jobs stand together, and what it has room for."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import numpy as np
import pytest
from sweep_fixtures import (
    GRID,
    OTHER,
    PAIR,
    SETTINGS,
    TASKS,
    Tables,
    accuracy,
    at_most_once,
    engine_like,
    model,
    tables_of,
)

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.defences.protection import PAPER
from rmtllmf_jax.evaluation.metrics import Accuracy, SoftAccuracy
from rmtllmf_jax.fusion import TaskArithmetic, Ties
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.axis import Axis
from rmtllmf_jax.sweep.cost import tower_costs
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.memory import MOST, cells_that_fit, memory_limit, streams_that_fit

# One compile


def test_one_trace_a_rule_and_one_for_everything_else(
    sweep_inputs: SweepInputs, tmp_path: Path
) -> None:
    """Combinations, scenarios, levels, draws, seeds, protections, scales and splits are data."""
    chex.clear_trace_counter()
    engine = Engine(sweep_inputs, SETTINGS, one_device(), at_most_once)
    scenarios, axis = ("clean", "ideal"), Axis("mse", (0.01, 0.2))
    rules = (TaskArithmetic(), Ties())
    grid = Grid((PAIR, OTHER, TASKS), scenarios, PAPER, 2, 2, rules, axis)
    cells = grid.cells()
    some = [cells[place] for place in range(0, len(cells), 13)]
    for name in ("combination", "scenario", "protection", "rule", "level", "draw", "seed"):
        assert len({getattr(cell, name) for cell in some}) > 1, name
    for number, cell in enumerate(some):
        split = "validation" if number % 2 else "test"
        list(engine.run([Job(cell, 0.1 + number / 100, split)]))
    tables_of(engine, Grid((PAIR,), ("clean",), ("none",), 1, 1), tmp_path)
    engine.score(sweep_inputs.base, "mnist", "test")
    two = jax.tree.map(lambda leaf: np.stack([leaf] * 2), sweep_inputs.base)
    with pytest.raises(AssertionError, match="is traced > 1"):
        engine._sums(two, ["mnist"], "test")


# Jobs


def test_jobs_with_the_same_noise_stand_together_and_all_are_done(sweep_engine: Engine) -> None:
    """The noise of a draw is drawn once, in whatever order the jobs come."""
    jobs = [Job(cell, 0.3) for cell in GRID.cells() if cell.combination == PAIR]
    jobs = [jobs[place] for place in np.random.default_rng(0).permutation(len(jobs))]
    drawn: list[tuple[int, int]] = []
    engine = engine_like(sweep_engine)
    draw = engine.uplinks.sources

    def noting(cell: Cell) -> Any:
        drawn.append((cell.seed, cell.draw))
        return draw(cell)

    engine.uplinks.sources = noting  # type: ignore[method-assign]
    chunks = list(engine.run(jobs))
    assert {job for chunk in chunks for job, _ in chunk} == set(jobs)
    assert sum(map(len, chunks)) == len(jobs)
    assert drawn == [(0, 0), (0, 1), (1, 0), (1, 1)]
    noises = [(job.cell.seed, job.cell.draw) for chunk in chunks for job, _ in chunk]
    assert sum(a != b for a, b in pairwise(noises)) == 3


def test_sums_are_those_of_the_jobs_own_tasks_and_split(sweep_engine: Engine) -> None:
    inputs = sweep_engine.inputs
    for split in ("test", "validation"):
        cell = Cell(OTHER, "ideal", 0, 0, "none")
        (((job, sums),),) = sweep_engine.run([Job(cell, 0.4, split)])
        assert set(sums) == set(OTHER)
        params = model(sweep_engine, cell, 0.4)
        for task, (right, count) in sums.items():
            assert count == sweep_engine.sets(split)[TASKS.index(task)].count
            assert right / count == accuracy(inputs, params, task, split)
            assert sweep_engine.score(params, task, split) == right / count
        uplink = sweep_engine.uplinks.columns(cell)
        (row, _) = job.rows(sums, sweep_engine.metric, uplink)
        assert (row["split"], row["metric"]) == (split, "accuracy")
        assert row["score"] == row["sum"] / row["weight"] == np.divide(*sums["mnist"])


@pytest.mark.parametrize(
    ("protection", "change", "named"),
    [
        ("none", {"kappa": 1e6}, "--scale (here 1e+06) and --kappa (here 1e+06)"),
        ("r-mtllmf", {"c0_db": -120.0}, "(here -120 dB) and --realign-learning-rate (here 0.003)"),
        ("control", {"control_learning_rate": 1e6}, "Look at --control-learning-rate (here 1e+06)"),
    ],
)
def test_a_model_that_is_broken_ends_the_run_with_its_name(
    sweep_engine: Engine, protection: str, change: dict[str, float], named: str
) -> None:
    engine = engine_like(sweep_engine, replace(SETTINGS, **change))
    cell = Cell(PAIR, "ideal", 1, 0, protection, axis="snr_db", level=-3.0)
    with pytest.raises(InputError) as caught:
        list(engine.run([Job(Cell(PAIR, "clean", 0, 0, "none"), 0.3), Job(cell, 1e6)]))
    said = str(caught.value)
    assert said.startswith(
        f"cell dtd+mnist, {protection}, task_arithmetic, ideal, snr_db -3, draw 1"
    )
    assert "outputs are not finite on" in said
    assert named in said


def test_no_job_is_no_work(sweep_engine: Engine) -> None:
    assert list(sweep_engine.run([])) == []


# Settings


def test_more_tasks_than_users_are_refused(sweep_inputs: SweepInputs) -> None:
    many = replace(sweep_inputs, tasks=tuple("abcdefghi"))
    with pytest.raises(InputError, match=r"9 tasks need as many users; .* has 8"):
        Engine(many, SETTINGS, one_device())


def test_evaluation_in_other_batches_counts_the_same(
    sweep_engine: Engine, sweep_tables: Tables, tmp_path: Path
) -> None:
    other = replace(SETTINGS, eval_batch_size=7)
    assert other.key() == SETTINGS.key()
    for change in ({"shots": 4}, {"metric": "cross_entropy"}, {"metric": SoftAccuracy()}):
        assert replace(SETTINGS, **change).key() != SETTINGS.key()
    assert replace(SETTINGS, metric=Accuracy()).key() == SETTINGS.key()
    grid = Grid((TASKS,), ("clean", "ideal"), ("none",), 1, 1)
    found = tables_of(engine_like(sweep_engine, other), grid, tmp_path)["results"]
    keys = ["combination", "scenario", "protection", "draw", "seed", "task"]
    both = found.merge(sweep_tables["results"], on=keys, validate="1:1")
    assert len(both) == len(found) == 2 * 3
    assert (both["score_x"] == both["score_y"]).all()


def test_a_subset_of_the_test_images(sweep_engine: Engine) -> None:
    few = engine_like(sweep_engine, replace(SETTINGS, eval_samples=5)).sets("test")
    assert [len(each.batches) for each in few] == [1, 1, 1]
    assert [each.count for each in few] == [5, 5, 5]
    every = [len(task.test) for task in sweep_engine.inputs.data]
    assert [each.count for each in sweep_engine.sets("test")] == every


def test_too_many_shots_name_task_and_class(sweep_engine: Engine) -> None:
    greedy = engine_like(sweep_engine, replace(SETTINGS, shots=19))
    with pytest.raises(InputError, match=r"'dtd'.*class 0 .* has 18 images, 19 are asked"):
        next(greedy.run([Job(Cell(PAIR, "clean", 0, 0, "realign"), 0.3)]))


@pytest.mark.slow
def test_a_task_with_too_few_images_stops_its_own_combinations_alone(sweep_engine: Engine) -> None:
    inputs = sweep_engine.inputs
    place = next(number for number, task in enumerate(inputs.tasks) if task not in OTHER)
    poor = replace(inputs.data[place], train=inputs.data[place].train.take(np.arange(3)))
    data = (*inputs.data[:place], poor, *inputs.data[place + 1 :])
    engine = Engine(replace(inputs, data=data), SETTINGS, one_device())
    job = Job(Cell(OTHER, "clean", 0, 0, "realign"), 0.3)
    assert list(engine.run([job])) == list(sweep_engine.run([job]))
    with pytest.raises(InputError, match=f"shots of task '{poor.name}'"):
        next(engine.run([Job(Cell(inputs.tasks, "clean", 0, 0, "realign"), 0.3)]))


def test_models_of_a_task_with_too_few_images_are_refused_by_name(sweep_engine: Engine) -> None:
    """Whoever asks for the models themselves, past `run`, gets the same error."""
    inputs = sweep_engine.inputs
    poor = replace(inputs.data[1], train=inputs.data[1].train.take(np.arange(3)))
    data = (inputs.data[0], poor, inputs.data[2])
    engine = engine_like(sweep_engine, inputs=replace(inputs, data=data))
    with pytest.raises(InputError, match=r"shots of task 'mnist'.*, 3 are asked"):
        engine.models([Job(Cell(PAIR, "clean", 0, 0, "realign"), 0.3)])


def test_an_axis_that_the_preset_has_not_is_refused_before_any_work(
    sweep_engine: Engine, tmp_path: Path
) -> None:
    direct = engine_like(sweep_engine, replace(SETTINGS, preset="mse=.1,.1,.1"))
    grid = Grid((PAIR,), ("ideal",), ("none",), 1, 1, axis=Axis("snr_db", (1.0,)))
    with pytest.raises(InputError, match="a direct preset of mse or snr_db has none"):
        tables_of(direct, grid, tmp_path / "store")
    assert not (tmp_path / "store").exists()


# Room


def device(limit: int | None, platform: str = "gpu") -> Any:
    stats = None if limit is None else {"bytes_limit": limit, "bytes_in_use": 0}
    return SimpleNamespace(platform=platform, memory_stats=lambda: stats)


def test_as_many_cells_as_there_is_room_for(sweep_inputs: SweepInputs) -> None:
    costs, batch = tower_costs(sweep_inputs.model), SETTINGS.eval_batch_size
    images = sum(len(task.test) for task in sweep_inputs.data) * 16 * 16 * 3
    evaluating = costs.temporaries(batch, training=False)
    realign = costs.temporaries(SETTINGS.realign.batch_size, training=True)
    counts = 2 * 4  # of the optimiser's steps
    realigning = 3 * costs.bytes + counts + realign
    fixed, each = 7 * costs.bytes + images, costs.bytes + max(evaluating, realigning)
    for cells in (1, 2, 5):
        needed = (fixed + cells * each) / 0.8
        assert cells_that_fit(sweep_inputs, SETTINGS, int(needed * 1.001)) == cells
        assert cells_that_fit(sweep_inputs, SETTINGS, int(needed * 0.999)) == max(1, cells - 1)
    assert cells_that_fit(sweep_inputs, SETTINGS, 10**12) == MOST
    assert cells_that_fit(sweep_inputs, SETTINGS, 0) == 1  # the device may refuse it


def test_two_cells_in_threads_where_a_cpu_has_the_memory(
    sweep_inputs: SweepInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many bytes as an accelerator needs for two cells at once."""
    pages = {"SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    fits = []
    for power in range(24):
        pages["SC_PHYS_PAGES"] = 2**power
        fits.append(cells_that_fit(sweep_inputs, SETTINGS, 2 ** (12 + power)))
        streams = streams_that_fit(sweep_inputs, SETTINGS, device(None, "cpu"))
        assert streams == min(fits[-1], 2)
    assert (fits[0], fits[-1]) == (1, MOST)
    assert streams_that_fit(sweep_inputs, SETTINGS, device(10**12)) == 1


def test_room_is_asked_of_accelerators_that_know_it(sweep_inputs: SweepInputs) -> None:
    for unknown in (device(10**12, "cpu"), device(None)):
        assert memory_limit(unknown) is None
    assert memory_limit(device(10**12, "tpu")) == 10**12
    assert cells_that_fit(sweep_inputs, SETTINGS, None) == 1
    room = 3 * tower_costs(sweep_inputs.model).temporaries(4096, training=False)
    whole, few = (replace(SETTINGS, eval_batch_size=each) for each in (4096, 16))
    assert cells_that_fit(sweep_inputs, whole, room) < cells_that_fit(sweep_inputs, few, room)
