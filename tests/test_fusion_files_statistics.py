"""Fisher merging and RegMean of checkpoints, with statistics in files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_fusion_files import Tensors, assert_close, fuse, tensors, write

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.plan import Recipe, plan_fusion
from rmtllmf_jax.fusion.files.statistics import open_statistic, write_statistic
from rmtllmf_jax.fusion.rules import Fisher, RegMean, TaskArithmetic

FACTS = {"task": "dtd", "samples": 4, "seed": 0}


def fishers_of(model: Tensors, seed: int) -> Tensors:
    random = np.random.default_rng(seed)
    return {k: random.normal(size=v.shape).astype(np.float32) ** 2 for k, v in model.items()}


def grams_of(model: Tensors, seed: int) -> Tensors:
    """Of the layers' matrices alone: (out, in) = (6, 4)."""
    random = np.random.default_rng(seed)
    rows = {k: random.normal(size=(9, 4)) for k in model if k.endswith("mlp.weight")}
    return {k: (x.T @ x).astype(np.float32) for k, x in rows.items()}


MAKE = {"fishers": fishers_of, "grams": grams_of}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two models, and both statistics of each."""
    root = tmp_path_factory.mktemp("statistics")
    for seed, name in enumerate(("base", "a", "b")):
        write(root / name, tensors(seed))
        for kind, make in MAKE.items():
            path = root / f"{name}-{kind}.safetensors"
            write_statistic(path, kind, make(tensors(seed), seed), tensors(seed), FACTS)
    return root


def merged(folder: Path, out: Path, method: Any, kind: str, **more: Any) -> Tensors:
    files = [folder / f"{name}-{kind}.safetensors" for name in ("a", "b")]
    models = [folder / "a", folder / "b"]
    return fuse(out, folder / "base", models, Recipe(method, 0.7), statistics=files, **more)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0)])
def test_fisher_merging_of_files_against_numpy(folder: Path, tmp_path: Path, weights: Any):
    found = merged(folder, tmp_path / "out", Fisher(1e-6, weights), "fishers")
    base, *models = (tensors(seed) for seed in range(3))
    shares = [
        {k: w * np.maximum(f.astype(np.float64), 1e-6) for k, f in fishers_of(m, seed).items()}
        for seed, (m, w) in enumerate(zip(models, weights, strict=True), start=1)
    ]
    expected = {}
    for key, start in base.items():
        total = sum(share[key] * (m[key] - start) for share, m in zip(shares, models, strict=True))
        expected[key] = start + 0.7 * total / sum(share[key] for share in shares)
    assert_close(found, expected)
    record = json.loads((tmp_path / "out/fusion.json").read_text())
    assert [each["file"] for each in record["statistics"]] == [
        "a-fishers.safetensors",
        "b-fishers.safetensors",
    ]
    assert record["statistics"][0]["samples"] == 4
    assert "## Statistics" in (tmp_path / "out/README.md").read_text()


def test_regmean_of_files_against_numpy(folder: Path, tmp_path: Path):
    """Torch's matrices are (outputs, inputs); what has no Gram matrix is averaged."""
    found = merged(folder, tmp_path / "out", RegMean(0.9, 0.0), "grams")
    base, *models = (tensors(seed) for seed in range(3))
    grams = [grams_of(model, seed) for seed, model in enumerate(models, start=1)]
    expected = {}
    for key, start in base.items():
        deltas = [(model[key] - start).astype(np.float64) for model in models]
        mean = sum(deltas) / 2
        if key in grams[0]:
            shrunk = [g[key] * (0.9 + 0.1 * np.eye(4)) for g in grams]
            products = sum(g @ d.T for g, d in zip(shrunk, deltas, strict=True))
            mean = np.linalg.solve(sum(shrunk), products).T
        expected[key] = start + 0.7 * mean
    assert_close(found, expected, atol=1e-5)


def test_names_may_have_a_prefix_that_the_base_has_not(folder: Path, tmp_path: Path):
    plain = merged(folder, tmp_path / "plain", Fisher(), "fishers")
    for seed, name in enumerate(("base", "a", "b")):
        content = {f"wrapped.{key}": value for key, value in tensors(seed).items()}
        write(tmp_path / name, content)
        shutil.copy(folder / f"{name}-fishers.safetensors", tmp_path)
    found = merged(tmp_path, tmp_path / "out", Fisher(), "fishers")
    assert_close({key.removeprefix("wrapped."): value for key, value in found.items()}, plain)


def test_statistics_of_something_else_are_refused(folder: Path, tmp_path: Path):
    models = [folder / name for name in ("a", "b")]

    def refused(method: Any, *names: str) -> str:
        files = [folder / f"{name}.safetensors" for name in names]
        recipe = Recipe(method, 1.0)
        with pytest.raises(InputError) as error:
            plan_fusion(tmp_path / "x", folder / "base", models, recipe, statistics=files)
        return str(error.value)

    swapped = refused(Fisher(), "b-fishers", "a-fishers")
    assert "b-fishers.safetensors: statistics of another model than" in swapped
    assert "are in the order of --models" in swapped
    assert "of each of the 2 models, got 1 files" in refused(Fisher(), "a-fishers")
    assert "holds grams, and the method needs fishers" in refused(Fisher(), "a-grams", "b-grams")
    assert "and the method needs no statistics" in refused(TaskArithmetic(), "a-grams", "b-grams")
    assert "a/model.safetensors: not a file of statistics" in refused(
        Fisher(), "a/model", "b/model"
    )
    with pytest.raises(InputError, match="`rmtllmf statistics` makes them"):
        plan_fusion(tmp_path / "x", folder / "base", [folder / "a"], Recipe(RegMean(), 1.0))

    path = tmp_path / "odd.safetensors"
    some = {key: value for key, value in fishers_of(tensors(2), 2).items() if "mlp" in key}
    for numbers, message in (
        (some, "has other tensors than"),
        (
            fishers_of(tensors(2), 2) | {"model.norm.weight": np.ones(5, np.float32)},
            "has the shape",
        ),
    ):
        write_statistic(path, "fishers", numbers, tensors(2), FACTS)
        shutil.copy(path, folder / "odd.safetensors")
        assert message in refused(Fisher(), "a-fishers", "odd")
    assert open_statistic(path).facts == FACTS


def test_damaged_numbers_are_named(folder: Path, tmp_path: Path):
    numbers = fishers_of(tensors(1), 1)
    numbers["model.norm.weight"][2] = np.nan
    path = tmp_path / "a-fishers.safetensors"
    write_statistic(path, "fishers", numbers, tensors(1), FACTS)
    shutil.copy(folder / "b-fishers.safetensors", tmp_path)
    for name in ("base", "a", "b"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(InputError, match=r"a-fishers.*: model.norm.weight holds NaN or infinite"):
        merged(tmp_path, tmp_path / "out", Fisher(), "fishers")
    save_file({"w": np.ones(2, np.float32)}, path, {"statistics": "{}"})
    with pytest.raises(InputError, match="not a file of statistics"):
        open_statistic(path)


def test_the_record_is_a_recipe_that_finds_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names = ("a", "b")
    words = ["fuse", "--base", folder / "base", "--models", *(folder / name for name in names)]
    words += ["--method", "fisher(floor=0.001)", "--out", tmp_path / "first", "--statistics"]
    main([str(word) for word in (*words, *(folder / f"{n}-fishers.safetensors" for n in names))])
    main(["fuse", str(tmp_path / "first/fusion.json"), "--out", str(tmp_path / "again")])
    first, again = (tmp_path / name / "model.safetensors" for name in ("first", "again"))
    assert first.read_bytes() == again.read_bytes()
    assert "fisher(floor=0.001)" in capsys.readouterr().out
