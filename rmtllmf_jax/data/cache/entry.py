"""One entry of the image cache: a folder that is complete or absent, with checksums."""

from __future__ import annotations

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
from rmtllmf_jax.common.files import file_hash, lock, read_json, sync
from rmtllmf_jax.data.cache.part import IMAGES, LABELS, META, Layout, Part, is_sound, using_cache

FORMAT = 1
"""Version of the layout on disk; part of the cache key."""

Arrays = tuple[UInt8[np.ndarray, "n s s 3"], Int32[np.ndarray, " n"]]
"""Images (RGB, 0 to 255) and labels."""


@dataclass(frozen=True)
class Entry:
    """`count` images of `image_size` pixels and their labels in `folder`.

    The folder holds `images.npy` (uint8, (n, s, s, 3)), `labels.npy` (int32, (n,)) and `meta.json`
    (what the entry was made from, shapes and SHA-256 of the two files). It appears by one rename
    once its content has reached the disk.
    """

    folder: Path
    count: int
    image_size: int

    def open(self) -> Arrays | None:
        """Map the images and load the labels, both read-only; None if missing or damaged.

        Every byte is checked: headers, sizes, then checksums.
        """
        try:
            files = read_json(self.folder / META)["files"]
            for name, (shape, dtype) in self._layout().items():
                path = self.folder / name
                if not is_sound(path, shape, dtype):
                    return None
                if files[name]["sha256"] != file_hash(path):
                    return None
            labels = np.load(self.folder / LABELS)
            labels.setflags(write=False)
            return np.load(self.folder / IMAGES, mmap_mode="r"), labels
        except (InputError, OSError, LookupError, TypeError):
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Wait until no other process or thread holds this entry.

        The kernel drops the lock when its holder dies.

        **Raises:** `InputError` if the cache folder cannot be written or locked.
        """
        folder = self.folder.parent
        with using_cache(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder.joinpath(f".{self.folder.name}.lock").open("wb")
        with file:
            with using_cache(folder):
                lock(file, wait=True)
            yield

    @contextmanager
    def creating(self, made_from: dict[str, Any]) -> Iterator[Part]:
        """Yield a `Part` to fill; the entry appears when the body ends without an error.

        The work of a killed process is resumed if it matches its checksums. To be used under
        `locked`. Bad input (`InputError`) would fail again at the same place, so its part is
        removed; after any other exception the part stays for the next call.

        **Raises:** `InputError` if the cache folder cannot be written or is full.
        """
        folder = self.folder.with_name(f".{self.folder.name}.part")
        shutil.rmtree(self.folder, ignore_errors=True)  # a damaged entry
        try:
            with using_cache(self.folder.parent):
                part = Part.resumed(folder, self._layout(), made_from)
                if part is None:
                    shutil.rmtree(folder, ignore_errors=True)
                    part = Part.fresh(folder, self._layout(), made_from)
            yield part
            with using_cache(self.folder.parent):
                part.save(self.count)
                os.rename(folder, self.folder)
                sync(self.folder.parent)
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _layout(self) -> Layout:
        images = (self.count, self.image_size, self.image_size, 3)
        uint8, int32 = np.dtype(np.uint8), np.dtype(np.int32)
        return {IMAGES: (images, uint8), LABELS: ((self.count,), int32)}
