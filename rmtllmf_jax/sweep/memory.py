"""The memory that fine-tuning and a sweep take on a device, and how many cells fit in it."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax

from rmtllmf_jax.evaluation.statistics import input_grams
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.sweep.cost import Costs, model_costs, row_length, tower_costs, tree_bytes
from rmtllmf_jax.training.recipes import Recipe

if TYPE_CHECKING:
    from rmtllmf_jax.runs.inputs import SweepInputs
    from rmtllmf_jax.sweep.layout import Layout
    from rmtllmf_jax.sweep.settings import Settings

MOST = 8
"""More cells side by side gain nothing: their matrix products fill a device by then."""
_SHARE = 0.8  # of the memory: the estimates are rough, and the allocator needs slack


def training_memory(
    model: Costs, recipe: Recipe, *, devices: int = 1, parts: int = 1
) -> dict[str, int]:
    """Return the bytes on a device while one task is fine-tuned, by part; the total is their sum.

    A batch is computed by `devices` at once and in `parts` in turn (`parallel.Split`): activations
    are those of one device's share of a part, and the sum of gradients so far is kept beside them.
    With a LoRA (`lora_costs`) only the factors have moments and gradients.
    """
    batch = recipe.batch_size // (devices * parts)
    trained = "parameters" if model.frozen is None else "factors"
    return {
        "base model": model.bytes if model.frozen is None else tree_bytes(model.frozen),
        f"{trained} and moments": _state(model, recipe),
        **({"sum of gradients": model.bytes} if parts > 1 else {}),
        f"gradients and activations, batch {batch}": model.temporaries(batch, training=True),
    }


def sweep_memory(
    model: Costs,
    users: int,
    *,
    eval_batch: int,
    test_bytes: int,
    realign: Recipe | None,
    shot_bytes: int,
    cells_at_once: int = 1,
    needs_bytes: int = 0,
) -> dict[str, int]:
    """Return the bytes on a device during a sweep, by part; the total is their sum.

    Base model, stacked vectors, the noise of a draw, test images and few-shot pool stay resident;
    each cell has its merged model. On top comes the largest of three steps: realigning (like
    training) and evaluating, both per cell, and the cosines (vectors as received). Merging needs
    nothing more, as it is one pass, except for methods that are more than a sum (`needs_bytes`:
    what they look at, see `sweep.needs`, and the merged vector). Heads are left out. `realign` is
    `None` where no cell is realigned.
    """
    vectors = model.bytes * users
    steps = {
        "evaluating": cells_at_once * model.temporaries(eval_batch, training=False),
        "the cosines": vectors,
    }
    if realign is not None:
        activations = model.temporaries(realign.batch_size, training=True)
        steps["realigning"] = cells_at_once * (_state(model, realign) + activations)
    busiest = max(steps, key=lambda name: steps[name])
    merged = "merged model" if cells_at_once == 1 else f"{cells_at_once} merged models"
    return {
        "base model": model.bytes,
        f"{users} task vectors": vectors,
        "noise of a draw": vectors,
        merged: model.bytes * cells_at_once,
        f"test {model.samples}": test_bytes,
        "few-shot pool": shot_bytes,
        **({"what merge methods need": needs_bytes} if needs_bytes else {}),
        f"busiest step: {busiest}": steps[busiest],
    }


def needs_bytes(needs: Collection[str], backbone: Backbone, users: int, images: int) -> int:
    """Return the bytes that merge methods need, with `images` images for `entropy`."""
    model = tower_costs(backbone)
    pixels = math.prod(model.example.shape)
    found = users * model.bytes if "fishers" in needs else 0
    found += images * pixels if "entropy" in needs else 0
    if "grams" in needs:
        image = jax.ShapeDtypeStruct((1, *model.example.shape), model.example.dtype)
        grams = jax.eval_shape(partial(input_grams, backbone=backbone), model.params, image)
        found += users * tree_bytes(grams)
    return found


def _state(model: Costs, recipe: Recipe) -> int:
    return model.bytes + tree_bytes(jax.eval_shape(recipe.optimiser().init, model.params))


def memory_limit(device: Any) -> int | None:
    """Return the bytes that programs on an accelerator may take; `None` on a CPU or if unknown."""
    return None if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit")


def cells_that_fit(inputs: SweepInputs, settings: Settings, limit: int | None) -> int:
    """Return how many cells to compute at once in this many bytes: one if that is unknown."""
    return 1 if limit is None else _fitting(inputs, settings, limit, MOST)


def streams_that_fit(inputs: SweepInputs, settings: Settings, device: Any) -> int:
    """Return how many cells to compute in threads side by side: two on a CPU that has the memory.

    An accelerator has no idle time; it computes more cells in one program (`cells_that_fit`).
    """
    if device.platform != "cpu":
        return 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _fitting(inputs, settings, memory, 2)


def filled(layout: Layout, inputs: SweepInputs, settings: Settings) -> Layout:
    """Return a layout with as many cells at once as its devices hold.

    Streams are only for the single device of a single process: others would want the same cores.
    """
    device = layout.devices[0]
    alone = len(layout.devices) == layout.processes == 1
    return replace(
        layout,
        cells_at_once=cells_that_fit(inputs, settings, memory_limit(device)),
        streams=streams_that_fit(inputs, settings, device) if alone else 1,
    )


def _fitting(inputs: SweepInputs, settings: Settings, limit: int, most: int) -> int:
    memory = partial(
        sweep_memory,
        model_costs(inputs.model, row_length(inputs)),
        len(inputs.tasks),
        eval_batch=settings.eval_batch_size,
        test_bytes=sum(
            min(settings.eval_samples or len(task.test), len(task.test)) * task.test.bytes_each()
            for task in inputs.data
        ),
        realign=settings.realign,
        shot_bytes=0,
    )
    fits = [sum(memory(cells_at_once=n).values()) <= _SHARE * limit for n in range(1, most + 1)]
    return max(1, sum(fits))  # one is tried, and the device may refuse it
