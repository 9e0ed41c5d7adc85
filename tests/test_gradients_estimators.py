"""The pathwise and the score-function estimator, which must agree without sharing a derivative."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_fixtures import KEY, parameters_of, tiny_objective

from rmtllmf_jax import uplink
from rmtllmf_jax.channel import ChannelPreset, Link, White
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.gradients import (
    Estimate,
    Objective,
    Parameters,
    Setting,
    pathwise,
    score_function,
    value_and_gradient,
)
from rmtllmf_jax.models.heads import Head

DRAWS = 2000


def few_features(params: Any, images: jax.Array) -> jax.Array:
    """Three parameters for the first of two features: little noise for an estimator to weigh."""
    pixels = images.reshape(len(images), -1)[:, :2].astype(params["kernel"].dtype) / 128 - 1
    hidden = jnp.tanh(pixels @ params["kernel"] + params["bias"])
    return jnp.stack([hidden, jnp.zeros_like(hidden)], axis=-1)


def small_objective(noise_draws: int = 16, metric: str = "soft_accuracy") -> Objective:
    """Two tasks that a model of three parameters reads with little doubt, until noise comes."""
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (2, 16, 2, 2, 3), dtype=np.uint8)
    base = {"kernel": jnp.array([1.5, -1.5]), "bias": jnp.array(0.0)}
    vectors = {"kernel": jnp.array([[0.5, 0.2], [0.1, -0.6]]), "bias": jnp.array([0.1, -0.1])}
    kernel = jnp.tile(jnp.array([[4.0, -4.0], [0.0, 0.0]]), (2, 1, 1))
    merged = jax.tree.map(lambda b, v: b + 0.5 * v.sum(axis=0), base, vectors)
    labels = [jnp.where(few_features(merged, jnp.asarray(x))[:, 0] > 0, 0, 1) for x in images]
    preset = ChannelPreset(users=2, antennas=4, distances_m=(300.0, 700.0))
    return Objective(
        setting=Setting(few_features, Link(preset, White()), metric, 1, noise_draws),
        base=base,
        vectors=vectors,
        heads=Head(kernel, jnp.zeros((2, 2))),
        samples=Batch(
            {"images": jnp.asarray(images), "task": jnp.arange(2)},
            jnp.stack(labels),
            jnp.full((2, 16), 1 / 32),
        ),
        kappa=jnp.array([4.0, 4.0]),
        scale=0.5,
    )


SMALL = Parameters(
    powers=jnp.array([0.8, 0.5]), budget=jnp.array(3.0), mse_factor=jnp.full((2, 2), 0.9)
)


@functools.cache
def estimates() -> tuple[Estimate, Estimate]:
    keys = jax.random.split(KEY, DRAWS)
    objective = small_objective().fixed_at(SMALL)
    return jax.jit(pathwise)(objective, SMALL, keys), jax.jit(score_function)(
        objective, SMALL, jax.random.split(jax.random.key(8), DRAWS)
    )


def distance(one: Estimate, other: Estimate, name: str) -> np.ndarray:
    """Return how many standard errors of their difference two estimates lie apart."""
    apart = np.asarray(getattr(one.mean, name)) - np.asarray(getattr(other.mean, name))
    return np.abs(apart) / np.hypot(*(np.asarray(getattr(e.error, name)) for e in (one, other)))


def scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(*jax.tree.map(lambda leaf: factor * leaf, estimate))


@pytest.mark.parametrize("name", SMALL.given())
def test_the_two_estimators_agree_within_their_errors(name: str):
    assert np.max(distance(*estimates(), name)) < 4


@pytest.mark.parametrize("name", SMALL.given())
def test_their_errors_are_small_enough_to_see_a_wrong_factor(name: str):
    path, score = estimates()
    assert np.max(distance(scaled(path, 1.3), score, name)) > 4
    assert np.max(distance(path, scaled(score, 1.3), name)) > 4


@pytest.mark.slow
def test_standard_errors_are_those_of_a_mean():
    """The spread of independent estimates of fewer draws each."""
    objective = small_objective().fixed_at(SMALL)
    several = jax.jit(jax.vmap(score_function, (None, None, 0)))(
        objective, SMALL, jax.random.split(KEY, (60, 50))
    )
    spread = np.std(several.mean.powers, axis=0, ddof=1)
    np.testing.assert_allclose(np.mean(several.error.powers, axis=0), spread, rtol=0.4)


def test_pathwise_is_the_mean_gradient_of_the_keys():
    objective = small_objective(2).fixed_at(SMALL)
    keys = jax.random.split(KEY, 5)
    found = jax.jit(pathwise)(objective, SMALL, keys)
    gradients = [value_and_gradient(objective, SMALL, key)[1].powers for key in keys]
    np.testing.assert_allclose(found.mean.powers, np.mean(gradients, axis=0), rtol=1e-4)
    expected = np.std(gradients, axis=0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found.error.powers, expected, rtol=1e-3)


def test_the_score_function_differentiates_hard_accuracy():
    """It finds that more power helps, where the pathwise gradient has nothing to say."""
    objective = small_objective(metric="accuracy").fixed_at(SMALL)
    found = jax.jit(score_function)(objective, SMALL, jax.random.split(KEY, DRAWS))
    assert np.all(found.mean.powers > 4 * found.error.powers)
    assert found.mean.budget < -4 * found.error.budget
    with pytest.raises(InputError, match="hard accuracy"):
        pathwise(objective, SMALL, jax.random.split(KEY, 2))


@pytest.mark.slow
def test_the_estimators_agree_with_errors_that_hang_together():
    model = uplink.Equicorrelated(0.5)
    objective = replace(small_objective().fixed_at(SMALL), error_model=model)
    given = Parameters(mse=jnp.array([0.05, 0.1]))
    keys = jax.random.split(KEY, (2, DRAWS))
    path, score = (
        jax.jit(estimator)(objective, given, some)
        for estimator, some in zip((pathwise, score_function), keys, strict=True)
    )
    assert np.max(distance(path, score, "mse")) < 4
    assert np.max(distance(scaled(path, 1.3), score, "mse")) > 4


def test_the_score_function_draws_the_noise_once(monkeypatch: pytest.MonkeyPatch):
    drawn, right = [], uplink.noise_of_sum

    def counted(*words: Any) -> Any:
        drawn.append(words)
        return right(*words)

    monkeypatch.setattr(uplink, "noise_of_sum", counted)
    objective = small_objective(3).fixed_at(SMALL)
    jax.eval_shape(lambda keys: score_function(objective, SMALL, keys), jax.random.split(KEY, 2))
    assert len(drawn) == 1


def test_errors():
    keys = jax.random.split(KEY, 2)
    with pytest.raises(InputError, match="at least 2 noise draws, got 1"):
        score_function(small_objective(1), SMALL, keys)
    with pytest.raises(InputError, match=r"leave parameters\.scale out"):
        score_function(small_objective(), Parameters(scale=jnp.array(0.5)), keys)
    with pytest.raises(InputError, match="the SIC order is a discrete choice"):
        score_function(small_objective(), SMALL, keys)
    with pytest.raises(InputError, match="'powers' must have shape"):
        pathwise(tiny_objective(), Parameters(powers=jnp.ones(2)), keys)
    with pytest.raises(InputError, match="in addition to that of the scenario 'white'"):
        pathwise(tiny_objective("white"), parameters_of("attack"), keys)
