"""The comparison of merge rules (experiments/merge_rules.py), whose scripts are no package."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import TinyRun
from flax.traverse_util import flatten_dict

from rmtllmf_jax.common.values import name_of
from rmtllmf_jax.fusion.rules import METHODS
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The experiment, imported as it runs: from its own folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    return importlib.import_module("merge_rules")


@dataclass(frozen=True)
class Linear:
    """A stand-in for a backbone: one matrix."""

    def features(self, params: dict, images: jax.Array) -> jax.Array:
        return images.reshape(len(images), -1) @ params["kernel"]


def test_every_rule_is_a_row_of_the_table(script: ModuleType) -> None:
    """A rule that is added to the library is compared as well."""
    methods = [method for row in script.VARIANTS.values() for method in row.methods]
    assert {name_of(method) for method in methods} - {"ramp"} == set(METHODS) - {"layer_wise"}


def test_fisher_information_is_that_of_logistic_regression(script: ModuleType) -> None:
    """sum_y p_y (1[y = c] - p_c)^2 x_d^2 = p_c (1 - p_c) x_d^2, by hand."""
    statistics = importlib.import_module("merge_rules_statistics")
    x = np.array([1.0, -2.0, 0.5], np.float32)
    kernel = np.array([[0.3, -0.2], [0.1, 0.4], [0.0, 1.0]], np.float32)
    head = Head(jnp.eye(2), jnp.zeros(2))
    images = jnp.broadcast_to(x, (4000, 3))
    found = statistics.fisher_information(
        {"kernel": kernel}, head, images, jax.random.key(0), backbone=Linear()
    )["kernel"]
    p = np.exp(x @ kernel) / np.exp(x @ kernel).sum()
    np.testing.assert_allclose(found, x[:, None] ** 2 * p * (1 - p), rtol=0.1)


def test_gram_matrices_are_those_of_the_inputs_of_every_dense_layer(
    script: ModuleType, tiny: tuple[Backbone, dict]
) -> None:
    """The inputs of a block's queries are its first LayerNorm's outputs, found another way."""
    statistics = importlib.import_module("merge_rules_statistics")
    backbone, params = tiny
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    grams = statistics.input_grams(params, jnp.asarray(images), backbone)
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


def test_a_ramp_runs_from_the_embeddings_to_the_last_norm(script: ModuleType) -> None:
    """Blocks by their numbers, not by their names' order."""
    study = importlib.import_module("merge_rules_study")
    layers = ["embeddings", *(f"encoder/layer/{n}" for n in (0, 10, 2)), "layernorm"]
    assert study.ramp(layers, 0.0, 1.0) == {
        "embeddings": 0.0,
        "encoder/layer/0": 0.0,
        "encoder/layer/10": 1.0,
        "encoder/layer/2": 0.5,
        "layernorm": 1.0,
    }


@pytest.mark.slow
def test_the_comparison_runs_and_goes_on_from_its_journal(
    script: ModuleType, finished: TinyRun, cache_dir: Path, tmp_path: Path
) -> None:
    """What is finished is not merged again, and the choice is the best on validation samples."""
    run = finished.copy(tmp_path / "run", sweep=False)
    options = script.Options(
        run,
        rules=("task_arithmetic", "lata, linear", "adamerging, task-wise", "fisher", "regmean"),
        sizes=(2,),
        combinations=1,
        adamerging_steps=3,
        adamerging_batch=2,
        statistics_samples=4,
        eval_batch_size=16,
        out=tmp_path / "out",
        cache_dir=cache_dir,
    )
    script.main(options)
    (journal,) = (run / "merge_rules").iterdir()
    before = journal.read_bytes()
    results = pd.read_csv(options.out / "results.csv")
    choices = pd.read_csv(options.out / "choices.csv")
    assert set(results["rule"]) == {"base", *options.rules}
    scores = choices[choices["rule"] == "task_arithmetic"].set_index("scale")
    chosen = results[results["rule"] == "task_arithmetic"]["scale"].unique()
    assert chosen == scores["validation_normalised"].idxmax()
    normalised = results["score"] / results["finetuned_score"]
    np.testing.assert_allclose(results["normalised"], normalised, rtol=1e-4)
    page = (options.out / "README.md").read_text()
    assert "| regmean |" in page
    script.main(replace(options, out=tmp_path / "again"))
    assert journal.read_bytes() == before
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again" / "results.csv"), results)
