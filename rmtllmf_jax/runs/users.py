"""The users' side: one frozen head and one fine-tuned model per task, kept in a run folder."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash, file_hash, read_json, write_json
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.data.task_data import Rows, TaskData
from rmtllmf_jax.fusion.files.vectors import FACTORS, TRAINED
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.heads import Head, stack_heads
from rmtllmf_jax.models.weights import (
    assign,
    load_tree,
    read_safetensors,
    require_finite,
    save_tree,
)
from rmtllmf_jax.runs.config import (
    MANIFEST,
    RunConfig,
    UserRecord,
    load_manifest,
    write_manifest,
)
from rmtllmf_jax.training.lora import Lora, lora_of
from rmtllmf_jax.training.task_heads import HeadContext
from rmtllmf_jax.training.task_models import TaskModels


def train_users(
    backbone: Backbone,
    base: PyTree,
    tasks: Sequence[TaskData],
    config: RunConfig,
    models: TaskModels,
    run: Path,
    report: Callable[[str, UserRecord], None] = lambda task, record: None,
) -> dict[str, UserRecord]:
    """Build a head and get a fine-tuned model for each task; finished ones are kept.

    Artefacts carry a hash of everything they depend on, so a changed option makes new ones;
    `run/finetuned.json` names those in use. `report` is called after each task.

    **Raises:** `InputError` from training or importing, or that names a damaged artefact.
    """
    context = HeadContext(
        backbone, base, config.model, config.prompts, config.seed, config.key(), run / "heads"
    )
    make = config.heads.maker(context)
    heads = {task.name: make(task) for task in tasks}
    # Padded to one shape, so that one compiled step serves every task.
    stacked = stack_heads([head for head, _ in heads.values()])
    records = {}
    for index, task in enumerate(tasks):
        head = jax.tree.map(lambda leaf, i=index: leaf[i], stacked)
        head_path = heads[task.name][1]
        record = _train_user(backbone, base, task, head, head_path, config, models, run)
        records[task.name] = record
        write_manifest(run, config, {task.name: record})
        report(task.name, record)
    return records


def _load_head_of(path: Path, width: int, classes: int) -> Head:
    """Return a head from its file, which must have these sizes."""
    tensors = read_safetensors(path)
    projected = "projection" in tensors
    inputs = int(tensors["projection"].shape[-1]) if projected else width
    shapes = {"kernel": (inputs, classes), "bias": (classes,)}
    shapes |= {"projection": (width, inputs)} if projected else {}
    like: Any = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    return Head(**assign(tensors, like, path))


def load_user(run: Path, record: UserRecord, base: PyTree, width: int) -> tuple[PyTree, Head]:
    """Return a user's fine-tuned parameters and frozen head.

    **Raises:** `InputError` that names a missing or damaged file: one that cannot be read, holds
    values that are not finite, or does not match its checksum.
    """
    head = _load_head_of(run / record.head, width, record.classes)
    lora, path = lora_of(record.recipe), run / record.finetuned
    if lora is None:
        params = load_tree(path, base)
    else:
        params = lora.applied(base, load_tree(path, lora.shapes(base)))
    for name, sha256 in (
        (record.head, record.head_sha256),
        (record.finetuned, record.finetuned_sha256),
    ):
        if sha256 and file_hash(run / name) != sha256:
            raise InputError(
                f"{run / name}: damaged, its checksum is another than when it was made; delete it, "
                "and `rmtllmf finetune` makes it again."
            )
    return params, head


def _train_user(
    backbone: Backbone,
    base: PyTree,
    task: TaskData,
    head: Head,
    head_path: Path,
    config: RunConfig,
    models: TaskModels,
    run: Path,
) -> UserRecord:
    made_from = models.key(task.name)
    # The name of a head that is made from the training images covers them.
    data = {} if config.heads.sees_images else {"data": task.fingerprint}
    key = content_hash({"head": head_path.name, **data, **made_from, **config.key()})
    path = run / "finetuned" / f"{task.name}-{key}.safetensors"
    summary = path.with_suffix(".json")
    if path.exists() and summary.exists():
        try:
            record = UserRecord.of(read_json(summary))
        except TypeError as error:
            raise InputError(
                f"{summary}: not a record of this version ({error}); delete it, and `rmtllmf "
                "finetune` makes it again."
            ) from error
        if record.head_sha256 == file_hash(head_path):  # else the head was lost and rebuilt
            load_user(run, record, base, backbone.width)  # damage is named here, not in a sweep
            return record
    checkpoints = run / "training" / f"{task.name}-{key}"
    _note_another(run, task.name)
    made = models.params(task, head, checkpoints)
    require_finite(made, f"{task.name}: the fine-tuned model")
    lora = lora_of(made_from["recipe"])
    # A single entry: safetensors writes several in random order, which would change the hash.
    save_tree(path, made, {TRAINED: path.stem} if lora is None else {FACTORS: _about(lora, config)})
    params = made if lora is None else lora.applied(base, made)
    record = UserRecord(
        head=str(head_path.relative_to(run)),
        finetuned=str(path.relative_to(run)),
        classes=len(task.classes),
        recipe=made_from["recipe"],
        base_validation_accuracy=accuracy(backbone, base, head, task.validation),
        finetuned_validation_accuracy=accuracy(backbone, params, head, task.validation),
        head_sha256=file_hash(head_path),
        finetuned_sha256=file_hash(path),
        labels=task.classes,
    )
    write_json(summary, asdict(record))
    shutil.rmtree(checkpoints, ignore_errors=True)  # the result is safe on disk
    return record


def _about(lora: Lora, config: RunConfig) -> str:
    """Return what `rmtllmf fuse` has to know of factors, as JSON."""
    base = {"base": config.model_hash, "base_origin": Path(config.model).name}
    return json.dumps({"scale": lora.scale, **base})


def _note_another(run: Path, task: str) -> None:
    """Report that a task is fine-tuned again although the folder has a model of it."""
    before = load_manifest(run)[1].get(task) if (run / MANIFEST).exists() else None
    if before is not None and (run / before.finetuned).exists():
        note(
            f"{task}: fine-tuning again: head, base model, images or options are not those of "
            f"{before.finetuned}."
        )


def accuracy(
    backbone: Backbone, params: PyTree, head: Head, rows: Rows, description: str = "validation"
) -> float:
    """Return the share of images that a model under a head classifies right; NaN of none."""
    if not len(rows):
        return math.nan  # no validation part
    features = extract_features(backbone, params, rows.images, description=description)
    logits = head(jnp.asarray(features))
    return float(np.mean(np.asarray(jnp.argmax(logits, axis=1)) == rows.labels))
