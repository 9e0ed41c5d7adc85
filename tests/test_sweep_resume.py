"""Finished cells are read, not computed; whatever is missing, damaged or stopped is done again."""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pandas as pd
import pytest
from sweep_fixtures import (
    CELL,
    GRID,
    OTHER,
    PAIR,
    SETTINGS,
    TASKS,
    Tables,
    engine_like,
    tables_of,
)

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.sweep import stage as stage_module
from rmtllmf_jax.sweep.axis import Axis
from rmtllmf_jax.sweep.engine import Engine, Evaluated
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.programs import Programs
from rmtllmf_jax.sweep.run import run_grid
from rmtllmf_jax.sweep.so_far import results_so_far
from rmtllmf_jax.sweep.stage import Stage
from rmtllmf_jax.sweep.trackers import Tracker

SMALL = Grid((PAIR,), ("clean", "ideal"), ("none",), 2, 1)
JOBS = [Job(cell, 0.3) for cell in GRID.cells() if cell.protection == "none"][:8]


def assert_same(a: Tables, b: Tables) -> None:
    assert a.keys() == b.keys()
    for name, table in a.items():
        pd.testing.assert_frame_equal(table, b[name], check_exact=True)


def files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("computed twice")


class Counting(Engine):
    """An engine that notes what it computes."""

    @property
    def computed(self) -> list[Job]:
        return vars(self).setdefault("noted", [])

    def run(self, jobs: Any, *stopped: Any) -> Iterator[list[Evaluated]]:
        for chunk in super().run(jobs, *stopped):
            self.computed.extend(job for job, _ in chunk)
            yield chunk


def test_finished_cells_are_read_not_computed(
    sweep_engine: Engine,
    sweep_folder: Path,
    sweep_tables: Tables,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = files(sweep_folder)
    again = engine_like(sweep_engine)
    again.programs = Programs(*[refuse] * 4)
    monkeypatch.setattr("rmtllmf_jax.sweep.cosines._receive", refuse)
    assert_same(tables_of(again, GRID, sweep_folder), sweep_tables)
    assert files(sweep_folder) == before


def test_a_part_of_the_grid_gives_the_same_rows(
    sweep_engine: Engine, sweep_tables: Tables, tmp_path: Path
) -> None:
    part = Grid((TASKS, OTHER), ("sum_rate",), ("r-mtllmf", "none"), 1, 1)
    tables = tables_of(sweep_engine, part, tmp_path)
    made = tables["results"]
    assert set(zip(made["scenario"], made["protection"], strict=True)) == {
        ("clean", "control"),
        ("sum_rate", "none"),
        ("sum_rate", "r-mtllmf"),
    }
    configuration = {"grid": part.record(), "settings": {"error_model": "independent"}}
    so_far = pd.DataFrame(results_so_far(str(tmp_path), configuration))
    keys = [*CELL, "task"]
    both = [table.set_index(keys)["normalised"].sort_index() for table in (made, so_far)]
    pd.testing.assert_series_equal(*both, check_exact=True)
    for name, rows in tables.items():
        whole = sweep_tables[name]
        keys = [*CELL, "task"]
        if name == "cosines":
            keys = ["scenario", "axis", "level", "draw", "seed", "protection", "task_a", "task_b"]
        both = rows.merge(whole, on=keys, suffixes=("", "_whole"), validate="1:1")
        assert len(both) == len(rows) > 0
        for column in set(whole.columns) - set(keys):
            pd.testing.assert_series_equal(
                both[column], both[f"{column}_whole"], check_exact=True, check_names=False
            )


def test_a_larger_grid_computes_what_is_new(sweep_engine: Engine, tmp_path: Path) -> None:
    first = engine_like(sweep_engine, kind=Counting)
    tables_of(first, SMALL, tmp_path)
    more = Grid((PAIR,), ("clean", "ideal"), ("none", "freeze"), 2, 1, axis=Axis("mse", (0.1,)))
    for grid in (Grid((PAIR,), ("clean", "ideal"), ("none", "freeze"), 3, 1), more):
        second = engine_like(sweep_engine, kind=Counting)
        tables_of(second, grid, tmp_path)
        done = {job.cell for job in first.computed}
        new = [cell for cell in grid.cells() if cell not in done]
        assert sorted(map(str, new)) == sorted(str(job.cell) for job in second.computed)
        first.computed.extend(second.computed)
    assert len(new) == 4  # two draws and protections at the level


def test_a_damaged_part_is_skipped_reported_and_computed_again(
    sweep_engine: Engine,
    sweep_folder: Path,
    sweep_tables: Tables,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = Path(shutil.copytree(sweep_folder, tmp_path / "store"))
    for kind in ("cells", "cosines"):
        part = max((folder / kind).iterdir(), key=lambda path: path.stat().st_size)
        part.write_bytes(part.read_bytes()[:-30])
    with CellStore(folder / "cells") as parts:
        left = len(parts)
    assert left < len(GRID.cells())
    engine = engine_like(sweep_engine, kind=Counting)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert_same(tables_of(engine, GRID, folder), sweep_tables)
    said = [record.message for record in caplog.records if "damaged" in record.message]
    assert len(said) == 2
    assert all(part.name in said[n] for n, part in [(1, part)])
    assert len(engine.computed) == len(GRID.cells()) + 4 - left
    before = files(folder)
    assert_same(tables_of(sweep_engine, GRID, folder), sweep_tables)
    assert files(folder) == before


# What computed the cells


def test_the_channel_of_a_row_is_that_of_the_program_that_computed_it(
    sweep_engine: Engine, tmp_path: Path
) -> None:
    """A program that would draw other channels reads the cells of one that drew these."""
    first = tables_of(sweep_engine, SMALL, tmp_path)
    other = engine_like(sweep_engine)
    other.uplinks.mse = lambda cell: refuse()
    other.uplinks.kappa = None
    assert_same(tables_of(other, SMALL, tmp_path), first)


def test_a_table_of_two_programs_says_so(
    sweep_engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (own,) = run_grid(sweep_engine, SMALL, tmp_path)["programs"]
    assert (own["jax"], own["cells"]) == (jax.__version__, len(SMALL.cells()))
    assert not caplog.messages
    monkeypatch.setattr("rmtllmf_jax.sweep.program.version", lambda name: "9.9")
    more = Grid((PAIR,), ("clean", "ideal"), ("none",), 3, 1)
    found = run_grid(sweep_engine, more, tmp_path)["programs"]
    assert {each["jax"]: each["cells"] for each in found} == {jax.__version__: 3, "9.9": 1}
    (said,) = caplog.messages
    assert said.startswith("the table mixes cells of several programs")
    assert "1 by rmtllmf-jax 9.9, jax 9.9 on cpu" in said


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_matmul_precision", "highest"),
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 1),
    ],
)
def test_other_draws_or_precisions_are_another_configuration(option: str, value: object) -> None:
    before, key = jax.config.values[option], SETTINGS.key()
    jax.config.update(option, value)
    try:
        assert SETTINGS.key() != key
    finally:
        jax.config.update(option, before)
    assert SETTINGS.key() == key


# Ctrl-C


class Interrupted(Engine):
    """An engine in whose chunk `at` Ctrl-C is pressed `times`."""

    at, times = 2, 1

    def _evaluated(self, chunk: list[Job]) -> list[Evaluated]:
        number = vars(self).setdefault("chunks", [])
        number.append(chunk)
        if len(number) == self.at:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return super()._evaluated(chunk)


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C as Python handles it, even where these tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(("times", "kept"), [(1, 2), (2, 1)])
def test_ctrl_c_finishes_the_chunk_and_a_second_one_does_not(
    sweep_engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str], times: int, kept: int
) -> None:
    engine = engine_like(sweep_engine, kind=Interrupted)
    engine.times = times
    with pytest.raises(KeyboardInterrupt), Stage(engine, tmp_path) as stage:
        stage.complete(JOBS, "sweep")
    assert capsys.readouterr().err == stage_module._NOTICE + "\n"
    with CellStore(tmp_path) as parts:
        assert list(parts) == [job.hash for chunk in vars(engine)["chunks"][:kept] for job in chunk]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# What is told, and what goes wrong


def test_a_tracker_hears_of_the_speed(sweep_engine: Engine, tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []

    class Noting(Tracker):
        def log(self, step: int, values: dict[str, float]) -> None:
            told.append((step, values))

    run_grid(sweep_engine, SMALL, tmp_path, Noting())
    assert [step for step, _ in told] == list(range(1, 4 + len(SMALL.cells()) + 1))
    names = {name for _, values in told for name in values}
    assert names == {
        f"{stage}/{what} a second"
        for stage in ("references", "sweep")
        for what in ("cells", "images")
    }
    assert all(value > 0 for _, values in told for value in values.values())


@pytest.mark.parametrize("cells_at_once", [1, 6])
def test_memory_that_runs_out_says_what_to_do(
    sweep_engine: Engine, tmp_path: Path, cells_at_once: int
) -> None:
    def full(*_: object) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 3 GiB")

    def broken(*_: object) -> Any:
        raise jax.errors.JaxRuntimeError("INTERNAL: of another kind")

    options = {1: "smaller --eval-batch-size", 6: "--cells-at-once 3 takes about half"}
    layout = sweep_engine.layout.__class__(sweep_engine.layout.devices, cells_at_once)
    engine = Engine(sweep_engine.inputs, SETTINGS, layout)
    engine.programs = Programs(*[full] * 4)
    with pytest.raises(InputError, match=options[cells_at_once]) as caught:
        tables_of(engine, SMALL, tmp_path)
    assert "Out of memory" in str(caught.value)
    assert "3 GiB" not in str(caught.value)
    assert "Finished cells are kept" in str(caught.value)
    engine.programs = replace(sweep_engine.programs, repair=full, evaluate=broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        tables_of(engine, SMALL, tmp_path)


def test_what_was_finished_before_memory_ran_out_is_kept(
    sweep_engine: Engine, tmp_path: Path
) -> None:
    calls = []

    def evaluate(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 7:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return sweep_engine.programs.evaluate(*arguments)

    engine = engine_like(sweep_engine)
    engine.programs = replace(sweep_engine.programs, repair=refuse, evaluate=evaluate)
    with pytest.raises(InputError, match="ran out of memory"), Stage(engine, tmp_path) as stage:
        stage.complete(JOBS, "sweep")
    with CellStore(tmp_path) as parts:
        assert 0 < len(parts) < len(JOBS)
        assert set(parts) < {job.hash for job in JOBS}
