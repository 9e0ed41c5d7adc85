"""A folder of tasks, or one task, in any supported layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.data.reading import AS_USUAL, Reading
from rmtllmf_jax.data.sources.images import ImageTask
from rmtllmf_jax.data.sources.lists import ListTask
from rmtllmf_jax.data.sources.parquet import ParquetTask, SavedTask
from rmtllmf_jax.data.sources.stored import StoredSource

StoredTask = ParquetTask | SavedTask | ListTask | ImageTask

_LAYOUTS: dict[type[StoredTask], str] = {
    ParquetTask: "parquet files",
    SavedTask: "what save_to_disk wrote",
    ListTask: "lists of image files",
    ImageTask: "image folders",
}


@dataclass(frozen=True)
class DataFolder(StoredSource):
    """The `Source` over `<root>/<task>`, whichever way each task is stored, or over one task.

    `ParquetTask`, `SavedTask`, `ListTask` and `ImageTask` document what a task's folder may hold.
    In all of them, `classes.json` is a list of class names in label order, or an object with such a
    list under `classes`. A root that is itself such a folder is one task with the folder's name.

    **Raises:** every method raises `InputError` that names the folder or file (and row), also if a
    task is stored in several ways.
    """

    root: Path
    reading: Reading = AS_USUAL

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the sub-folders that hold a split, sorted, or the root's."""
        return tuple(self._folders())

    def stored(self, task: str) -> StoredTask:
        """Return a task in the layout of its folder."""
        folders = self._folders()
        folder = folders[require_known("task", task, folders)]
        first, *others = self._ways(folder)
        if others:
            kinds = " and ".join(_LAYOUTS[type(way)] for way in (first, *others))
            raise InputError(f"{folder}: holds {kinds}. Keep one of them.")
        return first

    def _folders(self) -> dict[str, Path]:
        """Return the folder of each task."""
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder.")
        own = {self.root.resolve().name: self.root}
        ways = self._ways(self.root)
        if any(stored.directly() for stored in ways):
            return own
        found = {
            folder.name: folder
            for folder in sorted(self.root.iterdir())
            if folder.is_dir() and folder.name[0] != "." and self._ways(folder)
        }
        if ways and list(found) == ["default"]:  # the one configuration of a download
            return own
        if not found:
            raise InputError(
                f"{self.root}: holds no task; expected, here or in a folder per task, "
                "train.parquet, shards of the hub (train-00000-of-*.parquet, train/0000.parquet), "
                "what save_to_disk of `datasets` writes, images as train/<class>/<image>, or lists "
                "of images (train.csv)."
            )
        return found

    def _ways(self, folder: Path) -> list[StoredTask]:
        """Return the layouts in which a folder holds a split."""
        found = (layout(folder, self.reading) for layout in _LAYOUTS)
        return [stored for stored in found if self.reading.knows(stored.splits())]
