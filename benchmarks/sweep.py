"""A sweep's cells, noise and all, against what public code does in torch.

One interleaved run after an equality check; prints medians and ratios. Needs the `parity` extra.

    python benchmarks/sweep.py [--what peers|devices|chunks|streams|all] [--case tiny|vit-ti]
        [--images 50] [--rounds 5]

`peers`: eight users, combinations of two to eight tasks, three scenarios; each cell merges the
received task vectors and counts the test images of its tasks. Ours is `sweep.Engine`, two cells in
threads as the command does on a CPU. The torch idiom is what public sweeps do for each cell: load
the base and the fine-tuned checkpoints from disk, subtract, add noise to each vector, add up, load
the state into the model, evaluate batch by batch. The dict idiom keeps the vectors in memory as
state dicts and does the rest. Equality: the noiseless merges count the same images right.
`devices`: our cells a second on 1, 2, 4 and 8 forced host devices (processes of their own; they
share the same cores). `chunks`: time and peak memory (VmHWM, processes of their own) against the
cells at once; `streams`: against the threads.

Two cores, medians of 3 (vit-ti) and 11 rounds, goal: 4 times as fast; milliseconds a cell, `vit-ti`
has 64 pixels:

| what | tiny, 10 images per task | tiny, 50 | vit-ti, 10 | vit-ti, 50 |
| --- | --- | --- | --- | --- |
| ours | 6.8 | 14.3 | 77 | 217 |
| torch, load a cell | 37.2 (ours 5.44 x as fast) | 43.0 (3.01 x) | 334 (4.34 x) | 676 (3.11 x) |
| torch, dicts in memory | 22.7 (3.33 x) | 33.9 (2.37 x) | 303 (3.94 x) | 653 (3.01 x) |

Other runs of the tiny case, an hour before, had 4.24 and 4.97, 2.66 and 2.70 times the speed of
loading. The goal is reached at 10 images per task and missed at 50, where a cell is the forward
passes of its tasks, five on average, in both. One program leaves the cores idle for a third of the
time (tiny) or less (larger models), which the second thread fills.

In processes of their own, tiny, 50 images; the machine moves them by a third from one to the next,
so no order among them is to be read: cells at once (1, 2, 4, 8) 19.4, 18.1, 25.6, 17.9 ms, peak .55
to .64 GiB; forced devices (1, 2, 4, 8) on the same two cores 16.2, 15.6, 13.8, 14.9 ms, .57 to .65
GiB; streams (1, 2) 18.6, 15.2 ms, .57 and .61 GiB, of `vit-ti` 222, 188 ms, 1.23 and 1.45 GiB. Two
programs are compiled for all cells.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from model_sides import random_backbone
from sweep_sides import (
    CASES,
    SETTINGS,
    CountingJit,
    DictIdiom,
    LoadIdiom,
    Users,
    counted,
    engine_of,
    inputs_of,
    jobs_of,
)
from timing import interleaved, machine, peak_memory

from rmtllmf_jax.sweep.layout import Layout
from rmtllmf_jax.sweep.memory import streams_that_fit

IN_PROCESSES = {"devices": (1, 2, 4, 8), "chunks": (1, 2, 4, 8), "streams": (1, 2)}


def against_peers(case: str, images: int, rounds: int) -> None:
    """Check and time our engine and both idioms on the same cells."""
    torch_side = Users(CASES[case])
    backbone, base = torch_side.loaded()
    inputs = inputs_of(backbone, base, images, torch_side.vectors(base))
    jit, device = CountingJit(), jax.local_devices()[0]
    layout = Layout((device,), streams=streams_that_fit(inputs, SETTINGS, device))
    engine = engine_of(inputs, layout, jit)
    jobs, quiet = jobs_of(inputs.tasks, noisy=True), jobs_of(inputs.tasks, noisy=False)
    with tempfile.TemporaryDirectory() as folder:
        peers = {
            "torch, load a cell": LoadIdiom(torch_side, inputs, engine, Path(folder)),
            "torch, dicts in memory": DictIdiom(torch_side, inputs, engine),
        }
        expected = counted(engine, quiet)
        total = images * sum(len(job.cell.combination) for job in quiet)
        for name, peer in peers.items():
            found = peer(quiet)
            apart = sum(abs(found[key] - expected[key]) for key in expected)
            assert apart <= 1e-3 * total, f"{name}: {apart} of {total} images apart"  # argmax ties
        calls: dict[str, Callable[[], Any]] = {"ours": partial(counted, engine, jobs)}
        calls |= {name: partial(peer, jobs) for name, peer in peers.items()}
        for call in calls.values():
            call()
        medians = interleaved(calls, rounds)
    print(f"{case}: {len(jobs)} cells of {len(inputs.tasks)} users, {images} images per task")
    for name, seconds in medians.items():
        print(f"  {name:24s} {1000 * seconds / len(jobs):8.1f} ms a cell", end="")
        print("" if name == "ours" else f"   ours {seconds / medians['ours']:.2f} x as fast")
    print(f"  programs compiled for all {len(jobs) + len(quiet)} cells: {jit.programs}")


def alone(case: str, images: int, rounds: int, at_once: int, streams: int) -> None:
    """Time our engine on all devices of this process; print JSON for the process that asked."""
    backbone, params = random_backbone(CASES[case])
    inputs = inputs_of(backbone, params, images)
    engine = engine_of(inputs, Layout(tuple(jax.local_devices()), at_once, streams=streams))
    jobs = jobs_of(inputs.tasks, noisy=True)
    counted(engine, jobs)
    seconds = interleaved({"ours": partial(counted, engine, jobs)}, rounds)["ours"]
    print(json.dumps({"seconds": seconds, "cells": len(jobs), "peak": peak_memory()}))


def in_processes(what: str, case: str, images: int, rounds: int) -> None:
    """Time our engine in a process for each number of devices, cells at once, or streams."""
    print(f"{case}, {what}")
    option = {"devices": "--forced", "chunks": "--at-once", "streams": "--streams"}[what]
    for number in IN_PROCESSES[what]:
        words = ["--what", "alone", "--case", case, "--images", images, "--rounds", rounds]
        words += [option, number]
        command = [sys.executable, __file__, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        each = 1000 * found["seconds"] / found["cells"]
        print(f"  {number}: {each:.1f} ms a cell, peak memory {found['peak']:.2f} GiB", flush=True)


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ("peers", *IN_PROCESSES, "all", "alone")
    parser.add_argument("--what", choices=choices, default="all")
    parser.add_argument("--case", choices=tuple(CASES), default="tiny")
    parser.add_argument("--images", type=int, default=50, help="test images per task")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forced", type=int, default=1, help="host devices (alone)")
    parser.add_argument("--at-once", type=int, default=1, help="cells at once (alone)")
    parser.add_argument("--streams", type=int, default=1, help="threads (alone)")
    options = parser.parse_args()
    if options.what == "alone":
        if jax.config.jax_platforms in (None, "", "cpu") and options.forced > 1:
            jax.config.update("jax_num_cpu_devices", options.forced)
        alone(options.case, options.images, options.rounds, options.at_once, options.streams)
        return
    print(machine("jax", "torch", "transformers"))
    if options.what in ("peers", "all"):
        against_peers(options.case, options.images, options.rounds)
    for what in IN_PROCESSES:
        if options.what in (what, "all"):
            in_processes(what, options.case, options.images, options.rounds)


if __name__ == "__main__":
    main()
