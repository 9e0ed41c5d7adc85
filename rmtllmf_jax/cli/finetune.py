"""`rmtllmf finetune`: heads, fine-tuned models and task vectors of the users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from rmtllmf_jax.cli.inputs import ModelOptions, SetOptions, TextOptions
from rmtllmf_jax.cli.learned import CURVES, Trained
from rmtllmf_jax.cli.options import RunOptions, default_of, print_table, suggest, taken
from rmtllmf_jax.common.errors import InputError, require_at_least, require_non_negative
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.data.tasks import REGISTERED, SUITES, expand_tasks
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.runs.folder import working_in
from rmtllmf_jax.training.recipes import FINETUNE, Recipe

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rmtllmf_jax.models.backbone import Backbone
    from rmtllmf_jax.models.shared import SharedModel
    from rmtllmf_jax.runs.config import RunConfig
    from rmtllmf_jax.runs.manifest import AnyConfig, AnyRecord
    from rmtllmf_jax.sweep.trackers import Tracker
    from rmtllmf_jax.training.lora import Lora
    from rmtllmf_jax.training.task_models import TaskModels


@dataclass(kw_only=True)
class TrainingOptions:
    """How the users fine-tune."""

    group: ClassVar[str] = "fine-tuning"

    steps: int = FINETUNE.steps
    """Fine-tuning steps per task."""
    batch_size: int = FINETUNE.batch_size
    """Images (or rows of texts) per fine-tuning step."""
    learning_rate: float = FINETUNE.learning_rate
    """Peak learning rate of fine-tuning (AdamW, warm-up, cosine)."""
    weight_decay: float = FINETUNE.weight_decay
    """Decoupled weight decay of fine-tuning."""
    warmup: float = FINETUNE.warmup
    """Share of the fine-tuning steps used for warm-up."""
    clip_norm: float | None = FINETUNE.clip_norm
    """Largest global gradient norm of fine-tuning; None does not clip."""
    augment: tuple[str, ...] = ()
    """Light augmentation of training images: crop (shifted by up to an eighth of the side;
    crop(share=0.1)), flip (left-right), or auto: crop, and flip for tasks whose mirrored images
    keep their class."""
    keep: Literal["last", "best"] = "last"
    """Which step to keep: the last, or the best on the validation part."""
    patience: int | None = None
    """Stop fine-tuning after this many consecutive validation scores without improvement; by
    default only after all steps."""
    validate_every: int = 50
    """Steps between checkpoints, and between scores on the validation part if --keep best or
    --patience need them."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Additional places to report progress: tensorboard, wandb."""
    weight_noise: float = 0.0
    """Standard deviation of the Gaussian noise added to every parameter when computing gradients,
    for models that tolerate the uplink's errors: docs/cli.md says how to choose it."""


@dataclass(kw_only=True)
class LoraOptions:
    """Fine-tuning by LoRA."""

    group: ClassVar[str] = "LoRA"

    lora_rank: int | None = None
    """Fine-tune by LoRA: rank of the updates of some kernels. Only their factors are trained and
    stored; the base is frozen. Needs a higher learning rate."""
    lora_alpha: float | None = None
    """The updates are alpha / rank times the product of their factors; by default the rank."""
    lora_targets: tuple[str, ...] = ("q_proj|query", "v_proj|value")
    """Modules whose kernels are updated, as regular expressions for the last part of their
    names."""
    lora_init: Literal["gaussian", "kaiming"] = "gaussian"
    """Initialisation of the first factor, as in PEFT; the second is initialised to zero."""


@dataclass(kw_only=True)
class ComputeOptions:
    """How the model computes."""

    group: ClassVar[str] = "speed and memory"

    dtype: str = "auto"
    """Compute type of the model: float32, bfloat16, or auto (float32 on a CPU, bfloat16 on
    accelerators). Parameters stay in float32."""
    remat: bool = False
    """Save memory: recompute activations in the backward pass."""
    train_devices: int | None = None
    """Devices of this process that share every fine-tuning batch; by default as many accelerators
    as divide it, or one CPU. Affects only speed and memory."""
    accumulate: int = 1
    """Save memory: compute a fine-tuning batch in this many parts, one after another, and add up
    their gradients; --batch-size counts the samples of all parts. Must divide the batch."""


@dataclass(kw_only=True)
class Finetune(
    RunOptions, ModelOptions, SetOptions, TextOptions, TrainingOptions, LoraOptions, ComputeOptions
):
    """Fine-tune one model per task with a frozen head; print task vectors' norms and cosines.

    Examples: rmtllmf finetune --model MODEL --data DATA --out runs/a --tasks mnist svhn;
    rmtllmf finetune --model MODEL --source hub --data AI-Lab-Makerere/beans --out runs/b;
    rmtllmf finetune --model DECODER --texts tasks.yaml --length 256 --out runs/c
    """

    def run(self) -> None:
        """Run the sub-command."""
        from rmtllmf_jax.cli.learned import print_test

        use_compilation_cache(self.cache_dir)
        with working_in(self.out):
            trained = finetune(self)
            if self.texts is None:
                print_test(self.out, trained)
        suggest(f"send and merge them: rmtllmf sweep --out {quote(str(self.out))}")


def recipe_of(options: Finetune) -> Recipe:
    """Return the recipe of fine-tuning that the options describe."""
    return Recipe(**taken(options, Recipe))


def finetune(options: Finetune) -> Trained:
    """Get what models are not there yet, and print what the task vectors are."""
    from rmtllmf_jax.cli.learned import draw_curves
    from rmtllmf_jax.runs.users import train_users
    from rmtllmf_jax.sweep.trackers import get_tracker

    _require_trained_here(options)
    lora = lora_of(options)
    config, names = configured(options)
    _require_vectors(options, config.model_hash, names)
    model, base = config.load_model(options.remat)
    if options.texts is None:
        _print_notes(cast("RunConfig", config), cast("Backbone", model), names)
    aloud = {} if options.texts is None else {"quiet": False}
    data = config.load_tasks(names, options.cache_dir, **aloud)

    def report(task: str, record: AnyRecord) -> None:
        print(f"{task}: {record.reached}", flush=True)

    with get_tracker(options.trackers, options.out, {"setting": asdict(config)}) as tracker:
        models = _task_models(options, config, names, model, base, lora, tracker)
        records = train_users(model, base, data, config, models, options.out, report)
    draw_curves(options.out, records)
    _print_vectors(options.out, model, base, records)
    return Trained(model, base, tuple(data), records)


def configured(options: Finetune) -> tuple[AnyConfig, tuple[str, ...]]:
    """Return the configuration of the run and the tasks, of images or texts.

    **Raises:** `InputError` for options of the other kind, or a model of it.
    """
    from rmtllmf_jax.data.texts.sets import text_tasks
    from rmtllmf_jax.models.configs import config_file
    from rmtllmf_jax.models.decoder_configs import is_decoder
    from rmtllmf_jax.models.hub import local_directory
    from rmtllmf_jax.runs.config import configure
    from rmtllmf_jax.runs.texts import configure_texts

    decodes = is_decoder(config_file(local_directory(options.model)))
    if options.texts is None:
        if decodes:
            raise InputError(
                f"{options.model} is a language model: give --texts, the data to fine-tune it on."
            )
        return configure(**taken(options, configure)), tasks_of(options)
    if not decodes:
        raise InputError(
            f"{options.model} is an image model, but --texts is for language models: leave "
            "--texts out, or name a decoder such as a LlamaForCausalLM."
        )
    _require_no_images(options)
    config = configure_texts(**taken(options, configure_texts))
    return config, options.tasks or tuple(task.name for task in text_tasks(config.data))


def _require_no_images(options: Finetune) -> None:
    """Refuse options of images beside `--texts`."""
    shared = ("model", "tasks", "validation_fraction", "task_vectors")
    for option in (*fields(ModelOptions), *fields(SetOptions)):
        if option.name not in shared and getattr(options, option.name) != default_of(option):
            raise InputError(
                f"--{option.name.replace('_', '-')} is for images, but --texts is given: leave "
                "out one of them."
            )


def tasks_of(options: Finetune) -> tuple[str, ...]:
    """Return the tasks of a run: as told, the eight, or all that the source has.

    **Raises:** `InputError` if the source cannot be opened, to see which these are.
    """
    from rmtllmf_jax.data.sources import get_source

    if options.texts is not None or (options.tasks and not set(options.tasks) & set(SUITES)):
        return options.tasks
    known = get_source(options.source, options.data, options.reading).tasks()
    return expand_tasks(options.tasks, known)


def _require_trained_here(options: Finetune) -> None:
    """Check the options of training before images are decoded."""
    from rmtllmf_jax.training.augment import parse_augmentations

    if options.augment and options.texts is not None:
        raise InputError("--augment is for images, but --texts is given: leave out one of them.")
    require_non_negative("--weight-noise", options.weight_noise)
    given: dict[str, object] = {"--weight-noise": options.weight_noise}
    given |= {"--lora-rank": options.lora_rank, "--augment": options.augment}
    given |= {"--keep best": options.keep == "best", "--patience": options.patience}
    for task in options.tasks or ("",):
        parse_augmentations(options.augment, task)
    require_at_least("--validate-every", options.validate_every, 1)
    for option, value in given.items():
        if value and options.task_vectors is not None:
            raise InputError(
                f"{option} is for models that are fine-tuned here, but --task-vectors names "
                "existing ones: leave out one of them."
            )


def lora_of(options: Finetune) -> Lora | None:
    """Return the LoRA that the options describe."""
    from rmtllmf_jax.training.lora import Lora

    if options.lora_rank is not None:
        about = options.lora_alpha, options.lora_targets, options.lora_init
        return Lora(options.lora_rank, *about)
    if options.lora_alpha is not None:
        raise InputError("--lora-alpha needs --lora-rank: give both, or leave it out.")
    return None


def _require_vectors(options: Finetune, model_hash: str, tasks: tuple[str, ...]) -> None:
    """Check that there is a vector of this base model for every task, before data is read."""
    from rmtllmf_jax.cli.import_task_vector import PUBLISHED, published
    from rmtllmf_jax.training.task_models import require_vector

    if (folder := options.task_vectors) is None:
        return
    for task in tasks:
        if folder == PUBLISHED and options.texts is None:
            published(task)
        else:
            require_vector(model_hash, task, Path(folder))


def _print_notes(config: RunConfig, backbone: Backbone, tasks: tuple[str, ...]) -> None:
    """Say what a model leaves open, and what sets of TensorFlow Datasets do not share."""
    from rmtllmf_jax.data.registry import task_facts
    from rmtllmf_jax.models.hub import local_directory
    from rmtllmf_jax.models.processor import NESTED, PLAIN

    directory = local_directory(config.model)
    if config.normalise and not any((directory / name).is_file() for name in (NESTED, PLAIN)):
        note(
            f"{config.model}: no {PLAIN} describes how images are prepared; mean {backbone.mean}, "
            f"std {backbone.std}, {config.fit} and {config.resample} are used."
        )
    for task in tasks if config.source == "tfds" else ():
        if task in REGISTERED and task_facts(task).tfds_note:
            note(f"{task}: {task_facts(task).tfds_note}")


def _task_models(
    options: Finetune,
    config: AnyConfig,
    tasks: tuple[str, ...],
    model: SharedModel,
    base: PyTree,
    lora: Lora | None,
    tracker: Tracker,
) -> TaskModels:
    from rmtllmf_jax.cli.import_task_vector import PUBLISHED, import_published
    from rmtllmf_jax.training.parallel import Split
    from rmtllmf_jax.training.task_models import FineTuned, Imported
    from rmtllmf_jax.training.watch import Choice

    if options.task_vectors is None:

        def tell(task: str, step: int, scores: Mapping[str, float]) -> None:
            before = tasks.index(task) * options.steps  # trackers want steps that rise
            tracker.log(before + step, {f"fine-tuning/{task}/{k}": x for k, x in scores.items()})

        return FineTuned(
            model,
            base,
            recipe_of(options),
            config.seed,
            options.weight_noise,
            lora,
            augment=options.augment,
            choice=Choice(options.keep == "best", options.patience),
            every=options.validate_every,
            split=Split(options.train_devices, options.accumulate),
            curves=options.out / CURVES,
            tell=tell,
        )
    folder = Path(options.task_vectors)
    if options.task_vectors == PUBLISHED and options.texts is None:
        folder = options.out / "task_vectors"
        import_published(cast("RunConfig", config), tasks, folder)
    return Imported(base, config.model, config.model_hash, model, folder)


def _print_vectors(
    out: Path, model: SharedModel, base: PyTree, records: Mapping[str, AnyRecord]
) -> None:
    """Print norms, rms and cosines of the task vectors, and draw the cosines layer by layer."""
    from rmtllmf_jax import fusion
    from rmtllmf_jax.common.files import replacing
    from rmtllmf_jax.report.vector_figures import similarity_figure
    from rmtllmf_jax.runs.users import load_user

    vectors = []
    for record in records.values():
        finetuned, _ = load_user(out, record, base, model.width)
        vectors.append(fusion.TaskVector.between(finetuned, base))
    stacked = fusion.stack([vector.tree for vector in vectors])
    cosines = fusion.exact_cosines(stacked)
    rows = [
        [task, f"{float(vector.norm()):.2f}", f"{float(vector.rms()):.1e}"]
        + [f"{value:.3f}" for value in cosines[row]]
        for row, (task, vector) in enumerate(zip(records, vectors, strict=True))
    ]
    header = ["task", "norm", "rms", *records]
    print_table("Task vectors: norm, root mean square, cosines", header, rows)
    if len(records) > 1:
        figure = similarity_figure(list(records), cosines, fusion.layer_cosines(stacked))
        with replacing(out / "task_vectors.png") as path:
            figure.savefig(path, format="png", dpi=150)
        print(out / "task_vectors.png")
