"""Noise on received task vectors: its law, its keys, its derivatives."""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal
from scipy import stats

from rmtllmf_jax import fusion, uplink

transmit = jax.jit(uplink.transmit)
noise_of_sum = jax.jit(uplink.noise_of_sum)

KEY = jax.random.key(7)
USERS = 3
MSE = jnp.array([0.0129, 0.16, 0.9])
KAPPA = jnp.array([1.7, 0.02, 0.4])


def stacked(rows: int = 200, users: int = USERS) -> dict:
    """Task vectors of different size a user; the two kernels have one shape."""
    random = np.random.default_rng(0)

    def leaf(*shape: int, std: float) -> jax.Array:
        sizes = np.array([1e-3, 2e-2, 1.0, 5.0])[:users].reshape(-1, *[1] * len(shape))
        return jnp.asarray(std * sizes * random.normal(size=(users, *shape)), jnp.float32)

    return {
        "a": {"kernel": leaf(rows, 50, std=1.0), "bias": leaf(50, std=4.0)},
        "b": {"kernel": leaf(rows, 50, std=0.1)},
    }


def few() -> dict:
    """Return task vectors of one small leaf."""
    return {"a": stacked()["a"]["bias"][:, :6].reshape(USERS, 2, 3)}


def rows_of(tree: Any) -> np.ndarray:
    """Return stacked leaves as one float64 row per user."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


def zeros_like(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


def assert_variance(sample: np.ndarray, variance: float) -> None:
    """Bound the sum of squares by chi-square quantiles that one sample in a million leaves."""
    scaled = np.sum(np.square(sample)) / variance
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], sample.size)
    assert low < scaled < high, f"variance {scaled / sample.size:.4f} of the expected one"


@functools.cache
def drawn_noise() -> dict:
    """Return the errors of the users."""
    return transmit(zeros_like(stacked()), MSE, KAPPA, KEY)


# One by one


def test_a_perfect_uplink_changes_no_bit():
    sent = stacked()
    assert_trees_equal(transmit(sent, jnp.zeros(USERS), KAPPA, KEY), sent)


def test_one_perfect_user_among_noisy_ones_changes_no_bit():
    sent = stacked()
    received = transmit(sent, MSE.at[1].set(0.0), KAPPA, KEY)
    assert_trees_equal(fusion.unstack(received)[1], fusion.unstack(sent)[1])
    assert not np.array_equal(received["b"]["kernel"][2], sent["b"]["kernel"][2])


def test_the_error_of_each_user_has_its_own_variance():
    errors = rows_of(drawn_noise())
    for user in range(USERS):
        assert_variance(errors[user], float(KAPPA[user] ** 2 * MSE[user]))


def test_the_error_is_gaussian():
    errors = rows_of(drawn_noise())
    for row in errors:
        assert stats.kstest(row / np.std(row), "norm").pvalue > 1e-4


def test_the_error_is_added_to_what_was_sent():
    sent = stacked()
    noise = drawn_noise()
    expected = jax.tree.map(jnp.add, sent, noise)
    chex.assert_trees_all_close(transmit(sent, MSE, KAPPA, KEY), expected, rtol=1e-5, atol=1e-6)


def test_errors_of_users_and_leaves_are_uncorrelated():
    noise = drawn_noise()
    kernels = [noise[name]["kernel"].reshape(USERS, -1) for name in "ab"]
    correlation = np.corrcoef(np.concatenate(kernels).astype(np.float64))
    size = kernels[0].shape[1]
    assert np.abs(correlation - np.eye(2 * USERS)).max() < 5 / np.sqrt(size)


def test_the_same_key_gives_proportional_noise_whatever_the_mse():
    silent = zeros_like(stacked())
    low = rows_of(drawn_noise())
    high = rows_of(transmit(silent, 4 * MSE, KAPPA, KEY))
    np.testing.assert_allclose(high, 2 * low, rtol=1e-6)


def test_another_key_gives_other_noise():
    silent = zeros_like(stacked())
    one = rows_of(drawn_noise())
    two = rows_of(transmit(silent, MSE, KAPPA, jax.random.key(8)))
    for a, b in zip(one, two, strict=True):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(a.size)


def test_a_leaf_and_a_user_more_leave_the_other_noise_alone():
    more = {"a": few()["a"], "a0": jnp.ones((USERS, 5))}
    fewer = {"a": more["a"][:2]}
    received = transmit(more, MSE, KAPPA, KEY)
    alone = transmit(fewer, MSE[:2], KAPPA[:2], KEY)
    assert_trees_equal(alone, {"a": received["a"][:2]})


def test_independent_errors_are_keyed_by_leaf_and_user():
    """The numbers of published results: written out, bit for bit."""
    sent = {"x": {"kernel": jnp.ones((USERS, 3, 2))}}
    leaf_key = jax.random.fold_in(KEY, zlib.crc32(b"x/kernel"))
    std, weights = KAPPA * jnp.sqrt(MSE), jnp.array([1.0, 0.5, -2.0])
    received = uplink.transmit(sent, MSE, KAPPA, KEY)["x"]["kernel"]
    for user in range(USERS):
        z = jax.random.normal(jax.random.fold_in(leaf_key, user), (3, 2))
        np.testing.assert_array_equal(received[user], 1 + z * std[user])
    total = uplink.noise_of_sum(sent, weights, MSE, KAPPA, KEY)["x"]["kernel"]
    variance = jnp.sum(jnp.square(weights * KAPPA) * MSE)
    expected = jax.random.normal(leaf_key, (3, 2)) * jnp.sqrt(variance)
    np.testing.assert_array_equal(total, expected)


MODELS = {
    "independent": uplink.Independent(),
    "equicorrelated": uplink.Equicorrelated(0.4),
    "anticorrelated": uplink.Equicorrelated(-0.3),
    "noisy_reference": uplink.NoisyReference(),
    "lmmse": uplink.Lmmse(np.array([[0.5, 0.2j, 0.3], [-0.2j, 0.6, 0.1], [0.3, 0.1, 0.9]])),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_what_arrives_is_what_was_sent_and_the_factor_times_the_sources(model: Any):
    """Whoever keeps the sources has the errors of every MSE: exactly these Gaussians, e = F z."""
    sent = stacked(rows=20)
    for key in (KEY, jax.random.key(8)):
        sources = uplink.draw_sources(sent, key, model)
        assert_trees_equal(uplink.draw_sources(sent, key, type(model)), sources)
        for mse in (MSE, jnp.array([0.3, 0.0, 1e-3])):
            factor = np.asarray(model.factor(KAPPA * jnp.sqrt(mse)), np.float64)
            received = transmit(sent, mse, KAPPA, key, model)
            for path, leaf in fusion.leaves_by_path(sent).items():
                z = np.asarray(fusion.leaves_by_path(sources)[path], np.float64)
                assert z.shape == (USERS + model.shared, *leaf.shape[1:])
                error = np.tensordot(factor, z, axes=1)
                np.testing.assert_allclose(
                    fusion.leaves_by_path(received)[path],
                    np.asarray(leaf, np.float64) + error,
                    rtol=1e-5,
                    atol=1e-5,
                )


def test_sources_are_standard_and_the_users_own_whatever_the_model():
    sent = stacked()
    own = uplink.draw_sources(sent, KEY)
    for row in rows_of(own):
        assert_variance(row, 1.0)
        assert stats.kstest(row, "norm").pvalue > 1e-4
    shared = rows_of(uplink.draw_sources(sent, KEY, uplink.NoisyReference))
    np.testing.assert_array_equal(shared[:USERS], rows_of(own))
    assert np.abs(np.corrcoef(shared) - np.eye(USERS + 1)).max() < 5 / np.sqrt(shared.shape[1])


# The sum, drawn once


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.3, -2.0, 0.5]])
def test_noise_of_the_sum_has_the_variance_of_the_summed_noises(weights: list[float]):
    silent, w = zeros_like(stacked()), jnp.array(weights)
    variance = float(np.sum(np.square(np.array(weights) * KAPPA) * MSE))
    once = noise_of_sum(silent, w, MSE, KAPPA, KEY)
    assert jax.tree.map(jnp.shape, once) == jax.tree.map(lambda x: x.shape[1:], silent)
    summed = fusion.weighted_sum(drawn_noise(), w)
    for tree in (once, summed):
        assert_variance(rows_of(jax.tree.map(lambda x: x[None], tree)), variance)


def test_noise_of_the_sum_differs_by_leaf_and_key():
    silent, w = zeros_like(stacked()), jnp.ones(USERS)
    one = noise_of_sum(silent, w, MSE, KAPPA, KEY)
    two = noise_of_sum(silent, w, MSE, KAPPA, jax.random.key(8))
    kernels = [tree[name]["kernel"].ravel() for tree in (one, two) for name in "ab"]
    correlation = np.corrcoef(np.stack(kernels).astype(np.float64))
    assert np.abs(correlation - np.eye(4)).max() < 5 / np.sqrt(kernels[0].size)


def test_noise_of_the_sum_is_proportional_and_knows_leaves_by_name():
    sent, w = stacked(), jnp.array([1.0, 0.5, 1.0])
    noise = noise_of_sum(sent, w, MSE, KAPPA, KEY)
    louder = noise_of_sum(sent, w, 9 * MSE, KAPPA, KEY)
    chex.assert_trees_all_close(louder, jax.tree.map(lambda x: 3 * x, noise), rtol=1e-6)
    more = sent | {"a0": jnp.ones((USERS, 5))}
    again = noise_of_sum(more, w, MSE, KAPPA, KEY)
    assert_trees_equal({name: again[name] for name in sent}, noise)


def test_no_noise_in_the_sum_of_perfect_uplinks_or_of_nobody():
    sent = stacked()
    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[0]), sent)
    for w, mse in ((jnp.ones(USERS), jnp.zeros(USERS)), (jnp.zeros(USERS), MSE)):
        assert_trees_equal(noise_of_sum(sent, w, mse, KAPPA, KEY), nothing)


# kappa


@pytest.mark.parametrize("c0_db", [-31.0, 0.0, 12.5])
def test_kappa_gives_the_parameter_domain_snr(c0_db: float):
    sent = stacked()
    kappa = uplink.kappa_from_c0(sent, c0_db)
    power = np.mean(np.square(rows_of(sent)), axis=1)
    expected = -10 * np.log10(np.asarray(MSE, np.float64)) + c0_db
    snr_db = 10 * np.log10(power / (np.asarray(kappa, np.float64) ** 2 * MSE))
    np.testing.assert_allclose(snr_db, expected, atol=1e-4)

    noise = jax.tree.map(jnp.subtract, transmit(sent, MSE, kappa, KEY), sent)
    measured = 10 * np.log10(power / np.mean(np.square(rows_of(noise)), axis=1))
    np.testing.assert_allclose(measured, expected, atol=0.2)


def test_the_default_is_the_papers():
    sent = stacked()
    np.testing.assert_array_equal(uplink.kappa_from_c0(sent), uplink.kappa_from_c0(sent, -31.0))


def test_kappa_per_leaf_gives_each_leaf_the_same_snr():
    sent = stacked()
    kappa = uplink.kappa_per_leaf(sent, 10.0)
    silent = zeros_like(sent)
    noise = transmit(silent, MSE, kappa, KEY)
    summed = noise_of_sum(silent, jnp.ones(USERS), MSE, kappa, KEY)
    for path, leaf in fusion.leaves_by_path(sent).items():
        power = np.mean(np.square(rows_of(leaf)), axis=1)
        variance = power / 10 * np.asarray(MSE, np.float64)
        errors = rows_of(fusion.leaves_by_path(noise)[path])
        for user in range(USERS):
            assert_variance(errors[user], variance[user])
        assert_variance(np.asarray(fusion.leaves_by_path(summed)[path]), variance.sum())


def test_kappa_per_leaf_of_equal_leaves_is_kappa():
    kernel = stacked()["a"]["kernel"]
    sent = {"a": kernel, "b": kernel}
    kappa, per_leaf = uplink.kappa_from_c0(sent), uplink.kappa_per_leaf(sent)
    chex.assert_trees_all_close(per_leaf, {"a": kappa, "b": kappa}, rtol=1e-6)


# Transformations

KINDS: dict[str, Callable[..., Any]] = {
    "transmit": uplink.transmit,
    "noise of the sum": lambda sent, mse, kappa, key: uplink.noise_of_sum(
        sent, jnp.array([1.0, 0.5, -2.0], mse.dtype), mse, kappa, key
    ),
}
kinds = pytest.mark.parametrize("receive", KINDS.values(), ids=KINDS.keys())


@kinds
def test_under_jit(receive: Callable[..., Any]):
    sent = few()
    once, twice = receive(sent, MSE, KAPPA, KEY), jax.jit(receive)(sent, MSE, KAPPA, KEY)
    chex.assert_trees_all_close(once, twice, rtol=1e-5, atol=1e-7)


@kinds
def test_mapped_over_keys_and_mses(receive: Callable[..., Any]):
    sent = few()
    keys = jax.random.split(KEY, 3)
    mses = MSE * jnp.array([[1.0], [0.0], [5.0]])
    one = jax.jit(receive)
    mapped = jax.jit(jax.vmap(receive, in_axes=(None, 0, None, 0)))(sent, mses, KAPPA, keys)
    for index, tree in enumerate(fusion.unstack(mapped)):
        expected = one(sent, mses[index], KAPPA, keys[index])
        chex.assert_trees_all_close(tree, expected, rtol=1e-5, atol=1e-7)


@kinds
def test_one_trace_serves_all_combinations_and_channels(receive: Callable[..., Any]):
    sent = few()
    chex.clear_trace_counter()  # chex counts by name, and there are two kinds

    @jax.jit
    @chex.assert_max_traces(n=1)
    def merge(weights: Any, mse: Any, kappa: Any, key: Any) -> Any:
        return fusion.weighted_sum(sent, weights), receive(sent, mse, kappa, key)

    for index, weights in enumerate(itertools.product((0.0, 1.0), repeat=USERS)):
        merge(jnp.array(weights), index * MSE, KAPPA + index, jax.random.fold_in(KEY, index))


@kinds
def test_gradient_in_the_mse(receive: Callable[..., Any]):
    with jax.enable_x64(True):
        silent = {"a": jnp.zeros((USERS, 4, 5))}
        mse, kappa = jnp.asarray(MSE, jnp.float64), jnp.asarray(KAPPA, jnp.float64)

        @jax.jit
        @functools.partial(jax.value_and_grad, has_aux=True)
        def loss(mse: jax.Array) -> tuple[jax.Array, jax.Array]:
            received = receive(silent, mse, kappa, KEY)["a"]
            return jnp.sum(jnp.sin(received)), received

        (_, received), gradient = loss(mse)
        steps = 1e-4 * mse[:, None] * jnp.eye(USERS)
        numeric = [(loss(mse + d)[0][0] - loss(mse - d)[0][0]) / (2 * jnp.sum(d)) for d in steps]
        np.testing.assert_allclose(gradient, np.array(numeric), rtol=1e-5)
        if received.ndim == 3:  # one by one: d tau^_q / d mu_q = e_q / (2 mu_q)
            expected = jnp.sum(jnp.cos(received) * received, axis=(1, 2)) / (2 * mse)
            np.testing.assert_allclose(gradient, expected, rtol=1e-10)


@kinds
def test_gradient_at_a_perfect_uplink_is_zero(receive: Callable[..., Any]):
    sent = few()

    @jax.jit
    @jax.grad
    def gradient(mse: jax.Array) -> jax.Array:
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(receive(sent, mse, KAPPA, KEY)))

    np.testing.assert_array_equal(gradient(jnp.zeros(USERS)), np.zeros(USERS))
    some = gradient(MSE.at[1].set(0.0))
    assert np.isfinite(some).all()
    assert some[0] != 0
    assert some[2] != 0


def test_a_perfect_user_does_not_touch_the_gradient_of_the_noisy_ones():
    sent = few()

    @jax.jit
    @jax.grad
    def gradient(mse: jax.Array) -> jax.Array:
        return jnp.sum(uplink.transmit(sent, mse, KAPPA, KEY)["a"])

    noisy, mixed = gradient(MSE), gradient(MSE.at[1].set(0.0))
    np.testing.assert_allclose(mixed, noisy.at[1].set(0.0), rtol=1e-6)
