"""What an embedded task is, and how its two splits are drawn image by image."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from rmtllmf_jax.data.source import SPLITS
from rmtllmf_jax.data.sources.arrays import TaskArrays

SIZE = 32  # side of every image in pixels

IMAGES = {"train": 1000, "test": 300}
"""Images per split; rounded up so that all classes have equally many."""


@dataclass(frozen=True)
class Item:
    """One image to be drawn: the `number`-th of its class in a split."""

    split: str
    label: int
    number: int


@dataclass(frozen=True)
class EmbeddedTask:
    """A task that comes with the package.

    `real` says whether its pixels were photographed or scanned; otherwise they are rendered. `draw`
    makes one image, (32, 32, 3) RGB, from an item and the item's own generator.
    """

    name: str
    description: str
    classes: tuple[str, ...]
    draw: Callable[[Item, np.random.Generator], UInt8[np.ndarray, "32 32 3"]]
    licence: str = "drawn here (Apache-2.0)"
    real: bool = False


def images_a_class(classes: int, split: str) -> int:
    """Return how many images of each class a split has."""
    return -(-IMAGES[split] // classes)


def draw_task(task: EmbeddedTask, seed: int) -> TaskArrays:
    """Draw both splits of a task; the classes take turns.

    **Raises:** `InputError` if a file that the task draws from is missing.
    """
    arrays = {}
    for split in SPLITS:
        count = len(task.classes)
        items = [
            Item(split, label, number)
            for number in range(images_a_class(count, split))
            for label in range(count)
        ]
        images = [task.draw(item, generator(task.name, item, seed)) for item in items]
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = np.array([item.label for item in items], np.int32)
    return TaskArrays(**arrays, classes=task.classes)


def generator(task: str, item: Item, seed: int) -> np.random.Generator:
    """Return the generator of one image, keyed by its identity and not by the order of drawing."""
    meaning = (zlib.crc32(task.encode()), SPLITS.index(item.split), item.label, item.number)
    return np.random.default_rng(np.random.SeedSequence((seed, *meaning)))
