"""Merging eight ViT-B/16 task vectors, in memory and from disk to disk, against torch and mergekit.

One interleaved run after an equality check; prints medians, ratios and peak memory. Needs the
`parity` extra; mergekit is timed where its command is given (an environment of its own will do).

    python benchmarks/fusion.py [--what memory|disk|size|all] [--rounds N] [--vectors 8]
                                [--mergekit PATH/TO/mergekit-pytorch] [--times 10] [--folder TMP]

`memory`: base + 0.3 x the sum of the vectors, 199 tensors of 85.8 M float32 parameters each (6 GiB
in all). Ours is `fusion.weighted_sum` and `add_to_base`, compiled; `addmv` is torch's one call on
flat vectors; the dict idiom is what public code does, a new state dict for every sum of two
vectors. `disk`: whole processes, from safetensors files to safetensors files that are fsynced: ours
is `rmtllmf fuse --no-hash-inputs` and, hashed, the command as it is by default; torch's is a script
in the dict idiom (which checks nothing); `--method ties` leaves that out. `size`: peak
memory (VmHWM, mapped files included) of `rmtllmf fuse` for two vectors and a model with so many
times the layers; with --times 10 it writes 14 GB.

Two CPU cores, float32, medians of 5 in memory and of 3 on disk (files in the page cache):

| what | time | peak memory | ours takes |
| --- | --- | --- | --- |
| memory, ours | 0.108 s | | |
| memory, torch addmv | 0.229 s | | 0.47 x (goal 1.1 x at most) |
| memory, torch dict idiom | 0.442 s | | 0.24 x (goal 0.2 x at most) |
| disk, task arithmetic, ours | 3.12 s | 0.33 GiB | |
| disk, task arithmetic, ours, hashed | 3.97 s | 0.33 GiB | 0.79 x |
| disk, task arithmetic, torch | 3.79 s | 1.96 GiB | 0.82 x |
| disk, task arithmetic, mergekit | 8.01 s | 3.80 GiB | 0.39 x (goal 0.25 x at most) |
| disk, TIES, ours | 17.1 s | 0.40 GiB | |
| disk, TIES, mergekit | 91.6 s | 4.00 GiB | 0.19 x |
| size, 2 vectors of 86 M | 2.6 s | 0.25 GiB | |
| size, 2 vectors of 858 M | 17.4 s | 0.26 GiB | |

On disk, 0.9 of our seconds start Python and JAX. One core hashes all 3.1 GB in 2 s, which the
others do not do; the merge reads the files again meanwhile, and both cores are busy to the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from model_sides import CASES
from processes import cleared, process
from safetensors import safe_open
from safetensors.numpy import save_file
from timing import interleaved, machine

from rmtllmf_jax import fusion
from rmtllmf_jax.models.backbone import Backbone, abstract_params

SCALE = 0.3
DENSITY = 0.2  # of TIES; our default
TIED = 1e-5  # of entries: equal ones at the threshold, all of which ours keeps and mergekit some
SIZE_VECTORS = 2  # of the run that measures memory: the disk has to hold them
GIB = 2**30
HASHED = "ours, hashed"
UNHASHED = ["--no-hash-inputs"]

# What public repositories do, as a process: every sum of two vectors is a new state dict.
TORCH_PROCESS = """
import sys
from safetensors.torch import load_file, save_file
base_path, *paths, out = sys.argv[1:]
base = load_file(base_path)
total = None
for path in paths:
    model = load_file(path)
    vector = {key: model[key] - base[key] for key in base}
    total = vector if total is None else {key: total[key] + vector[key] for key in total}
save_file({key: base[key] + SCALE * total[key] for key in base}, out)
""".replace("SCALE", str(SCALE))


@jax.jit
def ours(base: object, stacked: object, weights: jax.Array, scale: jax.Array) -> object:
    """Return the merged parameters, as a user of the library would."""
    return fusion.add_to_base(base, fusion.weighted_sum(stacked, weights), scale)


def dict_idiom(base: dict[str, torch.Tensor], vectors: list[dict[str, torch.Tensor]]) -> object:
    """Return the merged state dict: dicts are added two at a time, then to the base."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = {key: total[key] + vector[key] for key in total}
    return {key: base[key] + SCALE * total[key] for key in base}


def vit_b16() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the image tower's parameters by path."""
    half = (0.5,) * 3
    tree = abstract_params(Backbone(CASES["vit-b16"].module(CASES["vit-b16"].shape), half, half))
    return {path: leaf.shape for path, leaf in fusion.leaves_by_path(tree).items()}


def pieces(shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, slice]]:
    """Yield where each tensor lies in a flat vector."""
    start = 0
    for path, shape in shapes.items():
        size = int(np.prod(shape))
        yield path, slice(start, start + size)
        start += size


def in_memory(vectors: int, rounds: int) -> None:
    """Check and time the merge of vectors that are in memory."""
    shapes = vit_b16()
    places = dict(pieces(shapes))
    size = sum(place.stop - place.start for place in places.values())
    random = np.random.default_rng(0)
    flat_base = random.random(size, dtype=np.float32)
    flat = np.empty((vectors, size), np.float32)
    for row in flat:
        random.random(out=row, dtype=np.float32)

    def tree(array: np.ndarray) -> dict[str, jax.Array]:
        leading = array.shape[:-1]
        return {
            path: jnp.array(array[..., place].reshape(*leading, *shapes[path]))
            for path, place in places.items()
        }

    base, stacked = tree(flat_base), tree(flat)
    weights, scale = jnp.ones(vectors), jnp.float32(SCALE)
    torch_base, torch_flat = torch.from_numpy(flat_base), torch.from_numpy(flat)
    by_key = [
        {path: row[place].view(shapes[path]) for path, place in places.items()}
        for row in (torch_base, *torch_flat)
    ]
    ones = torch.ones(vectors)
    calls: dict[str, Callable[[], object]] = {
        "ours": partial(ours, base, stacked, weights, scale),
        "torch addmv": lambda: torch.addmv(torch_base, torch_flat.t(), ones, alpha=SCALE),
        "torch dict idiom": lambda: dict_idiom(by_key[0], by_key[1:]),
    }
    merged, flat_merged, dict_merged = (call() for call in calls.values())
    for path, place in places.items():
        expected = flat_merged[place].view(shapes[path]).numpy()
        for found in (merged[path], dict_merged[path].numpy()):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=path)
    del merged, flat_merged, dict_merged
    title = f"{vectors} vectors of {size / 1e6:.1f} M parameters in {len(places)} tensors, memory"
    report(title, interleaved(calls, rounds))


def write_model(folder: Path, seed: int, times: int) -> Path:
    """Write a model with random weights, one shard for each time that its layers are repeated."""
    folder.mkdir(parents=True)
    random, shapes = np.random.default_rng(seed), vit_b16()
    names = ["model.safetensors"]
    if times > 1:
        names = [f"model-{part:05d}-of-{times:05d}.safetensors" for part in range(1, times + 1)]
    where = {}
    for part, name in enumerate(names):
        tensors = {
            f"parts.{part}.{path.replace('/', '.')}": random.random(shape, dtype=np.float32)
            for path, shape in shapes.items()
        }
        save_file(tensors, folder / name, {"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    if times > 1:
        index = {"metadata": {"total_size": 4 * times * count(shapes)}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the number of parameters."""
    return sum(int(np.prod(shape)) for shape in shapes.values())


def fuse_command(
    base: Path, models: list[Path], out: Path, method: str, hashed: bool = False
) -> list[str]:
    """Return the command that merges."""
    words = ["fuse", "--base", base, "--models", *models, "--out", out]
    words += ["--method", method, "--scale", SCALE, *([] if hashed else UNHASHED)]
    return [str(Path(sys.executable).with_name("rmtllmf")), *map(str, words)]


def mergekit_command(
    program: str, config: Path, base: Path, models: list[Path], out: Path, method: str
) -> list[str]:
    """Return mergekit's command for the same merge; a mean for TIES, a sum otherwise."""
    ties = method == "ties"
    options = {"weight": 1.0} | ({"density": DENSITY} if ties else {})
    parts = [{"model": str(model), "parameters": options} for model in models]
    content = {"merge_method": method, "base_model": str(base), "models": parts}
    content |= {"dtype": "float32", "parameters": {"normalize": ties, "lambda": SCALE}}
    config.write_text(json.dumps(content))  # JSON is YAML
    return [program, str(config), str(out)]


def from_disk_to_disk(
    vectors: int, rounds: int, mergekit: str | None, folder: Path, method: str
) -> None:
    """Check and time whole processes that read models and write a merged one."""
    base, *models = (write_model(folder / str(seed), seed, 1) for seed in range(vectors + 1))
    files = [path / "model.safetensors" for path in (base, *models)]
    peaks: dict[str, float] = {}
    outs = {"ours": folder / "ours", HASHED: folder / "hashed"}
    commands = {
        name: fuse_command(base, models, out, method, name == HASHED) for name, out in outs.items()
    }
    if method == "task_arithmetic":
        outs["torch dict idiom"] = folder / "torch.safetensors"
        paths = [str(path) for path in (*files, outs["torch dict idiom"])]
        commands["torch dict idiom"] = [sys.executable, "-c", TORCH_PROCESS, *paths]
    if mergekit:
        outs["mergekit-pytorch"] = folder / "mergekit"
        commands["mergekit-pytorch"] = mergekit_command(
            mergekit,
            folder / "mergekit.yaml",
            files[0],
            files[1:],
            outs["mergekit-pytorch"],
            method,
        )
    else:
        print("mergekit: no --mergekit, left out")

    def call(name: str) -> None:
        process(commands[name], outs[name], peaks, name)

    calls = {name: partial(call, name) for name in commands}
    for run in calls.values():
        run()
    compare(outs, TIED if method == "ties" else 0.0)
    os.sync()
    title = (
        f"{vectors} vectors of {count(vit_b16()) / 1e6:.1f} M parameters, disk to disk, {method}"
    )
    medians = interleaved(calls, rounds, before=lambda name: cleared(outs[name]))
    report(title, medians, peaks)


def compare(outs: dict[str, Path], may_differ: float) -> None:
    """Check that all merged models hold the same tensors, but for a share of their entries."""
    expected = tensors_of(outs["ours"])
    for name, out in outs.items():
        found = tensors_of(out)
        assert found.keys() == expected.keys(), name
        for key in expected:
            differs = ~np.isclose(found[key](), expected[key](), rtol=1e-5, atol=1e-6)
            assert differs.mean() <= may_differ, f"{name}: {key}: {differs.sum()} entries differ"


def tensors_of(out: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Return how to read each tensor of a file, or of a folder of files."""

    def read(file: Path, key: str) -> np.ndarray:
        with safe_open(file, "np") as opened:
            return opened.get_tensor(key)

    found = {}
    for file in [out] if out.is_file() else sorted(out.rglob("*.safetensors")):
        with safe_open(file, "np") as opened:
            found |= {key: partial(read, file, key) for key in opened.keys()}  # noqa: SIM118
    return found


def by_size(times: int, folder: Path) -> None:
    """Print the peak memory of the command for a model and for one of so many times its size."""
    for factor in (1, times):
        place = folder / f"times-{factor}"
        base, *models = (
            write_model(place / str(seed), seed, factor) for seed in range(SIZE_VECTORS + 1)
        )
        peaks: dict[str, float] = {}
        start = time.perf_counter()
        command = fuse_command(base, models, place / "out", "task_arithmetic")
        process(command, place / "out", peaks, "ours")
        took = time.perf_counter() - start
        parameters = factor * count(vit_b16())
        print(
            f"{SIZE_VECTORS} vectors of {parameters / 1e6:.1f} M parameters "
            f"({4 * parameters / GIB:.2f} GiB each), disk to disk: "
            f"peak memory {peaks['ours']:.2f} GiB, {took:.1f} s",
            flush=True,
        )
        shutil.rmtree(place)


def report(title: str, medians: dict[str, float], peaks: dict[str, float] | None = None) -> None:
    """Print times, ratios to ours and, of processes, peak memory."""
    print(title)
    for name, seconds in medians.items():
        memory = f"   peak memory {peaks[name]:.2f} GiB" if peaks else ""
        ratio = "" if name == "ours" else f"   ours takes {medians['ours'] / seconds:.2f} x"
        print(f"  {name:18s} {seconds:8.3f} s{memory}{ratio}", flush=True)


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", choices=("memory", "disk", "size", "all"), default="all")
    parser.add_argument("--rounds", type=int, help="9 in memory, 3 from disk to disk")
    parser.add_argument("--vectors", type=int, default=8)
    parser.add_argument(
        "--method", choices=("task_arithmetic", "ties"), default="task_arithmetic", help="on disk"
    )
    parser.add_argument("--mergekit", help="the program mergekit-pytorch, of any environment")
    parser.add_argument("--times", type=int, default=4, help="size of the larger model")
    parser.add_argument("--folder", type=Path, help="where models are written; default: tmp")
    options = parser.parse_args()
    print(machine("jax", "torch", "safetensors"))
    if options.what in ("memory", "all"):
        in_memory(options.vectors, options.rounds or 9)
    for what in ("disk", "size"):
        if options.what in (what, "all"):
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                if what == "disk":
                    rounds, peer = options.rounds or 3, options.mergekit
                    from_disk_to_disk(options.vectors, rounds, peer, Path(folder), options.method)
                else:
                    by_size(options.times, Path(folder))


if __name__ == "__main__":
    main()
