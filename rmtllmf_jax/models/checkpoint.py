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
from rmtllmf_jax.models import open_clip
from rmtllmf_jax.models.weights import read_safetensors

SAFETENSORS = "model.safetensors"
SHARDS = "model.safetensors.index.json"
MSGPACK = "flax_model.msgpack"
TORCH = "pytorch_model.bin"
TORCH_SHARDS = "pytorch_model.bin.index.json"
FORMATS = (
    *(SAFETENSORS, SHARDS, MSGPACK, open_clip.SAFETENSORS),
    *(TORCH, TORCH_SHARDS, open_clip.TORCH),
)
"""Files that hold weights, or indices of such files; the first that exists is read."""

_WRAPPERS = ("state_dict", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
_QUANTISED = ("int8", "uint8", "int4", "uint4")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by the keys of their file: `torch` names and layouts, or flax's paths and layouts.

    Tensors of open_clip have the keys of transformers.
    """

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
        return shards_of(path)[0] if name in (SHARDS, TORCH_SHARDS) else (path,)
    raise InputError(f"{directory}: no weights; expected one of {', '.join(FORMATS)}.")


def weights_hash(directory: Path) -> str:
    """Return a hash of the content of a directory's weight files."""
    hashes = [file_hash(path) for path in weight_files(directory)]
    return hashes[0] if len(hashes) == 1 else content_hash(hashes)


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read a directory's weights.

    A `pytorch_model.bin` is a pickle: it is read only where torch is installed, which then refuses
    everything but tensors (`weights_only`). Wrappers that trainers add around the tensors are
    removed: ``{"state_dict": ...}``, and the prefixes of data-parallel and of compiled modules.

    **Raises:** `InputError` that names a missing, truncated or otherwise unreadable file, or
    quantised weights.
    """
    files = weight_files(directory)
    origin = files[0]
    if origin.name == MSGPACK:
        return Checkpoint(_read_msgpack(origin), torch=False, origin=origin)
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    if origin.name not in FORMATS:
        origin = directory / (SHARDS if origin.suffix == ".safetensors" else TORCH_SHARDS)
        require_all(origin, shards_of(origin)[1], tensors)
    _require_whole(tensors, origin)
    tensors = _without_prefixes(tensors)
    if open_clip.is_open_clip(tensors):
        tensors = open_clip.as_hugging_face(tensors)
    return Checkpoint(tensors, torch=True, origin=origin)


def _without_prefixes(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in tensors)), None):
        tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def _require_whole(tensors: dict[str, np.ndarray], origin: Path) -> None:
    """Check that no weight is a rounded number with its scale stored elsewhere."""
    kinds = {key: str(tensor.dtype) for key, tensor in tensors.items()}
    small = [key for key, kind in kinds.items() if kind in _QUANTISED or kind.startswith("float8")]
    if small:
        raise InputError(
            f"{origin}: quantised weights: {small[0]} is {kinds[small[0]]} ({len(small)} of "
            f"{len(tensors)} tensors); load the model where it was quantised, dequantise it and "
            "save it in float32, float16 or bfloat16."
        )


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
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, AttributeError) as error:
        raise InputError(f"{path}: not a readable torch checkpoint ({error}).") from error
    while isinstance(state, dict) and (name := next((w for w in _WRAPPERS if w in state), None)):
        state = state[name]
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        seen = ", ".join(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise InputError(
            f"{path}: expected tensors by name, perhaps under {' or '.join(_WRAPPERS)}; found "
            f"{seen[:200]}."
        )
    return {
        key: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for key, tensor in state.items()
    }
