"""The files of an output: which tensor goes into which, decided before the first one is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import replacing
from rmtllmf_jax.fusion.files.checkpoint import INDEX, SINGLE, Checkpoint
from rmtllmf_jax.fusion.files.dtypes import FLOATS, output_type
from rmtllmf_jax.fusion.files.header import Entry, header_bytes
from rmtllmf_jax.fusion.files.matching import Matching

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class Tensor:
    """A tensor of the output."""

    base: Entry
    dtype: str
    """As safetensors spells it."""
    merged: bool
    """Otherwise it is the base's, byte by byte."""

    @property
    def size(self) -> int:
        """In bytes."""
        return (
            prod(self.base.shape) * FLOATS[self.dtype].itemsize if self.merged else (self.base.size)
        )


@dataclass(frozen=True)
class Shard:
    """A file of the output with its tensors in the order in which they are written."""

    name: str
    tensors: tuple[Tensor, ...]
    header: bytes

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(tensor.size for tensor in self.tensors)


def bytes_of(text: str) -> int:
    """Return the bytes that a size such as 5GB, 512MB or 2GiB names.

    **Raises:** `InputError` for anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    size = float(found[1]) * _UNITS.get(found[2].upper(), 0) if found else 0
    if size < 1:
        raise InputError(
            f"a size must be a number with a unit such as 5GB or 500MiB, got {text!r}."
        )
    return int(size)


def plan_shards(base: Checkpoint, matching: Matching, dtype: str, limit: int) -> list[Shard]:
    """Return the files of the output, each of at most `limit` bytes of tensors.

    A tensor larger than that has a file of its own. Tensors keep the order of the base's files;
    within a file those of wider types come first, so that all are aligned to their size.
    """
    merged = set(matching.merged)
    groups: list[list[Tensor]] = [[]]
    filled = 0
    for key, entry in base.entries.items():
        tensor = Tensor(entry, output_type(entry.dtype, dtype), key in merged)
        if groups[-1] and filled + tensor.size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.size
    shards = []
    metadata = {"format": "pt"} | base.metadata
    for number, group in enumerate(groups, start=1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = tuple(sorted(group, key=_width, reverse=True))
        fields = [(each.base.key, each.dtype, each.base.shape, each.size) for each in tensors]
        shards.append(Shard(name, tensors, header_bytes(fields, metadata)))
    return shards


def index_of(shards: list[Shard]) -> tuple[str, dict[str, object]] | None:
    """Return name and content of the index of several shards; `None` for a single file."""
    if len(shards) == 1:
        return None
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    total = {
        "total_parameters": sum(prod(tensor.base.shape) for tensor in tensors),
        "total_size": sum(tensor.size for tensor in tensors),
    }
    names = {tensor.base.key: shard.name for shard in shards for tensor in shard.tensors}
    return f"model{INDEX}", {"metadata": total, "weight_map": names}


@contextmanager
def writing(path: Path, shard: Shard) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield what writes the shard's tensors, one by one in its order; the file appears when whole.

    **Raises:** `OSError` if the disk is full, among others; nothing is at `path` then.
    """
    with replacing(path) as temporary:
        with open(temporary, "wb", buffering=0) as file:

            def write(data: np.ndarray) -> None:
                view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
                while view:
                    view = view[file.write(view) :]

            write(np.frombuffer(shard.header, np.uint8))
            yield write
        if temporary.stat().st_size != shard.size:
            raise AssertionError(f"{shard.name}: not all of its tensors were written")


def _width(tensor: Tensor) -> int:
    """Return the bytes of a number."""
    count = prod(tensor.base.shape)
    return tensor.size // count if count else 0
