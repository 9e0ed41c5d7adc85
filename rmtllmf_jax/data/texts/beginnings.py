"""Beginnings of texts, for a model to continue: `beginnings`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.data.texts.packing import PackedTexts


@dataclass(frozen=True)
class Beginning:
    """A text in two parts."""

    given: tuple[int, ...]
    """Its first tokens."""
    rest: tuple[int, ...]
    """Those that follow."""


def beginnings(
    texts: PackedTexts, count: int, *, seed: int = 0, longest: int = 16
) -> list[Beginning]:
    """Return tokens of some texts: the part given as a prompt, and what follows it.

    **Arguments:**

    - `count`: how many texts; all if there are fewer.
    - `seed`: that of the choice.
    - `longest`: most tokens given from a text without a prompt, at most half of it.

    **Raises:** `InputError` if there are no texts.
    """
    require_at_least("number of texts", count, 1)
    segments = np.asarray(texts.segments)
    places = [(row, text) for row, own in enumerate(segments) for text in range(1, own.max() + 1)]
    if not places:
        raise InputError("there is no text to continue.")
    order = np.random.default_rng(seed).permutation(len(places))
    return [_cut(texts, places[place], longest) for place in order[:count]]


def _cut(texts: PackedTexts, place: tuple[int, int], longest: int) -> Beginning:
    row, text = place
    here = texts.segments[row] == text
    tokens = (*texts.tokens[row][here].tolist(), int(texts.following[row][here][-1]))
    prompt = int(np.argmax(texts.scored[row][here])) + 1
    given = prompt if prompt > 1 else max(1, min(longest, len(tokens) // 2))
    return Beginning(tokens[:given], tokens[given:])
