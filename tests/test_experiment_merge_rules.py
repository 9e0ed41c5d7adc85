"""The comparison of merge methods (experiments/merge_rules.py), whose scripts are no package."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import pandas as pd
import pytest
from conftest import TinyRun

from rmtllmf_jax.common.values import name_of
from rmtllmf_jax.fusion.rules import METHODS, methods_of, parse_method


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The experiment, imported as it runs: from its own folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    return importlib.import_module("merge_rules")


def test_every_method_is_a_row_of_the_table(script: ModuleType) -> None:
    """A method that is added to the library is compared as well."""
    known = [parse_method(rule) for rule in script.RULES if rule != "ramp"]
    names = {name_of(method) for rule in known for method in methods_of(rule)}
    assert names == set(METHODS) - {"layer_wise", "slerp"}  # slerp takes two models


def test_a_ramp_runs_from_the_embeddings_to_the_last_norm(script: ModuleType) -> None:
    """Blocks by their numbers, not by their names' order."""
    layers = ["embeddings", *(f"encoder/layer/{n}" for n in (2, 10, 0)), "layernorm"]
    merged = script.Ramp(0.0, 1.0)({f"{layer}/scale": jnp.ones((2, 1)) for layer in layers})
    weights = [float(merged[f"{layer}/scale"][0]) / 2 for layer in layers]
    assert weights == [0.0, 0.5, 0.75, 0.25, 1.0]


@pytest.mark.slow
def test_the_comparison_runs(
    script: ModuleType, finished: TinyRun, cache_dir: Path, tmp_path: Path
) -> None:
    """Each method has the option and the coefficient that were best on validation samples."""
    rules = ("task_arithmetic", "fisher(floor=[1e-10, 1e-6])")
    options = script.Options(
        finished.copy(tmp_path / "run", sweep=False),
        rules=rules,
        sizes=(2,),
        combinations=2,
        realign_steps=2,
        control_learning_rate=1e-3,
        out=tmp_path / "out",
        cache_dir=cache_dir,
    )
    script.main(options)
    results = pd.read_csv(options.out / "results.csv")
    choices = pd.read_csv(options.out / "choices.csv")
    control = results[results["protection"] == "control"]
    results = results[results["protection"] == "none"]
    assert set(results["rule"]) == {*rules[:1], "fisher(floor=[1e-10, 1e-06])"}
    scores = choices.groupby(["rule", "size", "method", "scale"])["normalised"].mean()
    for (rule, size), rows in results.groupby(["rule", "size"]):
        ((method, scale),) = set(zip(rows["method"], rows["scale"], strict=True))
        there = scores[rule, size]
        assert there[method, scale] == pytest.approx(there.max(), rel=1e-12)
    page = (options.out / "README.md").read_text()
    base = results.drop_duplicates(["combination", "task"])
    base = base.assign(normalised=base["base_score"] / base["finetuned_score"])
    for name, cells in (("base", base), ("control", control)):
        means = cells.groupby("combination")["normalised"].mean()
        ends = f"[{100 * means.min():.0f}, {100 * means.max():.0f}]"  # of two combinations
        assert f"| {name} |  | {100 * means.mean():.0f} \\{ends} |" in page
    assert (control["normalised"] != base["normalised"].to_numpy()).any()
