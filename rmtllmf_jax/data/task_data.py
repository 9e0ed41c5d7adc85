"""A task's splits as used by the pipeline: train, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.cache import Images, load_split
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.samples import SampleArrays
from rmtllmf_jax.data.source import ALL_SPLITS, SPLITS, Source
from rmtllmf_jax.data.splits import few_shot, split_validation
from rmtllmf_jax.data.tasks import REGISTERED
from rmtllmf_jax.models.processor import Fit, Resample


@dataclass(frozen=True)
class Rows:
    """Some rows of a split; the images stay in the memory map until first use."""

    split: Images
    indices: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.indices)

    @property
    def labels(self) -> Int32[np.ndarray, " n"]:
        """Labels of the rows."""
        return self.split.labels[self.indices]

    @property
    def images(self) -> UInt8[np.ndarray, "n s s 3"]:
        """Images of the rows, read from disk on access."""
        return self.split.images[self.indices]

    def bytes_each(self) -> int:
        """Return the bytes of an image."""
        return self.split.images[0].nbytes

    def take(self, rows: Int64[np.ndarray, " m"]) -> Rows:
        """Return some of these rows."""
        return Rows(self.split, self.indices[rows])

    def arrays(self) -> SampleArrays:
        """Return images and labels, all with the same weight."""
        return SampleArrays({"images": self.images}, self.labels, np.ones(len(self), np.float32))


@dataclass(frozen=True)
class TaskData:
    """One task: its training, validation and test images."""

    name: str
    classes: tuple[str, ...]
    train: Rows
    validation: Rows
    test: Rows

    @property
    def fingerprint(self) -> str:
        """Hash of the training images, and of which of them are for validation.

        Without a validation split, the share of train that is set aside completes it.
        """
        train, validation = self.train.split, self.validation.split
        if validation is train:
            return train.fingerprint
        return content_hash({"train": train.fingerprint, "validation": validation.fingerprint})

    def shots(self, per_class: int, seed: int) -> Int64[np.ndarray, " shots"]:
        """Return a few training images of every class, as positions in `train`, see `few_shot`.

        **Raises:** `InputError` that names the task and a class with too few training images.
        """
        try:
            return few_shot(self.train.labels, per_class, seed, classes=self.classes)
        except InputError as error:
            raise InputError(f"shots of task {self.name!r}: {error}") from error

    def few(self, count: int, seed: int) -> Rows:
        """Return the images of `shots` themselves."""
        return self.train.take(self.shots(count, seed))

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the images; that of train covers those for validation."""
        return {"train": self.fingerprint, "test": self.test.split.fingerprint}


def load_task(
    source: Source,
    task: str,
    image_size: int,
    cache_dir: Path,
    *,
    fit: Fit = "crop",
    resample: Resample = "bicubic",
    resize_to: int | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    skip_unreadable: int = 0,
) -> TaskData:
    """Load a task through the cache, with its own validation split where it has one.

    Otherwise `validation_fraction` of each class of train, chosen by `seed`, is set aside. Sets of
    small square images are kept at their own size, and up to `skip_unreadable` images per split are
    left out (`load_split`).

    **Raises:** `InputError` that names the file, row or option (`load_split`, `split_validation`).
    """
    native = task_facts(task).pixels if task in REGISTERED else None
    splits = {
        split: load_split(
            source,
            task,
            split,
            image_size,
            cache_dir,
            fit=fit,
            resample=resample,
            resize_to=resize_to,
            native=native,
            skip_unreadable=skip_unreadable,
        )
        for split in ALL_SPLITS
        if split in SPLITS or split in source.splits(task)
    }
    train = splits["train"]
    if "validation" in splits:
        kept, validation = _all(train), _all(splits["validation"])
    else:
        chosen = split_validation(train.labels, validation_fraction, seed)
        kept, validation = (Rows(train, rows) for rows in chosen)
    return TaskData(task, train.classes, kept, validation, _all(splits["test"]))


def _all(split: Images) -> Rows:
    return Rows(split, np.arange(len(split.labels), dtype=np.int64))
