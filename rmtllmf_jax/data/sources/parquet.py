"""A task's folder with parquet files: `{train,test}.parquet`, or a downloaded data set's shards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.source import SPLITS, Example
from rmtllmf_jax.data.sources.contents import file_hashes, read_class_names
from rmtllmf_jax.data.tasks import TASK_NAMES

_BATCH_ROWS = 64
_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d{5,})-of-(?P<count>\d{5,})(-\w+)?\.parquet")


@dataclass(frozen=True)
class ParquetTask:
    """One task of a `DataFolder`, stored as parquet files.

    A split is `<split>.parquet`, or the shards `<split>-00000-of-0000N.parquet` of a data set that
    was downloaded from the Hugging Face hub (also below `data/` or the name of a configuration).
    A file has the columns `image` (PNG or JPEG bytes, or the struct `{bytes, path}` of Hugging Face
    datasets), `label` (integer) and, optionally, `id` (string); columns with other names are found
    as the only image or class label that the file's metadata declares. Without `classes.json` the
    class names that Hugging Face recorded in the files are used.
    """

    folder: Path

    @staticmethod
    def holds(folder: Path) -> bool:
        """Return whether a folder has any parquet file of a split, complete or not."""
        return any(_sets(folder, split) for split in SPLITS)

    def classes(self) -> tuple[str, ...]:
        """Return the class names in label order, from `classes.json` or the parquet files."""
        path = self.folder / "classes.json"
        if path.exists():
            return read_class_names(path)
        noted = {}
        for split in SPLITS:
            if _sets(self.folder, split):
                file = self._files(split)[0]
                with _opened(file) as opened:
                    noted[file] = _names_in(opened.schema_arrow, _columns(opened.schema_arrow)[1])
        if len(set(noted.values())) > 1:
            listed = " and ".join(map(str, noted))
            raise InputError(f"{listed} note different class names. Write a {path}.")
        names = next(iter(noted.values()), None)
        if names is None:
            raise InputError(f"{path}: no such file, and the parquet files note no class names.")
        return names

    def size(self, split: str) -> int:
        """Return the number of rows of a split; reads the files' footers only."""
        rows = 0
        for path in self._files(split):
            with _opened(path) as file:
                rows += int(file.metadata.num_rows)
        return rows

    def fingerprint(self, split: str) -> str:
        """Return the SHA-256 of the parquet file, or a hash of those of its shards."""
        paths = self._files(split)
        with _reading(paths[0].parent if len(paths) > 1 else paths[0]):
            hashes = file_hashes(paths, f"hashing {self.folder.name} {split}")
        return hashes[0] if len(hashes) == 1 else content_hash({"shards": hashes})

    def examples(self, split: str) -> Iterator[Example]:
        """Yield the rows in the order of the files; holds a few of them at a time."""
        for path in self._files(split):
            with _opened(path) as file:
                image_column, label_column = _columns(file.schema_arrow)
                rows = _rows(path, file, image_column, label_column)
                for row, (image, label, name) in enumerate(rows):
                    origin = f"{path}: row {row}" + (f" (id {name!r})" if name is not None else "")
                    if image is None:
                        raise InputError(f"{origin}: column {image_column!r} holds no bytes.")
                    if label is None:
                        raise InputError(f"{origin}: column {label_column!r} is null.")
                    yield Example(image, label, origin)

    def _files(self, split: str) -> list[Path]:
        """Return the files of a split in the order of their rows; refuse incomplete shards."""
        plain, sets = self.folder / f"{split}.parquet", _sets(self.folder, split)
        if not sets:
            raise InputError(f"{plain}: no such file, and no {split}-00000-of-*.parquet either.")
        name = self.folder.name
        if len(sets) > 1 and plain not in sets and name in TASK_NAMES:
            config = self.folder / (task_facts(name).hub.config or "")
            sets = {config: sets[config]} if config in sets and config != self.folder else sets
        if len(sets) > 1:
            places = [str(x) if x == plain else f"{x}/{split}-*.parquet" for x in sets]
            raise InputError(
                f"{self.folder}: split {split!r} is there more than once: {', '.join(places)}. "
                "Keep one."
            )
        ((place, files),) = sets.items()
        return files if place == plain else _complete(place, split, files)


def _sets(folder: Path, split: str) -> dict[Path, list[Path]]:
    """Return the files that each place has of a split: the plain file itself, or shards."""
    plain = folder / f"{split}.parquet"
    found = {plain: [plain]} if plain.is_file() else {}
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    for place in (folder, *inside):
        names = sorted(place.glob(f"{split}-*.parquet"))
        shards = [x for x in names if (m := _SHARD.fullmatch(x.name)) and m["split"] == split]
        found |= {place: shards} if shards else {}
    return found


def _complete(place: Path, split: str, shards: list[Path]) -> list[Path]:
    by_index: dict[int, Path] = {}
    counts: set[int] = set()
    for path in shards:
        if match := _SHARD.fullmatch(path.name):
            by_index[int(match["index"])] = path
            counts.add(int(match["count"]))
    if len(counts) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise InputError(f"{place}: split {split!r} mixes sets of {listed} shards. Keep one.")
    (count,) = counts
    missing = [index for index in range(count) if index not in by_index]
    if missing:
        names = ", ".join(f"{split}-{index:05d}-of-{count:05d}.parquet" for index in missing[:8])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise InputError(
            f"{place}: {len(missing)} of {count} shards are missing: {names}{more}. "
            "Download them again."
        )
    if len(shards) > count:
        raise InputError(
            f"{place}: {len(shards)} shards of split {split!r}, {count} by their names. Keep one "
            "file of each number."
        )
    return [by_index[index] for index in range(count)]


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the features that Hugging Face `datasets` recorded in a file's metadata, or none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def _columns(schema: pa.Schema) -> tuple[str, str]:
    """Return the names of the columns of images and labels."""
    features = _features(schema)

    def choose(plain: str, kind: str) -> str:
        noted = [name for name, feature in features.items() if feature.get("_type") == kind]
        only = len(noted) == 1 and plain not in schema.names and noted[0] in schema.names
        return noted[0] if only else plain

    return choose("image", "Image"), choose("label", "ClassLabel")


def _names_in(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Return the class names of a `ClassLabel` column, None for another column."""
    names = _features(schema).get(label, {}).get("names")
    if isinstance(names, dict):  # written by early versions as {"0": name, ...}
        names = [names.get(str(index)) for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        return None
    return tuple(names)


def _rows(
    path: Path, file: pq.ParquetFile, image: str, label: str
) -> Iterator[tuple[bytes | None, int | None, str | None]]:
    """Yield the image, label and name (where there is one) of each row."""
    schema = file.schema_arrow
    for column in (image, label):
        if column not in schema.names:
            raise InputError(f"{path}: no column {column!r}; it has {', '.join(schema.names)}.")
    kind, labels = schema.field(image).type, schema.field(label).type
    in_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    content = kind.field("bytes").type if in_struct else kind
    if not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
        raise InputError(f"{path}: column {image!r} must hold bytes, got {kind}.")
    if not pa.types.is_integer(labels):
        raise InputError(f"{path}: column {label!r} must hold integers, got {labels}.")
    wanted = [name for name in (image, label, "id") if name in schema.names]
    batches = file.iter_batches(batch_size=_BATCH_ROWS, columns=wanted)
    while True:
        with _reading(path):
            batch = next(batches, None)
            if batch is None:
                return
            stored = batch.column(image)
            names: list[Any] = [None] * len(batch)
            if "id" in wanted:
                names = batch.column("id").to_pylist()
            elif in_struct and kind.get_field_index("path") >= 0:
                names = pc.struct_field(stored, "path").to_pylist()
            encoded = (pc.struct_field(stored, "bytes") if in_struct else stored).to_pylist()
            numbers = batch.column(label).to_pylist()
        yield from zip(encoded, numbers, names, strict=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors about a file's content into an `InputError`."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file ({error}).") from error


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    with _reading(path):
        file = pq.ParquetFile(path)
    with file:
        yield file
