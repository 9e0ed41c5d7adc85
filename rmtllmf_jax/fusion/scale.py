"""The merging coefficient: rules by the number of tasks, or the best on a validation split."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rmtllmf_jax.common.errors import InputError, first_line, require_at_least, require_known
from rmtllmf_jax.fusion.rules.linear import TASK_ARITHMETIC
from rmtllmf_jax.fusion.rules.method import Method, fact

# test as a word of its own, or with more behind it, not within latest or contest.
_TEST = re.compile(r"(?<![A-Za-z])[Tt](?:est|EST)|(?<=[a-z])Test")


def power_law(tasks: int) -> float:
    """Return ``1.13 N^-0.655``, the public best merging coefficient by the number N of tasks.

    Fitted to the best coefficients of a full public sweep over combinations on CLIP ViT-B/16
    (.69 .56 .47 .40 .35 .30 for N = 2..7). Task vectors that are larger than CLIP's, fine-tuned
    at a higher learning rate, need a smaller one: choose it on validation data.

    >>> [round(power_law(tasks), 2) for tasks in (2, 4, 8)]
    [0.72, 0.46, 0.29]
    """
    return 1.13 * tasks**-0.655


SCALES: dict[str, Callable[[int], float]] = {
    "power-law": power_law,
    "1/N": lambda tasks: 1 / tasks,
    "1/sqrt(N)": lambda tasks: 1 / math.sqrt(tasks),
}
"""Rules that give the coefficient from the number of tasks alone."""
SUM_SCALES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5)
"""Coefficients to try for methods that add task vectors up.

None is below 0.1: a merge with 0.02 is the base model in all but name, which closed-form heads can
make hard to beat; the base model's own score stands in every row of a sweep's results instead.
"""
MEAN_SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.8, 2.5, 3.5, 5.0, 7.0)
"""Coefficients to try for methods that average task vectors: up to N times those of sums."""


def scale_of(rule: str, tasks: int, method: Method = TASK_ARITHMETIC) -> float:
    """Return the coefficient of a rule of `SCALES`, or `rule` itself if it is a number.

    The power law is for sums: with it, a method that averages (`is_mean`) has 1.

    **Raises:** `InputError` if it is neither, not finite, or if there is no task.

    >>> from rmtllmf_jax.fusion.rules import Ties
    >>> scale_of("1/sqrt(N)", 4), scale_of("0.3", 4), scale_of("power-law", 4, Ties())
    (0.5, 0.3, 1.0)
    """
    require_at_least("the number of tasks", tasks, 1)
    if rule == "power-law" and fact(method, "is_mean"):
        return 1.0
    try:
        value = float(rule)
    except ValueError:
        return SCALES[require_known("scale", rule, SCALES)](tasks)
    if not math.isfinite(value):
        raise InputError(f"the scale must be a finite number, got {rule}.")
    return value


def candidate_scales(method: Method) -> tuple[float, ...]:
    """Return the coefficients to try on validation samples: the method's `scales`, or by `is_mean`.

    >>> from rmtllmf_jax.fusion.rules import RegMean, Ties
    >>> candidate_scales(Ties()) == MEAN_SCALES, candidate_scales(RegMean())
    (True, (1.0,))
    """
    own: tuple[float, ...] = fact(method, "scales")
    return own or (MEAN_SCALES if fact(method, "is_mean") else SUM_SCALES)


class ScaleSearch(NamedTuple):
    """What `search_scale` found: the best coefficient, and the whole curve.

    Of equal scores the smaller coefficient wins.
    """

    best: float
    scales: Float[np.ndarray, " candidates"]
    scores: Float[np.ndarray, " candidates"]


def search_scale(
    score: Callable[[Float[Array, ""]], Float[Array, ""]],
    candidates: Sequence[float] | Float[np.ndarray, " candidates"],
    split: str,
) -> ScaleSearch:
    """Return the coefficient with the highest score; all candidates run in one compiled program.

    **Arguments:**

    - `score`: a pure function of the coefficient, such as the accuracy of ``base + scale * merged``
      on validation samples.
    - `split`: name of the split that `score` looks at. A coefficient chosen on the test split makes
      the test accuracy meaningless, so a name with a word that begins with `test` is refused.

    **Raises:** `InputError` for a test split, for no candidates or candidates that are not finite,
    for a score that jax cannot trace, or if a score is NaN or more than one number.

    >>> search_scale(lambda scale: -jnp.abs(scale - 0.3), [0.1, 0.25, 0.5], "validation").best
    0.25
    """
    if _TEST.search(split):
        raise InputError(
            f"the scale must not be chosen on the split {split!r}: set samples of train aside."
        )
    scales = np.unique(np.asarray(candidates, np.float64))
    if not scales.size or not np.isfinite(scales).all():
        raise InputError(f"expected finite candidates of the scale, got {list(candidates)}.")
    curve = jax.jit(lambda all_of_them: jax.lax.map(score, all_of_them))
    try:
        scores = np.asarray(curve(jnp.asarray(scales)), np.float64)
    except jax.errors.JAXTypeError as error:
        raise InputError(
            "the score must be a pure function of jax arrays, without float(), if and numpy on the "
            f"coefficient; jax cannot trace this one ({first_line(error)})."
        ) from error
    if scores.shape != scales.shape:
        raise InputError(
            f"the score must be one number per coefficient, got the shape {scores.shape[1:]}."
        )
    if np.isnan(scores).any():
        raise InputError(f"the score is NaN at the scale {scales[np.isnan(scores)][0]}.")
    return ScaleSearch(float(scales[np.argmax(scores)]), scales, scores)
