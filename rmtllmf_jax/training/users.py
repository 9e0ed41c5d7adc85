"""The users' side: one frozen head and one fine-tuned model a task, kept in a run folder."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash, read_json, write_json
from rmtllmf_jax.data.task_data import Rows, TaskData
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.heads import Head, lda_head, stack_heads
from rmtllmf_jax.models.weights import load_tree, save_tree
from rmtllmf_jax.training.finetune import finetune
from rmtllmf_jax.training.recipes import Recipe

MANIFEST = "finetuned.json"
_FORMAT = 1  # of the artefacts; goes into their hashes


@dataclass(frozen=True)
class Setting:
    """What all users share, and what the artefacts' names are hashed from."""

    model: str
    """Directory of the pretrained model."""
    model_hash: str
    """SHA-256 of its weights."""
    data: str
    """Folder of the data."""
    image_size: int
    validation_fraction: float
    seed: int

    def key(self) -> dict[str, Any]:
        """Return what the numbers depend on: contents, not places."""
        values = asdict(self)
        del values["model"], values["data"]
        return values


@dataclass(frozen=True)
class UserRecord:
    """One task's artefacts, relative to the run folder, and what they reached on validation."""

    head: str
    finetuned: str
    classes: int
    recipe: dict[str, Any]
    base_validation_accuracy: float
    finetuned_validation_accuracy: float


def train_users(
    backbone: Backbone,
    base: PyTree,
    tasks: Sequence[TaskData],
    setting: Setting,
    recipe: Recipe,
    run: Path,
    report: Callable[[str, UserRecord], None] = lambda task, record: None,
) -> dict[str, UserRecord]:
    """Build a head and fine-tune a model for each task; what is finished already is kept.

    Artefacts carry a hash of everything that they depend on, so that a changed option makes new
    ones; `run/finetuned.json` names those in use. `report` is called after each task.

    **Raises:** `InputError` from training, or that names a damaged artefact.
    """
    heads = {task.name: _head(backbone, base, task, setting, run) for task in tasks}
    # Padded to one shape, so that one compiled step serves every task.
    stacked = stack_heads([head for head, _ in heads.values()])
    records = {}
    for index, task in enumerate(tasks):
        head = jax.tree.map(lambda leaf, i=index: leaf[i], stacked)
        head_path = heads[task.name][1]
        record = _train_user(backbone, base, task, head, head_path, setting, recipe, run)
        records[task.name] = record
        _write_manifest(run, setting, {task.name: record})
        report(task.name, record)
    return records


def load_manifest(run: Path) -> tuple[Setting, dict[str, UserRecord]]:
    """Return what `train_users` finished in a run folder.

    **Raises:** `InputError` if there is nothing, or the manifest cannot be used.
    """
    path = run / MANIFEST
    if not path.exists():
        raise InputError(f"{path}: no such file; run `rmtllmf finetune --out {run}` first.")
    try:
        content = read_json(path)
        users = {task: UserRecord(**record) for task, record in content["users"].items()}
        return Setting(**content["setting"]), users
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a manifest of this version ({error}).") from error


def load_user(run: Path, record: UserRecord, base: PyTree, width: int) -> tuple[PyTree, Head]:
    """Return a user's fine-tuned parameters and frozen head.

    **Raises:** `InputError` that names a missing or damaged file.
    """
    head = _blank_head(width, record.classes)
    return load_tree(run / record.finetuned, base), load_tree(run / record.head, head)


def _blank_head(width: int, classes: int) -> Head:
    return Head(jnp.zeros((width, classes), jnp.float32), jnp.zeros(classes, jnp.float32))


def _head(
    backbone: Backbone, base: PyTree, task: TaskData, setting: Setting, run: Path
) -> tuple[Head, Path]:
    key = content_hash({"data": task.train.split.fingerprint, "v": _FORMAT, **setting.key()})
    path = run / "heads" / f"{task.name}-{key}.safetensors"
    if path.exists():
        return load_tree(path, _blank_head(backbone.width, len(task.classes))), path
    features = extract_features(
        backbone, base, task.train.images, description=f"features {task.name}"
    )
    head = lda_head(features, task.train.labels, len(task.classes))
    save_tree(path, head)
    return head, path


def _train_user(
    backbone: Backbone,
    base: PyTree,
    task: TaskData,
    head: Head,
    head_path: Path,
    setting: Setting,
    recipe: Recipe,
    run: Path,
) -> UserRecord:
    key = content_hash({"head": head_path.name, "recipe": asdict(recipe), **setting.key()})
    path = run / "finetuned" / f"{task.name}-{key}.safetensors"
    summary = path.with_suffix(".json")
    if path.exists() and summary.exists():
        load_tree(path, base)  # a damaged file is named here, not in the middle of a sweep
        return UserRecord(**read_json(summary))
    checkpoints = run / "training" / f"{task.name}-{key}"
    params = finetune(
        backbone,
        base,
        head,
        task.train.images,
        task.train.labels,
        recipe,
        setting.seed,
        checkpoints,
        description=f"fine-tuning {task.name}",
    )
    # One entry alone: safetensors writes several in a random order, and the file's hash counts.
    save_tree(path, params, {"user": path.stem})
    record = UserRecord(
        head=str(head_path.relative_to(run)),
        finetuned=str(path.relative_to(run)),
        classes=len(task.classes),
        recipe=asdict(recipe),
        base_validation_accuracy=_accuracy(backbone, base, head, task.validation),
        finetuned_validation_accuracy=_accuracy(backbone, params, head, task.validation),
    )
    write_json(summary, asdict(record))
    shutil.rmtree(checkpoints, ignore_errors=True)  # the result is safe on disk
    return record


def _accuracy(backbone: Backbone, params: PyTree, head: Head, rows: Rows) -> float:
    if not len(rows):
        return math.nan  # nothing was set aside
    features = extract_features(backbone, params, rows.images, description="validation")
    logits = features @ np.asarray(head.kernel) + np.asarray(head.bias)
    return float(np.mean(np.argmax(logits, axis=1) == rows.labels))


def _write_manifest(run: Path, setting: Setting, new: dict[str, UserRecord]) -> None:
    """Add records to the manifest; another setting starts a new one."""
    users: dict[str, UserRecord] = {}
    if (run / MANIFEST).exists():
        before, known = load_manifest(run)
        users = known if before.key() == setting.key() else {}
    users = dict(sorted((users | new).items()))
    content = {
        "setting": asdict(setting),
        "users": {task: asdict(record) for task, record in users.items()},
    }
    write_json(run / MANIFEST, content)
