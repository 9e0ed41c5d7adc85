"""What every room may use: atomic files, hashes, errors that help, silent progress bars."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rmtllmf_jax.common import files, progress
from rmtllmf_jax.common.errors import (
    InputError,
    require_at_least,
    require_known,
    require_non_negative,
)
from rmtllmf_jax.common.interrupts import Stopped, exit_code, interrupts_held, stopping
from rmtllmf_jax.common.progress import progress_bar


def test_replacing_puts_the_new_file_in_place(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["a.txt"]


def test_replacing_keeps_the_old_file_when_the_body_raises(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half_written():
        with files.replacing(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half_written()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_replacing_keeps_the_old_file_when_the_process_is_killed(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from rmtllmf_jax.common.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half of the n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_the_content_is_on_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        order.append("folder" if is_folder else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("rename"), replace(*a)))
    files.write_bytes(tmp_path / "a", b"content")
    assert order == ["file", "rename", "folder"]


# What the machine refuses


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors
        ValueError("Failed to write to file 14: No space left [os_error_code='28']"),  # orbax
        OSError("[Errno 28] Error writing bytes to file"),  # pyarrow
    ],
)
def test_a_full_disk_names_the_file_whoever_says_it(tmp_path: Path, error: Exception):
    full = pytest.raises(OSError, match="No space left on device")
    with full as caught, files.replacing(tmp_path / "a"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (28, str(tmp_path / "a"))
    assert not os.listdir(tmp_path)


def test_who_may_read_a_file_is_up_to_the_umask(tmp_path: Path):
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            with files.replacing(tmp_path / "a") as temporary:
                temporary.unlink()
                os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def refuse(number: int) -> Callable[..., None]:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


def test_a_folder_that_cannot_be_synced_is_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fsync = os.fsync

    def of_a_share(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        (refuse(errno.EINVAL) if is_folder else fsync)(descriptor)

    monkeypatch.setattr(os, "fsync", of_a_share)
    files.write_bytes(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        files.sync(tmp_path)


@pytest.mark.parametrize("wait", [True, False])
def test_without_locks_a_warning_stands_for_the_lock(
    wait: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with open(tmp_path / "lock", "wb") as file, open(tmp_path / "lock", "wb") as other:
        files.lock(file, wait=wait)
        with pytest.raises(BlockingIOError):
            files.lock(other, wait=False)
        assert not caplog.messages
        monkeypatch.setattr("fcntl.flock", refuse(errno.ENOLCK))
        files.lock(other, wait=wait)
        assert f"{tmp_path}: the file system has no locks (No locks available)" in caplog.text


@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe\x00", b""])
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: not a JSON file"):
        files.read_json(path)
    with pytest.raises(InputError, match=r"gone\.json: no such file"):
        files.read_json(tmp_path / "gone.json")


def test_content_hash_does_not_depend_on_the_order_of_keys():
    assert files.content_hash({"a": 1, "b": {"c": 2, "d": 3}}) == files.content_hash(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1]}, {"a": 1, "b": None}])
def test_content_hash_tells_contents_apart(other: dict):
    assert files.content_hash({"a": 1}) != files.content_hash(other)


def test_a_misspelt_name_gets_a_suggestion_and_the_list():
    with pytest.raises(InputError) as caught:
        require_known("task", "svnh", ["mnist", "svhn"])
    message = "unknown task 'svnh'. Did you mean 'svhn'? Known: mnist, svhn."
    assert str(caught.value) == message
    with pytest.raises(InputError, match=r"^unknown task 'qqq'\. Known: mnist, svhn\.$"):
        require_known("task", "qqq", ["mnist", "svhn"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e-9])
def test_numbers_that_are_negative_or_not_finite_are_named(value: float):
    with pytest.raises(InputError, match="learning rate must be a finite number >= 0, got"):
        require_non_negative("learning rate", value)
    with pytest.raises(InputError, match="steps must be at least 3, got 2"):
        require_at_least("steps", 2, 3)


class Clock:
    """Stands in for `monotonic`."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


def test_a_bar_with_a_unit_shows_rates_on_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, clock: Clock
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar("sweep", 100, done=20, unit="cells") as advance:
        clock.now += 1000
        advance(0)
        clock.now += 10
        advance(4, images=12_000)
    out, err = capfd.readouterr()
    assert out == ""
    assert "24/100" in err
    assert "0.4 cells/s, 1,200 images/s" in err


def test_a_line_a_minute_is_logged_without_a_terminal(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], clock: Clock
):
    caplog.set_level(logging.INFO, "rmtllmf_jax.progress")
    with progress_bar("sweep", 4199, done=20, unit="cells") as advance:
        for _ in range(1000):
            clock.now += 0.125
            advance(1, images=100)
    assert caplog.messages == [
        "sweep: 500 of 4,199 cells, 8 cells/s, 800 images/s, 8 min left",
        "sweep: 980 of 4,199 cells, 8 cells/s, 800 images/s, 7 min left",
    ]
    assert {record.name for record in caplog.records} == {"rmtllmf_jax.progress"}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("total", "unit", "seconds", "line"),
    [
        (10, "", 100, "x: 2 of 10, 0.02/s, 7 min left"),
        (2, "cells", 100, "x: 2 of 2 cells, 0.02 cells/s"),
        (0, "files", 100, "x: 2 files, 0.02 files/s"),
        (3, "cells", 60, "x: 2 of 3 cells, 0.033 cells/s, 30 s left"),
        (1000, "cells", 60, "x: 2 of 1,000 cells, 0.033 cells/s, 8.3 h left"),
        (10**5, "cells", 60, "x: 2 of 100,000 cells, 0.033 cells/s, 34.7 d left"),
    ],
)
def test_lines_of_every_length_of_work(
    caplog: pytest.LogCaptureFixture,
    clock: Clock,
    total: int,
    unit: str,
    seconds: float,
    line: str,
):
    caplog.set_level(logging.INFO, "rmtllmf_jax.progress")
    with progress_bar("x", total, unit=unit) as advance:
        advance(0)
        clock.now += seconds
        advance(2)
    assert caplog.messages == [line]


def test_compilation_is_no_part_of_the_rate(caplog: pytest.LogCaptureFixture, clock: Clock):
    caplog.set_level(logging.INFO, "rmtllmf_jax.progress")
    with progress_bar("sweep", 10_000, unit="cells") as advance:
        clock.now += 600  # compiling
        advance(1)
        for _ in range(400):
            clock.now += 1
            advance(5)
    assert caplog.messages[:2] == [
        "sweep: 1 of 10,000 cells",
        "sweep: 301 of 10,000 cells, 5 cells/s, 32 min left",
    ]


STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize("sign", STOPS)
def test_a_signal_waits_for_the_end_of_the_block(sign: signal.Signals):
    reached = []
    before = [signal.getsignal(each) for each in STOPS]

    def interrupted():
        with stopping(), interrupts_held():
            signal.raise_signal(sign)
            reached.append("end")

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert exit_code(caught.value) == STOPS[sign]
    assert reached == ["end"]
    assert [signal.getsignal(each) for each in STOPS] == before
    with stopping(), interrupts_held():
        pass
    assert [signal.getsignal(each) for each in STOPS] == before


def test_a_second_signal_of_any_kind_takes_effect_at_once(capsys: pytest.CaptureFixture[str]):
    def twice():
        with stopping(), interrupts_held("wait"):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("not stopped")

    with pytest.raises(Stopped) as caught:
        twice()
    assert exit_code(caught.value) == 143
    assert capsys.readouterr().err == "wait\n"


def test_what_is_ignored_stays_so_as_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping(), interrupts_held():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_was_closed_is_no_error():
    """As where a window is closed: the signal comes when nobody can be told any more."""
    script = (
        "import signal, sys; from rmtllmf_jax.common.interrupts import *\n"
        "try:\n"
        "    with stopping(), interrupts_held('wait'):\n"
        "        sys.stdin.read()\n"
        "        signal.raise_signal(signal.SIGHUP)\n"
        "except Stopped as stop:\n"
        "    print('stopped', file=sys.stderr, flush=True)\n"
        "    sys.exit(exit_code(stop))\n"
    )
    ours, theirs = os.openpty()
    words = [sys.executable, "-c", script]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    os.close(ours)  # the terminal goes, and standard input says when
    process.communicate(timeout=60)
    assert process.returncode == 129


def test_ctrl_c_is_not_held_outside_the_main_thread():
    seen = []

    def hold():
        with interrupts_held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_the_time_left_does_not_count_the_first_step(monkeypatch: pytest.MonkeyPatch):
    """It compiles: a minute here, and a second for every other step."""
    from rich.progress import Progress

    now = [0.0]
    bar = Progress(get_time=lambda: now[0])  # as `progress_bar` has it on a terminal
    task = bar.add_task("steps", total=100)
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    rates = progress._Rates()  # and in a log
    for step in range(11):
        now[0] = 60.0 + step
        bar.update(task, advance=1)
        rates.add({"steps": 1})
    assert bar.tasks[0].time_remaining == pytest.approx(89, abs=1)
    assert rates.rates()["steps"] == pytest.approx(1)
