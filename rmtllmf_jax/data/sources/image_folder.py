"""Image files as a source: `<root>/<task>/{train,test}/<class>/<image>`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.source import SPLITS, Example
from rmtllmf_jax.data.sources.class_names import read_class_names
from rmtllmf_jax.data.sources.contents import file_hashes

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
"""Endings of image files, in any case."""


@dataclass(frozen=True)
class ImageFolder:
    """The `Source` over a folder with one sub-folder per task, with one folder per split and class.

    Labels are positions among the sorted names of the class folders of `train`, or in
    `classes.json` (a list of the folder names, plain or under `classes`) if there is one. Images
    come class by class, sorted by name. Names that begin with a dot are ignored; anything else that
    is not an image file is an error, as it may have been meant as one.

    **Raises:** every method raises `InputError` that names the folder or file.
    """

    root: Path

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the sub-folders that hold a split of class folders, sorted."""
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder.")
        names = sorted(path.name for path in self.root.iterdir() if holds_image_folders(path))
        if not names:
            raise InputError(f"{self.root}: holds no task; expected <task>/train/<class>/<image>.")
        return tuple(names)

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names in label order."""
        folder = self._folder(task)
        listed = folder / "classes.json"
        if listed.exists():
            return read_class_names(listed)
        names = tuple(path.name for path in _class_folders(folder / "train"))
        if not names:
            raise InputError(f"{folder / 'train'}: holds no class folder.")
        return names

    def size(self, task: str, split: str) -> int:
        """Return the number of image files in a split."""
        return len(self._images(task, split))

    def fingerprint(self, task: str, split: str) -> str:
        """Return a hash of the names and contents of all image files, in their order.

        Every byte is read, once per process: sizes and times would miss an edit or a copy.
        """
        images = self._images(task, split)
        try:
            hashes = file_hashes([path for path, _ in images], f"hashing {task} {split}")
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error}).") from error
        rows = [
            [f"{path.parent.name}/{path.name}", label, digest]
            for (path, label), digest in zip(images, hashes, strict=True)
        ]
        return content_hash({"images": rows})

    def examples(self, task: str, split: str, start: int = 0) -> Iterator[Example]:
        """Yield the image files from number `start` on, class by class, sorted by name."""
        for path, label in self._images(task, split)[start:]:
            try:
                image = path.read_bytes()
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error}).") from error
            yield Example(image, label, str(path))

    def _folder(self, task: str) -> Path:
        return self.root / require_known("task", task, self.tasks())

    def _images(self, task: str, split: str) -> list[tuple[Path, int]]:
        folder = self._folder(task) / require_known("split", split, SPLITS)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected {split}/<class>/<image>.")
        labels = {name: label for label, name in enumerate(self.classes(task))}
        images = []
        for inside in _class_folders(folder):
            if inside.name not in labels:
                known = "classes.json" if (folder.parent / "classes.json").exists() else "train"
                raise InputError(f"{inside}: class {inside.name!r} is not in {known}.")
            images += [(path, labels[inside.name]) for path in _image_files(inside)]
        return sorted(images, key=lambda image: (image[1], image[0].name))


def holds_image_folders(folder: Path) -> bool:
    """Return whether a task's folder has a split stored as class folders."""
    return folder.is_dir() and any(
        (folder / split).is_dir() and any(path.is_dir() for path in _visible(folder / split))
        for split in SPLITS
    )


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected {folder.name}/<class>/<image>.")
    for path in _visible(folder):
        if not path.is_dir():
            raise InputError(f"{path}: expected class folders here, got a file. Move it away.")
    return _visible(folder)


def _image_files(folder: Path) -> list[Path]:
    for path in _visible(folder):
        if path.is_dir():
            raise InputError(f"{path}: expected image files here, got a folder.")
        if path.suffix.lower() not in ENDINGS:
            raise InputError(
                f"{path}: not the name of an image file ({', '.join(ENDINGS)}). Move it away."
            )
    return _visible(folder)
