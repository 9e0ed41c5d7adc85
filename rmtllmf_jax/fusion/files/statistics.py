"""Statistics of models for merges that look at data: in files, and checked against the models.

A file holds numbers by the names of a model's tensors, as in torch, and one entry of metadata: what
they are, how they were made, and a SHA-256 of each of the model's tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import file_hash, replacing
from rmtllmf_jax.fusion.files.checkpoint import FLOATS, Checkpoint, Entry, open_checkpoint
from rmtllmf_jax.fusion.files.model import Model
from rmtllmf_jax.fusion.rules.leaves import inputs_first

KINDS = ("fishers", "grams")
"""Arguments of merge methods that are statistics: Fisher information, and Gram matrices of the
inputs of layers."""

_FACTS = "statistics"
_MADE = "`rmtllmf statistics` makes them"


def write_statistic(
    path: Path,
    kind: str,
    numbers: Mapping[str, np.ndarray],
    model: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
) -> None:
    """Write statistics of a model, atomically.

    **Arguments:**

    - `numbers`: by the names of the model's tensors, as in torch.
    - `model`: the tensors themselves, in float32.
    - `facts`: how they were made.
    """
    hashes = {name: _hash(model[name]) for name in sorted(numbers)}
    record = {"kind": kind, **facts, "tensors": hashes}
    # Safetensors writes memory as it is, ignoring strides.
    tensors = {name: np.asarray(number, order="C") for name, number in numbers.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, {_FACTS: json.dumps(record, sort_keys=True)})


@dataclass(frozen=True)
class Statistic:
    """Statistics of one model, on disk."""

    checkpoint: Checkpoint
    kind: str
    facts: Mapping[str, Any]
    """How they were made."""
    hashes: Mapping[str, str]
    """Of the model's tensors."""

    @property
    def path(self) -> Path:
        """The file."""
        return self.checkpoint.files[0]

    def read(self, name: str) -> Float[np.ndarray, "..."]:
        """Return the numbers of a tensor.

        **Raises:** `InputError` that names the file if they are not finite or cannot be read.
        """
        return _read(self.checkpoint.entries[name])

    def tensors(self) -> dict[str, np.ndarray]:
        """Return all numbers, by the names of the tensors."""
        return {name: self.read(name) for name in self.hashes}


def open_statistic(path: Path) -> Statistic:
    """Return the statistics in a file.

    **Raises:** `InputError` if `write_statistic` did not write it.
    """
    checkpoint = open_checkpoint(path)
    try:
        record = json.loads(checkpoint.metadata[_FACTS])
        kind, hashes = record.pop("kind"), record.pop("tensors")
        if kind not in KINDS or set(hashes) != set(checkpoint.entries):
            raise KeyError(kind)
    except (KeyError, ValueError, AttributeError, TypeError):
        raise InputError(f"{path}: not a file of statistics; {_MADE}.") from None
    return Statistic(checkpoint, kind, record, hashes)


@dataclass(frozen=True)
class Statistics:
    """Statistics of one kind for all models to be merged."""

    kind: str
    files: tuple[Statistic, ...]
    """In the order of the models."""
    names: Mapping[str, str]
    """The name in the files of each of the base's tensors that they know."""

    def stacked(self, key: str) -> Float[np.ndarray, "users ..."] | None:
        """Return the numbers of one of the base's tensors, stacked; `None` if there are none."""
        if key not in self.names:
            return None
        return np.stack([file.read(self.names[key]) for file in self.files])

    @cached_property
    def record(self) -> list[dict[str, Any]]:
        """What they are and where they come from, for each file."""
        return [
            {"kind": self.kind, "file": file.path.name, "sha256": file_hash(file.path)}
            | dict(file.facts)
            for file in self.files
        ]


def find_statistics(
    needs: Sequence[str],
    paths: Sequence[Path],
    models: Sequence[Model],
    keys: Collection[str],
    merged: Collection[str],
) -> dict[str, Statistics]:
    """Return the statistics that a method needs, by kind, checked against the models.

    **Arguments:**

    - `needs`: the kinds.
    - `paths`: for each kind one file per model, in the order of the models.
    - `models`: with the base's names of tensors.
    - `keys`: those names; `merged`: the names of the merged tensors.

    **Raises:** `InputError` for a kind that is missing or not needed, too few or too many files,
    and files of another model or another shape; it names file and tensor.
    """
    groups: dict[str, list[Statistic]] = {kind: [] for kind in needs}
    for path in paths:
        found = open_statistic(path)
        if found.kind not in groups:
            wants = ", ".join(needs) or "no statistics"
            raise InputError(f"{path}: holds {found.kind}, and the method needs {wants}.")
        groups[found.kind].append(found)
    for kind, files in groups.items():
        if len(files) != len(models):
            raise InputError(
                f"--statistics: the method needs {kind} of each of the {len(models)} models, got "
                f"{len(files)} files; {_MADE}."
            )
    return {kind: _checked(kind, files, models, keys, merged) for kind, files in groups.items()}


def _checked(
    kind: str,
    files: Sequence[Statistic],
    models: Sequence[Model],
    keys: Collection[str],
    merged: Collection[str],
) -> Statistics:
    for file in files:
        if differing := sorted(set(file.hashes) ^ set(files[0].hashes)):
            raise InputError(
                f"{file.path}: has other tensors than {files[0].path}: {differing[0]}, of "
                f"{len(differing)}."
            )
    every = {_key_of(name, keys, files[0].path): name for name in files[0].hashes}
    names = {key: name for key, name in every.items() if key in merged}
    for file, model in zip(files, models, strict=True):
        for key, name in names.items():
            _check(kind, file, name, model, key)
    return Statistics(kind, tuple(files), names)


def _key_of(name: str, keys: Collection[str], path: Path) -> str:
    """Return the base's key of a tensor; either may have a prefix that the other lacks."""
    if name in keys:
        return name
    found = [key for key in keys if key.endswith(f".{name}") or name.endswith(f".{key}")]
    if len(found) != 1:
        why = "no" if not found else f"{len(found)}"
        raise InputError(f"{path}: {name} is the name of {why} tensors of the base.")
    return found[0]


def _check(kind: str, file: Statistic, name: str, model: Model, key: str) -> None:
    if not isinstance(model, Checkpoint):
        raise InputError(
            f"{model.given}: statistics belong to full models, but this is an adapter: merge it "
            "into its base first."
        )
    entry = model.entries[key]
    if _hash(_read(entry)) != file.hashes[name]:
        raise InputError(
            f"{file.path}: statistics of another model than {model.given}, whose {key} has other "
            f"numbers. Files of --statistics are in the order of --models; {_MADE}."
        )
    inputs = entry.shape[0 if inputs_first(key) else -1] if len(entry.shape) == 2 else 0
    expected = entry.shape if kind == "fishers" else (inputs, inputs)
    if file.checkpoint.entries[name].shape != expected:
        raise InputError(
            f"{file.path}: {name} has the shape {file.checkpoint.entries[name].shape}, and that of "
            f"{kind} is {expected}."
        )


def _read(entry: Entry) -> Float[np.ndarray, "..."]:
    numbers = entry.read(np.empty(entry.shape, FLOATS[entry.dtype])).astype(np.float32)
    if not np.isfinite(numbers).all():
        raise InputError(f"{entry.path}: {entry.key} holds NaN or infinite numbers.")
    return numbers


def _hash(tensor: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(tensor, np.float32, order="C").tobytes()).hexdigest()
