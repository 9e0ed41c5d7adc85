"""Contents of files and examples: class names, and hashes (in threads, with a progress bar)."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import file_hash, read_json
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.data.source import Example

_SETTLED = 2_000_000_000  # nanoseconds; coarser than any file system's clock

_KNOWN: dict[tuple[int, ...], str] = {}


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names in a JSON file: a plain list, or a list under `classes`.

    **Raises:** `InputError` that names the file if it is missing, has other content or holds a name
    twice.
    """
    content = read_json(path)
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: expected a list of class names, plain or under 'classes'.")
    for label, name in enumerate(names):
        if not isinstance(name, str):
            raise InputError(f"{path}: class {label} must be a string, got {name!r}.")
        if name in names[:label]:
            raise InputError(f"{path}: classes {names.index(name)} and {label} are both {name!r}.")
    return tuple(names)


def file_hashes(paths: Sequence[Path], description: str) -> list[str]:
    """Return the SHA-256 of each file, as hexadecimal.

    A process reads a file once, unless its inode, size or times have changed, as it needs the same
    fingerprint before and after it decodes a split.

    **Raises:** `OSError` if a file cannot be read.
    """
    with (
        progress_bar(description, len(paths)) as advance,
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
    ):
        hashes = []
        for digest in pool.map(_hash, paths):
            hashes.append(digest)
            advance(1)
    return hashes


def examples_hash(examples: Iterable[Example], total: int, description: str) -> str:
    """Return the SHA-256 over the images and labels of some examples, in their order."""
    digest = hashlib.sha256()
    with progress_bar(description, total) as advance:
        for example in examples:
            image = example.image
            if isinstance(image, np.ndarray):
                digest.update(f"{image.dtype.str} {image.shape} {example.label}\n".encode())
                digest.update(np.ascontiguousarray(image).data)
            else:
                digest.update(f"{len(image)} {example.label}\n".encode())
                digest.update(image)
            advance(1)
    return digest.hexdigest()


def _hash(path: Path) -> str:
    now, stat = time.time_ns(), path.stat()
    stamp = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    digest = _KNOWN.get(stamp) or file_hash(path)
    # A file that has just changed may change again without a new time stamp.
    if max(stat.st_mtime_ns, stat.st_ctime_ns) + _SETTLED < now:
        _KNOWN[stamp] = digest
    return digest
