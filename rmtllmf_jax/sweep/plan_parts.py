"""The parts of a run's plan: sizes of tasks, external inputs, files and work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rmtllmf_jax.data.registry import SINGLE_PROMPT, TaskFacts
from rmtllmf_jax.sweep.devices import UTILISATION, Speed


@dataclass(frozen=True)
class TaskSize:
    """What a plan has to know about a task: class names, prompts and numbers of images.

    `pixels` is the side of the images if all of them are squares of one small size.
    """

    name: str
    classes: tuple[str, ...]
    train: int
    test: int
    pixels: int | None = None
    prompts: tuple[str, ...] = (SINGLE_PROMPT,)
    validation: int | None = None
    """Samples of `train` that are for validation, where that is no share of them."""
    bytes_each: int | None = None
    """Bytes of a sample, where it is no image."""

    @classmethod
    def of(cls, facts: TaskFacts) -> TaskSize:
        """Return the sizes of a task of the registry."""
        return cls(facts.name, facts.classes, facts.train, facts.test, facts.pixels, facts.prompts)


@dataclass(frozen=True)
class Needed:
    """An external input: `size` in bytes, `None` if it is not known."""

    what: str
    where: str
    size: int | None
    present: bool


@dataclass(frozen=True)
class File:
    """A file that the run writes: `where` is the cache or the run folder, `size` in bytes."""

    what: str
    where: Literal["cache", "run"]
    size: int


@dataclass(frozen=True)
class Work:
    """A part of the run: the number of `units`, `amount` operations (or bytes moved) in all."""

    what: str
    count: int
    units: str
    amount: float
    kind: Literal["train", "forward", "memory"]
    devices: int = 1
    """Devices that share it."""

    def hours(self, speed: Speed, dtype: str) -> float:
        """Return the hours that its devices take, at the assumed share of their peak."""
        peak = speed.bandwidth if self.kind == "memory" else speed.peak(dtype)
        return self.amount / (self.devices * peak * UTILISATION[self.kind]) / 3600
