"""Files with one row per image, parquet or Arrow: the meaning of their columns, and their rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.reading import Column, Kind, Reading, names_in, names_of, numbered
from rmtllmf_jax.data.source import Example
from rmtllmf_jax.data.sources.contents import file_hashes, read_class_names
from rmtllmf_jax.data.tasks import REGISTERED

_BATCH_ROWS = 64


class TableTask:
    """One task, stored as files with one row per image; a layout says which files form a split.

    A file has a column of images (files' bytes, the struct `{bytes, path}` of Hugging Face
    `datasets`, or pixels as nested lists of uint8 or uint16, as in its `Array2D`) and one of
    labels: numbers from 0, class names, or other whole numbers, which are then the names;
    optionally `id` (string), for messages.
    """

    folder: Path
    reading: Reading

    @property
    def place(self) -> Path:
        """The folder."""
        return self.folder

    def splits(self) -> tuple[str, ...]:
        """Return the names of the stored splits, sorted; none if there is no such layout."""
        raise NotImplementedError

    def files(self, split: str) -> list[Path]:
        """Return the files of a split in the order of their rows; refuse incomplete sets."""
        raise NotImplementedError

    def classes(self) -> tuple[str, ...]:
        """Return the class names: from `classes.json`, from the files, or from the labels."""
        path = self.folder / "classes.json"
        if path.exists():
            return read_class_names(path)
        used, noted = self.reading.splits(self.splits(), self.folder), {}
        for split in dict.fromkeys(part for text in used.values() for part in names_in(text)):
            file = self.files(split)[0]
            with opened(file) as table:
                noted[file] = table.names(table.columns(self.reading)[1])
        if len(set(noted.values())) > 1:
            listed = " and ".join(map(str, noted))
            raise InputError(f"{listed} note different class names. Write a {path}.")
        names = next(iter(noted.values()), None)
        return names or self._by_their_labels(used.get("train", "train"))

    def _by_their_labels(self, train: str) -> tuple[str, ...]:
        values: set[Any] = set()
        for file in (file for split in names_in(train) for file in self.files(split)):
            with opened(file) as table:
                column = table.columns(self.reading)[1]
                numbers = table.there[column].kind == "numbers"
                if numbers and self.folder.name in REGISTERED:
                    raise InputError(
                        f"{self.folder / 'classes.json'}: no such file, and the files note no "
                        "class names, without which it cannot be checked what a label means."
                    )
                values |= set(table.values(column))
        return names_of(values)

    def size(self, split: str) -> int:
        """Return the number of rows of a split, without reading them."""
        rows = 0
        for path in self.files(split):
            with opened(path) as table:
                rows += table.rows
        return rows

    def fingerprint(self, split: str) -> str:
        """Return the SHA-256 of the file, or a hash of those of several, and of given columns."""
        paths = self.files(split)
        with reading(paths[0].parent if len(paths) > 1 else paths[0]):
            hashes = file_hashes(paths, f"hashing {self.folder.name} {split}")
        if told := self.reading.columns_given:
            return content_hash({"shards": hashes, "columns": told})
        return hashes[0] if len(hashes) == 1 else content_hash({"shards": hashes})

    def examples(self, split: str) -> Iterator[Example]:
        """Yield the rows in the order of the files; holds a few of them at a time."""
        names = None
        for path in self.files(split):
            with opened(path) as table:
                image_column, label_column = table.columns(self.reading)
                pixels = pixel_type(table.schema.field(image_column).type)
                if names is None and not self._are_labels(table, label_column):
                    names = {name: label for label, name in enumerate(self.classes())}
                for row, (image, label, name) in enumerate(table.read(image_column, label_column)):
                    origin = f"{path}: row {row}" + (f" (id {name!r})" if name is not None else "")
                    if image is None:
                        raise InputError(f"{origin}: column {image_column!r} holds no bytes.")
                    if label is None:
                        raise InputError(f"{origin}: column {label_column!r} is null.")
                    if names is not None or isinstance(label, str):
                        label = numbered(label, names or {}, origin)
                    yield Example(as_image(image, pixels, origin), label, origin)

    def _are_labels(self, table: Table, column: str) -> bool:
        """Return whether a column holds indices of classes, not their names."""
        kind = table.there[column].kind
        known = self.folder.name in REGISTERED or (self.folder / "classes.json").exists()
        return kind == "classes" or (kind == "numbers" and known)


class Table:
    """An open file of parquet, or of Arrow as `save_to_disk` writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.suffix == ".parquet":
            self._parquet: pq.ParquetFile | None = pq.ParquetFile(path)
            self.schema = self._parquet.schema_arrow
        else:
            self._parquet = None
            self._memory = pa.memory_map(str(path))
            self.schema = pa.ipc.open_stream(self._memory).schema

    def close(self) -> None:
        """Close the file."""
        (self._memory if self._parquet is None else self._parquet).close()

    @property
    def rows(self) -> int:
        """Number of rows."""
        if self._parquet is not None:
            return int(self._parquet.metadata.num_rows)
        with reading(self.path):
            return sum(batch.num_rows for batch in self._stored([]))

    @cached_property
    def features(self) -> dict[str, dict[str, Any]]:
        """The features that Hugging Face `datasets` noted in the file's metadata, or none."""
        try:
            found = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
            return {name: kind for name, kind in found.items() if isinstance(kind, dict)}
        except (LookupError, TypeError, ValueError, AttributeError):
            return {}

    @cached_property
    def there(self) -> dict[str, Column]:
        """The columns and their content."""
        return {field.name: Column(self._kind(field), field.type) for field in self.schema}

    def _kind(self, field: pa.Field) -> Kind:
        content = field.type
        in_struct = pa.types.is_struct(content) and content.get_field_index("bytes") >= 0
        content = content.field("bytes").type if in_struct else content
        is_file = pa.types.is_binary(content) or pa.types.is_large_binary(content)
        if is_file or pixel_type(content) is not None:
            return "images"
        if pa.types.is_integer(content) or pa.types.is_boolean(content):
            return "numbers" if self.names(field.name) is None else "classes"
        return "texts" if pa.types.is_string(content) else "other"

    def names(self, column: str) -> tuple[str, ...] | None:
        """Return the class names of a `ClassLabel` column, None for another column."""
        names = self.features.get(column, {}).get("names")
        if isinstance(names, dict):  # written by early versions as {"0": name, ...}
            names = [names.get(str(index)) for index in range(len(names))]
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            return None
        return tuple(names)

    def columns(self, told: Reading) -> tuple[str, str]:
        """Return the names of the columns of images and labels."""
        return told.columns(self.there, self.path)

    def values(self, column: str) -> Iterator[Any]:
        """Yield the values of one column."""
        for batch in self._batches([column]):
            yield from batch.column(column).to_pylist()

    def read(
        self, image: str, label: str
    ) -> Iterator[tuple[bytes | list[Any] | None, int | str | None, str | None]]:
        """Yield the image (pixels as lists), label and name (if there is one) of each row."""
        kind = self.schema.field(image).type
        in_struct = pa.types.is_struct(kind)
        wanted = [name for name in (image, label, "id") if name in self.schema.names]
        for batch in self._batches(list(dict.fromkeys(wanted))):
            with reading(self.path):
                stored = batch.column(image)
                names: list[Any] = [None] * len(batch)
                if "id" in wanted:
                    names = batch.column("id").to_pylist()
                elif in_struct and kind.get_field_index("path") >= 0:
                    names = pc.struct_field(stored, "path").to_pylist()
                stored = stored.storage if isinstance(stored, pa.ExtensionArray) else stored
                encoded = (pc.struct_field(stored, "bytes") if in_struct else stored).to_pylist()
                labels = batch.column(label).to_pylist()
            yield from zip(encoded, labels, names, strict=True)

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        batches = self._stored(columns)
        while True:
            with reading(self.path):
                batch = next(batches, None)
            if batch is None:
                return
            for start in range(0, batch.num_rows, _BATCH_ROWS):  # Arrow's are of a thousand rows
                yield batch.slice(start, _BATCH_ROWS)

    def _stored(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if self._parquet is not None:
            yield from self._parquet.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
        else:
            self._memory.seek(0)
            for batch in pa.ipc.open_stream(self._memory):
                yield batch.select(columns)


def pixel_type(content: pa.DataType) -> Any:
    """Return the type of pixels in a column of nested lists, (h, w) or (h, w, c), or `None`."""
    depth = 0
    content = content.storage_type if isinstance(content, pa.ExtensionType) else content
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    while any(is_list(content) for is_list in lists):
        content, depth = content.value_type, depth + 1
    kinds = {pa.uint8(): np.uint8, pa.uint16(): np.uint16}
    return kinds.get(content) if depth in (2, 3) else None


def as_image(stored: bytes | list[Any], pixels: Any, origin: str) -> bytes | np.ndarray:
    """Return an image file's bytes unchanged, and nested lists as an array of the type `pixels`.

    **Raises:** `InputError` that begins with `origin` if rows differ in length, or lack pixels.
    """
    if isinstance(stored, bytes):
        return stored
    try:
        return np.array(stored, pixels)
    except (ValueError, TypeError) as error:
        raise InputError(f"{origin}: its rows of pixels are no image ({error}).") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors about a file's content into an `InputError`."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        kind = "parquet" if path.suffix in ("", ".parquet") else "Arrow"
        raise InputError(f"{path}: not a readable {kind} file ({error}).") from error


@contextmanager
def opened(path: Path) -> Iterator[Table]:
    """Open a file for the duration of the block.

    **Raises:** `InputError` that names it if it is not readable.
    """
    with reading(path):
        table = Table(path)
    try:
        yield table
    finally:
        table.close()
