"""`rmtllmf finetune`: heads, fine-tuned models and task vectors of the users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rmtllmf_jax.cli.environment import use_compilation_cache
from rmtllmf_jax.cli.options import Cache, FinetuneOptions, Out, default_cache
from rmtllmf_jax.cli.run_folder import working_in

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rmtllmf_jax.data.task_data import TaskData
    from rmtllmf_jax.models.backbone import Backbone
    from rmtllmf_jax.training.users import Setting, UserRecord


@dataclass(kw_only=True)
class Finetune(FinetuneOptions):
    """Fine-tune one model a task under its frozen head; print the task vectors' norms and cosines.

    Example: rmtllmf finetune --model MODEL --data DATA --out runs/a --tasks mnist svhn
    """

    out: Out
    seed: int = 0
    """Root of the validation split and of the order of the samples."""
    cache_dir: Cache = field(default_factory=default_cache)

    def run(self) -> None:
        """Run the sub-command."""
        use_compilation_cache(self.cache_dir)
        with working_in(self.out):
            finetune(self, self.out, self.seed, self.cache_dir)


def load_tasks(setting: Setting, names: tuple[str, ...], cache_dir: Path) -> tuple[TaskData, ...]:
    """Return the tasks' data through the cache, as a setting describes it."""
    from rmtllmf_jax.data.parquet import ParquetFolder
    from rmtllmf_jax.data.task_data import load_task
    from rmtllmf_jax.data.tasks import validate_tasks

    source = ParquetFolder(Path(setting.data))
    return tuple(
        load_task(
            source,
            name,
            setting.image_size,
            cache_dir,
            validation_fraction=setting.validation_fraction,
            seed=setting.seed,
        )
        for name in validate_tasks(names, source.tasks())
    )


def finetune(options: FinetuneOptions, out: Path, seed: int, cache_dir: Path) -> None:
    """Fine-tune what is not finished, then print what the task vectors look like."""
    from rmtllmf_jax.models.backbone import load_backbone
    from rmtllmf_jax.models.checkpoint import weights_hash
    from rmtllmf_jax.models.hub import local_directory
    from rmtllmf_jax.training.recipes import Recipe
    from rmtllmf_jax.training.users import Setting, train_users

    recipe = Recipe(options.steps, options.batch_size, options.learning_rate, options.weight_decay)
    model = local_directory(options.model)
    backbone, base = load_backbone(model, options.image_size)
    setting = Setting(
        model=str(options.model),
        model_hash=weights_hash(model),
        data=str(options.data),
        image_size=options.image_size,
        validation_fraction=options.validation_fraction,
        seed=seed,
    )
    data = load_tasks(setting, options.tasks, cache_dir)

    def report(task: str, record: UserRecord) -> None:
        print(
            f"{task}: validation accuracy {100 * record.base_validation_accuracy:.1f} % "
            f"(head on the base) -> {100 * record.finetuned_validation_accuracy:.1f} % "
            "(fine-tuned)",
            flush=True,
        )

    records = train_users(backbone, base, data, setting, recipe, out, report)
    print_vectors(out, backbone, base, records)


def print_vectors(
    out: Path, backbone: Backbone, base: PyTree, records: Mapping[str, UserRecord]
) -> None:
    """Print norms, rms and cosines of the task vectors."""
    import numpy as np
    from rich.console import Console

    from rmtllmf_jax import fusion
    from rmtllmf_jax.report.sheets import Sheet
    from rmtllmf_jax.report.terminal import print_sheet
    from rmtllmf_jax.training.users import load_user

    vectors = []
    for record in records.values():
        finetuned, _ = load_user(out, record, base, backbone.width)
        vectors.append(fusion.TaskVector.between(finetuned, base))
    cosines = np.asarray(fusion.cosine_matrix(fusion.stack([vector.tree for vector in vectors])))
    rows = [
        [task, f"{float(vector.norm()):.2f}", f"{float(vector.rms()):.1e}"]
        + [f"{value:.3f}" for value in cosines[row]]
        for row, (task, vector) in enumerate(zip(records, vectors, strict=True))
    ]
    header = ["task", "norm", "rms", *records]
    print_sheet(Sheet("Task vectors: norm, root mean square, cosines", header, rows), Console())
