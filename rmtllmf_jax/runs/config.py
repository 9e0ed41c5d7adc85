"""What the users of an image run folder share, and what each of them has."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least, require_known
from rmtllmf_jax.common.files import file_hash, read_json
from rmtllmf_jax.data.reading import AS_USUAL, Reading
from rmtllmf_jax.data.registry import PROMPTS, read_templates
from rmtllmf_jax.data.sources import SOURCES, get_source, hub_set
from rmtllmf_jax.data.task_data import TaskData, load_task
from rmtllmf_jax.data.tasks import validate_tasks
from rmtllmf_jax.fusion import require_same_structure
from rmtllmf_jax.models.backbone import Backbone, describe_backbone, load_backbone
from rmtllmf_jax.models.checkpoint import weights_hash
from rmtllmf_jax.models.classifier import Classifier
from rmtllmf_jax.models.configs import config_file, read_config
from rmtllmf_jax.models.export import export_model
from rmtllmf_jax.models.hub import local_directory
from rmtllmf_jax.models.pretrained import read_pretrained
from rmtllmf_jax.models.processor import (
    PLAIN,
    Fit,
    Resample,
    default_processor,
    read_processor,
)
from rmtllmf_jax.models.shapes import DTYPES
from rmtllmf_jax.training.task_heads import Lda, TaskHeads, ZeroShot, head_text, parse_head


@dataclass(frozen=True)
class RunConfig:
    """The settings that all users share; artefact names are hashes of them."""

    model: str
    """Directory or hub id of the pretrained model."""
    model_hash: str
    """SHA-256 of the model's weights."""
    data: str | None
    """Folder of the data, if there is one."""
    image_size: int
    validation_fraction: float
    seed: int
    source: str = "folder"
    """Where the images come from, one of `data.sources.SOURCES`."""
    head: str = "lda"
    """Kind of the frozen heads, as `training.task_heads.parse_head` reads it."""
    prompts: str = "ensemble"
    """Prompts of zero-shot heads, one of `data.registry.PROMPTS`."""
    fit: Fit = "crop"
    """How images are made square."""
    normalise: bool = True
    """Whether images are normalised with the model's own mean and standard deviation."""
    dtype: str = "float32"
    """Compute type of the image tower, one of `models.shapes.DTYPES`."""
    resample: Resample = "bicubic"
    """Resampling filter for images."""
    resize_to: int | None = None
    """Side in pixels to which images are resized before the centre is cut out; `None` is
    `image_size`."""
    tower: str = ""
    """`Backbone.fingerprint`: what else features depend on; empty in runs that predate it."""
    reading: dict[str, str] = field(default_factory=dict)
    """What is told of columns and splits (`data.reading.Reading.told`)."""
    skip_unreadable: int = 0
    """Images of a split that may be left out."""
    templates: tuple[str, ...] = ()
    """Prompts of zero-shot heads, in place of `prompts`."""

    metric: ClassVar[str] = "accuracy"
    """What models are scored by, unless a command says otherwise."""
    samples: ClassVar[str] = "images"
    """What the samples are called."""

    def key(self) -> dict[str, Any]:
        """Return what the numbers depend on: contents, not locations.

        Options added after existing artefacts were made are left out at their defaults.
        """
        values = asdict(self)
        for name in ("model", "templates", *self.images()):  # hashes of contents cover them
            del values[name]
        if self.head != "zero-shot":
            del values["prompts"]
        if isinstance(self.heads, Lda):  # as when the shots were a setting of their own
            del values["head"]
            values |= {} if self.heads.shots is None else {"head_shots": self.heads.shots}
        for each in fields(self):
            if each.default is not MISSING and values.get(each.name) == each.default:
                del values[each.name]
        return values

    @property
    def heads(self) -> TaskHeads:
        """Where the frozen heads come from."""
        return parse_head(self.head)

    def images(self) -> dict[str, Any]:
        """Return the settings that locate the images, which each user has separately."""
        names = ("source", "data", "reading", "skip_unreadable")
        return {name: getattr(self, name) for name in names}

    def load_model(self, remat: bool = False) -> tuple[Backbone, PyTree]:
        """Return the image tower and its pretrained parameters.

        **Raises:** `InputError` as `load_backbone`.
        """
        return load_backbone(
            self.model,
            self.image_size,
            dtype=self.dtype,
            remat=remat,
            normalised=self.normalise,
        )

    def load_tasks(self, names: Iterable[str], cache_dir: Path) -> tuple[TaskData, ...]:
        """Return the data of tasks, through the cache of decoded images.

        **Raises:** `InputError` for an unknown task, or images that cannot be read.
        """
        source = get_source(self.source, self.data, Reading(**self.reading))
        return tuple(
            load_task(
                source,
                name,
                self.image_size,
                cache_dir,
                fit=self.fit,
                resample=self.resample,
                resize_to=self.resize_to,
                validation_fraction=self.validation_fraction,
                seed=self.seed,
                skip_unreadable=self.skip_unreadable,
            )
            for name in validate_tasks(names, source.tasks())
        )

    def require_data(self) -> None:
        """Check that the images are where they were.

        **Raises:** `InputError` if they are not.
        """
        named = self.source == "hub" and hub_set(self.data) is not None
        if self.data is not None and not named and not Path(self.data).exists():
            raise InputError(
                f"{self.data}: no such folder; the run's images were there: give their new place "
                "with --data."
            )

    def load_like(self, directory: str, model: Backbone, base: PyTree) -> PyTree:
        """Return the image tower of another model of this architecture, at this image size.

        **Raises:** `InputError` if it is not.
        """
        other, params = load_backbone(directory, self.image_size, normalised=self.normalise)
        require_same_structure(base, params, ("the run's model", directory))
        if (other.mean, other.std) != (model.mean, model.std):
            raise InputError(
                f"{directory}: its image processor normalises by mean {other.mean} and std "
                f"{other.std}, and the run's by {model.mean} and {model.std}."
            )
        return params

    def export(self, folder: Path, params: PyTree, classifier: Classifier | None = None) -> None:
        """Write an image tower, with the rest of the model or a classifier, as a directory.

        **Raises:** `InputError` as `export_model`.
        """
        pretrained, size = read_pretrained(self.model), self.image_size
        how: Any = {"fit": self.fit, "normalised": self.normalise, "classifier": classifier}
        how |= {"resize_to": self.resize_to}
        export_model(folder, pretrained, params, size, **how)

    def require_same_model(self, backbone: Backbone) -> None:
        """Check that the users were trained with this configuration and image processor.

        **Raises:** `InputError` if they are not.
        """
        directory = local_directory(self.model)
        if self.tower:
            same = self.tower == backbone.fingerprint
        else:  # a run that predates its hash
            before = _statistics_before(directory)
            same = not self.normalise or before == (backbone.mean, backbone.std)
        if not same:
            raise InputError(
                f"{directory}: its configuration or its image processor says, or is understood, "
                "otherwise than when the run was fine-tuned from it; put the files back, or run "
                "`rmtllmf finetune` again."
            )


@dataclass(frozen=True)
class UserRecord:
    """One task's artefacts, relative to the run folder, and their validation accuracies.

    The checksums are SHA-256 of the two files, empty in runs that predate them.
    """

    head: str
    finetuned: str
    classes: int
    recipe: dict[str, Any]
    base_validation_accuracy: float
    finetuned_validation_accuracy: float
    head_sha256: str = ""
    finetuned_sha256: str = ""
    labels: tuple[str, ...] = ()
    """The task's own names of its classes; empty in runs that predate them."""
    images: dict[str, Any] = field(default_factory=dict)
    """`RunConfig.images` of the fine-tuning; empty in runs that predate it."""

    @classmethod
    def of(cls, content: dict[str, Any]) -> UserRecord:
        """Return the record in JSON data.

        **Raises:** `TypeError` if it is not one.
        """
        return cls(**content | {"labels": tuple(content.get("labels", ()))})

    @property
    def reached(self) -> str:
        """The outcome of fine-tuning, in words."""
        return (
            f"validation accuracy {100 * self.base_validation_accuracy:.1f} % (head on the base) "
            f"-> {100 * self.finetuned_validation_accuracy:.1f} % (fine-tuned)"
        )

    def require_same(self, task: Any) -> None:
        """Check that a task's images can be those used for fine-tuning.

        **Raises:** `InputError` if they cannot.
        """
        if len(task.classes) != self.classes:
            raise InputError(
                f"task {task.name!r} has {len(task.classes)} classes, and the run was "
                f"fine-tuned on {self.classes}: these are other images; name the place of the "
                "run's own."
            )

    def hashes(self, run: Path) -> dict[str, str]:
        """Return the checksums of head and fine-tuned model, computed where none are stored."""
        return {
            "head": self.head_sha256 or file_hash(run / self.head),
            "finetuned": self.finetuned_sha256 or file_hash(run / self.finetuned),
        }


def configure(
    model: str,
    *,
    data: str | Path | None = None,
    source: str = "folder",
    reading: Reading = AS_USUAL,
    skip_unreadable: int = 0,
    head: str | None = None,
    prompts: str = "ensemble",
    templates: Path | None = None,
    image_size: int | None = None,
    fit: Fit | None = None,
    normalise: bool = True,
    dtype: str = "auto",
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> RunConfig:
    """Return the configuration of a new run; options not given take the model's own values.

    **Raises:** `InputError` for an invalid option or a missing model.
    """
    for option, value, known in (("source", source, SOURCES), ("prompts", prompts, PROMPTS)):
        require_known(f"--{option}", value, known)
    directory = local_directory(model)
    config = read_config(config_file(directory))
    has_text = config.text is not None
    heads = parse_head(head or ("zero-shot" if has_text else "lda"))
    heads.require(config, model)
    if templates is not None and not isinstance(heads, ZeroShot):
        raise InputError("--templates are prompts of zero-shot heads: take one, or leave them out.")
    require_at_least("--skip-unreadable", skip_unreadable, 0)
    processor = read_processor(directory, config.kind)
    tower = describe_backbone(directory, config, image_size, normalised=normalise)
    return RunConfig(
        model=place_of(model),
        model_hash=weights_hash(directory),
        data=_data_of(source, data),
        image_size=tower.image_size,
        validation_fraction=validation_fraction,
        seed=seed,
        source=source,
        head=head_text(heads),
        prompts=prompts,
        fit=fit or processor.own_fit(),
        normalise=normalise,
        dtype=compute_dtype(dtype),
        resample=processor.resample,
        resize_to=processor.resize_to(tower.image_size) if fit is None else None,
        tower=tower.fingerprint,
        reading=reading.told,
        skip_unreadable=skip_unreadable,
        templates=() if templates is None else read_templates(templates),
    )


def place_of(model: str) -> str:
    """Return a model's directory as a path that is valid from any folder, or its hub ID."""
    here = Path(model).expanduser()
    return str(here.absolute()) if here.is_dir() else model


def require_weights(model: str, sha256: str) -> None:
    """Check that a run's users were fine-tuned from these weights.

    **Raises:** `InputError` if the weights have another hash.
    """
    directory = local_directory(model)
    if weights_hash(directory) != sha256:
        raise InputError(
            f"{directory}: not the weights that the run was fine-tuned from; put those back, "
            "or run `rmtllmf finetune` again."
        )


def _data_of(source: str, data: str | Path | None) -> str | None:
    """Return a folder that is valid from anywhere, or the unchanged ID of a data set."""
    if data is None:
        return None
    if source == "hub" and hub_set(data) is not None:
        return str(data)
    return str(Path(data).expanduser().absolute())


def compute_dtype(name: str) -> str:
    """Return the compute type of the image tower on the available devices.

    **Raises:** `InputError` for an unknown name.
    """
    if require_known("--dtype", name, (*DTYPES, "auto")) != "auto":
        return name
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _statistics_before(directory: Path) -> tuple[tuple[float, ...], ...]:
    """Return mean and std as read by older versions: no rescaling, one file only."""
    default = default_processor(read_config(config_file(directory)).kind)
    path = directory / PLAIN
    said = read_json(path) if path.exists() else {}
    mean, std = said.get("image_mean", default.mean), said.get("image_std", default.std)
    return tuple(mean), tuple(std)
