"""Where the users stand and how far that is from the receiver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rmtllmf_jax.channel.checks import is_traced, require_positive
from rmtllmf_jax.common.errors import InputError, require_at_least

REFERENCE_DISTANCE_M = 1000.0
"""Distance at which a power law's gain is one, and for which an edge SNR is quoted."""


def user_distances(
    key: Key[Array, ""],
    users: int,
    minimum: float | Float[Array, ""] = 100.0,
    maximum: float | Float[Array, ""] = 1000.0,
) -> Float[Array, " users"]:
    """Distances to the receiver in metres, independent and uniform in [minimum, maximum].

    Uniform in the distance and not in the area, as R-MTLLMF (arXiv 2411.18220) has it.

    **Raises:** `InputError` for no users, or unless 0 < minimum <= maximum.
    """
    _require_ring(users, minimum, maximum)
    return jax.random.uniform(key, (users,), minval=minimum, maxval=maximum)


def user_distances_by_area(
    key: Key[Array, ""],
    users: int,
    minimum: float | Float[Array, ""] = 100.0,
    maximum: float | Float[Array, ""] = 1000.0,
) -> Float[Array, " users"]:
    """Distances in metres of users spread evenly over the ring between the two radii.

    The density grows with the distance: d^2 is uniform in [minimum^2, maximum^2].

    **Raises:** `InputError` for no users, or unless 0 < minimum <= maximum.
    """
    _require_ring(users, minimum, maximum)
    squared = jax.random.uniform(key, (users,), minval=minimum**2, maxval=maximum**2)
    # The root of a rounded square may lie a rounding error outside the ring.
    return jnp.clip(jnp.sqrt(squared), minimum, maximum)


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

    What `steering_vectors` takes, for users at (x, y) or (x, y, z). Differentiable but at the base
    station and, with heights, on the array's own axis.

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


def _require_ring(
    users: int, minimum: float | Float[Array, ""], maximum: float | Float[Array, ""]
) -> None:
    require_at_least("users", users, 1)
    if is_traced(minimum) or is_traced(maximum):
        return
    if not 0 < minimum <= maximum < float("inf"):
        raise InputError(
            "distances must satisfy 0 < minimum <= maximum < infinity, got "
            f"{minimum!r} and {maximum!r}."
        )
