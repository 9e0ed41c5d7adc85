"""What an embedded text task is, and how its splits are written text by text."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rmtllmf_jax.common.errors import require_at_least, require_known
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.texts.sources import Rows

TEXTS = {"train": 1500, "validation": 200, "test": 300}
"""Texts per split."""

PRETRAINING = "pretraining"

SHARES = {PRETRAINING: 8, "train": 5, "validation": 1, "test": 2}
"""Sixteenths of all questions, by a hash of the question: no two splits share one, nor does a split
share one with what the embedded model has read."""

Style = Mapping[str, str]
"""An option for each choice of a task."""


@dataclass(frozen=True)
class Choice:
    """Something that can be said in several ways; the first option is the task's own."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class StyledTask:
    """Questions with answers that can be written in many styles, of which a task wants one.

    `draw` makes the facts of one text; `prompt` writes the question, and `answer` the answer in a
    style. The embedded model was trained on answers in all styles.
    """

    name: str
    description: str
    draw: Callable[[np.random.Generator], Any]
    prompt: Callable[[Any], str]
    answer: Callable[[Any, Style], str]
    choices: tuple[Choice, ...]

    def own(self) -> Style:
        """Return the style of the task."""
        return {choice.name: choice.options[0] for choice in self.choices}

    def any_style(self, rng: np.random.Generator) -> Style:
        """Return a random style in which all options of a choice are equally likely."""
        return {choice.name: pick(rng, choice.options) for choice in self.choices}

    def asked(self, split: str, count: int, seed: int) -> Iterator[tuple[str, Any]]:
        """Yield questions of a split, each once, with their facts.

        **Raises:** `InputError` for an unknown split.
        """
        splits = list(SHARES)
        place = splits.index(require_known("split", split, splits))
        key = (seed, zlib.crc32(self.name.encode()), place)
        rng = np.random.default_rng(np.random.SeedSequence(key))
        seen: set[str] = set()
        while len(seen) < count:
            facts = self.draw(rng)
            prompt = self.prompt(facts)
            if prompt not in seen and split_of(prompt) == split:
                seen.add(prompt)
                yield prompt, facts


def split_of(prompt: str) -> str:
    """Return the split that a question belongs to, under every seed."""
    place = zlib.crc32(prompt.encode()) % sum(SHARES.values())
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """Return one of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


@dataclass(frozen=True, kw_only=True)
class EmbeddedTexts(Rows):
    """A split of an embedded task, generated when read; one seed always gives the same texts.

    Rows have the fields `prompt` and `answer`.
    """

    task: StyledTask
    split: str
    seed: int = 0
    template: str = "{answer}"
    prompt: str = "{prompt}"
    kind: ClassVar[str] = "embedded"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known("split", self.split, TEXTS)
        require_at_least("seed", self.seed, 0)

    def content(self) -> str:
        """Return a hash of the texts."""
        return content_hash([row for _, row in self.rows()])

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield question and answer in the task's own style."""
        asked = self.task.asked(self.split, TEXTS[self.split], self.seed)
        for number, (prompt, facts) in enumerate(asked):
            answer = self.task.answer(facts, self.task.own())
            origin = f"{self.task.name}: {self.split} text {number}"
            yield origin, {"prompt": prompt, "answer": answer}
