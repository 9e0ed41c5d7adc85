"""Tokens of documents, and the bytes that each stands for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.texts.sources import Document


@dataclass(frozen=True)
class Pairs:
    """Tokens of a text, and what follows each: one fewer than the tokens of the text."""

    tokens: Int32[np.ndarray, " n"]
    following: Int32[np.ndarray, " n"]
    scored: Bool[np.ndarray, " n"]
    """Whether the following token counts: what is given does not."""
    sizes: Int32[np.ndarray, " n"]
    """Bytes of the text, in UTF-8, that the following token stands for; those of a text sum up to
    its length without the first token's."""

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.tokens)

    def windows(self, length: int) -> list[Pairs]:
        """Return the pairs in pieces of a length, the last one shorter."""
        starts = range(0, len(self), length)
        return [Pairs(*(each[at : at + length] for each in vars(self).values())) for at in starts]


def tokenised(documents: Iterable[Document], tokenizer: Any) -> Iterator[tuple[Document, Pairs]]:
    """Yield every document with its tokens; the tokenizer's first token leads, if it adds one.

    **Raises:** `InputError` that names a document with a single token, or without characters.
    """
    rest = iter(documents)
    while group := list(islice(rest, 64)):
        for document in group:
            try:
                document.text.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"{document.origin}: not Unicode ({error}).") from error
        texts = [document.text for document in group]
        found = tokenizer(texts, return_offsets_mapping=True, verbose=False)
        for document, ids, places in zip(group, found["input_ids"], found["offset_mapping"]):
            yield document, _pairs(document, ids, places, tokenizer.eos_token_id)


def _pairs(
    document: Document, ids: list[int], places: list[tuple[int, int]], end: int | None
) -> Pairs:
    ends = np.array([place[1] for place in places], np.int64)
    tokens = np.array(ids, np.int32)
    if document.ends and end is not None and ids[-1:] != [end]:
        tokens, ends = np.append(tokens, np.int32(end)), np.append(ends, 0)
    if len(tokens) < 2:
        raise InputError(
            f"{document.origin}: has {len(tokens)} token ({document.text[:20]!r}); two are needed "
            "for one to follow the other."
        )
    sizes = _sizes(document.text, ends)
    scored = ends > document.given
    if document.ends:  # special tokens stand for no letter
        scored[-1] = True
    if not document.given:
        scored[:] = True
    return Pairs(tokens[:-1], tokens[1:], scored[1:], sizes[1:])


def _sizes(text: str, ends: Int64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
    """Return the bytes from the end of the previous token to the end of each token.

    Letters that no token stands for (cut off after the last one) count with that one.
    """
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    bytes_before = np.zeros(len(points) + 1, np.int64)
    np.cumsum(1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF), out=bytes_before[1:])
    reached = np.maximum.accumulate(ends)
    reached[reached == reached[-1]] = len(text)
    return np.diff(bytes_before[reached], prepend=0).astype(np.int32)
