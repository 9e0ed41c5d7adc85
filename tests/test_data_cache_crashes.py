"""The image cache under kill -9 at every step of a build, and under two builders at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rmtllmf_jax
from rmtllmf_jax.data.cache import load_split
from rmtllmf_jax.data.sources.folder import DataFolder

COUNT = 80

# Builds an entry; at call number `at` of `step` it kills itself ("kill") or hangs ("hang").
BUILDER = """
import json, os, signal, sys, time
from pathlib import Path
from rmtllmf_jax.data import cache as module
from rmtllmf_jax.data.cache import load_split
from rmtllmf_jax.data.sources.folder import DataFolder

root, cache, step, at, deed, pause = sys.argv[1:]
os.cpu_count = lambda: 2
calls = {}

def watched(owner, name):
    original = getattr(owner, name)
    def call(*args, **options):
        calls[name] = calls.get(name, 0) + 1
        if name == step and calls[name] == int(at):
            if deed == "hang":
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "decode_image":
            time.sleep(float(pause))
        return original(*args, **options)
    setattr(owner, name, call)

watched(module, "decode_image")
for name in ("posix_fallocate", "fsync", "replace", "rename"):
    watched(os, name)
print("ready", flush=True)
sys.stdin.readline()
loaded = load_split(DataFolder(Path(root)), "dtd", "train", 10, Path(cache))
print(json.dumps([calls.get("decode_image", 0), int(loaded.images.sum())]))
"""


@pytest.fixture(scope="module")
def whole(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return built(tiny_data, tmp_path_factory.mktemp("whole"))


def built(tiny_data: Path, cache: Path) -> dict[str, bytes]:
    """Build or open the entry here; return its files."""
    loaded = load_split(DataFolder(tiny_data), "dtd", "train", 10, cache)
    entry = cache / "images" / loaded.fingerprint
    return {path.name: path.read_bytes() for path in entry.iterdir()}


def start(
    tiny_data: Path,
    cache: Path,
    step: str = "",
    at: int = 0,
    deed: str = "kill",
    pause: float = 0,
) -> subprocess.Popen[str]:
    arguments = [str(value) for value in (tiny_data, cache, step, at, deed, pause)]
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, *arguments],
        cwd=Path(rmtllmf_jax.__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def release(*processes: subprocess.Popen[str]) -> None:
    """Let processes go on together, once all have done their imports."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def names_in(cache: Path) -> list[str]:
    return [path.name for path in (cache / "images").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("step", "at"),
    [
        ("posix_fallocate", 2),
        ("decode_image", 40),
        ("fsync", 3),  # the images, after the note on how they are stored
        ("fsync", 5),  # meta.json beside its name
        ("replace", 2),  # meta.json
        ("rename", 1),  # the entry
        ("fsync", 7),  # the cache folder: the entry has its name
    ],
)
def test_kill_leaves_nothing_or_all(
    tiny_data: Path, whole: dict[str, bytes], tmp_path: Path, step: str, at: int
) -> None:
    with start(tiny_data, tmp_path, step, at) as process:
        release(process)
        assert process.wait(60) == -signal.SIGKILL
    finished = [name for name in names_in(tmp_path) if not name.startswith(".")]
    if (step, at) == ("fsync", 7):
        (entry,) = finished
        files = {path.name: path.read_bytes() for path in (tmp_path / "images" / entry).iterdir()}
        assert files == whole
    else:
        assert finished == []
        assert len(names_in(tmp_path)) == 1  # what the killed process left behind
    assert built(tiny_data, tmp_path) == whole
    assert len(names_in(tmp_path)) == 1
    assert not names_in(tmp_path)[0].startswith(".")


def test_two_builders_at_once_build_once(
    tiny_data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with (
        start(tiny_data, tmp_path, pause=0.01) as first,
        start(tiny_data, tmp_path, pause=0.01) as second,
    ):
        release(first, second)
        results = [json.loads(process.communicate(timeout=60)[0]) for process in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0)
    assert sorted(decoded for decoded, _ in results) == [0, COUNT]
    assert results[0][1] == results[1][1]
    assert built(tiny_data, tmp_path) == whole
    assert len(names_in(tmp_path)) == 1


def test_the_lock_of_a_killed_builder_is_free(
    tiny_data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with (
        start(tiny_data, tmp_path, "decode_image", 30, "hang") as first,
        start(tiny_data, tmp_path) as second,
    ):
        release(first)
        deadline = time.monotonic() + 30
        while not (tmp_path / "images").exists() or not names_in(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        release(second)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(0.5)  # waits for the first
        os.kill(first.pid, signal.SIGKILL)
        decoded, _ = json.loads(second.communicate(timeout=60)[0])
    assert decoded == COUNT
    assert built(tiny_data, tmp_path) == whole
