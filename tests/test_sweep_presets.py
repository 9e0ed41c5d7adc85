"""Direct presets, every attack and an error model through the command line, to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TinyRun

from rmtllmf_jax.channel import ATTACKS, PRESETS, RECEIVERS
from rmtllmf_jax.cli.main import main
from rmtllmf_jax.fusion import METHODS
from rmtllmf_jax.uplink import ERROR_MODELS, TRANSPORTS

SCENARIOS = ("clean", "ideal", *sorted(set(ATTACKS) - {"none"}))

Sweep = Callable[..., tuple[pd.DataFrame, pd.DataFrame]]


@pytest.fixture
def run(finished: TinyRun, tmp_path: Path) -> Path:
    """A copy of a finished run folder."""
    return finished.copy(tmp_path / "run")


@pytest.fixture
def sweep(run: Path, finished: TinyRun) -> Sweep:
    """Sweep a few cells in this process; return results and cosines."""

    def swept(*options: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        cache = finished.users[finished.users.index("--cache-dir") + 1]
        few = ["--combinations", "1", "--protections", "none"]
        main(["sweep", "--out", str(run), "--cache-dir", cache, *finished.grid, *few, *options])
        return tuple(pd.read_parquet(run / f"{name}.parquet") for name in ("results", "cosines"))

    return swept


def settings(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())["settings"]


def test_a_direct_preset(run: Path, sweep: Sweep) -> None:
    preset = "mse=.01,.5,.03"
    results, cosines = sweep("--preset", preset, "--scenarios", "clean", "ideal")
    assert set(results["scenario"]) == set(cosines["scenario"]) == {"clean", "ideal"}
    ideal = results[results["scenario"] == "ideal"]
    for task, mse in (("dtd", 0.01), ("mnist", 0.5), ("svhn", 0.03)):
        np.testing.assert_allclose(ideal.loc[ideal["task"] == task, "mse"], mse, rtol=1e-6)
    assert settings(run)["preset"] == preset


@pytest.mark.slow
def test_every_attack_reaches_the_report(run: Path, sweep: Sweep) -> None:
    results, _ = sweep("--scenarios", *SCENARIOS)
    main(["report", str(run)])
    assert set(results["scenario"]) == set(SCENARIOS)
    means = results.groupby("scenario")["mse_mean"].mean()
    assert means.drop("towards").is_unique  # user 0 may be the strongest one
    assert np.isfinite(means).all()
    summary = pd.read_csv(run / "report" / "summary.csv")
    assert set(SCENARIOS) <= set(summary["scenario"])


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_error_model_has_a_store_of_its_own(run: Path, sweep: Sweep) -> None:
    (old,) = (run / "sweep").iterdir()
    before = files(old)
    tables = sweep("--scenarios", "ideal", "--order", "lmmse", "--error-model", "lmmse")
    for table in tables:
        assert set(table["error_model"]) == {"lmmse"}
    assert settings(run).items() >= {"error_model": "lmmse", "receiver": "lmmse"}.items()
    assert len(list((run / "sweep").iterdir())) == 2
    assert files(old) == before


def test_symbols_as_transport(run: Path, sweep: Sweep, capfd: pytest.CaptureFixture[str]) -> None:
    few = ("--scenarios", "clean", "ideal", "--transport", "qam(size=16)")
    results, cosines = sweep(*few)
    assert settings(run)["transport"] == "qam(size=16)"
    assert results["kappa"].isna().all()
    ideal = cosines[(cosines["scenario"] == "ideal") & (cosines["task_a"] == cosines["task_b"])]
    assert len(ideal)
    main(["report", str(run)])
    assert "qam(size=16)" in (run / "report" / "index.html").read_text()
    with pytest.raises(SystemExit):
        sweep(*few, "--axis", "c0_db=-10")
    assert "the axis c0_db sets errors that are given" in capfd.readouterr().err


def test_rules_and_levels(run: Path, sweep: Sweep) -> None:
    options = (
        "--scenarios",
        "clean",
        "ideal",
        "--axis",
        "snr_db=0,9",
        "--rules",
        "ties",
        "average",
    )
    results, cosines = sweep(*options)
    assert set(results["rule"]) == {"ties", "average"}
    assert set(results["scale"]) == {1.0}  # rules that average
    for table in (results, cosines):
        assert set(table.loc[table["scenario"] == "ideal", "level"]) == {0.0, 9.0}
        assert table.loc[table["scenario"] == "clean", "level"].isna().all()
        assert set(table["axis"]) == {"", "snr_db"}
    described = json.loads((run / "run.json").read_text())
    assert described["grid"]["axis"] == {"name": "snr_db", "levels": [0.0, 9.0]}
    assert described["scales"] == {rule: {"2": 1.0, "3": 1.0} for rule in ("ties", "average")}


@pytest.mark.parametrize("command", ["sweep", "reproduce"])
def test_help_names_what_can_be_chosen(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = capfd.readouterr().out.replace(",", " ").split()
    for name in (*PRESETS, *SCENARIOS, *RECEIVERS, *ERROR_MODELS, *METHODS, *TRANSPORTS):
        named = [word for word in words if word.partition("(")[0].strip("().:=RHO") == name]
        assert named, name
    assert any(word.startswith("mse=.01") for word in words)
    assert any(word.startswith("snr_db=10") for word in words)
    assert any(word.startswith("budget_db=10") for word in words)
