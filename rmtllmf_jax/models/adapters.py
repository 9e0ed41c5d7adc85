"""LoRA adapters to a model used for tasks: their task vectors by the paths of our trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.fusion import TaskVector
from rmtllmf_jax.fusion.files.adapters import open_adapter
from rmtllmf_jax.fusion.files.checkpoint import FLOATS, open_checkpoint
from rmtllmf_jax.models.backbone import tower_tensors
from rmtllmf_jax.models.configs import ModelConfig
from rmtllmf_jax.models.layouts import to_decoder_paths, to_paths
from rmtllmf_jax.models.shapes import DecoderShape
from rmtllmf_jax.models.weights import assign

ToTree = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""From the tensors of a checkpoint to those of a model of tasks by path; others are left out."""


def of_tower(config: ModelConfig) -> ToTree:
    """Return the part of a checkpoint that an image tower uses."""
    return lambda tensors: tower_tensors(to_paths(tensors, config.kind, torch=True), config)


def of_decoder(shape: DecoderShape) -> ToTree:
    """Return the part of a checkpoint that a decoder uses: all but a tied copy of the table."""

    def to_tree(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        paths = to_decoder_paths(tensors, shape.tied, torch=True)
        return {k: x for k, x in paths.items() if not (shape.tied and k == "lm_head/kernel")}

    return to_tree


def adapter_vector(path: Path, directory: Path, like: PyTree, to_tree: ToTree) -> TaskVector:
    """Return the part of an adapter's task vector that belongs to the tasks' model, in float32.

    **Arguments:**

    - `path`: the directory that PEFT saved.
    - `directory`: that of the adapted model, in safetensors.
    - `like`: the parameters of the tasks' model, or their shapes and types.

    **Raises:** `InputError` as `open_adapter` and `Adapter.fitted`, or if the adapter touches
    no part of the model.
    """
    checkpoint = open_checkpoint(directory)

    def of_tasks(key: str) -> bool:
        return bool(to_tree({key: np.zeros(())}))

    adapter = open_adapter(path)
    placed, _ = adapter.placed(checkpoint)
    for line in adapter.seen(checkpoint):
        note(f"{path}: {line}")
    fitted = placed.keeping(of_tasks).fitted(checkpoint)
    if not fitted.updates:
        raise InputError(
            f"{path}: the adapter does not touch the image tower or language model of {directory}."
        )
    changes = {}
    for key, entry in checkpoint.entries.items():
        if entry.is_float() and of_tasks(key):
            changes[key] = np.zeros(entry.shape, np.float32)
            if fitted.touches(key):
                before = entry.read(np.empty(entry.shape, FLOATS[entry.dtype]))
                fitted.difference(key, before.astype(np.float32), changes[key])
    return TaskVector(assign(to_tree(changes), like, path))
