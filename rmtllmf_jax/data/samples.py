"""What the pipeline requires of samples and of tasks, for images and for texts."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Shaped


class SampleArrays(NamedTuple):
    """Samples in the form that a model takes, with a first axis over the samples."""

    inputs: dict[str, Shaped[np.ndarray, "n ..."]]
    """`images`; or `tokens`, `segments` and `bytes`, see `PackedTexts`."""
    target: Int[np.ndarray, "n ..."]
    """Labels, or the next tokens."""
    weight: Float32[np.ndarray, "n ..."]
    """What each target counts."""


@runtime_checkable
class Samples(Protocol):
    """Samples of a task, memory-mapped: images (`Rows`) or rows of tokens (`PackedTexts`)."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def take(self, rows: Int[np.ndarray, " m"]) -> Samples:
        """Return some of the samples."""
        ...

    def arrays(self) -> SampleArrays:
        """Return the samples themselves, read from disk on this call."""
        ...

    def bytes_each(self) -> int:
        """Return the bytes of a sample."""
        ...


@runtime_checkable
class Task(Protocol):
    """A task: the samples to learn from, to make choices on, and to evaluate on."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    @property
    def train(self) -> Samples:
        """The samples to learn from."""
        ...

    @property
    def validation(self) -> Samples:
        """The samples on which choices are made."""
        ...

    @property
    def test(self) -> Samples:
        """The samples for evaluation."""
        ...

    def few(self, count: int, seed: int) -> Samples:
        """Return a few training samples: this many per class, or this many texts.

        **Raises:** `InputError` that names the task if there are too few.
        """
        ...

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the contents that results depend on, by split."""
        ...
