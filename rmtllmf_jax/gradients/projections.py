"""Constraints on parameters: projections onto the nearest allowed ones, after every step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.gradients.parameters import LEAST_POWER, Parameters, covariance_root, root_size

_HALVINGS = 60
"""Of the interval that holds the multiplier of the sum: to rounding in float64."""


@runtime_checkable
class Projection(Protocol):
    """`parameters -> the nearest allowed ones`: pure, and hashable, as it is compiled in."""

    def __call__(self, parameters: Parameters) -> Parameters:
        """Return the nearest allowed parameters."""


@dataclass(frozen=True)
class PowerLimits:
    """Every user's share within (0, 1], and their sum within `total` (`None`: no limit).

    **Raises:** `InputError` for a sum that is not positive.
    """

    total: float | None = None

    def __post_init__(self) -> None:
        if self.total is not None and not self.total > 0:
            raise InputError(f"the sum of powers must be limited by > 0, got {self.total!r}.")

    def __call__(self, parameters: Parameters) -> Parameters:
        """Return the parameters with the nearest allowed powers."""
        assert parameters.powers is not None
        return replace(parameters, powers=nearest_powers(parameters.powers, self.total))


@dataclass(frozen=True)
class AttackLimit:
    """The attacker spends no more than its budget: tr L L^H <= 1."""

    def __call__(self, parameters: Parameters) -> Parameters:
        """Return the parameters with the nearest allowed root."""
        assert parameters.attack is not None
        root = covariance_root(parameters.attack)
        entries = jnp.stack([jnp.real(root), jnp.imag(root)])
        size = root_size(parameters.attack)
        return replace(parameters, attack=entries / jnp.maximum(size, 1))


@dataclass(frozen=True)
class NotNegative:
    """Non-negative merging coefficients."""

    def __call__(self, parameters: Parameters) -> Parameters:
        """Return the parameters with the nearest allowed coefficients."""
        assert parameters.scale is not None
        return replace(parameters, scale=jnp.maximum(parameters.scale, 0))


@dataclass(frozen=True)
class DefenceLimits:
    """Non-negative coefficients, and leaf powers within [least, most] with the given energy.

    - `sizes`: number of parameters in each leaf; the energy is that of sending all with power 1.
    """

    sizes: tuple[int, ...]
    least: float = 0.1
    most: float = 10.0

    def __call__(self, parameters: Parameters) -> Parameters:
        """Return the parameters within their limits."""
        if parameters.leaf_powers is not None:
            powers, sizes = parameters.leaf_powers, jnp.array(self.sizes, float)
            far = (jnp.max(jnp.abs(powers)) + self.most) * sizes.max() / sizes.min()
            limits = self.least, self.most
            # Shifts of either sign: energy that is not spent is spread, too.
            found = _shifted(powers, sizes / sizes.max(), sizes.sum(), sizes, limits, (-far, far))
            parameters = replace(parameters, leaf_powers=found)
        return NotNegative()(parameters) if parameters.scale is not None else parameters


def nearest_powers(
    powers: Float[Array, " users"], total: float | Float[Array, ""] | None = None
) -> Float[Array, " users"]:
    """Return the nearest shares in [LEAST_POWER, 1] with a sum of at most `total`.

    They are ``clip(p - t, least, 1)`` with the least t >= 0 that satisfies the limit, by bisection.
    A total below the sum of the least powers gives those.
    """
    low = jnp.clip(powers, LEAST_POWER, 1.0)
    if total is None:
        return low

    ends = jnp.zeros_like(powers[0]), jnp.maximum(jnp.max(powers), 0)
    one = jnp.ones_like(powers)
    found = _shifted(powers, one, total, one, (LEAST_POWER, 1.0), ends)
    return jnp.where(jnp.sum(low) > total, found, low)


def _shifted(
    powers: Float[Array, " entries"],
    direction: Float[Array, " entries"],
    total: float | Float[Array, ""],
    weights: Float[Array, " entries"],
    limits: tuple[float, float],
    ends: tuple[Array, Array],
) -> Float[Array, " entries"]:
    """Return ``clip(p - t direction, *limits)`` with a weighted sum of at most `total`.

    Takes the least t between the `ends` that satisfies the limit, by bisection.
    """

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (bounds[0] + bounds[1]) / 2
        above = jnp.sum(weights * jnp.clip(powers - middle * direction, *limits)) > total
        return jnp.where(above, middle, bounds[0]), jnp.where(above, bounds[1], middle)

    _, shift = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
    return jnp.clip(powers - shift * direction, *limits)
