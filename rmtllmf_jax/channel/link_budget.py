"""From watts and hertz to the SNR that the rest of the channel is in units of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rmtllmf_jax.channel.checks import require_decibels, require_positive, require_within
from rmtllmf_jax.channel.geometry import REFERENCE_DISTANCE_M
from rmtllmf_jax.channel.path_loss import PathLoss

BOLTZMANN = 1.380649e-23
"""In joules a kelvin."""


@dataclass(frozen=True)
class LinkBudget:
    """Transmitter, receiver and band of one user's link to one receive antenna.

    **Fields:**

    - `transmit_power_dbm`: P, 0 dBm is a milliwatt.
    - `bandwidth_hz`: of the carrier that P is spent on.
    - `noise_figure_db`: of the receiver, at least 0.
    - `transmit_gain_dbi`, `receive_gain_dbi`: antenna gains.
    - `temperature_k`: of the noise.

    **Raises:** `InputError` for a value that no link can have.

    >>> LinkBudget(transmit_power_dbm=-10.0, bandwidth_hz=128e3).noise_power_dbm.__round__(1)
    -117.9
    """

    transmit_power_dbm: float
    bandwidth_hz: float
    noise_figure_db: float = 5.0
    transmit_gain_dbi: float = 0.0
    receive_gain_dbi: float = 0.0
    temperature_k: float = 290.0

    def __post_init__(self) -> None:
        for name in ("transmit_power_dbm", "transmit_gain_dbi", "receive_gain_dbi"):
            require_decibels(name, getattr(self, name))
        require_within("noise_figure_db", self.noise_figure_db, 0.0, 300.0)
        require_positive("bandwidth_hz", self.bandwidth_hz)
        require_positive("temperature_k", self.temperature_k)

    @property
    def noise_power_dbm(self) -> float:
        """The thermal noise power n = k T B F of one antenna."""
        thermal_w = BOLTZMANN * self.temperature_k * self.bandwidth_hz
        return 10 * math.log10(1e3 * thermal_w) + self.noise_figure_db

    def snr(self, path_gain: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        """P beta / n with both antenna gains, as a ratio; `path_gain` is beta as a ratio."""
        require_positive("path_gain", path_gain)
        return path_gain * 10 ** (self._unit_gain_snr_db / 10)

    def edge_snr_db(
        self, path_loss: PathLoss, edge_distance_m: Real[ArrayLike, ""] = REFERENCE_DISTANCE_M
    ) -> float:
        """SNR of a user at the edge in dB; at 1 km, what a preset's `edge_snr_db` asks for.

        With an absolute path loss; a `PowerLaw` is relative to 1 km and has no SNR of its own.
        """
        return 10 * math.log10(path_loss(edge_distance_m)) + self._unit_gain_snr_db

    @property
    def _unit_gain_snr_db(self) -> float:
        gains_dbi = self.transmit_gain_dbi + self.receive_gain_dbi
        return self.transmit_power_dbm + gains_dbi - self.noise_power_dbm
