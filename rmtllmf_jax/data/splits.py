"""Index sets for training, validation, realignment and evaluation, from explicit seeds.

Every choice draws from a separate stream, keyed by seed, purpose and class: more images in one
class do not change the draws of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64

from rmtllmf_jax.common.errors import InputError, require_at_least

_VALIDATION, _FEW_SHOT, _EVALUATION = 1, 2, 3


def split_validation(
    labels: Int[np.ndarray, " n"], fraction: float = 0.1, seed: int = 0
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"]]:
    """Set aside `fraction` of every class, rounded to whole images, for validation.

    A class keeps at least one training image, so a class with one image has none for validation.

    **Returns:** training and validation indices into `labels`: sorted, disjoint, complete.

    **Raises:** `InputError` if `fraction` is not in [0, 1), if a positive fraction gives no
    validation image at all, if `seed` is negative, or if `labels` is empty or has negative values.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"validation fraction must be >= 0 and < 1, got {fraction!r}.")
    _require_labels(labels)
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = _shuffled_class(labels, int(label), seed, _VALIDATION)
        chosen[members[: min(int(fraction * len(members) + 0.5), len(members) - 1)]] = True
    if fraction > 0 and not chosen.any():
        raise InputError(
            f"validation fraction {fraction} leaves no validation image: the largest class has "
            f"{np.bincount(labels).max()} images. Take a larger fraction or 0."
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def few_shot(
    labels: Int[np.ndarray, " n"],
    per_class: int,
    seed: int,
    *,
    allow_fewer: bool = False,
    classes: Sequence[str] | None = None,
) -> Int64[np.ndarray, " shots"]:
    """Draw exactly `per_class` images of every class.

    The classes are those that occur in `labels`, or all of `classes` (names in label order) if
    given. Sets are nested: for one seed, the draw of 4 images contains that of 2.

    **Returns:** sorted indices into `labels`.

    **Raises:** `InputError` that names the class and its count if a class has fewer images (with
    `allow_fewer` all of them are taken); if `per_class` < 1; if `seed` is negative; if `labels` is
    empty or has negative values or a label outside `classes`.
    """
    require_at_least("per_class", per_class, 1)
    _require_labels(labels)
    if classes is not None and labels.max() >= len(classes):
        raise InputError(f"label {labels.max()} is not one of the {len(classes)} classes.")
    indices = []
    for label in np.unique(labels) if classes is None else range(len(classes)):
        members = _shuffled_class(labels, int(label), seed, _FEW_SHOT)
        if len(members) < per_class and not allow_fewer:
            named = "" if classes is None else f" ({classes[label]})"
            raise InputError(
                f"class {label}{named} has {len(members)} images, {per_class} are asked for. "
                "Ask for fewer, or allow fewer."
            )
        indices.append(members[:per_class])
    return np.sort(np.concatenate(indices))


def evaluation_subset(count: int, samples: int, seed: int) -> Int64[np.ndarray, " subset"]:
    """Draw `samples` of `count` images; all of them if `samples` is 0 or at least `count`.

    Sets are nested: for one seed, the draw of 200 images contains that of 100.

    **Returns:** sorted indices below `count`.

    **Raises:** `InputError` if `count` < 1, or if `samples` or `seed` is negative.
    """
    require_at_least("count", count, 1)
    require_at_least("samples", samples, 0)
    order = _generator(seed, _EVALUATION).permutation(count)
    return np.sort(order[: samples or count])


def _require_labels(labels: Int[np.ndarray, " n"]) -> None:
    if len(labels) == 0 or labels.min() < 0:
        raise InputError("labels must hold at least one image and no negative number.")


def _shuffled_class(
    labels: Int[np.ndarray, " n"], label: int, seed: int, purpose: int
) -> Int64[np.ndarray, " members"]:
    return _generator(seed, purpose, label).permutation(np.flatnonzero(labels == label))


def _generator(seed: int, *meaning: int) -> np.random.Generator:
    require_at_least("seed", seed, 0)
    return np.random.default_rng(np.random.SeedSequence((seed, *meaning)))
