"""Parquet files as a source: `<root>/<task>/{train,test}.parquet`, or a data set's shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.source import SPLITS, Example
from rmtllmf_jax.data.sources.class_names import read_class_names
from rmtllmf_jax.data.sources.contents import file_hashes
from rmtllmf_jax.data.sources.parquet_file import (
    class_names_in,
    columns_in,
    examples_in,
    reading,
    rows_in,
)
from rmtllmf_jax.data.sources.shards import holds_split, split_files


@dataclass(frozen=True)
class ParquetFolder:
    """The `Source` over a folder with one sub-folder per task.

    A split is `<split>.parquet`, or the shards `<split>-00000-of-0000N.parquet` of a data set that
    was downloaded from the Hugging Face hub (also below `data/` or the name of a configuration).
    A file has the columns `image` (PNG or JPEG bytes, or the struct `{bytes, path}` of Hugging Face
    datasets), `label` (integer) and, optionally, `id` (string); `columns_in` lists other names for
    them. `classes.json` is a list of class names in label order, or an object with such a list
    under `classes`; without it, the names that Hugging Face recorded in the file are used.

    **Raises:** every method raises `InputError` that names the file (and row) if a folder, file or
    column is missing, if a file is truncated or otherwise unreadable, or if a value is null.
    """

    root: Path

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the sub-folders that hold a parquet file, sorted."""
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder.")
        folders = (folder for folder in self.root.iterdir() if folder.is_dir())
        names = sorted(folder.name for folder in folders if holds_parquet(folder))
        if not names:
            raise InputError(f"{self.root}: holds no task; expected <task>/train.parquet.")
        return tuple(names)

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names in label order, from `classes.json` or the parquet files."""
        folder = self._folder(task)
        path = folder / "classes.json"
        if path.exists():
            return read_class_names(path)
        noted = {}
        for split in SPLITS:
            if holds_split(folder, split):
                file = split_files(folder, split)[0]
                noted[file] = class_names_in(file, columns_in(file, task).label)
        if len(set(noted.values())) > 1:
            listed = " and ".join(map(str, noted))
            raise InputError(f"{listed} note different class names. Write a {path}.")
        names = next(iter(noted.values()), None)
        if names is None:
            raise InputError(f"{path}: no such file, and the parquet files note no class names.")
        return names

    def size(self, task: str, split: str) -> int:
        """Return the number of rows of a split; reads the files' footers only."""
        return sum(rows_in(path) for path in self._paths(task, split))

    def fingerprint(self, task: str, split: str) -> str:
        """Return the SHA-256 of the parquet file, or a hash of those of its shards."""
        paths = self._paths(task, split)
        with reading(paths[0].parent if len(paths) > 1 else paths[0]):
            hashes = file_hashes(paths, f"hashing {task} {split}")
        return hashes[0] if len(hashes) == 1 else content_hash({"shards": hashes})

    def examples(self, task: str, split: str, start: int = 0) -> Iterator[Example]:
        """Yield the rows in the order of the files; holds a few of them at a time.

        Shards and row groups before row `start` are not read.
        """
        before = 0
        for path in self._paths(task, split):
            rows = rows_in(path)
            if before + rows > start or rows == 0:  # an empty file still has its columns checked
                yield from examples_in(path, columns_in(path, task), max(start - before, 0))
            before += rows

    def _folder(self, task: str) -> Path:
        return self.root / require_known("task", task, self.tasks())

    def _paths(self, task: str, split: str) -> list[Path]:
        return split_files(self._folder(task), require_known("split", split, SPLITS))


def holds_parquet(folder: Path) -> bool:
    """Return whether a task's folder has a split as parquet files."""
    return any(holds_split(folder, split) for split in SPLITS)
