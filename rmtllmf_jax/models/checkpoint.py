"""The weight files of a Hugging Face directory, in any of its formats."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash, file_hash
from rmtllmf_jax.fusion.files.checkpoint import require_all, shards_of
from rmtllmf_jax.models.weights import read_safetensors

SAFETENSORS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
MSGPACK = "flax_model.msgpack"
TORCH = "pytorch_model.bin"
FORMATS = (SAFETENSORS, SHARDS, MSGPACK, TORCH)
"""Files that hold weights, or indices of such files; the first that exists is read."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by the keys of their file: `torch` names and layouts, or flax's paths and layouts."""

    tensors: dict[str, np.ndarray]
    torch: bool
    origin: Path
    """The file named in error messages."""


def weight_files(directory: Path) -> tuple[Path, ...]:
    """Return the files that hold a directory's weights: one, or all shards in order.

    **Raises:** `InputError` if there are none, or if a shard is missing.
    """
    for name in FORMATS:
        path = directory / name
        if not path.is_file():
            continue
        return shards_of(path)[0] if name == SHARDS else (path,)
    raise InputError(f"{directory}: no weights; expected one of {', '.join(FORMATS)}.")


def weights_hash(directory: Path) -> str:
    """Return a hash of the content of a directory's weight files."""
    hashes = [file_hash(path) for path in weight_files(directory)]
    return hashes[0] if len(hashes) == 1 else content_hash(hashes)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a directory's weights.

    A `pytorch_model.bin` is a pickle: it is read only where torch is installed, which then refuses
    everything but tensors (`weights_only`).

    **Raises:** `InputError` that names a missing, truncated or otherwise unreadable file.
    """
    first, *more = weight_files(directory)
    if first.name == MSGPACK:
        return Checkpoint(_read_msgpack(first), torch=False, origin=first)
    if first.name == TORCH:
        return Checkpoint(_read_torch(first), torch=True, origin=first)
    if first.name == SAFETENSORS and not more:
        return Checkpoint(read_safetensors(first), torch=True, origin=first)
    index = directory / SHARDS
    tensors: dict[str, np.ndarray] = {}
    for shard in (first, *more):
        tensors |= read_safetensors(shard)
    require_all(index, shards_of(index)[1], tensors)
    return Checkpoint(tensors, torch=True, origin=index)


def _read_msgpack(path: Path) -> dict[str, np.ndarray]:
    from flax.serialization import msgpack_restore
    from flax.traverse_util import flatten_dict

    try:
        tree = msgpack_restore(path.read_bytes())
        return {key: np.asarray(leaf) for key, leaf in flatten_dict(tree, sep="/").items()}
    except Exception as error:  # msgpack raises its own types, flax assertions
        raise InputError(f"{path}: not a readable flax checkpoint ({error}).") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: reading it needs torch, which is not installed; install torch, or convert "
            f"the file to {SAFETENSORS}."
        ) from None
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        return {key: tensor.float().numpy() for key, tensor in state.items()}
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, AttributeError) as error:
        raise InputError(f"{path}: not a readable torch checkpoint ({error}).") from error
