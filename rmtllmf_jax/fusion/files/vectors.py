"""Task vectors and trained towers that this package wrote, used as models by the tree paths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash, file_hash
from rmtllmf_jax.fusion.files.changes import Changes
from rmtllmf_jax.fusion.files.checkpoint import (
    SUFFIX,
    Checkpoint,
    Entry,
    read_header,
    wide,
)
from rmtllmf_jax.fusion.files.names import to_torch
from rmtllmf_jax.fusion.files.updates import OfTensor, Product, Update, read_tensor

VECTOR = "task vector"
"""Of the metadata of a task vector: what `import-task-vector` says of it, as JSON."""
TRAINED = "user"
"""Of the metadata of a user's fine-tuned tower in a run folder."""
FACTORS = "lora"
"""Of the metadata of factors trained by LoRA: `scale` of the products, and their base, as JSON."""


@dataclass(frozen=True)
class Laid(OfTensor):
    """A tensor of our trees in torch's layout: a kernel is (outputs, inputs) there."""

    is_change: bool
    """Otherwise it stands in place of the base's."""

    def __call__(self, base: Float[np.ndarray, "..."], into: Float[np.ndarray, "..."]) -> None:
        """Write what is added to the base's tensor."""
        into[...] = to_torch(self.entry.key, read_tensor(self.entry))[1].reshape(base.shape)
        if not self.is_change:
            np.subtract(into, base, out=into, casting="same_kind")


@dataclass(frozen=True)
class Vector(Changes):
    """A task vector, or what a user trained, written by this package."""

    about: dict[str, Any]
    """What a file that is of a base alone says: `base` (a hash), `base_origin`, maybe `sha256`."""

    def seen(self, base: Checkpoint) -> list[str]:
        """Return nothing: a task vector knows its base.

        **Raises:** `InputError` if its base is another one, or if the file is damaged.
        """
        if not self.about:
            return []
        hashes = [file_hash(path) for path in base.files]
        if self.about["base"] != (hashes[0] if len(hashes) == 1 else content_hash(hashes)):
            raise InputError(
                f"{self.given}: a task vector of another base model ({self.about['base_origin']}), "
                f"or of another file of it than {base.given}; import it again with this base."
            )
        entries, _ = read_header(self.files[0])
        if self.about.get("sha256", "") not in ("", _digest(entries)):
            raise InputError(
                f"{self.given}: damaged, its content is not what its checksum says; import it "
                "again."
            )
        return []


def _digest(entries: Iterable[Entry]) -> str:
    """Return the result of `models.weights.tree_hash`, one tensor at a time."""
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda each: each.key):
        tensor = entry.read(np.empty(entry.shape, wide(entry)))
        digest.update(f"\n{entry.key} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def is_vector(path: Path) -> bool:
    """Return whether this package wrote a file as a task vector or as what a user trained."""
    if path.suffix != SUFFIX or not path.is_file():
        return False
    try:
        entries, metadata = read_header(path)
    except InputError:  # said by what opens it
        return False
    ours = not metadata.keys().isdisjoint((VECTOR, TRAINED, FACTORS))
    return ours and not any("." in entry.key for entry in entries)


def open_vector(path: Path) -> Vector:
    """Return the task vector, trained tower or trained factors in a file, by torch's names.

    **Raises:** `InputError` if the file cannot be read.
    """
    entries, metadata = read_header(path)
    size = sum(entry.size for entry in entries)
    if FACTORS in metadata:
        about = json.loads(metadata[FACTORS])
        return Vector(path, (path,), _products(entries, about["scale"]), size, about)
    is_change = VECTOR in metadata
    about = json.loads(metadata[VECTOR]) if is_change else {}
    updates: dict[str, tuple[Update, ...]] = {
        _name(entry.key): (Laid(entry, is_change),) for entry in entries
    }
    return Vector(path, (path,), updates, size, about)


def _products(entries: Iterable[Entry], scale: float) -> dict[str, tuple[Update, ...]]:
    """Return ``scale * a b`` of each kernel (inputs, outputs), in the layout of torch's weight."""
    factors = {entry.key: entry for entry in entries}
    kernels = sorted({key.rpartition("/")[0] for key in factors})
    return {
        _name(kernel): (
            Product(factors[f"{kernel}/b"], factors[f"{kernel}/a"], scale, transposed=True),
        )
        for kernel in kernels
    }


def _name(path: str) -> str:
    """Return torch's name of a leaf."""
    return to_torch(path, np.empty(0))[0]
