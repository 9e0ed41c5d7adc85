"""Where the users stand and what the distance costs them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

REFERENCE_DISTANCE_M = 1000.0
"""Distance at which the path gain is one, so that an edge SNR is quoted at 1 km."""


def user_distances(
    key: Key[Array, ""], users: int, minimum: float = 100.0, maximum: float = 1000.0
) -> Float[Array, " users"]:
    """Distances to the receiver in metres, independent and uniform in [minimum, maximum].

    Uniform in the distance and not in the area, as R-MTLLMF (arXiv 2411.18220) has it.
    """
    return jax.random.uniform(key, (users,), minval=minimum, maxval=maximum)


def power_law_path_loss(
    distance: Float[Array, "*batch"], exponent: float | Float[Array, ""]
) -> Float[Array, "*batch"]:
    """Power gain beta = (d / 1 km)^-exponent; `distance` in metres, positive.

    >>> power_law_path_loss(jnp.array([1000.0, 100.0]), 2.0).round(1).tolist()
    [1.0, 100.0]
    """
    return (distance / REFERENCE_DISTANCE_M) ** -exponent


def path_amplitude(
    distance: Float[Array, "*batch"], exponent: float | Float[Array, ""]
) -> Float[Array, "*batch"]:
    """Amplitude gain sqrt(beta): what a column of H is multiplied by."""
    return jnp.sqrt(power_law_path_loss(distance, exponent))
