"""`rmtllmf gradcheck`: what it starts from, its verdicts and exit codes, its errors."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import TinyRun, command

from rmtllmf_jax import fusion, gradients, uplink
from rmtllmf_jax.channel import NO_ATTACK, Link, White, get_preset
from rmtllmf_jax.cli.gradcheck import starting_values
from rmtllmf_jax.cli.main import main
from rmtllmf_jax.gradients import Agreement, Objective, Parameters
from rmtllmf_jax.gradients.link import user_mse
from rmtllmf_jax.runs.manifest import load_manifest
from rmtllmf_jax.runs.random_users import TASKS, random_inputs
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.objective import objective_of
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.sweep.uplinks import Uplinks
from rmtllmf_jax.uplink import Scenario

# Two programs, which all runs here share; the attack `white` is quick to compile.
FEW = ("--scenario", "white", "--parameters", "powers", "budget", "mse_factor", "scale")
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def installed(cache_dir: Path) -> dict[str, Any]:
    """What the installed command prints as JSON, of the random model."""
    words = command("gradcheck", "--json", *FEW, "--cache-dir", cache_dir)
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture
def run(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command in this process; return its exit code and what it prints."""

    def called(*words: object) -> tuple[int, str]:
        code = 0
        try:
            main(["gradcheck", "--cache-dir", str(cache_dir), *map(str, words)])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return called


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Objective, Parameters]]:
    """What is compared, in commands that then find that all of it agrees and compute nothing."""
    seen: list[tuple[Objective, Parameters]] = []

    def remember(objective: Objective, start: Parameters, *_: Any, **__: Any) -> list[Agreement]:
        seen.append((objective, start))
        return [Agreement(name, 1.0, 1.0, 0.0) for name in start.given()]

    monkeypatch.setattr(gradients, "value", lambda *_: 0.5)
    monkeypatch.setattr(gradients, "check_gradient", remember)
    return seen


@pytest.fixture(scope="module")
def objective(cache_dir: Path) -> Objective:
    """The random model's users in the cell of the paper."""
    return objective_of(random_inputs(0), Settings(), "sum_rate")


# Verdicts


def test_the_random_model_agrees(installed: dict[str, Any]) -> None:
    assert installed["model"] == "random"
    assert (installed["scenario"], installed["preset"]) == ("white", "paper")
    assert installed["images"] == 3 * 64
    assert 0.25 < installed["value"] < 1  # of four classes, whose labels mean something
    rows = {row["parameter"]: row for row in installed["parameters"]}
    assert set(rows) == {"powers", "budget", "mse_factor", "scale"}
    for row in rows.values():
        assert row["verdict"] == "agrees"
        assert row["gradient"] != 0
        assert row["relative_error"] < 2e-3
        assert row["difference"] == pytest.approx(row["gradient"], rel=2e-3)
        assert row["uncertainty"] < abs(row["gradient"]) / 10


def test_a_wrong_gradient_ends_with_1(
    installed: dict[str, Any], run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gradients.value_and_gradient

    def wrong(*words: Any) -> Any:
        value, gradient = right(*words)
        return value, replace(gradient, budget=1.05 * gradient.budget)

    monkeypatch.setattr("rmtllmf_jax.gradients.check.value_and_gradient", wrong)
    code, text = run(*FEW)
    assert code == 1
    verdicts = {
        line.split()[0]: line.split()[1]
        for line in text.splitlines()
        if line.split()[1:2] in (["agrees"], ["differs"])
    }
    assert verdicts == dict.fromkeys(("powers", "mse_factor", "scale"), "agrees") | {
        "budget": "differs"
    }
    assert "Model: random" in text
    assert "\ndiffers: " in text


@pytest.mark.parametrize(
    ("gradient", "difference", "uncertainty", "tolerance", "verdict"),
    [
        (1e-6, 2e-6, 1e-6, 1e-3, "too small to tell"),
        (1.0, 1.0005, 1e-9, 1e-3, "agrees"),
        (1.0, 1.002, 1e-9, 1e-3, "differs"),
        (1.0, 1.002, 1e-9, 1e-2, "agrees"),
        (float("nan"), 1.0, 1e-9, 1e-3, "differs"),
    ],
)
def test_a_verdict_is_explained(
    run: Callable,
    monkeypatch: pytest.MonkeyPatch,
    gradient: float,
    difference: float,
    uncertainty: float,
    tolerance: float,
    verdict: str,
) -> None:
    found = [Agreement("scale", gradient, difference, uncertainty)]
    monkeypatch.setattr(gradients, "value", lambda *_: 0.5)
    monkeypatch.setattr(gradients, "check_gradient", lambda *_, **__: found)
    code = int(verdict == "differs")
    ended, text = run("--scenario", "clean", "--tolerance", tolerance)
    assert ended == code
    assert (f"\n{verdict}: " in text) == (verdict != "agrees")
    ended, text = run("--scenario", "clean", "--tolerance", tolerance, "--json")
    (row,) = json.loads(text)["parameters"]
    assert (ended, row["verdict"]) == (code, verdict)
    assert row["gradient"] == (gradient if np.isfinite(gradient) else None)


# What it starts from


@pytest.mark.parametrize(
    ("preset", "scenario", "names"),
    [
        ("paper", "sum_rate", ("powers", "distances", "path_loss_exponent", "budget")),
        ("paper", "strongest_user", ("positions", "budget")),
        ("umi_nlos", "ideal", ("distances",)),
        ("paper", "white", ("mse",)),
        ("snr_db=10,12,9", "ideal", ("mse",)),
    ],
)
def test_the_start_is_the_preset(
    objective: Objective, preset: str, scenario: str, names: tuple[str, ...]
) -> None:
    """The users' MSE in the first channel is what it is without any parameter."""
    link = Link(get_preset(preset), Scenario(scenario).attack)
    setting = replace(objective.setting, link=link)
    objective = replace(objective, setting=setting)
    start = starting_values(objective, names, KEY)
    assert set(start.given()) == set(names)
    channel = objective.channel_keys(KEY)[0]
    found = objective.user_mse(start, channel)
    np.testing.assert_allclose(found, objective.user_mse(Parameters(), channel), rtol=2e-4)


def test_the_first_channel_is_draw_0_of_a_sweep(objective: Objective) -> None:
    (cell,) = Grid((TASKS,), ("sum_rate",), ("none",), 1, 1).cells()
    expected = Uplinks(random_inputs(0), Settings(seed=3)).mse(cell)
    found = objective.user_mse(Parameters(), objective.channel_keys(KEY)[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("settings", [Settings(), Settings(c0_db=-9.0), Settings(kappa=0.3)])
def test_the_noise_scale_is_that_of_a_sweep(settings: Settings) -> None:
    inputs = random_inputs(0)
    found = objective_of(inputs, settings, "ideal").kappa
    np.testing.assert_array_equal(found, Uplinks(inputs, settings).kappa)
    if settings.kappa is not None:
        np.testing.assert_array_equal(found, np.full(3, 0.3, np.float32))
    else:
        expected = uplink.kappa_from_c0(inputs.vectors, settings.c0_db)
        np.testing.assert_array_equal(found, expected)


def test_a_free_attack_starts_at_white_noise(objective: Objective) -> None:
    link = replace(objective.setting.link, attack=NO_ATTACK)
    objective = replace(objective, setting=replace(objective.setting, link=link))
    start = starting_values(objective, ("attack",), KEY)
    channel = objective.channel_keys(KEY)[0]
    np.testing.assert_allclose(
        user_mse(start, link, channel),
        user_mse(Parameters(), replace(link, attack=White()), channel),
        rtol=1e-4,
    )


def test_scale_and_mse_factor_start_at_the_settings(objective: Objective) -> None:
    for scale, expected in (("1/N", 1 / 3), ("1/sqrt(N)", 3**-0.5)):
        found = objective_of(random_inputs(0), Settings(scale=scale), "ideal")
        assert found.scale == pytest.approx(expected)
    start = starting_values(objective, ("scale", "mse_factor"), KEY)
    np.testing.assert_allclose(start.scale, np.full(3, fusion.power_law(3)), rtol=1e-6)
    assert (np.asarray(start.mse_factor) == 1).all()
    assert start.mse_factor.shape == (3, len(jax.tree.leaves(objective.base)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "powers distances path_loss_exponent budget mse_factor scale"),
        (("--scenario", "ideal"), "powers distances path_loss_exponent mse_factor scale"),
        (("--preset", "umi_nlos"), "distances budget mse_factor scale"),
        (("--preset", "mse=.1,.2,.3", "--scenario", "ideal"), "mse mse_factor scale"),
        (("--scenario", "clean"), "scale"),
        (("--parameters", "budget", "scale", "budget"), "budget scale"),
    ],
)
def test_what_acts_is_checked(
    run: Callable, compared: list, options: tuple[str, ...], expected: str
) -> None:
    code, text = run(*options, "--eval-samples", 10, "--noise-draws", 3)
    ((objective, start),) = compared
    assert code == 0
    assert sorted(start.given()) == sorted(expected.split())
    assert objective.reference is start  # the discrete choices are those of the start
    assert objective.setting.noise_draws == 3
    assert "(30 images)" in text


# A run folder


def test_a_run_folder_is_what_a_sweep_would_fuse(
    finished: TinyRun, run: Callable, compared: list
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    code, text = run("--out", finished.folder, "--combination", "svhn+dtd", "--eval-samples", 7)
    ((objective, _),) = compared
    assert code == 0
    assert f"Model: {finished.folder}\nsvhn+dtd (14 images)" in text
    assert np.asarray(objective.members).tolist() == [1, 0, 1]  # dtd, mnist, svhn
    assert objective.scale == pytest.approx(fusion.power_law(2))
    kappa = uplink.kappa_from_c0(objective.vectors)
    np.testing.assert_array_equal(objective.kappa, kappa)
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before


def test_a_run_in_bfloat16_is_checked_in_float32(
    finished: TinyRun, tmp_path: Path, run: Callable, compared: list
) -> None:
    copy = finished.copy(tmp_path / "run", sweep=False)
    manifest = json.loads((copy / "finetuned.json").read_text())
    manifest["setting"]["dtype"] = "bfloat16"
    (copy / "finetuned.json").write_text(json.dumps(manifest))
    assert load_manifest(copy)[0].dtype == "bfloat16"
    run("--out", copy, "--scenario", "clean")
    ((objective, _),) = compared
    assert objective.setting.features.__self__.module.shape.dtype == "float32"


@pytest.mark.slow
def test_a_run_folder_agrees(finished: TinyRun, run: Callable) -> None:
    code, text = run("--out", finished.folder, "--json", "--eval-samples", 16)
    assert code == 0
    rows = json.loads(text)["parameters"]
    assert len(rows) == 6
    assert {row["verdict"] for row in rows} <= {"agrees", "too small to tell"}
    assert "agrees" in {row["verdict"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--scenario", "ideal", "--parameters", "attack", "positions"),
        ("--preset", "mse=.1,.2,.3", "--scenario", "ideal", "--score", "cross_entropy"),
        ("--scenario", "strongest_user", "--order", "strongest_first", "--metric", "margin"),
        ("--scenario", "sum_mse", "--order", "lmmse", "--channel-draws", "2"),
    ],
)
def test_other_choices_agree(run: Callable, options: tuple[str, ...]) -> None:
    code, text = run(*options)
    assert code == 0, text


# Bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--metric softaccuracy", "unknown metric 'softaccuracy'. Did you mean 'soft_accuracy'?"),
        ("--metric accuracy", "--metric accuracy is a step function"),
        ("--scenario sumrate", "unknown scenario 'sumrate'. Did you mean 'sum_rate'?"),
        ("--parameters power", "unknown parameter of --parameters 'power'. Did you mean 'powers'?"),
        ("--parameters powers mse", "parameters give the MSE itself and also powers"),
        ("--parameters attack", "take the scenario 'ideal'"),
        ("--parameters budget --scenario ideal", "no attacker to spend a budget"),
        ("--parameters powers --preset umi_nlos", "power control 'fractional'"),
        ("--parameters path_loss_exponent --preset uma_los", "needs a PowerLaw"),
        ("--parameters powers --scenario clean", "--parameters powers has no effect"),
        ("--parameters powers --scenario ideal --preset mse=.1,.2,.3", "no channel for powers"),
        ("--parameters mse --scenario ideal --preset mse=.1,0,.3", "has the MSE 0"),
        ("--preset mse=.1,.2,.3", "the attack sum_rate needs a channel"),
        (
            "--combination first+thrid",
            "unknown task of --combination 'thrid'. Did you mean 'third'?",
        ),
        ("--combination first+first", "--combination names a task more than once"),
        ("--metric margin(0)", "temperature must be a finite number > 0, got 0.0"),
        ("--tolerance -1", "--tolerance must be a finite number >= 0, got -1.0"),
        ("--noise-draws 0", "--noise-draws must be at least 1, got 0"),
        ("--channel-draws 0", "--channel-draws must be at least 1, got 0"),
        ("--scale validation", "--scale validation needs a sweep"),
        ("--seed -1", "--seed must be at least 0, got -1"),
        ("--out nowhere", "nowhere/finetuned.json: no such file"),
    ],
)
def test_bad_options_end_with_2(run: Callable, options: str, said: str) -> None:
    code, text = run(*options.split())
    assert code == 2
    assert said in text
    assert text.startswith("rmtllmf: ")
    assert len(text.splitlines()) == 1
    assert not Path("nowhere").exists()
