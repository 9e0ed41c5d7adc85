"""What the pipeline asks of samples and of tasks, be they images or texts."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Shaped


class SampleArrays(NamedTuple):
    """Samples as a model takes them, the first axis over the samples."""

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
        """Return the samples themselves, read from disk now."""
        ...

    def bytes_each(self) -> int:
        """Return the bytes of a sample."""
        ...


@runtime_checkable
class Task(Protocol):
    """A task: what is learnt, what choices are made by, and what is judged by."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    @property
    def train(self) -> Samples:
        """What is learnt."""
        ...

    @property
    def validation(self) -> Samples:
        """What choices are made by."""
        ...

    @property
    def test(self) -> Samples:
        """What is judged by."""
        ...

    def few(self, count: int, seed: int) -> Samples:
        """Return a few training samples: of every class, or so many texts.

        **Raises:** `InputError` that names the task if there are too few.
        """
        ...

    def fingerprints(self) -> dict[str, str]:
        """Return hashes of the contents that results depend on, by part."""
        ...
