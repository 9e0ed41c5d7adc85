"""Arrays that are built once and then mapped from disk, safe against any interruption: `stored`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import file_hash, lock, read_json, sync, write_json
from rmtllmf_jax.common.progress import note

Arrays = dict[str, np.ndarray]
"""By file name."""

_META = "meta.json"


def stored(
    folder: Path,
    made_from: Mapping[str, Any],
    build: Callable[[Path], tuple[Arrays, dict[str, Any]]],
    doing: str,
) -> Arrays:
    """Return the arrays of an entry, mapped read-only; the first call builds them.

    An entry is a folder with the arrays and `meta.json`: what they were made from, and their
    checksums, which every call compares. It appears by one rename once its content has reached the
    disk. A killed process leaves no incomplete entry; a damaged one is built again, with a message;
    if several processes ask at once, one builds while the others wait.

    **Arguments:**

    - `folder`: that of the entry; its name should be a hash of `made_from`.
    - `build`: fills arrays from `allocated` in the folder that it is given; returns them by file
      name, and the other content of `meta.json`.
    - `doing`: the work, for the message: "decoding mnist train".

    **Raises:** `InputError` if the folder cannot be used, and as `build`.
    """
    if (arrays := _opened(folder)) is not None:
        return arrays
    with using(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(f".{folder.name}.lock").open("wb")
    part = folder.with_name(f".{folder.name}.part")
    with file:
        with using(folder.parent):
            lock(file, wait=True)
        if (arrays := _opened(folder)) is not None:  # built while this process waited
            return arrays
        if folder.exists():
            note(f"{folder}: damaged; {doing} again")
        try:
            with using(folder.parent):
                for old in (folder, part):
                    shutil.rmtree(old, ignore_errors=True)
                part.mkdir()
            made, about = build(part)
            with using(folder.parent):
                files = {}
                for name, array in made.items():
                    if isinstance(array, np.memmap):
                        array.flush()
                    sync(part / name)
                    files[name] = {"shape": array.shape, "sha256": file_hash(part / name)}
                write_json(part / _META, {**made_from, **about, "files": files})
                os.rename(part, folder)
                sync(folder.parent)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    if (arrays := _opened(folder)) is None:
        raise InputError(f"{folder}: could not be read back; is the disk failing?")
    return arrays


def _opened(folder: Path) -> Arrays | None:
    """Map the arrays; `None` if they are missing or damaged."""
    try:
        files = read_json(folder / _META)["files"]
        if any(about["sha256"] != file_hash(folder / name) for name, about in files.items()):
            return None
        return {name: np.load(folder / name, mmap_mode="r") for name in files}
    except (InputError, OSError, LookupError, TypeError, AttributeError, ValueError):
        return None


def allocated(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap[Any, Any]:
    """Return a new array on disk.

    **Raises:** `InputError` that names the cache's folder if there is no space.
    """
    with using(path.parent.parent):
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        # Writing to a mapped sparse file on a full disk is a SIGBUS; allocating first raises.
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array


@contextmanager
def using(folder: Path) -> Iterator[None]:
    """Turn disk errors in a cache folder into an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: cannot be used as a cache ({error}).") from error
