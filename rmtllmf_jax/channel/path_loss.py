"""Where the users stand, and how much of their power reaches one receive antenna from there.

A path loss is a small frozen dataclass that is called with distances in metres and returns the
power gain beta as a ratio (at most one, except for `PowerLaw`, which is relative to 1 km).
Hashable, so that it can be part of a preset that is static under `jax.jit`; differentiable in the
distance. Distances outside `range_m` raise `InputError` where they are known; inside jit they are
not checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Real

from rmtllmf_jax.channel.checks import (
    is_traced,
    require_decibels,
    require_positive,
    require_within,
)
from rmtllmf_jax.common.errors import InputError, require_at_least

_Metres = float | Float[Array, ""]

REFERENCE_DISTANCE_M = 1000.0
"""Distance at which a power law's gain is one, and for which an edge SNR is quoted."""


def user_distances(
    key: Key[Array, ""], users: int, minimum: _Metres = 100.0, maximum: _Metres = 1000.0
) -> Float[Array, " users"]:
    """Distances to the receiver in metres, independent and uniform in [minimum, maximum].

    Uniform in the distance and not in the area, as in R-MTLLMF (arXiv 2411.18220).

    **Raises:** `InputError` for no users, or unless 0 < minimum <= maximum.
    """
    _require_ring(users, minimum, maximum)
    return jax.random.uniform(key, (users,), minval=minimum, maxval=maximum)


def user_distances_by_area(
    key: Key[Array, ""], users: int, minimum: _Metres = 100.0, maximum: _Metres = 1000.0
) -> Float[Array, " users"]:
    """Distances in metres of users spread evenly over the ring between the two radii.

    The density grows with the distance: d^2 is uniform in [minimum^2, maximum^2].

    **Raises:** `InputError` for no users, or unless 0 < minimum <= maximum.
    """
    _require_ring(users, minimum, maximum)
    squared = jax.random.uniform(key, (users,), minval=minimum**2, maxval=maximum**2)
    # The root of a rounded square may lie a rounding error outside the ring.
    return jnp.clip(jnp.sqrt(squared), minimum, maximum)


def _require_ring(users: int, minimum: _Metres, maximum: _Metres) -> None:
    require_at_least("users", users, 1)
    if not (is_traced(minimum) or is_traced(maximum) or 0 < minimum <= maximum < math.inf):
        raise InputError(
            "distances must satisfy 0 < minimum <= maximum < infinity, got "
            f"{minimum!r} and {maximum!r}."
        )


PLACEMENTS: Mapping[str, Callable[..., Float[Array, " users"]]] = MappingProxyType(
    {"distance": user_distances, "area": user_distances_by_area}
)
"""Ways to draw distances, `(key, users, minimum, maximum) -> distances`, by what is uniform."""


def distances_from_positions(
    positions: Float[Array, "*batch users axes"], base_station: Float[Array, " base_axes"]
) -> Float[Array, "*batch users"]:
    """Euclidean distances in metres of users at (x, y) or (x, y, z) from a base station.

    Differentiable, except for a user at the base station itself, who has no path loss either.

    **Raises:** `InputError` if the two do not have the same two or three coordinates, or a user
    stands at the base station.

    >>> distances_from_positions(jnp.array([[3.0, 4.0]]), jnp.zeros(2)).tolist()
    [5.0]
    """
    axes = base_station.shape[0]
    if axes not in (2, 3) or positions.shape[-1] != axes:
        raise InputError(
            "positions and base station need the same two or three coordinates, got "
            f"{positions.shape[-1]} and {axes}."
        )
    distances = jnp.linalg.norm(positions - base_station, axis=-1)
    require_positive("distances from the base station", distances)
    return distances


def angles_from_positions(
    positions: Float[Array, "*batch users axes"], base_station: Float[Array, " base_axes"]
) -> Float[Array, "*batch users"]:
    """Angles in radians from broadside of an array along the y axis: sin(angle) = dy / distance.

    The input of `steering_vectors`, for users at (x, y) or (x, y, z). Differentiable except at the
    base station and, with heights, on the array's own axis.

    **Raises:** `InputError` if the two do not have the same two or three coordinates, or a user
    stands at the base station.

    >>> angles = angles_from_positions(jnp.array([[3.0, 0.0], [0.0, -2.0]]), jnp.zeros(2))
    >>> jnp.rad2deg(angles).tolist()
    [0.0, -90.0]
    """
    distances_from_positions(positions, base_station)  # checks
    offset = positions - base_station
    across = offset[..., 0] if len(base_station) == 2 else jnp.hypot(offset[..., 0], offset[..., 2])
    return jnp.arctan2(offset[..., 1], across)


SPEED_OF_LIGHT = 299_792_458.0
"""In metres a second."""


@runtime_checkable
class PathLoss(Protocol):
    """`(distance in metres) -> power gain`, valid for distances within `range_m`.

    A model that takes horizontal distances and has the heights of both ends as fields sets
    ``has_heights = True``.
    """

    @property
    def range_m(self) -> tuple[float, float]:
        """Shortest and longest distance for which the model holds."""

    def __call__(self, distance_m: Real[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """Power gain beta as a ratio."""


@dataclass(frozen=True)
class PowerLaw:
    """beta = (d / 1 km)^-exponent: the gain relative to that at 1 km, not an absolute one.

    **Raises:** `InputError` for an exponent that is negative or not finite.

    >>> PowerLaw(2.0)(jnp.array([1000.0, 500.0])).tolist()
    [1.0, 4.0]
    """

    exponent: float | Float[Array, ""]
    range_m: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        require_within("exponent", self.exponent, 0.0, math.inf)

    def __call__(self, distance_m: Real[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """Power gain relative to that at 1 km, as a ratio."""
        require_positive("distances in metres", distance_m)
        return (jnp.asarray(distance_m) / REFERENCE_DISTANCE_M) ** -self.exponent


@dataclass(frozen=True)
class FreeSpace:
    """Friis, beta = (c / (4 pi f d))^2, between isotropic antennas in each other's far field.

    **Raises:** `InputError` for a frequency that is not positive and finite.

    >>> bool(abs(10 * jnp.log10(FreeSpace(3.5e9)(1000.0)) + 103.33) < 0.01)
    True
    """

    frequency_hz: float
    range_m: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def __post_init__(self) -> None:
        require_positive("frequency_hz", self.frequency_hz)

    def __call__(self, distance_m: Real[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """Power gain as a ratio."""
        require_positive("distances in metres", distance_m)
        wavelength = SPEED_OF_LIGHT / self.frequency_hz
        return jnp.square(wavelength / (4 * math.pi * jnp.asarray(distance_m)))


@dataclass(frozen=True)
class _Urban:
    """What the two urban models of 3GPP TR 38.901 share: Table 7.4.1-1 with other numbers.

    `distance_m` is the horizontal distance d_2D. With d_3D^2 = d_2D^2 + (h_BS - h_UT)^2 and f in
    GHz, the line-of-sight loss in dB on either side of d'_BP = 4 (h_BS - 1 m) (h_UT - 1 m) f / c
    is::

        PL_1 = A + B log10 d_3D + 20 log10 f
        PL_2 = A + 40 log10 d_3D + 20 log10 f - (20 - B / 2) log10(d'_BP^2 + (h_BS - h_UT)^2)

    which meet at d'_BP with different slopes; without a line of sight, it is the larger of that
    and::

        PL' = A' + B' log10 d_3D + F' log10 f - U' (h_UT - 1.5 m)
    """

    frequency_hz: float
    line_of_sight: bool
    base_height_m: float
    user_height_m: float = 1.5

    range_m: ClassVar[tuple[float, float]] = (10.0, 5000.0)
    has_heights: ClassVar[bool] = True
    _highest_user_m: ClassVar[float]
    _los: ClassVar[tuple[float, float]]
    """A and B."""
    _nlos: ClassVar[tuple[float, float, float, float]]
    """A', B', F' and U'."""
    _shadowing_db: ClassVar[tuple[float, float]]
    """With and without line of sight."""
    _decay_m: ClassVar[float]
    """Of the line-of-sight probability."""

    def __post_init__(self) -> None:
        require_within("frequency_hz", self.frequency_hz, 0.5e9, 100e9)
        require_within("user_height_m", self.user_height_m, 1.5, self._highest_user_m)
        # Above the effective environment height of 1 m, or there is no breakpoint.
        require_positive("base_height_m - 1 m", self.base_height_m - 1)

    @property
    def breakpoint_m(self) -> float:
        """d'_BP in metres, with the TR's c = 3e8 m/s and an effective environment of 1 m."""
        return 4 * (self.base_height_m - 1) * (self.user_height_m - 1) * self.frequency_hz / 3e8

    @property
    def shadowing_std_db(self) -> float:
        """Standard deviation of the log-normal shadow fading, which the gain leaves out."""
        return self._shadowing_db[0 if self.line_of_sight else 1]

    def line_of_sight_probability(
        self, distance_m: Real[ArrayLike, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Probability of a line of sight, Table 7.4.2-1: one up to 18 m, then falling."""
        require_positive("distances in metres", distance_m)
        distance = jnp.asarray(distance_m)
        near = jnp.minimum(18 / distance, 1)
        return near + jnp.exp(-distance / self._decay_m) * (1 - near)

    def __call__(self, distance_m: Real[ArrayLike, "*batch"]) -> Float[Array, "*batch"]:
        """Power gain as a ratio; `distance_m` is the horizontal distance."""
        require_within("distances in metres", distance_m, *self.range_m)
        horizontal = jnp.asarray(distance_m)
        climb = self.base_height_m - self.user_height_m
        log_d = jnp.log10(horizontal**2 + climb**2) / 2
        log_f = math.log10(self.frequency_hz / 1e9)

        start, slope = self._los
        at_break = math.log10(self.breakpoint_m**2 + climb**2) / 2
        beyond = jnp.where(horizontal > self.breakpoint_m, log_d - at_break, 0)
        loss_db = start + slope * log_d + (40 - slope) * beyond + 20 * log_f
        if not self.line_of_sight:
            start, slope, by_frequency, by_height = self._nlos
            fixed_db = start + by_frequency * log_f - by_height * (self.user_height_m - 1.5)
            loss_db = jnp.maximum(loss_db, fixed_db + slope * log_d)
        return 10 ** (-loss_db / 10)


@dataclass(frozen=True)
class UrbanMicro(_Urban):
    """UMi street canyon of 3GPP TR 38.901, Table 7.4.1-1, outdoors; `distance_m` is horizontal.

    Holds for 10 m to 5 km and 0.5 to 100 GHz; the TR has the base station at 10 m.

    **Fields:** `frequency_hz`; `line_of_sight`, with or without; `base_height_m` above 1 m;
    `user_height_m` in 1.5 to 22.5 m.

    **Raises:** `InputError` for a field outside.

    >>> round(float(-10 * jnp.log10(UrbanMicro(3.5e9, line_of_sight=True)(100.0))), 1)
    85.3
    """

    base_height_m: float = 10.0
    _highest_user_m: ClassVar[float] = 22.5
    _los: ClassVar[tuple[float, float]] = (32.4, 21.0)
    _nlos: ClassVar[tuple[float, float, float, float]] = (22.4, 35.3, 21.3, 0.3)
    _shadowing_db: ClassVar[tuple[float, float]] = (4.0, 7.82)
    _decay_m: ClassVar[float] = 36.0


@dataclass(frozen=True)
class UrbanMacro(_Urban):
    """UMa of 3GPP TR 38.901, Table 7.4.1-1, outdoors; `distance_m` is horizontal.

    Holds for 10 m to 5 km and 0.5 to 100 GHz; the TR has the base station at 25 m. Users stand at
    13 m at most, above which the TR draws the environment's height at random.

    **Fields:** `frequency_hz`; `line_of_sight`, with or without; `base_height_m` above 1 m;
    `user_height_m` in 1.5 to 13 m.

    **Raises:** `InputError` for a field outside.

    >>> round(float(-10 * jnp.log10(UrbanMacro(3.5e9, line_of_sight=False)(500.0))), 1)
    129.9
    """

    base_height_m: float = 25.0
    _highest_user_m: ClassVar[float] = 13.0
    _los: ClassVar[tuple[float, float]] = (28.0, 22.0)
    _nlos: ClassVar[tuple[float, float, float, float]] = (13.54, 39.08, 20.0, 0.6)
    _shadowing_db: ClassVar[tuple[float, float]] = (4.0, 6.0)
    _decay_m: ClassVar[float] = 63.0


BOLTZMANN = 1.380649e-23
"""In joules a kelvin."""


@dataclass(frozen=True)
class LinkBudget:
    """Transmitter, receiver and band of one user's link to one receive antenna.

    **Fields:**

    - `transmit_power_dbm`: P; 0 dBm is one milliwatt.
    - `bandwidth_hz`: of the carrier that P is spread over.
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

        Needs an absolute path loss; a `PowerLaw` is relative to 1 km and defines no SNR.
        """
        return 10 * math.log10(path_loss(edge_distance_m)) + self._unit_gain_snr_db

    @property
    def _unit_gain_snr_db(self) -> float:
        gains_dbi = self.transmit_gain_dbi + self.receive_gain_dbi
        return self.transmit_power_dbm + gains_dbi - self.noise_power_dbm
