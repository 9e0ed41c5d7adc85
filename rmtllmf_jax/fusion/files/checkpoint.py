"""A checkpoint on disk: one safetensors file, or shards with an index, or a directory of either."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json
from rmtllmf_jax.fusion.files.adapters import require_no_adapter
from rmtllmf_jax.fusion.files.header import Entry, read_header

SINGLE = "model.safetensors"
SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
_OTHERS = ("*.bin", "*.msgpack", "*.pt", "*.pth", "*.h5", "*.gguf")


@dataclass(frozen=True)
class Checkpoint:
    """Where the tensors of a model lie; none of them is in memory."""

    given: Path
    """The path that it was asked for by; messages name it."""
    files: tuple[Path, ...]
    entries: dict[str, Entry]
    """By key, in the order in which they lie in the files."""
    metadata: dict[str, str]
    """Of the first file."""

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for entry in self.entries.values())

    @property
    def directory(self) -> Path | None:
        """The directory with configuration and tokenizer; `None` for a bare file."""
        if self.given.is_dir():
            return self.given
        return self.given.parent if self.given.name.endswith(INDEX) else None

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return what tells whether the files are still the same, without reading them.

        The time of change is the one that no program can set back.

        **Raises:** `InputError` if a file is gone.
        """
        found = []
        for path in self.files:
            try:
                stat = path.stat()
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
            names = {"name": path.name, "path": str(path.resolve()), "bytes": stat.st_size}
            found.append(names | {"modified": stat.st_mtime_ns, "changed": stat.st_ctime_ns})
        return found


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at a safetensors file, at an index, or in a Hugging Face directory.

    **Raises:** `InputError` that names what is missing, unreadable or ambiguous, or an adapter.
    """
    path = path.expanduser()
    require_no_adapter(path, sorted(os.listdir(path)) if path.is_dir() else [path.name])
    files, named = _files(path)
    entries: dict[str, Entry] = {}
    metadata: list[dict[str, str]] = []
    for file in files:
        header = read_header(file)
        metadata.append(header.metadata)
        for entry in header.entries:
            if entry.key in entries:
                first = entries[entry.key].path.name
                raise InputError(f"{path}: {entry.key} is in {first} and in {file.name}.")
            entries[entry.key] = entry
    require_no_adapter(path, entries)
    absent = [key for key in named if key not in entries]
    if absent:
        raise InputError(f"{path}: the index names keys that no shard holds: {', '.join(absent)}.")
    if not entries:
        raise InputError(f"{path}: holds no tensor.")
    return Checkpoint(path, files, entries, metadata[0])


def _files(path: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Return the weight files at a path, and what the index says of them if there is one."""
    if path.is_dir():
        path = _in_directory(path)
    if path.name.endswith(INDEX):
        names = weight_map(path)
        shards = tuple(path.parent / name for name in sorted(set(names.values())))
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise InputError(
                f"{path}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing)}."
            )
        return shards, names
    if not path.exists():
        raise InputError(
            f"{path}: no such file or directory; expected a safetensors file, an index "
            f"(*{INDEX}) or a Hugging Face directory. A model of the hub must be downloaded first "
            "(hf download OWNER/NAME)."
        )
    return (path,), {}


def _in_directory(folder: Path) -> Path:
    """Return the one weight file, or the one index, of a directory."""
    names = sorted(file.name for file in folder.iterdir())
    if SINGLE in names:
        return folder / SINGLE
    for suffix in (INDEX, SUFFIX):
        found = [name for name in names if name.endswith(suffix)]
        if len(found) == 1:
            return folder / found[0]
        if found:
            raise InputError(
                f"{folder}: cannot tell which of {', '.join(found)} to read; name one of them."
            )
    others = sorted({file.name for pattern in _OTHERS for file in folder.glob(pattern)})
    what = (
        f"only {', '.join(others)}; convert them to safetensors first" if others else "no weights"
    )
    raise InputError(f"{folder}: expected {SINGLE} or an index of shards, found {what}.")


def weight_map(index: Path) -> dict[str, str]:
    """Return the file of each key, from the index of a sharded checkpoint.

    **Raises:** `InputError` that names the index if it is no such file, or names files elsewhere.
    """
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index}: expected an object `weight_map` from keys to files.")
    for key, name in names.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{index}: {key} must name a file beside the index, got {name!r}.")
    return names


def labels(checkpoints: list[Checkpoint]) -> Iterator[str]:
    """Yield a short name for each: the last part of its path where that tells them apart."""
    names = [checkpoint.given.resolve().name for checkpoint in checkpoints]
    for checkpoint, name in zip(checkpoints, names, strict=True):
        yield name if names.count(name) == 1 else str(checkpoint.given)
