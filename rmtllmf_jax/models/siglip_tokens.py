"""SigLIP's tokens for texts, with the tokenizer of a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rmtllmf_jax.common.errors import InputError, first_line
from rmtllmf_jax.common.extras import needed_by
from rmtllmf_jax.models.shapes import SiglipTextShape
from rmtllmf_jax.models.text import quiet_transformers

TOKENIZER, PIECES = "tokenizer.json", "spiece.model"
"""Files of a tokenizer: SigLIP's of sentencepiece goes first, as in transformers; SigLIP 2 has the
other one alone."""


def load_siglip_tokenizer(directory: Path, text: SiglipTextShape) -> Any:
    """Return the tokenizer of a SigLIP directory, offline.

    `transformers.SiglipTokenizer` if there is a `spiece.model`, which lowercases and removes
    punctuation; otherwise that of `tokenizer.json`, with lowercasing.

    **Raises:** `InputError` that names the missing or damaged file, or the numbers of tokens that
    differ; `MissingExtra` without sentencepiece if there is a `spiece.model`.
    """
    if (directory / PIECES).is_file():
        with needed_by(f"{directory / PIECES}"):
            import sentencepiece  # noqa: F401
        from transformers import SiglipTokenizer as Tokenizer
    elif (directory / TOKENIZER).is_file():
        from transformers import PreTrainedTokenizerFast as Tokenizer
    else:
        raise InputError(f"{directory}: no tokenizer; expected {PIECES} or {TOKENIZER}.")
    try:
        with quiet_transformers():
            tokenizer = Tokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # sentencepiece and the tokenizers library raise no narrower class
        raise InputError(
            f"{directory}: its tokenizer cannot be read ({first_line(error)})."
        ) from error
    require_siglip_tokenizer(tokenizer, text, directory)
    return tokenizer


def require_siglip_tokenizer(tokenizer: Any, text: SiglipTextShape, origin: Path | str) -> None:
    """Check that a tokenizer fits a text tower.

    **Raises:** `InputError` that names `origin` and what is missing or superfluous.
    """
    if len(tokenizer) > text.vocabulary:
        raise InputError(
            f"{origin}: the tokenizer has {len(tokenizer)} tokens, but text_config.vocab_size of "
            f"the model is {text.vocabulary}; take the tokenizer that belongs to the model."
        )
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"{origin}: the tokenizer has no pad_token, and SigLIP reads texts that are padded to "
            f"{text.positions} tokens; add it to tokenizer_config.json."
        )


def tokenise_padded(
    texts: Sequence[str], tokenizer: Any, context: int
) -> Int[np.ndarray, "texts context"]:
    """Return the tokens of texts, padded to `context` like `SiglipProcessor`.

    **Arguments:**

    - `tokenizer`: as `load_siglip_tokenizer` returns it.
    - `context`: tokens that the text tower takes (SigLIP: 64).

    **Raises:** `InputError` that names a text that is longer, or not covered by the vocabulary.
    """
    lowered = [
        text.lower() if getattr(tokenizer, "do_lower_case", True) else text for text in texts
    ]
    if not lowered:
        return np.zeros((0, context), np.int32)
    how = {"padding": "max_length", "max_length": context, "truncation": False, "verbose": False}
    rows = tokenizer(lowered, **how)["input_ids"]
    for text, row in zip(texts, rows):
        if len(row) > context:
            raise InputError(
                f"the text {text!r} has {len(row)} tokens; the model takes at most {context}. "
                "Shorten the class name or the template."
            )
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in row:
            raise InputError(f"the text {text!r} holds characters that the vocabulary lacks.")
    return np.asarray(rows, np.int32)
