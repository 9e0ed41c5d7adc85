"""Finished work, line by line in a file that survives a kill -9."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError


class Journal:
    """An append-only file of JSON lines ``{"name": ..., "value": ...}``, fsynced line by line.

    A last line truncated by a crash is dropped when the file is opened, and its work is repeated.

    **Raises:** `InputError` that names file and line if a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = self._read()
        self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
        if self._file.tell() > whole:
            self._file.truncate(whole)

    def _read(self) -> int:
        """Read the complete lines; return their length in bytes."""
        whole = 0
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                self._values[record["name"]] = record["value"]
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise InputError(
                    f"{self.path}, line {number}: damaged ({error}). Remove the line: its work "
                    "is then done again."
                ) from error
            whole += len(line)
        return whole

    def __contains__(self, name: str) -> bool:
        """Return whether the work called `name` is finished."""
        return name in self._values

    def __getitem__(self, name: str) -> Any:
        """Return what was recorded under `name`."""
        return self._values[name]

    def add(self, name: str, value: Any) -> Any:
        """Record a value; when this returns it is on the disk."""
        line = json.dumps({"name": name, "value": value}, separators=(",", ":")) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._values[name] = value
        return value

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()
