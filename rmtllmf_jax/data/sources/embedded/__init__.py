"""Eight small tasks that come with the package: nothing is downloaded, all images are generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from rmtllmf_jax.common.errors import require_at_least, require_known
from rmtllmf_jax.data.source import SPLITS, Example
from rmtllmf_jax.data.sources.arrays import ArraySource
from rmtllmf_jax.data.sources.embedded import (
    colours,
    counts,
    digits,
    letters,
    photographs,
    shapes,
    signs,
    textures,
)
from rmtllmf_jax.data.sources.embedded.task import EmbeddedTask, draw_task, images_a_class

_MODULES = (colours, counts, digits, letters, photographs, shapes, signs, textures)

EMBEDDED: Mapping[str, EmbeddedTask] = MappingProxyType(
    {module.TASK.name: module.TASK for module in _MODULES}
)
"""The tasks by name, in the order of `data.tasks.EMBEDDED_NAMES`."""


@dataclass(frozen=True)
class EmbeddedSource:
    """The `Source` of the eight tasks: 32 x 32 RGB, about 1,000 train and 300 test images each.

    One seed always gives the same images. Another seed draws others, but a scan or a region of a
    photograph that is in test under one seed is never in train under another.

    **Raises:** every method raises `InputError` for an unknown task or split, and if a package
    lacks a file that a task draws from; the constructor raises it for a negative seed.
    """

    seed: int = 0
    _drawn: dict[str, ArraySource] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the seed."""
        require_at_least("seed", self.seed, 0)

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the tasks, sorted."""
        return tuple(EMBEDDED)

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names in label order."""
        return EMBEDDED[require_known("task", task, EMBEDDED)].classes

    def splits(self, task: str) -> tuple[str, ...]:
        """Return train and test."""
        require_known("task", task, EMBEDDED)
        return SPLITS

    def size(self, task: str, split: str) -> int:
        """Return the number of images in a split."""
        classes = len(self.classes(task))
        return classes * images_a_class(classes, require_known("split", split, SPLITS))

    def fingerprint(self, task: str, split: str) -> str:
        """Return the SHA-256 of the images and labels."""
        return self._arrays(task).fingerprint(task, split)

    def examples(self, task: str, split: str) -> Iterator[Example]:
        """Yield the images; the classes take turns."""
        return self._arrays(task).examples(task, split)

    def _arrays(self, task: str) -> ArraySource:
        """Draw a task at first use, then keep it (4 MB)."""
        known = EMBEDDED[require_known("task", task, EMBEDDED)]
        if task not in self._drawn:
            self._drawn[task] = ArraySource({task: draw_task(known, self.seed)})
        return self._drawn[task]
