"""What the users of a run folder share, what each of them has, and the manifest of both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.files import file_hash, read_json, write_json
from rmtllmf_jax.data.registry import PROMPTS
from rmtllmf_jax.data.sources import SOURCES, get_source
from rmtllmf_jax.data.task_data import TaskData, load_task
from rmtllmf_jax.data.tasks import validate_tasks
from rmtllmf_jax.models.backbone import Backbone, describe_backbone, load_backbone
from rmtllmf_jax.models.checkpoint import weights_hash
from rmtllmf_jax.models.configs import config_file, read_config
from rmtllmf_jax.models.hub import local_directory
from rmtllmf_jax.models.processor import (
    PLAIN,
    Fit,
    Resample,
    default_processor,
    read_processor,
)
from rmtllmf_jax.models.shapes import DTYPES
from rmtllmf_jax.training.task_heads import Lda, TaskHeads, head_text, parse_head

MANIFEST = "finetuned.json"


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
    tower: str = ""
    """`Backbone.fingerprint`: what else features depend on; empty in runs that predate it."""

    def key(self) -> dict[str, Any]:
        """Return what the numbers depend on: contents, not locations.

        Options younger than existing artefacts are left out at their defaults.
        """
        values = asdict(self)
        del values["model"], values["data"], values["source"]
        if self.head != "zero-shot":
            del values["prompts"]
        if isinstance(self.heads, Lda):  # as when the shots were a setting of their own
            del values["head"]
            values |= {} if self.heads.shots is None else {"head_shots": self.heads.shots}
        for field in fields(self):
            if field.default is not MISSING and values.get(field.name) == field.default:
                del values[field.name]
        return values

    @property
    def heads(self) -> TaskHeads:
        """Where the frozen heads come from."""
        return parse_head(self.head)

    def load_tower(self, remat: bool = False) -> tuple[Backbone, PyTree]:
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
        source = get_source(self.source, None if self.data is None else Path(self.data))
        return tuple(
            load_task(
                source,
                name,
                self.image_size,
                cache_dir,
                fit=self.fit,
                resample=self.resample,
                validation_fraction=self.validation_fraction,
                seed=self.seed,
            )
            for name in validate_tasks(names, source.tasks())
        )

    def require_same_weights(self) -> None:
        """Check that the model's weights are those that the users were fine-tuned from.

        **Raises:** `InputError` if they are not.
        """
        directory = local_directory(self.model)
        if weights_hash(directory) != self.model_hash:
            raise InputError(
                f"{directory}: not the weights that the run was fine-tuned from; put those back, "
                "or run `rmtllmf finetune` again."
            )

    def require_same_tower(self, backbone: Backbone) -> None:
        """Check that configuration and image processor are those that the users were trained with.

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

    @classmethod
    def of(cls, content: dict[str, Any]) -> UserRecord:
        """Return the record of its JSON.

        **Raises:** `TypeError` if it is none.
        """
        return cls(**content | {"labels": tuple(content.get("labels", ()))})

    def hashes(self, run: Path) -> dict[str, str]:
        """Return the checksums of head and fine-tuned model, computed where none are stored."""
        return {
            "head": self.head_sha256 or file_hash(run / self.head),
            "finetuned": self.finetuned_sha256 or file_hash(run / self.finetuned),
        }


def load_manifest(run: Path) -> tuple[RunConfig, dict[str, UserRecord]]:
    """Return the configuration and users that `train_users` finished in a run folder.

    **Raises:** `InputError` if there are none, or the manifest cannot be used.
    """
    path = run / MANIFEST
    if not path.exists():
        raise InputError(f"{path}: no such file; run `rmtllmf finetune --out {run}` first.")
    try:
        content = read_json(path)
        users = {task: UserRecord.of(record) for task, record in content["users"].items()}
        setting = dict(content["setting"])
        if (shots := setting.pop("head_shots", None)) is not None:  # a setting of its own before
            setting["head"] = head_text(Lda(shots))
        return RunConfig(**setting), users
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a manifest of this version ({error}).") from error


def write_manifest(run: Path, setting: RunConfig, new: dict[str, UserRecord]) -> None:
    """Add records to the manifest; a different setting starts a new one."""
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


def configure(
    model: str,
    *,
    data: Path | None = None,
    source: str = "folder",
    head: str | None = None,
    prompts: str = "ensemble",
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
    processor = read_processor(directory, config.kind)
    tower = describe_backbone(directory, config, image_size, normalised=normalise)
    here = Path(model).expanduser()
    return RunConfig(
        # Absolute paths: valid from every folder.
        model=str(here.absolute()) if here.is_dir() else model,
        model_hash=weights_hash(directory),
        data=None if data is None else str(data.expanduser().absolute()),
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
        tower=tower.fingerprint,
    )


def compute_dtype(name: str) -> str:
    """Return the compute type of the image tower on the devices found.

    **Raises:** `InputError` for an unknown name.
    """
    if require_known("--dtype", name, (*DTYPES, "auto")) != "auto":
        return name
    import jax

    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _statistics_before(directory: Path) -> tuple[tuple[float, ...], ...]:
    """Return mean and std as older versions read them: no rescaling, one file only."""
    default = default_processor(read_config(config_file(directory)).kind)
    path = directory / PLAIN
    said = read_json(path) if path.exists() else {}
    mean, std = said.get("image_mean", default.mean), said.get("image_std", default.std)
    return tuple(mean), tuple(std)
