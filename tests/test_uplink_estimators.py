"""Estimators: least errors, NumPy's singular values, derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal

from rmtllmf_jax import uplink
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.uplink import (
    ESTIMATORS,
    GAUSSIAN,
    Reliability,
    Shrink,
    SingularValues,
    get_estimator,
)
from rmtllmf_jax.uplink.estimators import _shrunk

KEY = jax.random.key(5)
USERS = 2
MSE = jnp.array([0.1, 0.4])
KAPPA = jnp.array([1.0, 2.0])
SHAPES = {"kernel": (40, 100), "conv": (3, 3, 4, 60), "bias": (500,)}
SCALES = {"kernel": 2.0, "conv": 0.2, "bias": 0.5}


def sent_vectors(rank: int = 3) -> dict:
    """Kernels of low rank, each leaf with a power of its own."""
    random = np.random.default_rng(2)

    def leaf(name: str) -> np.ndarray:
        shape = SHAPES[name]
        if len(shape) == 1:
            return SCALES[name] * random.normal(size=(USERS, *shape))
        rows, columns = int(np.prod(shape[:-1])), shape[-1]
        factors = [random.normal(size=(USERS, *s)) for s in ((rows, rank), (rank, columns))]
        return SCALES[name] * (factors[0] @ factors[1] / np.sqrt(rank)).reshape(USERS, *shape)

    return {name: jnp.asarray(leaf(name), jnp.float32) for name in SHAPES}


def known(sent: dict) -> tuple[Any, Any, Any]:
    return GAUSSIAN.variance(sent, MSE, KAPPA), GAUSSIAN.energy(sent), MSE


def received_of(sent: dict) -> dict:
    return uplink.transmit(sent, MSE, KAPPA, KEY)


def errors(found: dict, sent: dict) -> dict[str, np.ndarray]:
    return {
        name: np.mean(np.square(np.asarray(found[name] - sent[name])).reshape(USERS, -1), axis=1)
        for name in sent
    }


def test_wiener_has_the_error_of_the_best_linear_estimate():
    sent = sent_vectors()
    received, by = received_of(sent), known(sent)
    found = errors(Shrink()(received, *by), sent)
    for name, error in found.items():
        power, noise = np.asarray(by[1][name]), np.asarray(by[0][name])
        np.testing.assert_allclose(error, power * noise / (power + noise), rtol=0.25)
        for scale in (0.9, 1.1):  # no other factor does better, but by chance
            other = errors(jax.tree.map(lambda x, s=scale: s * x, Shrink()(received, *by)), sent)
            assert np.all(other[name] > 0.995 * error)


def test_the_factor_of_a_user_is_that_of_its_whole_vector():
    sent = sent_vectors()
    received, by = received_of(sent), known(sent)
    found = Shrink(per="user")(received, *by)
    sizes = {name: float(np.prod(shape)) for name, shape in SHAPES.items()}
    power = sum(sizes[name] * by[1][name] for name in sizes) / sum(sizes.values())
    factor = power / (power + KAPPA**2 * MSE)
    for name, leaf in received.items():
        expected = leaf * factor.reshape(-1, *[1] * (leaf.ndim - 1))
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


@pytest.mark.parametrize("per", ["leaf", "user"])
def test_the_power_estimated_from_what_arrived(per: str):
    sent = sent_vectors()
    received, by = received_of(sent), known(sent)
    blind = Shrink(per, known=False)(received, by[0], None_of(by[1]), MSE)
    informed = Shrink(per)(received, *by)
    for name in sent:
        np.testing.assert_allclose(blind[name], informed[name], rtol=0.5, atol=0.1)
    noise = uplink.transmit(jax.tree.map(jnp.zeros_like, sent), MSE, KAPPA, KEY)
    quiet = Shrink(per, known=False)(noise, jax.tree.map(lambda v: 1.2 * v, by[0]), by[1], MSE)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(quiet))


def None_of(tree: Any) -> Any:
    """NaNs in its place, which nothing may use."""
    return jax.tree.map(lambda leaf: leaf * np.nan, tree)


def test_weights_of_the_users():
    received = {"w": jnp.ones((3, 4))}
    mse = jnp.array([0.01, 0.04, 0.16])
    found = Reliability(0.5)(received, mse, mse, mse)["w"][:, 0]
    np.testing.assert_allclose(found, 3 * np.array([4, 2, 1]) / 7, rtol=1e-5)
    assert_trees_equal(Reliability(0.0)(received, mse, mse, mse), received)
    assert_trees_equal(Reliability(1.0)(received, mse, mse, 0 * mse), received)
    one = Reliability(1.0)(received, mse, mse, mse.at[1].set(0))["w"][:, 0]
    np.testing.assert_allclose(one, [0, 3, 0], atol=1e-6)


def by_numpy(matrix: np.ndarray, variance: float) -> np.ndarray:
    """The formula of Gavish and Donoho, by the singular value decomposition."""
    short, long = sorted(matrix.shape)
    left, values, right = np.linalg.svd(matrix.astype(float), full_matrices=False)
    beta, y = short / long, values / np.sqrt(variance * long)
    eta = np.sqrt(np.maximum((y**2 - beta - 1) ** 2 - 4 * beta, 0)) / y
    eta = np.where(y > 1 + np.sqrt(beta), eta, 0)
    return (left * (eta * np.sqrt(variance * long))) @ right


def test_singular_values_as_numpy_has_them():
    sent = sent_vectors()
    received, by = received_of(sent), known(sent)
    found = jax.jit(SingularValues().__call__)(received, *by)
    for name in ("kernel", "conv"):
        for user in range(USERS):
            matrix = np.asarray(received[name][user]).reshape(-1, SHAPES[name][-1])
            expected = by_numpy(matrix, float(by[0][name][user]))
            got = np.asarray(found[name][user]).reshape(matrix.shape)
            np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(matrix).max())
    np.testing.assert_array_equal(found["bias"], Shrink()(received, *by)["bias"])


def test_eigenvalues_are_not_sought_in_batches():
    """Many batches in one program have waited for each other for ever."""
    sent = sent_vectors()
    received, by = received_of(sent), known(sent)
    mses = jnp.stack([MSE, MSE])
    over_links = jax.vmap(lambda mse: SingularValues()(received, by[0], by[1], mse))
    powers = jax.vmap(lambda power: SingularValues()(received, power, by[1], MSE))
    for program, given in ((over_links, mses), (powers, mses)):
        lines = str(jax.make_jaxpr(program)(given)).splitlines()
        found = [line for line in lines if "= eigh" in line]
        assert len(found) == 2
        assert all(line.count(",") == 1 for line in (each.split("=")[0] for each in found))


def test_a_matrix_of_low_rank_is_found_better_than_by_wiener():
    sent = sent_vectors()
    received, by = received_of(sent), known(sent)
    fine = errors(SingularValues()(received, *by), sent)["kernel"]
    assert np.all(fine < 0.5 * errors(Shrink()(received, *by), sent)["kernel"])


@pytest.mark.parametrize("estimator", [Shrink(), Shrink("user", known=False), SingularValues()])
def test_without_noise_nothing_changes(estimator: Any):
    sent = sent_vectors()
    perfect = jnp.zeros(USERS)
    assert_trees_equal(estimator(sent, perfect, GAUSSIAN.energy(sent), perfect), sent)
    narrow = jax.tree.map(lambda leaf: leaf.at[1].set(0).astype(jnp.bfloat16), sent)
    found = estimator(narrow, perfect, perfect, perfect)
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, narrow)


def assert_derivative(score: Callable[[Any], Any], here: Any, rtol: float = 1e-6) -> None:
    """Along a random direction, against central differences of fourth order."""
    leaves, tree = jax.tree.flatten(here)
    random = np.random.default_rng(4)
    way = jax.tree.unflatten(tree, [jnp.asarray(random.normal(size=x.shape)) * x for x in leaves])
    _, slope = jax.jvp(score, (here,), (way,))
    step = 1e-5

    def at(t: float) -> Any:
        return score(jax.tree.map(lambda x, d: x + t * d, here, way))

    expected = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)
    np.testing.assert_allclose(slope, expected, rtol=rtol)
    backward = jax.grad(score)(here)
    product = sum(
        jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (backward, way)), strict=True)
    )
    np.testing.assert_allclose(product, slope, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "estimator",
    [Shrink(), Shrink("user"), Shrink(known=False), Reliability(0.7), SingularValues()],
    ids=described,
)
def test_derivatives(estimator: Any):
    random = np.random.default_rng(1)
    shapes = {"wide": (6, 9), "tall": (7, 5), "bias": (8,)}
    received = {name: jnp.asarray(random.normal(size=(2, *s))) for name, s in shapes.items()}
    variance = {name: jnp.array([0.04, 0.1]) for name in shapes}
    energy = {name: jnp.array([0.5, 1.5]) for name in shapes}
    weights = {name: random.normal(size=leaf.shape) for name, leaf in received.items()}

    @jax.jit
    def score(given: tuple) -> jax.Array:
        found = estimator(*given)
        return sum(jnp.sum(weights[name] * leaf) for name, leaf in found.items())

    assert_derivative(score, (received, variance, energy, MSE.astype(jnp.float64)))


@pytest.mark.usefixtures("x64")
def test_derivatives_at_equal_singular_values_and_at_zero():
    random = np.random.default_rng(1)
    basis, _ = np.linalg.qr(random.normal(size=(5, 5)))
    matrix = jnp.asarray(basis * np.array([3.0, 3.0, 3.0, 3.0, 0.01]))
    weights = random.normal(size=(5, 5))

    def score(matrix: jax.Array) -> jax.Array:
        return jnp.sum(weights * _shrunk(matrix, jnp.asarray(0.1)))

    assert_derivative(score, matrix)
    assert np.all(np.isfinite(jax.grad(score)(jnp.zeros((5, 5)))))
    slopes = jax.grad(lambda v: jnp.sum(_shrunk(matrix, v)))(jnp.asarray(0.0))
    assert np.isfinite(slopes)


def test_over_a_batch_of_links():
    sent = sent_vectors()
    received, (_, energy, _) = received_of(sent), known(sent)
    mses = jnp.stack([MSE, 2 * MSE])
    for estimator in (Shrink(), Reliability(), SingularValues()):

        def at(mse: jax.Array, estimator: Any = estimator) -> Any:
            return estimator(received, GAUSSIAN.variance(sent, mse, KAPPA), energy, mse)

        batch = jax.jit(jax.vmap(at))(mses)
        alone = at(mses[1])
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf: leaf[1], batch), alone, rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("text", ["shrink(per=user, known=false)", "reliability(alpha=1.0)"])
def test_written_and_read(text: str):
    estimator = get_estimator(text)
    assert described(estimator) == text
    assert isinstance(estimator, uplink.Estimator)
    assert {kind.stage for kind in ESTIMATORS.values()} == {"estimator"}
    assert get_estimator(estimator) is estimator


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shrinc", "Did you mean 'shrink'"),
        ("shrink(per=layer)", "per must be leaf or user"),
        ("reliability(alpha=2)", "alpha must be at most 1, got 2.0"),
        ("reliability(alpha=-1)", "alpha must be a finite number >= 0"),
        ("singular_values(1)", "has no options"),
    ],
)
def test_bad_values_are_refused_by_name(text: str, message: str):
    with pytest.raises(InputError, match=message):
        get_estimator(text)


@pytest.mark.parametrize("name", ["variance", "energy"])
def test_powers_of_another_tree_are_refused(name: str):
    sent = sent_vectors()
    by = {"variance": MSE, "energy": MSE, "mse": MSE, name: {"kernel": MSE}}
    with pytest.raises(InputError, match=f"bias: only in task vectors|{name}"):
        Shrink()(sent, **by)
    with pytest.raises(InputError, match=f"{name} must be finite and >= 0"):
        Shrink()(sent, **{**by, name: -MSE})
    with pytest.raises(InputError, match="mse: 1 given for 2 task vectors"):
        Reliability()(sent, MSE, MSE, MSE[:1])
