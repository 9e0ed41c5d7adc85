"""One entry of the image cache: a folder that is complete or not there, and can prove itself."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import file_hash, read_json, sync, write_json

FORMAT = 1
"""Version of the layout on disk; goes into the key of the cache."""

_IMAGES, _LABELS, _META = "images.npy", "labels.npy", "meta.json"

Arrays = tuple[UInt8[np.ndarray, "n s s 3"], Int32[np.ndarray, " n"]]
"""Images (RGB, 0 to 255) and labels."""


@dataclass(frozen=True)
class Entry:
    """`count` images of `image_size` pixels and their labels in `folder`.

    The folder holds `images.npy` (uint8, (n, s, s, 3)), `labels.npy` (int32, (n,)) and `meta.json`
    (what the entry was made from, shapes and SHA-256 of the two files). It appears by one rename
    after everything in it has reached the disk.
    """

    folder: Path
    count: int
    image_size: int

    def open(self, *, verify: bool = False) -> Arrays | None:
        """Map the images and load the labels, both read-only; None if missing or damaged.

        Checks headers, sizes and the checksum of the labels; with `verify` also of the images.
        """
        try:
            files = read_json(self.folder / _META)["files"]
            for name, (shape, dtype) in self._layout().items():
                path = self.folder / name
                header = _npy_header(shape, dtype)
                with path.open("rb") as file:
                    if file.read(len(header)) != header:
                        return None
                if path.stat().st_size != len(header) + int(np.prod(shape)) * dtype.itemsize:
                    return None
                in_full = verify or name == _LABELS
                if in_full and files[name]["sha256"] != file_hash(path):
                    return None
            labels = np.load(self.folder / _LABELS)
            labels.setflags(write=False)
            return np.load(self.folder / _IMAGES, mmap_mode="r"), labels
        except (InputError, OSError, LookupError, TypeError):
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process or thread is in here for this entry.

        The kernel drops the lock when its holder dies.

        **Raises:** `InputError` if the cache folder cannot be written or locked.
        """
        folder = self.folder.parent
        with _using(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder.joinpath(f".{self.folder.name}.lock").open("wb")
        with file:
            with _using(folder):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def creating(self, made_from: dict[str, Any]) -> Iterator[Arrays]:
        """Yield two arrays to fill; the entry appears when the body ends without an error.

        Whatever stood at `folder` is removed first. To be used under `locked`.

        **Raises:** `InputError` if the cache folder cannot be written or has no room.
        """
        part = self.folder.with_name(f".{self.folder.name}.part")
        for old in (self.folder, part):  # a damaged entry; the remains of a killed process
            shutil.rmtree(old, ignore_errors=True)
        try:
            with _using(self.folder.parent):
                part.mkdir()
                arrays = {
                    name: _allocate(part / name, shape, dtype)
                    for name, (shape, dtype) in self._layout().items()
                }
            yield arrays[_IMAGES], arrays[_LABELS]
            with _using(self.folder.parent):
                files = {}
                for name, (shape, _) in self._layout().items():
                    arrays[name].flush()
                    sync(part / name)
                    files[name] = {"shape": shape, "sha256": file_hash(part / name)}
                write_json(part / _META, {**made_from, "count": self.count, "files": files})
                os.rename(part, self.folder)
                sync(self.folder.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        images = (self.count, self.image_size, self.image_size, 3)
        uint8, int32 = np.dtype(np.uint8), np.dtype(np.int32)
        return {_IMAGES: (images, uint8), _LABELS: ((self.count,), int32)}


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def _allocate(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.memmap[Any, Any]:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # A map over a sparse file dies of SIGBUS on a full disk; taking the blocks first raises.
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@contextmanager
def _using(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: cannot be used as a cache ({error}).") from error
