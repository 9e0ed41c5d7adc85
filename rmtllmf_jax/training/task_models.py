"""Where a user's fine-tuned model comes from: training here, or a checkpoint made elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import PyTree

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError, require_non_negative
from rmtllmf_jax.common.files import content_hash, file_hash
from rmtllmf_jax.common.values import described
from rmtllmf_jax.data.samples import Task
from rmtllmf_jax.fusion.files.adapters import is_adapter, open_adapter
from rmtllmf_jax.fusion.files.vectors import VECTOR
from rmtllmf_jax.models.adapters import adapter_vector, of_decoder, of_tower
from rmtllmf_jax.models.backbone import (
    Backbone,
    abstract_params,
    load_backbone,
    tower_tensors,
    with_positions,
)
from rmtllmf_jax.models.checkpoint import weights_hash
from rmtllmf_jax.models.configs import config_file
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.decoder_configs import is_decoder
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.hub import adapter_place, local_directory
from rmtllmf_jax.models.pretrained import (
    Pretrained,
    abstract_decoder,
    load_decoder,
    read_pretrained,
)
from rmtllmf_jax.models.shared import SharedModel
from rmtllmf_jax.models.weights import (
    assign,
    read_metadata,
    read_safetensors,
    save_tree,
    tree_hash,
)
from rmtllmf_jax.training.augment import Augmentation, parse_augmentations
from rmtllmf_jax.training.finetune import finetune, validation_score
from rmtllmf_jax.training.lora import Lora
from rmtllmf_jax.training.parallel import ONE_PART, Split
from rmtllmf_jax.training.recipes import Recipe
from rmtllmf_jax.training.watch import LAST, Choice, Scores, Watch


@runtime_checkable
class TaskModels(Protocol):
    """Provides fine-tuned parameters per task, and says what they depend on."""

    def key(self, task: str) -> dict[str, Any]:
        """Return what the parameters depend on besides base model, data and head."""
        ...

    def params(self, task: Task, head: Head | None, folder: Path) -> PyTree:
        """Return the parameters, or the factors of the recipe's LoRA (`lora_of`).

        `folder` holds the checkpoints that training resumes from.
        """
        ...


@dataclass(frozen=True)
class FineTuned:
    """Models fine-tuned here, all with one recipe."""

    model: SharedModel
    base: PyTree
    recipe: Recipe
    seed: int
    weight_noise: float = 0.0
    """Standard deviation of the noise on every parameter, see `training.finetune.finetune`."""
    lora: Lora | None = None
    """Trains its factors in place of all parameters."""
    augment: tuple[str | Augmentation, ...] = ()
    """Augmentations of the training images, as `training.augment.parse_augmentations` takes
    them."""
    choice: Choice = LAST
    """Which step is kept, and when training ends early."""
    every: int = 50
    """Steps between checkpoints, and between scores on the validation part."""
    split: Split = ONE_PART
    """Devices and parts that a batch is computed on and in."""
    curves: Path | None = None
    """Folder of the learning curves; `None` keeps none."""
    tell: Callable[[str, int, Scores], None] = lambda task, step, scores: None
    """Called with a task's losses and scores by step, for trackers."""

    def __post_init__(self) -> None:
        """Check the number, and that the base has what a LoRA updates."""
        require_non_negative("weight noise", self.weight_noise)
        if self.lora is not None:
            self.lora.kernels(self.base)

    def key(self, task: str) -> dict[str, Any]:
        """Return the recipe, with noise and LoRA if there are any: older models have none."""
        noise = {"weight_noise": self.weight_noise} if self.weight_noise else {}
        lora = {"lora": asdict(self.lora)} if self.lora else {}
        changes = parse_augmentations(self.augment, task)
        augment = {"augment": [described(each) for each in changes]} if changes else {}
        chosen = {"choice": asdict(self.choice), "every": self.every}
        choice = chosen if self.choice.needs_scores else {}
        return {"recipe": asdict(self.recipe) | noise | lora | augment | choice}

    def params(self, task: Task, head: Head | None, folder: Path) -> PyTree:
        """Fine-tune, or resume a killed run."""
        return finetune(
            self.model,
            self.base,
            head,
            task.train,
            self.recipe,
            self.seed,
            folder,
            description=f"fine-tuning {task.name}",
            weight_noise=self.weight_noise,
            name=task.name,
            lora=self.lora,
            augmentations=self._augmentations(task),
            split=self.split,
            every=self.every,
            watch=self._watch(task, head, folder),
        )

    def _augmentations(self, task: Task) -> tuple[Augmentation, ...]:
        if self.augment and not isinstance(self.model, Backbone):
            raise InputError("--augment is for images, and these are texts: leave it out.")
        return parse_augmentations(self.augment, task.name)

    def _watch(self, task: Task, head: Head | None, folder: Path) -> Watch | None:
        """Return the watch of the training, if there is anything to watch."""
        if self.curves is None and not self.choice.needs_scores:
            return None
        score = None
        if self.choice.needs_scores and len(task.validation):
            batch, how = self.recipe.batch_size, self.lora
            score = validation_score(self.model, self.base, head, task.validation, batch, how)
        return Watch(
            (folder.parent if self.curves is None else self.curves) / f"{folder.name}.csv",
            folder / "best.safetensors",
            score,
            self.choice,
            partial(self.tell, task.name),
        )


@dataclass(frozen=True)
class Imported:
    """Models fine-tuned elsewhere: base plus the task vectors of a folder (`import_vector`).

    A task may also have a LoRA adapter to the base, in a directory named after the task.
    """

    base: PyTree
    base_model: str
    """Directory or hub id."""
    base_hash: str
    model: SharedModel
    """The run's; images may be of another size than the vectors were made at."""
    folder: Path

    def key(self, task: str) -> dict[str, Any]:
        """Return the hash of the task vector's file, or of an adapter's files."""
        if is_adapter(self.folder / task):
            files = open_adapter(self.folder / task).files
            sha256 = content_hash([file_hash(path) for path in files])
            return {"recipe": {"imported": str(self.folder / task), "sha256": sha256}}
        path, about = require_imported(self.base_hash, task, self.folder)
        return {"recipe": {"imported": about["origin"], "sha256": file_hash(path)}}

    def params(self, task: Task, head: Head | None, folder: Path) -> PyTree:
        """Return base plus task vector.

        **Raises:** `InputError` if the vector belongs to another base model, or is damaged.
        """
        path, tensors = self._tensors(task.name)
        if isinstance(self.model, Backbone):
            # Linear: the resized vector is the difference of the two resized checkpoints.
            tensors = with_positions(tensors, self.model.module.shape.grid)
        return fusion.add_to_base(self.base, assign(tensors, self.base, path), 1.0)

    def _tensors(self, task: str) -> tuple[Path, dict[str, np.ndarray]]:
        """Return a task's vector by path, at the size of the base's own images."""
        path = self.folder / task
        if is_adapter(path):
            vector = origin_of(self.base_model).adapted(path)
            return path, {name: np.asarray(leaf) for name, leaf in vector.by_leaf().items()}
        path, about = require_imported(self.base_hash, task, self.folder)
        tensors = read_safetensors(path)
        if about.get("sha256", "") not in ("", tree_hash(tensors)):
            raise InputError(
                f"{path}: damaged, its content is not what its checksum says; delete it and import "
                "it again."
            )
        return path, tensors


def require_vector(base_hash: str, task: str, folder: Path) -> None:
    """Check that a folder holds a task's vector, or an adapter in a directory named after it.

    **Raises:** `InputError` as `require_imported`, or that names why the adapter is not a LoRA.
    """
    if is_adapter(folder / task):
        open_adapter(folder / task)
    else:
        require_imported(base_hash, task, folder)


def require_imported(base_hash: str, task: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the file of a task's vector and its metadata; its tensors are not read.

    **Raises:** `InputError` if there is none, or it belongs to another base model.
    """
    path = folder / f"{task}.safetensors"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; make it with `rmtllmf import-task-vector BASE FINETUNED "
            f"--task {task} --out {folder}`."
        )
    about = _read_about(path)
    if about["base"] != base_hash:
        raise InputError(
            f"{path}: a task vector of another base model ({about['base_origin']}); import it "
            "again with the base model of this run."
        )
    return path, about


def import_vector(base: str, finetuned: str, task: str, folder: Path) -> fusion.TaskVector:
    """Write the task vector of a checkpoint that was fine-tuned elsewhere, and return it.

    `folder/<task>.safetensors` then holds fine-tuned minus base parameters of the image tower in
    float32, by leaf path, at the checkpoints' own image size; or those of the language model.

    **Arguments:**

    - `base`, `finetuned`: directories or hub ids of one architecture, in any format that
      `models.backbone.load_backbone` or `models.pretrained.load_decoder` takes; or `finetuned` is a
      LoRA adapter to the base.

    **Raises:** `InputError` that names the file, or every leaf in which the two differ.
    """
    origin = origin_of(base)
    adapter = adapter_place(finetuned)
    if adapter is None:
        vector = fusion.TaskVector.between(origin.like(finetuned), origin.params)
    else:
        vector = origin.adapted(adapter)
    about = {
        "task": task,
        "base": weights_hash(origin.directory),
        "base_origin": base,
        "origin": finetuned,
        "sha256": tree_hash(vector.tree),
    }
    # A single entry: safetensors writes several in random order, which would change the hash.
    save_tree(folder / f"{task}.safetensors", vector.tree, {VECTOR: json.dumps(about)})
    return vector


@dataclass(frozen=True)
class TowerOrigin:
    """An image model from which others were fine-tuned."""

    name: str
    pretrained: Pretrained
    backbone: Backbone
    params: PyTree

    @property
    def directory(self) -> Path:
        """The directory of the model."""
        return self.pretrained.directory

    def adapted(self, adapter: Path) -> fusion.TaskVector:
        """Return the task vector of a LoRA adapter, see `adapter_vector`."""
        like, to_tree = abstract_params(self.backbone), of_tower(self.pretrained.config)
        return adapter_vector(adapter, self.directory, like, to_tree)

    def like(self, finetuned: str) -> PyTree:
        """Return the image tower of a model that was fine-tuned from this one."""
        other, config = read_pretrained(finetuned), self.pretrained.config
        if other.config.family != config.family:
            raise InputError(
                f"{finetuned}: a {other.config.kind} model, and {self.name} is a {config.kind} "
                "model; a task vector needs two of one architecture."
            )
        tensors = tower_tensors(other.tensors, other.config)
        try:
            return assign(tensors, abstract_params(self.backbone), other.origin)
        except InputError as error:
            raise InputError(
                f"{finetuned} is not of the architecture of {self.name}. {error}"
            ) from error


@dataclass(frozen=True)
class DecoderOrigin:
    """A language model from which others were fine-tuned."""

    name: str
    directory: Path
    decoder: Decoder
    params: PyTree

    def adapted(self, adapter: Path) -> fusion.TaskVector:
        """Return the task vector of a LoRA adapter, see `adapter_vector`."""
        like, to_tree = abstract_decoder(self.decoder), of_decoder(self.decoder.shape)
        return adapter_vector(adapter, self.directory, like, to_tree)

    def like(self, finetuned: str) -> PyTree:
        """Return the parameters of a model that was fine-tuned from this one."""
        other, params = load_decoder(finetuned)
        if other.fingerprint != self.decoder.fingerprint:
            raise InputError(
                f"{finetuned} is not of the architecture of {self.name}: their configurations "
                "differ."
            )
        fusion.require_same_structure(self.params, params, (self.name, finetuned))
        return params


def origin_of(model: str) -> TowerOrigin | DecoderOrigin:
    """Return a pretrained model, for images or for texts.

    **Raises:** `InputError` as `read_pretrained` and `load_decoder`.
    """
    directory = local_directory(model)
    if is_decoder(config_file(directory)):
        return DecoderOrigin(model, directory, *load_decoder(model))
    pretrained = read_pretrained(model)
    return TowerOrigin(model, pretrained, *load_backbone(pretrained))


def is_imported(base_hash: str, task: str, folder: Path) -> bool:
    """Return whether a folder already holds a task's vector of this base model."""
    path = folder / f"{task}.safetensors"
    return path.is_file() and _read_about(path)["base"] == base_hash


def _read_about(path: Path) -> dict[str, str]:
    about = read_metadata(path).get(VECTOR)
    if about is None:
        raise InputError(
            f"{path}: not a task vector that `rmtllmf import-task-vector` wrote (no metadata)."
        )
    return json.loads(about)
