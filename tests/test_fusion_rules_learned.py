"""Rules that look at data or at statistics of it: AdaMerging, Fisher and RegMean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import rules

USERS, STEPS = 2, 30


# AdaMerging


def two_layers(seed: int = 0) -> tuple[dict, dict]:
    """Return stacked task vectors and base parameters of two layers of two leaves each."""
    random = np.random.default_rng(seed)

    def tree(*leading: int) -> dict:
        return {
            f"layers/{n}/{leaf}": jnp.asarray(random.normal(size=(*leading, 4)), jnp.float32)
            for n in (0, 1)
            for leaf in ("bias", "scale")
        }

    return tree(USERS), tree()


def distance(params: dict, batch: jax.Array) -> jax.Array:
    """Stand in for an entropy whose gradient is known by hand: 1/2 ||theta - batch||^2."""
    return sum(0.5 * jnp.sum((leaf - batch) ** 2) for leaf in params.values())


def adam_by_hand(
    stacked: dict, base: dict, batches: np.ndarray, groups: list[list[str]], rate: float, clip: bool
) -> tuple[np.ndarray, list[float]]:
    """Return the weights (groups, users) and losses of `distance`, in float64."""
    w = np.full((len(groups), USERS), 0.3)
    mean, square, losses = np.zeros_like(w), np.zeros_like(w), []
    for number, batch in enumerate(batches, start=1):
        seen = np.clip(w, 0, 1) if clip else w
        gradient, loss = np.zeros_like(w), 0.0
        for row, group in enumerate(groups):
            for path in group:
                taus = np.asarray(stacked[path], float)
                gap = np.asarray(base[path], float) + seen[row] @ taus - batch
                loss += 0.5 * gap @ gap
                gradient[row] += taus @ gap
        if clip:
            gradient[(w < 0) | (w > 1)] = 0
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        corrected = mean / (1 - 0.9**number), square / (1 - 0.999**number)
        w = w - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
        losses.append(loss)
    return np.clip(w, 0, 1) if clip else w, losses


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("granularity", ["task", "block", "tensor"])
def test_weights_follow_adam_step_by_step(granularity: str, clip: bool):
    stacked, base = two_layers()
    batches = np.random.default_rng(1).normal(size=(STEPS, 4)).astype(np.float32)
    paths = list(stacked)
    groups = {"task": [paths], "block": [paths[:2], paths[2:]], "tensor": [[p] for p in paths]}
    method = rules.AdaMerging(granularity, learning_rate=0.05, clip=clip)
    found = method.learn(stacked, base, distance, jnp.asarray(batches))
    weights, losses = adam_by_hand(stacked, base, batches, groups[granularity], 0.05, clip)
    by_path = {p: weights[row] for row, group in enumerate(groups[granularity]) for p in group}
    for layer, w in found.weights.items():
        path = next(path for path in paths if path.startswith(layer))
        np.testing.assert_allclose(w, by_path[path], rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-3)
    for path, leaf in found.merged.items():
        expected = by_path[path] @ np.asarray(stacked[path], float)
        np.testing.assert_allclose(leaf, expected, rtol=1e-2, atol=1e-3)
    if clip:
        assert all(np.all((w >= 0) & (w <= 1)) for w in found.weights.values())


def entropy_of_linear(params: dict, batch: jax.Array) -> jax.Array:
    return rules.prediction_entropy(batch @ params["w"])


def test_it_finds_the_task_vector_that_makes_predictions_certain():
    random = np.random.default_rng(2)
    inputs = jnp.asarray(random.normal(size=(200, 32, 4)), jnp.float32)
    useful = jnp.asarray(random.normal(size=(4, 3)), jnp.float32)
    stacked = {"w": jnp.stack([useful, -0.9 * useful])}  # they cancel where both are used
    base = {"w": jnp.zeros((4, 3))}
    found = rules.AdaMerging(learning_rate=0.01).learn(stacked, base, entropy_of_linear, inputs)
    first, second = np.asarray(found.weights["w"])
    assert first == 1
    assert second == 0
    assert found.losses[-1] < 0.7 * found.losses[0]
    np.testing.assert_allclose(found.merged["w"], useful, rtol=1e-6)


def test_the_entropy_is_that_of_the_predictions():
    logits = np.random.default_rng(4).normal(size=(5, 7)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -(p * np.log(p)).sum(axis=1).mean()
    np.testing.assert_allclose(rules.prediction_entropy(jnp.asarray(logits)), expected, rtol=1e-5)
    certain = jnp.array([[0.0, 1e4, -1e4]])
    assert rules.prediction_entropy(certain) == 0  # and not NaN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": {"layers/0/bias": jnp.zeros(4)}}, r"layers/1/scale: only in task vectors"),
        ({"batches": jnp.zeros((0, 4))}, r"there are no batches to learn the weights from"),
        ({"options": {"granularity": "layer"}}, r"unknown granularity 'layer'"),
        ({"options": {"learning_rate": -1.0}}, r"learning_rate must be a finite number >= 0"),
        ({"options": {"initial": 1.5}}, r"initial must be at most 1 where weights are clipped"),
    ],
)
def test_bad_input_of_adamerging_is_refused(change: dict, message: str):
    stacked, base = two_layers()
    with pytest.raises(InputError, match=message):
        rules.AdaMerging(**change.get("options", {})).learn(
            stacked, change.get("base", base), distance, change.get("batches", jnp.zeros((2, 4)))
        )


# Fisher


def stacked_rows(seed: int, users: int = 3) -> dict[str, jax.Array]:
    random = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(random.normal(size=(users, 4, 2)), jnp.float32),
        "bias": jnp.asarray(random.normal(size=(users, 2)), jnp.float32),
    }


def test_fisher_is_a_mean_weighted_entry_by_entry():
    stacked, fishers = stacked_rows(5), jax.tree.map(jnp.square, stacked_rows(6))
    merged = rules.Fisher(weights=(1.0, 2.0, 0.5))(stacked, fishers=fishers)
    for path, leaf in stacked.items():
        f = np.array([1.0, 2.0, 0.5]) @ np.asarray(fishers[path], float).reshape(3, -1)
        products = np.asarray(fishers[path] * leaf, float).reshape(3, -1)
        expected = (np.array([1.0, 2.0, 0.5]) @ products) / f
        np.testing.assert_allclose(merged[path].ravel(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_equal_fishers_average(level: float):
    stacked = stacked_rows(7)
    fishers = jax.tree.map(lambda leaf: jnp.full(leaf.shape, level), stacked)
    merged = rules.Fisher()(stacked, fishers=fishers)
    expected = rules.Average()(stacked)
    for path, leaf in merged.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-5, atol=1e-6)


def test_fisher_without_matching_fishers_is_refused():
    fishers = stacked_rows(10) | {"bias": jnp.ones((3, 4))}
    with pytest.raises(InputError, match=r"bias: \(3, 2\) in task vectors, \(3, 4\) in fishers"):
        rules.Fisher()(stacked_rows(10), fishers=fishers)
    with pytest.raises(InputError, match=r"floor must be a finite number >= 0, got -1.0"):
        rules.Fisher(floor=-1.0)


# RegMean


def layer_inputs(users: int = 3) -> np.ndarray:
    random = np.random.default_rng(11)
    return random.normal(size=(users, 20, 4)) @ random.normal(size=(users, 4, 4))


@pytest.mark.parametrize("input_axis", [0, 1])
def test_regmean_is_the_least_squares_fit_to_all_outputs(input_axis: int):
    stacked, inputs = stacked_rows(12), layer_inputs()
    outputs = [x @ np.asarray(w, float) for x, w in zip(inputs, stacked["kernel"], strict=True)]
    fit = np.linalg.lstsq(np.concatenate(inputs), np.concatenate(outputs), rcond=None)[0]
    if input_axis == 1:
        stacked, fit = stacked | {"kernel": stacked["kernel"].mT}, fit.T
    gram = jnp.asarray(np.einsum("qni,qnj->qij", inputs, inputs), jnp.float32)
    merged = rules.RegMean(1.0, 0.0, input_axis)(stacked, grams={"kernel": gram})
    np.testing.assert_allclose(merged["kernel"], fit, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(merged["bias"], stacked["bias"].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_regmean_shrinks_what_is_off_the_diagonal():
    stacked, inputs = stacked_rows(13), layer_inputs()
    grams = np.einsum("qni,qnj->qij", inputs, inputs)
    shrunk = np.where(np.eye(4) > 0, grams, 0.6 * grams)
    products = np.einsum("qij,qjo->io", shrunk, np.asarray(stacked["kernel"], float))
    merged = rules.RegMean(0.6, ridge=0.0)(stacked, grams={"kernel": jnp.asarray(grams)})
    expected = np.linalg.solve(shrunk.sum(axis=0), products)
    np.testing.assert_allclose(merged["kernel"], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dead", [slice(0, 1), slice(None)], ids=["one input", "all inputs"])
def test_regmean_averages_inputs_that_no_task_sees(dead: slice):
    stacked, inputs = stacked_rows(14), layer_inputs()
    inputs[:, :, dead] = 0
    gram = jnp.asarray(np.einsum("qni,qnj->qij", inputs, inputs), jnp.float32)
    merged = rules.RegMean()(stacked, grams={"kernel": gram})
    expected = stacked["kernel"].mean(axis=0)
    np.testing.assert_allclose(merged["kernel"][dead], expected[dead], rtol=1e-4, atol=1e-5)
    assert np.isfinite(merged["kernel"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grams": {"kernal": jnp.ones((3, 4, 4))}}, r"kernal is not a leaf of the task vectors"),
        (
            {"grams": {"bias": jnp.ones((3, 2, 2))}},
            r"bias has the shape \(2,\), which is not a matrix",
        ),
        ({"grams": {"kernel": jnp.ones((3, 2, 2))}}, r"kernel needs the shape \(3, 4, 4\)"),
        (
            {"grams": {"kernel": jnp.ones((3, 4, 4))}, "input_axis": 1},
            r"kernel needs the shape \(3, 2, 2\) .* its matrix is \(4, 2\) with inputs on axis 1",
        ),
        ({"off_diagonal": 2.0}, r"off_diagonal must be from 0 to 1, got 2.0"),
        ({"input_axis": 2}, r"input_axis must be 0, 1 or none, got 2"),
        ({"ridge": -1.0}, r"ridge must be a finite number >= 0, got -1.0"),
    ],
)
def test_bad_gram_matrices_are_refused(options: dict, message: str):
    grams = options.get("grams", {})
    values = {name: value for name, value in options.items() if name != "grams"}
    with pytest.raises(InputError, match=message):
        rules.RegMean(**values)(stacked_rows(15), grams=grams)
