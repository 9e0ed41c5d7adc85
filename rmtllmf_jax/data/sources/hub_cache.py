"""Which data sets of the Hugging Face hub are already on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from rmtllmf_jax.data.registry import HubSet


def in_cache(hub: HubSet, cache_dir: Path | None = None) -> bool:
    """Return whether the cache of `datasets` holds a prepared set, so that no network is needed.

    `cache_dir` replaces the default cache of `datasets`.
    """
    root = cache_dir or _default_cache()
    folder = root / hub.id.replace("/", "___")
    return any(folder.glob(f"{hub.config or '*'}/*/*/dataset_info.json"))


def _default_cache() -> Path:
    """Return the default cache of `datasets` from its environment variables, without importing."""
    if "HF_DATASETS_CACHE" in os.environ:
        return Path(os.environ["HF_DATASETS_CACHE"]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("HF_HOME", cache / "huggingface")).expanduser() / "datasets"
