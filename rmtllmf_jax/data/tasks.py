"""The eight image-classification tasks of the literature, and the eight that are embedded."""

from __future__ import annotations

from collections.abc import Iterable

from rmtllmf_jax.common.errors import InputError, require_known

TASK_NAMES = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
"""Ilharco et al., "Editing Models with Task Arithmetic" (2023), in alphabetical order."""

EMBEDDED_NAMES = (
    "colours",
    "counts",
    "digits",
    "letters",
    "photographs",
    "shapes",
    "signs",
    "textures",
)
"""The small tasks that come with the package (`data.sources.embedded`)."""


def validate_tasks(names: Iterable[str], available: Iterable[str]) -> tuple[str, ...]:
    """Return `names` as a tuple, in the order given, if a run can use them.

    `available` are the tasks of the source (`Source.tasks()`).

    **Raises:** `InputError` if there is no name, if a name is not available (the message lists
    those that are, and the nearest), or if a name is given twice.
    """
    chosen = tuple(names)
    known = tuple(available)
    if not chosen:
        raise InputError(f"no task given, at least one is needed. Known: {', '.join(known)}.")
    for position, name in enumerate(chosen):
        require_known("task", name, known)
        if name in chosen[:position]:
            raise InputError(f"task {name!r} is given more than once: {', '.join(chosen)}.")
    return chosen
