"""Questions with answers to choose from, tokenised: `load_questions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.texts.sources import Document, Rows, filled
from rmtllmf_jax.data.texts.tokens import Pairs, tokenised


@dataclass(frozen=True)
class Choices:
    """How rows form questions: the prompt of `rows`, and fields for the answers and the right one.

    An answer follows the prompt, after `before`. The template of `rows` is not used.
    """

    rows: Rows
    choices: str = "choices"
    """Field that holds the answers, a list of texts."""
    label: str = "label"
    """Field of the right one: its place, counted from 0, or its text."""
    before: str = " "
    """Between prompt and answer."""


@dataclass(frozen=True)
class Questions:
    """Tokens of every question with each of its answers; unused places are 0."""

    tokens: Int32[np.ndarray, "questions choices length"]
    following: Int32[np.ndarray, "questions choices length"]
    scored: UInt8[np.ndarray, "questions choices length"]
    """1 where the following token is part of the answer; a choice without one does not exist."""
    sizes: Int32[np.ndarray, "questions choices length"]
    """Bytes of text that the following token stands for."""
    label: Int32[np.ndarray, " questions"]

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.label)


def load_questions(choices: Choices, model: str | Path, length: int) -> Questions:
    """Return questions as arrays in memory.

    **Arguments:**

    - `model`: directory or hub id of a decoder; its tokenizer is used.
    - `length`: maximum number of tokens of a question with an answer.

    **Raises:** `InputError` that names file and row of a question without answers or with a label
    that is none of them, or that is longer than `length`; or if there are no questions.
    """
    from rmtllmf_jax.models.decoder_configs import read_decoder_config
    from rmtllmf_jax.models.hub import local_directory
    from rmtllmf_jax.models.text import read_tokenizer

    directory = local_directory(model)
    tokenizer = read_tokenizer(directory, read_decoder_config(directory / "config.json"))
    found: list[list[Pairs]] = []
    labels: list[int] = []
    for origin, row in choices.rows.rows():
        answers = _answers(choices, row, origin)
        labels.append(_label(choices, row, answers, origin))
        found.append([pairs for _, pairs in tokenised(_documents(choices, row, origin), tokenizer)])
        longest = max(map(len, found[-1]))
        if longest > length:
            raise InputError(
                f"{origin}: question and answer have {longest + 1} tokens; at most {length + 1} "
                "are taken."
            )
    if not found:
        raise InputError(f"{choices.rows}: holds no question.")
    most = max(map(len, found)), max(len(pairs) for each in found for pairs in each)
    arrays = {name: np.zeros((len(found), *most), np.int32) for name in Pairs.__dataclass_fields__}
    for question, each in enumerate(found):
        for choice, pairs in enumerate(each):
            for name, array in arrays.items():
                array[question, choice, : len(pairs)] = getattr(pairs, name)
    scored = arrays.pop("scored").astype(np.uint8)
    return Questions(**arrays, scored=scored, label=np.array(labels, np.int32))


def _documents(choices: Choices, row: Mapping[str, Any], origin: str) -> Iterator[Document]:
    given = filled(choices.rows.prompt, row, origin)
    for answer in _answers(choices, row, origin):
        # Of an empty prompt the answer is all there is.
        before = choices.before if given else ""
        yield Document(f"{given}{before}{answer}", origin, len(given))


def _answers(choices: Choices, row: Mapping[str, Any], origin: str) -> list[str]:
    if choices.choices not in row:
        raise InputError(f"{origin}: no field {choices.choices!r}; it has {', '.join(row)}.")
    answers = row[choices.choices]
    texts = isinstance(answers, list) and all(isinstance(each, str) and each for each in answers)
    if not texts or len(answers) < 2:
        raise InputError(
            f"{origin}: field {choices.choices!r} must hold a list of two texts or more, got "
            f"{answers!r:.60}."
        )
    return answers


def _label(choices: Choices, row: Mapping[str, Any], answers: list[str], origin: str) -> int:
    if choices.label not in row:
        raise InputError(f"{origin}: no field {choices.label!r}; it has {', '.join(row)}.")
    label = row[choices.label]
    if isinstance(label, str) and answers.count(label) == 1:
        return answers.index(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(answers):
        return label
    raise InputError(
        f"{origin}: the label {label!r} is not a choice; expected 0 to {len(answers) - 1}, or one "
        f"of {', '.join(map(repr, answers))}."
    )
