"""The files of an output, and how their tensors are computed from base and merged vector."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.checkpoint import FLOATS, Entry, is_finite

VARIANCE = ".running_var"
"""What names of variances end in, of layers that normalise by statistics of the training data."""

Field = tuple[str, str, tuple[int, ...], int]
"""Key, type, shape and bytes of a tensor in a file."""

Facts = dict[str, Any]
"""What was seen while a shard was made: `masks` (keys of tensors that were copied), `kept` (entries
of each task vector that were kept, by key) and `energy` (of an adapter: kept and whole, by key)."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the output."""

    base: Entry
    dtype: str
    """As safetensors spells it."""
    merged: bool
    """Otherwise it is the base's."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """Its entries in the file."""
        return ((self.base.key, self.dtype, self.base.shape, bytes_as(self.base, self.dtype)),)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(size for *_, size in self.fields)

    def made(self, base: np.ndarray, delta: np.ndarray, facts: Facts) -> Iterable[np.ndarray]:
        """Return the arrays of its fields, from the base's tensor and the scaled merge.

        Both may be overwritten; `facts` collects remarks.

        **Raises:** `InputError` that names the key if a number is too large for the type, or if a
        variance is negative.
        """
        with np.errstate(all="ignore"):  # `stored` finds what overflows
            base += delta
        if self.base.key.endswith(VARIANCE) and (base < 0).any():
            raise InputError(
                f"{self.base.key}: the merge has negative variances; take a smaller --scale, or "
                "the base's statistics: --from-base '.*running_(mean|var)'."
            )
        return [stored(base, self.dtype, self.base.key)]


def bytes_as(entry: Entry, dtype: str) -> int:
    """Return the bytes of a tensor in a type."""
    return entry.size if dtype == entry.dtype else prod(entry.shape) * FLOATS[dtype].itemsize


@dataclass(frozen=True)
class Shard:
    """A file of the output with its tensors in writing order."""

    name: str
    tensors: tuple[Tensor, ...]
    header: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(tensor.size for tensor in self.tensors)


def stored(tensor: Float[np.ndarray, "..."], dtype: str, key: str) -> np.ndarray:
    """Return a merged tensor in the type of the output.

    **Raises:** `InputError` that names the key if a number is too large for the type.
    """
    with np.errstate(over="ignore"):
        narrow = tensor.astype(FLOATS[dtype], copy=False)
    if not is_finite(narrow):
        raise InputError(
            f"{key}: the merge has numbers that {FLOATS[dtype].name} cannot hold; take a smaller "
            "--scale, or a wider --dtype."
        )
    return narrow
