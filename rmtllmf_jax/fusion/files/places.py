"""Where models are stored and what they are called: folders, and snapshots in a hub cache."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from rmtllmf_jax.common.errors import InputError

_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([^/]+)")


def hub_name(path: Path) -> str | None:
    """Return the name of a model in a hub cache, None for a path elsewhere.

    >>> hub_name(Path("/cache/models--owner--name/snapshots/1a2b/model.safetensors"))
    'owner/name@1a2b'
    """
    found = _CACHE.search(Path(os.path.abspath(path)).as_posix())
    return f"{found[1]}/{found[2]}@{found[3]}" if found else None


def snapshot(path: Path) -> Path:
    """Return a snapshot of a model's folder in a hub cache: that of main, or the only one."""
    if not (path / "snapshots").is_dir():
        return path
    main = path / "refs" / "main"
    known = sorted(each for each in (path / "snapshots").iterdir() if each.is_dir())
    if main.is_file():
        known = [path / "snapshots" / main.read_text().strip()]
    if len(known) != 1:
        names = ", ".join(each.name for each in known) or "none"
        raise InputError(f"{path}: cannot tell which snapshot is meant ({names}); name one.")
    return known[0]


@runtime_checkable
class Named(Protocol):
    """Something at a path."""

    @property
    def given(self) -> Path:
        """The path by which it was requested."""
        ...


def labels(checkpoints: Sequence[Named]) -> list[str]:
    """Return a short name for each: its name on the hub, or the last part of its path.

    Where these are not unique, it is the path.
    """
    paths = [checkpoint.given for checkpoint in checkpoints]
    names = [hub_name(path) or Path(os.path.abspath(path)).name for path in paths]
    return [
        name if names.count(name) == 1 else str(checkpoint.given)
        for checkpoint, name in zip(checkpoints, names, strict=True)
    ]
