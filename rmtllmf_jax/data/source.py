"""What a source of labelled images offers; where the images come from is its own business."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

SPLITS = ("train", "test")
"""The splits that every task has. Validation images are taken from `train` (see `splits.py`)."""


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded image.

    `image_bytes` is the image file as stored, `label` an index into the task's classes, `origin`
    names the file and row for error messages.
    """

    image_bytes: bytes
    label: int
    origin: str


@runtime_checkable
class Source(Protocol):
    """Tasks, each with class names and two splits of encoded images in a fixed order.

    All methods raise `InputError` for an unknown task or split and for unreadable files.
    """

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the tasks, at least one."""
        ...

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names of a task in the order of its labels."""
        ...

    def size(self, task: str, split: str) -> int:
        """Return the number of images in a split."""
        ...

    def fingerprint(self, task: str, split: str) -> str:
        """Return a hash of the content: it changes when any image, label or their order does."""
        ...

    def examples(self, task: str, split: str) -> Iterator[Example]:
        """Yield the images of a split one by one, always in the same order."""
        ...
