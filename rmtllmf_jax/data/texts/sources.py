"""Where texts come from: plain files, JSON lines, parquet files, the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from rmtllmf_jax.common.errors import InputError, first_line
from rmtllmf_jax.common.files import content_hash, file_hash


@dataclass(frozen=True, slots=True)
class Document:
    """A text; `origin` names file and row in error messages."""

    text: str
    origin: str
    given: int = 0
    """Letters at the beginning that are given, such as a question: no loss is counted on them."""
    ends: bool = False
    """Whether the tokenizer's end token follows, which a model learns to say."""


@runtime_checkable
class Texts(Protocol):
    """Texts in a fixed order. Both methods raise `InputError` for what cannot be read."""

    def fingerprint(self) -> str:
        """Return a hash of the content, and of how texts are made from it."""
        ...

    def documents(self) -> Iterator[Document]:
        """Yield the texts one by one, including empty ones."""
        ...


@dataclass(frozen=True)
class TextFile:
    """A plain UTF-8 file, which is one text."""

    path: Path

    def fingerprint(self) -> str:
        """Return a hash of the file."""
        return content_hash({"text": _hash(self.path)})

    def documents(self) -> Iterator[Document]:
        """Yield the file's text, with its original line endings."""
        try:
            text = self.path.read_bytes().decode()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror}).") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: not UTF-8 ({error}).") from error
        yield Document(text, str(self.path))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of named fields; a template makes one text from each.

    A template names fields in braces, ``"Question: {question}\\nAnswer: {answer}"``; literal braces
    are doubled.
    """

    template: str = "{text}"
    """What is learnt and scored."""
    prompt: str = ""
    """What is given before it, in the same text; no loss is counted on it."""

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if not fields_of(self.template):
            raise InputError(f"template {self.template!r}: names no field, such as {{text}}.")
        fields_of(self.prompt)

    def fingerprint(self) -> str:
        """Return a hash of the rows and the templates."""
        return content_hash([self.kind, self.content(), self.template, self.prompt])

    def documents(self) -> Iterator[Document]:
        """Yield a text per row."""
        for origin, row in self.rows():
            given = filled(self.prompt, row, origin)
            text = filled(self.template, row, origin)
            yield Document(given + text if text else "", origin, len(given), ends=True)

    def content(self) -> str:
        """Return a hash of the rows."""
        raise NotImplementedError

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield every row's fields, with the name of the row for messages."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class JsonLines(Rows):
    """A file with one JSON object per line; blank lines are skipped."""

    path: Path
    kind: ClassVar[str] = "jsonl"

    def content(self) -> str:
        """Return a hash of the file."""
        return _hash(self.path)

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the objects."""
        for number, line in enumerate(next(TextFile(self.path).documents()).text.split("\n"), 1):
            if not line.strip():
                continue
            origin = f"{self.path}: line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{origin}: not JSON ({error}).") from error
            if not isinstance(row, dict):
                raise InputError(f"{origin}: expected a JSON object, got {line[:40]!r}.")
            yield origin, row


@dataclass(frozen=True, kw_only=True)
class ParquetTexts(Rows):
    """A parquet file with columns of texts."""

    path: Path
    kind: ClassVar[str] = "parquet"

    def content(self) -> str:
        """Return a hash of the file."""
        return _hash(self.path)

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows, with the columns that the templates name and all others."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches():
                    for row in batch.to_pylist():
                        yield f"{self.path}: row {number}", row
                        number += 1
        except (pa.ArrowException, OSError) as error:
            text = f"{self.path}: cannot be read as parquet ({first_line(error)})."
            raise InputError(text) from error


@dataclass(frozen=True, kw_only=True)
class HubTexts(Rows):
    """A split of a data set of the Hugging Face hub, through `datasets` (extra `hub`)."""

    id: str
    split: str
    config: str | None = None
    revision: str | None = None
    kind: ClassVar[str] = "hub"

    def content(self) -> str:
        """Return a hash of the rows' texts, which depends on nothing else."""
        digest = hashlib.sha256()
        for document in self.documents():
            digest.update(f"{document.given} {len(document.text)} {document.text}".encode())
        return digest.hexdigest()

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the rows."""
        for number, row in enumerate(self._loaded()):
            yield f"{self.id}: {self.split} row {number}", row

    def _loaded(self) -> Any:
        from rmtllmf_jax.data.sources.hub import load_rows

        return load_rows(self.id, self.config, self.split, self.revision)


def text_source(path: Path, *, template: str = "{text}", prompt: str = "") -> Texts:
    """Return the source for a file's extension: .txt, .jsonl or .parquet.

    **Raises:** `InputError` for another extension, or for templates with a .txt file.
    """
    kinds = {".jsonl": JsonLines, ".parquet": ParquetTexts}
    if path.suffix in kinds:
        return kinds[path.suffix](path=path, template=template, prompt=prompt)
    if path.suffix != ".txt":
        raise InputError(f"{path}: expected a file that ends in .txt, .jsonl or .parquet.")
    if (template, prompt) != ("{text}", ""):
        raise InputError(f"{path}: a plain text has no fields; leave out template and prompt.")
    return TextFile(path)


def fields_of(template: str) -> tuple[str, ...]:
    """Return the fields that a template names.

    **Raises:** `InputError` if its braces do not match, or hold anything but a name.

    >>> fields_of("Question: {question}")
    ('question',)
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"template {template!r}: {error}; double braces that are none.") from error
    names = [name for _, name, form, how in parts if name is not None]
    if any(form or how for _, _, form, how in parts) or not all(map(str.isidentifier, names)):
        raise InputError(
            f"template {template!r}: braces must hold the name of a field each; double others."
        )
    return tuple(names)


def filled(template: str, row: Mapping[str, Any], origin: str) -> str:
    """Return a template filled with a row's fields.

    **Raises:** `InputError` that names the row and the field that is missing or holds no text.
    """
    values = {}
    for name in fields_of(template):
        if name not in row:
            raise InputError(f"{origin}: no field {name!r}; it has {', '.join(row) or 'none'}.")
        value = row[name]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError(f"{origin}: field {name!r} must hold a text, got {value!r:.60}.")
        values[name] = value
    return template.format_map(values)


def _hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
