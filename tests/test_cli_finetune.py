"""What `rmtllmf finetune` shows and keeps: curves, the best step, an early end, test accuracies."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_sweep_trackers import FakeWandb

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.classifier import read_classifier
from rmtllmf_jax.models.pretrained import read_pretrained
from rmtllmf_jax.report.curve_figures import Curve, learning_curves
from rmtllmf_jax.runs import open_run
from rmtllmf_jax.training.watch import VALIDATION_ACCURACY, VALIDATION_LOSS, best_step, read_curve


@pytest.fixture
def words(shallow_model: Path, tiny_data: Path, cache_dir: Path) -> list[object]:
    found = ["finetune", "--model", shallow_model, "--data", tiny_data, "--tasks", "mnist", "svhn"]
    return [*found, "--batch-size", 8, "--cache-dir", cache_dir, "--validation-fraction", 0.2]


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    main([str(word) for word in words])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def curve_of(out: Path, task: str) -> dict[int, dict[str, float]]:
    (path,) = (out / "curves").glob(f"{task}-*.csv")
    return read_curve(path)


def test_curves_and_test_accuracies_are_shown(
    words: list[object],
    cache_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    out, wandb = tmp_path / "run", FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    trackers = ["--trackers", "tensorboard", "wandb"]
    printed = run(capsys, *words, "--out", out, "--steps", 7, *trackers)
    logged = [(step, values) for name, values, step in wandb.calls[1:-1] if name == "log"]
    assert [step for step, _ in logged] == sorted(step for step, _ in logged)
    told = {"mnist": 0, "svhn": 7}  # where the steps of each begin
    opened = open_run(out, cache_dir=cache_dir)
    for place, task in enumerate(("mnist", "svhn")):
        rows = curve_of(out, task)
        assert list(rows) == list(range(1, 8))
        assert all(set(row) == {"loss"} for row in rows.values())  # no score was asked for
        assert all(row["loss"] > 0 for row in rows.values())
        losses = {step: x[key] for step, x in logged if (key := f"fine-tuning/{task}/loss") in x}
        assert losses
        for step, loss in losses.items():
            assert loss == pytest.approx(rows[step - told[task]]["loss"])
        said = re.search(
            rf"^{task}: test accuracy ([\d.]+) % \(fine-tuned, (\d+) im", printed, re.M
        )
        reached = opened.accuracies(opened.finetuned(task))[task]
        assert (said[1], int(said[2])) == (f"{100 * reached:.1f}", len(opened.tasks[place].test))
    assert (out / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").iterdir())
    assert not (out / "training" / "best.safetensors").exists()


def test_the_best_step_is_kept_and_training_ends_early(
    words: list[object], cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "run"
    how = ["--steps", 60, "--keep", "best", "--patience", 2, "--validate-every", 3]
    how += ["--augment", "auto", "--accumulate", 2, "--learning-rate", 0.01]
    printed = run(capsys, *words, "--out", out, *how)
    opened = open_run(out, cache_dir=cache_dir)
    for task, record in opened.users.items():
        rows = curve_of(out, task)
        scored = [step for step in rows if VALIDATION_LOSS in rows[step]]
        best = best_step(rows)
        assert scored == list(range(3, max(rows) + 1, 3))
        assert max(rows) == best + 6 or max(rows) == 60
        ended = f"fine-tuning {task}: ends after step {max(rows)}, see --patience" in printed
        assert ended == (max(rows) < 60)
        # What is kept scores as the best step did.
        accuracy = record.finetuned_validation_accuracy
        assert accuracy == pytest.approx(rows[best][VALIDATION_ACCURACY])
        assert record.recipe["augment"] == ["crop"]
        assert record.recipe["choice"] == {"keep_best": True, "patience": 2}
    assert "ends after step" in printed
    for name, classes in (("svhn", 3), ("mnist", 2)):  # a merge under the head of one task
        folder = tmp_path / name
        run(capsys, "export", out, "--to", folder, "--classifier", name, "--cache-dir", cache_dir)
        found = read_classifier(read_pretrained(folder))
        assert found.labels == tuple(f"class {i}" for i in range(classes))
        np.testing.assert_array_equal(found.head.kernel, opened.classifier(name).head.kernel)
    (figure,) = out.glob("learning_curves.png")
    before = json.loads((out / "finetuned.json").read_text())
    run(capsys, *words, "--out", out, *how)  # finished: nothing is made again
    assert json.loads((out / "finetuned.json").read_text()) == before
    assert figure.exists()


def test_options_that_cannot_be_are_refused(
    words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [*words, "--out", tmp_path / "run"]
    assert "unknown augmentation 'flop'" in refused(capsys, *words, "--augment", "flop")
    error = refused(capsys, *words, "--accumulate", 3)
    assert "--batch-size 8 is not a multiple of 1 devices (--train-devices) times 3 parts" in error
    assert "--train-devices 99: a process" in refused(capsys, *words, "--train-devices", 99)
    error = refused(capsys, *words, "--keep", "best", "--validation-fraction", 0)
    assert "there is no validation part: set one aside" in error
    error = refused(capsys, *words, "--task-vectors", tmp_path, "--patience", 2)
    assert "--patience is for models that are fine-tuned here" in error


def test_a_figure_has_a_panel_per_task():
    curve = Curve([1, 2, 3], [3.0, 2.0, 1.0], [2], [2.5], kept=2)
    plain = Curve([1, 2], [3.0, 2.0])
    figure = learning_curves(dict.fromkeys("abcd", plain) | {"e": curve})
    assert isinstance(figure, Figure)
    shown = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in shown] == list("abcde")
    assert [len(panel.lines) for panel in shown] == [1, 1, 1, 1, 3]
    np.testing.assert_array_equal(shown[4].lines[0].get_ydata(), [3, 2, 1])
    with pytest.raises(InputError, match="no learning curve"):
        learning_curves({})
