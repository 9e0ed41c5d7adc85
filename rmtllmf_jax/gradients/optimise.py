"""Projected gradient steps on any pure function of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.gradients.parameters import Parameters
from rmtllmf_jax.gradients.projections import Projection

Function = Callable[[Parameters, Key[Array, ""]], Float[Array, ""]]
"""`(parameters, key) -> scalar`; a pytree that is callable, such as `Objective`."""


ADAM = optax.scale_by_adam()
"""Every entry takes steps of one size, whatever its gradient's: for limits of each entry."""

TOGETHER = optax.chain(optax.trace(decay=0.8), optax.normalize_by_update_norm())
"""Steps of one length along the gradient's running mean.

For limits of a norm. Adam is wrong there: where the gradient is normal to the limit, as it is at
the constrained optimum, Adam's step is not, and leads away.
"""


class Optimum(NamedTuple):
    """The best parameters that were seen, and the function's value before every step.

    For several optima found together, all fields begin with their axis.
    """

    parameters: Parameters
    value: float | Float[Array, " optima"]
    values: Float[np.ndarray, "*optima steps"]


def optimise(
    function: Function,
    start: Parameters,
    key: Key[Array, ""],
    project: Projection,
    *,
    steps: int = 50,
    learning_rate: float = 0.05,
    maximise: bool = True,
    fresh: bool = False,
    rule: optax.GradientTransformation = ADAM,
) -> Optimum:
    """Return the best of `steps` projected gradient steps with a cosine decay of the rate to zero.

    **Arguments:**

    - `function`: optimised over all parameters that `start` gives.
    - `key`: that of the function, the same in every step (the value then rises as on any
      deterministic function, and the result fits these draws: evaluate it on others); with `fresh`,
      a different one in every step, and the last parameters are returned, as no two values are
      comparable.
    - `project`: see `projections`; the start is projected too.
    - `rule`: turns a gradient into a step: `ADAM`, or `TOGETHER` where a limit couples entries.
    - `learning_rate`: for `ADAM` the step of each entry, in its own unit; for `TOGETHER` the length
      of the step.

    The step is compiled once for functions of the same structure: another start, key or set of
    arrays costs no compilation.

    **Raises:** `InputError` where the value is not finite.
    """
    require_at_least("steps", steps, 1)
    # A weakly typed start would compile a program of its own.
    parameters = jax.jit(project)(jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), start))
    state = rule.init(parameters)
    best, best_value = parameters, -np.inf if maximise else np.inf
    values = []
    with progress_bar("optimisation", steps + 1, unit="steps") as advance:
        for number in range(steps + 1):
            used = jax.random.fold_in(key, number) if fresh else key
            rate = learning_rate * 0.5 * (1 + np.cos(np.pi * number / steps))
            signed = jnp.asarray(rate if maximise else -rate)
            value, after, state = _step(project, rule, function, parameters, state, used, signed)
            values.append(float(value))
            if not np.isfinite(values[-1]):
                raise InputError(
                    f"the value at step {number} is {values[-1]}: take a smaller learning rate, or "
                    "look at the parameters it began with."
                )
            better = values[-1] > best_value if maximise else values[-1] < best_value
            if fresh or better:
                best, best_value = parameters, values[-1]
            parameters = after
            advance(1)
    return Optimum(best, best_value, np.array(values))


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    project: Projection,
    rule: optax.GradientTransformation,
    function: Function,
    parameters: Parameters,
    state: optax.OptState,
    key: Key[Array, ""],
    rate: Float[Array, ""],
) -> tuple[Float[Array, ""], Parameters, optax.OptState]:
    value, gradient = jax.value_and_grad(lambda here: function(here, key))(parameters)
    change, state = rule.update(gradient, state)
    moved = jax.tree.map(lambda x, d: x + (rate * d).astype(x.dtype), parameters, change)
    return value, project(moved), state
