"""Several processes share a sweep: one table, that of a single process, written by the first."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import TinyRun, command, environment
from sweep_fixtures import MIXED, Tables, Worker, engine_like, tables_of

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.sweep import stage as stage_module
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.layout import Layout
from rmtllmf_jax.sweep.parts import CellStore

TIMEOUT = 300


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for processes; return what they wrote to standard error."""
    try:
        errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0] * len(processes), errors
    return errors


def test_the_shares_of_two_processes_are_one_table(
    sweep_engine: Engine,
    mixed_tables: Tables,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each on a thread of this process, so that nothing but the store connects them."""
    monkeypatch.setattr(stage_module, "_POLL", 0.05)
    engines = []
    for process in range(2):
        engine = engine_like(sweep_engine)
        engine.layout = Layout(sweep_engine.layout.devices, process=process, processes=2)
        engines.append(engine)
    found: dict[int, Any] = {}

    def run(process: int) -> None:
        found[process] = tables_of(engines[process], MIXED, tmp_path)

    threads = [threading.Thread(target=run, args=(process,), daemon=True) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert found.keys() == {0, 1}
    assert found[1] == {}  # the first process writes the tables of all
    for name, table in mixed_tables.items():
        pd.testing.assert_frame_equal(found[0][name], table, check_exact=True)
    names = [path.name for path in (tmp_path / "cells").iterdir()]
    assert {name.split("-")[1] for name in names} == {"0000", "0001"}
    assert {path.name.split("-")[1] for path in (tmp_path / "cosines").iterdir()} == {"0000"}
    with CellStore(tmp_path / "cells") as parts:
        assert len(parts) == len(MIXED.cells()) + 4


@pytest.mark.slow
def test_two_processes_on_a_store(mixed_tables: Tables, worker: Worker, tmp_path: Path) -> None:
    words = ["--store", tmp_path / "store", "--layout", "1,1,1", "--processes", 2]
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    finish([worker(*words, "--process", n, "--out", folders[n]) for n in range(2)])
    for name, table in mixed_tables.items():
        found = pd.read_parquet(folders[0] / f"{name}-1,1,1.parquet")
        pd.testing.assert_frame_equal(found, table, check_exact=True)
    assert not list(folders[1].iterdir())


@pytest.mark.slow
def test_a_killed_process_is_replaced_by_the_same_command(
    mixed_tables: Tables, worker: Worker, tmp_path: Path
) -> None:
    words = ["--store", tmp_path / "store", "--layout", "1,1,1", "--processes", 2]
    words += ["--out", tmp_path]
    first, second = (worker(*words, "--process", n) for n in range(2))
    try:
        second.wait(0.5)
    except subprocess.TimeoutExpired:
        second.send_signal(signal.SIGKILL)
    second.communicate()
    finish([first, worker(*words, "--process", 1)])
    found = pd.read_parquet(tmp_path / "results-1,1,1.parquet")
    pd.testing.assert_frame_equal(found, mixed_tables["results"], check_exact=True)


# The command


@pytest.mark.slow
def test_a_sweep_of_two_processes_is_the_sweep(finished: TinyRun, tmp_path: Path) -> None:
    """Through the installed command, on a store beside the run folder.

    Each may be stopped and started again alone.
    """
    run = finished.copy(tmp_path / "run", sweep=False)
    cache = finished.users[finished.users.index("--cache-dir") + 1]
    words = ["sweep", "--out", run, "--cache-dir", cache, *finished.grid, "--processes", 2]
    words += ["--store", tmp_path / "store"]

    def start(process: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command(*words, "--process", process),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    both = [start(process) for process in range(2)]
    for process, (sign, code) in enumerate(((signal.SIGTERM, 143), (signal.SIGKILL, -9))):
        while not list((tmp_path / "store").glob(f"*/cells/part-{process:04d}-*")):
            assert both[process].poll() is None, both[process].communicate()
            time.sleep(0.01)
        both[process].send_signal(sign)
        both[process].communicate()
        assert both[process].returncode == code
        assert both[1 - process].poll() is None  # it waits, or works
        both[process] = start(process)
    finish(both)
    for name in ("results", "cosines"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(run / f"{name}.parquet"),
            pd.read_parquet(finished.folder / f"{name}.parquet"),
            check_exact=True,
        )
    (store,) = (tmp_path / "store").iterdir()
    wrote = {path.name.split("-")[1] for path in (store / "cells").iterdir()}
    assert wrote == {"0000", "0001"}
    described = json.loads((run / "run.json").read_text())
    assert described["layout"]["processes"] == 2
    assert described["store"] == str(store)
    assert sum(each["cells"] for each in described["computed_by"]) == 68
    assert not (run / "sweep").exists()


def test_on_a_cluster_the_processes_find_out_who_they_are() -> None:
    """Under the variables of a Slurm step of two tasks: they meet, and part."""
    script = "from rmtllmf_jax.cli.sweep import Sweep, join; import pathlib\n"
    script += "print(join(Sweep(out=pathlib.Path('run'), distributed=True)))"
    with socket.socket() as free:  # JAX makes the port of the number of the job
        while True:
            job = random.randrange(2**12)
            with suppress(OSError):
                free.bind(("", 61440 + job))
                break
    slurm = {"JOB_ID": job, "STEP_NODELIST": "localhost", "STEP_NUM_TASKS": 2, "NTASKS": 2}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment()
            | {f"SLURM_{k}": str(v) for k, v in (slurm | {"PROCID": n, "LOCALID": n}).items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    said = [process.communicate(timeout=TIMEOUT) for process in both]
    assert [out.splitlines()[-1:] for out, _ in said] == [["(0, 2)"], ["(1, 2)"]], said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "2"], "--process and --processes go together: give both"),
        (["--process", "2", "--processes", "2"], "one of 0 to 1 with --processes 2, got 2"),
        (["--process", "-1", "--processes", "2"], "one of 0 to 1 with --processes 2, got -1"),
        (["--distributed", "--process", "0", "--processes", "2"], "leave it out to give --process"),
        (["--distributed"], "cannot be found (no address). Leave --distributed out"),
    ],
)
def test_processes_that_cannot_be_found(
    tmp_path: Path,
    cache_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    def initialize() -> None:  # as where JAX finds no cluster
        raise ValueError("no address.")

    monkeypatch.setattr("jax.distributed.initialize", initialize)
    words = [*words, "--out", str(tmp_path / "run"), "--cache-dir", str(cache_dir)]
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_process_that_waits_says_for_whom(
    sweep_engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class GaveUp(Exception):
        pass

    def give_up(_: float) -> None:
        raise GaveUp

    monkeypatch.setattr("time.sleep", give_up)
    engine = engine_like(sweep_engine)
    engine.layout = Layout(sweep_engine.layout.devices, process=0, processes=4)
    with pytest.raises(GaveUp):
        tables_of(engine, MIXED, tmp_path)
    assert caplog.messages == [
        "references: waiting for 1 cells of process 1, 1 cells of process 2, 1 cells of process 3. "
        "A process that has gone is started again by its own command; the others go on waiting."
    ]
