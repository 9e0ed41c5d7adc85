"""Monitoring of a training run: the curve, the best step so far, and when to stop."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.files import replacing
from rmtllmf_jax.models.weights import load_tree, save_tree

LOSS, VALIDATION_LOSS, VALIDATION_ACCURACY = "loss", "validation_loss", "validation_accuracy"
COLUMNS = (LOSS, VALIDATION_LOSS, VALIDATION_ACCURACY)
"""Of a curve: the loss of each step's batch before the step, and scores after it."""

Scores = Mapping[str, float]
Score = Callable[[PyTree], Scores]
"""Returns validation loss and, of images, validation accuracy of what is trained."""


@dataclass(frozen=True)
class Choice:
    """Which step a training ends with."""

    keep_best: bool = False
    """Whether it is the one with the best validation score, the earliest of equals: the highest
    accuracy, and among these the lowest loss; of texts the lowest loss. Otherwise the last."""
    patience: int | None = None
    """Scores in a row without a better one after which training ends; `None` never ends early."""

    def __post_init__(self) -> None:
        """Check the number."""
        if self.patience is not None:
            require_at_least("patience", self.patience, 1)

    @property
    def needs_scores(self) -> bool:
        """Whether it depends on validation scores."""
        return self.keep_best or self.patience is not None


LAST = Choice()


def rank(scores: Scores) -> tuple[float, float]:
    """Return a number that is larger for a better score; non-finite scores are the worst."""
    loss = scores.get(VALIDATION_LOSS, math.nan)
    accuracy = scores.get(VALIDATION_ACCURACY, 0.0)
    if not (math.isfinite(loss) and math.isfinite(accuracy)):
        return -math.inf, -math.inf
    return accuracy, -loss


@dataclass
class Watch:
    """Takes every step's loss and, at intervals, a score; knows the best step, and when to stop.

    Its whole state is on disk beside a checkpoint of the training, so that a killed run resumes
    with it: the curve as CSV, the best parameters as safetensors.
    """

    curve: Path
    """File of the curve."""
    best: Path
    """File of the best parameters so far."""
    score: Score | None = None
    choice: Choice = LAST
    tell: Callable[[int, Scores], None] = lambda step, scores: None
    """Called with what is new, for trackers; a step's number counts from 1."""

    def __post_init__(self) -> None:
        """Check that there is a score where one is needed."""
        if self.choice.needs_scores and self.score is None:
            raise InputError(
                "the best step and early stopping need validation scores, but there is no "
                "validation part: set one aside (--validation-fraction), or train to the end."
            )
        self._rows: dict[int, dict[str, float]] = {}
        self._new: list[tuple[int, Float[Array, ""]]] = []

    def resume(self, step: int) -> None:
        """Read the curve up to a step; anything written for later steps is made again."""
        self._rows = {n: row for n, row in read_curve(self.curve).items() if n <= step}

    def saw(self, step: int, loss: Float[Array, ""]) -> None:
        """Take the loss of a step, which stays on the device for now."""
        self._new.append((step, loss))

    def look(self, step: int, params: PyTree) -> None:
        """Score the trained parameters, keep them if they are the best, and write the curve."""
        news = self._taken()
        if self.score is not None and VALIDATION_LOSS not in self._rows.get(step, {}):
            before = best_step(self._rows)
            scores = dict(self.score(params))
            self._rows.setdefault(step, {}).update(scores)
            news[step] = self._rows[step]
            better = before is None or rank(scores) > rank(self._rows[before])
            if self.choice.keep_best and better:
                save_tree(self.best, params)
        self._write(news)

    def write(self) -> None:
        """Write the curve without a score, as before a checkpoint between two."""
        self._write(self._taken())

    def _taken(self) -> dict[int, dict[str, float]]:
        """Return the rows of the steps that were seen since the last call, losses fetched."""
        for number, loss in self._new:
            self._rows[number] = {LOSS: float(loss)}
        news = {number: self._rows[number] for number, _ in self._new}
        self._new = []
        return news

    def _write(self, news: Mapping[int, Scores]) -> None:
        write_curve(self.curve, self._rows)
        for number, row in news.items():
            self.tell(number, row)

    @property
    def stops(self) -> bool:
        """Whether patience has run out."""
        best = best_step(self._rows)
        if self.choice.patience is None or best is None:
            return False
        since = [n for n, row in self._rows.items() if VALIDATION_LOSS in row and n > best]
        return len(since) >= self.choice.patience

    def chosen(self, params: PyTree) -> Any:
        """Return the final parameters of the training: the best ones, or these, the last ones."""
        if self.choice.keep_best and self.best.exists():
            return load_tree(self.best, params)
        return params


def write_curve(path: Path, rows: Mapping[int, Scores]) -> None:
    """Write a curve as CSV, atomically: one row per step, empty where nothing was measured."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("step", *COLUMNS))
    for step in sorted(rows):
        table.writerow(
            [step, *(repr(x) if (x := rows[step].get(c)) is not None else "" for c in COLUMNS)]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue())


def read_curve(path: Path) -> dict[int, dict[str, float]]:
    """Return a curve by step; empty if there is no file.

    **Raises:** `InputError` that names a file with other content.
    """
    if not path.exists():
        return {}
    try:
        with path.open(newline="") as file:
            return {
                int(row["step"]): {c: float(row[c]) for c in COLUMNS if row.get(c)}
                for row in csv.DictReader(file)
            }
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: not a learning curve ({error}); delete it.") from error


def best_step(curve: Mapping[int, Scores]) -> int | None:
    """Return the step with the best validation score, the earliest of ties; none if no score."""
    ranked = [(rank(row), -step) for step, row in curve.items() if VALIDATION_LOSS in row]
    return -max(ranked)[1] if ranked else None


def mean_losses(curve: Mapping[int, Scores], window: int) -> tuple[list[int], list[float]]:
    """Return steps and losses averaged over windows of steps, for a figure."""
    steps = [step for step in sorted(curve) if LOSS in curve[step]]
    parts = [steps[i : i + window] for i in range(0, len(steps), window)]
    return (
        [part[-1] for part in parts],
        [float(np.mean([curve[step][LOSS] for step in part])) for part in parts],
    )
