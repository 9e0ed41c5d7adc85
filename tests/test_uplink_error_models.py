"""Error models: their covariance across users, and that of weighted sums."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import complex_normal
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from scipy import stats

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.uplink import (
    ERROR_MODELS,
    INDEPENDENT,
    Equicorrelated,
    ErrorModel,
    Independent,
    Lmmse,
    NoisyReference,
    get_error_model,
    kappa_per_leaf,
    parse_error_model,
)
from rmtllmf_jax.uplink.error_models import safe_sqrt

transmit = jax.jit(uplink.transmit)
noise_of_sum = jax.jit(uplink.noise_of_sum)

KEY = jax.random.key(11)
USERS = 4
MSE = jnp.array([0.0129, 0.16, 0.9, 0.3])
KAPPA = jnp.array([1.7, 0.02, 0.4, 1.0])
WEIGHTS = jnp.array([1.0, 0.5, -2.0, 0.3])


def channel_gram(seed: int, users: int = USERS, antennas: int = 5) -> np.ndarray:
    """Return H^H H of a channel whose users are hard to tell apart."""
    random = np.random.default_rng(seed)
    h = random.normal(size=(antennas, users)) + 1j * random.normal(size=(antennas, users))
    return h.conj().T @ h / 2


def error_covariance(seed: int = 0, users: int = USERS) -> np.ndarray:
    return np.linalg.inv(np.eye(users) + channel_gram(seed, users))


MODELS: dict[str, ErrorModel] = {
    "independent": Independent(),
    "equicorrelated=0.5": Equicorrelated(0.5),
    "equicorrelated=-0.3": Equicorrelated(-0.3),
    "noisy_reference": NoisyReference(),
    "lmmse": Lmmse(error_covariance()),
}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def expected_covariance(name: str, std: np.ndarray) -> np.ndarray:
    """Return the covariance of the users' errors, each model's written down as it is defined."""
    if name == "noisy_reference":
        return np.diag(std**2) + np.mean(std**2)
    error = error_covariance().real
    correlation = {
        "independent": np.eye(USERS),
        "equicorrelated=0.5": np.full((USERS, USERS), 0.5),
        "equicorrelated=-0.3": np.full((USERS, USERS), -0.3),
        "lmmse": error / np.sqrt(np.outer(np.diag(error), np.diag(error))),
    }[name].copy()
    np.fill_diagonal(correlation, 1)
    return np.outer(std, std) * correlation


def silent(size: int = 30, users: int = USERS) -> dict[str, jax.Array]:
    return {"a": jnp.zeros((users, size // 2, 2))}


def rows_of(tree: Any) -> np.ndarray:
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


# The law


@pytest.mark.parametrize("name", MODELS)
def test_covariance_is_the_models(name: str):
    with jax.enable_x64(True):
        std = np.asarray(KAPPA * np.sqrt(MSE), np.float64)
        covariance = MODELS[name].covariance(jnp.array(std))
        np.testing.assert_allclose(covariance, expected_covariance(name, std), atol=1e-13)


@pytest.mark.parametrize("name", MODELS)
def test_errors_have_that_covariance(name: str):
    errors = rows_of(transmit(silent(40_000), MSE, KAPPA, KEY, MODELS[name]))
    size = errors.shape[1]
    std = np.asarray(KAPPA * np.sqrt(MSE), np.float64)
    expected = expected_covariance(name, std)
    # Var of a sample covariance: (s_ii s_jj + s_ij^2) / N.
    deviation = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / size)
    assert np.all(np.abs(errors @ errors.T / size - expected) < 5 * deviation)


@pytest.mark.parametrize(
    ("model", "cosine"),
    [
        ("noisy_reference", 0.5),
        ("independent", 0.0),
        ("equicorrelated=0.3", 0.3),
        ("equicorrelated=-0.14", -0.14),
        ("equicorrelated=1", 1.0),
    ],
)
def test_cosine_between_the_noises_of_users_with_equal_mse(model: str, cosine: float):
    users, size = 4, 200_000  # standard error of a cosine: at most 1 / sqrt(200000) = .0022
    noise = transmit(
        {"a": jnp.zeros((users, size))},
        jnp.full(users, 0.2),
        jnp.full(users, 3.0),
        KEY,
        get_error_model(model, users),
    )
    found = np.asarray(jax.jit(fusion.cosine_matrix)(noise))
    assert np.abs(found[~np.eye(users, dtype=bool)] - cosine).max() < 0.01


def test_lmmse_is_the_law_of_simulated_receiver_errors():
    """Errors of x^ = (K + I)^-1 H^H y, real parts, against the model with E = (I + K)^-1."""
    random, symbols = np.random.default_rng(0), 200_000
    h = 1.5 * complex_normal(random, 3, USERS)
    x, z = complex_normal(random, USERS, symbols), complex_normal(random, 3, symbols)
    gram = h.conj().T @ h
    error = np.linalg.solve(gram + np.eye(USERS), h.conj().T @ (h @ x + z)) - x
    covariance = np.linalg.inv(np.eye(USERS) + gram)
    kappa = np.array([1.7, 0.2, 0.4, 1.0])
    # A real dimension has half the power of a symbol; parameters have kappa^2 mu.
    received = np.sqrt(2) * kappa[:, None] * error.real
    with jax.enable_x64(True):
        model = get_error_model("lmmse", USERS, covariance)
        std = jnp.array(kappa * np.sqrt(np.diag(covariance).real))
        expected = np.asarray(model.covariance(std))
    np.testing.assert_allclose(expected, np.outer(kappa, kappa) * covariance.real, atol=1e-12)
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.abs((received @ received.T / symbols - expected) / scale).max() < 5 * np.sqrt(
        2 / symbols
    )
    assert np.abs(expected / scale)[0, 1:].max() > 0.1  # not the independent model in disguise


def test_lmmse_correlations_average_to_zero_over_channels():
    covariances = jnp.array([error_covariance(seed) for seed in range(2000)])
    found = jax.jit(jax.vmap(lambda e: Lmmse(e).covariance(jnp.ones(USERS))))(covariances)
    pairs = np.asarray(found)[:, *np.triu_indices(USERS, 1)]
    assert np.abs(pairs.mean(axis=0)).max() < 5 * pairs.std() / np.sqrt(2000)
    assert pairs.std() > 0.1


def test_a_user_without_error_is_uncorrelated_under_lmmse():
    covariance = np.zeros((3, 3), complex)
    covariance[:2, :2] = error_covariance(users=2)
    model = get_error_model("lmmse", 3, covariance)
    found = model.covariance(jnp.ones(3))
    np.testing.assert_array_equal(found[2], [0, 0, 1])
    assert abs(found[0, 1]) > 0.01


# The sum, drawn once


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(list(MODELS)),
    weights=st.lists(st.floats(-3, 3), min_size=USERS, max_size=USERS),
    mse=st.lists(st.floats(0, 2), min_size=USERS, max_size=USERS),
    kappa=st.lists(st.floats(0, 5), min_size=USERS, max_size=USERS),
)
def test_std_of_sum_is_that_of_the_covariance(
    name: str, weights: list[float], mse: list[float], kappa: list[float]
):
    with jax.enable_x64(True):
        w, mu, k = (jnp.array(values) for values in (weights, mse, kappa))
        found = MODELS[name].std_of_sum(w, k, mu)
    std = np.array(kappa) * np.sqrt(mse)
    covariance = expected_covariance(name, std)
    size = np.sum(np.abs(np.outer(weights, weights) * covariance))
    np.testing.assert_allclose(found**2, weights @ covariance @ weights, atol=1e-14 * size + 1e-300)


@models
def test_noise_of_sum_and_summed_noises_have_one_variance(model: ErrorModel):
    leaves = silent(40_000)
    summed = fusion.weighted_sum(transmit(leaves, MSE, KAPPA, KEY, model), WEIGHTS)
    once = noise_of_sum(leaves, WEIGHTS, MSE, KAPPA, KEY, model)
    variance = float(model.std_of_sum(WEIGHTS, KAPPA, MSE)) ** 2
    for tree in (summed, once):
        sample = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        scaled = np.sum(np.square(sample, dtype=np.float64)) / variance
        low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], sample.size)
        assert low < scaled < high


def test_a_kappa_a_leaf_gives_each_leaf_its_own_reference():
    sent = {"a": jnp.ones((2, 20_000)), "b": jnp.full((2, 20_000), 5.0)}
    kappa = kappa_per_leaf(sent, 0.0)
    noise = noise_of_sum(sent, jnp.ones(2), jnp.ones(2), kappa, KEY, NoisyReference())
    # (1 + 1) + (1 + 1)^2 times the leaf's mean square.
    np.testing.assert_allclose(np.std(noise["a"]), np.sqrt(6), rtol=0.02)
    np.testing.assert_allclose(np.std(noise["b"]), 5 * np.sqrt(6), rtol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_ends_of_the_correlations_range(dtype: str):
    @jax.jit
    def law(model: ErrorModel, one: jax.Array) -> tuple[jax.Array, ...]:
        return model.factor(one), model.covariance(one), model.std_of_sum(one, one, one)

    with jax.enable_x64(True):
        for users in (2, 8):
            one = jnp.ones(users, dtype)
            least = get_error_model(Equicorrelated(np.array(-1 / (users - 1), dtype)), users)
            _, covariance, std = law(least, one)
            np.testing.assert_allclose(std, 0, atol=1e-5)
            np.testing.assert_allclose(jnp.diag(covariance), 1, rtol=1e-6)
            _, _, std = law(get_error_model("equicorrelated=1", users), one)
            np.testing.assert_allclose(std, users, rtol=1e-6)
            factor, _, _ = law(get_error_model("equicorrelated=0", users), one)
            np.testing.assert_array_equal(factor, np.eye(users))
        for value in law(Equicorrelated(-0.9), one):
            assert np.isnan(value).all()


# Transformations


def each_at(mse: jax.Array, model: ErrorModel) -> Any:
    return transmit(silent(), mse, KAPPA, KEY, model)


def sum_at(mse: jax.Array, model: ErrorModel) -> Any:
    return noise_of_sum(silent(), WEIGHTS, mse, KAPPA, KEY, model)


def model_of(name: str, value: jax.Array) -> ErrorModel:
    """Return a model that depends on a number: the correlation, or the SNR of the channel."""
    if name == "lmmse":
        return Lmmse(jnp.linalg.inv(jnp.eye(USERS) + value * channel_gram(0)))
    return Equicorrelated(value) if name == "equicorrelated" else ERROR_MODELS[name]()


SOURCES = np.random.default_rng(5).normal(size=(USERS + 1, 6))


def errors_of(model: ErrorModel, p: dict[str, jax.Array]) -> jax.Array:
    """Return the standard deviation of the sum, and the errors for fixed sources."""
    sources = jnp.asarray(SOURCES[: USERS + model.shared], p["mse"].dtype)
    errors = model.mix(p["kappa"] * safe_sqrt(p["mse"]), sources)
    total = model.std_of_sum(p["weights"], p["kappa"], p["mse"])
    return jnp.append(jnp.ravel(errors), total)


@pytest.mark.parametrize("name", ERROR_MODELS)
def test_derivatives_are_finite_differences(name: str):
    with jax.enable_x64(True):
        point = {"mse": MSE, "kappa": KAPPA, "weights": WEIGHTS, "value": jnp.array(0.35)}
        flat, unflatten = ravel_pytree(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), point))

        def errors(flat: jax.Array) -> jax.Array:
            p = unflatten(flat)
            return errors_of(model_of(name, p["value"]), p)

        derivative = jax.jit(jax.jacrev(errors))(flat)
        steps = np.diag(1e-5 * np.abs(flat))
        high, low = jax.jit(jax.vmap(errors))(np.concatenate([flat + steps, flat - steps])).reshape(
            2, flat.size, -1
        )
        numeric = ((high - low) / (2 * np.diag(steps)[:, None])).T
        np.testing.assert_allclose(derivative, numeric, rtol=1e-6, atol=1e-8)
        by_value = jax.vmap(unflatten)(derivative)["value"]
        assert (float(jnp.abs(by_value).max()) > 1e-2) == (name in ("equicorrelated", "lmmse"))


@models
def test_a_perfect_uplink_has_no_noise_and_derivative_zero(model: ErrorModel):
    @jax.jit
    def loss(mse: jax.Array) -> tuple[jax.Array, jax.Array]:
        def errors(mse: jax.Array) -> jax.Array:
            return errors_of(model, {"mse": mse, "kappa": KAPPA, "weights": WEIGHTS})

        return errors(mse), jax.jacrev(errors)(mse)

    for value in loss(jnp.zeros(USERS)):
        np.testing.assert_array_equal(value, np.zeros_like(value))
    _, derivative = loss(MSE.at[1].set(0.0))
    assert np.isfinite(derivative).all()
    np.testing.assert_array_equal(derivative[:-1, 1], 0)
    assert np.all(np.any(np.asarray(derivative)[:, [0, 2, 3]] != 0, axis=0))


@models
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_noise_has_the_dtype_of_its_leaf(model: ErrorModel, dtype: str):
    with jax.enable_x64(dtype == "float64"):
        sent = {"a": jax.ShapeDtypeStruct((USERS, 5), dtype)}
        rest = MSE, KAPPA, KEY, model
        assert jax.eval_shape(transmit, sent, *rest)["a"].dtype == dtype
        assert jax.eval_shape(noise_of_sum, sent, WEIGHTS, *rest)["a"].dtype == dtype


def test_one_trace_serves_all_correlations_and_channels():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=2)  # one per class
    def receive(model: ErrorModel) -> Any:
        return each_at(MSE, model), sum_at(MSE, model)

    for index in range(3):
        receive(Equicorrelated(jnp.asarray(0.2 * index)))
        receive(Lmmse(error_covariance(index)))


def test_mapped_over_correlations():
    rhos = jnp.array([-0.2, 0.0, 0.6])
    mapped = jax.jit(jax.vmap(lambda rho: each_at(MSE, Equicorrelated(rho))))(rhos)
    for tree, rho in zip(fusion.unstack(mapped), rhos, strict=True):
        chex.assert_trees_all_close(tree, each_at(MSE, Equicorrelated(rho)), rtol=1e-4, atol=1e-6)


# Names and checks


def test_models_by_name():
    assert get_error_model("independent", 3) == INDEPENDENT
    assert get_error_model("noisy_reference", 3) == NoisyReference()
    assert get_error_model("equicorrelated=0.25", 3) == Equicorrelated(0.25)
    matrix = error_covariance()
    assert get_error_model("lmmse", USERS, matrix).error_covariance is matrix
    assert get_error_model(INDEPENDENT, 3) is INDEPENDENT
    assert parse_error_model("equicorrelated=1e-1") == ("equicorrelated", 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("independant", "Did you mean 'independent'"),
        ("equicorrelated", "expected a correlation, for example equicorrelated=0.5"),
        ("equicorrelated=", "expected a correlation"),
        ("equicorrelated=half", "expected a correlation, .* got 'equicorrelated=half'"),
        ("equicorrelated=nan", "must lie between .* got nan"),
        ("equicorrelated=1.01", "must lie between .* and 1, got 1.01"),
        ("equicorrelated=-0.51", r"3 users' errors must lie between -1/\(users - 1\) = -0.5"),
        ("noisy_reference=0.5", "'noisy_reference' takes no number"),
        ("lmmse", "needs the receiver's error covariance"),
    ],
)
def test_bad_names_are_refused(text: str, message: str):
    with pytest.raises(InputError, match=message):
        get_error_model(text, 3)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(2), r"Hermitian \(3, 3\) matrix >= 0, got the shape \(2, 2\)"),
        (np.eye(3) + np.triu(np.ones((3, 3)), 1), "not finite and Hermitian"),
        (1j * np.ones((3, 3)), "not finite and Hermitian"),
        (np.full((3, 3), np.nan), "not finite and Hermitian"),
        (np.eye(3) - 0.6, "got the eigenvalue -0.8"),
    ],
)
def test_bad_error_covariances_are_refused(matrix: np.ndarray, message: str):
    with pytest.raises(InputError, match=message):
        get_error_model("lmmse", 3, matrix)


def test_no_user_is_refused():
    for model in (INDEPENDENT, NoisyReference(), Equicorrelated(0.0), Lmmse(np.zeros((0, 0)))):
        with pytest.raises(InputError, match="users must be at least 1, got 0"):
            get_error_model(model, 0)


def test_every_model_has_a_structure_of_its_own() -> None:
    """Or a program that was compiled for one would run with another."""
    kinds = [
        uplink.get_error_model("independent", 2),
        uplink.get_error_model("noisy_reference", 2),
        uplink.get_error_model("equicorrelated=0.3", 2),
        uplink.get_error_model("lmmse", 2, jnp.eye(2)),
    ]
    structures = [jax.tree.structure(kind) for kind in kinds]
    for i, one in enumerate(structures):
        assert [one == other for other in structures] == [i == j for j in range(len(kinds))]
        again = jax.tree.unflatten(one, jax.tree.leaves(kinds[i]))
        assert type(again) is type(kinds[i])
