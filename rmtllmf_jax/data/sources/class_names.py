"""Class names in label order, from `classes.json` or from what Hugging Face wrote in parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names in a JSON file: a plain list, or a list under `classes`.

    **Raises:** `InputError` that names the file if it is missing, has other content or holds a name
    twice.
    """
    content = read_json(path)
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: expected a list of class names, plain or under 'classes'.")
    for label, name in enumerate(names):
        if not isinstance(name, str):
            raise InputError(f"{path}: class {label} must be a string, got {name!r}.")
        if name in names[:label]:
            raise InputError(f"{path}: classes {names.index(name)} and {label} are both {name!r}.")
    return tuple(names)


def hub_features(metadata: dict[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """Return the features that Hugging Face `datasets` records in a parquet file's metadata.

    Empty if the file was written by something else.
    """
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (LookupError, TypeError, ValueError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: kind for name, kind in features.items() if isinstance(kind, dict)}


def hub_class_names(features: dict[str, dict[str, Any]], label: str) -> tuple[str, ...] | None:
    """Return the class names of a `ClassLabel` column, None for another column."""
    names = features.get(label, {}).get("names")
    if isinstance(names, dict):  # written by early versions as {"0": name, ...}
        names = [names.get(str(index)) for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        return None
    return tuple(names)
