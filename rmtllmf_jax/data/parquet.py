"""Parquet files as a source: `<root>/<task>/{train,test}.parquet` and `classes.json`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.files import file_hash, read_json
from rmtllmf_jax.data.source import SPLITS, Example

_BATCH_ROWS = 64


@dataclass(frozen=True)
class ParquetFolder:
    """The `Source` over a folder with one sub-folder a task.

    A parquet file has the columns `image` (PNG or JPEG bytes, or the struct `{bytes, path}` of
    Hugging Face datasets), `label` (integer) and, optionally, `id` (string). `classes.json` is a
    list of class names in label order, or an object with such a list under `classes`.

    **Raises:** every method raises `InputError` that names the file (and row) if a folder, file or
    column is missing, if a file is truncated or otherwise unreadable, or if a value is null.
    """

    root: Path

    def tasks(self) -> tuple[str, ...]:
        """Return the names of the sub-folders that hold a parquet file, sorted."""
        if not self.root.is_dir():
            raise InputError(f"{self.root}: no such folder.")
        folders = (folder for folder in self.root.iterdir() if folder.is_dir())
        names = sorted(folder.name for folder in folders if _holds_a_split(folder))
        if not names:
            raise InputError(f"{self.root}: holds no task; expected <task>/train.parquet.")
        return tuple(names)

    def classes(self, task: str) -> tuple[str, ...]:
        """Return the class names in label order, from `classes.json`."""
        path = self._folder(task) / "classes.json"
        content = read_json(path)
        names = content.get("classes") if isinstance(content, dict) else content
        if not isinstance(names, list) or not names:
            raise InputError(f"{path}: expected a list of class names, plain or under 'classes'.")
        for label, name in enumerate(names):
            if not isinstance(name, str):
                raise InputError(f"{path}: class {label} must be a string, got {name!r}.")
        return tuple(names)

    def size(self, task: str, split: str) -> int:
        """Return the number of rows of a split; reads the file's footer only."""
        with _opened(self._path(task, split)) as file:
            return int(file.metadata.num_rows)

    def fingerprint(self, task: str, split: str) -> str:
        """Return the SHA-256 of the parquet file."""
        path = self._path(task, split)
        with _reading(path):
            return file_hash(path)

    def examples(self, task: str, split: str) -> Iterator[Example]:
        """Yield the rows in the order of the file; holds a few of them at a time."""
        path = self._path(task, split)
        with _opened(path) as file:
            row = 0
            for images, labels, names in _columns(path, file):
                for image, label, name in zip(images, labels, names, strict=True):
                    origin = f"{path}: row {row}" + (f" (id {name!r})" if name is not None else "")
                    if image is None:
                        raise InputError(f"{origin}: column 'image' holds no bytes.")
                    if label is None:
                        raise InputError(f"{origin}: column 'label' is null.")
                    yield Example(image, label, origin)
                    row += 1

    def _folder(self, task: str) -> Path:
        return self.root / require_known("task", task, self.tasks())

    def _path(self, task: str, split: str) -> Path:
        path = self._folder(task) / f"{require_known('split', split, SPLITS)}.parquet"
        if not path.is_file():
            raise InputError(f"{path}: no such file.")
        return path


def _holds_a_split(folder: Path) -> bool:
    return any((folder / f"{split}.parquet").exists() for split in SPLITS)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises about a file's content into an `InputError`."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}).") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with _reading(path):
        file = pq.ParquetFile(path)
    with file:
        yield file


def _columns(path: Path, file: Any) -> Iterator[tuple[list[Any], list[Any], list[Any]]]:
    """Yield the images, labels and names (None where there are none) of some rows at a time."""
    schema = file.schema_arrow
    for column in ("image", "label"):
        if column not in schema.names:
            raise InputError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}.")
    kind = schema.field("image").type
    in_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    content = kind.field("bytes").type if in_struct else kind
    if not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
        raise InputError(f"{path}: column 'image' must hold bytes, got {kind}.")
    if not pa.types.is_integer(schema.field("label").type):
        got = schema.field("label").type
        raise InputError(f"{path}: column 'label' must hold integers, got {got}.")

    wanted = [name for name in ("image", "label", "id") if name in schema.names]
    batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted)
    while True:
        with _reading(path):
            batch = next(batches, None)
            if batch is None:
                return
            image = batch.column("image")
            names: list[Any] = [None] * len(batch)
            if "id" in wanted:
                names = batch.column("id").to_pylist()
            elif in_struct and kind.get_field_index("path") >= 0:
                names = pc.struct_field(image, "path").to_pylist()
            encoded = (pc.struct_field(image, "bytes") if in_struct else image).to_pylist()
            labels = batch.column("label").to_pylist()
        yield encoded, labels, names
