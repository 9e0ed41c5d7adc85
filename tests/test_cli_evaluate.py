"""`rmtllmf evaluate`, and `export` of what a sweep received and repaired."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pandas as pd
import pytest
from conftest import TinyRun, assert_trees_equal

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.cli.options import Configured
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.sweep.configuration import engine_of, job_of, model_of

CHOICE = ("combination=dtd+mnist", "scenario=sum_rate", "protection=r-mtllmf")


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    main(["--quiet", "evaluate", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


def test_a_configuration_is_exported_and_evaluated_as_the_sweep_did(
    finished: TinyRun, cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = pd.read_parquet(finished.folder / "results.parquet")
    where = ["--cache-dir", cache_dir]
    found = evaluated(capsys, finished.folder, "--configuration", *CHOICE, *where)
    chosen = Configured(run_folder=finished.folder, configuration=CHOICE, cache_dir=cache_dir)
    run = chosen.swept()
    rows = chosen.rows(run)
    assert len(results) > len(rows)
    assert found["tasks"].keys() == {"dtd", "mnist"}
    for row in rows.to_dict("records"):
        numbers = found["tasks"][row["task"]]
        assert {name: row[name] for name in numbers if name != "images"}.items() <= numbers.items()

    out = tmp_path / "model"
    words = ["--configuration", *CHOICE, "--to", str(out), *map(str, where)]
    main(["export", str(finished.folder), *words])
    assert "normalised score" in capsys.readouterr().out
    expected = model_of(engine_of(run), job_of(rows))
    assert_trees_equal(load_backbone(out, run.config.image_size)[1], jax.device_get(expected))
    again = evaluated(
        capsys, finished.folder, "--directory", out, "--tasks", "dtd", "mnist", *where
    )
    assert again["tasks"] == found["tasks"]


def test_fine_tuned_models_are_evaluated_in_a_table(
    finished: TinyRun, cache_dir: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["evaluate", str(finished.folder), "--tasks", "svhn", "--cache-dir", str(cache_dir)]
    for metric, label in (("accuracy", "Accuracy (%)"), ("cross_entropy", "Cross-entropy (nats)")):
        main([*words, "--metric", metric])
        printed = capsys.readouterr().out
        assert "fine-tuned models, test images" in printed
        assert label in " ".join(printed.split())
        assert "100.0" in printed.split("svhn")[1]  # normalised by itself


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--configuration", "scenario=sum_rate"], "leaves several open, give also one each of"),
        (["--configuration", "scenaro=x"], "unknown column of --configuration 'scenaro'."),
        (["--configuration", "scenario=x"], "scenario=x: there is clean, ideal, strongest_user"),
        (["--configuration", "sum_rate"], "expected NAME=VALUE, got 'sum_rate'."),
        (["--configuration", "draw=0", "--directory", "x"], "are two models: give one of them."),
        (["--directory", "/nowhere"], "nowhere: no such directory"),
        (["--tasks", "mnst"], "unknown task 'mnst'. Did you mean 'mnist'?"),
    ],
)
def test_what_cannot_be_evaluated_is_said(
    finished: TinyRun,
    cache_dir: Path,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(finished.folder), *words, "--cache-dir", str(cache_dir)])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
