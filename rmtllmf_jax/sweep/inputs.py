"""What a sweep starts from: base model, task vectors, heads, and the samples of every task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64, PyTree

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.splits import evaluation_subset, few_shot
from rmtllmf_jax.data.task_data import Rows, TaskData
from rmtllmf_jax.evaluation.accuracy import EvaluationSet, evaluation_set, even_batch
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head, stack_heads
from rmtllmf_jax.models.images import resize
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.realign import Shots
from rmtllmf_jax.training.users import UserRecord, load_user


@dataclass(frozen=True)
class SweepInputs:
    """Arrays of a sweep; task q of `tasks` is the user q of every channel draw."""

    tasks: tuple[str, ...]
    backbone: Backbone
    base: PyTree
    vectors: PyTree[Float[Array, "users ..."]]
    heads: Head
    data: tuple[TaskData, ...]
    fingerprint: dict[str, object]
    """Contents that the results depend on."""

    def finetuned(self, user: int) -> PyTree:
        """Return one user's fine-tuned parameters."""
        return fusion.add_to_base(self.base, fusion.unstack(self.vectors)[user], 1.0)


def load_inputs(
    run: Path,
    backbone: Backbone,
    base: PyTree,
    data: tuple[TaskData, ...],
    records: dict[str, UserRecord],
    setting_key: dict[str, object],
) -> SweepInputs:
    """Read the users' artefacts of a run folder and form their task vectors.

    **Raises:** `InputError` that names a missing or damaged file, or a task whose classes are
    more or fewer than those that it was fine-tuned on.
    """
    vectors, heads = [], []
    fingerprint: dict[str, object] = {"setting": setting_key, "tasks": {}}
    users = {}
    for task in data:
        record = records[task.name]
        if len(task.classes) != record.classes:
            raise InputError(
                f"task {task.name!r} has {len(task.classes)} classes, and the run was fine-tuned "
                f"on {record.classes}: these are other images; name the place of the run's own."
            )
        finetuned, head = load_user(run, record, base, backbone.width)
        vectors.append(fusion.TaskVector.between(finetuned, base).tree)
        heads.append(head)
        users[task.name] = {
            **record.hashes(run),
            "train": task.train.split.fingerprint,
            "test": task.test.split.fingerprint,
        }
    fingerprint["tasks"] = users
    return SweepInputs(
        tuple(task.name for task in data),
        backbone,
        base,
        fusion.stack(vectors),
        stack_heads(heads),
        data,
        fingerprint,
    )


def evaluation_sets(
    rows: list[Rows], samples: int, settings: Settings, batch_size: int | None = None
) -> list[EvaluationSet]:
    """Return each task's seeded subset on the device.

    Batches have `batch_size` images, unless given the even one (`even_batch`) of these subsets
    within the settings' `eval_batch_size`.
    """
    chosen = [evaluation_subset(len(part), samples, settings.seed) for part in rows]
    size = batch_size or even_batch([len(each) for each in chosen], settings.eval_batch_size)
    subsets = [part.take(each) for part, each in zip(rows, chosen, strict=True)]
    return [evaluation_set(subset.images, subset.labels, size) for subset in subsets]


def task_shots(task: TaskData, per_class: int, seed: int) -> Int64[np.ndarray, " shots"]:
    """Return the few-shot samples of a task, as places among its training images.

    **Raises:** `InputError` that names the task and a class with too few training images.
    """
    try:
        return few_shot(task.train.labels, per_class, seed, classes=task.classes)
    except InputError as error:
        raise InputError(f"shots of task {task.name!r}: {error}") from error


def shot_pool(
    data: tuple[TaskData, ...], per_class: int, seed: int, image_size: int
) -> tuple[Shots, list[Int64[np.ndarray, " shots"]]]:
    """Return the few-shot samples of all tasks as one pool, and each task's places in it.

    A task with too few training images has no place. Images come at `image_size` pixels, whatever
    size the tasks are kept in.

    **Raises:** `InputError` of the last task if none has enough.
    """
    parts, lacking = [], None
    for task in data:
        rows = np.arange(0)
        try:
            rows = task_shots(task, per_class, seed)
        except InputError as error:
            lacking = error
        parts.append(task.train.take(rows))
    if lacking is not None and not any(map(len, parts)):
        raise lacking
    ends = np.cumsum([len(part) for part in parts])
    places = [np.arange(end - len(part), end) for part, end in zip(parts, ends, strict=True)]
    pool = Shots(
        jnp.concatenate([resize(part.images, image_size) for part in parts if len(part)]),
        jnp.asarray(np.concatenate([part.labels for part in parts])),
        jnp.asarray(np.repeat(np.arange(len(parts)), [len(part) for part in parts])),
    )
    return pool, places
