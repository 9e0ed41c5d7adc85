"""What a defence costs: seconds per configuration with and without each, in one interleaved run.

    python benchmarks/defences.py [--case tiny|vit-ti] [--images 10] [--rounds 5]

Eight users under the sum-rate attack. A configuration is one channel realisation: the channel, the
attack and the receiver's errors, what the users send, one merge of all eight tasks and its test
images. In a sweep all combinations of a realisation share what is sent. Before timing, the engine
is checked: a protection that does nothing (sent once, by the Gaussian transport) counts the same
images right.

Two cores, `tiny`, 10 images per task, medians of 5 rounds: 27 ms without; receivers and what is
done on the air 1.0 to 1.1 times that, `shrink` and `reliability` .9, `sparse` 1.4,
`singular_values` 2.6, `coded` 3.9.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from model_sides import random_backbone
from sweep_sides import CASES, SCALE, counted, engine_of, inputs_of
from timing import interleaved, machine

from rmtllmf_jax.defences import Protection, parse_protection
from rmtllmf_jax.sweep.grid import Cell
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.layout import Layout

NOTHING = "once+gaussian"
DEFENCES = (
    "none",
    "minimax",
    "estimated(snapshots=64)",
    "repeat(times=4)",
    "repeat(times=4, fading=independent)",
    "harq(rounds=4)",
    "hop(bands=8)",
    "schedule(groups=2)",
    "shrink",
    "reliability(alpha=0.5)",
    "singular_values",
    "sparse(share=0.2)",
    "coded",
)
DRAWS = 4
"""Configurations of a call."""


def jobs_of(tasks: tuple[str, ...], protection: str | Protection) -> list[Job]:
    """Return one merge of all tasks per channel realisation."""
    cells = (Cell(tasks, "sum_rate", draw, 0, protection) for draw in range(DRAWS))
    return [Job(cell, SCALE) for cell in cells]


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=tuple(CASES), default="tiny")
    parser.add_argument("--images", type=int, default=10, help="test images per task")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine("jax", "jaxlib"))
    inputs = inputs_of(*random_backbone(CASES[options.case]), options.images)
    layout = Layout((jax.local_devices()[0],))

    def count(protection: str) -> dict[Any, float]:
        # A new engine: nothing of a realisation is kept from the call before.
        jobs = jobs_of(inputs.tasks, parse_protection(protection))
        return counted(engine_of(inputs, layout), jobs)

    plain, nothing = count("none"), count(NOTHING)
    assert sorted(plain.values()) == sorted(nothing.values()), "a protection that does nothing acts"
    calls: dict[str, Callable[[], Any]] = {name: partial(count, name) for name in DEFENCES}
    for call in calls.values():
        call()
    medians = interleaved(calls, options.rounds)
    print(f"{options.case}, {options.images} images per task: ms per configuration, and over none")
    for name, seconds in medians.items():
        ratio = seconds / medians["none"]
        print(f"  {name:38s} {1000 * seconds / DRAWS:8.1f} {ratio:6.2f} x")


if __name__ == "__main__":
    main()
