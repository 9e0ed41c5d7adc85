"""Vocabularies: rows of embeddings that belong to the same token, whatever their IDs.

Where tokenizers differ, each token's row of the output is merged from the rows that the checkpoints
have for it. A token that the base lacks starts from the mean of the models' rows: a row that only
one model has comes from that model, whatever the method and scale.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.files import read_json, write_at
from rmtllmf_jax.fusion.files.checkpoint import FLOATS, Checkpoint, Entry
from rmtllmf_jax.fusion.files.places import labels

BASE, UNION = "base", "union"
_JSON, _LINES, _WORDS, _ADDED = "tokenizer.json", "vocab.txt", "vocab.json", "added_tokens.json"
_OPAQUE = ("*.model", "*.spm", "*.tiktoken", "bpe.codes")
_EMBEDDING = re.compile(
    r"(?:.*\.)?(?:embed_tokens|wte|word_embeddings|shared|embed_in|tok_embeddings|token_embedding)"
    r"\.weight"
)
_HEAD = re.compile(
    r"(?:.*\.)?(?:lm_head|lm_head\.decoder|embed_out|cls\.predictions|cls\.predictions\.decoder"
    r"|vocab_projector|pred_layer\.proj)\.(?:weight|bias)"
)
_SHOWN = 3

Rows = Int[np.ndarray, " tokens"]
"""For each token of the output the row of a checkpoint, or -1 if that has none."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a checkpoint's tokenizer."""

    rows: dict[str, int]
    added: dict[str, dict[str, Any]] | None = None
    """What tokenizer.json says of those that were added to the vocabulary; None without it."""


@dataclass(frozen=True)
class Tokenizer:
    """Which tokenizer an output has."""

    source: Checkpoint
    """The checkpoint whose files are copied."""
    size: int | None = None
    """Rows of the embeddings, where that is not as in the base's configuration."""
    new: tuple[dict[str, Any], ...] = ()
    """Tokens that are added to the files, as tokenizer.json has them."""


@dataclass(frozen=True, eq=False)
class Gathered(Entry):
    """A tensor with rows gathered from other tensors."""

    first: tuple[tuple[Entry, Rows], ...] = ()
    """A row is that of the first of these that has it."""
    mean: tuple[tuple[Entry, Rows], ...] = ()
    """If none has, it is the mean of these."""

    @property
    def origin(self) -> str:
        """Its source, for a manifest."""
        checks = [zlib.crc32(rows.tobytes()) for _, rows in (*self.first, *self.mean)]
        return f"{self.key} {checks}"

    def read(self, into: np.ndarray) -> np.ndarray:
        """Gather the rows into a contiguous array, and return it.

        **Raises:** as `Entry.read`.
        """
        out = into.reshape(-1).view(np.uint8).view(FLOATS[self.dtype]).reshape(self.shape)
        missing = np.ones(len(out), bool)
        for entry, rows in self.first:
            taken = missing & (rows >= 0)
            if taken.any():
                out[taken] = _values(entry)[rows[taken]]
                missing &= ~taken
        if missing.any():
            total = np.zeros((int(missing.sum()), *self.shape[1:]), np.float64)
            count = np.zeros(len(total))
            for entry, rows in self.mean:
                there = rows[missing] >= 0
                if there.any():
                    total[there] += _values(entry)[rows[missing][there]]
                    count[there] += 1
            out[missing] = total / np.maximum(count, 1).reshape(-1, *[1] * (total.ndim - 1))
        return into

    def copy(self, file: int, place: int) -> None:
        """Write the rows into an open file at an offset."""
        write_at(file, self.raw().data, place)


def _values(entry: Entry) -> np.ndarray:
    return entry.read(np.empty(entry.shape, FLOATS[entry.dtype]))


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    """Return the tokens of a checkpoint's directory; None if there is no tokenizer that lists them.

    **Raises:** `InputError` if a file does not hold what its name says.
    """
    folder = checkpoint.directory
    if folder is None:
        return None
    if (folder / _JSON).is_file():
        return _from_json(folder / _JSON)
    if (folder / _LINES).is_file():
        lines = (folder / _LINES).read_text().splitlines()
        rows = {token: row for row, token in enumerate(lines)}
    elif (folder / _WORDS).is_file():
        rows = read_json(folder / _WORDS)
    else:
        return None
    more = read_json(folder / _ADDED) if (folder / _ADDED).is_file() else {}
    return Vocabulary(rows | more)


def _from_json(path: Path) -> Vocabulary:
    content = read_json(path)
    try:
        words = content["model"]["vocab"]
        if isinstance(words, list):  # with scores
            words = {pair[0]: row for row, pair in enumerate(words)}
        added = {each["content"]: each for each in content.get("added_tokens", ())}
        rows = dict(words) | {token: int(each["id"]) for token, each in added.items()}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: not a tokenizer of the tokenizers library ({error}).") from error
    return Vocabulary(rows, added)


@dataclass(frozen=True)
class _Side:
    """A checkpoint with known tokens and rows."""

    name: str
    checkpoint: Checkpoint
    vocabulary: Vocabulary
    size: int
    """Rows of its embeddings."""

    @property
    def rows(self) -> dict[str, int]:
        return self.vocabulary.rows


@dataclass(frozen=True)
class _Target:
    """The rows of the output."""

    rows: dict[str, int]
    size: int
    new: tuple[dict[str, Any], ...] = ()

    def table(self, side: _Side) -> Rows:
        """Return a checkpoint's row for each row; rows without a token are matched by number."""
        found = np.full(self.size, -1)
        for token, row in self.rows.items():
            if row < self.size and side.rows.get(token, side.size) < side.size:
                found[row] = side.rows[token]
        of_tokens, named = set(self.rows.values()), set(side.rows.values())
        for row in range(min(self.size, side.size)):
            if row not in of_tokens and row not in named:
                found[row] = row
        return found


def fit_vocabularies(
    base: Checkpoint, others: Sequence[Checkpoint], choice: str | None
) -> tuple[Checkpoint, list[Checkpoint], Tokenizer, list[str]]:
    """Return the checkpoints with rows for the tokens of the output, its tokenizer, and notes.

    **Arguments:**

    - `others`: with their tensors under the base's names; tensors that are not merged are absent.
    - `choice`: `base`, `union`, the name of one of the others, or None where no choice is needed.

    **Raises:** `InputError` if a model has tokens that the base lacks and nothing is chosen, or if
    a union of the tokenizers cannot be written.
    """
    names = labels([base, *others])
    sides = [_side(*each) for each in zip(names, (base, *others), strict=True)]
    source = _source(choice, dict(zip(names, sides, strict=True)))
    own, *models = sides
    kept = Tokenizer(base)
    for model, other in zip(models, others, strict=True):
        _require_listed(own, model, base, other)
    known = [model for model in models if model is not None]
    if own is None or source is None:
        return base, list(others), kept, []
    if all((each.rows, each.size) == (own.rows, own.size) for each in known):
        return base, list(others), replace(kept, source=source.checkpoint), []
    if choice is None:
        _require_no_new(own, known)
    target = _union(own, known) if choice == UNION else _Target(source.rows, source.size)
    tables = [target.table(side or own) for side in sides]
    fitted = [
        _gathered(each, table, (base, tables[0]), list(zip(others, tables[1:], strict=True)))
        for each, table in zip((base, *others), tables, strict=True)
    ]
    notes = [line for each in known for line in _notes(own, each, target)]
    if source is not own:
        notes.append(f"the vocabulary is that of {source.name}: {target.size} rows")
    size = None if target.size == own.size else target.size
    return fitted[0], fitted[1:], Tokenizer(source.checkpoint, size, target.new), notes


def _side(name: str, checkpoint: Checkpoint) -> _Side | None:
    vocabulary = read_vocabulary(checkpoint)
    size = _size(checkpoint)
    return None if vocabulary is None or not size else _Side(name, checkpoint, vocabulary, size)


def _size(checkpoint: Checkpoint) -> int:
    """Return the number of rows of the embeddings, 0 if there are none."""
    found = (e.shape[0] for k, e in checkpoint.entries.items() if _EMBEDDING.fullmatch(k))
    return next(found, 0)


def _source(choice: str | None, sides: dict[str, _Side | None]) -> _Side | None:
    """Return whose tokenizer is chosen."""
    names = list(sides)
    if choice in (None, BASE, UNION):
        name = names[0]
    else:
        known = {str(each.checkpoint.given): name for name, each in sides.items() if each}
        known |= {name.partition("@")[0]: name for name in names}
        name = known.get(str(choice)) or require_known(
            "tokenizer", str(choice), (BASE, UNION, *names[1:])
        )
    if choice is not None and sides[name] is None:
        raise InputError(
            f"--tokenizer {choice}: {name} has no tokenizer that lists its tokens ({_JSON}, "
            f"{_LINES} or {_WORDS}), or no embeddings that are merged."
        )
    return sides[name]


def _require_listed(
    own: _Side | None, model: _Side | None, base: Checkpoint, other: Checkpoint
) -> None:
    """Check that rows can be matched by tokens or by number."""
    sizes = _size(base), _size(other)
    if (own is not None and model is not None) or not all(sizes):
        return
    lacks = other if model is None else base
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{other.given}: its embeddings have {sizes[1]} rows, those of {base.given} "
            f"{sizes[0]}, and {lacks.given} has no {_JSON}, {_LINES} or {_WORDS} to match their "
            "tokens by. Name a directory with one (AutoTokenizer's save_pretrained writes it), or "
            "leave the embeddings out with --from-base."
        )
    for pattern in _OPAQUE:
        files = [_files(each.directory, pattern) for each in (base, other)]
        for name in files[0].keys() & files[1].keys():
            if files[0][name].read_bytes() != files[1][name].read_bytes():
                raise InputError(
                    f"{files[1][name]}: is not that of {base.given}, and its tokens cannot be "
                    f"compared; write {_JSON} beside it (AutoTokenizer's save_pretrained does)."
                )


def _files(folder: Path | None, pattern: str) -> dict[str, Path]:
    return {} if folder is None else {path.name: path for path in folder.glob(pattern)}


def _require_no_new(own: _Side, models: Sequence[_Side]) -> None:
    lines = []
    for model in models:
        if new := [token for token in model.rows if token not in own.rows]:
            shared = len(model.rows) - len(new)
            lines.append(
                f"{model.name}: {len(new)} tokens that the base has not ({_some(new)}), "
                f"{shared} in common"
            )
    if lines:
        raise InputError(
            "the vocabularies differ:\n  "
            + "\n  ".join(lines)
            + "\n  Say which one the output has: --tokenizer union (all tokens), --tokenizer base "
            f"(without these), or a model's, such as --tokenizer {models[0].name}."
        )


def _union(own: _Side, models: Sequence[_Side]) -> _Target:
    if own.vocabulary.added is None:
        raise InputError(
            f"--tokenizer union: tokens are added in {_JSON}, which {own.checkpoint.given} lacks; "
            "AutoTokenizer's save_pretrained writes it."
        )
    rows, new = dict(own.rows), []
    taken = set(rows.values())
    for model in models:
        for token, row in sorted(model.rows.items(), key=lambda pair: pair[1]):
            if token in rows:
                continue
            told = (model.vocabulary.added or {}).get(token)
            if told is None:
                raise InputError(
                    f"--tokenizer union: {token!r} of {model.name} is a word of its vocabulary and "
                    f"not a token that was added to it in {_JSON}; a tokenizer with both cannot "
                    f"be made. Take --tokenizer base or --tokenizer {model.name}."
                )
            place = row if row not in taken else max(taken) + 1
            rows[token] = place
            taken.add(place)
            new.append(told | {"id": place})
    return _Target(rows, max(own.size, max(taken) + 1), tuple(new))


def _gathered(
    checkpoint: Checkpoint,
    table: Rows,
    base: tuple[Checkpoint, Rows],
    others: Sequence[tuple[Checkpoint, Rows]],
) -> Checkpoint:
    """Return a checkpoint with the target's rows in embeddings and heads over the vocabulary.

    A row that it lacks is that of the base, or else the mean of the others: no change.
    """
    entries = dict(checkpoint.entries)
    size = _size(checkpoint)
    for key, entry in entries.items():
        named = _EMBEDDING.fullmatch(key) or _HEAD.fullmatch(key)
        if not (named and entry.is_float() and entry.shape[0] == size):
            continue
        if len(table) == size and np.array_equal(table, np.arange(size)):
            continue
        first = [(entry, table)]
        first += [(base[0].entries[key], base[1])] if key in base[0].entries else []
        mean = [(each.entries[key], rows) for each, rows in others if key in each.entries]
        lacking = int((np.max([rows for _, rows in (*first, *mean)], axis=0) < 0).sum())
        if lacking:
            raise InputError(
                f"{checkpoint.given}: {key} has no row for {lacking} tokens of the output, as no "
                "model's is merged; leave it to be merged, or take --tokenizer base."
            )
        shape = (len(table), *entry.shape[1:])
        place = (entry.path, entry.start, prod(shape) * FLOATS[entry.dtype].itemsize)
        entries[key] = Gathered(entry.key, entry.dtype, shape, *place, tuple(first), tuple(mean))
    return replace(checkpoint, entries=entries)


def _notes(own: _Side, model: _Side, target: _Target) -> list[str]:
    """Return what happens to a model's tokens, in at most one line."""
    new = [token for token in model.rows if token not in own.rows]
    lacks = [token for token in own.rows if token not in model.rows and token in target.rows]
    moved = sum(token in own.rows and own.rows[token] != row for token, row in model.rows.items())
    spare = model.size - target.size
    added = [token for token in new if token in target.rows]
    left = [token for token in new if token not in target.rows]
    parts = [
        f"{len(added)} tokens of its own ({_some(added)}) are in the output" if added else "",
        f"{len(left)} tokens of its own ({_some(left)}) are left out" if left else "",
        f"lacks {len(lacks)} tokens of the base ({_some(lacks)})" if lacks else "",
        f"{moved} tokens in other rows are matched by their text" if moved else "",
        f"{spare} rows without a token left out" if spare > 0 and not left else "",
    ]
    line = "; ".join(part for part in parts if part)
    return [f"{model.name}: {line}"] if line else []


def _some(tokens: Sequence[str]) -> str:
    more = len(tokens) - _SHOWN
    return ", ".join(tokens[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
