"""A layout of a task's folder: image files anywhere in it, and lists that describe them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.reading import AS_USUAL, LABELS, Reading, names_in, names_of, numbered
from rmtllmf_jax.data.sources.images import Files, Labelled

_ENDINGS = (".csv", ".tsv", ".jsonl", ".txt")
_METADATA = ("metadata.csv", "metadata.jsonl")
_FILES = ("file_name", "filename", "file", "path", "filepath", "file_path", "image", "image_path")
_SPLITS = ("split", "subset", "partition", "set")

Row = dict[str, str]


@dataclass(frozen=True)
class ListTask(Files):
    """One task of a `DataFolder`, stored as image files and lists of them.

    A split is a separate list, `<split>.csv`, `.tsv`, `.jsonl` or `.txt`, or is given by the column
    `split` of one table. A table has a column of file names and one of labels; a line of text is a
    file name and a label, or a file name in a folder named after the label. `<split>/metadata.csv`
    (or `.jsonl`), as used by Hugging Face, is beside its images; other names are looked for beside
    the list and below `images`. Labels are class names, or numbers, which are positions in
    `classes.json` if there is one.
    """

    folder: Path
    reading: Reading = AS_USUAL

    def splits(self) -> tuple[str, ...]:
        """Return the names of the stored splits, sorted."""
        return tuple(sorted(self._lists()))

    def noted(self) -> tuple[str, ...]:
        """Return the labels of train."""
        train = self.reading.split("train", self.splits(), self.folder)
        return names_of(label for part in names_in(train) for _, label in self._rows(part))

    def images(self, split: str) -> list[Labelled]:
        """Return the image files in the order of the list, with their labels."""
        classes = self.classes()
        names = {name: label for label, name in enumerate(classes)}
        if self.listed.exists():  # which numbers may refer to
            names |= {str(label): label for label in range(len(classes)) if str(label) not in names}
        list_ = self._lists()[split]
        return [
            Labelled(path, numbered(label, names, f"{list_}: {path.name}"), self._named(path))
            for path, label in self._rows(split)
        ]

    def _named(self, path: Path) -> str:
        inside = path.is_relative_to(self.folder)
        return path.relative_to(self.folder).as_posix() if inside else path.name

    def _lists(self) -> dict[str, Path]:
        """Return the list of each split; several splits may share one table."""
        found: dict[str, Path] = {}
        inside = [path for path in sorted(self.folder.iterdir()) if path.name[0] != "."]
        tables = [path for path in inside if path.suffix in _ENDINGS and path.is_file()]
        for path in tables:
            if self.reading.knows([path.stem]):
                if path.stem in found:
                    raise InputError(f"{found[path.stem]} and {path} are one split. Keep one.")
                found[path.stem] = path
        for path in (below / name for below in inside if below.is_dir() for name in _METADATA):
            if path.is_file():
                found[path.parent.name] = path
        if found:
            return found
        split_tables = {path: self._splits_in(path) for path in tables if path.suffix != ".txt"}
        for path, names in split_tables.items():
            found |= dict.fromkeys(names, path)
        return found

    def _splits_in(self, path: Path) -> set[str]:
        try:
            rows = list(_table(path))
        except InputError:  # a file of another kind that happens to be here
            return set()
        column = _column(rows, _SPLITS, None)
        return set() if column is None else {row[column] for row in rows if row.get(column)}

    def _rows(self, split: str) -> Iterator[tuple[Path, str]]:
        path = self._lists()[split]
        if path.suffix == ".txt":
            for line in path.read_text(encoding="utf-8").splitlines():
                words = line.rsplit(maxsplit=1)
                if words:
                    label = words[1] if len(words) > 1 else Path(words[0]).parent.name
                    yield _file(path, words[0]), label
            return
        rows = list(_table(path))
        columns = {
            "image": _column(rows, _FILES, self.reading.image_column),
            "label": _column(rows, LABELS, self.reading.label_column),
        }
        for role, found in columns.items():
            if found is None:
                listed = ", ".join(rows[0]) if rows else "no row"
                raise InputError(
                    f"{path}: no column of {'file names' if role == 'image' else 'labels'}; it "
                    f"has {listed}. Name it with --{role}-column."
                )
        files, labels = (str(name) for name in columns.values())
        alone = path.stem == split or path.name in _METADATA
        column = None if alone else _column(rows, _SPLITS, None)
        for row in rows:
            if column is None or row[column] == split:
                yield _file(path, row[files]), row[labels]


def _file(list_: Path, name: str) -> Path:
    for folder in (list_.parent, list_.parent / "images"):
        if name and (folder / name).is_file():
            return folder / name
    raise InputError(f"{list_}: {name!r}: no such file next to the list or below images.")


def _column(rows: list[Row], usual: tuple[str, ...], told: str | None) -> str | None:
    """Return the given column of a table, or else the first with a usual name."""
    names = list(rows[0]) if rows else []
    if told is not None:
        return told if told in names else None
    return next((name for known in usual for name in names if name.casefold() == known), None)


def _table(path: Path) -> Iterator[Row]:
    """Yield the rows of a table with a header, or of JSON lines, as texts."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: Iterator[dict[str, Any]]
            if path.suffix == ".jsonl":
                rows = (json.loads(line) for line in file if line.strip())
            else:
                rows = iter(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
            for number, row in enumerate(rows):
                plain = {name: x for name, x in row.items() if isinstance(x, str | int)}
                if not plain:
                    raise InputError(f"{path}: row {number}: no texts and whole numbers.")
                yield {name: str(value) for name, value in plain.items()}
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable table ({error}).") from error
