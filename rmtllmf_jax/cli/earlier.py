"""Earlier spellings of options, read for one more release."""

from __future__ import annotations

from collections.abc import Sequence

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.progress import note

_SHOTS, _HEAD = "--head-shots", "--head"


def as_now(argv: Sequence[str]) -> list[str]:
    """Return the words of a command line in today's spelling, with a note where that changed.

    >>> as_now(["finetune", "--head", "lda", "--seed", "1"])
    ['finetune', '--head', 'lda', '--seed', '1']

    **Raises:** `InputError` if the two spellings contradict each other.
    """
    words = [part for word in argv for part in _split(word)]
    if _SHOTS not in words[:-1]:
        return list(argv)
    at = words.index(_SHOTS)
    now = f"lda(shots={words[at + 1]})"
    del words[at : at + 2]
    if _HEAD in words[:-1]:
        at = words.index(_HEAD)
        if words[at + 1] != "lda":
            raise InputError(
                f"{_SHOTS} belongs to {_HEAD} lda: leave it out, or write {_HEAD} '{now}'."
            )
        del words[at : at + 2]
    note(f"{_SHOTS} is now {_HEAD} '{now}'.")
    return [*words, _HEAD, now]


def _split(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith((f"{_SHOTS}=", f"{_HEAD}=")) else [word]
