"""The header of a safetensors file: where each tensor lies, before any of them is read."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.dtypes import FLOATS

METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Entry:
    """A tensor in a file."""

    key: str
    dtype: str
    """As safetensors spells it: F32, BF16, I64, BOOL, ..."""
    shape: tuple[int, ...]
    path: Path
    start: int
    """Byte of the file that its data begins at."""
    size: int
    """In bytes."""

    def is_float(self) -> bool:
        """Return whether it can be merged (`dtypes.FLOATS`)."""
        return self.dtype in FLOATS


@dataclass(frozen=True)
class Header:
    """All tensors of a file in the order in which they lie in it, and the file's metadata."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file; no tensor is read.

    **Raises:** `InputError` that names the file if it is missing, truncated or not safetensors.
    """
    try:
        with safetensors.safe_open(path, "np") as checked:  # offsets, sizes, length of the file
            metadata = dict(checked.metadata() or {})
        with open(path, "rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            content = json.loads(file.read(length))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a safetensors file is expected there.") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({_reason(path, error)})."
        ) from (error)
    first = _LENGTH.size + length
    entries = [_entry(path, first, key, content[key]) for key in content if key != METADATA]
    return Header(tuple(sorted(entries, key=lambda entry: entry.start)), metadata)


def read_raw(entry: Entry, into: np.ndarray) -> None:
    """Read a tensor's bytes into a contiguous array of as many bytes.

    **Raises:** `InputError` that names the file if it has become shorter since its header was read.
    """
    view = into.reshape(-1).view(np.uint8).data
    try:
        with open(entry.path, "rb", buffering=0) as file:
            file.seek(entry.start)
            done = 0
            while done < entry.size:  # one call reads 2 GB at most
                count = file.readinto(view[done:])
                if not count:
                    raise InputError(f"{entry.path}: ends within {entry.key}; was it changed?")
                done += count
    except OSError as error:
        raise InputError(f"{entry.path}: {entry.key} cannot be read ({error}).") from error


def header_bytes(
    entries: list[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]
) -> bytes:
    """Return the header of a file that will hold tensors of these keys, types, shapes and bytes."""
    content: dict[str, Any] = {METADATA: metadata} if metadata else {}
    end = 0
    for key, dtype, shape, size in entries:
        content[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    return _LENGTH.pack(len(text)) + text


def _entry(path: Path, first: int, key: str, content: dict[str, Any]) -> Entry:
    start, end = content["data_offsets"]
    shape = tuple(content["shape"])
    return Entry(key, content["dtype"], shape, path, first + start, end - start)


def _reason(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "it is a directory"
    try:
        with open(path, "rb") as file:
            if file.read(len(_LFS)) == _LFS:
                return (
                    "it is a Git LFS pointer in place of the weights; fetch them with git lfs pull"
                )
    except OSError:
        pass
    return str(error)
