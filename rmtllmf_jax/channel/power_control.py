"""Uplink power control: what share of its full power P each user transmits with.

A power control is a pure function `(path_gain, weakest_gain, alpha) -> p / P` in (0, 1].
`path_gain` is beta of each user; `weakest_gain` is beta at the weakest location of the cell, where
a user always needs the full power; both in one unit, which cancels. Differentiable, except where
a user stands at that location, as the power saturates there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rmtllmf_jax.channel.checks import require_positive, require_within

PowerControl = Callable[
    [Float[Array, "*batch"], Real[ArrayLike, ""], Real[ArrayLike, ""]], Float[Array, "*batch"]
]
"""`(path_gain, weakest_gain, alpha) -> p / P`."""


def none(
    path_gain: Float[Array, "*batch"],
    weakest_gain: Real[ArrayLike, ""],
    alpha: Real[ArrayLike, ""],
) -> Float[Array, "*batch"]:
    """Full power for all, as in the paper: each rate grows with the user's power.

    `weakest_gain` and `alpha` are not used.

    >>> none(jnp.array([1.0, 0.25]), 0.25, 1.0).tolist()
    [1.0, 1.0]
    """
    return jnp.ones_like(path_gain)


def full(
    path_gain: Float[Array, "*batch"],
    weakest_gain: Real[ArrayLike, ""],
    alpha: Real[ArrayLike, ""],
) -> Float[Array, "*batch"]:
    """Full inversion, p = min(P, P weakest_gain / beta): the same mean received power for all.

    That power is what the weakest location reaches at full power. `alpha` is not used.

    >>> full(jnp.array([1.0, 0.25]), 0.25, 1.0).tolist()
    [0.25, 1.0]
    """
    return fractional(path_gain, weakest_gain, 1.0)


def fractional(
    path_gain: Float[Array, "*batch"],
    weakest_gain: Real[ArrayLike, ""],
    alpha: Real[ArrayLike, ""],
) -> Float[Array, "*batch"]:
    """Power p = min(P, P_0 beta^-alpha), the open loop of 3GPP TS 38.213, section 7.1.1.

    P_0 = P weakest_gain^alpha, so that the weakest location just reaches the full power. `alpha`
    in [0, 1]: 0 is no power control, 1 is full inversion.

    **Raises:** `InputError` for a gain or an alpha outside.

    >>> fractional(jnp.array([1.0, 0.25]), 0.25, 0.5).tolist()
    [0.5, 1.0]
    """
    require_positive("path_gain", path_gain)
    require_positive("weakest_gain", weakest_gain)
    require_within("alpha", alpha, 0.0, 1.0)
    return jnp.minimum((weakest_gain / path_gain) ** alpha, 1)


POWER_CONTROLS: Mapping[str, PowerControl] = MappingProxyType(
    {"none": none, "full": full, "fractional": fractional}
)
"""Every power control by name."""
