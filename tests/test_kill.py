"""Whatever stops the command, the next call resumes and ends at the same tables."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from conftest import TinyRun, command, environment
from sweep_fixtures import MIXED, Tables, Worker, tables_of

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.parts import CellStore, read_parts
from rmtllmf_jax.sweep.stage import _NOTICE
from rmtllmf_jax.training import finetune

KILL, CTRL_C, TERM, HANG_UP = signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP
CODES = {KILL: -KILL, CTRL_C: 130, TERM: 143, HANG_UP: 129}


@pytest.fixture(autouse=True)
def _whole_programs_alone_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed here finds its programs, and writes none that the kill might cut short."""
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1e9")


@contextmanager
def default_interrupt() -> Iterator[None]:
    """Let a child hear Ctrl-C even where these tests run in the background, which ignores it."""
    before = signal.signal(CTRL_C, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(CTRL_C, before)


def stop(words: list[str], reached: Callable[[], bool], sign: signal.Signals = KILL) -> str:
    """Start the command, stop it at a moment of its work; return what it wrote to stderr."""
    with default_interrupt():
        process = subprocess.Popen(
            words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    try:
        deadline = time.monotonic() + 120
        while not reached():
            assert process.poll() is None, "it ended before the moment came"
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.002)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == CODES[sign], errors
    return errors


def assert_same_tables(run: Path, finished: TinyRun) -> None:
    for name in ("results", "cosines"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(run / f"{name}.parquet"),
            pd.read_parquet(finished.folder / f"{name}.parquet"),
            check_exact=True,
        )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.slow
def test_fine_tuning_goes_on_where_it_was_stopped(
    finished: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = ["reproduce", "vit-tiny", "--out", run, *finished.users, *finished.grid]
    start = command(*words)

    def step(task: str, number: int) -> bool:
        return any((run / "training").glob(f"{task}-*/{number}"))

    def count(pattern: str) -> int:
        return sum(1 for _ in run.glob(pattern))

    stop(start, lambda: count("heads/*.safetensors") == 1)
    stop(start, lambda: step("mnist", 50))
    assert step("mnist", 50)
    stop(start, lambda: step("mnist", 100), HANG_UP)
    assert step("mnist", 100)
    stop(start, lambda: count("finetuned/*.safetensors") == 1)
    errors = stop(start, lambda: step("svhn", 50), CTRL_C)
    assert errors == "rmtllmf: stopped; the same command resumes from here.\n"
    assert count("finetuned/*.safetensors") == 1
    assert step("svhn", 50)
    assert not (run / "results.parquet").exists()

    left = 120 - max(int(path.name) for path in run.glob("training/svhn-*/[0-9]*[0-9]"))
    steps = []
    step_taken = finetune.train_step
    monkeypatch.setattr(
        finetune, "train_step", lambda *a, **k: steps.append(1) or step_taken(*a, **k)
    )
    main([str(word) for word in words])
    assert len(steps) == left + 120  # the rest of svhn, and dtd
    assert files(run / "heads") == files(finished.folder / "heads")
    assert files(run / "finetuned") == files(finished.folder / "finetuned")
    assert not any((run / "training").iterdir())
    assert_same_tables(run, finished)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [KILL, CTRL_C, TERM])
def test_the_sweep_goes_on_where_it_was_stopped(
    finished: TinyRun, tmp_path: Path, sign: signal.Signals
) -> None:
    run = finished.copy(tmp_path / "run", sweep=False)
    cache = finished.users[finished.users.index("--cache-dir") + 1]
    words = ["sweep", "--out", str(run), "--cache-dir", cache, *finished.grid]
    (whole,) = (finished.folder / "sweep").iterdir()

    def references_done() -> bool:
        return any(run.glob("sweep/*/cells/part-*.parquet"))

    errors = stop(command(*words), references_done, sign)
    (store,) = (run / "sweep").iterdir()
    every = set(read_parts(whole / "cells")["cell"])
    begun = set(read_parts(store / "cells")["cell"])
    assert 4 <= len(begun) < len(every)
    assert begun < every
    if sign != KILL:
        stopped = "rmtllmf: stopped; the same command resumes from here.\n"
        assert errors in (_NOTICE + "\n" + stopped, stopped)  # in a chunk, or between two
    assert not (run / "results.parquet").exists()

    main(words)
    assert set(read_parts(store / "cells")["cell"]) == every
    assert_same_tables(run, finished)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 20])
def test_a_sweep_killed_at_random_ends_with_the_same_tables(
    sweep_engine: Engine, mixed_tables: Tables, worker: Worker, tmp_path: Path, kills: int
) -> None:
    """With a part a cell, so that the kills hit the writing as well as the computing."""
    cells, seen, moments = tmp_path / "store" / "1,1,1" / "cells", 0, random.Random(kills)
    words = ["--store", tmp_path / "store", "--layout", "1,1,1", "--out", tmp_path, "--every", 0]
    killed = 0
    for _ in range(kills):
        process = worker(*words)
        deadline = time.monotonic() + 120
        while sum(1 for _ in cells.glob("part-*")) == seen and process.poll() is None:
            assert time.monotonic() < deadline, "no cell was finished"
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.5 / kills))
        process.kill()
        _, errors = process.communicate()
        if process.returncode == 0:
            break  # it was done first
        assert process.returncode == -KILL, errors
        killed += 1
        before, seen = seen, sum(1 for _ in cells.glob("part-*"))
        assert seen > before, errors
    assert killed >= min(kills, 10)
    with CellStore(cells) as parts:
        assert not parts.damaged
        assert 0 < len(parts) <= len(MIXED.cells()) + 4
    found = tables_of(sweep_engine, MIXED, tmp_path / "store" / "1,1,1")
    for name, table in mixed_tables.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)


@pytest.mark.slow
def test_a_part_that_a_crash_cut_short_is_done_again(finished: TinyRun, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    (store,) = (run / "sweep").iterdir()
    whole = read_parts(store / "cells")
    for part in sorted((store / "cells").iterdir())[::2]:
        part.write_bytes(part.read_bytes()[:-30])
    assert len(read_parts(store / "cells")) < len(whole)
    cache = finished.users[finished.users.index("--cache-dir") + 1]
    main(["sweep", "--out", str(run), "--cache-dir", cache, *finished.grid])
    pd.testing.assert_frame_equal(read_parts(store / "cells"), whole)
    assert_same_tables(run, finished)
