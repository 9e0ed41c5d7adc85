"""Task-vector algebra and merging against numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import TaskVector

SIZE = 20
# Eighths, whose squares neither overflow nor underflow.
flat_vectors = hnp.arrays(np.float32, SIZE, elements=st.integers(-800, 800).map(lambda n: n / 8))
scales = st.floats(-10, 10, width=32, allow_subnormal=False)
few = settings(max_examples=10, deadline=None)


def tree_of(flat: np.ndarray) -> dict:
    """Cut a vector of 20 numbers into a small parameter tree."""
    a, b, c = np.split(np.asarray(flat), [12, 16])
    return {
        "layer": {"kernel": jnp.asarray(a.reshape(3, 4)), "scale": jnp.asarray(b)},
        "token": jnp.asarray(c.reshape(1, 2, 2)),
    }


def flat(tree: Any) -> np.ndarray:
    tree = tree.tree if isinstance(tree, TaskVector) else tree
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def assert_close(actual: Any, expected: np.ndarray, size: np.ndarray | float = 1.0) -> None:
    """Compare to a few roundings of float32 of terms of the given size."""
    scale = np.max(np.abs(size)) + np.max(np.abs(expected))
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=1e-5, atol=1e-6 * scale)


def random_stack(seed: int, users: int = 3) -> tuple[dict, np.ndarray]:
    """Return stacked vectors, and the same as rows in float64."""
    rows = np.random.default_rng(seed).normal(size=(users, SIZE)).astype(np.float32)
    return fusion.stack([tree_of(row) for row in rows]), rows.astype(np.float64)


# The algebra


@few
@given(flat_vectors, st.lists(flat_vectors, min_size=1, max_size=4))
def test_base_plus_scaled_sum_of_task_vectors(base: np.ndarray, finetuned: list[np.ndarray]):
    taus = [TaskVector.between(tree_of(theta), tree_of(base)) for theta in finetuned]
    merged = tree_of(base) + 0.3 * sum(taus)
    expected = base.astype(float) + 0.3 * sum(theta.astype(float) - base for theta in finetuned)
    assert isinstance(merged, dict)
    assert_close(flat(merged), expected, 1000)


@few
@given(flat_vectors, flat_vectors, scales)
def test_algebra_is_that_of_vectors(a: np.ndarray, b: np.ndarray, scale: float):
    x, y = TaskVector(tree_of(a)), TaskVector(tree_of(b))
    for result, expected in (
        (x + y, a + b),
        (x - y, a - b),
        (-x, -a),
        (scale * x, scale * a),
        (x * scale, scale * a),
        (2 * x, 2 * a),
        (x / 4, a / 4),
        (x / 0.3, a / 0.3),
        (sum([x, y, x]), a + b + a),
    ):
        assert isinstance(result, TaskVector)
        assert_close(flat(result), expected, a)


@few
@given(flat_vectors, flat_vectors)
def test_dot_norm_and_rms(a: np.ndarray, b: np.ndarray):
    x, y = TaskVector(tree_of(a)), TaskVector(tree_of(b))
    wide = a.astype(float), b.astype(float)
    assert_close(x.dot(y), np.dot(*wide), np.abs(a) @ np.abs(b))
    assert_close(x.norm(), np.linalg.norm(wide[0]))
    assert_close(x.rms(), np.sqrt(np.mean(wide[0] ** 2)))
    assert x.size == SIZE


def test_a_task_vector_goes_through_jit_and_grad():
    _, (a, b, _) = random_stack(1)
    x, y = TaskVector(tree_of(a)), TaskVector(tree_of(b))
    assert_close(flat(jax.jit(lambda v: 2.0 * v + y)(x)), 2 * a + b)
    gradient = jax.grad(lambda v: 0.5 * v.dot(v) + v.dot(y))(x)
    assert isinstance(gradient, TaskVector)
    assert_close(flat(gradient), a + b)


def test_merging_back_all_of_one_task_vector_gives_the_finetuned_model():
    _, (a, b, _) = random_stack(2)
    tau = TaskVector.between(tree_of(a), tree_of(b))
    assert_close(flat(tree_of(b) + tau), a)
    assert_close(flat(fusion.add_to_base(tree_of(b), tau.tree, 1.0)), a)


# Trees that do not match


def test_every_differing_path_is_reported():
    left = {"a": jnp.zeros(2), "b": {"c": jnp.zeros((2, 3)), "d": jnp.zeros(1)}, "e": jnp.zeros(())}
    right = {
        "a": jnp.zeros(3),
        "b": {"c": jnp.zeros((3, 2)), "x": jnp.zeros(1)},
        "e": jnp.zeros(()),
    }
    with pytest.raises(InputError) as caught:
        fusion.require_same_structure(left, right, ("sent", "kept"))
    assert str(caught.value).splitlines() == [
        "the trees sent and kept do not match:",
        "  a: (2,) in sent, (3,) in kept",
        "  b/c: (2, 3) in sent, (3, 2) in kept",
        "  b/d: only in sent",
        "  b/x: only in kept",
    ]


@pytest.mark.parametrize(
    "combine",
    [
        lambda x, y: TaskVector.between(x.tree, y.tree),
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: x.tree + y,
        lambda x, y: x.dot(y),
        lambda x, y: fusion.stack([x.tree, x.tree, y.tree]),
    ],
)
def test_trees_that_do_not_match_are_refused(combine: Any):
    x = TaskVector({"a": jnp.zeros(2), "b": jnp.zeros(1)})
    y = TaskVector({"a": jnp.zeros(1), "b": jnp.zeros(1)})  # would broadcast
    with pytest.raises(InputError, match=r"a: \([12],\) in .*, \([12],\) in"):
        combine(x, y)


# Stacking


def test_unstack_undoes_stack():
    trees = [tree_of(row.astype(np.float32)) for row in random_stack(4)[1]]
    stacked = fusion.stack(trees)
    assert fusion.stack_size(stacked) == 3
    assert stacked["layer"]["kernel"].shape == (3, 3, 4)
    for tree, back in zip(trees, fusion.unstack(stacked), strict=True):
        assert_trees_equal(tree, back)


@pytest.mark.parametrize(
    "tree", [{}, {"a": jnp.zeros((2, 3)), "b": jnp.zeros((3, 2))}, {"a": jnp.zeros(())}]
)
def test_leaves_without_a_common_axis_are_refused(tree: dict):
    with pytest.raises(InputError, match="one common leading axis"):
        fusion.stack_size(tree)
    with pytest.raises(InputError, match="the list is empty"):
        fusion.stack([])


# Merging


@pytest.mark.parametrize("weights", [[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1], [0.3, -2.0, 1.7]])
def test_weighted_sum(weights: list[float]):
    stacked, rows = random_stack(5)
    w = jnp.array(weights, jnp.float32)
    expected = np.array(weights) @ rows
    assert_close(flat(fusion.weighted_sum(stacked, w)), expected)
    assert_close(flat(jax.jit(fusion.weighted_sum)(stacked, w)), expected)


def test_a_mask_selects_bitwise():
    stacked, _ = random_stack(6)
    mask = jnp.array([0.0, 1.0, 0.0])
    assert_trees_equal(fusion.weighted_sum(stacked, mask), fusion.unstack(stacked)[1])


def test_weighted_sum_has_derivatives_in_weights_and_vectors():
    stacked, rows = random_stack(3)
    weights = jnp.asarray([0.5, -1.0, 2.0])

    def score(stacked: dict, weights: jax.Array) -> jax.Array:
        return sum(
            jnp.sum(leaf**2) for leaf in jax.tree.leaves(fusion.weighted_sum(stacked, weights))
        )

    total = np.asarray(weights, np.float64) @ rows
    by_stack, by_weights = jax.jit(jax.grad(score, argnums=(0, 1)))(stacked, weights)
    assert_close(by_weights, 2 * rows @ total, 50)
    for user, found in enumerate(fusion.unstack(by_stack)):
        assert_close(flat(found), 2 * float(weights[user]) * total, 10)
    assert_close(jax.hessian(score, argnums=1)(stacked, weights), 2 * rows @ rows.T, 50)
    _, change = jax.jvp(fusion.weighted_sum, (stacked, weights), (stacked, jnp.ones(3)))
    assert_close(flat(change), total + rows.sum(0), 10)


def test_gradient_of_weighted_sum_copies_no_vector():
    """The vectors are what is large: eight times the model."""
    stacked = {str(leaf): jnp.ones((8, 64, 96)) for leaf in range(12)}

    @jax.jit
    def gradient(weights: jax.Array, stacked: dict) -> jax.Array:
        def score(weights: jax.Array) -> jax.Array:
            merged = fusion.weighted_sum(stacked, weights)
            return sum(jnp.sum(jnp.sin(leaf @ leaf.T)) for leaf in merged.values())

        return jax.grad(score)(weights)

    memory = gradient.lower(jnp.ones(8), stacked).compile().memory_analysis()
    assert memory.temp_size_in_bytes < memory.argument_size_in_bytes / 2


# Measures


def test_rms_of_billions_of_parameters_is_traced():
    leaf = jax.ShapeDtypeStruct((2, 2**16, 2**17), jnp.float32)
    assert jax.eval_shape(fusion.rms, {"a": leaf}).shape == (2,)
    assert jax.eval_shape(lambda tree: TaskVector(tree).rms(), {"a": leaf}).shape == ()


def test_power_law_follows_the_public_sweep():
    public = {2: 0.69, 3: 0.56, 4: 0.47, 5: 0.40, 6: 0.35, 7: 0.30}
    for tasks, scale in public.items():
        assert fusion.power_law(tasks) == pytest.approx(scale, abs=0.03)


# Views and selection


def named() -> TaskVector:
    leaves = {
        "embeddings": {"cls": jnp.ones((1, 2))},
        "layers": {"0": {"w": 2 * jnp.ones(3)}, "1": {"w": 3 * jnp.ones(2), "b": jnp.zeros(1)}},
    }
    return TaskVector(leaves)


def test_leaves_and_layers_are_views_by_name():
    vector = named()
    assert list(vector.by_leaf()) == ["embeddings/cls", "layers/0/w", "layers/1/b", "layers/1/w"]
    layers = vector.by_layer()
    assert list(layers) == ["embeddings", "layers/0", "layers/1"]
    assert float(layers["layers/1"].norm()) == pytest.approx(18**0.5)
    assert len(vector.by_layer("tensor")) == 4
    total = sum(float(layer.dot(layer)) for layer in layers.values())
    assert total == pytest.approx(float(vector.dot(vector)))


def test_selection_keeps_the_structure_and_adds_up():
    vector = named()
    chosen = vector.select("embeddings/.*", r"layers/\d/b")
    assert jax.tree.structure(chosen) == jax.tree.structure(vector)
    np.testing.assert_array_equal(flat(chosen), [1, 1, 0, 0, 0, 0, 0, 0])
    assert_trees_equal((vector - chosen) + chosen, vector)


def test_a_pattern_without_a_leaf_gives_the_nearest():
    with pytest.raises(InputError, match=r"no leaf matches 'layers/0' as a whole.*layers/0/w"):
        named().select("layers/0")
    with pytest.raises(InputError, match=r"'\(' is not a regular expression"):
        named().select("(")


def test_task_vectors_stack_and_unstack_whole():
    vectors = [named(), 2 * named()]
    both = fusion.stack(vectors)
    assert isinstance(both, TaskVector)
    norms = jax.vmap(lambda vector: vector.norm())(both)
    np.testing.assert_allclose(norms, [float(vector.norm()) for vector in vectors], rtol=1e-6)
    assert_trees_equal(fusion.unstack(both)[1], vectors[1])
