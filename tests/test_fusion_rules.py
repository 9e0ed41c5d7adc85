"""Merge rules: what all have in common, and the linear and sparse ones against plain numpy."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.fusion import rules
from rmtllmf_jax.fusion.rules.sparsifiers import keep_mask, kth_largest

SHAPES = {
    "layers": {"0": {"kernel": (4, 3), "bias": (5,)}, "1": {"bias": (5,)}},
    "norm": {"scale": (5,)},
    "temperature": (),
}
KEY = jax.random.key(7)
few = settings(max_examples=12, deadline=None)


def is_shape(node: Any) -> bool:
    return isinstance(node, tuple)


def normal(seed: int, users: int = 3) -> dict:
    """Return stacked task vectors of normal numbers."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(size=(users, *shape)), jnp.float32),
        SHAPES,
        is_leaf=is_shape,
    )


def method_of(name: str, users: int = 3) -> Any:
    """Return each method with options that do something of its own."""
    if name == "layer_wise":
        by_user = tuple(0.1 * (user + 1) for user in range(users))
        return rules.LayerWise({"layers/1": by_user, "layers/.*": 2.0}, default=0.5)
    chosen: dict[str, dict] = {
        "ties": {"density": 0.5},
        "dare": {"drop": 0.4},
        "breadcrumbs": {"density": 0.5, "gamma": 0.25},
    }
    return rules.METHODS[name](**chosen.get(name, {}))


def needs_of(name: str, users: int = 3) -> dict[str, Any]:
    """Return what a method needs besides the task vectors, of the first `users` of three."""
    if name == "fisher":
        fishers = jax.tree.map(jnp.square, normal(11))
        return {"fishers": jax.tree.map(lambda leaf: leaf[:users], fishers)}
    if name == "regmean":
        inputs = np.random.default_rng(12).normal(size=(3, 9, 4)).astype(np.float32)[:users]
        return {
            "grams": {"layers/0/kernel": jnp.asarray(np.einsum("qni,qnj->qij", inputs, inputs))}
        }
    return {}


def merge(name: str, stacked: dict, **more: Any) -> dict:
    users = len(stacked["temperature"])
    return method_of(name, users)(stacked, KEY, **needs_of(name, users), **more)


def close(actual: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    left, right = fusion.leaves_by_path(actual), fusion.leaves_by_path(expected)
    assert list(left) == list(right)
    for path in left:
        assert left[path].shape == np.shape(right[path]), path
        np.testing.assert_allclose(
            np.asarray(left[path], np.float64), right[path], rtol=rtol, atol=atol, err_msg=path
        )


NAMES = [name for name in rules.METHODS if name not in ("adamerging", "slerp")]
"""Those that take three task vectors and `weights`."""
every_method = pytest.mark.parametrize("name", NAMES)


# What all methods have in common


@every_method
@pytest.mark.slow
def test_compiled_is_the_same_with_one_trace_a_structure(name: str):
    def call(stacked: dict) -> dict:
        return merge(name, stacked)

    chex.clear_trace_counter()
    compiled = jax.jit(chex.assert_max_traces(call, n=1))
    for seed in (0, 1):
        close(compiled(normal(seed)), merge(name, normal(seed)))


@every_method
def test_bfloat16_comes_out_as_it_went_in_and_is_summed_in_float32(name: str):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), normal(2))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    merged = merge(name, narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), merge(name, wide))
    assert_trees_equal(
        *(jax.tree.map(lambda x: x.astype(jnp.float32), t) for t in (merged, rounded))
    )


@pytest.mark.parametrize("name", ["average", "ties", "dare_ties", "lata"])
def test_float64_is_kept(name: str):
    narrow = normal(3)
    expected = merge(name, narrow)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), narrow)
        merged = merge(name, jax.tree.map(jnp.asarray, wide))
        assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("float64")}
    close(merged, expected, rtol=1e-4, atol=1e-5)


@every_method
@pytest.mark.slow
def test_methods_map_over_weights(name: str):
    stacked = normal(4)
    weights = jnp.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.5, 2.0, 0.25]])
    mapped = jax.vmap(lambda w: merge(name, stacked, weights=w))(weights)
    for tree, w in zip(fusion.unstack(mapped), weights, strict=True):
        close(tree, merge(name, stacked, weights=w))


@every_method
def test_weights_of_the_value_and_of_the_call_are_the_same(name: str):
    stacked = normal(5)
    weighing = dataclasses.replace(method_of(name), weights=(1.0, 0.0, 0.5))
    own = weighing(stacked, KEY, **needs_of(name))
    assert_trees_equal(own, merge(name, stacked, weights=jnp.array([1.0, 0.0, 0.5])))


@every_method
def test_a_user_of_weight_zero_is_as_if_left_out(name: str):
    stacked, two = normal(6), jax.tree.map(lambda leaf: leaf[:2], normal(6))
    close(merge(name, stacked, weights=jnp.array([1.0, 1.0, 0.0])), merge(name, two))


@every_method
def test_what_is_not_finite_does_not_vanish(name: str):
    stacked = normal(7)
    stacked["norm"]["scale"] = stacked["norm"]["scale"].at[1].set(jnp.nan)
    stacked["layers"]["0"]["bias"] = stacked["layers"]["0"]["bias"].at[1].set(jnp.inf)
    merged = merge(name, stacked)
    assert jnp.isnan(merged["norm"]["scale"]).all()
    if name in ("median", "trimmed_mean"):  # which cut off what is largest
        assert jnp.isfinite(merged["layers"]["0"]["bias"]).all()
        return
    assert not jnp.isfinite(merged["layers"]["0"]["bias"]).any()


@every_method
def test_wrong_input_is_refused(name: str):
    stacked, needs = normal(8), needs_of(name)
    method = dataclasses.replace(method_of(name), weights=(1.0, 2.0))
    with pytest.raises(InputError, match="weights: 2 given for 3 task vectors; give one for each"):
        method(stacked, KEY, **needs)
    with pytest.raises(InputError, match=r"weights must be finite numbers, got \[1.0, nan\]"):
        dataclasses.replace(method, weights=(1.0, float("nan")))
    with pytest.raises(InputError, match=r"task vectors: .* got norm/scale: int32; leave"):
        merge(name, stacked | {"norm": {"scale": jnp.ones((3, 5), jnp.int32)}})
    with pytest.raises(InputError, match="one common leading axis"):
        method({"a": jnp.zeros((2, 3)), "b": jnp.zeros((3, 3))}, KEY, **needs)
    with pytest.raises(InputError, match="no task vectors to merge"):
        method({"a": jnp.zeros((0, 3))}, KEY, **needs)


@pytest.mark.parametrize("name", [name for name in NAMES if rules.METHODS[name].per_leaf])
def test_per_leaf_methods_see_a_leaf_at_a_time(name: str):
    whole, needs = fusion.leaves_by_path(normal(9)), needs_of(name)
    if name == "fisher":
        needs = {"fishers": fusion.leaves_by_path(needs["fishers"])}
    merged = method_of(name)(whole, KEY, **needs)
    for path, leaf in whole.items():
        of_leaf = {
            need: {where: array for where, array in given.items() if where == path}
            for need, given in needs.items()
        }
        assert_trees_equal(method_of(name)({path: leaf}, KEY, **of_leaf), {path: merged[path]})


@pytest.mark.parametrize("name", rules.METHODS)
def test_methods_are_documented_values_that_can_be_written_and_read(name: str):
    kind = rules.METHODS[name]
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    fields = [
        (node, after)
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node)
    ]
    assert len(fields) == len(dataclasses.fields(kind))
    for node, after in fields:
        assert isinstance(after, ast.Expr), ast.unparse(node)
    assert kind.title
    assert "arXiv" in kind.reference
    method = method_of(name)
    assert hash(method) == hash(method_of(name))
    assert rules.parse_method(described(method)) == method
    assert rules.parse_method(described(method)) != dataclasses.replace(method, **CHANGED[name])


CHANGED: dict[str, dict] = {key: {"weights": (1.0, 2.0)} for key in NAMES} | {
    "adamerging": {"clip": False},
    "slerp": {"t": 0.25},
    "layer_wise": {"layers": {"layers/.*": 2.0, "layers/1": (0.1, 0.2, 0.30000000000000004)}},
}


def test_means_have_a_natural_scale():
    assert {name for name in rules.METHODS if method_of(name).is_mean} == {
        *("average", "ties", "median", "trimmed_mean", "fisher", "regmean", "adamerging"),
        *("della", "slerp", "multi_slerp", "model_stock", "tsv_merge"),
    }
    assert not rules.Ties(normalise=False).is_mean
    assert rules.DareTies(normalise=True).is_mean


def test_a_method_that_does_not_exist():
    with pytest.raises(InputError, match=r"unknown merge method 'tias'. Did you mean 'ties'"):
        rules.parse_method("tias")


def test_lists_of_values_are_a_choice_between_methods():
    chosen = rules.parse_method("ties(density=[.1, .2], normalise=[true, false], weights=(1, 2))")
    assert [(one.density, one.normalise) for one in chosen.methods] == [
        *((0.1, True), (0.1, False), (0.2, True), (0.2, False))
    ]
    assert {one.weights for one in chosen.methods} == {(1.0, 2.0)}
    assert rules.parse_method(described(chosen)) == chosen
    assert described(rules.one_of(rules.Lata(), sigma=[0.5])) == "lata(sigma=[0.5])"
    for text, message in (
        ("ties(density=[0.1, 2])", "density must be above 0 and at most 1, got 2"),
        ("ties(dens=[0.1])", "unknown option of merge method ties 'dens'. Did you mean 'density'"),
        ("ties(density=[])", "density must be a number, got "),
    ):
        with pytest.raises(InputError, match=message):
            rules.parse_method(text)
    with pytest.raises(InputError, match="ties: no value of density is given to choose from"):
        rules.one_of(rules.Ties(), density=[])


# Task arithmetic and the average


@few
@given(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3), st.integers(0, 99))
def test_task_arithmetic_and_average(weights: list[float], seed: int):
    stacked = normal(seed)
    w = np.array(weights)
    expected = jax.tree.map(lambda leaf: np.tensordot(w, np.asarray(leaf), 1), stacked)
    close(rules.TaskArithmetic(tuple(weights))(stacked), expected, atol=1e-5)
    if abs(w.sum()) > 0.1:
        mean = jax.tree.map(lambda leaf: leaf / w.sum(), expected)
        close(rules.Average(tuple(weights))(stacked), mean, rtol=1e-4, atol=1e-3)


def test_an_average_of_nobody_is_zero():
    merged = rules.Average((0.0, 0.0, 0.0))(normal(21))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(merged))


# TIES


def ties_in_numpy(leaf: np.ndarray, density: float, weights: np.ndarray, mean: bool) -> np.ndarray:
    """Return TIES of one leaf, entry by entry in float64, from the paper's three steps."""
    rows = np.asarray(leaf, np.float64).reshape(len(leaf), -1)
    kept = max(1, int(density * rows.shape[1]))
    trimmed = np.zeros_like(rows)
    for user, row in enumerate(rows):
        largest = sorted(range(row.size), key=lambda i: -abs(row[i]))[:kept]
        trimmed[user, largest] = row[largest]
    merged = np.zeros(rows.shape[1])
    for i in range(rows.shape[1]):
        votes = weights * trimmed[:, i]
        elected = 1.0 if votes.sum() >= 0 else -1.0
        agree = [user for user in range(len(rows)) if votes[user] * elected > 0]
        if agree:
            total, share = votes[agree].sum(), weights[agree].sum()
            merged[i] = total / share if mean and share else total
    return merged.reshape(leaf.shape[1:])


@few
@given(
    st.sampled_from([0.05, 0.2, 0.5, 0.9, 1.0]),
    st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0, 2.0]), min_size=3, max_size=3),
    st.booleans(),
    st.integers(0, 99),
)
def test_ties(density: float, weights: list[float], mean: bool, seed: int):
    stacked = normal(seed)
    expected = jax.tree.map(
        lambda leaf: ties_in_numpy(np.asarray(leaf), density, np.array(weights), mean), stacked
    )
    close(rules.Ties(density, mean, tuple(weights))(stacked), expected)


def test_ties_of_one_vector_is_the_vector_trimmed():
    stacked = {"w": jnp.array([[0.1, -5.0, 3.0, -0.2, 0.3]])}
    merged = rules.Ties(density=0.55)(stacked)["w"]  # 2.75 of 5: cut
    np.testing.assert_array_equal(merged, np.array([0, -5, 3, 0, 0], np.float32))
    whole = rules.Ties(density=1.0)(stacked)
    np.testing.assert_array_equal(whole["w"], stacked["w"][0])


def test_ties_keeps_all_that_tie_whatever_their_order():
    row = jnp.array([2.0, -1.0, 1.0, 0.5, 1.0, 3.0, 0.1, 0.2])
    method = rules.Ties(density=0.4)  # 3 of 8: 3, 2 and a tie at 1
    merged = method({"w": row[None]})["w"]
    np.testing.assert_array_equal(merged, np.where(np.abs(row) >= 1, row, 0))
    np.testing.assert_array_equal(method({"w": row[None, ::-1]})["w"], merged[::-1])


def test_a_tied_vote_elects_plus():
    merged = rules.Ties(density=1.0)({"w": jnp.array([[1.5], [-1.5]])})
    np.testing.assert_array_equal(merged["w"], [1.5])


@few
@given(st.integers(0, 999), st.integers(1, 40), st.booleans())
def test_the_kth_largest_is_that_of_sorting(seed: int, k: int, coarse: bool):
    random = np.random.default_rng(seed)
    rows = np.abs(random.normal(size=(3, 40)) * 10.0 ** random.integers(-38, 38, size=(3, 40)))
    rows = np.round(rows % 4) if coarse else rows  # many ties and zeros
    rows = rows.astype(np.float32)
    expected = np.sort(rows, axis=1)[:, ::-1][:, k - 1]
    np.testing.assert_array_equal(kth_largest(jnp.asarray(rows), k), expected)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_a_density_out_of_range_is_refused(density: float):
    with pytest.raises(InputError, match="density must be above 0 and at most 1, got"):
        rules.Ties(density=density)


def test_the_gradient_of_ties_reaches_those_who_agree():
    leaf = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    gradient = jax.grad(lambda x: rules.Ties(density=1.0)({"w": x})["w"].sum())
    np.testing.assert_allclose(gradient(leaf), [[0.5, 1.0], [0.5, 0.0]])


# DARE


def kept(name: str, stacked: dict, drop: float) -> dict[str, np.ndarray]:
    """Return which entries survive, seen from outside: by merging one user at a time."""
    rows = [rules.METHODS[name](drop=drop)(stacked, KEY, weights=w) for w in jnp.eye(3)]
    return {p: np.asarray(x) != 0 for p, x in fusion.leaves_by_path(fusion.stack(rows)).items()}


def test_dare_is_a_sum_of_what_is_kept_rescaled():
    stacked, weights = normal(31), (1.0, 0.5, -2.0)
    masks = kept("dare", stacked, 0.4)
    merged = rules.Dare(0.4, weights)(stacked, KEY)
    for path, leaf in fusion.leaves_by_path(stacked).items():
        sparse = np.asarray(leaf, np.float64) * masks[path] / 0.6
        expected = np.tensordot(weights, sparse, 1)
        np.testing.assert_allclose(
            fusion.leaves_by_path(merged)[path], expected, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("mean", [False, True])
def test_dare_ties_elects_among_what_is_kept(mean: bool):
    stacked, weights = normal(32), (1.0, 0.5, 2.0)
    masks = kept("dare_ties", stacked, 0.4)
    merged = fusion.leaves_by_path(rules.DareTies(0.4, mean, weights)(stacked, KEY))
    for path, leaf in fusion.leaves_by_path(stacked).items():
        sparse = np.asarray(leaf, np.float64) * masks[path] / 0.6
        expected = ties_in_numpy(sparse, 1.0, np.array(weights), mean)
        np.testing.assert_allclose(merged[path], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("drop", [0.3, 0.9])
def test_dare_drops_as_often_as_it_says_and_independently(drop: float):
    stacked = {"a": jnp.ones((2, 20_000)), "b": jnp.ones((2, 20_000))}
    users = [rules.Dare(drop)(stacked, KEY, weights=w) for w in jnp.eye(2)]
    masks = [np.asarray(leaf) != 0 for tree in users for leaf in jax.tree.leaves(tree)]
    for mask in masks:
        assert abs(mask.mean() - (1 - drop)) < 5 * np.sqrt(drop * (1 - drop) / mask.size)
    correlation = np.corrcoef(masks)[np.triu_indices(4, 1)]
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_masks_follow_from_the_path_and_the_user_not_from_the_order():
    stacked = {"a": jnp.ones((2, 50)), "b": jnp.ones((2, 50))}
    both, alone = rules.Dare(0.5)(stacked, KEY), rules.Dare(0.5)({"b": stacked["b"]}, KEY)
    np.testing.assert_array_equal(both["b"], alone["b"])
    expected = sum(2.0 * keep_mask(KEY, user, "b", (50,), 0.5) for user in range(2))
    np.testing.assert_array_equal(alone["b"], expected)
    other = rules.Dare(0.5)(stacked, jax.random.key(8))
    assert not np.array_equal(other["b"], both["b"])


@pytest.mark.parametrize("kind", [rules.Dare, rules.DareTies])
def test_dare_needs_a_key_and_a_probability(kind: type):
    with pytest.raises(InputError, match="draws random masks: give it a key"):
        kind()(normal(34))
    for drop in (1.0, -0.1):
        with pytest.raises(InputError, match="drop must be at least 0 and below 1"):
            kind(drop=drop)
