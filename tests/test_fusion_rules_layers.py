"""Rules that weigh layer by layer, `layer_wise` and `lata`, against plain numpy."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import rules
from rmtllmf_jax.fusion.layers import layers_of

PATHS = [
    "embeddings/token",
    *(f"layers/{n}/{leaf}" for n in (10, 2, 0, 1) for leaf in ("bias", "kernel")),
    "norm/scale",
]
LAYERS = ["embeddings", "layers/0", "layers/1", "layers/2", "layers/10", "norm"]
few = settings(max_examples=10, deadline=None)


def flat(seed: int, users: int = 3) -> dict[str, np.ndarray]:
    """Return stacked task vectors, flat as files have them."""
    random = np.random.default_rng(seed)
    return {path: random.normal(size=(users, 3, 2)).astype(np.float32) for path in PATHS}


def as_jax(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def by_layer(stacked: dict, weights: dict[str, Any], granularity: str = "block") -> dict:
    """Return the sum weighted by layer, in float64."""
    return {
        path: np.tensordot(np.asarray(weights[layer], float), stacked[path].astype(float), 1)
        for path, layer in layers_of(stacked, granularity).items()
    }


def close(actual: dict, expected: dict, rtol: float = 1e-5) -> None:
    assert set(actual) == set(expected)
    for path, leaf in actual.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=rtol, atol=1e-5, err_msg=path)


# Weights by layer


def test_names_expressions_and_the_default():
    stacked = flat(0)
    method = rules.LayerWise(
        {"layers/.*": 0.5, "layers/1": (1.0, 2.0, 3.0), r".*/\d+": 9.0, "norm": 0.0}, default=-1.0
    )
    half = (0.5, 0.5, 0.5)
    weights = dict(zip(LAYERS, [(-1,) * 3, half, (1, 2, 3), half, half, (0,) * 3], strict=True))
    close(method(as_jax(stacked)), by_layer(stacked, weights))


def test_each_tensor_may_be_a_layer():
    stacked = flat(1)
    method = rules.LayerWise({".*/bias": 0.0, ".*": 2.0}, granularity="tensor")
    weights = {path: (0.0 if path.endswith("bias") else 2.0,) * 3 for path in PATHS}
    close(method(as_jax(stacked)), by_layer(stacked, weights, "tensor"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": {"layer/1": 1.0}}, r"'layer/1' matches no layer. Did you mean 'layers/1'\?"),
        ({"layers": {"layers/.*": 1.0}}, r"no weight for embeddings, norm: name them in layers"),
        ({"layers": {".*": (1.0, 2.0)}}, r"layer embeddings: 2 weights given for 3 task vectors"),
        ({"layers": {"layers/(": 1.0}}, r"'layers/\(' is neither a name nor a regular expression"),
        ({"layers": {".*": math.inf}}, r"weights must be finite numbers, got \[inf\]"),
        ({}, "layer_wise has no weights: name layers, or set default"),
        (
            {"granularity": "blocks"},
            r"unknown granularity 'blocks'. Did you mean 'block'",
        ),
    ],
)
def test_layers_that_are_not_there_are_refused(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        rules.LayerWise(**options)(as_jax(flat(4)))


def test_a_leaf_without_weights_is_refused():
    with pytest.raises(InputError, match=r"norm/scale: no weights for its layer norm. Layers: x"):
        rules.merge_by_layer({"norm/scale": jnp.ones((2, 3))}, {"x": jnp.ones(2)}, "block")


def test_options_by_layer_compare_and_hash_by_content_and_order():
    one, same, other = (
        rules.LayerWise(layers)
        for layers in ({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}, {"b": 2.0, "a": 1.0})
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != "a"


# LATA


def lata_in_numpy(
    stacked: dict, reference: dict | None, weighting: str, sigma: float, granularity: str
) -> dict[str, list[float]]:
    """Return the weights by layer, from the formulas, in float64 and plain Python."""
    groups: dict[str, list[str]] = {}
    for path in sorted(
        stacked, key=lambda p: [int(x) if x.isdigit() else -1 for x in p.split("/")]
    ):
        groups.setdefault(layers_of([path], granularity)[path], []).append(path)
    users = len(next(iter(stacked.values())))
    weights: dict[str, list[float]] = {layer: [] for layer in groups}
    for user in range(users):
        cosines = {}
        for layer, paths in groups.items():
            tau = np.concatenate([stacked[path][user].ravel() for path in paths]).astype(float)
            others = [
                np.concatenate([stacked[path][u].ravel() for path in paths]).astype(float)
                for u in range(users)
                if u != user
            ]
            iota = (
                np.mean(others, axis=0)
                if reference is None
                else np.concatenate([reference[path].ravel() for path in paths]).astype(float)
            )
            cosines[layer] = tau @ iota / np.linalg.norm(tau) / np.linalg.norm(iota)
        falling = sorted(cosines, key=lambda layer: -cosines[layer])
        for layer in groups:
            rank, depth = falling.index(layer) + 1, len(falling)
            weights[layer].append(
                {
                    "linear": (rank - 1) / (depth - 1),
                    "logarithmic": math.log(rank) / math.log(depth),
                    "threshold": float(cosines[layer] <= sigma),
                }[weighting]
            )
    return weights


@pytest.mark.parametrize("weighting", ["linear", "logarithmic", "threshold"])
@pytest.mark.parametrize("granularity", ["block", "tensor"])
@pytest.mark.parametrize("referenced", [True, False])
def test_lata(weighting: str, granularity: str, referenced: bool):
    for seed in range(4):
        stacked = flat(seed)
        reference = {p: leaf[0] for p, leaf in flat(seed + 50).items()} if referenced else None
        method = rules.Lata(weighting, 0.1, granularity)
        expected = lata_in_numpy(stacked, reference, weighting, 0.1, granularity)
        merged = jax.jit(method)(as_jax(stacked), reference=as_jax(reference))
        close(merged, by_layer(stacked, expected, granularity))


def weights_of(
    stacked: dict, method: rules.Lata, reference: dict | None = None
) -> dict[str, np.ndarray]:
    users = len(next(iter(stacked.values())))
    grams = rules.layer_grams(as_jax(stacked), method.granularity, as_jax(reference))
    weights = rules.lata_weights(rules.reference_cosines(grams, users), method)
    return {layer: np.asarray(w) for layer, w in weights.items()}


weightings = st.sampled_from(["linear", "logarithmic", "threshold"])


@few
@given(weightings, st.integers(0, 999), st.floats(-12, 12), st.floats(-12, 12))
def test_lata_weights_do_not_see_positive_factors(weighting: str, seed: int, a: float, b: float):
    stacked, reference = flat(seed), {p: leaf[0] for p, leaf in flat(seed + 1000).items()}
    method = rules.Lata(weighting, sigma=0.03)
    before = weights_of(stacked, method, reference)
    stacked = {path: leaf * np.float32(10.0**a) for path, leaf in stacked.items()}
    scaled = {path: leaf * np.float32(10.0**b) for path, leaf in reference.items()}
    after = weights_of(stacked, method, scaled)
    assert_trees_equal(before, after)


@pytest.mark.parametrize("weighting", ["linear", "logarithmic"])
def test_lata_breaks_ties_by_the_names_of_the_layers_whatever_their_order(weighting: str):
    same = np.random.default_rng(5).normal(size=(2, 3)).astype(np.float32)
    paths = [f"layers/{n}/w" for n in (0, 1, 2, 10, 11)]
    expected = np.arange(5) / 4 if weighting == "linear" else np.log(np.arange(1, 6)) / np.log(5)
    for order in (paths, paths[::-1], [paths[3], *paths[:3], paths[4]]):
        weights = weights_of(dict.fromkeys(order, same), rules.Lata(weighting))
        for path, weight in zip(paths, expected, strict=True):
            np.testing.assert_allclose(weights[path.removesuffix("/w")], weight, rtol=1e-6)


def test_a_threshold_of_1_is_task_arithmetic():
    stacked = as_jax(flat(6))
    stacked |= {"layers/0/bias": jnp.tile(stacked["layers/0/bias"][:1], (3, 1, 1))}  # cosine 1
    for granularity in ("block", "tensor"):
        merged = rules.Lata("threshold", sigma=1.0, granularity=granularity)(stacked)
        assert_trees_equal(merged, rules.TaskArithmetic()(stacked))


def test_forgetting_takes_away_what_merging_adds():
    stacked, base = as_jax(flat(8)), {p: leaf[0] for p, leaf in as_jax(flat(9)).items()}
    merged = rules.Lata()(stacked)
    forgotten = rules.forget(base, merged, 0.4)
    assert_trees_equal(forgotten, fusion.add_to_base(base, merged, -0.4))
    close(fusion.add_to_base(forgotten, merged, 0.4), base)


def test_a_layer_of_zeros_is_like_nothing_and_harms_nobody():
    stacked = flat(10)
    stacked["norm/scale"] = np.zeros_like(stacked["norm/scale"])
    cosines = rules.reference_cosines(rules.layer_grams(as_jax(stacked), "block"), 3)
    np.testing.assert_array_equal(cosines["norm"], 0)
    merged = rules.Lata("threshold", sigma=-0.5)(as_jax(stacked))
    assert all(np.isfinite(leaf).all() for leaf in merged.values())


def test_a_model_of_one_layer_is_task_arithmetic():
    stacked = {"w": jnp.array([[1.0, 2.0], [3.0, -1.0]])}
    for weighting in ("linear", "logarithmic"):
        merged = rules.Lata(weighting)(stacked)
        np.testing.assert_array_equal(merged["w"], [4.0, 1.0])


def test_lata_weights_are_constants_to_differentiation():
    stacked, method = as_jax(flat(13)), rules.Lata()
    weights = weights_of(flat(13), method)

    def total(tree: dict) -> jax.Array:
        return sum(leaf.sum() for leaf in method(tree).values())

    gradient = jax.grad(total)(stacked)
    for path, layer in layers_of(PATHS).items():
        expected = np.broadcast_to(weights[layer][:, None, None], (3, 3, 2))
        np.testing.assert_allclose(gradient[path], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.Lata("log"), r"unknown weighting 'log'.*Known: linear, logarithmic"),
        (lambda: rules.Lata(granularity="layer"), r"unknown granularity 'layer'"),
        (lambda: rules.Lata(sigma=1.5), r"sigma must be a cosine, -1 to 1, got 1.5"),
        (
            lambda: rules.Lata()(as_jax(flat(14, users=1))),
            r"compares layers to a reference: give one, or at least two task vectors",
        ),
        (
            lambda: rules.Lata()(as_jax(flat(14)), reference={"norm/scale": jnp.ones(2)}),
            r"norm/scale: \(3, 2\) in task vectors, \(2,\) in reference",
        ),
    ],
)
def test_bad_options_of_lata_are_refused(make: Any, message: str):
    with pytest.raises(InputError, match=message):
        make()
