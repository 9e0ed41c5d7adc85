"""Texts tokenised once, packed into rows, then mapped from disk: `load_texts`."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.data.entries import Arrays, allocated, stored
from rmtllmf_jax.data.samples import SampleArrays
from rmtllmf_jax.data.texts.sources import Texts
from rmtllmf_jax.data.texts.tokens import Pairs, tokenised

FORMAT = 1
"""Version of the layout on disk; part of the cache key."""

_FEW = 4  # a stream of random numbers beside those of `data.splits`

_TYPES = {
    "tokens": np.int32,
    "following": np.int32,
    "segments": np.int32,
    "scored": np.uint8,
    "sizes": np.int32,
}


@dataclass(frozen=True)
class PackedTexts:
    """Rows of tokens, each with one or more texts; arrays are read-only and mapped from disk.

    Packed texts do not depend on each other: `segments` counts the texts of a row from 1, and 0 is
    padding. `fingerprint` is a hash of texts, tokenizer and length.
    """

    tokens: Int32[np.ndarray, "rows length"]
    following: Int32[np.ndarray, "rows length"]
    """The next token of the same text."""
    segments: Int32[np.ndarray, "rows length"]
    scored: UInt8[np.ndarray, "rows length"]
    """1 where the following token counts: 0 in padding and where a prompt is given."""
    sizes: Int32[np.ndarray, "rows length"]
    """Bytes of text that the following token stands for."""
    fingerprint: str

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.tokens)

    def take(self, rows: Int64[np.ndarray, " n"]) -> PackedTexts:
        """Return some of the rows, read from disk on this call."""
        arrays = {name: getattr(self, name)[rows] for name in _TYPES}
        return PackedTexts(**arrays, fingerprint=content_hash([self.fingerprint, rows.tolist()]))

    def bytes_each(self) -> int:
        """Return the bytes of a row."""
        return sum(getattr(self, name)[0].nbytes for name in _TYPES)

    def arrays(self) -> SampleArrays:
        """Return the rows, with the tokens that follow as targets."""
        inputs = {"tokens": self.tokens, "segments": self.segments, "bytes": self.sizes}
        return SampleArrays(inputs, self.following, self.scored.astype(np.float32))

    def few(self, count: int, seed: int) -> PackedTexts:
        """Return rows in which one text each counts, drawn by a seed; a cut text counts as several.

        Draws are nested: for one seed, the draw of 4 texts contains that of 2.

        **Raises:** `InputError` if there are fewer texts.
        """
        # All that count, by row and number; a text's places are beside each other.
        counted = self.segments * self.scored
        rows, numbers = np.nonzero(
            np.stack([(counted == n).any(axis=1) for n in range(1, counted.max() + 1)], axis=1)
        )
        if count > len(rows):
            raise InputError(f"{count} texts are asked for, and there are {len(rows)}.")
        chosen = np.random.default_rng([seed, _FEW]).permutation(len(rows))[:count]
        taken = self.take(rows[chosen])
        own = taken.segments == numbers[chosen, None] + 1
        return replace(taken, scored=taken.scored * own.astype(np.uint8))


def load_texts(texts: Texts, model: str | Path, length: int, cache_dir: Path) -> PackedTexts:
    """Return texts as rows of tokens.

    The first call tokenises into ``cache_dir/texts/<fingerprint>``; later ones check that entry's
    checksums and map it (`data.entries.stored`). A text that is longer than a row is cut into
    windows, in which every token but the first of the text is predicted once; shorter ones share
    rows (best fit decreasing, arXiv 2404.10830). All tokens are in memory while they are packed.

    **Arguments:**

    - `model`: directory or hub id of a decoder; its tokenizer is used.
    - `length`: tokens per row.

    **Raises:** `InputError` that names the file and row of a text that cannot be used: not UTF-8,
    with a single token, or with a prompt and longer than a row; also if there are no texts, or if
    the model takes no rows of this length.
    """
    from rmtllmf_jax.models.decoder_configs import read_decoder_config
    from rmtllmf_jax.models.hub import local_directory
    from rmtllmf_jax.models.text import read_tokenizer, tokenizer_hash

    directory = local_directory(model)
    shape = read_decoder_config(directory / "config.json")
    most = min(shape.positions, shape.window or shape.positions)
    require_at_least(f"length of rows in tokens for {model}", length, 2, most)
    made_from = {
        "texts": texts.fingerprint(),
        "tokenizer": tokenizer_hash(directory),
        "length": length,
        "format": FORMAT,
    }

    def build(part: Path) -> tuple[Arrays, dict[str, Any]]:
        pieces = _pieces(texts, read_tokenizer(directory, shape), length)
        if texts.fingerprint() != made_from["texts"]:
            raise InputError(f"{texts}: changed while read.")
        return _packed(pieces, length, part), {}

    fingerprint = content_hash(made_from)
    arrays = stored(cache_dir / "texts" / fingerprint, made_from, build, "tokenising texts")
    return PackedTexts(**{name: arrays[_file(name)] for name in _TYPES}, fingerprint=fingerprint)


def _file(name: str) -> str:
    return f"{name}.npy"


def _pieces(texts: Texts, tokenizer: Any, length: int) -> list[Pairs]:
    """Return the pairs of all texts, none longer than a row."""
    empty, pieces = [], []

    def documents() -> Any:
        for document in texts.documents():
            if document.text:
                yield document
            else:
                empty.append(document.origin)

    for document, pairs in tokenised(documents(), tokenizer):
        if document.given and len(pairs) > length:
            raise InputError(
                f"{document.origin}: has {len(pairs)} tokens and one to follow; rows have "
                f"{length}, and a text with a prompt is not cut. Take longer rows, or leave it out."
            )
        if not pairs.scored.any():
            raise InputError(f"{document.origin}: nothing follows the prompt that counts.")
        pieces += pairs.windows(length)
    if not pieces:
        raise InputError(f"{empty[0] if empty else texts}: holds no text.")
    if empty:
        note(f"{len(empty)} empty texts are passed over, the first is {empty[0]}")
    return pieces


def _packed(pieces: list[Pairs], length: int, part: Path) -> Arrays:
    places = best_fit([len(piece) for piece in pieces], length)
    rows = max(row for row, _ in places) + 1
    made = {
        name: allocated(part / _file(name), (rows, length), kind) for name, kind in _TYPES.items()
    }
    texts = [0] * rows
    for piece, (row, start) in zip(pieces, places):
        texts[row] += 1
        here = row, slice(start, start + len(piece))
        made["segments"][here] = texts[row]
        for name in ("tokens", "following", "scored", "sizes"):
            made[name][here] = getattr(piece, name)
    return {_file(name): array for name, array in made.items()}


def best_fit(lengths: list[int], room: int) -> list[tuple[int, int]]:
    """Return row and start of every piece: longest first, each where the least room remains.

    >>> best_fit([2, 5, 3, 4], room=5)
    [(2, 3), (0, 0), (2, 0), (1, 0)]
    """
    places = [(0, 0)] * len(lengths)
    left: list[tuple[int, int]] = []  # of every row that is not full: room, row
    rows = 0
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        size = lengths[piece]
        at = bisect.bisect_left(left, (size, 0))
        if at < len(left):
            free, row = left.pop(at)
        else:
            free, row, rows = room, rows, rows + 1
        places[piece] = (row, room - free)
        if free > size:
            bisect.insort(left, (free - size, row))
    return places
