"""The hypothesis test (9)-(12): gradient norms, their predictions, and Monte Carlo."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType

import figures_hypothesis as figures
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import TinyRun
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax import uplink
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.evaluation import hypothesis as test
from rmtllmf_jax.evaluation.batches import Batch, evaluation_set
from rmtllmf_jax.evaluation.logit_jacobian import (
    Sensitivity,
    logit_jacobian_norms,
    margin_jacobian_norms,
    noise_by_leaf,
    top_two,
)
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import Backbone, load_backbone
from rmtllmf_jax.models.heads import Head, stack_heads

SAMPLES, PADDED = 5, 6
"""The last row of the batch is padding."""
CLASSES = (3, 5)
DRAWS, LEVELS = 1000, 3


@partial(jax.jit, static_argnames="backbone")
def logits_of(
    params: dict, heads: Head, task: jax.Array, batch: Batch, backbone: Backbone
) -> jax.Array:
    head = jax.tree.map(lambda leaf: leaf[task], heads)
    return head(backbone.features(params, batch.inputs["images"]))


@dataclass(frozen=True)
class Model:
    """A tiny model under two heads, and a batch."""

    backbone: Backbone
    params: dict
    heads: Head
    batch: Batch

    def inputs(self, task: int) -> tuple:
        return self.params, self.heads, jnp.array(task), self.batch

    def logits(self, params: dict, task: int | jax.Array) -> jax.Array:
        return logits_of(params, self.heads, jnp.asarray(task), self.batch, self.backbone)

    def norms(self, task: int = 0, **options: int) -> Sensitivity:
        return logit_jacobian_norms(*self.inputs(task), backbone=self.backbone, **options)

    def margins(self, task: int = 0, **options: int) -> Sensitivity:
        return margin_jacobian_norms(*self.inputs(task), backbone=self.backbone, **options)

    def disturbed(self, noise: dict[str, jax.Array], task: int = 0) -> jax.Array:
        keys = jax.random.split(jax.random.key(3), DRAWS)
        return test.disturbed_logits(*self.inputs(task), noise, keys, backbone=self.backbone)

    def levels(self, noise: dict[str, float], factors: tuple[float, ...]) -> dict[str, jax.Array]:
        """Always so many levels by leaf: one program serves all tests."""
        assert len(factors) == LEVELS
        return {path: std * jnp.array(factors) for path, std in noise.items()}


@pytest.fixture(scope="module")
def shallow(shallow_model: Path) -> tuple[Backbone, dict]:
    return load_backbone(shallow_model)


@pytest.fixture(scope="module")
def model(shallow: tuple[Backbone, dict]) -> Model:
    return make(*shallow, jnp.float32)


def make(backbone: Backbone, params: dict, dtype: type) -> Model:
    random = np.random.default_rng(0)
    heads = [
        Head(*(jnp.asarray(random.normal(size=s), dtype) for s in ((16, n), (n,)))) for n in CLASSES
    ]
    # Black and white are exact in float32, in which images are normalised.
    images = 255 * random.integers(0, 2, (SAMPLES, 16, 16, 3), dtype=np.uint8)
    (batch,) = evaluation_set(images, np.zeros(SAMPLES, np.int32), PADDED).batches
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    return Model(backbone, params, stack_heads(heads), batch)


def full_jacobians(model: Model) -> list[dict[str, np.ndarray]]:
    """Return the Jacobian of all logits of each task by leaf: (batch, classes, parameters)."""
    jacobian = jax.jit(jax.jacrev(model.logits))
    return [
        {
            path: np.asarray(leaf).reshape(PADDED, max(CLASSES), -1)
            for path, leaf in leaves_by_path(jacobian(model.params, jnp.array(task))).items()
        }
        for task in range(len(CLASSES))
    ]


def check_norms(model: Model, rtol: float) -> None:
    """Hold both kinds of norms against a full Jacobian."""
    jacobians = full_jacobians(model)
    for task, (classes, jacobian) in enumerate(zip(CLASSES, jacobians, strict=True)):
        found, margin = model.norms(task), model.margins(task)
        assert found.squared_norms.keys() == margin.squared_norms.keys() == jacobian.keys()
        logits = np.asarray(model.logits(model.params, task))
        np.testing.assert_allclose(found.values, logits, rtol=1e-4)
        first, second = np.argsort(-logits[:SAMPLES])[:, :2].T
        rows = np.arange(SAMPLES)
        gap = logits[rows, first] - logits[rows, second]
        np.testing.assert_allclose(margin.values[:SAMPLES], gap, rtol=1e-4)
        largest = max(float(jnp.max(norms)) for norms in found.squared_norms.values())
        # Gradients of keys' biases are zero but for rounding.
        close = {"rtol": rtol, "atol": 10 * rtol * rtol * largest}
        for path, leaf in jacobian.items():
            norms, gaps = found.squared_norms[path], margin.squared_norms[path]
            expected = np.square(leaf[:SAMPLES, :classes]).sum(-1)
            np.testing.assert_allclose(norms[:SAMPLES, :classes], expected, **close, err_msg=path)
            assert not np.any(norms[SAMPLES:])
            assert not np.any(norms[:, classes:])
            difference = leaf[rows, first] - leaf[rows, second]
            expected = np.square(difference).sum(-1)
            np.testing.assert_allclose(gaps[:SAMPLES], expected, **close, err_msg=path)
            assert not np.any(gaps[SAMPLES:])


def test_norms_are_those_of_the_full_jacobian(model: Model):
    check_norms(model, rtol=2e-4)


@pytest.mark.slow
def test_norms_are_those_of_the_full_jacobian_in_double_precision(shallow: tuple[Backbone, dict]):
    backbone, params = shallow
    with jax.enable_x64(True):
        check_norms(make(backbone, params, jnp.float64), rtol=1e-10)


@pytest.mark.slow
def test_chunks_change_nothing(model: Model):
    """Chunks that divide nothing; by default all classes, and one sample, are at once."""
    reference, found = model.norms(1), model.norms(1, chunk=3, samples=4)
    np.testing.assert_allclose(found.std(1.0), reference.std(1.0), rtol=1e-5)
    np.testing.assert_array_equal(found.counted, reference.counted)
    assert found.counted.sum() == SAMPLES * CLASSES[1]


def test_all_tasks_share_one_program(model: Model):
    programs = (logit_jacobian_norms, margin_jacobian_norms, test.disturbed_logits)

    def compiled(task: int) -> list[int]:
        noise = only_last_norm(model.params, 0.1 + task, 0.1)
        model.norms(task)
        model.margins(task)
        model.disturbed(model.levels(noise, (0.1 * task, 1.0, 2.0)), task)
        return [program._cache_size() for program in programs]

    assert min(compiled(0)) > 0
    assert compiled(0) == compiled(1)


def only_last_norm(params: dict, scale: float, bias: float) -> dict[str, float]:
    """Noise on the last LayerNorm alone, in whose parameters every logit is linear."""
    noise = dict.fromkeys(leaves_by_path(params), 0.0)
    return noise | {"layernorm/scale": scale, "layernorm/bias": bias}


def test_noise_can_differ_from_leaf_to_leaf(model: Model):
    found = model.norms()
    by_path = only_last_norm(model.params, 0.5, 2.0)
    parts = found.squared_norms
    expected = 0.25 * parts["layernorm/scale"] + 4 * parts["layernorm/bias"]
    np.testing.assert_allclose(found.std(by_path) ** 2, expected, rtol=1e-5)
    tree = jax.tree_util.tree_map_with_path(
        lambda path, _: by_path["/".join(key.key for key in path)], model.params
    )
    np.testing.assert_allclose(found.std(tree), found.std(by_path), rtol=1e-6)
    every = dict.fromkeys(by_path, 0.7)
    np.testing.assert_allclose(found.std(every), found.std(0.7), rtol=1e-5)


numbers = st.floats(1e-3, 1e3)


@settings(deadline=None, max_examples=20)
@given(numbers, numbers, st.floats(0, 1), st.sampled_from([2, 5]))
def test_the_variance_scales_as_the_formula_says(mse: float, scale: float, rho: float, users: int):
    """Linear in the MSE, quadratic in the scale, and times 1 + (Q - 1) rho."""
    found = Sensitivity(
        jnp.array([2.0, -0.5]),
        {"a": jnp.array([3.0, 1.0]), "b": jnp.array([0.5, 4.0])},
        jnp.array([True, True]),
    )

    def variance(scale: float, mse: float, model: uplink.ErrorModel) -> np.ndarray:
        weights, kappa = jnp.full(users, scale), jnp.full(users, 0.1)
        std = model.std_of_sum(weights, kappa, jnp.full(users, mse))
        return np.asarray(test.ratio_std(found, std)) ** 2

    plain = uplink.INDEPENDENT
    one = variance(1.0, 1.0, plain)
    expected = users * 0.01 * np.array([3.5, 5.0]) / np.array([4.0, 0.25])
    np.testing.assert_allclose(one, expected, rtol=1e-5)
    np.testing.assert_allclose(variance(1.0, mse, plain), mse * one, rtol=1e-4)
    np.testing.assert_allclose(variance(scale, 1.0, plain), scale**2 * one, rtol=1e-4)
    correlated = variance(1.0, 1.0, uplink.Equicorrelated(rho))
    np.testing.assert_allclose(correlated, (1 + (users - 1) * rho) * one, rtol=1e-4)


@pytest.fixture(scope="module")
def linear(model: Model) -> tuple[list[dict[str, float]], jax.Array]:
    """Noise in which the logits are linear, weak to strong, and the logits under it."""
    noise, factors = only_last_norm(model.params, 0.08, 0.12), (0.01, 1.0, 8.0)
    levels = [{path: factor * std for path, std in noise.items()} for factor in factors]
    return levels, model.disturbed(model.levels(noise, factors))


@pytest.fixture(scope="module")
def bent(model: Model) -> tuple[tuple[float, ...], jax.Array]:
    """Noise on all parameters, weak to strong, and the logits under it."""
    factors = (1e-3, 1e-2, 0.2)
    noise = dict.fromkeys(leaves_by_path(model.params), 1.0)
    return factors, model.disturbed(model.levels(noise, factors))


def test_the_theory_is_exact_where_logits_are_linear(model: Model, linear: tuple):
    """Variance of every single logit and margin within 5 standard errors of Monte Carlo."""
    (_, noise, _), moved = linear
    found, margin = model.norms(), model.margins()
    keep = np.asarray(found.counted)
    samples = np.asarray(moved[:, 1], np.float64)[:, keep]
    relative = samples / np.asarray(found.values, np.float64)[keep] - 1
    expected = np.asarray(test.ratio_std(found, noise))[keep] ** 2
    error = np.sqrt(2 / (DRAWS - 1)) * expected
    assert np.all(np.abs(relative.var(axis=0, ddof=1) - expected) < 5 * error)
    assert np.all(np.abs(relative.mean(axis=0)) < 5 * np.sqrt(expected / DRAWS))
    for spread in (
        test.ratio_spread(found, noise, moved[:, 1])[1],
        test.margin_spread(margin, noise, found.values, moved[:, 1]),
    ):
        assert spread.std == pytest.approx(1, abs=0.1)
        assert spread.robust == pytest.approx(1, abs=0.1)
        assert abs(spread.robust - 1) < 5 * spread.error < 0.2


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_rejections_are_nominal_where_logits_are_linear_and_noise_is_weak(
    model: Model, linear: tuple, confidence: float
):
    (noise, *_), moved = linear
    found = model.norms()
    limit = test.threshold(test.ratio_std(found, noise), confidence)
    rate, law = test.rejections(found, noise, moved[:, 0], limit)
    assert rate.predicted == pytest.approx(1 - confidence, rel=1e-5)
    assert abs(rate.measured - law) < 5 * rate.error
    assert law == pytest.approx(1 - confidence, rel=0.1)


@pytest.mark.parametrize("limit", [0.05, 0.5, 1.0, 2.5])
def test_the_ratio_has_its_own_law_when_noise_is_strong(model: Model, linear: tuple, limit: float):
    """Where the first order is wrong for a ratio, the law of 1 / (1 + x) is right."""
    (*_, strong), moved = linear
    found = model.norms()
    rate, law = test.rejections(found, strong, moved[:, 2], limit)
    assert abs(rate.measured - law) < 5 * rate.error
    if limit == 2.5:
        assert abs(rate.measured - rate.predicted) > 10 * rate.error


@pytest.mark.parametrize("std", [0.1, 0.6, 3.0])
@pytest.mark.parametrize("limit", [0.2, 0.9, 1.0, 1.1, 4.0])
def test_the_law_of_the_ratio_against_draws(std: float, limit: float):
    x = std * np.random.default_rng(1).normal(size=400_000)
    rate = np.mean(np.abs(1 / (1 + x) - 1) > limit)
    predicted = float(test.ratio_rejection_rate(limit, jnp.array(std)))
    assert abs(rate - predicted) < 5 * np.sqrt(max(rate, 1e-5) / len(x))


def test_power_grows_with_the_noise_as_the_formula_says():
    """2 Q(z_beta sqrt(reference / mse)), with Q from the complementary error function."""
    limit = test.threshold(jnp.array(0.1), 0.95)
    found = test.rejection_rate(limit, 0.1 * jnp.sqrt(jnp.array([0.0, 0.25, 1.0, 9.0])))
    np.testing.assert_allclose(found, [0, 8.8574e-05, 0.05, 0.51354], rtol=1e-3)


def test_flips_are_as_often_as_predicted(model: Model, linear: tuple):
    levels, moved = linear
    margin, logits = model.margins(), model.norms().values
    overtaken, changed = test.flips(margin, levels[2], logits, moved[:, 2])
    assert 0.01 < overtaken.predicted < 0.5
    assert abs(overtaken.measured - overtaken.predicted) < 5 * overtaken.error
    assert changed.measured >= overtaken.measured
    weak, _ = test.flips(margin, levels[0], logits, moved[:, 0])
    assert weak.measured == 0
    assert weak.predicted < 1e-6


def test_the_first_order_fails_when_noise_is_strong(model: Model, bent: tuple):
    """All parameters disturbed: right for weak noise, and seen to be wrong for strong."""
    levels, moved = bent
    found = model.norms()
    weak, _, strong = (
        test.ratio_spread(found, std, moved[:, level]) for level, std in enumerate(levels)
    )
    assert weak[0].robust == pytest.approx(1, abs=0.1)
    assert weak[1].robust == pytest.approx(1, abs=0.1)
    assert strong[0].robust < 0.8
    assert abs(strong[1].robust - 1) > 0.1
    assert strong[0].std > 5 * strong[0].robust  # heavy tails


def test_the_noise_is_the_uplinks(model: Model):
    """One key, one draw: the same disturbed model as by `uplink.noise_of_sum`."""
    vectors = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), model.params)
    weights, mse, kappa = jnp.array([0.3, 0.3]), jnp.array([0.1, 0.2]), jnp.array([0.05, 0.1])
    key = jax.random.split(jax.random.key(3), DRAWS)[0]
    noise = jax.jit(uplink.noise_of_sum)(vectors, weights, mse, kappa, key)
    std = uplink.INDEPENDENT.std_of_sum(weights, kappa, mse)
    every = dict.fromkeys(leaves_by_path(model.params), std)
    moved = model.disturbed(model.levels(every, (0.0, 1.0, 0.0)))
    expected = model.logits(jax.tree.map(jnp.add, model.params, noise), 0)
    np.testing.assert_allclose(moved[0, 1], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moved[0, 0], model.logits(model.params, 0), rtol=1e-4, atol=1e-4)


def test_what_is_padding_never_counts(model: Model, bent: tuple):
    """Nonsense in padded samples and classes changes no number."""
    (_, std, _), moved = bent
    found, margin, moved = model.norms(), model.margins(), moved[:20, 1]
    limit = test.threshold(test.ratio_std(found, std), 0.9)
    spoilt = jnp.where(found.counted, moved, -3e9).at[:, SAMPLES:].set(7.0)

    def numbers(moved: jax.Array) -> tuple:
        return (
            test.ratio_spread(found, std, moved),
            test.rejections(found, std, moved, limit),
            test.margin_spread(margin, std, found.values, moved),
            test.flips(margin, std, found.values, moved),
        )

    assert numbers(spoilt) == numbers(moved)


def test_a_logit_of_zero_has_no_ratio():
    """Its standard deviation is infinite, so that it is never rejected, and warns of nothing."""
    found = Sensitivity(jnp.array([[0.0, 1.0]]), {"a": jnp.ones((1, 2))}, jnp.ones((1, 2), bool))
    moved = jnp.array([[[0.5, 1.5]], [[-0.5, 0.0]]])
    limit = test.threshold(test.ratio_std(found, 0.1), 0.9)
    assert test.rejections(found, 0.1, moved, limit)[0].measured == 0.5
    assert test.ratio_spread(found, 0.1, moved)[0].std == float("inf")


def test_what_cannot_be_tested_is_refused(model: Model):
    found, moved = model.norms(), jnp.ones((2, PADDED, max(CLASSES)))
    nothing = replace(found, counted=jnp.zeros_like(found.counted))
    noise = only_last_norm(model.params, 1.0, 1.0) | {"layernorm/scales": 1.0}
    del noise["layernorm/bias"]
    leaves = r"layernorm/bias: no standard.*\n.*scales: no such leaf"
    for says, call in (
        ("must be at least 1, got 0", lambda: model.norms(chunk=0)),
        ("must be at least 1, got 0", lambda: model.norms(samples=0)),
        (leaves, lambda: noise_by_leaf(noise, leaves_by_path(model.params))),
        ("confidence must be above 0", lambda: test.threshold(jnp.array(1.0), float("nan"))),
        ("noise_std is 0", lambda: test.ratio_spread(found, 0.0, moved)),
        ("nothing counts", lambda: test.ratio_spread(nothing, 0.1, moved)),
        ("two classes or more", lambda: top_two(jnp.ones((2, 1)))),
        ("lacks columns: blind", lambda: figures.flip_figure(table().drop(columns="blind"))),
        ("no row", lambda: figures.flip_figure(table().iloc[:0])),
    ):
        with pytest.raises(InputError, match=says):
            call()


def test_a_task_of_one_class_has_no_margin(model: Model):
    one = Head(jnp.ones((16, 1)), jnp.zeros(1))
    heads = stack_heads([one, jax.tree.map(lambda leaf: leaf[1], model.heads)])
    alone = replace(model, heads=heads)
    assert not alone.margins(0).counted.any()
    assert alone.margins(1).counted.sum() == SAMPLES


def test_a_logit_that_nothing_moves_does_not_count(model: Model):
    """The first of two classes under `lda_head` is zero: it has no ratio."""
    kernel, bias = (leaf.at[..., 0].set(0) for leaf in (model.heads.kernel, model.heads.bias))
    found = replace(model, heads=Head(kernel, bias)).norms()
    assert not np.any(found.values[:, 0])
    expected = np.zeros((PADDED, max(CLASSES)), bool)
    expected[:SAMPLES, 1 : CLASSES[0]] = True
    np.testing.assert_array_equal(found.counted, expected)


def table(error: float = np.nan) -> pd.DataFrame:
    """Two tasks at four MSEs; the ratio's spread leaves the tolerated range at the third."""
    rows = [
        {"combination": "a+b", "task": task, "mse": mse, **dict.fromkeys(figures.COLUMNS, 0.5)}
        | {"mse": mse, "ratio_robust": ratio, "ratio_rms": ratio if ratio < 2 else np.inf}
        | {"ratio_spread_error": error}
        for task in ("a", "b")
        for mse, ratio in ((1e-4, 1.05), (1e-3, 0.92), (1e-2, 2.5), (1e-1, 1.0))
    ]
    return pd.DataFrame(rows)


def test_where_the_first_order_ends():
    """At the last MSE it happens to agree, which does not count."""
    assert figures.first_order_holds_up_to(table()) == 1e-3
    assert figures.first_order_holds_up_to(table(), within=0.06) == 1e-4
    assert figures.first_order_holds_up_to(table(error=0.02), within=0.06) == 1e-3
    assert np.isnan(figures.first_order_holds_up_to(table(), within=0.01))


def test_figures_show_the_table():
    spread = figures.spread_figure(table(), "a note")
    left, right = spread.axes
    measured = {line.get_label(): line for line in right.lines}["$R = z/z'$, by quantiles"]
    np.testing.assert_allclose(measured.get_ydata(), [1.05, 0.92, 2.5, 1.0])
    moments = {line.get_label(): line for line in right.lines}["$R = z/z'$, by moments"]
    assert np.isnan(moments.get_ydata()[2])  # a gap, where the moment is infinite
    assert any(list(line.get_xdata()) == [1e-3, 1e-3] for line in left.lines)  # where it fails
    rejection = figures.rejection_figure(table(), 0.95)
    assert [panel.get_title() for panel in rejection.axes] == list(figures.TESTS.values())
    (flips,) = figures.flip_figure(table()).axes
    assert len(flips.lines) == 3


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The experiment, imported as it runs: from its own folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    return importlib.import_module("hypothesis_test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mse": (0.1, 0.0)}, "--mse must be above 0"),
        ({"mse": ()}, "--mse must be above 0"),
        ({"draws": 1}, "--draws must be at least 2"),
        ({"confidence": 1.5}, "confidence"),
        ({"levels": (0.05, 0.0)}, "confidence"),
    ],
)
def test_the_experiment_refuses_bad_numbers(script: ModuleType, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        script.Options(Path("run"), **options).checked()


@pytest.mark.slow
def test_the_experiment_runs_and_goes_on_from_its_store(
    script: ModuleType,
    finished: TinyRun,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    run = finished.copy(tmp_path / "run", sweep=False)
    options = script.Options(
        run,
        sizes=(2, 3),
        samples=4,
        mse=(1e-6, 0.01),
        draws=4,
        out=tmp_path / "out",
        cache_dir=cache_dir,
    )
    script.main(options)
    before = sorted((run / "hypothesis_test").rglob("*.parquet"))
    assert len(before) == 5  # a part per combination and task
    results = pd.read_csv(options.out / "results.csv")
    assert len(results) == 10
    assert set(figures.COLUMNS) <= set(results.columns)
    at_5 = results[[f"own_{part}_at_0.05" for part in ("measured", "ratio_law")]]
    np.testing.assert_allclose(at_5, results[["own_measured", "own_ratio_law"]])
    weak = results[results["mse"] == 1e-6]
    assert weak["change_robust"].between(0.4, 1.8).all()
    assert {path.name for path in options.out.iterdir()} == {
        "README.md",
        "results.csv",
        *(f"{stem}.{kind}" for stem in script.STEMS for kind in ("png", "svg")),
    }
    monkeypatch.setattr(script, "task_rows", lambda *_: pytest.fail("computed again"))
    script.main(replace(options, out=tmp_path / "again", chunk=2))
    assert sorted((run / "hypothesis_test").rglob("*.parquet")) == before
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again" / "results.csv"), results)
