"""Whatever stops the command, the next call goes on and ends at the same tables."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from conftest import TinyRun, command, environment

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.training import finetune

KILL, CTRL_C = signal.SIGKILL, signal.SIGINT


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
    assert process.returncode == (-KILL if sign == KILL else 130)
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
    stop(start, lambda: step("mnist", 100))
    assert step("mnist", 100)
    stop(start, lambda: count("finetuned/*.safetensors") == 1)
    errors = stop(start, lambda: step("svhn", 50), CTRL_C)
    assert errors == "rmtllmf: stopped; the same command goes on from here.\n"
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
def test_the_sweep_goes_on_where_it_was_stopped(finished: TinyRun, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run", sweep=False)
    cache = finished.users[finished.users.index("--cache-dir") + 1]
    words = ["sweep", "--out", str(run), "--cache-dir", cache, *finished.grid]
    (whole,) = files(finished.folder / "sweep").values()

    def journal() -> bytes:
        return b"".join(path.read_bytes() for path in run.glob("sweep/*.jsonl"))

    written = 0
    for lines, sign in ((1, KILL), (20, CTRL_C), (45, KILL)):
        errors = stop(command(*words), lambda least=lines: journal().count(b"\n") >= least, sign)
        assert whole.startswith(journal())
        assert written < len(journal()) < len(whole)
        written = len(journal())
        if sign == CTRL_C:
            assert errors == "rmtllmf: stopped; the same command goes on from here.\n"
    assert not (run / "results.parquet").exists()

    main(words)
    assert files(run / "sweep") == files(finished.folder / "sweep")
    assert_same_tables(run, finished)


@pytest.mark.parametrize("cut", [1, 30])
@pytest.mark.slow
def test_a_line_that_a_crash_cut_short_is_done_again(
    finished: TinyRun, tmp_path: Path, cut: int
) -> None:
    run = finished.copy(tmp_path / "run")
    (journal,) = (run / "sweep").iterdir()
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-cut])
    cache = finished.users[finished.users.index("--cache-dir") + 1]
    main(["sweep", "--out", str(run), "--cache-dir", cache, *finished.grid])
    assert journal.read_bytes() == whole
    assert_same_tables(run, finished)
