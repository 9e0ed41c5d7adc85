"""Kill -9, full disks, changed inputs: OUT is whole or not there, and finished shards are kept."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.common import files
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files import outputs
from rmtllmf_jax.fusion.files.fusing import fusing
from rmtllmf_jax.fusion.files.matching import Parts
from rmtllmf_jax.fusion.files.plan import Recipe, plan_fusion
from rmtllmf_jax.fusion.rules import TaskArithmetic

SHARDS, ROWS = 120, 1000
SIZE = 4 * ROWS
SHARD_SIZE = str(SIZE)
FUSE = """
import sys
from pathlib import Path
from rmtllmf_jax.cli.fuse import Fuse
base, model, out = map(Path, sys.argv[1:4])
"""
RUN = FUSE + f"Fuse(base=base, models=(model,), out=out, shard_size='{SHARD_SIZE}').run()\n"
LIMITED = (
    """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""
    + FUSE
    + """
from rmtllmf_jax.common.errors import InputError
try:
    Fuse(base=base, models=(model,), out=out, shard_size="5KB", scale="1").run()
except InputError as error:
    print(error, end="")
    sys.exit(2)
"""
)


def content(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {f"w{n:03}": random.normal(size=ROWS).astype(np.float32) for n in range(SHARDS)}


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "base.safetensors", tmp_path / "a.safetensors"]
    for seed, path in enumerate(paths):
        save_file(content(seed), path)
    return paths


def shards(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of change of the finished shards."""
    stats = {path.name: path.stat() for path in folder.glob("[!.]*.safetensors")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def part(out: Path) -> Path:
    return out.with_name(f".{out.name}.part")


def killed(out: Path, models: list[Path], reached: int) -> dict[str, tuple[int, int]]:
    """Kill a merge once so many shards are finished; return those that are."""
    words = [sys.executable, "-c", RUN, *map(str, models), str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 100
        while len(shards(part(out) / "model")) < reached:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "the moment never came"
            time.sleep(0.001)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    return shards(part(out) / "model")


def fuse(out: Path, models: list[Path], **options: Any) -> dict[str, np.ndarray]:
    options = {"shard_size": SHARD_SIZE} | options
    Fuse(base=models[0], models=(models[1],), out=out, **options).run()
    return {
        key: value for path in out.glob("*.safetensors") for key, value in load_file(path).items()
    }


def expected(scale: float = 1.0) -> dict[str, np.ndarray]:
    base, model = content(0), content(1)
    return {key: base[key] + scale * (model[key] - base[key]) for key in base}


def assert_merged(found: dict[str, np.ndarray], scale: float = 1.0) -> None:
    assert sorted(found) == sorted(content(0))
    for key, value in expected(scale).items():
        np.testing.assert_allclose(found[key], value, atol=1e-5)


def test_kill_9_keeps_the_finished_shards(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    kept = killed(out, models, 3)
    more = killed(out, models, len(kept) + 5)
    assert len(kept) + 5 <= len(more) < SHARDS
    assert kept.items() <= more.items()
    stray = part(out) / "model" / ".model-00099-of-00120.safetensors.1.part"
    stray.write_bytes(b"half")

    assert_merged(fuse(out, models))
    assert more.items() <= shards(out).items()
    assert f"{len(more)} of {SHARDS} shards are finished already.\n" in capsys.readouterr().out
    assert not part(out).exists()
    assert not list(out.glob(".*"))
    resumed = out.rename(tmp_path / "resumed")
    fuse(out, models)  # in the same place: names and paths within are relative to it
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in resumed.iterdir())
    for path in out.iterdir():
        assert path.read_bytes() == (resumed / path.name).read_bytes(), path.name


def work(out: Path, models: list[Path], before_the_end: Callable[[], object], size: int) -> None:
    """Merge, and do something before the end."""
    recipe = Recipe(TaskArithmetic(), 1.0)
    plan = plan_fusion(out, models[0], [models[1]], recipe, shard_bytes=size)
    with fusing(plan) as under_way:
        under_way.merge(None)
        before_the_end()
        under_way.finish(None)


def interrupted(out: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a part folder with two finished shards."""
    tensors: list[str] = []

    def stored(tensor: np.ndarray, dtype: str, key: str) -> np.ndarray:
        if len(tensors) == 2:
            raise KeyboardInterrupt
        tensors.append(key)
        return tensor

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "stored", stored)
        with pytest.raises(KeyboardInterrupt):
            work(out, models, lambda: None, SIZE)
    assert len(shards(part(out) / "model")) == 2


@pytest.mark.parametrize("change", ["nothing", "scale", "input", "touched"])
def test_shards_of_other_inputs_or_options_are_made_again(
    models: list[Path],
    tmp_path: Path,
    change: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    out = tmp_path / "out"
    interrupted(out, models, monkeypatch)
    before = shards(part(out) / "model")
    options = {"scale": "0.5"} if change == "scale" else {}
    if change == "input":
        times = os.stat(models[1])
        save_file(content(1), models[1])
        os.utime(models[1], ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it were the old one
    if change == "touched":
        models[0].touch()
    assert_merged(fuse(out, models, **options), 0.5 if change == "scale" else 1.0)
    output = capsys.readouterr().out
    assert (before.items() <= shards(out).items()) == (change == "nothing")
    assert ("was of other inputs or options; starting again." in output) == (change != "nothing")
    assert ("2 of 120 shards are finished already." in output) == (change == "nothing")


def test_a_folder_of_somebody_else_is_left_alone(models: list[Path], tmp_path: Path):
    theirs = part(tmp_path / "out") / "model"
    theirs.mkdir(parents=True)
    (theirs / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"\.out\.part: is not of rmtllmf"):
        fuse(tmp_path / "out", models)
    assert (theirs / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_an_output_that_exists_is_refused(models: list[Path], tmp_path: Path, kind: str):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("")
    elif kind == "folder":
        out.mkdir()
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="out: exists already; name a new folder"):
        fuse(out, models)
    assert not part(out).exists()


def test_an_output_that_appears_meanwhile_is_not_overwritten(models: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="out: exists already"):
        work(out, models, out.mkdir, 10**9)
    assert not list(out.iterdir())


def test_an_input_that_changes_meanwhile_is_found(models: list[Path], tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"a.safetensors: was changed while it was being merged"):
        work(out, models, lambda: save_file(content(7), models[1]), 10**9)
    assert not out.exists()
    found = fuse(out, models)
    for key, value in content(7).items():
        np.testing.assert_allclose(found[key], value, atol=1e-5)


@pytest.mark.parametrize("merged", ["a", "b"])
def test_a_base_that_is_cut_meanwhile_is_named(tmp_path: Path, merged: str):
    """What is merged and what is copied beside it are written by two threads: b lies last."""
    paths = [tmp_path / "base.safetensors", tmp_path / "model.safetensors"]
    for seed, path in enumerate(paths):
        save_file({key: np.full(50_000, seed, np.float32) for key in "ab"}, path)
    parts = Parts(only=(merged,))
    plan = plan_fusion(
        tmp_path / "out", paths[0], paths[1:], Recipe(TaskArithmetic(), 1.0, parts=parts)
    )
    assert [each.merged for each in plan.shards[0].tensors] == [merged == "a", merged == "b"]
    os.truncate(paths[0], paths[0].stat().st_size - 4)
    says = r"base.safetensors: ends within b; was it changed"
    with pytest.raises(InputError, match=says), fusing(plan) as under_way:
        under_way.merge(None)
    assert sorted(tmp_path.iterdir()) == paths


def test_one_process_at_a_time(models: list[Path], tmp_path: Path):
    root = part(tmp_path / "out")
    root.mkdir()
    with open(root / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another rmtllmf is working in"):
            fuse(tmp_path / "out", models)
    assert_merged(fuse(tmp_path / "out", models))


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path):
    random = np.random.default_rng(0)
    sizes = {"a": 1000, "b": 1000, "c": 9000, "d": 1000}
    for name in ("base", "model"):
        tensors = {key: random.normal(size=n).astype(np.float32) for key, n in sizes.items()}
        save_file(tensors, tmp_path / name)
    out = tmp_path / "out"
    words = [sys.executable, "-c", LIMITED, tmp_path / "base", tmp_path / "model", out]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith(f"{out}: cannot be written (File too large); nothing is there.")
    assert f"Finished shards are kept in {part(out)}: make room" in done.stdout
    assert not out.exists()
    kept = shards(part(out) / "model")
    assert sorted(kept) == ["model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors"]
    assert len(list((part(out) / "model").iterdir())) == 2
    Fuse(
        base=tmp_path / "base", models=(tmp_path / "model",), out=out, shard_size="5KB", scale="1"
    ).run()
    assert kept.items() <= shards(out).items()
    model = load_file(tmp_path / "model")
    for path in out.glob("*.safetensors"):
        for key, value in load_file(path).items():
            np.testing.assert_allclose(value, model[key], atol=1e-5)


def test_a_file_that_does_not_reach_the_disk_stops_the_merge(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It goes there while the next one is made, which is then not kept."""
    synced: list[str] = []

    def failing(path: Path) -> None:
        if path.name.startswith(".model-") and ".json" not in path.name:
            synced.append(path.name)
            if len(synced) == 3:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", failing)
        with pytest.raises(InputError, match=r"out: cannot be written \(Input/output error\)"):
            fuse(out, models)
    assert not out.exists()
    first = [f"model-{n:05}-of-00120.safetensors" for n in (1, 2)]
    assert sorted(shards(part(out) / "model")) == first
    assert_merged(fuse(out, models))


def test_a_disk_without_room_is_refused_before_the_work(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []
    disk = SimpleNamespace(total=10**6, used=10**6 - 100_000, free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or disk)
    out = tmp_path / "not yet" / "out"
    with pytest.raises(InputError, match=r"0\.00049\d+ GB are to be written, .* 0\.0001 GB free"):
        fuse(out, models)
    assert asked
    assert not out.exists()
    assert not part(out).exists()


MEMORY = """
import json, struct, sys
from pathlib import Path
import numpy as np
from rmtllmf_jax.cli.fuse import Fuse

root, method, rows = Path(sys.argv[1]), sys.argv[2], 10_000_000

def sparse(path, tensors):
    size = 4 * rows
    header = {f"w{n}": {"dtype": "F32", "shape": [rows], "data_offsets": [n * size, (n + 1) * size]}
              for n in range(tensors)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + tensors * size)

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def merge(tensors):
    paths = []
    for name in ("base", "a", "b"):
        paths.append(root / f"{name}{tensors}")
        sparse(paths[-1], tensors)
    Fuse(base=paths[0], models=tuple(paths[1:]), out=root / f"out{tensors}",
         method=method).run()

tiny, rows = rows, 16
merge(1)
rows = tiny
before = peak()
merge(int(sys.argv[3]))
print(json.dumps([before, peak(), 4 * rows]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
@pytest.mark.parametrize(("method", "more", "count"), [("task_arithmetic", 2, 10), ("ties", 4, 5)])
@pytest.mark.slow
def test_memory_is_that_of_a_few_tensors(tmp_path: Path, method: str, more: int, count: int):
    words = [sys.executable, "-c", MEMORY, str(tmp_path), method, str(count)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before, after, tensor = json.loads(done.stdout.splitlines()[-1])
    users, fixed = 2, 25_000_000  # threads and programs
    assert (users + more) * tensor + fixed < 0.5 * 3 * count * tensor
    assert after - before < (users + more) * tensor + fixed, (after - before) / tensor
    shutil.rmtree(tmp_path)
