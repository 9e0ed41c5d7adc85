"""Finished work (experiments/journal.py) outlives any crash, and comes back as it was written."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from rmtllmf_jax.common.errors import InputError

WORK = {
    "mnist+svhn/ideal/0/0/none": {"mnist": 0.1 + 0.2, "svhn": 1 / 3},
    "reference/mnist/base/test": 0.9,
    "a name\u2028with é and\n": [1, None, [2.5e-300, -0.0]],
}


def write(script: ModuleType, path: Path) -> bytes:
    with script.Journal(path) as journal:
        for name, value in WORK.items():
            assert journal.add(name, value) == value
    return path.read_bytes()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, imported as the experiments do: from their own folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    return importlib.import_module("journal")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "journal.jsonl"


def test_values_come_back_equal(script: ModuleType, path: Path) -> None:
    write(script, path)
    with script.Journal(path) as journal:
        assert {name: journal[name] for name in WORK} == WORK
        assert "reference/svhn/base/test" not in journal


def test_opening_again_appends(script: ModuleType, path: Path) -> None:
    before = write(script, path)
    with script.Journal(path) as journal:
        assert path.read_bytes() == before
        journal.add("more", 1)
    assert path.read_bytes() == before + b'{"name":"more","value":1}\n'


def test_an_added_line_is_in_the_file_at_once(script: ModuleType, path: Path) -> None:
    with script.Journal(path) as journal:
        for count, (name, value) in enumerate(WORK.items(), start=1):
            assert name not in journal
            journal.add(name, value)
            assert journal[name] == value
            lines = path.read_bytes().splitlines()
            assert len(lines) == count
            assert json.loads(lines[-1]) == {"name": name, "value": value}


def test_a_last_line_cut_anywhere_is_done_again(script: ModuleType, path: Path) -> None:
    whole = write(script, path)
    last = list(WORK)[-1]
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        with script.Journal(path) as journal:
            assert last not in journal, cut
            assert all(journal[name] == WORK[name] for name in list(WORK)[:-1])
            assert path.read_bytes() == whole[:start]
            journal.add(last, WORK[last])
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "damage", [b"\0\0\0\0", b'{"name": "a", "val', b"[]", b'{"name": "a"}', b"\xff", b""]
)
def test_a_damaged_line_before_the_last_is_named(
    script: ModuleType, path: Path, damage: bytes
) -> None:
    lines = write(script, path).splitlines(keepends=True)
    lines[1] = damage + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=r"journal\.jsonl, line 2: damaged"):
        script.Journal(path)
    assert path.read_bytes() == b"".join(lines)
