"""The one exception that a user's input can raise, with did-you-mean hints for names."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from outside: a file, an option or a tree that cannot be used.

    The message names the file, key, leaf or option, says what was seen and what was expected. The
    command line prints it without a traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """Return an error's first line without its full stop; its type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def require_known(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`.

    **Raises:** `InputError` that lists the known names and the nearest one.
    """
    names = list(known)
    if name in names:
        return name
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


def require_non_negative(name: str, value: float, most: float = math.inf) -> float:
    """Return `value` if it is finite, not negative, and at most `most`.

    **Raises:** `InputError` that names the option and the value seen.
    """
    if not math.isfinite(value) or value < 0:
        raise InputError(f"{name} must be a finite number >= 0, got {value!r}.")
    if value > most:
        raise InputError(f"{name} must be at most {most:g}, got {value!r}.")
    return value


def require_at_least(name: str, value: int, least: int, most: int | None = None) -> int:
    """Return `value` if it is at least `least`, and at most `most` if there is one.

    **Raises:** `InputError` that names the option and the value seen.
    """
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value!r}.")
    if most is not None and value > most:
        raise InputError(f"{name} must be at most {most}, got {value!r}.")
    return value


def require_seed(name: str, value: int) -> int:
    """Return the seed of the random numbers if it fits into 32 bits, all that a JAX key holds.

    **Raises:** `InputError` for any other number, which would repeat the draws of a valid one.
    """
    return require_at_least(name, value, 0, 2**32 - 1)
