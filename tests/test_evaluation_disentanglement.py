"""The weight disentanglement error against plain loops, and where its value is known by hand."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import TinyRun
from figures_disentanglement import by_size, pairs_figure, sizes_figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.evaluation.batches import Batch, evaluation_set
from rmtllmf_jax.evaluation.disentanglement import (
    combination_wde,
    pair_wde,
    single_outputs,
    task_samples,
    wde_terms,
)
from rmtllmf_jax.models.backbone import Backbone, load_backbone
from rmtllmf_jax.models.heads import Head, stack_heads
from rmtllmf_jax.sweep.cosines import cosine_rows
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.settings import Settings

CLASSES = (3, 5, 2)
COUNTS = (5, 11, 7)
FIRST = jnp.array([-0.5, 0.0, 1.0])
SECOND = jnp.array([0.0, 0.7, 1.3])
STATIC = ("features", "distance", "batch_size")


def images_of(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def vectors_like(base: Any, count: int, std: float, seed: int) -> Any:
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, std, (count, *leaf.shape)), leaf.dtype), base
    )


class Case:
    """Three tasks on the tiny Vision Transformer, with everything that a loop needs too."""

    def __init__(self, backbone: Backbone, base: Any) -> None:
        random = np.random.default_rng(3)
        self.backbone, self.base = backbone, base
        self.own = [
            Head(
                jnp.asarray(random.normal(size=(16, classes)), jnp.float32),
                jnp.asarray(random.normal(size=classes), jnp.float32),
            )
            for classes in CLASSES
        ]
        self.heads = stack_heads(self.own)
        self.images = [images_of(count, seed) for seed, count in enumerate(COUNTS)]
        sets = [evaluation_set(x, np.zeros(len(x), np.int32), 4) for x in self.images]
        self.samples = task_samples(sets, 16)
        self.vectors = vectors_like(base, 3, 0.08, 0)
        self.noise = vectors_like(base, 3, 0.1, 1)
        self.features = backbone.features  # one object: one program
        self._features = jax.jit(backbone.features)

    def pair(self, *tasks: int) -> dict[str, Any]:
        """The arguments of `pair_wde` for two of the tasks."""
        rows = np.array(tasks)
        parts = (self.vectors, self.heads, self.samples)
        stacked, heads, samples = (jax.tree.map(lambda leaf: leaf[rows], part) for part in parts)
        return {"base": self.base, "pair": stacked, "heads": heads, "samples": samples}

    def logits(self, weights: list[float], task: int, *, noisy: bool = False) -> np.ndarray:
        """Unpadded logits of ``base + sum_j weights_j tau_j``, with numpy but for the backbone."""

        def leaf(before: Any, tau: Any, error: Any) -> np.ndarray:
            sent = np.asarray(tau, np.float64) + noisy * np.asarray(error, np.float64)
            moved = np.asarray(before, np.float64) + np.tensordot(weights, sent, axes=1)
            return moved.astype(np.float32)

        params = jax.tree.map(leaf, self.base, self.vectors, self.noise)
        images = np.zeros((11, 16, 16, 3), np.uint8)
        images[: COUNTS[task]] = self.images[task]
        features = np.asarray(self._features(params, images), np.float64)[: COUNTS[task]]
        return features @ np.asarray(self.own[task].kernel) + np.asarray(self.own[task].bias)

    def term(
        self, weights: list[float], alone: float, task: int, distance: str, *, noisy: bool = False
    ) -> float:
        """One task's term of eq. (7), sample by sample."""
        single = self.logits([alone * (j == task) for j in range(3)], task)
        merged = self.logits(weights, task, noisy=noisy)
        found = []
        for a, b in zip(single, merged, strict=True):
            p, q = np.exp(a - a.max()), np.exp(b - b.max())
            p, q = p / p.sum(), q / q.sum()
            kl = sum(x * np.log(x / y) for x, y in zip(p, q, strict=True))
            found.append(kl if distance == "kl" else float(np.argmax(a) != np.argmax(b)))
        return float(np.mean(found))


@pytest.fixture(scope="module")
def case(shallow_model: Path) -> Case:
    return Case(*load_backbone(shallow_model))


compiled = {
    name: jax.jit(function, static_argnames=STATIC)
    for name, function in (("pair", pair_wde), ("combinations", combination_wde))
}


def pair_of(case: Case, *tasks: int, distance: str = "disagreement", **options: Any) -> np.ndarray:
    arguments = {"first": FIRST, "second": SECOND, "features": case.features} | options
    zero = jax.tree.map(jnp.zeros_like, case.pair(*tasks)["pair"])
    arguments = {"noise": zero} | case.pair(*tasks) | arguments
    return np.asarray(compiled["pair"](**arguments, distance=distance))


# Against loops


@pytest.mark.parametrize("distance", ["disagreement", "kl"])
@pytest.mark.parametrize("noisy", [False, True])
def test_a_heat_map_is_that_of_a_loop_over_its_points(case: Case, distance: str, noisy: bool):
    noise = jax.tree.map(lambda leaf: noisy * leaf[jnp.array([1, 2])], case.noise)
    found = pair_of(case, 1, 2, distance=distance, noise=noise)
    expected = [
        [
            (
                case.term([0, a, b], a, 1, distance, noisy=noisy)
                + case.term([0, a, b], b, 2, distance, noisy=noisy)
            )
            / 2
            for b in SECOND
        ]
        for a in FIRST
    ]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5)
    assert len(np.unique(np.round(found, 4))) > 3  # else equality means little


@pytest.mark.parametrize("distance", ["disagreement", "kl"])
def test_combinations_are_those_of_a_loop(case: Case, distance: str):
    """Every combination and scale; the single models have other scales, and clean vectors."""
    weights = jnp.array([[1.0, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
    scales, alone = jnp.array([0.6, 0.2]), jnp.array([1.0, 0.5])
    found = compiled["combinations"](
        case.base,
        case.vectors,
        case.heads,
        case.samples,
        weights,
        scales,
        features=case.features,
        alone=alone,
        distance=distance,
        noise=case.noise,
    )
    expected = [
        [
            sum(
                case.term(list(scale * np.asarray(row)), a, task, distance, noisy=True)
                for task in np.flatnonzero(row)
            )
            for row in weights
        ]
        for scale, a in zip(np.asarray(scales), np.asarray(alone), strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5)
    assert found.shape == (2, 4)
    assert (found >= 0).all()
    if distance == "disagreement":
        assert (found <= weights.sum(axis=1)).all()
        assert float(found.max()) > 0.3


# What holds for every model


def test_padding_is_not_looked_at(case: Case):
    """What stands in the padding of batches, and of tasks with fewer batches, is of no account."""
    seen = jnp.asarray(images_of(case.samples.weight.size, 99))
    images, valid = case.samples.inputs["images"], case.samples.weight > 0
    garbage = jnp.where(valid[..., None, None, None], images, seen.reshape(images.shape))
    spoilt = replace(case.samples, inputs={"images": garbage})
    samples = jax.tree.map(lambda leaf: leaf[:2], spoilt)
    for distance in ("disagreement", "kl"):
        clean = pair_of(case, 0, 1, distance=distance)
        np.testing.assert_array_equal(
            pair_of(case, 0, 1, distance=distance, samples=samples), clean
        )
    assert not bool(valid.all())


# A linear model, where everything is known by hand

PIXELS = 4 * 4 * 3


def two_towers(params: dict, images: jax.Array) -> jax.Array:
    """Two linear maps side by side; task vectors on one of them leave the other alone."""
    flat = images.reshape(len(images), -1) / 255.0 - 0.5
    return jnp.concatenate([flat @ params["a"], flat @ params["b"]], axis=1)


def towers(*, crossed: bool) -> dict[str, Any]:
    """Task 1 changes and reads tower a, task 2 tower b; `crossed`: each reads the other's."""
    random = np.random.default_rng(5)
    base = {name: jnp.asarray(random.normal(size=(PIXELS, 4)), jnp.float32) for name in "ab"}
    moved = {name: random.normal(size=(PIXELS, 4)) for name in "ab"}
    pair = {
        name: jnp.asarray(
            np.stack([moved[name] * (owner == task) for task in range(2)]), jnp.float32
        )
        for owner, name in enumerate("ab")
    }
    kernel = random.normal(size=(2, 8, 3))
    kernel[int(crossed), 4:] = 0
    kernel[1 - int(crossed), :4] = 0
    heads = Head(jnp.asarray(kernel, jnp.float32), jnp.zeros((2, 3)))
    images = jnp.asarray(random.integers(0, 256, (2, 3, 20, 4, 4, 3), dtype=np.uint8))
    samples = Batch({"images": images}, jnp.zeros((2, 3, 20)), jnp.ones((2, 3, 20)))
    return {"base": base, "pair": pair, "heads": heads, "samples": samples}


map_of_towers = partial(
    compiled["pair"], first=FIRST, second=FIRST, features=two_towers, distance="disagreement"
)


def test_tasks_on_disjoint_leaves_are_disentangled():
    """Exactly zero at every point; with the heads crossed it is not, but where the other is 0."""
    np.testing.assert_array_equal(map_of_towers(**towers(crossed=False)), 0)
    crossed = np.asarray(map_of_towers(**towers(crossed=True)))
    assert crossed[1, 1] == 0
    assert (np.delete(crossed.ravel(), 4) > 0.05).all()


def test_points_at_once_change_nothing():
    """Nine points in chunks of four leave a remainder; a chunk may be larger than the grid."""
    alone = map_of_towers(**towers(crossed=True))
    for size in (4, 50):
        at_once = map_of_towers(**towers(crossed=True), batch_size=size)
        np.testing.assert_allclose(at_once, alone, atol=1e-6)


def test_gradients_of_the_divergence_are_those_of_finite_differences():
    """In double precision, for the scales and along the vectors and their noise."""
    with jax.enable_x64(True):
        parts = towers(crossed=True)
        base, pair = (
            jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), parts[name])
            for name in ("base", "pair")
        )
        noise = vectors_like(base, 2, 0.3, 7)
        way = vectors_like(base, 2, 1.0, 8)
        rest = (parts["heads"], parts["samples"])
        options = {"features": two_towers, "distance": "kl"}

        @jax.jit
        @jax.value_and_grad
        def errors(t: jax.Array) -> jax.Array:
            sent, received = (
                jax.tree.map(lambda leaf, step: leaf + t * step, tree, way)
                for tree in (pair, noise)
            )
            scales = jnp.array([0.3, 1.0]) + t
            grid = pair_wde(base, sent, *rest, scales, scales, noise=noise, **options)
            weights = jnp.array([[1.0, 1.0], [0.0, 1.0]])
            sums = combination_wde(base, pair, *rest, weights, scales, noise=received, **options)
            return grid.sum() + sums.sum()

        step = 1e-5
        expected = (errors(step)[0] - errors(-step)[0]) / (2 * step)
        found = errors(0.0)[1]
        assert found.dtype == jnp.float64
        assert float(found) == pytest.approx(float(expected), rel=1e-7)
        assert abs(float(found)) > 0.1


# One program


def test_one_program_serves_all_scales_combinations_and_noises():
    chex.clear_trace_counter()
    parts = towers(crossed=True)
    stacked = parts["pair"]
    rest = (parts["heads"], parts["samples"])
    pair, combinations, terms = (
        jax.jit(chex.assert_max_traces(function, n=1), static_argnames=STATIC)
        for function in (pair_wde, combination_wde, wde_terms)
    )
    seen = []
    for seed, row in enumerate(([1.0, 0.0], [1.0, 1.0], [0.0, 1.0])):
        noise = vectors_like(parts["base"], 2, 0.1 * seed, seed)
        first, second, scale = FIRST + seed, SECOND - seed, jnp.array([0.2 + seed])
        pair(parts["base"], stacked, *rest, first, second, noise=noise, features=two_towers)
        sums = combinations(
            parts["base"], stacked, *rest, jnp.array([row]), scale, noise=noise, features=two_towers
        )
        outputs = single_outputs(parts["base"], stacked, *rest, scale, features=two_towers)
        received = jax.tree.map(jnp.add, stacked, noise)
        found = terms(
            parts["base"],
            received,
            *rest,
            jnp.array([row]),
            scale,
            outputs,
            jnp.array([0]),
            features=two_towers,
        )
        assert float(found.sum()) == pytest.approx(float(sums[0, 0]))
        assert (np.asarray(found[0]) * (1 - np.array(row)) == 0).all()
        seen.append(float(sums[0, 0]))
    assert len(set(seen)) > 1


# Input that does not fit


def test_parts_of_different_tasks_are_refused(case: Case):
    parts = case.pair(0, 1)
    three = (case.base, case.vectors, case.heads, case.samples)
    with pytest.raises(InputError, match="3 vectors, 3 heads and samples of 2 tasks"):
        combination_wde(
            *three[:3], parts["samples"], jnp.ones((1, 3)), FIRST, features=case.features
        )
    with pytest.raises(InputError, match="a weight for each of 3 tasks, got 2"):
        combination_wde(*three, jnp.ones((1, 2)), FIRST, features=case.features)
    with pytest.raises(InputError, match="exactly 2 tasks, got 3"):
        pair_wde(*three, FIRST, SECOND, features=case.features)
    with pytest.raises(InputError, match="Did you mean 'kl'"):
        pair_wde(**parts, first=FIRST, second=SECOND, features=case.features, distance="kll")
    with pytest.raises(InputError, match="noise"):
        pair_wde(
            **parts,
            first=FIRST,
            second=SECOND,
            features=case.features,
            noise={"other": jnp.ones(2)},
        )


def test_batches_of_different_sizes_are_refused():
    labels = np.zeros(4, np.int32)
    sets = [evaluation_set(images_of(4, 0), labels, size) for size in (2, 3)]
    with pytest.raises(InputError, match=r"batches of \[2, 3\]"):
        task_samples(sets, 16)
    with pytest.raises(InputError, match="0 tasks"):
        task_samples([], 16)


# Figures


def pairs_table(distance: str = "disagreement") -> pd.DataFrame:
    values = iter(np.random.default_rng(0).uniform(0, 1, 1000))
    return pd.DataFrame(
        {"task_a": a, "task_b": b, "scenario": scenario, "draw": draw, "distance": distance}
        | {"scale_a": x, "scale_b": y, "wde": next(values)}
        for a, b in (("mnist", "svhn"), ("dtd", "mnist"))
        for scenario in ("sum_rate", "clean")
        for draw in range(1 if scenario == "clean" else 2)
        for x in (0.0, 0.5, 1.0)
        for y in (-1.0, 0.0, 1.0)
    )


def test_heat_maps_show_the_means_over_draws():
    table = pairs_table()
    figure = pairs_figure(table)
    panels = figure.axes[:4]
    assert [panel.get_title() for panel in panels[:2]] == ["Clean (no noise)", "Sum-rate attack"]
    assert panels[0].get_xlabel() == "Scale of dtd"
    assert panels[2].get_ylabel() == "Scale of svhn"
    drawn = np.asarray(panels[3].collections[0].get_array()).reshape(3, 3)
    rows = table[(table["task_b"] == "svhn") & (table["scenario"] == "sum_rate")]
    for row, y in enumerate((-1.0, 0.0, 1.0)):
        for column, x in enumerate((0.0, 0.5, 1.0)):
            point = rows[(rows["scale_a"] == x) & (rows["scale_b"] == y)]
            assert drawn[row, column] == pytest.approx(100 * point["wde"].mean())
    assert {panel.collections[0].get_clim() for panel in panels} == {(0, 100)}


def test_sizes_are_compared_by_the_mean_over_tasks():
    """Three cells by hand: xi / N is .2 and .4 (clean), .6 (sum rate)."""
    terms = {("a+b", 0): (0.1, 0.3), ("a+c", 0): (0.4, 0.4)}
    rows = [
        {"combination": name, "size": 2, "scenario": "clean", "draw": draw, "wde": term}
        for (name, draw), values in terms.items()
        for term in values
    ]
    rows += [
        {"combination": "a+b+c", "size": 3, "scenario": "sum_rate", "draw": 0, "wde": term}
        for term in (0.3, 0.6, 0.9)
    ]
    table = pd.DataFrame(rows).assign(distance="disagreement")
    found = by_size(table)
    assert list(found["scenario"]) == ["clean", "sum_rate"]
    np.testing.assert_allclose(found["mean"], [0.3, 0.6])
    np.testing.assert_allclose(found["low"], [0.2, np.nan])
    (axes,) = sizes_figure(table).axes
    drawn = [float(marks.get_ydata()[0]) for marks, *_ in axes.containers]
    np.testing.assert_allclose(drawn, [30, 60])


def test_tables_of_several_distances_are_not_drawn():
    both = pd.concat([pairs_table("kl"), pairs_table()])
    with pytest.raises(InputError, match="one distance"):
        pairs_figure(both)
    with pytest.raises(InputError, match="got no row"):
        sizes_figure(both[:0])


# The experiment


@pytest.mark.slow
def test_the_experiment_runs_and_goes_on_from_its_store(
    finished: TinyRun, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A heat map and a combination at the same scales are the same number, under every noise."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    script = importlib.import_module("disentanglement")
    run = finished.copy(tmp_path / "run", sweep=False)
    options = script.Options(
        run,
        pairs=("svhn+dtd",),
        points=3,
        lowest=0.0,
        highest=1.0,
        combinations=0,
        scale="0.5",
        scenarios=("clean", "ideal", "sum_rate"),
        eval_batch_size=16,
        out=tmp_path / "out",
        cache_dir=cache_dir,
    )
    script.main(options)
    before = sorted((run / "disentanglement").rglob("*.parquet"))
    pairs, terms = (pd.read_csv(options.out / f"{name}.csv") for name in ("pairs", "combinations"))
    cell = ["scenario", "draw"]
    half = pairs[(pairs["scale_a"] == 0.5) & (pairs["scale_b"] == 0.5)].set_index(cell)["wde"]
    means = terms[terms["combination"] == "dtd+svhn"].groupby(cell)["wde"].mean()
    assert len(half) == len(means) == 1 + 2 * 2
    np.testing.assert_allclose(half, means[half.index], atol=1e-5)
    assert half.max() > 0
    assert (pairs[(pairs["scale_a"] == 0) & (pairs["scale_b"] == 0)]["wde"] == 0).all()
    assert set(terms["combination"]) == {"dtd+mnist", "dtd+svhn", "mnist+svhn", "dtd+mnist+svhn"}
    assert "| sum_rate |" in (options.out / "README.md").read_text()
    with monkeypatch.context() as computing:
        computing.setattr(script.Study, "noise", None)  # nothing is computed again
        script.main(replace(options, out=tmp_path / "again"))
    assert sorted((run / "disentanglement").rglob("*.parquet")) == before
    for name in ("pairs.csv", "combinations.csv", "pairs.svg", "sizes.png"):
        assert (tmp_path / "again" / name).read_bytes() == (options.out / name).read_bytes()
    assert_noise_is_the_sweeps(script, options)
    for wrong in ({"pairs": ("dtd",)}, {"scenarios": ("idael",)}, {"points": 1}):
        with pytest.raises(InputError, match=r"pairs|Did you mean 'ideal'|points"):
            script.main(replace(options, **wrong))


def assert_noise_is_the_sweeps(script: ModuleType, options: Any) -> None:
    """Received vectors have the lengths that the sweep's own table of them tells, user by user."""
    inputs = script.load(options)
    study = script.Study(inputs, options)
    engine = Engine(inputs, Settings(seed=options.seed), one_device())
    grid = Grid((inputs.tasks,), ("ideal", "sum_rate"), ("none",), 2, 1)
    with CellStore(options.out / "cosines") as parts:
        rows = pd.DataFrame(cosine_rows(engine, grid, parts))
    rows = rows[(rows["protection"] == "none") & (rows["task_a"] == rows["task_b"])]
    found = rows.set_index(["scenario", "draw", "task_a"])["norm_a"].sort_index()
    for scenario, draw in (("ideal", 0), ("ideal", 1), ("sum_rate", 1)):
        received = jax.tree.map(jnp.add, inputs.vectors, study.noise(scenario, draw))
        flat = np.concatenate(
            [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(received)], 1
        )
        expected = found.loc[scenario, draw][list(inputs.tasks)]
        np.testing.assert_allclose(np.linalg.norm(flat, axis=1), expected, rtol=1e-5)
