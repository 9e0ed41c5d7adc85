"""What a run folder's sweep starts from: its users, then their models and images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rmtllmf_jax.models.backbone import Backbone
    from rmtllmf_jax.sweep.inputs import SweepInputs
    from rmtllmf_jax.training.users import Setting, UserRecord

    Records = dict[str, UserRecord]


def read_users(
    run: Path, tasks: tuple[str, ...], *, model: str | None = None, data: Path | None = None
) -> tuple[Setting, Records, tuple[str, ...]]:
    """Return setting and records of a run folder, and the names of the tasks, sorted.

    **Arguments:**

    - `tasks`: names; none is all that were fine-tuned.
    - `model`, `data`: where these are now, if they were moved.

    **Raises:** `InputError` if the folder has no users, or a task is unknown or named twice.
    """
    from rmtllmf_jax.data.tasks import validate_tasks
    from rmtllmf_jax.training.users import load_manifest

    setting, records = load_manifest(run)
    if model is not None:
        setting = replace(setting, model=model)
    if data is not None:
        setting = replace(setting, data=str(data.expanduser()))
    return setting, records, tuple(sorted(validate_tasks(tasks or tuple(records), records)))


def load_run(
    run: Path,
    setting: Setting,
    records: Records,
    names: tuple[str, ...],
    cache_dir: Path,
    *,
    remat: bool = False,
) -> SweepInputs:
    """Return base model, task vectors, heads and images of the users that `read_users` found.

    **Raises:** `InputError` if model or images are not where they were, if the model is another
    than the run was made with, or that names a missing or damaged file.
    """
    from rmtllmf_jax.cli.finetune import load_tasks
    from rmtllmf_jax.sweep.inputs import load_inputs

    if setting.data is not None and not Path(setting.data).exists():
        raise InputError(
            f"{setting.data}: no such folder; the run's images were there: give their new place "
            "with --data."
        )
    backbone, base = load_run_tower(setting, remat)
    data = load_tasks(setting, names, cache_dir)
    return load_inputs(run, backbone, base, data, records, setting.key())


def load_run_tower(setting: Setting, remat: bool = False) -> tuple[Backbone, PyTree]:
    """Return the image tower that a run folder's users were fine-tuned from.

    **Raises:** `InputError` if the model is not where it was, or its weights, its configuration or
    what its image processor says are others than those that the run was made with.
    """
    from rmtllmf_jax.cli.finetune import load_tower
    from rmtllmf_jax.models.checkpoint import weights_hash
    from rmtllmf_jax.models.hub import local_directory

    try:
        directory = local_directory(setting.model)
    except InputError as error:
        raise InputError(f"{error} If it was moved, give its new place with --model.") from error
    if weights_hash(directory) != setting.model_hash:
        raise InputError(
            f"{directory}: not the weights that the run was fine-tuned from; put those back, or "
            "run `rmtllmf finetune` again."
        )
    backbone, base = load_tower(setting, remat)
    if setting.tower:
        same = setting.tower == backbone.fingerprint
    else:  # a run from before there was a hash of it
        same = not setting.normalise or _statistics_before(directory) == (
            backbone.mean,
            backbone.std,
        )
    if not same:
        raise InputError(
            f"{directory}: its configuration or its image processor says, or is understood, "
            "otherwise than when the run was fine-tuned from it; put the files back, or run "
            "`rmtllmf finetune` again."
        )
    return backbone, base


def _statistics_before(directory: Path) -> tuple[tuple[float, ...], ...]:
    """Return the mean and std that were read before rescaling and the other file counted."""
    from rmtllmf_jax.models.configs import read_config
    from rmtllmf_jax.models.processor import PLAIN, default_processor

    default = default_processor(read_config(directory / "config.json").kind)
    path = directory / PLAIN
    said = read_json(path) if path.exists() else {}
    mean, std = said.get("image_mean", default.mean), said.get("image_std", default.std)
    return tuple(mean), tuple(std)
