"""A tensor of the base, and the same tensor of all task vectors, in memory one tensor at a time."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.checkpoint import Checkpoint
from rmtllmf_jax.fusion.files.dtypes import FLOATS
from rmtllmf_jax.fusion.files.header import Entry, read_raw

_ALIGNMENT = 64  # jax takes over memory that lies so, and copies other memory


def read_tensor(entry: Entry) -> Float[np.ndarray, "..."]:
    """Read a floating-point tensor: float64 where the file has float64, otherwise float32.

    **Raises:** `InputError` that names file and key if a number is NaN or infinite.
    """
    tensor = np.empty(entry.shape, _wide(entry))
    _read_as(entry, tensor)
    return tensor


class Stack:
    """Reads task vectors, tensor by tensor, into memory for Q + 1 tensors of the largest size.

    The memory is the same each time: jax lets go of what it was lent only some calls later, and
    the C library may keep what was freed.
    """

    def __init__(self, base: Checkpoint, models: list[Checkpoint]) -> None:
        self.base = base
        self.models = models
        self._pool = ThreadPoolExecutor(min(len(models), os.cpu_count() or 1))
        floats = [entry for entry in base.entries.values() if entry.is_float()]
        largest = max(prod(entry.shape) for entry in floats)
        self._rows = aligned((len(models) * largest,))
        bytes_of_base = max(prod(entry.shape) * _wide(entry).itemsize for entry in floats)
        self._base = np.empty(bytes_of_base, np.uint8)

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def read(self, key: str) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "users ..."]]:
        """Return a tensor of the base and of all task vectors (float32, model minus base).

        Both are overwritten by the next call.

        **Raises:** `InputError` that names file and key if a number is NaN or infinite.
        """
        entry = self.base.entries[key]
        size = prod(entry.shape) * _wide(entry).itemsize
        base = self._base[:size].view(_wide(entry)).reshape(entry.shape)
        _read_as(entry, base)
        rows = self._rows[: len(self.models) * base.size].reshape(len(self.models), *base.shape)

        def fill(number: int) -> None:
            _subtract(self.models[number].entries[key], base, rows[number : number + 1])

        list(self._pool.map(fill, range(len(self.models))))
        return base, rows


def aligned(shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Return new memory for float32 numbers that jax can use without a copy."""
    size = 4 * prod(shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return memory[first : first + size].view(np.float32).reshape(shape)


def stored(tensor: Float[np.ndarray, "..."], dtype: str, key: str) -> np.ndarray:
    """Return a merged tensor in the type of the output.

    **Raises:** `InputError` that names the key if a number is too large for the type.
    """
    with np.errstate(over="ignore"):
        narrow = tensor.astype(FLOATS[dtype], copy=False)
    if not _is_finite(narrow):
        name = FLOATS[dtype].name
        raise InputError(
            f"{key}: the merge has numbers that {name} cannot hold; take a smaller --scale, or "
            "a wider --dtype."
        )
    return narrow


def _subtract(entry: Entry, base: np.ndarray, row: np.ndarray) -> None:
    """Write a model's tensor minus the base's into `row`, which has a leading axis of one."""
    with np.errstate(over="ignore"):  # what overflows is found in the output
        if entry.dtype == "F64" or base.dtype == np.float64:
            np.subtract(read_tensor(entry), base, out=row[0, ...], casting="same_kind")
        else:
            _read_as(entry, row[0, ...])
            np.subtract(row[0, ...], base, out=row[0, ...])


def _wide(entry: Entry) -> np.dtype:
    return np.dtype(np.float64 if entry.dtype == "F64" else np.float32)


def _read_as(entry: Entry, into: np.ndarray) -> None:
    if FLOATS[entry.dtype] == into.dtype:
        read_raw(entry, into)
    else:
        raw = np.empty(entry.shape, FLOATS[entry.dtype])
        read_raw(entry, raw)
        into[...] = raw
    if not _is_finite(into):
        what = "NaN" if np.isnan(into).any() else "infinite numbers"
        raise InputError(f"{entry.path}: {entry.key} holds {what}; a merge needs finite weights.")


def _is_finite(tensor: np.ndarray) -> bool:
    """Return whether all numbers are finite; a sum is finite only if they are."""
    with np.errstate(all="ignore"):
        wide = tensor.dtype if tensor.dtype.itemsize >= 4 else np.float32
        total = tensor.sum(dtype=wide)
    return bool(np.isfinite(total)) or bool(np.isfinite(tensor).all())
