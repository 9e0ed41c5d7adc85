"""How many cells a device, or this machine's memory, has room for."""

from __future__ import annotations

import os
from typing import Any

import jax

from rmtllmf_jax.models.shapes import ViTShape
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.cost import FLOAT, activation_bytes
from rmtllmf_jax.sweep.settings import Settings

MOST = 8
"""More cells side by side gain nothing: their matrix products fill a device by then."""
_SHARE = 0.8  # of the memory: the estimates are rough, and the allocator needs slack


def cells_that_fit(inputs: SweepInputs, settings: Settings, device: Any) -> int:
    """Return how many cells to compute at once: one on a CPU, else as many as there is room for.

    Base, task vectors and noise lie on the device whole (4 P (2 Q + 1) bytes for P parameters and
    Q users) with the test images; each cell adds its model and the larger of evaluation's and
    realignment's needs (4 P and activations; 16 P and activations).
    """
    limit = None if device.platform == "cpu" else (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return 1
    fixed, each = _needs(inputs, settings)
    return int(min(MOST, max(1, (_SHARE * limit - fixed) // each)))


def streams_that_fit(inputs: SweepInputs, settings: Settings, device: Any) -> int:
    """Return how many cells to compute in threads side by side: two on a CPU that has the memory.

    An accelerator has no time to spare; it computes more cells in one program (`cells_that_fit`).
    """
    if device.platform != "cpu":
        return 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fixed, each = _needs(inputs, settings)
    return 2 if fixed + 2 * each <= _SHARE * memory else 1


def _needs(inputs: SweepInputs, settings: Settings) -> tuple[int, int]:
    """Return the bytes of what all cells share, and of one cell."""
    shape: ViTShape = inputs.backbone.module.shape
    bytes_of = FLOAT * sum(leaf.size for leaf in jax.tree.leaves(inputs.base))
    images = sum(
        min(settings.eval_samples or len(task.test), len(task.test))
        * task.test.split.images[0].nbytes
        for task in inputs.data
    )
    fixed = (2 * len(inputs.tasks) + 1) * bytes_of + images
    evaluating = activation_bytes(shape, settings.eval_batch_size, training=False)
    realigning = 4 * bytes_of + activation_bytes(shape, settings.realign.batch_size, training=True)
    return fixed, bytes_of + max(evaluating, realigning)
