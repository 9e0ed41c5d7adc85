"""Means with confidence intervals, and differences of pairs, as texts of a table."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats


def half_width(values: pd.Series, confidence: float = 0.95) -> float:
    """Return half the width of Student's interval for the mean; NaN for one value."""
    if len(values) < 2:
        return float("nan")
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return float(quantile * values.std(ddof=1) / np.sqrt(len(values)))


def interval(values: pd.Series) -> str:
    """Return the mean of fractions in percent with its 95 % interval, as `61.2 ± 1.3`."""
    return f"{100 * values.mean():.1f} ± {100 * half_width(values):.1f}"


def against(values: pd.Series, others: pd.Series) -> str:
    """Return the mean difference over pairs in points with its 95 % interval: `+2.1 ± 0.4`."""
    gap = values - others
    return f"{100 * gap.mean():+.1f} ± {100 * half_width(gap):.1f}"
