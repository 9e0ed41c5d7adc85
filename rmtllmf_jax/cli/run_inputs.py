"""What a run folder's sweep starts from: its users, then their models and images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmtllmf_jax.sweep.inputs import SweepInputs
    from rmtllmf_jax.training.users import Setting, UserRecord

    Records = dict[str, UserRecord]


def read_users(run: Path, tasks: tuple[str, ...]) -> tuple[Setting, Records, tuple[str, ...]]:
    """Return setting and records of a run folder, and the names of the tasks, sorted.

    **Arguments:**

    - `tasks`: names; none is all that were fine-tuned.

    **Raises:** `InputError` if the folder has no users, or a task is unknown or named twice.
    """
    from rmtllmf_jax.data.tasks import validate_tasks
    from rmtllmf_jax.training.users import load_manifest

    setting, records = load_manifest(run)
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

    **Raises:** `InputError` if the pretrained weights are others than the run was made with, or
    that names a missing or damaged file.
    """
    from rmtllmf_jax.cli.finetune import load_tasks, load_tower, require_same_weights
    from rmtllmf_jax.sweep.inputs import load_inputs

    require_same_weights(setting)
    backbone, base = load_tower(setting, remat)
    data = load_tasks(setting, names, cache_dir)
    return load_inputs(run, backbone, base, data, records, setting.key())
