"""Two estimators of one gradient, each with its standard error: one checks the other.

Both estimate ``d/dparameters E[score]`` over channels and noise. The pathwise one differentiates
the score along the noise. The score-function one (REINFORCE) never differentiates the model: it
weights values of the score by the derivative of the noise's log density. It needs many more draws,
in proportion to the number of parameters of the model, and is for small models.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.gradients.objective import Objective, score_of_model
from rmtllmf_jax.gradients.parameters import Parameters


class Estimate(NamedTuple):
    """A gradient, and the standard error of each of its entries."""

    mean: Parameters
    error: Parameters


def pathwise(objective: Objective, parameters: Parameters, keys: Key[Array, " draws"]) -> Estimate:
    """Return the mean of ``jax.grad(objective)`` over keys."""
    gradient = jax.grad(objective.__call__)
    return _mean(jax.lax.map(lambda key: gradient(parameters, key), keys))


def score_function(
    objective: Objective, parameters: Parameters, keys: Key[Array, " draws"]
) -> Estimate:
    """Return the score-function estimate over keys, each the objective's channels and noise draws.

    With the errors' weighted sum ``s_l z_l`` in leaf l, of d_l parameters::

        d/ds_l E[f] = E[ (f - b) (|z_l|^2 - d_l) / s_l ]

    chained with ds_l/dparameters. The baseline b is the mean score of the other noise draws of the
    channel, which keeps the estimate unbiased. The score may be anything, even `accuracy`.

    **Raises:** `InputError` for fewer than two noise draws, and for a merging coefficient among the
    parameters, which moves the mean of the model and not only the noise.
    """
    draws = objective.setting.noise_draws
    if draws < 2:
        raise InputError(f"the baseline needs at least 2 noise draws, got {draws}.")
    if parameters.scale is not None:
        raise InputError(
            "the score-function estimator differentiates in what moves the noise alone; the "
            "merging coefficient also moves the mean: leave parameters.scale out."
        )

    def of_channel(channel: Key[Array, ""], noises: Key[Array, " draws"]) -> Parameters:
        stds, back = jax.vjp(lambda p: _stds(objective, p, channel), parameters)
        mse = objective.user_mse(parameters, channel)

        def draw(noise: Key[Array, ""]) -> tuple[Float[Array, ""], PyTree]:
            drawn = objective.noise(parameters, mse, noise)
            slopes = jax.tree.map(
                lambda n, s: (jnp.sum(jnp.square(n / s)) - n.size) / s, drawn, stds
            )
            return score_of_model(objective, objective.merged(parameters, drawn)), slopes

        scores, slopes = jax.lax.map(draw, noises)
        others = (jnp.sum(scores) - scores) / (draws - 1)
        found = jax.tree.map(lambda slope: jnp.mean((scores - others) * slope), slopes)
        return back(found)[0]

    def of_key(key: Key[Array, ""]) -> Parameters:
        channels, noises = objective.draw_keys(key)
        found = jax.lax.map(lambda part: of_channel(*part), (channels, noises))
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), found)

    return _mean(jax.lax.map(of_key, keys))


def _stds(
    objective: Objective, parameters: Parameters, channel: Key[Array, ""]
) -> PyTree[Float[Array, ""]]:
    """Return the standard deviation of the noise on every leaf of the fused model."""
    mse = objective.user_mse(parameters, channel)
    return jax.tree.map(
        lambda w, mu: objective.error_model.std_of_sum(w, objective.kappa, mu),
        objective.weights(parameters),
        objective.errors(parameters, mse),
    )


def _mean(found: Parameters) -> Estimate:
    size = len(jax.tree.leaves(found)[0])
    return Estimate(
        jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), found),
        jax.tree.map(lambda leaf: jnp.std(leaf, axis=0, ddof=1) / jnp.sqrt(size), found),
    )
