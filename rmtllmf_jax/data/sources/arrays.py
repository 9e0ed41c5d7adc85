"""Images in memory, or in one `.npz` file per task, as a source."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.data.decode import are_pixels
from rmtllmf_jax.data.source import ALL_SPLITS, SPLITS, Example

_NAMES = ("train_images", "train_labels", "test_images", "test_labels", "classes")
_OPTIONAL = ("validation_images", "validation_labels")


@dataclass(frozen=True)
class TaskArrays:
    """One task: images uint8 (n, h, w, 3), (n, h, w, 1) or (n, h, w), labels integers (n,).

    Grey images may be uint16: they are scaled by the range that a split uses, like those in files.
    Without validation images, some of train are taken.

    **Raises:** `InputError` that names the array if its type or shape is wrong, if a label is not
    an index into `classes`, or if `classes` is empty or holds a name twice.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check types and shapes."""
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(f"classes: expected names, each once, got {list(self.classes)}.")
        if (self.validation_images is None) != (self.validation_labels is None):
            raise InputError("validation_images and validation_labels go together: give both.")
        for split in self.splits:
            _check(split, *self.split(split), len(self.classes))

    @property
    def splits(self) -> tuple[str, ...]:
        """The existing splits."""
        return SPLITS if self.validation_images is None else ALL_SPLITS

    def split(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the images and labels of a split."""
        require_known("split", split, self.splits)
        return getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")


@dataclass(frozen=True)
class ArraySource:
    """The `Source` over arrays, or over `.npz` files that are read at first use.

    **Raises:** every method raises `InputError` for an unknown task or split, and for a file that
    does not hold what `TaskArrays` requires (it names file and array).
    """

    arrays: Mapping[str, TaskArrays | Path]
    _read: dict[str, TaskArrays] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_npz(cls, folder: Path) -> ArraySource:
        """Return the source over `<folder>/<task>.npz`.

        A file holds `train_images`, `train_labels`, `test_images`, `test_labels` and `classes` (an
        array of strings), optionally `validation_images` and `validation_labels`, as `TaskArrays`
        requires; `numpy.savez` writes such files.

        **Raises:** `InputError` that names the folder if it is missing or holds no such file.
        """
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder.")
        paths = {path.stem: path for path in folder.glob("*.npz") if path.name[0] != "."}
        if not paths:
            raise InputError(f"{folder}: holds no task; expected <task>.npz.")
        return cls(paths)

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the tasks, sorted."""
        return tuple(sorted(self.arrays))

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names in label order."""
        return self._task(task).classes

    def splits(self, task: str) -> tuple[str, ...]:
        """Return the splits that a task has."""
        return self._task(task).splits

    def size(self, task: str, split: str) -> int:
        """Return the number of images in a split."""
        return len(self._split(task, split)[1])

    def fingerprint(self, task: str, split: str) -> str:
        """Return the SHA-256 of the images' and labels' shapes and values."""
        images, labels = self._split(task, split)
        deep = " 16 bits" if images.dtype == np.uint16 else ""
        digest = hashlib.sha256(f"{images.shape}{deep}\n".encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
        return digest.hexdigest()

    def examples(self, task: str, split: str) -> Iterator[Example]:
        """Yield the rows."""
        for row, (image, label) in enumerate(zip(*self._split(task, split), strict=True)):
            yield Example(image, int(label), f"{task}: {split}_images[{row}]")

    def _task(self, task: str) -> TaskArrays:
        stored = self.arrays[require_known("task", task, self.tasks())]
        if task not in self._read:
            self._read[task] = _read_npz(stored) if isinstance(stored, Path) else stored
        return self._read[task]

    def _split(self, task: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        return self._task(task).split(split)


def _read_npz(path: Path) -> TaskArrays:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            missing = [name for name in _NAMES if name not in file.files]
            if missing:
                listed = ", ".join(file.files)
                raise InputError(f"{path}: no array {', '.join(missing)}; it has {listed}.")
            there = (*_NAMES, *(name for name in _OPTIONAL if name in file.files))
            arrays = {name: file[name] for name in there}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable .npz file ({error}).") from error
    classes = arrays.pop("classes")
    if classes.ndim != 1 or classes.dtype.kind != "U":
        raise InputError(
            f"{path}: classes must be a list of strings, got {classes.dtype} {classes.shape}."
        )
    try:
        return TaskArrays(**arrays, classes=tuple(classes.tolist()))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check(split: str, images: np.ndarray, labels: np.ndarray, classes: int) -> None:
    if not are_pixels(images.dtype, images.shape[1:]):
        raise InputError(
            f"{split}_images: expected uint8 (n, h, w, 3), (n, h, w, 1) or (n, h, w), or uint16 of "
            f"the latter two, got {images.dtype} {images.shape}."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise InputError(
            f"{split}_labels: expected integers of shape {images.shape[:1]}, "
            f"got {labels.dtype} {labels.shape}."
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise InputError(
            f"{split}_labels[{wrong[0]}]: label {labels[wrong[0]]} is not one of the {classes} "
            f"classes (0 to {classes - 1})."
        )
