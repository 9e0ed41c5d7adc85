"""The tokenizer of a text decoder, from its Hugging Face directory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError, first_line
from rmtllmf_jax.common.files import content_hash, file_hash
from rmtllmf_jax.fusion.files.carried import tokenizer_files
from rmtllmf_jax.models.shapes import DecoderShape


def read_tokenizer(directory: Path, shape: DecoderShape | None = None) -> Any:
    """Return the `transformers` tokenizer of a decoder's directory, offline.

    **Arguments:**

    - `shape`: that of the decoder that will read the tokens; its vocabulary must hold them all.

    **Raises:** `InputError` that names the directory if it has no readable tokenizer, or one with
    more tokens than the model.
    """
    from transformers import AutoTokenizer  # seconds of import, paid only when texts are read

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # the tokenizers library raises no narrower class
        raise InputError(
            f"{directory}: no tokenizer that can be read ({first_line(error)}); expected "
            "tokenizer.json, or the files of a slow tokenizer."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{directory}: its tokenizer does not say which letters a token is of; save it as "
            "tokenizer.json (a fast tokenizer of transformers)."
        )
    if shape is not None and len(tokenizer) > shape.vocabulary:
        raise InputError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens, and vocab_size of the model "
            f"is {shape.vocabulary}; take the tokenizer that belongs to the model."
        )
    return tokenizer


def tokenizer_hash(directory: Path) -> str:
    """Return a hash of the files on which the tokens of a text depend."""
    files = tokenizer_files(directory)
    return content_hash({str(name): file_hash(directory / name) for name in files})


def end_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end a text: one, or none."""
    return () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence guesses by transformers about a directory or its configuration."""
    log = logging.getLogger("transformers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
