"""`rmtllmf finetune`: heads, fine-tuned models and task vectors of the users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rmtllmf_jax.cli.options import Cache, FinetuneOptions, Out
from rmtllmf_jax.runs.environment import default_cache, use_compilation_cache
from rmtllmf_jax.runs.folder import working_in

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rmtllmf_jax.models.backbone import Backbone
    from rmtllmf_jax.runs.config import RunConfig, UserRecord
    from rmtllmf_jax.training.recipes import Recipe
    from rmtllmf_jax.training.task_models import TaskModels


@dataclass(kw_only=True)
class Finetune(FinetuneOptions):
    """Fine-tune one model per task under its frozen head; print task vectors' norms and cosines.

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


def config_of(options: FinetuneOptions, seed: int) -> RunConfig:
    """Return the configuration of a run that the options describe.

    **Raises:** `InputError` for an option that cannot be used, or a model that is not there.
    """
    from rmtllmf_jax.runs.config import configure

    return configure(
        options.model,
        data=options.data,
        source=options.source,
        head=options.head,
        prompts=options.prompts,
        image_size=options.image_size,
        fit=options.fit,
        normalise=options.normalise,
        dtype=options.dtype,
        validation_fraction=options.validation_fraction,
        seed=seed,
    )


def recipe_of(options: FinetuneOptions) -> Recipe:
    """Return the recipe of fine-tuning that the options describe."""
    from rmtllmf_jax.training.recipes import Recipe

    return Recipe(
        options.steps,
        options.batch_size,
        options.learning_rate,
        options.weight_decay,
        options.warmup,
        options.clip_norm,
    )


def finetune(options: FinetuneOptions, out: Path, seed: int, cache_dir: Path) -> None:
    """Get what models are not there yet, then print what the task vectors look like."""
    from rmtllmf_jax.runs.users import train_users

    config = config_of(options, seed)
    _require_vectors(options, config)
    backbone, base = config.load_tower(options.remat)
    _print_notes(config, backbone, options.tasks)
    data = config.load_tasks(options.tasks, cache_dir)
    models = _task_models(options, config, backbone, base, out)

    def report(task: str, record: UserRecord) -> None:
        print(
            f"{task}: validation accuracy {100 * record.base_validation_accuracy:.1f} % "
            f"(head on the base) -> {100 * record.finetuned_validation_accuracy:.1f} % "
            "(fine-tuned)",
            flush=True,
        )

    records = train_users(backbone, base, data, config, models, out, report)
    print_vectors(out, backbone, base, records)


def _require_vectors(options: FinetuneOptions, config: RunConfig) -> None:
    """Check that there is a vector of this base model for every task, before images are decoded.

    **Raises:** `InputError` that names the first which is missing or of another base model.
    """
    from rmtllmf_jax.cli.import_task_vector import PUBLISHED, published
    from rmtllmf_jax.training.task_models import require_imported

    if (folder := options.task_vectors) is None:
        return
    for task in options.tasks:
        if folder == PUBLISHED:
            published(task)
        else:
            require_imported(config.model_hash, task, Path(folder))


def _print_notes(config: RunConfig, backbone: Backbone, tasks: tuple[str, ...]) -> None:
    """Say what a model leaves open, and what sets of TensorFlow Datasets do not share."""
    from rmtllmf_jax.common.progress import note
    from rmtllmf_jax.data.registry import task_facts
    from rmtllmf_jax.data.tasks import TASK_NAMES
    from rmtllmf_jax.models.hub import local_directory
    from rmtllmf_jax.models.processor import NESTED, PLAIN

    directory = local_directory(config.model)
    if config.normalise and not any((directory / name).is_file() for name in (NESTED, PLAIN)):
        note(
            f"{config.model}: no {PLAIN} says how it wants its images; mean {backbone.mean}, std "
            f"{backbone.std}, {config.fit} and {config.resample} are taken."
        )
    for task in tasks if config.source == "tfds" else ():
        if task in TASK_NAMES and task_facts(task).tfds_note:
            note(f"{task}: {task_facts(task).tfds_note}")


def _task_models(
    options: FinetuneOptions, config: RunConfig, backbone: Backbone, base: PyTree, out: Path
) -> TaskModels:
    from rmtllmf_jax.cli.import_task_vector import PUBLISHED, import_published
    from rmtllmf_jax.training.task_models import FineTuned, Imported

    if options.task_vectors is None:
        return FineTuned(backbone, base, recipe_of(options), config.seed)
    folder = Path(options.task_vectors)
    if options.task_vectors == PUBLISHED:
        folder = out / "task_vectors"
        import_published(config, options.tasks, folder)
    return Imported(base, config.model_hash, backbone.module.shape.grid, folder)


def print_vectors(
    out: Path, backbone: Backbone, base: PyTree, records: Mapping[str, UserRecord]
) -> None:
    """Print norms, rms and cosines of the task vectors, and draw the cosines layer by layer."""
    from rich.console import Console

    from rmtllmf_jax import fusion
    from rmtllmf_jax.common.files import replacing
    from rmtllmf_jax.report.sheets import Sheet
    from rmtllmf_jax.report.terminal import print_sheet
    from rmtllmf_jax.report.vector_figures import similarity_figure
    from rmtllmf_jax.runs.users import load_user

    vectors = []
    for record in records.values():
        finetuned, _ = load_user(out, record, base, backbone.width)
        vectors.append(fusion.TaskVector.between(finetuned, base))
    stacked = fusion.stack([vector.tree for vector in vectors])
    cosines = fusion.exact_cosines(stacked)
    rows = [
        [task, f"{float(vector.norm()):.2f}", f"{float(vector.rms()):.1e}"]
        + [f"{value:.3f}" for value in cosines[row]]
        for row, (task, vector) in enumerate(zip(records, vectors, strict=True))
    ]
    header = ["task", "norm", "rms", *records]
    print_sheet(Sheet("Task vectors: norm, root mean square, cosines", header, rows), Console())
    if len(records) > 1:
        figure = similarity_figure(list(records), cosines, fusion.layer_cosines(stacked))
        with replacing(out / "task_vectors.png") as path:
            figure.savefig(path, format="png", dpi=150)
        print(out / "task_vectors.png")
