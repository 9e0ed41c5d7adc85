"""Prompts, and their CLIP tokens, with a tokenizer from a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.shapes import SiglipTextShape, TextShape
from rmtllmf_jax.models.siglip_tokens import (
    load_siglip_tokenizer,
    require_siglip_tokenizer,
    tokenise_padded,
)

TOKENIZER = "tokenizer.json"
VOCABULARY = ("vocab.json", "merges.txt")
"""Files of CLIP's tokenizer inside a Hugging Face directory: the first, or the other two."""

_ROUND = 16  # texts are cut to a multiple of this many tokens, so that few programs are compiled


def load_tokenizer(directory: Path, text: TextShape | SiglipTextShape | None = None) -> Any:
    """Return the tokenizer of a Hugging Face model directory, offline.

    This is `transformers.CLIPTokenizer`, or that of SigLIP's text tower (`siglip_tokens`).

    **Arguments:**

    - `directory`: holds `tokenizer.json`, or `vocab.json` and `merges.txt`.
    - `text`: the text tower that will read the tokens; its vocabulary and end token are compared.

    **Raises:** `InputError` that names the missing or damaged file, or the numbers that differ.
    """
    if isinstance(text, SiglipTextShape):
        return load_siglip_tokenizer(directory, text)
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


def prompt_tokens(
    texts: Sequence[str], tokenizer: Any, text: TextShape | SiglipTextShape
) -> Int[np.ndarray, "texts tokens"]:
    """Return the input of a text tower for texts, with its tokenizer.

    For CLIP, without the columns in which no text has a token: what follows the end token does not
    matter, and prompts fill a fifth of its 77 positions. For SigLIP, with all columns.

    **Raises:** `InputError` for a tokenizer of another model, or a text that cannot be read.
    """
    origin = tokenizer.name_or_path
    if isinstance(text, SiglipTextShape):
        require_siglip_tokenizer(tokenizer, text, origin)
        return tokenise_padded(texts, tokenizer, text.positions)
    require_tokenizer(tokenizer, text, origin)
    tokens = tokenise(texts, tokenizer, text.positions)
    longest = int(np.argmax(tokens == tokenizer.eos_token_id, axis=1).max()) + 1
    return tokens[:, : min(text.positions, -(-longest // _ROUND) * _ROUND)]


def tokenise(
    texts: Sequence[str], tokenizer: Any, context: int
) -> Int[np.ndarray, "texts context"]:
    """Return the tokens of texts: start, text, end, then the padding token up to `context`.

    **Arguments:**

    - `tokenizer`: as `load_tokenizer` returns it.
    - `context`: tokens that the text tower takes, start and end included (CLIP: 77).

    **Raises:** `InputError` that names a text that is longer than `context` (CLIP's own code
    silently truncates it, including the end token), or not covered by the vocabulary.
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
