"""Atomic file writes (the old file or the new one, never half of one), locks, content hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from rmtllmf_jax.common.errors import InputError

_NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_log = logging.getLogger(__name__)

STEP = 2**16
"""Bytes that are written at a time."""


def require_absent(out: Path) -> None:
    """Check that nothing is at a path.

    **Raises:** `InputError` if something is.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists already; name a new folder, or remove this one.")


def sync(path: Path) -> None:
    """Block until a file, or a folder's list of names, has reached the disk.

    Some network file systems cannot sync a folder; this is then skipped.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def lock(file: IO[bytes], *, wait: bool) -> None:
    """Lock an open file for this process; the kernel drops the lock when its holder dies.

    Where the file system has no locks a warning says so, and the file is not locked.

    **Raises:** `BlockingIOError` if another process holds the lock and `wait` is false.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        _log.warning(
            "%s: the file system has no locks (%s); see to it that no other process works there",
            *(Path(str(file.name)).parent, error.strerror),
        )


def as_os_error(error: Exception, path: Path | None = None) -> OSError | None:
    """Return the operating system's error, with the file's name; `None` if there is none.

    Libraries pass it on without the name, or as text in an error of their own.
    """
    told = re.search(r"\b(?:os error|errno|os_error_code)\W+(\d+)", str(error), re.IGNORECASE)
    number = error.errno if isinstance(error, OSError) else None
    number = number or (int(told[1]) if told else None)
    if number is None:
        return None
    named = error.filename if isinstance(error, OSError) else None
    return OSError(number, os.strerror(number), named or (None if path is None else str(path)))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed onto `path`.

    If the body raises, or the process is killed, `path` is unchanged. Whatever wrote the file, its
    permissions are those of any new file (the umask).

    **Raises:** `OSError` that names `path` if it cannot be written, as on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except InputError:
        raise
    except Exception as error:
        if (told := as_os_error(error, path)) is None:
            raise
        if told.filename == str(temporary):
            told.filename = str(path)
        raise told from error
    finally:
        with suppress(OSError):  # it is not there, or its folder cannot be written
            temporary.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def write_at(file: int, data: bytes | memoryview, place: int) -> None:
    """Write bytes into an open file, from a place on.

    In small steps: for large ones Linux looks for large pages, which cost a virtual machine five
    times as much where its host has taken the memory back.
    """
    rest = memoryview(data)
    while rest:
        done = os.pwrite(file, rest[:STEP], place)
        rest, place = rest[done:], place + done


def read_json(path: Path) -> Any:
    """Read JSON.

    **Raises:** `InputError` that names the file if it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except OSError as error:  # a folder, or not ours to read
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error}).") from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(value: Any) -> str:
    """Return a hash (16 hexadecimal digits) of a JSON-like value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
