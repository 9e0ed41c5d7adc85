"""An unfinished cache entry: arrays that are filled row by row, and how many rows are safe."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json, sync, write_json
from rmtllmf_jax.common.progress import progress_bar

IMAGES, LABELS, META = "images.npy", "labels.npy", "meta.json"

Layout = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and type of each array file; the first axis counts rows."""

_HASHED_ROWS = 256


@dataclass
class Part:
    """Array files in a folder, the first `rows` rows of which are on disk.

    `meta.json` holds what they are made from, `rows`, and for each file the SHA-256 of its header
    and those rows: enough to resume after a kill, and the file's checksum once all rows are there.
    """

    folder: Path
    made_from: dict[str, Any]
    arrays: dict[str, np.memmap[Any, Any]]
    digests: dict[str, Any]
    rows: int = 0

    @classmethod
    def fresh(cls, folder: Path, layout: Layout, made_from: dict[str, Any]) -> Part:
        """Allocate the files in a folder that does not exist yet.

        **Raises:** `OSError` if it cannot be written or the disk is full.
        """
        folder.mkdir()
        arrays = {name: _allocate(folder / name, *kind) for name, kind in layout.items()}
        digests = {name: hashlib.sha256(_npy_header(*kind)) for name, kind in layout.items()}
        return cls(folder, made_from, arrays, digests)

    @classmethod
    def resumed(cls, folder: Path, layout: Layout, made_from: dict[str, Any]) -> Part | None:
        """Resume a part; None unless it was made from the same and its rows match their hashes."""
        try:
            meta = read_json(folder / META)
            if {**meta, "files": None, "rows": None} != _meta(made_from, layout):
                return None
            rows, count = meta["rows"], layout[LABELS][0][0]
            if type(rows) is not int or not 0 < rows <= count:
                return None
            if not all(is_sound(folder / name, *kind) for name, kind in layout.items()):
                return None
            arrays = {name: np.load(folder / name, mmap_mode="r+") for name in layout}
            digests = {name: hashlib.sha256(_npy_header(*kind)) for name, kind in layout.items()}
            part = cls(folder, made_from, arrays, digests)
            with progress_bar("checking what is decoded", rows) as advance:
                part._hash_up_to(rows, advance)
            hashes = {name: file["sha256"] for name, file in meta["files"].items()}
            if hashes != part._hashes():
                return None
            for path in folder.iterdir():
                if path.name not in (*layout, META):  # a temporary `meta.json`
                    path.unlink()
            return part
        except (InputError, OSError, LookupError, TypeError, AttributeError):
            return None

    def save(self, rows: int) -> None:
        """Write the first `rows` rows to the disk, then record that they are there.

        **Raises:** `InputError` if the disk is full or fails.
        """
        with using_cache(self.folder.parent):
            for name, array in self.arrays.items():
                array.flush()
                sync(self.folder / name)
            self._hash_up_to(rows)
            files = {
                name: {"shape": self.arrays[name].shape, "sha256": digest}
                for name, digest in self._hashes().items()
            }
            count = len(self.arrays[LABELS])
            meta = {**self.made_from, "count": count, "files": files, "rows": rows}
            write_json(self.folder / META, meta)

    def _hash_up_to(self, rows: int, advance: Any = lambda count: None) -> None:
        while self.rows < rows:
            end = min(self.rows + _HASHED_ROWS, rows)
            for name, array in self.arrays.items():
                self.digests[name].update(np.ascontiguousarray(array[self.rows : end]).data)
            advance(end - self.rows)
            self.rows = end

    def _hashes(self) -> dict[str, str]:
        return {name: digest.hexdigest() for name, digest in self.digests.items()}


def is_sound(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Return whether a file has the header and the size of such an array.

    **Raises:** `OSError` if it cannot be read.
    """
    header = _npy_header(shape, dtype)
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            return False
    return path.stat().st_size == len(header) + prod(shape) * dtype.itemsize


def _meta(made_from: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """Return what `meta.json` holds besides rows and checksums, as read back from JSON."""
    count = layout[LABELS][0][0]
    meta: dict[str, Any] = json.loads(json.dumps({**made_from, "count": count}))
    return {**meta, "files": None, "rows": None}


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def _allocate(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # Writing to a mapped sparse file on a full disk is a SIGBUS; allocating blocks first raises.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@contextmanager
def using_cache(folder: Path) -> Iterator[None]:
    """Turn disk errors about a cache folder into an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: cannot be used as a cache ({error}).") from error
