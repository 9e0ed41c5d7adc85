"""The gradient against finite differences, on a user's own objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key
from scipy.differentiate import derivative

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.gradients.objective import Objective, value, value_and_gradient
from rmtllmf_jax.gradients.parameters import Parameters

# Relative steps at which central differences begin, and how often they are halved: in float32 the
# rounding of the score, about 1e-7 of it, is what a small step drowns in.
_STEPS = {"float32": (0.2, 4), "float64": (0.05, 6)}

TOLERANCE = {"float32": 1e-3, "float64": 1e-6}
"""Relative error that is allowed by default, by the type that the objective computes in."""


@dataclass(frozen=True)
class Agreement:
    """A derivative in one parameter, along a random direction, computed in two ways."""

    parameter: str
    gradient: float
    """By JAX: of the score, or for ``order=2`` of its slope, with reverse mode inside."""
    difference: float
    """By central differences with common random numbers."""
    uncertainty: float
    """How far the difference may be off, by its own estimate: the last two steps' disagreement."""

    @property
    def relative_error(self) -> float:
        """The difference of the two derivatives over the larger of them; 0 where both are 0."""
        size = max(abs(self.gradient), abs(self.difference))
        return abs(self.gradient - self.difference) / size if size else 0.0

    def verdict(self, tolerance: float) -> str:
        """Return `agrees`, `differs`, or `too small to tell`.

        They agree if their relative difference is within `tolerance` plus the error of the finite
        differences themselves. Where that error is more than a tenth of the derivative, agreement
        would say little.
        """
        size = max(abs(self.gradient), abs(self.difference))
        if not abs(self.gradient - self.difference) <= tolerance * size + 3 * self.uncertainty:
            return "differs"
        return "too small to tell" if 10 * self.uncertainty > size > 0 else "agrees"


def check_gradient(
    objective: Objective,
    parameters: Parameters,
    key: Key[Array, ""],
    seed: int = 0,
    advance: Callable[[int], object] = lambda _: None,
    order: int = 1,
) -> list[Agreement]:
    """Return the agreement of first or second derivatives for every parameter that is given.

    Each is moved along one random direction, drawn from `seed`, with entries proportional to those
    of the parameter. The differences are central, of fourth order
    (`scipy.differentiate.derivative`), at the same `key` as the derivative: of the score, or with
    an `order` of 2 of its slope along the direction, for the curvature that ``jax.hessian`` gives.
    Fix the discrete choices first (`Objective.fixed_at`): where one of them changes between two
    steps, a difference is not a derivative. `advance` is called with 1 after each parameter, for a
    progress bar.

    **Raises:** `InputError` if no parameter is given, and what the objective raises.
    """
    names = parameters.given()
    if not names:
        raise InputError("there is nothing to differentiate in: no parameter is given.")
    if order not in (1, 2):
        raise InputError(f"order must be 1 (gradient) or 2 (Hessian), got {order!r}.")
    score, gradient = value_and_gradient(objective, parameters, key)
    generator = np.random.default_rng(seed)
    found = []
    for name in names:
        here = getattr(parameters, name)
        way = _direction(here, generator)
        slope = float(np.vdot(np.asarray(getattr(gradient, name), float), np.asarray(way, float)))
        exact, differentiated = slope, float(score)
        if order == 2:
            exact = float(_curvature(objective, parameters, key, name, way))
            differentiated = slope
        rounding = float(jnp.finfo(score.dtype).eps) * abs(differentiated)
        step, halvings = _STEPS[str(jnp.asarray(here).dtype)]

        def along(t: Any, name: str = name, here: Any = here, way: Any = way) -> float:
            moved = replace(parameters, **{name: here + jnp.asarray(t, here.dtype) * way})
            if order == 1:
                return float(value(objective, moved, key))
            slope = getattr(value_and_gradient(objective, moved, key)[1], name)
            return float(np.vdot(np.asarray(slope, float), np.asarray(way, float)))

        # NumPy reads the processor's flags after each call, and XLA may leave there what came of
        # numbers that nobody reads. A score that is not a number shows in the result.
        with np.errstate(all="ignore"):
            result = derivative(
                np.vectorize(along, otypes=[float]),
                0.0,
                order=4,
                initial_step=step,
                maxiter=halvings,
                tolerances={"atol": 0.0, "rtol": 0.0},
            )
        # Where no step moves the rounded score, all of them agree on a derivative of zero.
        uncertainty = max(float(result.error), rounding / step)
        found.append(Agreement(name, exact, float(result.df), uncertainty))
        advance(1)
    return found


@partial(jax.jit, static_argnums=3)
def _curvature(
    objective: Objective, parameters: Parameters, key: Array, name: str, way: Any
) -> Array:
    def slope(here: Any) -> Array:
        def score(here: Any) -> Array:
            return objective(replace(parameters, **{name: here}), key)

        return jax.grad(score)(here)

    _, bent = jax.jvp(slope, (getattr(parameters, name),), (way,))
    return jnp.sum(bent * way)


def _direction(here: Any, generator: np.random.Generator) -> Any:
    """Return a random direction; entries that are zero move by a tenth of the largest one."""
    size = np.abs(np.asarray(here, float))
    floor = 0.1 * max(size.max(initial=0.0), 1e-3)
    signs = generator.uniform(0.5, 1.0, size.shape) * generator.choice([-1.0, 1.0], size.shape)
    return jax.numpy.asarray(np.maximum(size, floor) * signs, here.dtype)
