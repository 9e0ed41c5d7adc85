"""What merge methods need besides task vectors (their class's `needs`), from a run's own images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.common.values import name_of
from rmtllmf_jax.data.splits import evaluation_subset
from rmtllmf_jax.evaluation.statistics import Unlabelled
from rmtllmf_jax.fusion.rules import Method, fact
from rmtllmf_jax.models.images import resize
from rmtllmf_jax.models.shared import SharedModel, images_only
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.runs.statistics import measure, stored
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.batches import balanced_batches


def fishers(inputs: SweepInputs, settings: Settings) -> PyTree[Float[Array, "users ..."]]:
    """Return the Fisher information of every task's fine-tuned model, stacked."""
    return _statistics("fishers", inputs, settings)


def grams(
    inputs: SweepInputs, settings: Settings
) -> dict[str, Float[Array, "users inputs inputs"]]:
    """Return the Gram matrices of every task's fine-tuned model, stacked."""
    return _statistics("grams", inputs, settings)


def _statistics(kind: str, inputs: SweepInputs, settings: Settings) -> PyTree:
    """Return the statistics in the run folder, and measure the missing ones."""
    samples, seed, found, measured = settings.statistics_samples, settings.seed, [], []
    for user, task in enumerate(inputs.data):
        known = stored(kind, inputs, task.name, samples, seed)
        if known is None:
            measured.append(task.name)
            head = jax.tree.map(lambda leaf, user=user: leaf[user], inputs.heads)
            params = inputs.finetuned(user)
            known = measure(kind, task, inputs.model, params, head, samples, seed)
        found.append(known)
    if measured and inputs.statistics is not None:
        note(
            f"{kind} of {', '.join(measured)}: measured for this sweep; `rmtllmf statistics "
            f"{inputs.statistics.parent}` keeps them."
        )
    return fusion.stack(found)


def entropy(inputs: SweepInputs, settings: Settings) -> Unlabelled:
    """Return the entropy of predictions for the evaluated test images of all tasks."""
    backbone = images_only(inputs.model, "unlabelled images (the merge method adamerging)")
    assert inputs.heads is not None
    parts = [
        resize(task.test.take(rows).arrays().inputs["images"], backbone.image_size)
        for task, rows in zip(inputs.data, _evaluated(inputs, settings), strict=True)
    ]
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return Unlabelled(backbone, inputs.heads, jnp.concatenate(parts), jnp.asarray(owner))


NEEDS: dict[str, Callable[[SweepInputs, Settings], Any]] = {
    "fishers": fishers,
    "grams": grams,
    "entropy": entropy,
}
"""What all cells share, by the name of the method's argument."""
KNOWN_NEEDS = ("base", "batches", *NEEDS)
"""With the base model, and a cell's own batches for `entropy`."""


def require_met(method: Method) -> None:
    """Check that a sweep has what a merge method needs.

    **Raises:** `InputError` that names what it lacks.
    """
    needs = fact(method, "needs")
    if missing := [name for name in needs if name not in KNOWN_NEEDS]:
        raise InputError(
            f"the merge method {name_of(method)} needs {', '.join(missing)}, and a sweep has "
            f"{', '.join(KNOWN_NEEDS)}: compute it from these in the method, or merge in Python "
            "and score with Engine.score."
        )
    lacking = [name for name in ("steps", "batch_size") if not hasattr(method, name)]
    if "batches" in needs and lacking:
        raise InputError(
            f"the merge method {name_of(method)} needs batches: give it the fields steps and "
            f"batch_size, which say how many of which size; it has no {' and no '.join(lacking)}."
        )


def require_looked_at(methods: Sequence[Any], model: SharedModel) -> None:
    """Check that merge methods that look at samples support those of a model.

    **Raises:** `InputError` that names one that does not: such methods look at images.
    """
    for method in methods:
        if set(fact(method, "needs")) & set(NEEDS):
            images_only(model, f"the merge method {name_of(method)}")


class Needs:
    """What the merge methods of a sweep need, created when a method first asks for it.

    `put` places arrays on all devices.
    """

    def __init__(
        self, inputs: SweepInputs, settings: Settings, put: Callable[[Any], Any] = jax.device_put
    ) -> None:
        self._inputs, self._settings, self._put = inputs, settings, put
        self._made: dict[str, Any] = {}

    def of(self, method: Any) -> dict[str, Any]:
        """Return the needs of a method that all cells share."""
        wanted = [name for name in fact(method, "needs") if name in NEEDS]
        for name in wanted:
            if name not in self._made:
                self._made[name] = self._put(NEEDS[name](self._inputs, self._settings))
        return {name: self._made[name] for name in wanted}

    def batches(
        self, method: Any, combinations: Sequence[tuple[str, ...]]
    ) -> Int[np.ndarray, "cells steps batch"] | None:
        """Return the rows of `entropy`'s images that a method sees step by step in each cell.

        Only images of the combination's tasks, which take turns; `None` if it needs none.
        """
        if "batches" not in fact(method, "needs"):
            return None
        sizes = [len(rows) for rows in _evaluated(self._inputs, self._settings)]
        parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        places = dict(zip(self._inputs.tasks, parts, strict=True))
        steps, size, seed = method.steps, method.batch_size, self._settings.seed
        groups = ([places[task] for task in tasks] for tasks in combinations)
        return np.stack([balanced_batches(each, steps, size, seed) for each in groups])


def _evaluated(inputs: SweepInputs, settings: Settings) -> list[Int[np.ndarray, " n"]]:
    samples, seed = settings.eval_samples, settings.seed
    return [evaluation_subset(len(task.test), samples, seed) for task in inputs.data]
