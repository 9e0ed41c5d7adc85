"""Cells outlive any crash, come back as they were added, and are one table whoever wrote them."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax.common import files
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.sweep import parts as module
from rmtllmf_jax.sweep.parts import CellStore, read_parts

WRITER = """
import sys
from rmtllmf_jax.sweep.parts import CellStore

folder, count = sys.argv[1], int(sys.argv[2])
with CellStore(folder, every=0.0) as parts:
    for n in range(count):
        cell = f"{n:04x}"
        if cell not in parts:
            parts.add(cell, [{"task": f"t{r}", "n": n, "x": n / 7 + r} for r in range(n % 3 + 1)])
    sys.stdin.read()  # whoever is to kill this comes in time
"""


def rows_of(n: int) -> list[dict[str, Any]]:
    """Return the rows that `WRITER` makes of cell n."""
    return [{"task": f"t{r}", "n": n, "x": n / 7 + r} for r in range(n % 3 + 1)]


def cells(count: int) -> dict[str, list[dict[str, Any]]]:
    return {f"{n:04x}": rows_of(n) for n in range(count)}


def table_of(content: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """Return what `read_parts` must return."""
    return pd.DataFrame([{"cell": cell} | row for cell in sorted(content) for row in content[cell]])


def write(folder: Path | str, content: dict[str, list[dict[str, Any]]], **options: Any) -> None:
    with CellStore(folder, **options) as parts:
        for cell, rows in content.items():
            parts.add(cell, rows)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


def stored(folder: Path) -> list[str]:
    """Return the names of parts; none of files that a kill left half-written."""
    return [name for name in names(folder) if name.startswith("part-")]


class Clock:
    """Stands in for `monotonic`."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "parts"


@pytest.fixture
def bucket() -> Iterator[str]:
    """An object store that is empty and nobody else's."""
    yield f"memory://{uuid.uuid4().hex}/run/parts"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_cells_come_back_as_they_were_added(place: Any):
    row = {"a": "é\0\n", "b": 2**62, "c": -0.0, "d": True, "e": float("inf")}
    content = {"ab": [row, row | {"c": 1e-310, "b": -1}], "01": [row | {"a": "", "d": False}]}
    write(place, content)
    with CellStore(place) as parts:
        assert {cell: parts[cell] for cell in parts} == content
        assert [type(value) for value in parts["ab"][0].values()] == [str, int, float, bool, float]
        assert len(parts) == 2
        assert "ab" in parts
        assert "ff" not in parts
        with pytest.raises(KeyError):
            parts["ff"]
    pd.testing.assert_frame_equal(read_parts(place), table_of(content))


def test_nothing_is_there_before_the_first_cell(folder: Path, bucket: str):
    for place in (folder, bucket):
        with pytest.raises(InputError, match="parts: no such folder"):
            read_parts(place)
        with CellStore(place) as parts:
            assert len(parts) == 0
            assert parts.table().empty
    assert not folder.exists()
    folder.mkdir(parents=True)
    found = read_parts(folder)
    assert list(found.columns) == ["cell"]
    assert len(found) == 0


def test_cells_wait_for_the_next_flush(folder: Path, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    content = iter(cells(9).items())
    with CellStore(folder, every=10.0) as parts:
        clock.now += 9
        parts.add(*next(content))
        assert names(folder) == []
        assert len(parts) == 1
        assert parts["0000"] == rows_of(0)
        clock.now += 1
        parts.add(*next(content))
        assert len(names(folder)) == 1
        clock.now += 9.9
        parts.add(*next(content))
        assert len(names(folder)) == 1
        parts.flush()
        parts.flush()
        assert len(names(folder)) == 2
        parts.add(*next(content))
        assert len(parts) == 4
        pd.testing.assert_frame_equal(read_parts(folder), table_of(cells(3)))
    assert len(names(folder)) == 3
    pd.testing.assert_frame_equal(read_parts(folder), table_of(cells(4)))


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_finished_cells_are_written_whatever_ends_the_block(folder: Path, error: BaseException):
    def stopped() -> None:
        with CellStore(folder) as parts:
            parts.add("00", rows_of(0))
            raise error

    with pytest.raises(type(error)):
        stopped()
    assert list(CellStore(folder)) == ["00"]


def test_a_closed_table_takes_no_more(folder: Path):
    parts = CellStore(folder)
    parts.close()
    with pytest.raises(ValueError, match="closed; cell 00 cannot be added"):
        parts.add("00", rows_of(0))


def test_the_first_part_in_the_order_of_names_counts(folder: Path):
    late = {"00": [{"x": 2.0}], "01": [{"x": 2.5}]}
    write(folder, late, process=1)
    write(folder.with_name("other"), {"00": [{"x": 1.0}, {"x": 1.5}]}, process=0)
    (name,) = names(folder.with_name("other"))
    os.replace(folder.with_name("other") / name, folder / name)
    parts = CellStore(folder, process=7)
    assert {cell: parts[cell] for cell in parts} == {
        "00": [{"x": 1.0}, {"x": 1.5}],
        "01": late["01"],
    }
    assert list(read_parts(folder)["x"]) == [1.0, 1.5, 2.5]
    parts.add("00", [{"x": 3.0}])
    parts.close()
    assert len(names(folder)) == 2


def test_names_and_bookkeeping_of_the_files(folder: Path):
    before = time.time_ns()
    write(folder, cells(3), process=3)
    (name,) = names(folder)
    _, process, moment, digest = name.removesuffix(".parquet").split("-")
    assert process == "0003"
    assert before <= int(moment) <= time.time_ns()
    assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest()[:16]
    table = pq.read_table(folder / name)
    assert table.column_names == ["cell", "row", "rows", "task", "n", "x"]
    assert table["row"].to_pylist() == [0, 0, 1, 0, 1, 2]
    assert table["rows"].to_pylist() == [1, 2, 2, 3, 3, 3]
    assert table.schema.metadata[b"rmtllmf_version"] == b"2"


ROWS = st.lists(
    st.tuples(st.text(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans()),
    min_size=1,
    max_size=4,
)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_split_into_parts_and_processes_is_the_same_table(data: st.DataObject):
    drawn = data.draw(st.dictionaries(st.text("0123456789abcdef", min_size=1), ROWS, min_size=1))
    content = {
        cell: [dict(zip("abcd", row, strict=True)) for row in rows] for cell, rows in drawn.items()
    }
    order = data.draw(st.permutations(list(content)))
    order += data.draw(st.lists(st.sampled_from(order)))  # computed twice
    writers = [data.draw(st.integers(0, 3)) for _ in order]
    folder = f"memory://{uuid.uuid4().hex}"  # no fsync
    opened: dict[int, CellStore] = {}
    for cell, writer in zip(order, writers, strict=True):
        # A process does not see what the others add while it runs.
        parts = opened.setdefault(writer, CellStore(folder, process=writer, every=1e9))
        parts.add(cell, content[cell])
        if data.draw(st.booleans()):
            parts.flush()
        if data.draw(st.booleans()):
            opened.pop(writer).close()
    for parts in opened.values():
        parts.close()
    pd.testing.assert_frame_equal(read_parts(folder), table_of(content))
    final = CellStore(folder)
    assert final.damaged == []
    assert sorted(final) == sorted(content)
    for cell, rows in content.items():
        assert repr(final[cell]) == repr(rows)


def test_cells_whose_rows_are_not_all_there_are_not_done(folder: Path):
    """As of a program that cuts the table elsewhere."""
    write(folder, cells(3))
    (name,) = names(folder)
    whole = pq.read_table(folder / name)
    (folder / name).unlink()
    for cut, expected in [
        (whole.slice(0, 5), ["0000", "0001"]),
        (whole.slice(2), ["0002"]),
        (whole.take([0, 2, 1, 3, 4, 5]), ["0000", "0002"]),
        (whole.take([0, 1, 3, 4, 5, 2]), ["0000", "0002"]),
        (whole.slice(0, 0), []),
    ]:
        pq.write_table(cut, folder / "cut")
        digest = files.file_hash(folder / "cut")[:16]
        os.replace(folder / "cut", path := folder / f"part-0000-1-{digest}.parquet")
        assert list(CellStore(folder)) == expected
        assert sorted(set(read_parts(folder)["cell"])) == expected
        path.unlink()


def test_damaged_parts_are_skipped_named_once_kept_and_done_again(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    content = list(cells(6).items())
    write(folder, dict(content[:2]))
    write(folder, dict(content[2:4]))
    first, second = names(folder)
    whole = (folder / second).read_bytes()
    empty = "part-0000-1700000000000000000-0123456789abcdef.parquet"
    (folder / empty).write_bytes(b"")
    (folder / ".part-0000-half.parquet.77.part").write_bytes(whole[:99])
    (folder / "notes.txt").write_text("mine")
    for damage in (whole[:-1], whole[: len(whole) // 2], whole[:4], whole + b"\0"):
        (folder / second).write_bytes(damage)
        caplog.clear()
        parts = CellStore(folder)
        assert parts.damaged == [empty, second]
        assert sorted(parts) == ["0000", "0001"]
        (message,) = caplog.messages
        assert message.startswith(f"{folder}: 2 of 3 parts are damaged, as by a crash, and skipped")
        assert message.endswith(f"{empty}, {second}")
    write(folder, dict(content[2:]))
    assert len(names(folder)) == 6
    pd.testing.assert_frame_equal(read_parts(folder), table_of(dict(content)))
    assert first in names(folder)


def test_no_flipped_bit_goes_unseen(folder: Path):
    write(folder, cells(3))
    (name,) = names(folder)
    whole = (folder / name).read_bytes()
    for at in random.Random(0).sample(range(len(whole)), 60):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        (folder / name).write_bytes(flipped)
        assert CellStore(folder).damaged == [name]


def test_a_part_of_another_version_is_refused(place: Any, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 3)
        write(place, cells(1))
    for reading in (CellStore, read_parts):
        with pytest.raises(
            InputError, match=r"parts/part-.*: written in version 3 .* expected 2\. Name another"
        ):
            reading(place)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "cell 01: expected one row or more"),
        ([{"a": "x", "b": 1}], "cell 01: column c is missing and not double, as in what is"),
        ([{"a": "x", "b": 1, "c": 1.0, "z": 0}], "cell 01: column z is int64 and not missing"),
        ([{"a": "x", "b": 1, "c": 1.0}, {}], "cell 01: expected .* all with the same columns"),
        ([{"a": "x", "b": 1, "c": 2}], "cell 01: column c is int64 and not double"),
        ([{"a": "x", "b": True, "c": 1.0}], "column b is bool and not int64"),
        ([{"a": "x", "b": 1, "c": None}], "column c holds null, expected str, int"),
        ([{"a": "x", "b": 1, "c": [1.0]}], "column c holds list"),
        ([{"a": "x", "b": 2**64, "c": 1.0}], "cell 01: column b cannot be stored"),
        ([{"a": "\ud800", "b": 1, "c": 1.0}], "cell 01: column a cannot be stored"),
    ],
)
def test_rows_that_do_not_fit_are_refused(folder: Path, rows: list, message: str):
    good = {"a": "x", "b": 1, "c": 1.0}
    with CellStore(folder) as parts:
        parts.add("00", [good])
        with pytest.raises(InputError, match=message):
            parts.add("01", rows)
        parts.add("02", [{"c": np.float64(2.0), "b": 2, "a": "y"}])
    assert {cell: (p := CellStore(folder))[cell] for cell in CellStore(folder)} == {
        "00": [good],
        "02": [{"a": "y", "b": 2, "c": 2.0}],
    }
    assert list(p) == ["00", "02"]


def test_a_first_cell_that_does_not_fit_leaves_no_columns_behind(folder: Path):
    with CellStore(folder) as parts:
        with pytest.raises(InputError, match="columns of the store's own: row, rows"):
            parts.add("00", [{"rows": 1, "row": 2}])
        with pytest.raises(InputError, match="all with the same columns"):
            parts.add("00", [{"a": 1}, {"b": 1}])
        parts.add("00", [{"c": 1}])
    assert CellStore(folder)["00"] == [{"c": 1}]


def test_parts_with_other_columns_are_named_and_those_in_another_order_are_not(folder: Path):
    write(folder, {"00": [{"a": 1, "b": 2.0}]})
    write(folder.with_name("b"), {"01": [{"b": 4.0, "a": 3}]}, process=1)
    write(folder.with_name("c"), {"02": [{"a": 5, "b": 6}]}, process=2)
    for other in ("b", "c"):
        (name,) = names(folder.with_name(other))
        os.replace(folder.with_name(other) / name, folder / name)
        if other == "b":
            assert CellStore(folder)["01"] == [{"a": 3, "b": 4.0}]
    with pytest.raises(InputError, match=rf"{name}: column b is int64 and not double"):
        CellStore(folder)


def test_cells_that_were_finished_together_are_one_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """All of them, however long they took: kill -9 costs no cell of theirs."""
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    content = list(cells(9).items())
    with CellStore(folder, every=10.0) as parts:
        clock.now += 60
        parts.add_all(dict(content[:8]))
        assert len(read_parts(folder)["cell"].unique()) == 8
        assert len(names(folder)) == 1
        clock.now += 5
        parts.add_all(dict(content[8:]))
        assert len(names(folder)) == 1


def test_what_others_write_is_read_once(place: Any, monkeypatch: pytest.MonkeyPatch):
    content, reads = list(cells(6).items()), []
    waiting = CellStore(place)
    read = type(waiting._storage).read

    def counted(self: Any, some: Any) -> Any:
        reads.extend(some)
        return read(self, some)

    monkeypatch.setattr(type(waiting._storage), "read", counted)
    for number in range(3):
        write(place, dict(content[2 * number : 2 * number + 2]), process=1)
        reads.clear()
        waiting.refresh()
        waiting.refresh()
        assert len(reads) == 1
        assert len(waiting) == 2 * number + 2
    assert waiting.table().equals(read_parts(place))


def test_cells_tell_what_computed_them(folder: Path):
    for number, jax in enumerate(("1", "2", "1")):
        with CellStore(folder, program={"jax": jax}) as parts:
            parts.add_all(dict(list(cells(6).items())[2 * number : 2 * number + 2]))
    assert parts.programs(cells(5)) == [{"jax": "1", "cells": 3}, {"jax": "2", "cells": 2}]
    with pytest.raises(KeyError):
        parts.programs(["77"])


# Places


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gz://a/b", r"gz://a/b: no such kind of storage .*Expected a local folder"),
        ("gs://a/b", r"gs://a/b needs the package gcsfs, .*pip install 'rmtllmf-jax\[gcs\]'"),
        ("s3://a/b", r"s3://a/b needs the package s3fs, .*pip install 'rmtllmf-jax\[s3\]'"),
        ("abfs://a/b", r"abfs://a/b: needs a package that is not installed \(.*adlfs"),
    ],
)
def test_urls_that_cannot_be_used_say_why(monkeypatch: pytest.MonkeyPatch, url: str, message: str):
    for package in ("gcsfs", "s3fs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=message):
        CellStore(url)


def test_a_file_url_is_a_folder(folder: Path):
    write(f"file://{folder}", cells(2))
    pd.testing.assert_frame_equal(read_parts(folder), table_of(cells(2)))


def test_a_path_that_is_a_file_is_named(tmp_path: Path):
    (tmp_path / "parts").write_text("")
    with pytest.raises(InputError, match=r"parts: cannot be read \(Not a directory\)"):
        CellStore(tmp_path / "parts")


def test_fsspec_is_loaded_for_urls_alone(folder: Path):
    script = (
        "import sys; from rmtllmf_jax.sweep.parts import CellStore\n"
        "with CellStore(sys.argv[1]) as parts: parts.add('00', [{'a': 1}])\n"
        "print(*sorted({'fsspec', 'jax', 'flax'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert len(CellStore(folder)) == 1


def test_an_object_is_put_in_one_piece_and_listed_afresh(
    bucket: str, monkeypatch: pytest.MonkeyPatch
):
    system = type(fsspec.filesystem("memory"))
    puts, forgotten = [], []
    pipe = system.pipe_file
    monkeypatch.setattr(system, "invalidate_cache", lambda self, path=None: forgotten.append(path))
    monkeypatch.setattr(
        system, "pipe_file", lambda self, path, data: (puts.append(path), pipe(self, path, data))
    )
    write(bucket, cells(5), process=2)
    assert len(puts) == 1
    assert puts[0].startswith(bucket.removeprefix("memory:/") + "/part-0002-")
    assert forgotten == [bucket.removeprefix("memory:/")]
    assert len(CellStore(bucket)) == 5


# Crashes


class Full:
    """A disk that is full from its n-th fsync of a file on."""

    def __init__(self, room: int) -> None:
        self.room, self.fsync = room, os.fsync

    def __call__(self, descriptor: int) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.fsync(descriptor)


def test_a_full_disk_keeps_what_is_there_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    content = cells(6)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Full(room=4))  # two parts: file and folder
        with pytest.raises(InputError) as caught:
            write(folder, content, every=0.0)
    assert str(caught.value) == (
        f"{folder}: cannot be written (No space left on device). The 2 cells stored there are "
        "kept, the last 1 are not. Free some space, and run the same command again."
    )
    assert "No space left" in caplog.text  # closing tried once more
    assert len(names(folder)) == 2
    with CellStore(folder) as parts:
        assert list(parts) == ["0000", "0001"]
        for cell in content.keys() - set(parts):
            parts.add(cell, content[cell])
    pd.testing.assert_frame_equal(read_parts(folder), table_of(content))


def test_cells_that_could_not_be_written_go_on_waiting(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    parts = CellStore(folder)
    parts.add("0000", rows_of(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Full(room=0))
        with pytest.raises(InputError, match="No space left"):
            parts.flush()
    assert names(folder) == []
    assert "0000" in parts
    parts.close()
    assert list(CellStore(folder)) == ["0000"]


def test_a_store_that_fails_says_what_is_kept(bucket: str, monkeypatch: pytest.MonkeyPatch):
    class StoreError(Exception):
        """Not an OSError, as those of some stores."""

    def fail(*_: object) -> None:
        raise StoreError("quota of the project")

    write(bucket, cells(2))
    parts = CellStore(bucket)
    parts.add("0002", rows_of(2))
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", fail)
    with pytest.raises(
        InputError, match=r"cannot be written \(quota of the project\)\. The 2 cells .* are kept"
    ):
        parts.flush()
    assert list(CellStore(bucket)) == ["0000", "0001"]


@pytest.mark.parametrize(("moment", "kept"), [("os.fsync", 0), ("os.replace", 0), ("sync", 1)])
def test_kill_9_at_every_step_of_a_write(folder: Path, moment: str, kept: int):
    """The moments: before the file's fsync, before its rename, after it."""
    script = (
        "import os, signal, sys\n"
        "from rmtllmf_jax.common import files\n"
        "from rmtllmf_jax.sweep.parts import CellStore\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "parts = CellStore(sys.argv[1])\n"
        "parts.add('00', [{'a': 1}])\n"
    )
    if moment == "sync":
        script += "sync = files.sync\n"
        script += "files.sync = lambda path: die() if path.is_dir() else sync(path)\n"
    else:
        script += f"{moment} = die\n"
    words = [sys.executable, "-c", script + "parts.flush()\n", str(folder)]
    assert subprocess.run(words).returncode == -signal.SIGKILL
    parts = CellStore(folder)
    assert len(parts) == kept
    assert parts.damaged == []
    assert len(stored(folder)) == kept
    parts.close()


def killed_at_random(folder: Path, kills: int, count: int, seed: int) -> None:
    """Kill the writer at random moments, then let it finish; check what is there after each."""
    moments = random.Random(seed)
    content, reached = cells(count), set()
    words = [sys.executable, "-c", WRITER, str(folder), str(count)]
    for _ in range(kills):
        wanted = len(stored(folder)) + moments.randint(1, count // kills)
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 100
            while len(stored(folder)) < wanted:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline, "the moment never came"
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.005))
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        parts = CellStore(folder)
        assert parts.damaged == []
        assert reached < set(parts)
        assert all(parts[cell] == content[cell] for cell in parts)
        reached = set(parts)
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    write(undisturbed := folder.with_name("undisturbed"), content)
    pd.testing.assert_frame_equal(read_parts(folder), read_parts(undisturbed))
    pd.testing.assert_frame_equal(read_parts(folder), table_of(content))


def test_three_kills_at_random(folder: Path):
    killed_at_random(folder, kills=3, count=90, seed=0)


@pytest.mark.slow
def test_twenty_kills_at_random(folder: Path):
    killed_at_random(folder, kills=20, count=1000, seed=1)


@pytest.mark.parametrize("options", [{"process": -1}, {"every": -1.0}, {"every": float("nan")}])
def test_bad_options_are_named(folder: Path, options: dict):
    with pytest.raises(InputError, match=next(iter(options))):
        CellStore(folder, **options)
