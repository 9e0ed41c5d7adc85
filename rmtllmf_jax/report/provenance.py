"""The content of `run.json`, looked up by name at any depth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.credentials import without_credentials
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json

_SHOWN = (
    "command", "commit", "machine", "device", "platform", "seconds", "model", "model_hash",
    "checkpoint", "preset", "order", "error_model", "transport", "image_size", "recipe",
    "tasks", "sizes", "scenarios", "protections", "rules", "axis", "levels", "draws", "seed",
    "seeds", "scale", "scales", "kappa", "c0_db", "shots", "realign", "eval_samples",
    "validation_samples", "versions",
)  # fmt: skip


def read_configuration(run: Path) -> dict[str, Any]:
    """Read `run.json` of a run folder, without credentials in URLs; empty if there is none.

    **Raises:** `InputError` if it is not a JSON object.
    """
    path = run / "run.json"
    configuration = read_json(path) if path.exists() else {}
    if not isinstance(configuration, dict):
        raise InputError(f"{path}: expected a JSON object, got {configuration!r}.")
    shown: dict[str, Any] = json.loads(without_credentials(json.dumps(configuration)))
    return shown


def settings(run: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the value of every setting that matters to a reader."""
    for key, value in run.items():
        if key in _SHOWN:
            yield above + key, value if isinstance(value, str) else json.dumps(value)
        elif isinstance(value, Mapping):
            yield from settings(value, f"{above}{key}.")


def find(run: Mapping[str, Any], *path: str) -> Any:
    """Return the first value whose path ends with `path`, `None` if there is none.

    Keys of a level come before deeper ones.
    """
    here: Any = run
    for key in path:
        here = here.get(key) if isinstance(here, Mapping) else None
    if here is not None:
        return here
    below = (find(value, *path) for value in run.values() if isinstance(value, Mapping))
    return next((value for value in below if value is not None), None)
