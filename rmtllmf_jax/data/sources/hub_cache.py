"""Which data sets of the Hugging Face hub are on this machine already."""

from __future__ import annotations

import os
from pathlib import Path

from rmtllmf_jax.data.registry import HubSet


def in_cache(hub: HubSet, cache_dir: Path | None = None) -> bool:
    """Return whether the cache of `datasets` holds a set, prepared, so that no network is needed.

    `cache_dir` takes the place of the cache that `datasets` would use.
    """
    root = cache_dir or _default_cache()
    folder = root / hub.id.replace("/", "___")
    return any(folder.glob(f"{hub.config or '*'}/*/*/dataset_info.json"))


def _default_cache() -> Path:
    """Return the cache of `datasets`, by its own environment variables, without importing it."""
    if "HF_DATASETS_CACHE" in os.environ:
        return Path(os.environ["HF_DATASETS_CACHE"]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("HF_HOME", cache / "huggingface")).expanduser() / "datasets"
