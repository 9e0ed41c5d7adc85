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


class Optimum(NamedTuple):
    """The best parameters that were seen, and the function's value before every step."""

    parameters: Parameters
    value: float
    values: Float[np.ndarray, " steps"]


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
) -> Optimum:
    """Return the best of `steps` projected Adam steps whose rate falls along a cosine to zero.

    **Arguments:**

    - `function`: what is optimised in all parameters that `start` gives.
    - `key`: the function's, the same in every step (the value then rises as on any deterministic
      function, and what was found fits these draws: judge it on others); with `fresh`, another one
      every step, and the last parameters are returned, as no two values compare.
    - `project`: see `projections`; the start is projected too.
    - `learning_rate`: step of each entry, in its own unit.

    The step is compiled once for functions of one structure: another start, key or set of arrays
    costs no compilation.

    **Raises:** `InputError` where the value is not finite.
    """
    require_at_least("steps", steps, 1)
    # A weakly typed start would compile a program of its own.
    parameters = jax.jit(project)(jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), start))
    state = optax.scale_by_adam().init(parameters)
    best, best_value = parameters, -np.inf if maximise else np.inf
    values = []
    with progress_bar("optimisation", steps + 1, unit="steps") as advance:
        for number in range(steps + 1):
            used = jax.random.fold_in(key, number) if fresh else key
            rate = learning_rate * 0.5 * (1 + np.cos(np.pi * number / steps))
            signed = jnp.asarray(rate if maximise else -rate)
            value, after, state = _step(project, function, parameters, state, used, signed)
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


@partial(jax.jit, static_argnums=(0,))
def _step(
    project: Projection,
    function: Function,
    parameters: Parameters,
    state: optax.OptState,
    key: Key[Array, ""],
    rate: Float[Array, ""],
) -> tuple[Float[Array, ""], Parameters, optax.OptState]:
    value, gradient = jax.value_and_grad(lambda here: function(here, key))(parameters)
    change, state = optax.scale_by_adam().update(gradient, state)
    moved = jax.tree.map(lambda x, d: x + (rate * d).astype(x.dtype), parameters, change)
    return value, project(moved), state
