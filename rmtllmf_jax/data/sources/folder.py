"""A folder of tasks, each as parquet files or as image files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.source import SPLITS, Example
from rmtllmf_jax.data.sources.contents import file_hashes, read_class_names
from rmtllmf_jax.data.sources.parquet import ParquetTask

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
"""Endings of image files, in any case."""


@dataclass(frozen=True)
class DataFolder:
    """The `Source` over `<root>/<task>`, whichever way each task is stored.

    `ParquetTask` and `ImageTask` say what a task's folder may hold. In both, `classes.json` is a
    list of class names in label order, or an object with such a list under `classes`.

    **Raises:** every method raises `InputError` that names the folder or file (and row), also if a
    task is stored in both ways.
    """

    root: Path

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the sub-folders that hold a split in either way, sorted."""
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder.")
        names = sorted(
            folder.name
            for folder in self.root.iterdir()
            if folder.is_dir()
            and folder.name[0] != "."
            and (ParquetTask.holds(folder) or ImageTask.holds(folder))
        )
        if not names:
            raise InputError(
                f"{self.root}: holds no task; expected <task>/train.parquet, the shards "
                "<task>/train-00000-of-*.parquet or images as <task>/train/<class>/<image>."
            )
        return tuple(names)

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names in label order."""
        return self._stored(task).classes()

    def size(self, task: str, split: str) -> int:
        """Return the number of images in a split."""
        return self._stored(task).size(require_known("split", split, SPLITS))

    def fingerprint(self, task: str, split: str) -> str:
        """Return a hash of the content of a split's files.

        Every byte is read, once per process: sizes and times would miss an edit or a copy.
        """
        return self._stored(task).fingerprint(require_known("split", split, SPLITS))

    def examples(self, task: str, split: str) -> Iterator[Example]:
        """Yield the images of a split, in the order of the files."""
        return self._stored(task).examples(require_known("split", split, SPLITS))

    def _stored(self, task: str) -> ParquetTask | ImageTask:
        folder = self.root / require_known("task", task, self.tasks())
        if not ParquetTask.holds(folder):
            return ImageTask(folder)
        if ImageTask.holds(folder):
            raise InputError(f"{folder}: holds parquet files and image folders. Keep one of them.")
        return ParquetTask(folder)


@dataclass(frozen=True)
class ImageTask:
    """One task of a `DataFolder`, stored as image files: `{train,test}/<class>/<image>`.

    Labels are positions among the sorted names of the class folders of `train`, or in
    `classes.json` if there is one. Images come class by class, sorted by name. Names that begin
    with a dot are ignored; anything else that is not an image file is an error, as it may have been
    meant as one.
    """

    folder: Path

    @staticmethod
    def holds(folder: Path) -> bool:
        """Return whether a folder has a split stored as class folders."""
        splits = [folder / split for split in SPLITS if (folder / split).is_dir()]
        return any(path.is_dir() for split in splits for path in _visible(split))

    def classes(self) -> tuple[str, ...]:
        """Return the class names in label order."""
        listed = self.folder / "classes.json"
        if listed.exists():
            return read_class_names(listed)
        names = tuple(path.name for path in _class_folders(self.folder / "train"))
        if not names:
            raise InputError(f"{self.folder / 'train'}: holds no class folder.")
        return names

    def size(self, split: str) -> int:
        """Return the number of image files in a split."""
        return len(self._images(split))

    def fingerprint(self, split: str) -> str:
        """Return a hash of the names and contents of all image files, in their order."""
        images = self._images(split)
        doing = f"hashing {self.folder.name} {split}"
        try:
            hashes = file_hashes([path for path, _ in images], doing)
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error}).") from error
        rows = [
            [f"{path.parent.name}/{path.name}", label, digest]
            for (path, label), digest in zip(images, hashes, strict=True)
        ]
        return content_hash({"images": rows})

    def examples(self, split: str) -> Iterator[Example]:
        """Yield the image files class by class, sorted by name."""
        for path, label in self._images(split):
            try:
                image = path.read_bytes()
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error}).") from error
            yield Example(image, label, str(path))

    def _images(self, split: str) -> list[tuple[Path, int]]:
        labels = {name: label for label, name in enumerate(self.classes())}
        images = []
        for inside in _class_folders(self.folder / split):
            if inside.name not in labels:
                known = "classes.json" if (self.folder / "classes.json").exists() else "train"
                raise InputError(f"{inside}: class {inside.name!r} is not in {known}.")
            for path in _visible(inside):
                if path.is_dir():
                    raise InputError(f"{path}: expected image files here, got a folder.")
                if path.suffix.lower() not in ENDINGS:
                    known = ", ".join(ENDINGS)
                    raise InputError(f"{path}: not the name of an image file ({known}). Move it.")
                images.append((path, labels[inside.name]))
        return sorted(images, key=lambda image: (image[1], image[0].name))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected {folder.name}/<class>/<image>.")
    for path in _visible(folder):
        if not path.is_dir():
            raise InputError(f"{path}: expected class folders here, got a file. Move it away.")
    return _visible(folder)
