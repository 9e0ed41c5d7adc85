"""Methods of angles and directions: SLERP, multi-SLERP, Model Stock, singular vectors."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import Average, ModelStock, MultiSlerp, Slerp, TaskArithmetic, TsvMerge
from rmtllmf_jax.fusion.trees import stack

few = settings(max_examples=6, deadline=None)
TSV, STOCK = jax.jit(TsvMerge()), jax.jit(ModelStock())
seeds = st.integers(0, 10**6)


def rows_of(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def merged(method: Any, leaf: np.ndarray, **more: Any) -> np.ndarray:
    return np.asarray(method({"w": jnp.asarray(leaf)}, **more)["w"], np.float64)


# SLERP


def slerp_in_numpy(a: np.ndarray, b: np.ndarray, t: float, threshold: float) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
    if abs(cosine) > threshold:
        return (1 - t) * a + t * b
    omega = np.arccos(cosine)
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


@few
@given(st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.sampled_from([1e-3, 0.3, 3.0]), seeds)
def test_slerp_of_the_models_against_numpy(t: float, size: float, seed: int):
    base, leaf = rows_of(seed, 6, 5), size * rows_of(seed + 1, 2, 6, 5)
    expected = slerp_in_numpy(base + leaf[0], base + leaf[1], t, 0.9995) - base
    found = merged(Slerp(t), leaf, base={"w": jnp.asarray(base)})
    np.testing.assert_allclose(found, expected, atol=2e-6 * max(1, size))


def test_slerp_at_its_edges():
    base = {"w": jnp.zeros(2)}
    opposite = np.array([[1.0, 0.0], [-2.0, 0.0]], np.float32)
    assert merged(Slerp(0.25), opposite, base=base).tolist() == [0.25, 0.0]  # a straight line
    nothing = np.array([[0.0, 0.0], [0.0, 4.0]], np.float32)
    np.testing.assert_allclose(merged(Slerp(), nothing, base=base), [0, 4 * np.sin(np.pi / 4)])

    def total(leaf: jax.Array) -> jax.Array:
        return jnp.sum(Slerp()({"w": leaf}, base=base)["w"])

    for leaf in (opposite, nothing, np.zeros((2, 2)), np.ones((2, 2))):
        assert jnp.isfinite(jax.grad(total)(jnp.asarray(leaf, jnp.float32))).all()


def test_slerp_between_two_of_more_users():
    """Weights of 0 leave users out, also where they are data."""
    base, leaf = rows_of(0, 5), rows_of(1, 4, 5)
    tree = {"w": jnp.asarray(base)}
    weights = jnp.array([[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 3.0], [0, 0, 2.0, 0], [0, 0, 0, 0]])

    @jax.jit
    @jax.vmap
    def call(weights: jax.Array) -> jax.Array:
        return Slerp(0.4)({"w": jnp.asarray(leaf)}, base=tree, weights=weights)["w"]

    found = np.asarray(call(weights))
    for row, t in zip(found, (0.4, 1.2 / 1.8), strict=False):
        expected = slerp_in_numpy(base + leaf[1], base + leaf[3], t, 0.9995) - base
        np.testing.assert_allclose(row, expected, atol=1e-5)
    np.testing.assert_allclose(found[2], leaf[2], atol=1e-6)
    assert (found[3] == 0).all()
    assert np.isnan(call(jnp.ones((1, 4)))).all()
    with pytest.raises(InputError, match="slerp is for two models, got 4: take multi_slerp"):
        Slerp()({"w": jnp.asarray(leaf)}, base=tree)


def test_bad_input_of_slerp_is_refused():
    for bad in ({"t": -0.1}, {"t": 1.1}, {"threshold": 1.0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            Slerp(**bad)
    with pytest.raises(InputError, match="v: only in base"):
        merged(Slerp(), rows_of(0, 2, 3), base={"v": jnp.zeros(3)})


# Multi-SLERP


@few
@given(seeds)
def test_multi_slerp_is_a_mean_direction_at_a_mean_length(seed: int):
    leaf, weights = rows_of(seed, 3, 4, 5), np.array([1.0, 2.0, 0.5])
    shares = weights / weights.sum()
    norms = np.linalg.norm(leaf.reshape(3, -1), axis=1)
    mean = np.einsum("q,q...->...", shares / norms, leaf)
    expected = (shares @ norms) * mean / np.linalg.norm(mean)
    np.testing.assert_allclose(merged(MultiSlerp(), leaf, weights=weights), expected, atol=1e-5)


def test_multi_slerp_at_its_edges():
    opposite = np.array([[1.0, 0.0], [-3.0, 0.0]], np.float32)
    assert merged(MultiSlerp(), opposite).tolist() == [-1.0, 0.0]
    assert merged(MultiSlerp(), np.zeros((2, 2))).tolist() == [0.0, 0.0]
    alone = np.array([[3.0, 4.0]], np.float32)
    np.testing.assert_allclose(merged(MultiSlerp(), alone), alone[0], rtol=1e-6)
    at_zero = jax.grad(lambda x: MultiSlerp()({"w": x})["w"].sum())(jnp.zeros((2, 2)))
    assert jnp.isfinite(at_zero).all()


# Model Stock


@few
@given(st.sampled_from([2, 3]), seeds)
def test_model_stock_against_numpy(users: int, seed: int):
    leaf = rows_of(seed, users, 6) + 0.7
    unit = leaf / np.linalg.norm(leaf, axis=1, keepdims=True)
    cosine = np.mean([unit[a] @ unit[b] for a, b in itertools.combinations(range(users), 2)])
    ratio = users * cosine / (1 + (users - 1) * cosine)
    np.testing.assert_allclose(merged(STOCK, leaf), ratio * leaf.mean(0), rtol=2e-4)


def test_model_stock_at_its_edges():
    same = np.array([[1.0, 2.0]] * 3, np.float32)
    np.testing.assert_allclose(merged(STOCK, same), same[0], rtol=1e-6)
    assert merged(STOCK, np.eye(2, dtype=np.float32)).tolist() == [0.0, 0.0]
    opposite = np.array([[1.0, 0.0], [-3.0, 0.0]], np.float32)  # 1 + c = 0
    assert merged(STOCK, opposite).tolist() == [0.0, 0.0]
    assert merged(STOCK, same[:1]).tolist() == [1.0, 2.0]
    assert merged(STOCK, 0 * same).tolist() == [0.0, 0.0]
    for leaf in (same, 0 * same, opposite):
        slope = jax.grad(lambda x: ModelStock()({"w": x})["w"].sum())(jnp.asarray(leaf))
        assert jnp.isfinite(slope).all()


# Singular vectors


def tsv_in_numpy(matrices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the published algorithm's result, for task vectors that share no direction."""
    users = [m.astype(np.float64) for m, w in zip(matrices, weights, strict=True) if w]
    kept = min(users[0].shape) // len(users)
    left, values, right = zip(
        *((u[:, :kept], s[:kept], v[:kept]) for u, s, v in map(_thin, users)), strict=True
    )

    def whitened(matrix: np.ndarray) -> np.ndarray:
        u, _, v = _thin(matrix)
        return u @ v

    sizes = np.concatenate([w * s for w, s in zip(weights[weights != 0], values, strict=True)])
    return whitened(np.hstack(left)) @ np.diag(sizes) @ whitened(np.vstack(right))


def _thin(matrix: np.ndarray) -> Any:
    return np.linalg.svd(matrix, full_matrices=False)


@pytest.mark.parametrize("shape", [(12, 9), (6, 13)])
def test_tsv_merge_against_numpy(shape: tuple[int, int]):
    leaf, weights = rows_of(0, 3, *shape), np.array([1.0, 0.5, 2.0])
    found = merged(TSV, leaf, weights=weights)
    np.testing.assert_allclose(found, tsv_in_numpy(leaf, weights), atol=2e-3)
    two = np.array([1.0, 0.0, 1.0])
    found = merged(TSV, leaf, weights=two)
    np.testing.assert_allclose(found, tsv_in_numpy(leaf, two), atol=2e-3)


def test_tsv_merge_leaves_tasks_that_do_not_meet_alone():
    """Blocks of rank one, in rows and columns of their own."""
    leaf = np.zeros((3, 6, 9), np.float32)
    for user in range(3):
        rows, columns = slice(2 * user, 2 * user + 2), slice(3 * user, 3 * user + 3)
        leaf[user, rows, columns] = np.outer([1, 2], [1, -1, 0.5])
    np.testing.assert_allclose(merged(TSV, leaf), leaf.sum(0), atol=1e-5)


def test_tsv_merge_at_its_edges():
    leaf = rows_of(3, 1, 5, 4)
    np.testing.assert_allclose(merged(TSV, leaf), leaf[0], atol=1e-5)
    twice = np.repeat(np.outer([1.0, 2.0], [3.0, 4.0])[None], 2, 0).astype(np.float32)
    np.testing.assert_allclose(merged(TSV, twice), twice[0], atol=1e-5)  # nothing added
    silent = np.concatenate([leaf, 0 * leaf])
    of_one = np.asarray(_thin(leaf[0])[0][:, :2]) * _thin(leaf[0])[1][:2] @ _thin(leaf[0])[2][:2]
    np.testing.assert_allclose(merged(TSV, silent), of_one, atol=1e-5)
    assert (merged(TSV, 0 * leaf) == 0).all()
    many = rows_of(4, 5, 3, 2)  # more tasks than directions: one each
    assert np.linalg.norm(merged(TSV, many)) > 0
    vector = rows_of(5, 3, 7)
    np.testing.assert_allclose(merged(TSV, vector), merged(Average(), vector), rtol=1e-6)


def test_singular_values_have_a_derivative_and_vectors_none():
    leaf, weights = jnp.asarray(rows_of(6, 2, 4, 6)), jnp.array([1.0, 2.0])

    def total(scale: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(TsvMerge()({"w": scale * leaf}, weights=weights)["w"] ** 2)

    value, slopes = jax.value_and_grad(total, (0, 1))(jnp.array(1.0), weights)
    np.testing.assert_allclose(slopes[0], 2 * value, rtol=1e-4)  # of degree two in the vectors
    np.testing.assert_allclose(weights @ slopes[1], 2 * value, rtol=1e-4)


def test_many_matrices_in_one_program_do_not_wait_for_each_other():
    """With batches of decompositions a CPU of two cores would hang for ever."""
    tree = stack([{str(n): jnp.asarray(rows_of(n + q, 6, 5)) for n in range(24)} for q in range(3)])
    weights = jnp.asarray(rows_of(0, 6, 3))
    found = jax.jit(jax.vmap(lambda w: TsvMerge()(tree, weights=w)))(weights)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    alone = jax.jit(TaskArithmetic())({"w": tree["0"]})  # the process goes on
    assert jnp.isfinite(alone["w"]).all()
