"""Prompts, and CLIP's tokens of them, with a tokenizer from a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.shapes import TextShape

TOKENIZER = "tokenizer.json"
VOCABULARY = ("vocab.json", "merges.txt")
"""Files of a tokenizer inside a Hugging Face directory: the first, or the other two."""


def load_tokenizer(directory: Path, text: TextShape | None = None) -> Any:
    """Return the `transformers.CLIPTokenizer` of a Hugging Face model directory, offline.

    **Arguments:**

    - `directory`: holds `tokenizer.json`, or `vocab.json` and `merges.txt`.
    - `text`: the text tower that will read the tokens; its vocabulary and end token are compared.

    **Raises:** `InputError` that names the missing or damaged file, or the numbers that differ.
    """
    if not (directory / TOKENIZER).is_file():
        missing = [name for name in VOCABULARY if not (directory / name).is_file()]
        if missing:
            raise InputError(
                f"{directory}: no tokenizer: {TOKENIZER} is missing, and so is "
                f"{' and '.join(missing)}; expected {TOKENIZER}, or {' and '.join(VOCABULARY)}."
            )
    from transformers import CLIPTokenizer  # seconds of import, paid only when texts are read

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # the tokenizers library raises no narrower class
        raise InputError(f"{directory}: its tokenizer cannot be read ({error}).") from error
    if text is not None:
        require_tokenizer(tokenizer, text, directory)
    return tokenizer


def require_tokenizer(tokenizer: Any, text: TextShape, origin: Path | str) -> None:
    """Check that a tokenizer fits a text tower.

    **Raises:** `InputError` that names `origin` and the numbers of tokens, or the end tokens.
    """
    size, end = len(tokenizer), tokenizer.eos_token_id
    if size != text.vocabulary:
        raise InputError(
            f"{origin}: the tokenizer has {size} tokens, but text_config.vocab_size of the "
            f"model is {text.vocabulary}; take the tokenizer that belongs to the model."
        )
    expected = size - 1 if text.largest_is_end else text.end_token
    if end != expected:
        raise InputError(
            f"{origin}: the tokenizer ends texts with token {end} ({tokenizer.eos_token!r}), "
            f"but the model reads the text's feature at token {expected}."
        )


def fill_templates(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Return a prompt for every class and template, class by class.

    A template marks the place of the class name once, as ``{}``; any other brace is literal, in
    class names too.

    **Raises:** `InputError` if there is no class or no template, or if a template (named) does not
    hold exactly one ``{}``.
    """
    if not classes or not templates:
        raise InputError(
            f"prompts need classes and templates; got {len(classes)} classes and "
            f"{len(templates)} templates."
        )
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(
                f"the template {template!r} holds '{{}}' {template.count('{}')} times; "
                "expected once, where the class name goes."
            )
    return [template.replace("{}", name) for name in classes for template in templates]


def tokenise(
    texts: Sequence[str], tokenizer: Any, context: int
) -> Int[np.ndarray, "texts context"]:
    """Return the tokens of texts: start, text, end, then the padding token up to `context`.

    **Arguments:**

    - `tokenizer`: as `load_tokenizer` returns it.
    - `context`: tokens that the text tower takes, start and end included (CLIP: 77).

    **Raises:** `InputError` that names a text that is longer than `context` (CLIP's own code
    silently cuts it off, with the end token), or that the vocabulary cannot spell.
    """
    tokens = np.full((len(texts), context), tokenizer.pad_token_id, np.int32)
    if not len(texts):
        return tokens
    end = tokenizer.eos_token_id
    rows = tokenizer(list(texts), padding=False, truncation=False, verbose=False)["input_ids"]
    for index, (text, row) in enumerate(zip(texts, rows)):
        if len(row) > context:
            raise InputError(
                f"the text {text!r} has {len(row)} tokens, start and end included; the model "
                f"takes at most {context}. Shorten the class name or the template."
            )
        if end not in row or row.index(end) != len(row) - 1:
            raise InputError(
                f"the text {text!r} does not have the end token {tokenizer.eos_token!r} once and "
                "last: it holds that token, or characters that the vocabulary lacks."
            )
        tokens[index, : len(row)] = row
    return tokens
