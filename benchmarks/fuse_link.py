"""`rmtllmf fuse` of language models with and without a link: time and peak memory of the command.

A Llama of random weights, base and models fine-tuned from it, is written as bfloat16 shards, and
merged by the command with each of the links below, in rounds that take all of them in turn. By
default it has the shape of TinyLlama, 1.1 billion parameters, and there are three models: 8.8 GB
are written, and each output takes 2.2 more while it is there.

    python benchmarks/fuse_link.py [--rounds 3] [--models 3] [--folder TMP] [--json]
                                   [--vocabulary 32000 --width 2048 --mlp 5632 --layers 22 --kv 256]

Before timing, each output is checked to hold the base's tensors, finite, and to be another model
than without the link. Peak memory is VmHWM, mapped files included. `needs` is what the engine holds
by design: a tensor of the largest size for each model, one for the base, one for the merge.

Once each, two CPU cores, files in the page cache, 1.1 billion parameters and three models:

| link | time | peak memory (needs 1.22 GiB) |
| --- | --- | --- |
| no link | 15 s | 1.56 GiB |
| sum_rate | 68 s | 2.28 GiB |
| sum_rate, kappa given | 62 s | |

The noise of three models is 3.3 billion normal numbers; with kappa given no pass of the vectors
comes before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from processes import process
from safetensors import safe_open
from safetensors.numpy import save_file
from timing import interleaved, machine

LINKS: dict[str, list[str]] = {
    "no link": [],
    "sum_rate": ["--link", "sum_rate"],
    "sum_rate, kappa given": ["--link", "sum_rate", "--kappa", "0.01"],
    "sum_rate, repeat and shrink": [
        *("--link", "sum_rate"),
        *("--protection", "repeat(times=4)+shrink"),
    ],
    "sum_rate, sparse": ["--link", "sum_rate", "--protection", "sparse(share=0.1)"],
}
BFLOAT16 = np.dtype(jnp.bfloat16)
SHARD = 2**30  # bytes


def llama(
    vocabulary: int, width: int, mlp: int, layers: int, kv: int
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a Llama's tensors by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    for layer in range(layers):
        block = f"model.layers.{layer}"
        for name, rows in (("q", width), ("k", kv), ("v", kv), ("o", width)):
            shapes[f"{block}.self_attn.{name}_proj.weight"] = (rows, width)
        for name, shape in (("gate", (mlp, width)), ("up", (mlp, width)), ("down", (width, mlp))):
            shapes[f"{block}.mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}.{name}.weight"] = (width,)
    return shapes


def write(folder: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> Path:
    """Write a model of random weights near to the one of seed 0, in shards."""
    folder.mkdir(parents=True)
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if groups[-1] and filled + size > SHARD:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    where = {}
    base, own = np.random.default_rng(0), np.random.default_rng(seed)
    for part, names in enumerate(groups, start=1):
        file = f"model-{part:05}-of-{len(groups):05}.safetensors"
        tensors = {}
        for name in names:
            tensor = base.standard_normal(shapes[name], np.float32)
            if seed:
                tensor += 0.1 * own.standard_normal(shapes[name], np.float32)
            tensors[name] = (0.02 * tensor).astype(BFLOAT16)
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def tensor_of(folder: Path, name: str) -> np.ndarray:
    """Return one tensor of a sharded model as float32."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as opened:
            if name in opened.keys():  # noqa: SIM118
                return opened.get_tensor(name).astype(np.float32)
    raise SystemExit(f"{folder}: no {name}")


def run(link: str, base: Path, models: list[Path], out: Path, peaks: dict[str, float]) -> None:
    """Merge over a link, anew."""
    shutil.rmtree(out, ignore_errors=True)
    words: list[Any] = ["fuse", "--base", base, "--models", *models, "--out", out]
    words += ["--scale", 0.3, *LINKS[link]]
    program = "from rmtllmf_jax.cli.main import main; main()"
    process([sys.executable, "-c", program, *map(str, words)], out, peaks, link)


def check(shapes: dict[str, tuple[int, ...]], outs: dict[str, Path]) -> None:
    """Check that outputs are whole, and that links changed them."""
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        plain = tensor_of(outs["no link"], name)
        for link, out in outs.items():
            found = tensor_of(out, name)
            assert found.shape == shapes[name], f"{link}: {name}: {found.shape}"
            assert np.isfinite(found).all(), f"{link}: {name}"
            assert link == "no link" or (found != plain).any(), f"{link}: {name}: as without"


def main() -> None:
    """Write, check, time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=int, default=3)
    for name, default in (
        *(("vocabulary", 32_000), ("width", 2048)),
        *(("mlp", 5632), ("layers", 22), ("kv", 256)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--links", nargs="*", choices=tuple(LINKS), default=tuple(LINKS))
    parser.add_argument("--folder", type=Path, help="where models are written; default: tmp")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args()
    shapes = llama(options.vocabulary, options.width, options.mlp, options.layers, options.kv)
    links = list(dict.fromkeys(("no link", *options.links)))
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        folder = Path(place)
        base, *models = (
            write(folder / str(seed), shapes, seed) for seed in range(options.models + 1)
        )
        outs = {link: folder / f"out-{number}" for number, link in enumerate(links)}
        calls = {link: partial(run, link, base, models, outs[link], peaks) for link in links}
        for call in calls.values():
            call()
        check(shapes, outs)
        medians = interleaved(calls, options.rounds)
    largest = 4 * max(int(np.prod(shape)) for shape in shapes.values()) / 2**30
    found = {
        "machine": machine("jax", "safetensors"),
        "parameters": sum(int(np.prod(shape)) for shape in shapes.values()),
        "models": options.models,
        "needs_gib": (options.models + 2) * largest,
        "links": {
            link: {
                "seconds": seconds,
                "peak_gib": peaks[link],
                "over_no_link": seconds / medians["no link"],
            }
            for link, seconds in medians.items()
        },
    }
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(found["machine"])
    print(
        f"{options.models} models of {found['parameters'] / 1e6:,.1f} M parameters, bfloat16, disk "
        f"to disk; tensors need {found['needs_gib']:.2f} GiB\n"
    )
    print("| link | time | over no link | peak memory |\n| --- | --- | --- | --- |")
    for link, seconds in medians.items():
        ratio = seconds / medians["no link"]
        print(f"| {link} | {seconds:.1f} s | {ratio:.2f} x | {peaks[link]:.2f} GiB |")


if __name__ == "__main__":
    main()
