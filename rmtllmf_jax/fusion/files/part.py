"""The folder that an output is written in: beside its place, so that one rename finishes it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json, sync, write_json
from rmtllmf_jax.fusion.files.shards import Shard

_MANIFEST = "manifest.json"
_MODEL = "model"
_NOTES = "notes.json"


def part_folder(out: Path) -> Path:
    """Return the folder in which `out` is made."""
    return out.with_name(f".{out.name}.part")


def require_absent(out: Path) -> None:
    """Check that nothing is at `out`.

    **Raises:** `InputError` if something is.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists already; name a new folder, or remove this one.")


class Part:
    """An output in the making.

    The manifest says what the finished shards were made from. If it is not what is asked for now,
    they are removed and made again. One process at a time.
    """

    def __init__(self, out: Path, manifest: dict[str, Any]) -> None:
        """Open or make the folder.

        **Raises:** `InputError` if the folder holds what this program did not write.
        """
        self.out = out
        self.root = part_folder(out)
        self.folder = self.root / _MODEL
        """What becomes `out`."""
        known = self.root / _MANIFEST
        if self.folder.exists() and not known.is_file():
            raise InputError(f"{self.root}: is not of rmtllmf (no {_MANIFEST}); remove it.")
        self.restarted = known.is_file() and read_json(known) != manifest
        """Whether work on other inputs or options was thrown away."""
        if self.restarted:
            shutil.rmtree(self.folder, ignore_errors=True)
            (self.root / _NOTES).unlink(missing_ok=True)
        self.root.mkdir(parents=True, exist_ok=True)
        if not known.is_file() or self.restarted:
            write_json(known, manifest)
        self.folder.mkdir(exist_ok=True)
        for unfinished in self.folder.glob(".*.part"):
            unfinished.unlink()

    def is_finished(self, shard: Shard) -> bool:
        """Return whether a shard was written whole; it has its name only then."""
        path = self.folder / shard.name
        return path.is_file() and path.stat().st_size == shard.size

    def keep_notes(self, notes: dict[str, Any]) -> None:
        """Keep results that the shards depend on, for the next start."""
        write_json(self.root / _NOTES, notes)

    def notes(self) -> dict[str, Any] | None:
        """Return what `keep_notes` kept, `None` if that was not reached."""
        path = self.root / _NOTES
        return read_json(path) if path.is_file() else None

    def tidy(self) -> None:
        """Remove the folder if there is nothing in it that would save work."""
        kept = any(self.folder.glob("*.safetensors")) or (self.root / _NOTES).is_file()
        if not kept:
            shutil.rmtree(self.root, ignore_errors=True)

    def finish(self) -> None:
        """Rename what was made to its place.

        **Raises:** `InputError` if something is there by now.
        """
        require_absent(self.out)
        sync(self.folder)
        os.rename(self.folder, self.out)
        sync(self.out.parent)
        shutil.rmtree(self.root, ignore_errors=True)


def cannot_write(out: Path, error: OSError) -> str:
    """Return the message for an output that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    what = "make room, then the same command resumes" if full else "the same command resumes"
    return (
        f"{out}: cannot be written ({error.strerror or error}); nothing is there. Finished "
        f"shards are kept in {part_folder(out)}: {what}; or remove that folder."
    )


def require_space(out: Path, needed: int) -> None:
    """Check that the disk has room for what is still to be written.

    **Raises:** `InputError` that says how much is needed and free.
    """
    there = next(folder for folder in out.resolve().parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise InputError(
            f"{out}: {needed / 1e9:.4g} GB are to be written, and the disk of {there} has "
            f"{free / 1e9:.4g} GB free; make room, or name another --out."
        )
