"""Orbax checkpoints with checksums: training does not resume from a damaged one."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import as_os_error, file_hash, read_json, write_json

CHECKSUMS = "checksums.json"
"""File in the folder of a step: the SHA-256 of every other file, by relative path."""

_log = logging.getLogger(__name__)


class CheckedSteps(ocp.CheckpointManager):
    """Orbax's manager of the steps in a folder, with checksums.

    Damaged steps, and those that a kill -9 left without checksums, are removed at the start with a
    warning: the newest remaining one is then the latest.
    """

    def __init__(self, folder: Path, options: ocp.CheckpointManagerOptions) -> None:
        self._folder = folder.absolute()
        for step in self._folder.glob("[0-9]*"):
            if step.name.isdecimal() and (wrong := _damage(step)):
                _log.warning("%s: %s; resuming from the step before", step, wrong)
                shutil.rmtree(step)
        super().__init__(self._folder, options=options)

    def save(self, step: int, *args: Any, **kwargs: Any) -> bool:
        """Write a step, and then its checksums.

        **Raises:** `OSError` that names the folder if writing fails, for example on a full disk.
        """
        # Orbax's threads keep logging about a full disk.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(kwargs["args"].item))
        if shutil.disk_usage(self._folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        talk = logging.getLogger("absl")
        talk.disabled = True  # orbax logs the traceback of what it raises, once per thread
        try:
            saved = super().save(step, *args, **kwargs)
        except Exception as error:
            if (told := as_os_error(error, self._folder)) is None:
                raise
            raise told from error
        finally:
            talk.disabled = False
        if saved:
            folder = self._folder / str(step)
            write_json(folder / CHECKSUMS, _hashes(folder))
        return saved


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return {str(path.relative_to(folder)): file_hash(path) for path in files}


def _damage(folder: Path) -> str:
    """Say what is wrong with a step; nothing if it is as written."""
    try:
        expected, found = read_json(folder / CHECKSUMS), _hashes(folder)
    except (InputError, OSError) as error:
        return str(error).rstrip(".")
    wrong = [name for name in {*expected, *found} if expected.get(name) != found.get(name)]
    return f"{len(wrong)} files are damaged or missing ({sorted(wrong)[0]})" if wrong else ""
