"""The interface of a source of labelled images, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8, UInt16

SPLITS = ("train", "test")
"""The splits that every task has."""

ALL_SPLITS = ("train", "validation", "test")
"""All splits. Where a task has no validation images, some are taken from `train` (`splits.py`)."""


@dataclass(frozen=True, slots=True)
class Example:
    """One image with its label.

    `image` is an image file as stored, or its pixels from 0 to 255: (h, w, 3) RGB, or (h, w, 1) or
    (h, w) grey, which may have 16 bits (`decode.bits_used`). `label` is an index into the task's
    classes; `origin` names file and row in error messages.
    """

    image: (
        bytes
        | UInt8[np.ndarray, "h w c"]
        | UInt8[np.ndarray, "h w"]
        | UInt16[np.ndarray, "h w c"]
        | UInt16[np.ndarray, "h w"]
    )
    label: int
    origin: str


@runtime_checkable
class Source(Protocol):
    """Tasks, each with class names and two or three splits of images in a fixed order.

    All methods raise `InputError` for an unknown task or split and for unreadable files.
    """

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the tasks (at least one)."""
        ...

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names of a task in the order of its labels."""
        ...

    def splits(self, task: str) -> tuple[str, ...]:
        """Return the splits that a task has, in the order of `ALL_SPLITS`."""
        ...

    def size(self, task: str, split: str) -> int:
        """Return the number of images in a split."""
        ...

    def fingerprint(self, task: str, split: str) -> str:
        """Return a hash of the content: it changes with any image, any label, and their order."""
        ...

    def examples(self, task: str, split: str) -> Iterator[Example]:
        """Yield the images of a split one by one, always in the same order."""
        ...
