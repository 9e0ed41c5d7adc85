"""What a gradient of the objective costs: time over its value, memory, compiled programs.

One interleaved run after an equality check; prints medians and ratios.

    python benchmarks/gradients.py [--case tiny|vit-ti] [--images 100] [--draws 2] [--rounds 5]

Eight users under the sum-rate attack, all merged; the gradient is with respect to powers, budget,
distances and a merging coefficient a task and layer. `ours` takes each term's gradient while the
term is computed (`gradients.accumulate`). `plain` is reverse mode through the same loop, which
keeps every batch's activations until the end; `remat` is the loop with `jax.checkpoint` on its
body, which computes every batch again. Equality: the three gradients agree to 1e-4 of the largest
entry. Memory is what XLA plans for the program besides its arguments (`memory_analysis`). Programs:
what `value_and_gradient` compiled for all rounds, each with another key and other parameters.

Two cores (goal: within 3 times the value), 50 images per task, 2 draws. Tiny case, medians of 15;
the ViT-Ti/16 at 64 pixels, medians of 7 (and seconds of the first call, which compiles):

| what | tiny: ms | over value | MiB | ViT-Ti: ms | over value | MiB | first call |
| --- | --- | --- | --- | --- | --- | --- | --- |
| value | 39 | 1 | 2.2 | 675 | 1 | 38 | 18 |
| ours, gradient | 127 | 3.27 | 13.6 | 1,989 | 2.95 | 203 | 44 |
| plain, gradient | 247 | 6.37 | 264 | 5,849 | 8.67 | 3,360 | 60 |
| remat, gradient | 176 | 4.54 | 13.4 | 2,974 | 4.41 | 206 | 74 |

One program for all draws. With one draw the ViT-Ti had 3.13 (335 and 1,049 ms, medians of 9), as
what the system takes to hand out the memory weighs more. A gradient has 2.95 times the operations
of its value. A small model's takes longer than they do: products with short sides, sums over rows
and copies weigh more there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from model_sides import random_backbone
from sweep_sides import BATCH, CASES, SCALE, inputs_of
from timing import interleaved, machine

from rmtllmf_jax import channel, gradients
from rmtllmf_jax.gradients import Objective, Parameters
from rmtllmf_jax.gradients import objective as module
from rmtllmf_jax.gradients.accumulate import accumulated_sum
from rmtllmf_jax.sweep.objective import objective_of
from rmtllmf_jax.sweep.settings import Settings

Sum = Callable[[Any, Any, Any, Any], Array]
GOAL = 3.0


def plain_sum(term: Any, parameters: Any, constants: Any, xs: Any, remat: bool = False) -> Array:
    """Return the sum over the leading axis of `xs`, for reverse mode through the loop."""

    def add(total: Array, x: Any) -> tuple[Array, None]:
        return total + term(parameters, constants, x), None

    return jax.lax.scan(jax.checkpoint(add) if remat else add, jnp.zeros(()), xs)[0]


def start_of(objective: Objective) -> Parameters:
    """Return full power, the places of a draw, the preset's budget, one coefficient a layer."""
    preset = objective.setting.link.preset
    tasks, layers = len(objective.kappa), len(gradients.layer_names(objective.vectors))
    return Parameters(
        powers=jnp.ones(preset.users),
        distances=channel.draw_distances(preset, jax.random.key(0)),
        budget=jnp.asarray(preset.attack_budget, jnp.float32),
        scale=jnp.full((tasks, layers), SCALE),
    )


def compiled(total: Sum, gradient: bool) -> Callable[..., Any]:
    """Return a jitted value (and gradient) of an objective whose loops are `total`."""

    def score(parameters: Parameters, objective: Objective, key: Array) -> Array:
        with mock.patch.object(module, "accumulated_sum", total):  # while it is traced
            return objective(parameters, key)

    return jax.jit(jax.value_and_grad(score) if gradient else score)


def planned(call: Callable[..., Any], *arguments: Any) -> float:
    """Return the MiB that a compiled program needs besides its arguments."""
    found = call.lower(*arguments).compile().memory_analysis()
    return (found.temp_size_in_bytes + found.output_size_in_bytes) / 2**20


def farthest(a: Parameters, b: Parameters) -> float:
    """Return the largest difference of two gradients, over the largest entry of each leaf."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs)


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=tuple(CASES), default="tiny")
    parser.add_argument("--images", type=int, default=100, help="test images per task")
    parser.add_argument("--draws", type=int, default=2, help="draws of channel and noise")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    backbone, params = random_backbone(CASES[options.case])
    inputs = inputs_of(backbone, params, options.images)
    objective = objective_of(
        inputs, Settings(eval_batch_size=BATCH), "sum_rate", channel_draws=options.draws
    )
    here = start_of(objective)
    objective = objective.fixed_at(here)
    sums: dict[str, Sum] = {
        "ours": accumulated_sum,
        "plain": plain_sum,
        "remat": partial(plain_sum, remat=True),
    }
    calls = {f"{name}, gradient": compiled(total, True) for name, total in sums.items()}
    calls = {"value": compiled(sums["ours"], False), **calls}
    given = (here, objective, jax.random.key(1))
    found, first = {}, {}
    for name, call in calls.items():
        started = time.perf_counter()
        found[name] = jax.block_until_ready(call(*given))
        first[name] = time.perf_counter() - started
    expected = found["ours, gradient"][1]
    for name in ("plain, gradient", "remat, gradient"):
        apart = farthest(found[name][1], expected)
        assert apart <= 1e-4, f"{name}: {apart:.1e} apart"

    print(machine("jax"))
    count = options.images * len(inputs.tasks) * options.draws
    print(f"{options.case}: {count:,} images, {len(inputs.tasks)} tasks, {options.draws} draws")
    medians = interleaved(
        {name: partial(call, *given) for name, call in calls.items()}, options.rounds
    )
    for name, seconds in medians.items():
        memory, ratio = planned(calls[name], *given), seconds / medians["value"]
        print(
            f"  {name:16s} {seconds:8.3f} s   {ratio:5.2f} x the value   {memory:8.1f} MiB   "
            f"first call {first[name]:5.1f} s"
        )
    print(f"  goal: a gradient within {GOAL:g} x its value")

    before = gradients.value_and_gradient._cache_size()
    for draw in range(options.rounds):
        moved = replace(here, powers=here.powers * (1 - 0.1 * draw))
        gradients.value_and_gradient(objective.fixed_at(moved), moved, jax.random.key(draw))
    programs = gradients.value_and_gradient._cache_size() - before
    print(f"  programs for {options.rounds} draws: {programs}")


if __name__ == "__main__":
    main()
