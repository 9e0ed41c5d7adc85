"""Named channels: the numbers that a draw needs, and where they come from. No jax in this file.

Powers are in units of the thermal noise power per antenna (n = 1): raw watts underflow float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rmtllmf_jax.common.errors import InputError, require_at_least, require_known

ORDERS = ("weakest_first", "strongest_first")
"""Decoding orders of successive interference cancellation (SIC); `None` means joint LMMSE."""


@dataclass(frozen=True)
class ChannelPreset:
    """A cell: who transmits, from where, how loudly, and how strong the attacker is.

    **Fields:**

    - `users`, `antennas`: single-antenna users Q and receive antennas N_R.
    - `min_distance_m`, `max_distance_m`: users stand uniformly between them, in metres.
    - `exponent`: path loss beta = (d / 1 km)^-exponent.
    - `edge_snr_db`: P beta(1 km) / n, the SNR per antenna of a user at 1 km.
    - `attack_budget_db`: P_N / n, the attacker's total power over the noise of one antenna.
    - `order`: decoding order, one of `ORDERS`, or `None` for joint LMMSE.

    **Raises:** `InputError` for a value that no channel can have. Hashable, so that it can be a
    static argument of `jax.jit`.
    """

    users: int = 8
    antennas: int = 16
    min_distance_m: float = 100.0
    max_distance_m: float = 1000.0
    exponent: float = 2.1
    edge_snr_db: float = 4.50
    attack_budget_db: float = 23.66
    order: str | None = "weakest_first"

    def __post_init__(self) -> None:
        require_at_least("users", self.users, 1)
        require_at_least("antennas", self.antennas, 1)
        for name in ("min_distance_m", "max_distance_m", "exponent", "edge_snr_db"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} must be finite, got {getattr(self, name)!r}.")
        if not 0 < self.min_distance_m <= self.max_distance_m:
            raise InputError(
                "distances must satisfy 0 < min_distance_m <= max_distance_m, got "
                f"{self.min_distance_m!r} and {self.max_distance_m!r}."
            )
        # -inf dB is a budget of zero: an attacker without power.
        if math.isnan(self.attack_budget_db) or self.attack_budget_db == math.inf:
            raise InputError(
                f"attack_budget_db must be below infinity, got {self.attack_budget_db!r}."
            )
        if self.order is not None:
            require_known("SIC order", self.order, ORDERS)

    @property
    def edge_snr(self) -> float:
        """P beta(1 km) / n as a ratio."""
        return 10.0 ** (self.edge_snr_db / 10)

    @property
    def attack_budget(self) -> float:
        """P_N / n as a ratio."""
        return 10.0 ** (self.attack_budget_db / 10)


PRESETS: Mapping[str, ChannelPreset] = MappingProxyType({"paper": ChannelPreset()})
"""`paper`: calibrated to R-MTLLMF (arXiv 2411.18220), which gives no link budget.

Over 20,000 drops the mean MSE is .0129 without attack, .2081 under `sum_rate` and .0327 under
`strongest_user`, whose attacked user is at .160. The paper prints .013, .21 and .16; an
eight-user mean of .16 under `strongest_user` cannot come out of its eq. (5), which saturates
at .139, so that the printed .16 can only be the attacked user's. One link budget that gives these
numbers: 0.1 mW, 3.5 GHz, line of sight, noise figure 5 dB, 128 to 420 kHz.
"""


def get_preset(name: str) -> ChannelPreset:
    """The preset called `name`.

    **Raises:** `InputError` that names the nearest preset.

    >>> get_preset("paper").antennas
    16
    """
    return PRESETS[require_known("channel preset", name, PRESETS)]
