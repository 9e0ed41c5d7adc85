"""What leaves may be: half precision summed wide, types kept, containers alike, numbers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal
from flax import nnx
from flax.core import FrozenDict
from scipy import stats

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import TaskVector, rules
from rmtllmf_jax.fusion.similarity import sign_agreement

KEY = jax.random.key(0)
ONES = {"w": jnp.ones(3)}
half = pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])


# Half precision against float64


@half
@pytest.mark.parametrize("size", [10.0, 1e-4])
def test_sums_over_half_precision_are_taken_in_float32(dtype: Any, size: float):
    """In float16 the squares of these overflow or vanish, in bfloat16 sums stop growing at 256."""
    random = np.random.default_rng(0)
    rows = jnp.asarray(size * (1 + 0.3 * random.normal(size=(2, 1001))), dtype)
    wide = np.asarray(rows, np.float64)
    stacked = {"a": rows[:, :301], "b": rows[:, 301:].reshape(2, 7, 100)}
    x, y = (TaskVector(tree) for tree in fusion.unstack(stacked))
    gram = wide @ wide.T
    root = np.sqrt(np.diag(gram))
    rms = root / np.sqrt(1001)
    agree = np.mean(np.sign(wide)[:, None] == np.sign(wide)[None], axis=2)
    grams = rules.layer_grams({"layers": {"0": rows}}, "block")
    per_leaf = uplink.kappa_per_leaf(stacked, 0.0)["a"]
    for found, expected in (
        (x.dot(y), gram[0, 1]),
        (x.norm(), root[0]),
        (x.cosine(y), gram[0, 1] / root.prod()),
        (x.rms(), rms[0]),
        (fusion.rms(stacked), rms),
        (fusion.cosine_matrix(stacked), gram / np.outer(root, root)),
        (sign_agreement(stacked), agree),
        (uplink.kappa_from_c0(stacked, 0.0), rms),
        (per_leaf, np.sqrt(np.mean(wide[:, :301] ** 2, axis=1))),
        (grams["layers/0"], gram),
    ):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@half
def test_scaling_and_adding_round_once_and_keep_the_type(dtype: Any):
    random = np.random.default_rng(1)
    rows = jnp.asarray(random.normal(size=(300, 50)), dtype)
    wide = np.asarray(rows, np.float64)
    base, vector = {"w": rows[0]}, TaskVector({"w": rows[1]})
    by_user = random.normal(size=300).astype(np.float32)
    stacked = {"w": rows}
    scaled = wide[0] + 0.3 * wide[1]
    for scale in (0.3, np.float32(0.3), np.float64(0.3), jnp.float32(0.3)):
        for found, expected in (
            ((scale * vector).tree, 0.3 * wide[1]),
            ((vector * scale).tree, 0.3 * wide[1]),
            ((vector / scale).tree, wide[1] / 0.3),
            (fusion.add_to_base(base, vector.tree, scale), scaled),
        ):
            assert_rounded_once(found["w"], expected, dtype)
    for weights in (by_user, by_user.tolist(), jnp.asarray(by_user)):
        found = fusion.weighted_sum(stacked, weights)["w"]
        assert_rounded_once(found, by_user.astype(np.float64) @ wide, dtype)
    narrow = jnp.asarray(by_user, dtype)  # narrow weights widen too
    expected = np.asarray(narrow, np.float64) @ wide
    assert_rounded_once(fusion.weighted_sum(stacked, narrow)["w"], expected, dtype)
    average = rules.Average()(stacked, weights=jnp.ones(300, dtype))
    assert_rounded_once(average["w"], wide.mean(axis=0), dtype)
    assert (base + TaskVector({"w": rows[1].astype(jnp.float32)}))["w"].dtype == dtype


@half
def test_half_precision_is_differentiable_under_jit_and_vmap(dtype: Any):
    rows = jnp.asarray(np.random.default_rng(2).normal(size=(3, 40)), dtype)
    wide, weights = np.asarray(rows, np.float64), jnp.array([0.5, -1.0, 2.0])

    def score(rows: jax.Array, weights: jax.Array, scale: jax.Array) -> jax.Array:
        merged = fusion.add_to_base(
            {"w": rows[0]}, fusion.weighted_sum({"w": rows}, weights), scale
        )
        return TaskVector(merged).dot(TaskVector({"w": rows[1]}))

    scales = jnp.array([0.3, 1.0])
    gradient = jax.jit(jax.vmap(jax.grad(score, argnums=(1, 2)), in_axes=(None, None, 0)))
    by_weights, by_scale = gradient(rows, weights, scales)
    expected = np.outer(scales, wide @ wide[1])
    np.testing.assert_allclose(by_weights, expected, rtol=0.02, atol=0.02 * np.abs(expected).max())
    merged = np.asarray(weights, np.float64) @ wide @ wide[1]
    np.testing.assert_allclose(by_scale, [merged, merged], rtol=0.02)
    assert jax.grad(score)(rows, weights, scales[0]).dtype == dtype


def assert_rounded_once(found: jax.Array, expected: np.ndarray, dtype: Any) -> None:
    assert found.dtype == dtype
    error = np.abs(np.asarray(found, np.float64) - expected)
    assert (error <= 0.51 * float(jnp.finfo(dtype).eps) * np.abs(expected) + 2e-5).all()


def test_a_wide_reference_of_a_narrow_vector_is_not_narrowed():
    rows = jnp.asarray([[1.0, 2.0]], jnp.float16)
    gram = rules.leaf_gram(rows, jnp.asarray([1e5, 1e-6]))
    np.testing.assert_allclose(gram, [[5, 1e5], [1e5, 1e10]], rtol=1e-6)


def test_arrays_of_numpy_stay_in_float64():
    tree = {"w": np.array([1.0, 1e-12])}
    merged = fusion.add_to_base(tree, (2.0 * TaskVector(tree)).tree, 1e-3)
    np.testing.assert_array_equal(merged["w"], tree["w"] + 1e-3 * (2.0 * tree["w"]))


@half
def test_noise_on_half_precision_is_gaussian(dtype: Any):
    """Drawn in bfloat16 it has 128 values, none beyond 2.9, and a mean of -0.01."""
    sent = {"w": jnp.zeros((2, 200_000), dtype)}
    ones = jnp.ones(2)
    received = uplink.transmit(sent, ones, ones, KEY)["w"]
    of_sum = uplink.noise_of_sum(sent, jnp.array([1.0, 0.0]), ones, ones, KEY)["w"]
    for noise in (*received, of_sum):
        assert noise.dtype == dtype
        z = np.asarray(noise, np.float64)
        assert abs(z.mean()) < 5 / np.sqrt(z.size)
        assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size) + 1e-4
        assert np.abs(z).max() > stats.norm.isf(10 / z.size)


# Containers


@pytest.mark.parametrize(
    ("left", "right", "says"),
    [
        (FrozenDict(ONES), ONES, "the whole tree: FrozenDict of ('w',) in a, dict of ['w'] in b"),
        ({"x": [ONES]}, {"x": (ONES,)}, "x: list in a, tuple in b"),
        ({"x": {0: ONES}}, {"x": {"0": ONES}}, "x: dict of [0] in a, dict of ['0'] in b"),
        ({"x": [ONES, None]}, {"x": [ONES, {}]}, "x/1: NoneType in a, dict of [] in b"),
        ({"x/w": jnp.ones(3)}, {"x": ONES}, "x: nothing in a, dict of ['w'] in b"),
    ],
)
def test_containers_that_differ_are_listed(left: Any, right: Any, says: str):
    with pytest.raises(InputError) as caught:
        fusion.require_same_structure(left, right)
    assert says in (line.strip() for line in str(caught.value).splitlines()[1:])
    for combine in (
        lambda: TaskVector.between(left, right),
        lambda: TaskVector(left) + TaskVector(right),
        lambda: TaskVector(left) + right,
        lambda: TaskVector(left).dot(TaskVector(right)),
        lambda: fusion.stack([left, right]),
        lambda: fusion.add_to_base(left, right, 1.0),
    ):
        with pytest.raises(InputError, match="do not match:\n"):
            combine()


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.fc = nnx.Linear(3, 3, rngs=rngs)


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(3, 3, rngs=rngs)
        self.layers = nnx.List([Block(rngs) for _ in range(3)])
        self.norm = nnx.LayerNorm(3, rngs=rngs)


def test_names_layers_and_merges_do_not_depend_on_the_container():
    states = [nnx.state(Model(nnx.Rngs(seed)), nnx.Param) for seed in range(3)]
    dicts = [nnx.to_pure_dict(state) for state in states]
    found, weights = [], []
    for base, *others in (states, dicts, list(map(FrozenDict, dicts))):
        stacked = fusion.stack([TaskVector.between(other, base).tree for other in others])
        merged = rules.Lata()(stacked)
        received = uplink.transmit(stacked, jnp.ones(2), jnp.ones(2), KEY)
        grams = rules.layer_grams(stacked, "block")
        weights.append(rules.Lata().by_layer(fusion.leaves_by_path(stacked), jnp.ones(2), grams))
        names = list(fusion.group_by_layer(fusion.leaves_by_path(stacked)))
        assert names == ["embed", "layers/0", "layers/1", "layers/2", "norm"]
        found.append([*jax.tree.leaves(merged), *jax.tree.leaves(received)])
    for one, *others in zip(*found, strict=True):
        for other in others:
            np.testing.assert_array_equal(one, other)
    for other in weights[1:]:
        assert_trees_equal(weights[0], other)
    value = {"attention": {"value": {"kernel": jnp.ones(2)}}, "value": jnp.ones(2)}
    assert list(fusion.leaves_by_path(value)) == ["attention/value/kernel", "value"]


# Numbers alone, in the right number


def tree_with(leaf: Any) -> dict[str, Any]:
    return {"a": {"b": leaf}, "w": jnp.ones(3)}


@pytest.mark.parametrize(
    ("leaf", "kind"),
    [
        (jnp.array([5, 3], jnp.uint8), "uint8"),
        (jnp.array([True]), "bool"),
        (jnp.array([1j]), "complex64"),
        (KEY, "key<fry>"),
        (np.sin, "ufunc"),
        (pytest.raises, "function"),
        ("text", "str"),
    ],
)
def test_leaves_that_are_no_numbers_are_named(leaf: Any, kind: str):
    tree = tree_with(leaf)
    vector = TaskVector(tree)
    for use in (
        lambda: TaskVector.between(tree, tree),
        lambda: vector + vector,
        lambda: tree + vector,
        lambda: 2 * vector,
        vector.norm,
        lambda: vector.select(".*"),
        lambda: fusion.add_to_base(tree, tree, 1.0),
        lambda: fusion.weighted_sum(tree, [1.0]),
    ):
        with pytest.raises(InputError, match=f"every leaf must hold .*, got a/b: {kind}; leave"):
            use()
    if not hasattr(leaf, "shape"):
        with pytest.raises(InputError, match=f"tree 0: a/b: expected an array, got a {kind}"):
            fusion.stack([tree, tree])


@pytest.mark.parametrize(
    "use",
    [
        TaskVector({}).norm,
        TaskVector({}).rms,
        lambda: TaskVector({}).cosine(TaskVector({})),
        lambda: TaskVector.between({}, {}),
        lambda: fusion.rms({}),
        lambda: fusion.cosine_matrix({}),
        lambda: fusion.exact_cosines({}),
        lambda: fusion.weighted_sum({}, [1.0]),
    ],
)
def test_a_tree_without_a_leaf_is_refused(use: Callable[[], Any]):
    with pytest.raises(InputError, match="has no leaf"):
        use()


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (lambda v: fusion.weighted_sum(v, jnp.ones(3)), "weights: 3 given for 2 task"),
        (lambda v: fusion.weighted_sum(v, [1.0]), "weights: 1 given for 2 task"),
        (lambda v: fusion.weighted_sum(v, 1.0), r"weights: 1 given in the shape \(\) for 2"),
        (lambda v: fusion.weighted_sum(v, jnp.ones((2, 1))), r"in the shape \(2, 1\) for 2"),
        (
            lambda v: rules.Average()(v, weights=[1.0]),
            "weights: 1 given for 2",
        ),
        (lambda v: uplink.transmit(v, jnp.ones(1), jnp.ones(2), KEY), "mse: 1 given for 2"),
        (lambda v: uplink.transmit(v, jnp.ones(2), jnp.ones(3), KEY), "kappa: 3 given for 2"),
        (
            lambda v: uplink.transmit(v, jnp.array([0.1, -0.1]), jnp.ones(2), KEY),
            "mse must be finite and >= 0, got -0.1",
        ),
        (
            lambda v: uplink.noise_of_sum(v, [1.0, 1.0], [0.1, 0.1], [1.0, np.inf], KEY),
            "kappa must be finite and >= 0, got inf",
        ),
        (
            lambda v: uplink.noise_of_sum(v, jnp.ones(3), jnp.ones(2), jnp.ones(2), KEY),
            "weights: 3 given for 2",
        ),
        (
            lambda v: uplink.transmit(v, jnp.ones(2), {"w": jnp.ones(1)}, KEY),
            r"w: \(1,\) in kappa, \(2,\) in task vectors",
        ),
        (lambda v: fusion.add_to_base({"w": jnp.ones(3)}, v, 1.0), r"w: \(3,\) in base, \(2, 3\)"),
        (lambda v: fusion.add_to_base({"v": jnp.ones(3)}, v, 1.0), "v: only in base"),
        (lambda v: fusion.add_to_base(v, v, jnp.ones(3)), r"one number, got the shape \(3,\)"),
        (lambda v: TaskVector(v) * np.ones(3), r"one number, got the shape \(3,\)"),
        (lambda v: np.ones(3) * TaskVector(v), r"one number, got the shape \(3,\)"),
    ],
)
def test_what_would_broadcast_or_be_left_out_is_refused(use: Callable[[Any], Any], says: str):
    with pytest.raises(InputError, match=says):
        use({"w": jnp.ones((2, 3))})
