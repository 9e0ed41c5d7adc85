"""Statistics of many drops of a channel, in memory independent of their number."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Histograms of log10(MSE): a bin is 0.12 % wide, far less than the spread of drops.
_LOWEST_DECADE, _PER_DECADE = -12, 2000
_BINS = -_LOWEST_DECADE * _PER_DECADE

PERCENTILES = (5, 50, 95)
"""Percentiles that summaries and bands show."""


class Tally:
    """Means and distributions of the users' MSE over drops, users from weakest to strongest.

    Means are exact, in float64; percentiles are right to 0.12 % for an MSE above 1e-12.
    """

    def __init__(self, users: int) -> None:
        """Start without drops, for `users` users."""
        self.drops = 0
        # Per column: each user, then the mean over the users.
        self._counts = np.zeros((users + 1, _BINS), np.int64)
        self._low, self._high = np.full(users + 1, np.inf), np.zeros(users + 1)
        self._origin = np.zeros(users + 1)
        self._sum, self._sum_of_squares = np.zeros(users + 1), np.zeros(users + 1)
        self._rates, self._worst_db = np.zeros(users), 0.0

    def add(self, mse: np.ndarray) -> None:
        """Count drops: `mse` in [0, 1] is (drops, users), users by rising received power."""
        values = np.column_stack([mse, np.mean(mse, axis=1, dtype=float)]).astype(float)
        if not self.drops:
            self._origin = values[0]  # differences: no digits lost, exact if equal
        self.drops += len(values)
        self._sum += np.sum(values - self._origin, axis=0)
        self._sum_of_squares += np.sum((values - self._origin) ** 2, axis=0)
        self._low = np.minimum(self._low, np.min(values, axis=0))
        self._high = np.maximum(self._high, np.max(values, axis=0))
        with np.errstate(divide="ignore"):  # a perfect uplink has an infinite rate
            decades = np.log10(values)
        self._rates -= math.log(10) * np.sum(decades[:, :-1], axis=0)
        self._worst_db -= 10 * float(np.sum(np.max(decades[:, :-1], axis=1)))
        place = np.clip((decades - _LOWEST_DECADE) * _PER_DECADE, 0, _BINS - 1).astype(int)
        for column, counts in enumerate(self._counts):
            counts += np.bincount(place[:, column], minlength=_BINS)

    @property
    def user_mse(self) -> np.ndarray:
        """Mean MSE of each user, weakest first."""
        return self._means[:-1]

    @property
    def user_rate(self) -> np.ndarray:
        """Mean rate of each user in nats, -log(MSE), weakest first."""
        return self._rates / self.drops

    def user_percentile(self, percent: int) -> np.ndarray:
        """A percentile (1 to 100) over drops of each user's MSE, weakest first."""
        return np.array([self._percentile(user, percent) for user in range(len(self._rates))])

    def distribution(self) -> tuple[np.ndarray, np.ndarray]:
        """Values of a drop's mean MSE, and the share of drops at or below each."""
        counts = self._counts[-1]
        seen = np.flatnonzero(counts)
        value = np.clip(_value(seen + 1), self._low[-1], self._high[-1])
        share = np.cumsum(counts[seen]) / self.drops
        return np.insert(value, 0, self._low[-1]), np.insert(share, 0, 0.0)

    def summary(self, c0_db: float) -> dict[str, Any]:
        """The numbers of a table, by the names that scripts read.

        `c0_db` is the parameter-domain SNR of a user with MSE 1; the worst user's is averaged in
        dB. `mse_attacked` is that of the strongest user. NaN where one drop is not enough.
        """
        variance = math.nan
        if self.drops > 1:
            spread = self._sum_of_squares[-1] - self._sum[-1] ** 2 / self.drops
            variance = max(float(spread), 0.0) / (self.drops - 1)
        return {
            "mse_mean": float(self._means[-1]),
            "mse_standard_error": math.sqrt(variance / self.drops),
            "mse_attacked": float(self._means[-2]),
            "sum_rate": float(np.sum(self.user_rate)),
            "percentiles": {str(p): self._percentile(-1, p) for p in PERCENTILES},
            "worst_user_snr_db": self._worst_db / self.drops + c0_db,
            "user_mse": self.user_mse.tolist(),
            "user_rate": self.user_rate.tolist(),
        }

    @property
    def _means(self) -> np.ndarray:
        return self._origin + self._sum / self.drops

    def _percentile(self, column: int, percent: int) -> float:
        counts = self._counts[column]
        wanted = percent / 100 * self.drops
        reached = np.cumsum(counts)
        place = int(np.searchsorted(reached, wanted))
        within = (wanted - (reached[place] - counts[place])) / counts[place]
        return float(np.clip(_value(place + within), self._low[column], self._high[column]))


def _value(place: Any) -> Any:
    """The MSE at a place on the histogram's axis, in bins from its left end."""
    return 10.0 ** (_LOWEST_DECADE + place / _PER_DECADE)
