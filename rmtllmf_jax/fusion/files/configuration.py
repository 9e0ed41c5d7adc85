"""What config.json says of a checkpoint."""

from __future__ import annotations

from typing import Any

from rmtllmf_jax.common.files import read_json
from rmtllmf_jax.fusion.files.checkpoint import Checkpoint

CONFIG = "config.json"


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint's configuration as it stands in the file; empty if there is none.

    **Raises:** `InputError` if it is no JSON.
    """
    folder = checkpoint.directory
    if folder is None or not (folder / CONFIG).is_file():
        return {}
    config = read_json(folder / CONFIG)
    return config if isinstance(config, dict) else {}


def full_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the defaults and names of transformers as it is installed.

    What this transformers does not know is returned as it is.
    """
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        return config
    try:
        return dict(CONFIG_MAPPING[kind].from_dict(config).to_dict())
    except (TypeError, ValueError, KeyError, AttributeError):  # from a version with other fields
        return config


def is_tied(checkpoint: Checkpoint) -> bool:
    """Return whether input and output embeddings are one tensor, by the configuration."""
    config = config_of(checkpoint)
    said = _tie(config)
    if said is None and config:
        said = _tie(full_config(config))
    return bool(said)


def _tie(config: dict[str, Any]) -> bool | None:
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        if isinstance(said := part.get("tie_word_embeddings"), bool):
            return said
    return None
