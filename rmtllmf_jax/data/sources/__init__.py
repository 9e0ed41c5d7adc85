"""The sources by name, as the command line offers them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.data.reading import AS_USUAL, Reading
from rmtllmf_jax.data.registry import HubSet
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

_HUB_ID = re.compile(
    r"((?P<task>\w[\w.-]*)=)?(?P<id>\w[\w.-]*/[\w.-]+)(@(?P<revision>[^:]+))?(:(?P<config>.+))?"
)
_FOLDERS = {"folder": "parquet or image files", "arrays": "<task>.npz files"}


def get_source(name: str, data: str | Path | None = None, reading: Reading = AS_USUAL) -> Source:
    """Return a source by its name.

    **Arguments:**

    - `data`: for `folder` and `arrays` the folder; for `hub` a data set, `owner/name`,
      `owner/name@revision:config` or `task=owner/name`, or, as for `tfds`, a folder that replaces
      those where `datasets` and TFDS keep their files; `embedded` takes none.
    - `reading`: the set's names for its columns and splits, if they are not recognised.

    **Raises:** `InputError` for an unknown name, or if `data` is missing for a source that needs it
    or given to one that takes none.
    """
    make = SOURCES[require_known("source", name, SOURCES)]
    if data is None:
        if name in _FOLDERS:
            raise InputError(f"source {name!r} needs --data: the folder with the {_FOLDERS[name]}.")
    elif name == "embedded":
        raise InputError(
            f"source 'embedded' draws its own images and takes no --data, got {data}. Leave --data "
            "out, or name the source of that folder: --source folder."
        )
    if name == "hub" and (found := hub_set(data, reading)) is not None:
        return HubSource(sets=found)
    if reading != AS_USUAL:
        if name not in ("folder", "tfds"):
            raise InputError(
                f"columns and splits are told of a data set (folder, tfds, or hub with --data "
                f"owner/name), not of source {name!r}{'' if name != 'hub' else ' as a whole'}."
            )
        return make(None if data is None else Path(data), reading=reading)
    return make() if data is None else make(Path(data))


def hub_set(data: str | Path | None, reading: Reading = AS_USUAL) -> dict[str, HubSet] | None:
    """Return the data set of the hub that `data` names, by its task; `None` for a folder.

    An existing folder, and anything that begins like a path, counts as a folder.
    """
    match = _HUB_ID.fullmatch("" if data is None else str(data))
    if match is None or Path(str(data)).expanduser().is_dir():
        return None
    found = HubSet(match["id"], match["config"], match["revision"], reading)
    return {match["task"] or match["id"].rpartition("/")[2]: found}
