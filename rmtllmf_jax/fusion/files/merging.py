"""Merging checkpoints on disk, tensor by tensor and shard by shard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.fusion.files.checkpoint import Checkpoint
from rmtllmf_jax.fusion.files.header import read_raw
from rmtllmf_jax.fusion.files.shards import Shard, Tensor, writing
from rmtllmf_jax.fusion.files.vectors import Stack, stored

Merge = Callable[[str, Float[np.ndarray, "users ..."]], Float[np.ndarray, "..."]]
"""From a key and the tensor of all task vectors to what is added to the base's tensor."""


def merge_shards(
    folder: Path,
    shards: list[Shard],
    base: Checkpoint,
    models: list[Checkpoint],
    merge: Merge,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write shards into a folder, each of which appears when it is whole.

    **Arguments:**

    - `merge`: gets float32, which it may overwrite.
    - `advance`: called with 1 after each tensor.

    **Raises:** `InputError` if an input holds NaN or is cut short, or if a number does not fit the
    type of the output; `OSError` if the disk is full, among others.
    """
    with Stack(base, models) as stack:
        for shard in shards:
            with writing(folder / shard.name, shard) as write:
                for tensor in shard.tensors:
                    write(_made(tensor, stack, merge))
                    advance(1)


def _made(tensor: Tensor, stack: Stack, merge: Merge) -> np.ndarray:
    key = tensor.base.key
    if not tensor.merged:
        data = np.empty(tensor.base.size, np.uint8)
        read_raw(tensor.base, data)
        return data
    base, rows = stack.read(key)
    with np.errstate(all="ignore"):  # `stored` finds what overflows
        base += merge(key, rows)
    return stored(base, tensor.dtype, key)
