"""The numbers of a channel and an attack, over drops."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

PERCENTILES = (5, 50, 95)
"""Percentiles that summaries show, of a drop's mean MSE."""


def channel_summary(mse: Float[np.ndarray, "drops users"], c0_db: float) -> dict[str, Any]:
    """Return the numbers of a table, under the names that scripts use.

    `mse` is in [0, 1], users from the weakest to the strongest by received power. `c0_db` is the
    parameter-domain SNR of a user with MSE 1; the worst user's is averaged in dB. `mse_attacked` is
    that of the strongest user. Rates are in nats; NaN where one drop is not enough.
    """
    mse = np.asarray(mse, float)
    by_user, by_drop = mse.mean(axis=0), mse.mean(axis=1)
    gaps = by_drop - by_drop[0]  # exact if equal
    error = gaps.std(ddof=1) / np.sqrt(len(mse)) if len(mse) > 1 else np.nan
    with np.errstate(divide="ignore"):  # a perfect uplink has an infinite rate
        rates = -np.log(mse).mean(axis=0)
        worst_db = -10 * np.log10(mse.max(axis=1)).mean()
    percentiles = np.percentile(by_drop, PERCENTILES, method="inverted_cdf")
    return {
        "mse_mean": float(by_drop.mean()),
        "mse_standard_error": float(error),
        "mse_attacked": float(by_user[-1]),
        "sum_rate": float(rates.sum()),
        "percentiles": dict(zip(map(str, PERCENTILES), percentiles.tolist(), strict=True)),
        "worst_user_snr_db": float(worst_db) + c0_db,
        "user_mse": by_user.tolist(),
        "user_rate": rates.tolist(),
    }
