"""The users' side: one fine-tuned model per task, for images with its head, in a run folder."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash, file_hash, read_json, write_json
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.data.task_data import Rows, TaskData
from rmtllmf_jax.data.texts.task import TextData
from rmtllmf_jax.fusion.files.vectors import FACTORS, TRAINED
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.heads import Head, stack_heads
from rmtllmf_jax.models.shared import SharedModel
from rmtllmf_jax.models.weights import (
    assign,
    load_tree,
    read_safetensors,
    require_finite,
    save_tree,
)
from rmtllmf_jax.models.zero_shot import is_unit_head
from rmtllmf_jax.runs.config import RunConfig, UserRecord
from rmtllmf_jax.runs.manifest import (
    MANIFEST,
    AnyConfig,
    AnyRecord,
    load_manifest,
    write_manifest,
)
from rmtllmf_jax.runs.texts import TextRunConfig, TextUserRecord, nats
from rmtllmf_jax.training.lora import Lora, lora_of
from rmtllmf_jax.training.task_heads import HeadContext
from rmtllmf_jax.training.task_models import TaskModels


@runtime_checkable
class Kind(Protocol):
    """What differs between image users and text users."""

    def heads(self, tasks: Sequence[Any]) -> list[tuple[Head | None, dict[str, Any]]]:
        """Return every task's head, and its artefact's dependencies besides model and options."""
        ...

    def read(self, content: dict[str, Any]) -> Any:
        """Return a record from its file.

        **Raises:** `TypeError` for one of another version.
        """
        ...

    def stands(self, record: Any) -> bool:
        """Whether everything that a record was made with still exists."""
        ...

    def record(self, task: Any, head: Head | None, params: PyTree, made: dict[str, Any]) -> Any:
        """Return the record of a new model; `made` are `finetuned`, its checksum, `recipe`."""
        ...


def train_users(
    model: SharedModel,
    base: PyTree,
    tasks: Sequence[Any],
    config: AnyConfig,
    models: TaskModels,
    run: Path,
    report: Callable[[str, Any], None] = lambda task, record: None,
) -> dict[str, Any]:
    """Get a fine-tuned model for each task, for images under its head; finished ones are kept.

    Artefacts carry a hash of everything they depend on, so a changed option creates new ones;
    `run/finetuned.json` names those in use. `report` is called after each task.

    **Arguments:** `tasks`: `TaskData` or `TextData`, according to the configuration.

    **Raises:** `InputError` from training or importing, or that names a damaged artefact.
    """
    kind: Kind
    if isinstance(config, TextRunConfig):
        kind = TextUsers(cast(Decoder, model), base)
    else:
        kind = ImageUsers(cast(Backbone, model), base, config, run)
    records = {}
    for task, (head, depends) in zip(tasks, kind.heads(tasks), strict=True):
        key = {**depends, **models.key(task.name), **config.key()}
        record = _train_user(kind, model, base, task, head, key, config, models, run)
        records[task.name] = record
        write_manifest(run, config, {task.name: record})
        report(task.name, record)
    return records


@dataclass
class ImageUsers:
    """Users of images: a frozen head per task, and validation accuracies."""

    backbone: Backbone
    base: PyTree
    config: RunConfig
    run: Path
    files: dict[str, Path] = field(default_factory=dict)
    """The files of heads, by task."""

    def heads(self, tasks: Sequence[TaskData]) -> list[tuple[Head | None, dict[str, Any]]]:
        """Return the heads, padded to one shape, so that one compiled step serves every task."""
        config, folder = self.config, self.run / "heads"
        about = (config.model, config.prompts, config.seed, config.key(), folder)
        make = config.heads.maker(HeadContext(self.backbone, self.base, *about, config.templates))
        made = [make(task) for task in tasks]
        stacked = stack_heads([head for head, _ in made])
        found = []
        for place, task in enumerate(tasks):
            head = jax.tree.map(lambda leaf, place=place: leaf[place], stacked)
            # The name of a head that is made from the training images covers them.
            data = {} if config.heads.sees_images else {"data": task.fingerprint}
            self.files[task.name] = made[place][1]
            found.append((head, {"head": made[place][1].name, **data}))
        return found

    def read(self, content: dict[str, Any]) -> UserRecord:
        """Return a record from its file."""
        return replace(UserRecord.of(content), images=self.config.images())

    def stands(self, record: UserRecord) -> bool:
        """Whether the head is that of the model's training, rather than lost and rebuilt."""
        return record.head_sha256 == file_hash(self.run / record.head)

    def record(
        self, task: TaskData, head: Head | None, params: PyTree, made: dict[str, Any]
    ) -> UserRecord:
        """Return the record of a new model, with accuracies on the validation split."""
        assert head is not None
        path = self.files[task.name]
        return UserRecord(
            head=str(path.relative_to(self.run)),
            classes=len(task.classes),
            base_validation_accuracy=accuracy(self.backbone, self.base, head, task.validation),
            finetuned_validation_accuracy=accuracy(self.backbone, params, head, task.validation),
            head_sha256=file_hash(path),
            labels=task.classes,
            images=self.config.images(),
            **made,
        )


@dataclass(frozen=True)
class TextUsers:
    """Users of texts: no head, and nats on the validation and the test split."""

    decoder: Decoder
    base: PyTree

    def heads(self, tasks: Sequence[TextData]) -> list[tuple[Head | None, dict[str, Any]]]:
        """Return no head, and the fingerprints of the texts."""
        return [(None, {"texts": task.fingerprints()}) for task in tasks]

    def read(self, content: dict[str, Any]) -> TextUserRecord:
        """Return a record from its file."""
        return TextUserRecord.of(content)

    def stands(self, record: TextUserRecord) -> bool:
        """Whether everything that the model was trained with exists: its name covers all of it."""
        return True

    def record(
        self, task: TextData, head: Head | None, params: PyTree, made: dict[str, Any]
    ) -> TextUserRecord:
        """Return the record of a new model."""
        parts = {"validation": task.validation, "test": task.test}

        def on_parts(params: PyTree) -> dict[str, float]:
            return {name: nats(self.decoder, params, rows) for name, rows in parts.items()}

        return TextUserRecord(
            texts=task.fingerprints(),
            base_nats=on_parts(self.base),
            finetuned_nats=on_parts(params),
            **made,
        )


def _load_head_of(path: Path, width: int, classes: int) -> Head:
    """Return a head from its file, which must have these sizes."""
    tensors = read_safetensors(path)
    projected = "projection" in tensors
    inputs = int(tensors["projection"].shape[-1]) if projected else width
    shapes = {"kernel": (inputs, classes), "bias": (classes,)}
    shapes |= {"projection": (width, inputs)} if projected else {}
    like: Any = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    return Head(**assign(tensors, like, path), unit=is_unit_head(path))


def load_user(run: Path, record: AnyRecord, base: PyTree, width: int) -> tuple[PyTree, Head | None]:
    """Return a user's fine-tuned parameters, and the frozen head of an image user.

    **Raises:** `InputError` that names a missing or damaged file: one that cannot be read, holds
    values that are not finite, or does not match its checksum.
    """
    head, files = None, [(record.finetuned, record.finetuned_sha256)]
    if isinstance(record, UserRecord):
        head = _load_head_of(run / record.head, width, record.classes)
        files.insert(0, (record.head, record.head_sha256))
    lora, path = lora_of(record.recipe), run / record.finetuned
    if lora is None:
        params = load_tree(path, base)
    else:
        params = lora.applied(base, load_tree(path, lora.shapes(base)))
    for name, sha256 in files:
        if sha256 and file_hash(run / name) != sha256:
            raise InputError(
                f"{run / name}: damaged, its checksum is another than when it was made; delete it, "
                "and `rmtllmf finetune` makes it again."
            )
    return params, head


def _train_user(
    kind: Kind,
    model: SharedModel,
    base: PyTree,
    task: Any,
    head: Head | None,
    depends: dict[str, Any],
    config: AnyConfig,
    models: TaskModels,
    run: Path,
) -> Any:
    key = content_hash(depends)
    path = run / "finetuned" / f"{task.name}-{key}.safetensors"
    summary = path.with_suffix(".json")
    if path.exists() and summary.exists():
        try:
            record = kind.read(read_json(summary))
        except TypeError as error:
            raise InputError(
                f"{summary}: not a record of this version ({error}); delete it, and `rmtllmf "
                "finetune` makes it again."
            ) from error
        if kind.stands(record):
            load_user(run, record, base, model.width)  # damage is named here, not in a sweep
            return record
    checkpoints = run / "training" / f"{task.name}-{key}"
    _note_another(run, task.name)
    made = models.params(task, head, checkpoints)
    require_finite(made, f"{task.name}: the fine-tuned model")
    lora = lora_of(depends["recipe"])
    # A single entry: safetensors writes several in random order, which would change the hash.
    save_tree(path, made, {TRAINED: path.stem} if lora is None else {FACTORS: _about(lora, config)})
    params = made if lora is None else lora.applied(base, made)
    about = {"finetuned": str(path.relative_to(run)), "recipe": depends["recipe"]}
    about |= {"finetuned_sha256": file_hash(path)}
    record = kind.record(task, head, params, about)
    write_json(summary, asdict(record))
    shutil.rmtree(checkpoints, ignore_errors=True)  # the result is safe on disk
    return record


def _about(lora: Lora, config: AnyConfig) -> str:
    """Return what `rmtllmf fuse` has to know about factors, as JSON."""
    base = {"base": config.model_hash, "base_origin": Path(config.model).name}
    return json.dumps({"scale": lora.scale, **base})


def _note_another(run: Path, task: str) -> None:
    """Report that a task is fine-tuned again although the folder has a model for it."""
    before = load_manifest(run)[1].get(task) if (run / MANIFEST).exists() else None
    if before is not None and (run / before.finetuned).exists():
        note(
            f"{task}: fine-tuning again: base model, data, head or options are not those of "
            f"{before.finetuned}."
        )


def accuracy(
    backbone: Backbone, params: PyTree, head: Head, rows: Rows, description: str = "validation"
) -> float:
    """Return the share of images that a model under a head classifies correctly; NaN for none."""
    if not len(rows):
        return math.nan  # no validation part
    features = extract_features(backbone, params, rows.images, description=description)
    logits = head(jnp.asarray(features))
    return float(np.mean(np.asarray(jnp.argmax(logits, axis=1)) == rows.labels))
