"""`rmtllmf statistics`: measured once, found by sweeps, and of use to `fuse` on exported models."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TinyRun
from safetensors.numpy import load_file

from rmtllmf_jax import fusion
from rmtllmf_jax.cli.main import main
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.splits import evaluation_subset
from rmtllmf_jax.evaluation.statistics import fisher_information, input_grams
from rmtllmf_jax.fusion import Fisher, RegMean, rules
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.runs import open_run
from rmtllmf_jax.runs.statistics import stored
from rmtllmf_jax.sweep.needs import Needs
from rmtllmf_jax.sweep.settings import Settings

SETTINGS = Settings(statistics_samples=6)
TASKS = ("dtd", "mnist")


@pytest.fixture(scope="module")
def measured(finished: TinyRun, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with both statistics of two of its three tasks."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(finished.folder, folder)
    collect(folder, cache_dir)
    return folder


def collect(folder: Path, cache_dir: Path, *more: str) -> None:
    words = ["statistics", folder, "--samples", 6, "--tasks", *TASKS, "--cache-dir", cache_dir]
    main([str(word) for word in (*words, *more)])


def test_the_same_command_goes_on(
    measured: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
):
    files = sorted((measured / "statistics").iterdir())
    assert len(files) == 4
    before = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    collect(measured, cache_dir)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert (
        printed[-1] == f"Next: merge by them: rmtllmf sweep --out {measured} --rules fisher regmean"
    )
    assert sum("(there already)" in line for line in printed) == 3
    now = {path: path.stat().st_mtime_ns for path in (measured / "statistics").iterdir()}
    assert set(now) == set(before)
    assert all(now[path] == before[path] for path in files[1:])


def test_a_sweep_finds_them(measured: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]):
    """And measures and says what is missing: the same numbers, whatever other tasks there are."""
    run = open_run(measured, TASKS, cache_dir=cache_dir)
    inputs = run.inputs()
    needs = Needs(inputs, SETTINGS)
    found = needs.of(Fisher()) | needs.of(RegMean())
    assert capsys.readouterr().out == ""
    for user, task in enumerate(TASKS):
        images = jnp.asarray(inputs.data[user].train.images)
        assert len(images) >= 6
        expected = stored("fishers", inputs, task, 6, 0)
        for path, leaf in fusion.leaves_by_path(expected).items():
            known = fusion.leaves_by_path(found["fishers"])[path][user]
            np.testing.assert_array_equal(known, leaf)
    few = Needs(inputs, Settings(statistics_samples=5)).of(RegMean())
    printed = capsys.readouterr().out
    assert (
        f"grams of dtd, mnist: measured for this sweep; `rmtllmf statistics {measured}`" in printed
    )
    assert few["grams"].keys() == found["grams"].keys()

    everyone = open_run(measured, cache_dir=cache_dir).inputs()
    without = Needs(everyone.__class__(**vars(everyone) | {"statistics": None}), SETTINGS)
    for kind, method in (("fishers", Fisher()), ("grams", RegMean())):
        fresh = without.of(method)[kind]
        for path, leaf in fusion.leaves_by_path(found[kind]).items():
            two = fusion.leaves_by_path(fresh)[path][: len(TASKS)]
            np.testing.assert_allclose(two, leaf, rtol=1e-3, atol=1e-6, err_msg=path)


def test_they_are_what_the_functions_give(measured: Path, cache_dir: Path):
    run = open_run(measured, ("mnist",), cache_dir=cache_dir)
    inputs, task = run.inputs(), run.tasks[0]
    images = jnp.asarray(task.train.take(evaluation_subset(len(task.train), 6, 0)).images)
    grams = stored("grams", inputs, "mnist", 6, 0)
    assert grams is not None
    for path, gram in input_grams(run.finetuned("mnist"), images, run.model).items():
        np.testing.assert_allclose(grams[path], gram, rtol=1e-5)
    head = jax.tree.map(lambda leaf: leaf[0], inputs.heads)
    wider = head.__class__(
        jnp.pad(head.kernel, ((0, 0), (0, 3))),
        jnp.pad(head.bias, (0, 3), constant_values=-1e9),
        head.projection,
    )
    two = (
        fisher_information(run.finetuned("mnist"), h, images, jax.random.key(1), backbone=b)
        for h, b in ((head, run.model), (wider, run.model))
    )
    for one, other in zip(*map(jax.tree.leaves, two), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-9)


def test_a_file_of_another_model_is_refused(measured: Path, cache_dir: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(measured, folder)
    (one,) = (folder / "statistics").glob("dtd-grams-*")
    (other,) = (folder / "statistics").glob("mnist-grams-*")
    shutil.copy(one, other)
    inputs = open_run(folder, TASKS, cache_dir=cache_dir).inputs()
    with pytest.raises(InputError, match=r"mnist-grams-.*: statistics of another model, of other"):
        Needs(inputs, SETTINGS).of(RegMean())
    other.write_bytes(other.read_bytes()[:-8])
    with pytest.raises(InputError, match="mnist-grams-"):
        Needs(inputs, SETTINGS).of(RegMean())


@pytest.mark.parametrize(("method", "kind"), [("fisher", "fishers"), ("regmean", "grams")])
def test_fuse_merges_exported_models_with_them(
    measured: Path, finished: TinyRun, cache_dir: Path, tmp_path: Path, method: str, kind: str
):
    """The tower that comes out is that of the method on the run's own task vectors."""
    for task in TASKS:
        words = ["export", measured, "--tasks", task, "--to", tmp_path / task]
        words += ["--classifier", "none"]
        main([str(word) for word in (*words, "--cache-dir", cache_dir)])
    files = [next((measured / "statistics").glob(f"{task}-{kind}-*")) for task in TASKS]
    run = open_run(measured, TASKS, cache_dir=cache_dir)
    words = ["fuse", "--base", run.config.model, "--models", *(tmp_path / task for task in TASKS)]
    words += ["--method", method, "--statistics", *files, "--out", tmp_path / "out"]
    main([str(word) for word in (*words, "--from-base", ".*position_embeddings")])
    inputs = run.inputs()
    chosen = rules.METHODS[method]()
    needs = Needs(inputs, SETTINGS).of(chosen)
    merged = fusion.add_to_base(inputs.base, chosen(inputs.vectors, **needs), 1.0)
    _, tower = load_backbone(tmp_path / "out")
    for path, leaf in fusion.leaves_by_path(merged).items():
        if "position" not in path:
            found = fusion.leaves_by_path(tower)[path]
            np.testing.assert_allclose(found, leaf, rtol=1e-4, atol=1e-5, err_msg=path)
    assert load_file(tmp_path / "out" / "model.safetensors")
