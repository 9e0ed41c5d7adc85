"""Metrics by name, those of labels and those of language models."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import Known, described, parse
from rmtllmf_jax.evaluation.language import LANGUAGE_METRICS
from rmtllmf_jax.evaluation.metrics import METRICS, Metric

ALL_METRICS = {**METRICS, **LANGUAGE_METRICS}


def get_metric(metric: str | Any, known: Known = ALL_METRICS) -> Metric:
    """Return the metric in `known` that a text describes; a value is returned as is.

    **Raises:** `InputError` for an unknown name or option, or for something that is not a metric.

    >>> get_metric("soft_accuracy(temperature=0.5)")
    SoftAccuracy(temperature=0.5)
    """
    found = parse(metric, known, "metric") if isinstance(metric, str) else metric
    if not isinstance(found, Metric):
        raise InputError(f"metric: expected a value such as Accuracy(), got {metric!r}.")
    return found


def require_inputs(metric: Metric, there: Collection[str]) -> None:
    """Check that samples have what a metric looks at.

    **Raises:** `InputError` that names both.
    """
    if missing := [name for name in metric.inputs if name not in there]:
        raise InputError(
            f"the metric {described(metric)} looks at {', '.join(missing)} of a sample, and those "
            f"of this run have {', '.join(there)}: take another metric."
        )
