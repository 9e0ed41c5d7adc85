"""The image-classification tasks of the literature, and the eight that are embedded."""

from __future__ import annotations

from collections.abc import Iterable

from rmtllmf_jax.common.errors import InputError, require_known

TASK_NAMES = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
"""Ilharco et al., "Editing Models with Task Arithmetic" (2023), in alphabetical order."""

_FOURTEEN = ("cifar100", "fer2013", "oxford-iiit-pet", "oxford_flowers102", "pcam", "stl10")
_TWENTY = ("cifar10", "emnist_letters", "fashion_mnist", "food101", "kmnist", "rendered-sst2")

REGISTERED = (*TASK_NAMES, *_FOURTEEN, *_TWENTY)
"""The tasks that the registry knows: the eight, and those that make them fourteen and twenty in
Wang et al., "Localizing Task Information for Improved Model Merging and Compression" (2024)."""

SUITES = {
    "tall8": TASK_NAMES,
    "tall14": (*TASK_NAMES, *_FOURTEEN),
    "tall20": REGISTERED,
}
"""Names that stand for several tasks."""

TEXT_NAMES = ("dates", "queries", "stories", "sums")
"""The tasks of texts that are embedded."""

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


def expand_tasks(names: Iterable[str], available: Iterable[str]) -> tuple[str, ...]:
    """Return `names` with those of `SUITES` expanded; by default the tasks of the source.

    The default is the eight tasks, if `available` has them all, or else all of `available`.
    """
    known, chosen = tuple(available), tuple(names)
    if not chosen:
        return TASK_NAMES if set(TASK_NAMES) <= set(known) else known
    found = (SUITES[name] if name not in known and name in SUITES else (name,) for name in chosen)
    return tuple(name for each in found for name in each)


def validate_tasks(names: Iterable[str], available: Iterable[str]) -> tuple[str, ...]:
    """Return `names` as a tuple, in the order given, if a run can use them.

    `available` are the tasks of the source (`Source.tasks()`).

    **Raises:** `InputError` if there are no names, if a name is not available (the message lists
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
