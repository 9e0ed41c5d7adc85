"""A text task as used by the pipeline: train, validation and test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.data.texts.packing import PackedTexts, load_texts
from rmtllmf_jax.data.texts.sources import Document, Texts


@dataclass(frozen=True)
class TextTask:
    """Texts for training, validation and test; `None` is taken from `train`."""

    name: str
    train: Texts
    validation: Texts | None = None
    test: Texts | None = None


@dataclass(frozen=True)
class TextData:
    """A task's rows of tokens."""

    name: str
    train: PackedTexts
    validation: PackedTexts
    test: PackedTexts

    def few(self, count: int, seed: int) -> PackedTexts:
        """Return a few of the training texts, see `PackedTexts.few`.

        **Raises:** `InputError` that names the task if there are fewer.
        """
        try:
            return self.train.few(count, seed)
        except InputError as error:
            raise InputError(f"shots of task {self.name!r}: {error}") from error

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprints of the parts."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part.fingerprint for name, part in parts.items()}


@dataclass(frozen=True)
class Part:
    """A part of some texts: those between two shares of a random order.

    For a single text (a plain file), consecutive lines: a part of it, in its order.
    """

    of: Texts
    first: float
    last: float
    seed: int = 0

    def fingerprint(self) -> str:
        """Return a hash of the content and the choice."""
        return content_hash([self.of.fingerprint(), self.first, self.last, self.seed])

    def documents(self) -> Iterator[Document]:
        """Yield the chosen texts, in the order of the source."""
        whole = [document for document in self.of.documents() if document.text]
        if len(whole) == 1:
            lines = whole[0].text.splitlines(keepends=True)
            yield replace(whole[0], text="".join(lines[self._between(len(lines))]))
            return
        order = np.random.default_rng(self.seed).permutation(len(whole))
        for index in sorted(order[self._between(len(whole))]):
            yield whole[index]

    def _between(self, count: int) -> slice:
        return slice(round(self.first * count), round(self.last * count))


def load_text_task(
    task: TextTask,
    model: str | Path,
    length: int,
    cache_dir: Path,
    *,
    share: float = 0.1,
    seed: int = 0,
    quiet: bool = False,
) -> TextData:
    """Load a task through the cache (`load_texts`).

    Splits are as given. If validation or test is missing, `share` of the training texts is set
    aside for each, and a note says so, unless `quiet`.

    **Raises:** `InputError` that names the task if `share` leaves a part without text, and as
    `load_texts`.
    """
    missing = [name for name in ("validation", "test") if getattr(task, name) is None]
    if missing and not 0 < share < 1 / len(missing):
        raise InputError(
            f"task {task.name!r}: the share of texts that is set aside must be > 0 and below "
            f"{1 / len(missing):g}, got {share!r}."
        )
    parts: dict[str, Texts] = {
        name: texts
        for name in ("train", "validation", "test")
        if (texts := getattr(task, name)) is not None
    }
    kept = 1 - share * len(missing)
    for place, name in enumerate(missing):
        parts[name] = Part(task.train, kept + place * share, kept + (place + 1) * share, seed)
    if missing:
        parts["train"] = Part(task.train, 0.0, kept, seed)
        if not quiet:
            made = " and ".join(missing)
            note(f"task {task.name}: {made} of {share:.0%} of the training texts each")
    loaded = {}
    for name, texts in parts.items():
        try:
            loaded[name] = load_texts(texts, model, length, cache_dir)
        except InputError as error:
            raise InputError(f"task {task.name!r}, {name}: {error}") from error
    return TextData(task.name, **loaded)
