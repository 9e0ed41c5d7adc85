"""The manifest of a run folder: what its users share, and what each of them has."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json, write_json
from rmtllmf_jax.runs.config import RunConfig, UserRecord
from rmtllmf_jax.runs.texts import TextRunConfig, TextUserRecord
from rmtllmf_jax.training.task_heads import Lda, head_text

MANIFEST = "finetuned.json"

AnyConfig = RunConfig | TextRunConfig
AnyRecord = UserRecord | TextUserRecord

_TEXTS = "length"  # a setting that runs of texts alone have


def load_manifest(run: Path) -> tuple[AnyConfig, dict[str, AnyRecord]]:
    """Return the configuration and finished users that `train_users` left in a run folder.

    **Raises:** `InputError` if there are none, or the manifest cannot be used.
    """
    path = run / MANIFEST
    if not path.exists():
        raise InputError(f"{path}: no such file; run `rmtllmf finetune --out {run}` first.")
    try:
        content = read_json(path)
        setting = dict(content["setting"])
        texts = _TEXTS in setting
        config, record = (TextRunConfig, TextUserRecord) if texts else (RunConfig, UserRecord)
        users = {task: record.of(about) for task, about in content["users"].items()}
        if (shots := setting.pop("head_shots", None)) is not None:  # a setting of its own before
            setting["head"] = head_text(Lda(shots))
        if "templates" in setting:
            setting["templates"] = tuple(setting["templates"])
        return config(**setting), users
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a manifest of this version ({error}).") from error


def write_manifest(run: Path, setting: AnyConfig, new: dict[str, AnyRecord]) -> None:
    """Add records to the manifest; changed settings start a new one."""
    users: dict[str, AnyRecord] = {}
    if (run / MANIFEST).exists():
        before, known = load_manifest(run)
        users = known if before.key() == setting.key() else {}
    users = dict(sorted((users | new).items()))
    content = {
        "setting": asdict(setting),
        "users": {task: asdict(record) for task, record in users.items()},
    }
    write_json(run / MANIFEST, content)
