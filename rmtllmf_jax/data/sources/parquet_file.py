"""One parquet file of images: its columns, its class names and its rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.source import Example
from rmtllmf_jax.data.sources.class_names import hub_class_names, hub_features
from rmtllmf_jax.data.tasks import TASK_NAMES

_BATCH_ROWS = 64


@dataclass(frozen=True)
class Columns:
    """The names of the columns that hold images and labels."""

    image: str = "image"
    label: str = "label"


def rows_in(path: Path) -> int:
    """Return the number of rows; reads the file's footer only."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def columns_in(path: Path, task: str) -> Columns:
    """Return the columns of a file: `image` and `label`, or their substitutes.

    A column with another name is looked for under its name in the task's set on the Hugging Face
    hub, then as the only column that the file's metadata declares an image or a class label.
    """
    with _opened(path) as file:
        schema = file.schema_arrow
    features = hub_features(schema.metadata)
    hub = task_facts(task).hub if task in TASK_NAMES else Columns()

    def choose(plain: str, on_hub: str, kind: str) -> str:
        noted = [name for name, feature in features.items() if feature.get("_type") == kind]
        candidates = (plain, on_hub, *(noted if len(noted) == 1 else ()))
        return next((name for name in candidates if name in schema.names), plain)

    return Columns(choose("image", hub.image, "Image"), choose("label", hub.label, "ClassLabel"))


def class_names_in(path: Path, label: str) -> tuple[str, ...] | None:
    """Return the class names that Hugging Face `datasets` recorded in a file, None without."""
    with _opened(path) as file:
        return hub_class_names(hub_features(file.schema_arrow.metadata), label)


def examples_in(path: Path, columns: Columns, start: int) -> Iterator[Example]:
    """Yield the rows from `start` on, in the order of the file; holds a few of them at a time.

    Row groups before that of `start` are not read.

    **Raises:** `InputError` that names the file (and row) if a column is missing or has the wrong
    type, if the file is truncated or otherwise unreadable, or if a value is null.
    """
    with _opened(path) as file:
        group, row = 0, 0
        while group < file.num_row_groups and row + _group_rows(file, group) <= start:
            row += _group_rows(file, group)
            group += 1
        groups = list(range(group, file.num_row_groups))
        for images, labels, names in _batches(path, file, columns, groups):
            if row + len(images) <= start:
                row += len(images)
                continue
            for image, label, name in zip(images, labels, names, strict=True):
                if row >= start:
                    origin = f"{path}: row {row}" + (f" (id {name!r})" if name is not None else "")
                    if image is None:
                        raise InputError(f"{origin}: column {columns.image!r} holds no bytes.")
                    if label is None:
                        raise InputError(f"{origin}: column {columns.label!r} is null.")
                    yield Example(image, label, origin)
                row += 1


def _group_rows(file: Any, group: int) -> int:
    return int(file.metadata.row_group(group).num_rows)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors about a file's content into an `InputError`."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}).") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with reading(path):
        file = pq.ParquetFile(path)
    with file:
        yield file


def _batches(
    path: Path, file: Any, columns: Columns, groups: list[int]
) -> Iterator[tuple[list[Any], list[Any], list[Any]]]:
    """Yield the images, labels and names (None where there are none) of some rows at a time."""
    schema = file.schema_arrow
    for column in (columns.image, columns.label):
        if column not in schema.names:
            raise InputError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}.")
    kind = schema.field(columns.image).type
    in_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    content = kind.field("bytes").type if in_struct else kind
    if not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
        raise InputError(f"{path}: column {columns.image!r} must hold bytes, got {kind}.")
    if not pa.types.is_integer(schema.field(columns.label).type):
        got = schema.field(columns.label).type
        raise InputError(f"{path}: column {columns.label!r} must hold integers, got {got}.")

    wanted = [name for name in (columns.image, columns.label, "id") if name in schema.names]
    batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=wanted)
    while True:
        with reading(path):
            batch = next(batches, None)
            if batch is None:
                return
            image = batch.column(columns.image)
            names: list[Any] = [None] * len(batch)
            if "id" in wanted:
                names = batch.column("id").to_pylist()
            elif in_struct and kind.get_field_index("path") >= 0:
                names = pc.struct_field(image, "path").to_pylist()
            encoded = (pc.struct_field(image, "bytes") if in_struct else image).to_pylist()
            labels = batch.column(columns.label).to_pylist()
        yield encoded, labels, names
