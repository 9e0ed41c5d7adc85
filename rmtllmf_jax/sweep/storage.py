"""A flat folder of whole files, on a disk or in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.credentials import without_credentials
from rmtllmf_jax.common.errors import InputError, first_line
from rmtllmf_jax.common.extras import MissingExtra, needed_by
from rmtllmf_jax.common.files import write_bytes


class Folder:
    """A folder of this machine's file system; it appears with its first file.

    All methods raise an `InputError` that names the folder if they fail.
    """

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path

    def names(self) -> list[str] | None:
        """Return the names of the files in order; None if there is no such folder."""
        with _failing(self.name, "read", OSError):
            try:
                return sorted(os.listdir(self._path))
            except FileNotFoundError:
                return None

    def read(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the content of files, in the order of `names`."""
        for name in names:
            with _failing(f"{self.name}/{name}", "read", OSError):
                data = (self._path / name).read_bytes()
            yield data

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically: it does not exist before this returns, and then is stored."""
        with _failing(self.name, "written", OSError):
            write_bytes(self._path / name, data)


class Bucket:
    """Like `Folder`, for an object store through an fsspec file system; a file is one object."""

    def __init__(self, url: str, system: Any, root: str) -> None:
        self.name = without_credentials(url)
        self._system, self._root = system, root.rstrip("/")

    # Every fsspec file system has exceptions of its own, some of them no OSError.

    def names(self) -> list[str] | None:
        """Return the names as the store currently lists them."""
        with _failing(self.name, "read", Exception):
            self._system.invalidate_cache(self._root)
            try:
                paths = self._system.ls(self._root, detail=False)
            except FileNotFoundError:
                return None
            return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def read(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the content of objects, which are fetched in parallel."""
        paths = [f"{self._root}/{name}" for name in names]
        with _failing(self.name, "read", Exception):
            found = self._system.cat_ranges(paths, None, None, on_error="raise")
        yield from found

    def write(self, name: str, data: bytes) -> None:
        """Put one object."""
        with _failing(self.name, "written", Exception):
            self._system.pipe_file(f"{self._root}/{name}", data)


Storage = Folder | Bucket


def get_storage(folder: str | os.PathLike[str]) -> Storage:
    """Return the storage at a path, or at a URL (`gs://...`, `s3://...`) that fsspec supports.

    **Raises:** `MissingExtra` if the package for a kind of URL is not installed; `InputError` if
    it belongs to no extra, or fsspec does not know the kind.
    """
    if "://" not in (url := os.fspath(folder)):
        return Folder(Path(url))

    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    try:
        with needed_by(url):
            system, root = url_to_fs(url)
    except MissingExtra:
        raise
    except ImportError as error:
        raise InputError(
            f"{url}: needs a package that is not installed ({first_line(error)}). Install it, or "
            "name a local folder."
        ) from error
    except ValueError as error:
        raise InputError(
            f"{url}: no such kind of storage ({first_line(error)}). Expected a local folder, or "
            "the URL of an object store such as gs://bucket/folder or s3://bucket/folder."
        ) from error
    except Exception as error:
        raise InputError(f"{url}: cannot be reached ({first_line(error)}).") from error
    return Folder(Path(root)) if isinstance(system, LocalFileSystem) else Bucket(url, system, root)


@contextmanager
def _failing(name: str, what: str, kind: type[Exception]) -> Iterator[None]:
    """Turn errors of a file system into an `InputError`."""
    try:
        yield
    except kind as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        reason = reason or first_line(error)
        raise InputError(f"{name}: cannot be {what} ({reason}).") from error
