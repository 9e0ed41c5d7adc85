"""`rmtllmf channel`: its numbers against the channel's own functions, its figures, its errors."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import command, environment

from rmtllmf_jax import channel
from rmtllmf_jax.channel import survey
from rmtllmf_jax.cli.main import main
from rmtllmf_jax.report.channel_plots import (
    Equalised,
    constellation_figure,
    distribution_figure,
    eigenvalue_figure,
    user_figure,
)

PAPER = channel.PRESETS["paper"]
DEFAULT = ["none", "strongest_user", "sum_rate"]
DRAWS = 4_500  # one chunk and a bit
FIGURES = {"users.png", "distribution.png", "eigenvalues.png", "constellation.png"}


@pytest.fixture(scope="module")
def installed(
    cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, dict[str, Any]], Path]:
    """The installed command's JSON and the folder of its figures."""
    out = tmp_path_factory.mktemp("channel") / "figures"
    words = command("channel", "--draws", DRAWS, "--json", "--out", out, "--cache-dir", cache_dir)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {row["attack"]: row for row in json.loads(done.stdout)}, out


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    """(draws, users), weakest first: the MSE of the same draws by textbook formulas in float64."""
    h = np.asarray(channel.draw_channels(PAPER, jax.random.key(0), DRAWS), np.complex128)
    by_power = np.argsort(np.sum(np.abs(h) ** 2, axis=1), axis=1)
    h = np.take_along_axis(h, by_power[:, None, :], axis=2)
    adjoint, budget = np.swapaxes(h.conj(), 1, 2), PAPER.attack_budget
    direction = h[:, :, -1:] / np.linalg.norm(h[:, :, -1:], axis=1, keepdims=True)
    covariances = {
        "none": np.zeros((len(h), 16, 16)),
        "strongest_user": budget * direction * np.swapaxes(direction.conj(), 1, 2),
        "sum_rate": sum_rate_covariance(h, budget),
    }
    mse = {}
    for attack, covariance in covariances.items():
        m = np.eye(8) + adjoint @ np.linalg.solve(covariance + np.eye(16), h)
        # The last decoded, the strongest, comes first.
        pivots = np.linalg.cholesky(m[:, ::-1, ::-1])
        mse[attack] = np.diagonal(pivots, axis1=1, axis2=2).real[:, ::-1] ** -2
    return mse


def sum_rate_covariance(h: np.ndarray, budget: float) -> np.ndarray:
    """P1 by bisection for nu: sigma^2 + lambda sigma - lambda / nu = 0."""
    left, singular, _ = np.linalg.svd(h, full_matrices=False)
    lam = singular**2
    low, high = np.full((len(h), 1), -30.0), np.full((len(h), 1), 30.0)  # log nu
    for _ in range(60):
        nu = np.exp((low + high) / 2)
        sigma = (np.sqrt(lam**2 + 4 * lam / nu) - lam) / 2
        above = np.sum(sigma, axis=1, keepdims=True) > budget
        low, high = np.where(above, np.log(nu), low), np.where(above, high, np.log(nu))
    return left * sigma[:, None, :] @ np.swapaxes(left.conj(), 1, 2)


@pytest.fixture
def run(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command in this process; return what it prints."""

    def called(*words: object) -> str:
        main(["channel", "--cache-dir", str(cache_dir), *map(str, words)])
        return capsys.readouterr().out

    return called


# Numbers


def test_json_has_an_object_an_attack(installed) -> None:
    rows, _ = installed
    assert list(rows) == DEFAULT
    for row in rows.values():
        stated = {"preset": "paper", "receiver": "sic", "draws": DRAWS, "seed": 0}
        assert row.items() >= (stated | {"c0_db": -31.0}).items()
        assert list(row["percentiles"]) == ["5", "50", "95"]
        assert len(row["user_mse"]) == len(row["user_rate"]) == PAPER.users
        assert np.mean(row["user_mse"]) == pytest.approx(row["mse_mean"])
        assert np.sum(row["user_rate"]) == pytest.approx(row["sum_rate"])


@pytest.mark.parametrize(
    ("attack", "mean", "sum_rate", "snr_db"),
    [
        ("none", 0.0129, 40.6, -16.5),
        ("strongest_user", 0.0327, 35.4, -21.9),
        ("sum_rate", 0.2081, 15.7, -27.2),
    ],
)
def test_calibrated_numbers(installed, attack: str, mean: float, sum_rate: float, snr_db: float):
    row = installed[0][attack]
    assert row["mse_mean"] == pytest.approx(mean, rel=0.05)
    assert row["sum_rate"] == pytest.approx(sum_rate, rel=0.02)
    assert row["worst_user_snr_db"] == pytest.approx(snr_db, abs=0.2)
    if attack == "strongest_user":
        assert row["mse_attacked"] == pytest.approx(0.160, rel=0.05)


@pytest.mark.parametrize("attack", DEFAULT)
def test_numbers_of_the_same_draws(installed, reference, attack: str) -> None:
    """The draws are those of `draw_channels`, in chunks of which the second is cut."""
    row, mse = installed[0][attack], reference[attack]
    by_drop = mse.mean(axis=1)
    close = partial(pytest.approx, rel=1e-4)
    assert row["mse_mean"] == close(by_drop.mean())
    assert row["mse_standard_error"] == close(by_drop.std(ddof=1) / DRAWS**0.5)
    assert row["mse_attacked"] == close(mse[:, -1].mean())
    assert row["user_mse"] == close(mse.mean(axis=0))
    assert row["sum_rate"] == close(-np.log(mse).sum(axis=1).mean())
    worst_db = -10 * np.log10(mse.max(axis=1)).mean()
    assert row["worst_user_snr_db"] == close(worst_db - 31)
    for percent, value in row["percentiles"].items():
        assert value == close(np.percentile(by_drop, float(percent), method="inverted_cdf"))


def test_the_same_in_chunks_of_another_size(
    installed, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "CHUNK", 700)
    words = ("--attack", "none", "--draws", DRAWS, "--json")
    (row,), expected = json.loads(run(*words)), installed[0]["none"]
    assert row.keys() == expected.keys()
    for name in ("mse_mean", "mse_standard_error", "mse_attacked", "sum_rate", "user_mse"):
        assert row[name] == pytest.approx(expected[name], rel=1e-6)
    assert row["percentiles"] == pytest.approx(expected["percentiles"], rel=1e-6)


def test_the_same_seed_prints_the_same(installed, run) -> None:
    words = ("--draws", DRAWS, "--json", "--seed")
    same, other = ({row["attack"]: row for row in json.loads(run(*words, n))} for n in (0, 1))
    assert same == installed[0]
    for attack, row in other.items():
        assert row["mse_mean"] != same[attack]["mse_mean"]
        assert row["mse_mean"] == pytest.approx(same[attack]["mse_mean"], rel=0.05)


def test_joint_reception(installed, run) -> None:
    """Without cancellation all but the first decoded lose, most of all the last."""
    (row,) = json.loads(run("--attack", "none", "--draws", DRAWS, "--json", "--order", "lmmse"))
    assert row["receiver"] == "lmmse"
    gain = np.array(row["user_mse"]) / installed[0]["none"]["user_mse"]
    assert gain[0] == pytest.approx(1, rel=1e-4)
    assert np.all(np.diff(gain) > 0)


def test_errors_that_are_given(run) -> None:
    (row,) = json.loads(run("--preset", "mse=.1,.4,.2", "--json", "--draws", 3))
    assert row["user_mse"] == pytest.approx([0.4, 0.2, 0.1])
    assert (row["receiver"], row["mse_standard_error"]) == (None, 0.0)
    assert row["mse_attacked"] == pytest.approx(0.1)
    assert row["percentiles"] == pytest.approx(dict.fromkeys(("5", "50", "95"), 0.7 / 3))
    (row,) = json.loads(run("--preset", "mse=0,0", "--json", "--draws", 1))
    assert row["mse_mean"] == row["percentiles"]["50"] == 0
    assert row["sum_rate"] is row["worst_user_snr_db"] is row["mse_standard_error"] is None


# The terminal and the figures


def test_table_in_the_terminal(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = run("--preset", "snr_db=0,0", "--draws", 2)
    assert "Channel snr_db=0,0, 2 draws, seed 0" in table
    cells = [line.split() for line in table.splitlines() if line.strip()]
    assert ["mean", "MSE", "-", "0.5000"] in cells
    assert ["sum", "rate", "nats", "1.39"] in cells
    assert ["worst", "parameter", "SNR", "dB", "-28.0"] in cells
    assert not list(tmp_path.iterdir())


def test_figures_beside_json(installed) -> None:
    _, out = installed
    assert {path.name for path in out.glob("*")} - {".lock"} == FIGURES
    for name in FIGURES:
        data = (out / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 20_000


@pytest.mark.slow
def test_figures_by_default(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = run("--attack", "none", "none", "--draws", 3, "--order", "lmmse").splitlines()
    assert set(lines[-5:-1]) == {f"runs/channel/{name}" for name in FIGURES}
    assert lines[-1].startswith("Next: ")
    assert {path.name for path in Path("runs/channel").glob("*.png")} == FIGURES


DROPS = np.array([[0.2, 0.1], [0.4, 0.1], [0.6, 0.1]])


def test_user_figure() -> None:
    figure = user_figure({"none": DROPS, "sum_rate": DROPS}, "a note")
    mse, rate = figure.axes
    np.testing.assert_allclose(mse.get_lines()[0].get_ydata(), [0.4, 0.1])
    nats = [-np.log([0.2, 0.4, 0.6]).mean(), -np.log(0.1)]
    np.testing.assert_allclose(rate.get_lines()[1].get_ydata(), nats)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["No attack", "Sum-rate attack"]
    assert figure.get_suptitle().endswith("a note")


def test_distribution_figure() -> None:
    (panel,) = distribution_figure({"none": DROPS}, "").axes
    steps, mean = panel.get_lines()
    np.testing.assert_allclose(steps.get_ydata(), [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(steps.get_xdata(), [0.15, 0.15, 0.25, 0.35])
    assert mean.get_xdata() == pytest.approx([0.25])


def test_eigenvalue_figure() -> None:
    lam = np.array([[100.0, 1.0], [300.0, 1.0]])
    attacks = {"none": np.zeros((2, 2)), "strongest_user": np.array([[10.0, 1e-6]] * 2)}
    first, mean = eigenvalue_figure(lam, attacks, 10.0, "").axes
    for panel, top in ((first, 20.0), (mean, 10 * np.log10(200))):
        lines = {line.get_label(): line for line in panel.get_lines()}
        assert list(lines) == ["Channel $HPH^H$", "Strongest-user attack", "Thermal noise"]
        np.testing.assert_allclose(lines["Channel $HPH^H$"].get_ydata(), [top, 0])
        np.testing.assert_allclose(lines["Strongest-user attack"].get_ydata(), [10])


def test_constellation_figure() -> None:
    sent = np.array([1 + 1j, -1 - 1j]) / 2**0.5
    received = Equalised(np.stack([sent, 2 * sent, 3 * sent]), np.arange(3.0), np.full(3, 0.25))
    figure = constellation_figure({"none": received, "white": received}, sent, "")
    assert len(figure.axes) == 6
    assert figure.axes[1].get_title() == "Median user\nSINR 1.0 dB, 25.0% wrong"
    shown = figure.axes[4].collections[0].get_offsets()
    np.testing.assert_allclose(shown, [[2**0.5] * 2, [-(2**0.5)] * 2])


def test_every_attack_can_be_drawn() -> None:
    assert len(user_figure(dict.fromkeys(channel.ATTACKS, DROPS), "").axes[0].get_lines()) == len(
        channel.ATTACKS
    )


# Errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attack", "sumrate"], "unknown --attack 'sumrate'. Did you mean 'sum_rate'?"),
        (["--preset", "mse=2"], "mse must be finite and >= 0 and <= 1, got 2.0"),
        (["--draws", "5000000000"], "--draws must be at most 4294967296, got 5000000000"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--preset", "mse=.1", "--attack", "none", "white"], "the attack white needs a channel"),
        (["--preset", "mse=.1", "--order", "lmmse"], "the receiver lmmse needs a channel"),
        (["--preset", "mse=.1", "--out", "figures"], "--out figures needs a channel"),
    ],
)
def test_bad_options(words: list[str], message: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["channel", "--cache-dir", "cache", *words])
    assert caught.value.code == 2
    errors = capsys.readouterr()
    assert errors.err.startswith(f"rmtllmf: {message}")
    assert errors.err.count("\n") == 1
    assert not errors.out
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path, cache_dir):
    file = tmp_path / "figures"
    file.write_text("not a folder")
    with pytest.raises(SystemExit) as caught:
        main(["channel", "--cache-dir", str(cache_dir), "--out", str(file)])
    assert caught.value.code == 2
    assert f"rmtllmf: {file}: cannot be used" in capsys.readouterr().err
