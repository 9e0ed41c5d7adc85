"""Merge methods that look at data, in a sweep: Fisher, RegMean, AdaMerging, and one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from sweep_fixtures import PAIR, SETTINGS, TASKS, engine_like, model, received, tables_of

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.evaluation.statistics import fisher_information, input_grams
from rmtllmf_jax.fusion import AdaMerging, Fisher, RegMean, Slerp, Ties, TsvMerge, rules
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.needs import NEEDS, Needs

FEW = replace(SETTINGS, statistics_samples=4)
LEARNING = AdaMerging("block", learning_rate=0.05, steps=3, batch_size=4)


@dataclass(frozen=True)
class Trusting:
    """A user's own method: the mean, weighted by how strongly a task's inputs are on average."""

    needs: ClassVar[tuple[str, ...]] = ("grams",)

    def __call__(self, stacked: Any, key: Any = None, *, grams: Any, weights: Any) -> Any:
        """Return the merged task vector."""
        share = weights * sum(jnp.trace(gram, axis1=1, axis2=2) for gram in grams.values())
        return fusion.weighted_sum(stacked, share / jnp.sum(share))


# Statistics


class Linear(Backbone):
    """A stand-in for a backbone: one matrix."""

    __init__, __hash__ = object.__init__, object.__hash__  # no module, no sizes

    def features(self, params: dict, images: jax.Array) -> jax.Array:
        return images.reshape(len(images), -1) @ params["kernel"]


def test_fisher_information_is_that_of_logistic_regression() -> None:
    """sum_y p_y (1[y = c] - p_c)^2 x_d^2 = p_c (1 - p_c) x_d^2, by hand."""
    x = np.array([1, 3, 2], np.uint8)
    kernel = np.array([[0.3, -0.2], [0.1, 0.4], [0.0, 0.1]], np.float32)
    head = Head(jnp.eye(2), jnp.zeros(2))
    images = jnp.broadcast_to(x, (4000, 1, 1, 3))
    found = fisher_information(
        {"kernel": kernel}, head, images, jax.random.key(0), backbone=Linear()
    )["kernel"]
    p = np.exp(x @ kernel) / np.exp(x @ kernel).sum()
    np.testing.assert_allclose(found, x[:, None].astype(float) ** 2 * p * (1 - p), rtol=0.1)


def test_gram_matrices_are_those_of_the_inputs_of_every_dense_layer(
    tiny: tuple[Backbone, dict],
) -> None:
    """The inputs of a block's queries are its first LayerNorm's outputs, found another way."""
    backbone, params = tiny
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    grams = input_grams(params, jnp.asarray(images), backbone)
    flat = flatten_dict(params, sep="/")
    assert set(grams) == {path for path, leaf in flat.items() if path.endswith("kernel")} - {
        "embeddings/patch_embeddings/projection/kernel"
    }
    scaled = (images / 255 - np.array(backbone.mean)) / np.array(backbone.std)
    _, state = backbone.module.apply(
        {"params": params},
        jnp.asarray(scaled, jnp.float32),
        capture_intermediates=lambda module, _: module.name == "layernorm_before",
    )
    inside = flatten_dict(state["intermediates"], sep="/")
    blocks = [np.asarray(inside[f"encoder/layer/{n}/layernorm_before/__call__"][0]) for n in (0, 1)]
    seen = {"0/attention/attention/query": blocks[0], "1/attention/attention/key": blocks[1]}
    # The class token alone is read of the last block.
    seen["1/attention/attention/query"] = blocks[1][:, :1]
    for layer, inputs in seen.items():
        rows = inputs.reshape(-1, 16)
        np.testing.assert_allclose(
            grams[f"encoder/layer/{layer}/kernel"],
            rows.T @ rows / len(images),
            rtol=1e-3,
            atol=1e-3,
        )


# In a sweep


@pytest.fixture(scope="module")
def engine(sweep_engine: Engine) -> Engine:
    return engine_like(sweep_engine, FEW)


@pytest.mark.parametrize("scenario", ["clean", "ideal"])
@pytest.mark.parametrize(
    "method", [Fisher(), RegMean(), LEARNING, Trusting(), Slerp(0.3), TsvMerge()]
)
def test_a_cell_is_the_method_called_by_hand(engine: Engine, method: Any, scenario: str) -> None:
    """On the vectors as received of the combination's users and no others."""
    cell, inputs = Cell(PAIR, scenario, 0, 0, "none", method), engine.inputs
    users = np.array([TASKS.index(task) for task in PAIR])
    sent = inputs.vectors if scenario == "clean" else received(engine, cell)
    wanted = rules.fact(method, "needs")
    have = {name: NEEDS[name](inputs, FEW) for name in wanted if name in NEEDS}
    shared = {name: have.pop(name) for name in tuple(have) if name == "entropy"}
    needs = jax.tree.map(lambda leaf: leaf[users], have) | shared
    if "base" in wanted:
        needs["base"] = inputs.base
    if method is LEARNING:
        needs["batches"] = jnp.asarray(engine.needs.batches(method, [PAIR])[0])
    some = jax.tree.map(lambda leaf: leaf[users], sent)
    total = method(some, weights=jnp.ones(2), **needs)
    expected = fusion.leaves_by_path(fusion.add_to_base(inputs.base, total, 0.8))
    for path, leaf in fusion.leaves_by_path(model(engine, cell, 0.8)).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-4, atol=1e-4, err_msg=path)


def test_weights_are_learned_from_the_test_images_of_the_combination(engine: Engine) -> None:
    inputs = engine.inputs
    rows = Needs(inputs, FEW).batches(LEARNING, [PAIR])[0]
    assert rows.shape == (3, 4)
    seen = NEEDS["entropy"](inputs, FEW)
    assert [set(np.asarray(seen.task)[step]) for step in rows] == [{0, 1}] * 3
    for row in rows.ravel():
        images = inputs.data[int(seen.task[row])].test.images
        assert any(np.array_equal(seen.images[row], image) for image in images)
    shifted = jnp.asarray(rows[0])
    by_hand = [
        rules.prediction_entropy(
            jax.tree.map(lambda leaf, user=seen.task[row]: leaf[user], inputs.heads)(
                inputs.model.features(inputs.base, seen.images[row][None])
            )
        )
        for row in rows[0]
    ]
    assert seen(inputs.base, shifted) == pytest.approx(np.mean(by_hand), rel=1e-4)


def test_a_sweep_tries_the_methods_own_coefficients_and_looks_at_data_once(
    sweep_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def noting(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *run: made.append(name) or make(*run)

    for name, make in NEEDS.items():
        monkeypatch.setitem(NEEDS, name, noting(name, make))
    engine = engine_like(sweep_engine, replace(FEW, scale="validation"))
    several = fusion.parse_method("fisher(floor=[1e-10, 1e-6])")
    grid = Grid((PAIR, TASKS), ("clean", "ideal"), ("none", "realign"), 1, 1, (Ties(), several))
    tables = tables_of(engine, replace(grid, rules=(Ties(),)), tmp_path)
    assert made == []
    tables = tables_of(engine, grid, tmp_path)
    assert made == ["fishers"]
    curve = tables["scales"].groupby("rule")["scale"].unique().map(set)
    assert dict(curve) == {
        "ties": set(fusion.candidate_scales(Ties())),
        "fisher(floor=[1e-10, 1e-06])": {1.0},
    }
    again = tables_of(engine_like(engine, engine.settings), grid, tmp_path)
    assert made == ["fishers"]  # nothing is left to merge
    assert again["results"].equals(tables["results"])


def test_the_number_of_images_is_part_of_the_key() -> None:
    assert replace(FEW, statistics_samples=5).key() != FEW.key()


def test_a_need_that_a_sweep_has_not_is_refused() -> None:
    class Other(Trusting):
        needs = ("grams", "hessians")

    class Learning(Trusting):
        needs = ("batches",)

    for method, message in (
        (Other(), "other needs hessians, and a sweep has base, batches, fishers, grams, entropy"),
        (Learning(), "learning needs batches: .* it has no steps and no batch_size"),
    ):
        with pytest.raises(InputError, match=message):
            Grid((PAIR,), ("clean",), ("none",), 1, 1, (method,))
    with pytest.raises(InputError, match="slerp takes 2 task vectors at most, got 3"):
        Grid((PAIR, TASKS), ("clean",), ("none",), 1, 1, (Slerp(),))
