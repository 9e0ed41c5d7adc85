"""Where cells are computed changes no number: chunks, devices, and the cut among processes."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_fixtures import (
    MERGES,
    MIXED,
    PAIR,
    SETTINGS,
    TASKS,
    Tables,
    Worker,
    at_most_once,
    engine_like,
    laid_out,
    tables_of,
)

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import Dare, Ties
from rmtllmf_jax.sweep.engine import Engine, Evaluated
from rmtllmf_jax.sweep.grid import Cell
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.layout import Layout, one_device
from rmtllmf_jax.sweep.programs import over_cells
from rmtllmf_jax.sweep.stage import Stage

TIMEOUT = 300

DEVICE = jax.local_devices()[0]


# Chunks


@pytest.mark.parametrize(
    ("cells_at_once", "streams"),
    [
        (3, 2),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((1, 2), (2, 1), (5, 1), (8, 1))),
    ],
)
def test_cells_side_by_side_give_the_same_table(
    sweep_engine: Engine, mixed_tables: Tables, tmp_path: Path, cells_at_once: int, streams: int
) -> None:
    """In one program, in threads, and both."""
    engine = laid_out(sweep_engine, cells_at_once, streams=streams)
    found = tables_of(engine, MIXED, tmp_path)
    for name, table in mixed_tables.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)


def test_a_stream_goes_on_while_the_other_computes(sweep_engine: Engine) -> None:
    third, number = Event(), count()

    def merge(*arguments: Any) -> Any:
        place = next(number)
        if place == 2:
            third.set()
        assert place or third.wait(TIMEOUT)  # the first is done after the third has begun
        return sweep_engine.programs.merge(*arguments)

    engine = laid_out(sweep_engine, streams=2)
    engine.programs = replace(sweep_engine.programs, merge=merge)
    jobs = [Job(cell, 0.3) for cell in MERGES.cells() if cell.rule == MERGES.rules[0]]
    assert len(engine._groups(jobs)[0]) > 2
    assert sums_of(engine.run(jobs)) == sums_of(engine_like(sweep_engine).run(jobs))


@pytest.mark.parametrize(("cells_at_once", "streams"), [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("rule", [Ties(), Dare()])
def test_what_does_not_depend_on_the_coefficient_is_merged_once(
    sweep_engine: Engine, rule: Any, cells_at_once: int, streams: int
) -> None:
    """The coefficients of a combination come one after another; each has its own model."""
    engine, begun = laid_out(sweep_engine, cells_at_once, streams=streams), []
    own = engine.programs
    engine.programs = replace(own, merge=lambda *given: begun.append(1) or own.merge(*given))
    cells = [Cell(combination, "clean", 0, 0, "none", rule) for combination in (PAIR, TASKS)]
    jobs = [Job(cell, scale, "validation") for cell in cells for scale in (0.1, 0.4, 1.0, 1.5)]
    found = sums_of(engine.run(jobs))
    assert len(begun) == len(cells)
    alone = [sums_of(engine_like(sweep_engine).run([job])) for job in jobs]
    assert found == {name: sums for each in alone for name, sums in each.items()}
    assert len({str(sums) for sums in found.values()}) > 2


def sums_of(chunks: Iterable[list[Evaluated]]) -> dict[str, dict[str, tuple[float, float]]]:
    return {job.hash: sums for chunk in chunks for job, sums in chunk}


@pytest.mark.parametrize("streams", [1, 2])
def test_what_runs_when_a_sweep_is_stopped_is_kept(sweep_engine: Engine, streams: int) -> None:
    begun: list[Any] = []

    def merge(*arguments: Any) -> Any:
        begun.append(arguments)
        return sweep_engine.programs.merge(*arguments)

    engine = laid_out(sweep_engine, streams=streams)
    engine.programs = replace(sweep_engine.programs, merge=merge)
    jobs = [Job(cell, 0.3) for cell in MERGES.cells()]
    found: list[Any] = []
    for chunk in engine.run(jobs, lambda: bool(found)):
        found.extend(chunk)
    assert 0 < len(found) == len(begun) <= 2 * streams < len(jobs)


def test_a_signal_that_ends_nothing_lets_the_rest_be_done(
    sweep_engine: Engine, tmp_path: Path
) -> None:
    """Such as one that a user's program only takes note of."""
    heard: list[int] = []

    def merge(*arguments: Any) -> Any:
        if not heard:
            signal.raise_signal(signal.SIGTERM)
        return sweep_engine.programs.merge(*arguments)

    engine = engine_like(sweep_engine)
    engine.programs = replace(sweep_engine.programs, merge=merge)
    jobs = [Job(cell, 0.3) for cell in MERGES.cells()[:3]]
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with Stage(engine, tmp_path) as stage:
            stage.complete(jobs, "sweep")
            assert all(job.hash in stage.parts for job in jobs)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_what_threads_share_is_made_once(sweep_engine: Engine) -> None:
    """Sources and few-shot pool, test images, and the one trace of each program."""
    chex.clear_trace_counter()
    layout = replace(sweep_engine.layout, streams=2)
    engine = Engine(sweep_engine.inputs, SETTINGS, layout, at_most_once)
    made, draw, place = [], engine.uplinks.sources, engine._placed
    engine.uplinks.sources = lambda cell: made.append((cell.seed, cell.draw)) or draw(cell)
    engine._placed = lambda *rows: made.append("images") or place(*rows)
    cells = [cell for cell in MIXED.cells() if cell.protection == "r-mtllmf" and cell.draw == 0]
    list(engine.run([Job(cell, 0.3) for cell in cells]))
    assert made == ["images", (0, 0), (1, 0)]
    assert list(engine._pools) == [(0, SETTINGS.shots), (1, SETTINGS.shots)]  # per seed


def test_a_cell_that_fails_in_its_thread_ends_the_run(sweep_engine: Engine) -> None:
    def full(*_: object) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    engine = laid_out(sweep_engine, streams=2)
    engine.programs = replace(sweep_engine.programs, evaluate=full)
    with pytest.raises(InputError, match="--cells-at-once 1 takes about half"):
        list(engine.run([Job(cell, 0.3) for cell in MERGES.cells()[:2]]))


@pytest.mark.parametrize("number", [1, 2, 5, 6])
@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_every_cell_is_mapped_once(number: int, at_once: int) -> None:
    cells = {"x": jnp.arange(2.0 * number).reshape(number, 2), "y": jnp.arange(number)}
    found = over_cells(lambda cell: cell["x"].sum() + 100 * cell["y"], cells, at_once)
    np.testing.assert_array_equal(found, 4.0 * np.arange(number) + 1 + 100 * np.arange(number))


def test_a_chunk_is_the_cells_of_all_devices() -> None:
    devices: Any = (DEVICE,) * 6
    assert Layout(devices, 3, 2).chunk == 9
    assert Layout(devices, 1, 6).chunk == 1
    assert one_device().chunk == 1
    assert one_device().mesh is None


# What does not go together


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_devices": 2}, "--image-devices 2 must divide the number of devices, 1"),
        ({"cells_at_once": 0}, "cells at once must be at least 1"),
        ({"image_devices": 0}, "image devices must be at least 1"),
        ({"processes": 0}, "processes must be at least 1"),
        ({"streams": 0}, "streams must be at least 1"),
        ({"process": 2, "processes": 2}, "the process must be one of 0 to 1, got 2"),
        ({"process": -1}, "the process must be one of 0 to 0, got -1"),
    ],
)
def test_a_layout_that_cannot_be(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Layout((DEVICE,), **options)


def test_streams_need_a_single_device() -> None:
    with pytest.raises(InputError, match="2 streams need a single device, got 4"):
        Layout((DEVICE,) * 4, streams=2)


def test_image_devices_must_divide_the_evaluation_batch(sweep_engine: Engine) -> None:
    layout = Layout((DEVICE,) * 2, image_devices=2)
    engine = Engine(sweep_engine.inputs, replace(SETTINGS, eval_batch_size=15), layout)
    message = "--eval-batch-size 15 must be a multiple of --image-devices, 2"
    with pytest.raises(InputError, match=message):
        engine.sets("test")


# Processes


@given(work=st.lists(st.integers(), max_size=50), processes=st.integers(1, 9))
def test_shares_are_the_whole_work_in_order_and_about_equal(
    work: Sequence[int], processes: int
) -> None:
    shares = [
        Layout((DEVICE,), process=process, processes=processes).mine(work)
        for process in range(processes)
    ]
    assert [item for share in shares for item in share] == list(work)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


# Devices


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "layouts", "more"),
    [(4, ["4,2,1"], ["--merges"]), (8, ["8,1,1", "8,2,1", "8,4,1", "8,2,3", "1,1,1"], [])],
)
def test_many_devices_count_what_one_does(
    mixed_tables: Tables,
    worker: Worker,
    tmp_path: Path,
    devices: int,
    layouts: list[str],
    more: list[str],
) -> None:
    """Devices, devices that share images, and cells at once.

    A device's order of summation may move the last bit of a model, and so one sample at the edge
    of two classes; more than that is an error.
    """
    words = [word for layout in layouts for word in ("--layout", layout)]
    process = worker(
        "--store", tmp_path / "store", "--out", tmp_path, "--devices", devices, *words, *more
    )
    try:
        _, errors = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    one = mixed_tables["results"]
    if more:
        some = (one["protection"] == "none") & (one["rule"] == "task_arithmetic")
        one = one[some].reset_index(drop=True)
    for layout in layouts:
        many = pd.read_parquet(tmp_path / f"results-{layout}.parquet")
        apart = many["score"] != one["score"]
        assert apart.mean() <= 0.01, layout
        assert (many["score"] - one["score"]).abs().max() < 1.5 / 20  # one sample of the least
        measured = ["score", "normalised"]
        pd.testing.assert_frame_equal(
            many.drop(columns=measured), one.drop(columns=measured), check_exact=True
        )
        cosines = pd.read_parquet(tmp_path / f"cosines-{layout}.parquet")
        pd.testing.assert_frame_equal(cosines, mixed_tables["cosines"], rtol=1e-5, atol=1e-6)
