"""The sweep of figure 2 (experiments/figure_2.py), whose scripts are no package."""

from __future__ import annotations

import importlib
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from conftest import TinyRun, command, environment

from rmtllmf_jax.common.errors import InputError


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The experiment, imported as it runs: from its own folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    return importlib.import_module("figure_2")


def tiny(experiment: ModuleType, finished: TinyRun, folder: Path, **options: Any) -> Any:
    """The options of an experiment on one pair of the finished run's tasks."""
    run = finished.copy(folder / "run", sweep=False)
    return experiment.Options(run, sizes=(2,), combinations=1, out=folder / "out", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenarios": ("clean", "idael")}, "Did you mean 'ideal'"),
        ({"protections": ("freze",)}, "Did you mean 'freeze'"),
        ({"axis": "msee=.1"}, "Did you mean 'mse'"),
        ({"axis": "mse=.1"}, "scenario 'strongest_user' attacks a channel"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_the_run_is_read(
    script: ModuleType, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        script.main(script.Options(tmp_path / "none", cache_dir=tmp_path, **options))


def test_a_run_of_texts_is_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SimpleNamespace(path=tmp_path / "texts", names=("code",), users={"code": object()})
    monkeypatch.setattr(script, "opened_all", lambda _: [run])
    with pytest.raises(InputError, match="texts is a run of texts, and the paper's accuracies"):
        script.main(script.Options(tmp_path / "texts", cache_dir=tmp_path))


@pytest.mark.slow
def test_an_axis_gives_levels_in_place_of_the_presets(
    script: ModuleType, finished: TinyRun, cache_dir: Path, tmp_path: Path
) -> None:
    options = tiny(
        script,
        finished,
        tmp_path,
        scenarios=("clean", "ideal"),
        protections=("none", "freeze"),
        axis="mse=.01,.1",
        draws=1,
        scale="0.3",
        cache_dir=cache_dir,
    )
    script.main(options)
    rows = pd.read_parquet(options.out / "results.parquet")
    assert set(rows["protection"]) == {"none", "freeze"}
    assert set(rows.loc[rows["scenario"] == "ideal", "level"]) == {0.01, 0.1}
    assert rows.loc[rows["scenario"] == "clean", "level"].isna().all()
    assert (options.out / "axis_mse.png").exists()


@pytest.mark.slow
def test_other_fine_tunings_stand_as_seeds(
    script: ModuleType, finished: TinyRun, cache_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    words = command("finetune", *finished.users, "--seed", 1, "--out", other)
    subprocess.run(words, check=True, env=environment(), capture_output=True)
    options = tiny(
        script,
        finished,
        tmp_path,
        also=(other,),
        scenarios=("clean", "ideal"),
        protections=("none", "realign"),
        draws=2,
        repaired_draws=1,
        realign_steps=2,
        scale="validation",
        cache_dir=cache_dir,
    )
    script.main(options)
    rows = pd.read_parquet(options.out / "results.parquet")
    (fixed, *_), sent = rows["task"], rows[rows["protection"] == "none"]
    own = sent[(sent["task"] == fixed) & (sent["scenario"] == "ideal")]
    assert sorted(zip(own["seed"], own["draw"])) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert (own.groupby("draw")["mse"].nunique() == 1).all()  # over the same channels
    assert (own.groupby("draw")["kappa"].nunique() == 2).all()  # of other task vectors
    scales = pd.read_parquet(options.out / "scales.parquet")
    assert not scales.duplicated(["combination", "rule", "method", "scale"]).any()
    same = replace(options, also=(finished.copy(tmp_path / "same", sweep=False),))
    with pytest.raises(InputError, match="fine-tuned with seed 0, as another run is"):
        script.main(same)


@pytest.mark.slow
def test_figure_5_has_every_variant_beside_its_rivals(
    script: ModuleType, finished: TinyRun, cache_dir: Path, tmp_path: Path
) -> None:
    experiment = importlib.import_module("figure_5")
    options = tiny(
        experiment,
        finished,
        tmp_path,
        scenarios=("ideal",),
        shots=(1, 2),
        steps=(1,),
        learning_rates=(1e-3,),
        realign_steps=2,
        control_learning_rate=2e-3,
        eval_samples=4,
        cache_dir=cache_dir,
    )
    experiment.main(options)
    cells = pd.read_csv(options.out / "cells.csv")
    expected = {"base", "control", "none", "freeze", "realign", "r-mtllmf", "1 steps", "rate 0.001"}
    assert expected <= set(cells["variant"])
    counts = cells.groupby(["variant", "shots"])["draw"].nunique()
    assert (counts == options.draws).all()
    page = (options.out / "README.md").read_text("utf-8")
    assert "| base | 0 |" in page
    assert "| control | 10 |" in page
