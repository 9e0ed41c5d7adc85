"""The sources by name, as the command line offers them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.data.source import Source
from rmtllmf_jax.data.sources.arrays import ArraySource
from rmtllmf_jax.data.sources.embedded import EmbeddedSource
from rmtllmf_jax.data.sources.folder import DataFolder
from rmtllmf_jax.data.sources.hub import HubSource
from rmtllmf_jax.data.sources.tfds import TfdsSource

SOURCES: dict[str, Callable[..., Source]] = {
    "hub": HubSource,
    "tfds": TfdsSource,
    "folder": DataFolder,
    "arrays": ArraySource.from_npz,
    "embedded": EmbeddedSource,
}
"""Hugging Face hub, TensorFlow Datasets, parquet or image files, `.npz` files, and the small tasks
that come with the package."""

_FOLDERS = {"folder": "parquet or image files", "arrays": "<task>.npz files"}


def get_source(name: str, data: Path | None = None) -> Source:
    """Return a source by its name.

    `data` is the folder of `folder` and `arrays`; for `hub` and `tfds` it is optional and replaces
    the folders where `datasets` and TFDS keep their files; `embedded` takes none.

    **Raises:** `InputError` for an unknown name, or if `data` is missing for a source that needs it
    or given to one that takes none.
    """
    make = SOURCES[require_known("source", name, SOURCES)]
    if data is None:
        if name in _FOLDERS:
            raise InputError(f"source {name!r} needs --data: the folder with the {_FOLDERS[name]}.")
        return make()
    if name == "embedded":
        raise InputError(
            f"source 'embedded' draws its own images and takes no --data, got {data}. Leave --data "
            "out, or name the source of that folder: --source folder."
        )
    return make(data)
