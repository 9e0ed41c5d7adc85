"""`rmtllmf import-task-vector`: a checkpoint that was fine-tuned elsewhere as a task vector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import tyro

from rmtllmf_jax.cli.options import suggest
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.data.tasks import REGISTERED

if TYPE_CHECKING:
    from rmtllmf_jax.fusion import TaskVector
    from rmtllmf_jax.runs.config import RunConfig

PUBLISHED = "tanganke"
"""Name of the published models fine-tuned from CLIP ViT-B/16, one per task of the registry."""


@dataclass(kw_only=True)
class ImportTaskVector:
    """Write fine-tuned minus base parameters (of an image tower or a decoder) as a task vector.

    Example: rmtllmf import-task-vector openai/clip-vit-base-patch16 tanganke --task dtd
    """

    base: tyro.conf.Positional[str]
    """The pretrained model: a Hugging Face directory or hub id."""
    finetuned: tyro.conf.Positional[str]
    """The model that was fine-tuned from it: a directory, a hub id, or tanganke for the task's
    published model; or a LoRA adapter for it, as saved by PEFT."""
    task: str
    """Name of the task; the file is named after it."""
    out: Path = Path("task_vectors")
    """Folder of the task vectors, for `finetune` and `reproduce` --task-vectors."""

    def run(self) -> None:
        """Run the sub-command."""
        from rmtllmf_jax.training.task_models import import_vector

        if not self.task or Path(self.task).name != self.task:
            raise InputError(f"--task must be a name without slashes, got {self.task!r}.")
        finetuned = published(self.task) if self.finetuned == PUBLISHED else self.finetuned
        vector = import_vector(self.base, finetuned, self.task, self.out)
        path = self.out / f"{self.task}.safetensors"
        print(f"{path}: {_summary(vector)}")
        words = quote(self.base), quote(str(path)), quote(self.task)
        suggest("add it to its base: rmtllmf apply-task-vector {} {} --out {}".format(*words))


def published(task: str) -> str:
    """Return the hub id of a task's published model.

    **Raises:** `InputError` if the task is not in the registry.
    """
    from rmtllmf_jax.data.registry import task_facts

    require_known("task", task, REGISTERED)
    return f"{PUBLISHED}/clip-vit-base-patch16_{task_facts(task).finetuned}"


def import_published(config: RunConfig, tasks: tuple[str, ...], folder: Path) -> None:
    """Import the published models of tasks, those alone that are not there yet."""
    from rmtllmf_jax.training.task_models import import_vector, is_imported

    for task in tasks:
        if not is_imported(config.model_hash, task, folder):
            vector = import_vector(config.model, published(task), task, folder)
            note(f"{task}: imported {published(task)}: {_summary(vector)}")


def _summary(vector: TaskVector) -> str:
    from rmtllmf_jax.fusion import leaves_by_path

    return (
        f"{len(leaves_by_path(vector.tree))} leaves, {vector.size:,} parameters, "
        f"norm {float(vector.norm()):.4g}, rms {float(vector.rms()):.3g}"
    )
