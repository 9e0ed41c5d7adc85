"""Means over cells, with intervals that resample what a run replicates.

The cells of a sweep are not independent samples: all combinations are sent over the same channel
realisations, share their tasks' vectors, and repeat with the same seeds. So whole combinations,
realisations and seeds are resampled, each with all its cells: the pigeonhole bootstrap of crossed
factors (Owen, Annals of Applied Statistics 1(2), 2007), with n - 1 draws out of n levels (Rao and
Wu, JASA 83, 1988). Its variance is right for effects of a whole level, and too large for effects of
single cells: three times with two factors, seven times with three. So an interval is wide rather
than narrow, except with few levels: two alone give the range between them, which contains the true
mean half of the time, and five alone less than nine times in ten (`FEW`).

The number of tasks N is chosen, not replicated: combinations are resampled within their N, and a
mean over several N is the mean of the means at each N.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from rmtllmf_jax.common.errors import InputError

CLUSTERS = ("combination", "draw", "seed")
"""What a sweep replicates."""

PAIR = ["scenario", "combination", "draw", "seed"]
"""What two cells share whose scores are compared."""

FEW = 5
"""With fewer levels an interval is too narrow to decide anything."""

CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float = np.nan
    """NaN, as `high`, where nothing was replicated."""
    high: float = np.nan
    levels: int = 1
    """How many levels the best replicated cluster has, at the size where these are fewest; at most
    as many as there are channel realisations, except without a channel (`clean`)."""

    def text(
        self, form: str = ".0f", sign: str = "", *, scale: float = 100.0, unit: str = ""
    ) -> str:
        """Return it in percent, in whole points, as `83 [80, 86]`; `sign="+"` signs the mean."""
        if np.isnan(self.mean):
            return "-"
        mean, low, high = (scale * value for value in (self.mean, self.low, self.high))
        ends = "" if np.isnan(low) else f" [{low:z{form}}, {high:z{form}}]"
        return f"{mean:{sign}z{form}}{unit}{ends}"

    def side(self, form: str = ".0f", *, scale: float = 100.0) -> int | None:
        """Return the side of 0 on which it lies as printed: 1, -1, or 0 for neither.

        `None` if it rests on fewer than `FEW` levels, which decide nothing.
        """
        if self.levels < FEW:
            return None
        low, high = (float(format(scale * end, form)) for end in (self.low, self.high))
        return (low > 0) - (high < 0)


def interval(
    cells: pd.DataFrame, column: str = "score", clusters: tuple[str, ...] = CLUSTERS
) -> Interval:
    """Return the mean of a column over the cells of a table, with its 95 % interval.

    **Arguments:**

    - `cells`: one row per cell, in any order.
    - `clusters`: the columns with values to resample; those that the table lacks are ignored.
      `combination` is resampled within each `size`.

    **Returns:** the mean over the cells of each `size` (if that column exists), then over the
    sizes. It has no ends if a size has only one level of every cluster.

    **Raises:** `InputError` for a value that is not finite.
    """
    values = cells[column].to_numpy(float)
    if not np.isfinite(values).all():
        raise InputError(f"column {column}: a mean needs finite values.")
    if not len(values):
        return Interval(np.nan)
    sizes = cells["size"].to_numpy() if "size" in cells else np.zeros(len(cells))
    strata = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    mean = float(np.mean([values[own].mean() for own in strata]))
    named = {name: cells[name].to_numpy() for name in clusters if name in cells}
    numbers = [{name: len(set(each[own])) for name, each in named.items()} for own in strata]
    levels = min(max(each.values(), default=1) for each in numbers)
    if levels == 1:
        return Interval(mean)
    # What all sizes share, one place per (draw, seed); then the sums and numbers of cells by
    # combination and place, weighted on both sides.
    nested = named.pop("combination", np.zeros(len(values)))
    shared, place = np.ones((_RESAMPLES, 1)), np.zeros(len(values), int)
    for stream, names in enumerate(named.values()):
        codes, found = pd.factorize(names, sort=True)
        place = len(found) * place + codes
        times = _counts(len(found), 1 + stream)
        shared = (shared[:, :, None] * times[:, None]).reshape(_RESAMPLES, -1)
    sums, totals = np.zeros((2, len(strata), _RESAMPLES))
    for number, own in enumerate(strata):
        codes, found = pd.factorize(nested[own], sort=True)
        table = np.zeros((2, len(found), shared.shape[1]))
        np.add.at(table[0], (codes, place[own]), values[own])
        np.add.at(table[1], (codes, place[own]), 1)
        times = _counts(len(found), 0, number)
        sums[number], totals[number] = ((times @ table) * shared).sum(axis=-1)
    whole = totals.all(axis=0)  # a table with holes can lose a size
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile((sums[:, whole] / totals[:, whole]).mean(0), [tail, 1 - tail])
    if "draw" in named and "scenario" in cells and (cells["scenario"] != "clean").any():
        levels = min(levels, *(each["draw"] for each in numbers))
    return Interval(mean, float(low), float(high), levels)


@lru_cache(maxsize=128)
def _counts(levels: int, *stream: int) -> np.ndarray:
    """Return (resamples, levels): how often each resample has each level."""
    shares = np.full(levels, 1 / levels)
    generator = np.random.default_rng([levels, *stream])
    return generator.multinomial(max(1, levels - 1), shares, _RESAMPLES).astype(float)


def differences(cells: pd.DataFrame, others: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """Return the cells that have a partner in `others`, which shares the columns `on`.

    With two more columns: `other`, the partner's score, and `difference`, the score minus that.
    """
    both = cells.merge(others[[*on, "score"]].rename(columns={"score": "other"}), on=on)
    return both.assign(difference=both["score"] - both["other"])
