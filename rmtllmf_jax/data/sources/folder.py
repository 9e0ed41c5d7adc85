"""A folder of tasks, each as parquet files or as image files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.data.source import Example
from rmtllmf_jax.data.sources.image_folder import ImageFolder, holds_image_folders
from rmtllmf_jax.data.sources.parquet import ParquetFolder, holds_parquet


@dataclass(frozen=True)
class DataFolder:
    """The `Source` over `<root>/<task>`, whichever way each task is stored.

    `ParquetFolder` and `ImageFolder` say what a task's folder may hold.

    **Raises:** every method raises `InputError` that names the folder or file, also if a task is
    stored in both ways.
    """

    root: Path

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the sub-folders that hold a split in either way, sorted."""
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder.")
        folders = (folder for folder in self.root.iterdir() if folder.is_dir())
        names = sorted(
            folder.name
            for folder in folders
            if folder.name[0] != "." and (holds_parquet(folder) or holds_image_folders(folder))
        )
        if not names:
            raise InputError(
                f"{self.root}: holds no task; expected <task>/train.parquet, the shards "
                "<task>/train-00000-of-*.parquet or images as <task>/train/<class>/<image>."
            )
        return tuple(names)

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names in label order."""
        return self._stored(task).classes(task)

    def size(self, task: str, split: str) -> int:
        """Return the number of images in a split."""
        return self._stored(task).size(task, split)

    def fingerprint(self, task: str, split: str) -> str:
        """Return a hash of the content of a split's files."""
        return self._stored(task).fingerprint(task, split)

    def examples(self, task: str, split: str, start: int = 0) -> Iterator[Example]:
        """Yield the images of a split from row `start` on."""
        return self._stored(task).examples(task, split, start)

    def _stored(self, task: str) -> ParquetFolder | ImageFolder:
        folder = self.root / require_known("task", task, self.tasks())
        if holds_parquet(folder) and holds_image_folders(folder):
            raise InputError(f"{folder}: holds parquet files and image folders. Keep one of them.")
        return ParquetFolder(self.root) if holds_parquet(folder) else ImageFolder(self.root)
