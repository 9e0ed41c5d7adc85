"""Common random numbers: one draw of Gaussians for a sum, for an axis of SNRs, for all models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax import uplink

KEY = jax.random.key(3)
USERS = 3
MSE = jnp.array([0.0129, 0.16, 0.9])
KAPPA = jnp.array([1.7, 0.02, 0.4])
WEIGHTS = jnp.array([1.0, 0.5, -2.0])
SENT = {"a": jnp.zeros((USERS, 15, 2)), "b": jnp.zeros((USERS, 7))}
PARAMETERS = 37


def drawn(jaxpr: Any) -> int:
    """Return how many random words a program draws, whatever they become."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "random_bits":
            total += sum(variable.aval.size for variable in equation.outvars)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += drawn(inner) if hasattr(inner, "eqns") else 0
    return total


MODELS: dict[str, uplink.ErrorModel] = {
    "independent": uplink.Independent(),
    "equicorrelated": uplink.Equicorrelated(-0.3),
    "noisy_reference": uplink.NoisyReference(),
    "lmmse": uplink.Lmmse(np.array([[0.5, 0.2j, 0.3], [-0.2j, 0.6, 0.1], [0.3, 0.1, 0.9]])),
}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
AXIS = MSE * 10.0 ** -jnp.arange(5.0)[:, None]


def sum_at(mse: jax.Array, model: uplink.ErrorModel) -> Any:
    return uplink.noise_of_sum(SENT, WEIGHTS, mse, KAPPA, KEY, model)


def each_at(mse: jax.Array, model: uplink.ErrorModel) -> Any:
    return uplink.transmit(SENT, mse, KAPPA, KEY, model)


def over_axis(receive: Callable[..., Any]) -> Callable[..., Any]:
    return jax.vmap(receive, in_axes=(0, None))


def test_the_counter_counts():
    def three(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        return jax.vmap(lambda k: jax.random.normal(k, (7,)))(keys)

    assert drawn(jax.make_jaxpr(three)(KEY).jaxpr) == 21
    twice = jax.vmap(three)
    assert drawn(jax.make_jaxpr(twice)(jax.random.split(KEY, 2)).jaxpr) == 42


@models
def test_a_sum_draws_one_number_a_parameter_and_not_one_an_snr(model: uplink.ErrorModel):
    for function, mse in ((sum_at, MSE), (over_axis(sum_at), AXIS)):
        assert drawn(jax.make_jaxpr(function)(mse, model).jaxpr) == PARAMETERS
    for function, mse in ((each_at, MSE), (over_axis(each_at), AXIS)):
        count = (USERS + model.shared) * PARAMETERS
        assert drawn(jax.make_jaxpr(function)(mse, model).jaxpr) == count


@models
@pytest.mark.parametrize("receive", [sum_at, each_at])
def test_noise_at_two_snrs_is_the_same_array_up_to_the_factor(
    receive: Callable[..., Any], model: uplink.ErrorModel
):
    noise = jax.jit(over_axis(receive))(AXIS, model)
    for leaf in jax.tree.leaves(noise):
        largest = float(jnp.abs(leaf[0]).max())
        for point in range(1, 5):
            rescaled = leaf[point] * 10 ** (point / 2)
            np.testing.assert_allclose(rescaled, leaf[0], rtol=1e-5, atol=1e-5 * largest)


@models
def test_the_noise_of_a_sum_is_one_array_whatever_the_mses(model: uplink.ErrorModel):
    at = jax.jit(sum_at)
    one, other = (jnp.ravel(at(mse, model)["a"]) for mse in (MSE, MSE[::-1]))
    np.testing.assert_allclose(other, one * (other[0] / one[0]), rtol=1e-4)
    assert abs(float(other[0] / one[0]) - 1) > 0.01


@models
def test_a_models_own_sources_are_those_of_independent_errors(model: uplink.ErrorModel):
    """Paired comparisons: the models mix the same Gaussians."""
    transmit, ones = jax.jit(uplink.transmit), jnp.ones(USERS)
    silent = {"a": jnp.zeros((USERS, 100))}
    sources = np.asarray(transmit(silent, ones, ones, KEY)["a"])
    noise = np.asarray(transmit(silent, ones, ones, KEY, model)["a"])
    factor = np.asarray(model.factor(ones))
    rest = noise - factor[:, :USERS] @ sources
    assert factor.shape == (USERS, USERS + model.shared)
    if model.shared:
        shared = rest[0] / factor[0, USERS]
        np.testing.assert_allclose(rest, factor[:, USERS:] * shared, atol=1e-5)
        sample = np.concatenate([shared[None], sources])
        correlation = np.corrcoef(sample)[0, 1:]
        assert np.abs(correlation).max() < 5 / np.sqrt(shared.size)
        assert 0.5 < np.std(shared) < 1.5
    else:
        np.testing.assert_allclose(rest, 0, atol=1e-5)
