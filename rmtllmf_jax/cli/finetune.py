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
    from rmtllmf_jax.training.recipes import Recipe
    from rmtllmf_jax.training.task_models import TaskModels
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
    from rmtllmf_jax.data.sources import get_source
    from rmtllmf_jax.data.task_data import load_task
    from rmtllmf_jax.data.tasks import validate_tasks

    source = get_source(setting.source, None if setting.data is None else Path(setting.data))
    return tuple(
        load_task(
            source,
            name,
            setting.image_size,
            cache_dir,
            fit=setting.fit,
            resample=setting.resample,
            validation_fraction=setting.validation_fraction,
            seed=setting.seed,
        )
        for name in validate_tasks(names, source.tasks())
    )


def load_tower(setting: Setting, remat: bool = False) -> tuple[Backbone, PyTree]:
    """Return the image tower as a setting describes it."""
    from rmtllmf_jax.models.backbone import load_backbone

    return load_backbone(
        setting.model,
        setting.image_size,
        dtype=setting.dtype,
        remat=remat,
        normalised=setting.normalise,
    )


def setting_of(options: FinetuneOptions, seed: int) -> Setting:
    """Return the library's setting for the options.

    **Raises:** `InputError` for an option that cannot be used, or a model that is not there.
    """
    from rmtllmf_jax.common.errors import InputError, require_known
    from rmtllmf_jax.data.prompts import PROMPTS
    from rmtllmf_jax.data.sources import SOURCES
    from rmtllmf_jax.models.backbone import describe_backbone
    from rmtllmf_jax.models.checkpoint import weights_hash
    from rmtllmf_jax.models.configs import read_config
    from rmtllmf_jax.models.hub import local_directory
    from rmtllmf_jax.models.processor import read_processor
    from rmtllmf_jax.training.users import HEADS, Setting

    for option, known in (("source", SOURCES), ("prompts", PROMPTS)):
        require_known(f"--{option}", getattr(options, option), known)
    directory = local_directory(options.model)
    config = read_config(directory / "config.json")
    has_text = config.text is not None
    head = options.head or ("zero-shot" if has_text else "lda")
    if require_known("--head", head, HEADS) == "zero-shot" and not has_text:
        raise InputError(
            f"--head zero-shot needs a text tower, and {options.model} has none: take --head lda, "
            "or a CLIP model."
        )
    processor = read_processor(directory, config.kind)
    tower = describe_backbone(directory, config, options.image_size, normalised=options.normalise)
    here = Path(options.model).expanduser()
    return Setting(
        # Places as they are from every folder.
        model=str(here.absolute()) if here.is_dir() else options.model,
        model_hash=weights_hash(directory),
        data=None if options.data is None else str(options.data.expanduser().absolute()),
        image_size=tower.image_size,
        validation_fraction=options.validation_fraction,
        seed=seed,
        source=options.source,
        head=head,
        prompts=options.prompts,
        fit=options.fit or processor.own_fit(),
        normalise=options.normalise,
        dtype=compute_dtype(options.dtype),
        resample=processor.resample,
        tower=tower.fingerprint,
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


def compute_dtype(name: str) -> str:
    """Return what the image tower computes in on the devices found.

    **Raises:** `InputError` for an unknown name.
    """
    from rmtllmf_jax.common.errors import require_known
    from rmtllmf_jax.models.shapes import DTYPES

    if require_known("--dtype", name, (*DTYPES, "auto")) != "auto":
        return name
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def finetune(options: FinetuneOptions, out: Path, seed: int, cache_dir: Path) -> None:
    """Get what models are not there yet, then print what the task vectors look like."""
    from rmtllmf_jax.training.users import train_users

    setting = setting_of(options, seed)
    _require_vectors(options, setting)
    backbone, base = load_tower(setting, options.remat)
    _print_notes(setting, backbone, options.tasks)
    data = load_tasks(setting, options.tasks, cache_dir)
    models = _task_models(options, setting, backbone, base, out)

    def report(task: str, record: UserRecord) -> None:
        print(
            f"{task}: validation accuracy {100 * record.base_validation_accuracy:.1f} % "
            f"(head on the base) -> {100 * record.finetuned_validation_accuracy:.1f} % "
            "(fine-tuned)",
            flush=True,
        )

    records = train_users(backbone, base, data, setting, models, out, report)
    print_vectors(out, backbone, base, records)


def _require_vectors(options: FinetuneOptions, setting: Setting) -> None:
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
            require_imported(setting.model_hash, task, Path(folder))


def _print_notes(setting: Setting, backbone: Backbone, tasks: tuple[str, ...]) -> None:
    """Say what a model leaves open, and what sets of TensorFlow Datasets do not share."""
    from rmtllmf_jax.common.progress import note
    from rmtllmf_jax.data.registry import task_facts
    from rmtllmf_jax.data.tasks import TASK_NAMES
    from rmtllmf_jax.models.hub import local_directory
    from rmtllmf_jax.models.processor import NESTED, PLAIN

    directory = local_directory(setting.model)
    if setting.normalise and not any((directory / name).is_file() for name in (NESTED, PLAIN)):
        note(
            f"{setting.model}: no {PLAIN} says how it wants its images; mean {backbone.mean}, std "
            f"{backbone.std}, {setting.fit} and {setting.resample} are taken."
        )
    for task in tasks if setting.source == "tfds" else ():
        if task in TASK_NAMES and task_facts(task).tfds_note:
            note(f"{task}: {task_facts(task).tfds_note}")


def _task_models(
    options: FinetuneOptions, setting: Setting, backbone: Backbone, base: PyTree, out: Path
) -> TaskModels:
    from rmtllmf_jax.cli.import_task_vector import PUBLISHED, import_published
    from rmtllmf_jax.training.task_models import FineTuned, Imported

    if options.task_vectors is None:
        return FineTuned(backbone, base, recipe_of(options), setting.seed)
    folder = Path(options.task_vectors)
    if options.task_vectors == PUBLISHED:
        folder = out / "task_vectors"
        import_published(setting, options.tasks, folder)
    return Imported(base, setting.model_hash, backbone.module.shape.grid, folder)


def print_vectors(
    out: Path, backbone: Backbone, base: PyTree, records: Mapping[str, UserRecord]
) -> None:
    """Print norms, rms and cosines of the task vectors, and draw the cosines layer by layer."""
    from rich.console import Console

    from rmtllmf_jax import fusion
    from rmtllmf_jax.common.files import replacing
    from rmtllmf_jax.report.sheets import Sheet
    from rmtllmf_jax.report.similarity import similarity_figure
    from rmtllmf_jax.report.terminal import print_sheet
    from rmtllmf_jax.training.users import load_user

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
