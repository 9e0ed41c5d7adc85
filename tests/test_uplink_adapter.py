"""Adapters over the uplink: what is sent, the error of a product, and the channel uses saved."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import approx_fprime

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.defences import parse_protection
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.uplink import (
    GAUSSIAN,
    Adapter,
    Coded,
    Shrink,
    SingularValues,
    Sparse,
    deliver,
    get_transport,
    transmit,
)
from rmtllmf_jax.uplink.vectors import shapes_of

KEY, USERS = jax.random.key(1), 2
ALL = (".*",)
MSE, KAPPA = jnp.array([0.1, 0.4]), jnp.array([0.5, 1.5])


def vectors() -> dict:
    """Two matrices of unlike shapes, a table, a bias; the first matrix has rank 2."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=(USERS, *shape)), jnp.float32)

    low = normal(12, 2) @ normal(2, 7)
    of_layer = {"q_proj": {"kernel": low, "bias": normal(7)}, "fc1": {"kernel": normal(6, 20)}}
    return {"layers": {"0": of_layer}, "patches": {"kernel": normal(2, 3, 5)}}


def truncated(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]


def test_without_noise_each_matrix_is_the_nearest_of_its_rank():
    sent = vectors()
    found = leaves_by_path(jax.jit(Adapter(2, ALL).deliver)(sent, 0 * MSE, KAPPA, KEY))
    for path, leaf in leaves_by_path(sent).items():
        expected = np.zeros(leaf.shape)
        if path.endswith("kernel"):
            flat = leaf.reshape(USERS, -1, leaf.shape[-1])
            expected = truncated(flat, 2).reshape(leaf.shape)
        np.testing.assert_allclose(found[path], expected, atol=2e-5, err_msg=path)
    whole = found["layers/0/q_proj/kernel"]
    np.testing.assert_allclose(whole, sent["layers"]["0"]["q_proj"]["kernel"], atol=2e-5)


def test_factors_have_equal_norms_and_a_zero_matrix_zero_ones():
    sent = vectors()
    sent["layers"]["0"]["fc1"]["kernel"] = sent["layers"]["0"]["fc1"]["kernel"].at[0].set(0)
    for pair in Adapter(3, ALL).factors(sent).values():
        a, b = (np.square(pair[name]).sum(axis=axis) for name, axis in (("a", 2), ("b", 1)))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert not np.any(Adapter(3, ALL).factors(sent)["layers/0/fc1/kernel"]["b"][0])


def test_targets_choose_and_the_rest_is_not_sent():
    adapter = Adapter(1, targets=("q_proj", "patch.*"))
    found = leaves_by_path(adapter.deliver(vectors(), MSE, KAPPA, KEY))
    assert {path for path, leaf in found.items() if np.any(leaf)} == {
        "layers/0/q_proj/kernel",
        "patches/kernel",
    }
    shapes = shapes_of(vectors())
    numbers = (12 + 7) + (6 + 5)
    whole = 12 * 7 + 7 + 6 * 20 + 30
    uses = adapter.uses_of(MSE, shapes)
    np.testing.assert_allclose(uses, [numbers / whole] * USERS, rtol=1e-6)
    bits = Adapter(1, ("q_proj", "patch.*"), Coded(uses=8.0)).uses_of(MSE, shapes)
    np.testing.assert_allclose(bits, [8 * numbers / whole] * USERS, rtol=1e-6)
    sparse = Adapter(1, ("q_proj", "patch.*"), Sparse(0.5)).uses_of(MSE, shapes)
    np.testing.assert_allclose(sparse, Sparse(0.5).uses_of(MSE, {}) * numbers / whole, rtol=1e-6)


def test_symbols_keep_unit_power():
    """Over all factors a user's error is kappa^2 mu times its power relative to the vector's."""
    sent, adapter = vectors(), Adapter(2, ALL)
    factors = adapter.factors(sent)
    kappa = [
        KAPPA[user] * np.sqrt(_mean_square(factors, user) / _mean_square(sent, user))
        for user in range(USERS)
    ]
    arrived = transmit(factors, MSE, jnp.array(kappa), KEY)
    expected = arrived["patches/kernel"]["b"] @ arrived["patches/kernel"]["a"]
    found = adapter.deliver(sent, MSE, KAPPA, KEY)["patches"]["kernel"]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def _mean_square(tree: dict, user: int) -> float:
    leaves = [np.ravel(leaf[user]) for leaf in jax.tree.leaves(tree)]
    return float(np.mean(np.square(np.concatenate(leaves))))


def test_the_variance_of_a_product_is_that_of_many_draws():
    sent, adapter = vectors(), Adapter(2, ALL)
    keys = jax.random.split(KEY, 4000)
    drawn = jax.jit(jax.vmap(lambda key: adapter.deliver(sent, MSE, KAPPA, key)))(keys)
    exact = leaves_by_path(adapter.deliver(sent, 0 * MSE, KAPPA, KEY))
    told = leaves_by_path(adapter.variance(sent, MSE, KAPPA))
    energy = leaves_by_path(adapter.energy(sent))
    for path, leaf in leaves_by_path(drawn).items():
        error = np.square(np.asarray(leaf, np.float64) - exact[path])
        found = error.mean(axis=(0, *range(2, error.ndim)))
        np.testing.assert_allclose(found, told[path], rtol=0.03, atol=1e-9, err_msg=path)
        of_leaf = np.square(exact[path]).mean(axis=tuple(range(1, exact[path].ndim)))
        np.testing.assert_allclose(energy[path], of_leaf, rtol=1e-4, atol=1e-9)


def test_shrinking_the_product_helps_and_singular_values_are_refused():
    sent, adapter = vectors(), Adapter(2, ALL)

    def error(estimators: tuple) -> float:
        found = deliver(sent, 9 * MSE, KAPPA, KEY, adapter, estimators)
        exact = adapter.deliver(sent, 0 * MSE, KAPPA, KEY)
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact))
        return sum(float(jnp.sum(jnp.square(one - other))) for one, other in pairs)

    assert error((Shrink(),)) < error(())
    said = r"singular_values assumes white errors, and those of adapter\(rank=2.*\) are not"
    with pytest.raises(InputError, match=said):
        error((SingularValues(),))
    with pytest.raises(InputError, match=said):
        parse_protection("adapter(rank=2)+singular_values")


def test_derivatives_by_the_mse_are_finite_differences_and_go_through_vmap():
    with jax.enable_x64(True):
        sent = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), vectors())
        adapter, weights = Adapter(2, ALL), jax.random.normal(KEY, (USERS, 12, 7))

        def score(mse: jax.Array) -> jax.Array:
            found = adapter.deliver(sent, mse, KAPPA.astype(float), KEY)
            return jnp.sum(jnp.tanh(found["layers"]["0"]["q_proj"]["kernel"]) * weights)

        at = np.array([0.1, 0.4])
        slope = jax.jit(jax.grad(score))(at)
        numeric = approx_fprime(at, lambda x: float(score(jnp.asarray(x))), 1e-7)
        np.testing.assert_allclose(slope, numeric, rtol=1e-5)
        curve = jax.vmap(score)(jnp.array([[0.1, 0.4], [0.2, 0.3]]))
        np.testing.assert_allclose(curve[0], score(jnp.asarray(at)), rtol=1e-12)


def test_texts_name_the_carrier():
    text = "adapter(rank=4, targets=('q_proj', 'v_proj'), carrier=coded(uses=8.0))"
    adapter = get_transport(text)
    assert adapter == Adapter(4, ("q_proj", "v_proj"), Coded(uses=8.0))
    assert get_transport(described(adapter)) == adapter
    assert get_transport("adapter(rank=4)").carrier == GAUSSIAN
    assert Adapter(1, carrier=Coded(plan=None)).plan is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adapter(rank=0)", "the rank of an adapter must be at least 1, got 0"),
        ("adapter(rank=2, targets=())", "at least one target"),
        ("adapter(rank=2, targets=('q(',))", "not a regular expression"),
        ("adapter(rank=2, carrier=qam)", "qam"),
        ("adapter", "rank"),
    ],
)
def test_bad_options_are_refused_by_name(text: str, said: str):
    with pytest.raises(InputError, match=said):
        get_transport(text)


def test_what_does_not_fit_the_vectors_is_refused():
    with pytest.raises(
        InputError, match=r"target 'k_proj' of adapter.* matches none of 3 matrices"
    ):
        Adapter(1, targets=("k_proj",)).deliver(vectors(), MSE, KAPPA, KEY)
    with pytest.raises(InputError, match=r"fc1/kernel is a matrix of 6 x 20, with a side below"):
        Adapter(7, targets=("fc1",)).uses_of(MSE, shapes_of(vectors()))
    of_leaves = jax.tree.map(lambda _: MSE, vectors())
    with pytest.raises(InputError, match="repeat all of them, without patterns"):
        deliver(vectors(), of_leaves, KAPPA, KEY, Adapter(1, ALL))
    with pytest.raises(InputError, match="carried by a transport of the MSE"):
        Adapter(1, carrier=Adapter(2))
