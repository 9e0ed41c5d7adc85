"""LoRA adapters to an image tower: their task vectors by the paths of our trees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.fusion import TaskVector
from rmtllmf_jax.fusion.files.adapters import open_adapter
from rmtllmf_jax.fusion.files.checkpoint import FLOATS, open_checkpoint
from rmtllmf_jax.models.backbone import tower_tensors
from rmtllmf_jax.models.layouts import to_paths
from rmtllmf_jax.models.pretrained import Pretrained
from rmtllmf_jax.models.weights import assign


def adapter_vector(path: Path, base: Pretrained, like: PyTree) -> TaskVector:
    """Return the image tower's part of an adapter's task vector, in float32.

    **Arguments:**

    - `path`: the directory that PEFT saved.
    - `base`: the model that it is an adapter to, in safetensors.
    - `like`: the tower's parameters, or their shapes and types.

    **Raises:** `InputError` as `open_adapter` and `Adapter.fitted`, or if the adapter does not
    touch the tower.
    """
    checkpoint = open_checkpoint(base.directory)

    def in_tower(key: str) -> bool:
        paths = to_paths({key: np.zeros(())}, base.config.kind, torch=True)
        return bool(tower_tensors(paths, base.config))

    adapter = open_adapter(path)
    placed, _ = adapter.placed(checkpoint)
    for line in adapter.seen(checkpoint):
        note(f"{path}: {line}")
    fitted = placed.keeping(in_tower).fitted(checkpoint)
    if not fitted.updates:
        raise InputError(f"{path}: the adapter does not touch the image tower of {base.directory}.")
    changes = {}
    for key, entry in checkpoint.entries.items():
        if entry.is_float() and in_tower(key):
            changes[key] = np.zeros(entry.shape, np.float32)
            if fitted.touches(key):
                before = entry.read(np.empty(entry.shape, FLOATS[entry.dtype]))
                fitted.difference(key, before.astype(np.float32), changes[key])
    paths = tower_tensors(to_paths(changes, base.config.kind, torch=True), base.config)
    return TaskVector(assign(paths, like, path))
