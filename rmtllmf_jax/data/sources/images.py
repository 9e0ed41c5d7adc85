"""Layouts of a task's folder with image files: what they share, and class folders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.reading import AS_USUAL, Reading
from rmtllmf_jax.data.source import Example
from rmtllmf_jax.data.sources.contents import file_hashes, read_class_names

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
"""Endings of image files, in any case."""


class Labelled(NamedTuple):
    """An image file, its label, and its name within the task."""

    path: Path
    label: int
    name: str


class Files:
    """One task, stored as image files; a layout says which of them form a split."""

    folder: Path

    @property
    def place(self) -> Path:
        """The folder."""
        return self.folder

    def images(self, split: str) -> list[Labelled]:
        """Return the image files of a split in their order."""
        raise NotImplementedError

    def noted(self) -> tuple[str, ...]:
        """Return the class names in label order, as noted in the layout."""
        raise NotImplementedError

    @property
    def listed(self) -> Path:
        """The file of class names, which a folder may lack."""
        return self.folder / "classes.json"

    def classes(self) -> tuple[str, ...]:
        """Return the class names in label order."""
        return read_class_names(self.listed) if self.listed.exists() else self.noted()

    def directly(self) -> bool:
        """Return whether the folder is a set, rather than a folder of sets."""
        return True

    def size(self, split: str) -> int:
        """Return the number of image files in a split."""
        return len(self.images(split))

    def fingerprint(self, split: str) -> str:
        """Return a hash of the names, labels and contents of all image files, in their order."""
        images, doing = self.images(split), f"hashing {self.folder.name} {split}"
        try:
            hashes = file_hashes([image.path for image in images], doing)
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error}).") from error
        rows = [
            [image.name, image.label, digest] for image, digest in zip(images, hashes, strict=True)
        ]
        return content_hash({"images": rows})

    def examples(self, split: str) -> Iterator[Example]:
        """Yield the image files in their order."""
        for path, label, _ in self.images(split):
            try:
                image = path.read_bytes()
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error}).") from error
            yield Example(image, label, str(path))


@dataclass(frozen=True)
class ImageTask(Files):
    """One task of a `DataFolder`, stored as image files: `<split>/<class>/<image>`.

    Labels are positions among the sorted names of the class folders of train, or in `classes.json`
    if there is one. Images come class by class, sorted by name. Names that begin with a dot are
    ignored; anything else that is not an image file is an error, as it may be meant as one.
    """

    folder: Path
    reading: Reading = AS_USUAL

    def splits(self) -> tuple[str, ...]:
        """Return the names of the folders that hold folders, sorted."""
        folders = [path for path in _visible(self.folder) if path.is_dir()]
        return tuple(
            path.name
            for path in folders
            if self.reading.knows([path.name]) and any(x.is_dir() for x in _visible(path))
        )

    def noted(self) -> tuple[str, ...]:
        """Return the names of the class folders of train."""
        train = self.folder / self.reading.splits(self.splits(), self.folder).get("train", "train")
        names = tuple(path.name for path in _class_folders(train))
        if not names:
            raise InputError(f"{train}: holds no class folder.")
        return names

    def images(self, split: str) -> list[Labelled]:
        """Return the image files class by class, sorted by name."""
        labels = {name: label for label, name in enumerate(self.classes())}
        images = []
        for inside in _class_folders(self.folder / split):
            if inside.name not in labels:
                known = self.listed.name if self.listed.exists() else "train"
                raise InputError(f"{inside}: class {inside.name!r} is not in {known}.")
            for path in _visible(inside):
                if path.is_dir():
                    raise InputError(f"{path}: expected image files here, got a folder.")
                if path.suffix.lower() not in ENDINGS:
                    known = ", ".join(ENDINGS)
                    raise InputError(f"{path}: not the name of an image file ({known}). Move it.")
                images.append(Labelled(path, labels[inside.name], f"{inside.name}/{path.name}"))
        return sorted(images, key=lambda image: (image.label, image.path.name))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected {folder.name}/<class>/<image>.")
    for path in _visible(folder):
        if not path.is_dir():
            raise InputError(f"{path}: expected class folders here, got a file. Move it away.")
    return _visible(folder)
