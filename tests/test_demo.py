"""The demo, as the README has it: what it leaves behind, and that it tells the paper's story."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from rmtllmf_jax.cli.reproduce import DEMO_SWEEP
from rmtllmf_jax.data.tasks import EMBEDDED_NAMES

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]


@pytest.fixture(scope="module")
def results(demo: Path) -> pd.DataFrame:
    return pd.read_parquet(demo / "results.parquet")


def scores(results: pd.DataFrame, scenario: str, protection: str) -> pd.Series:
    """Return the mean normalised accuracy by number of tasks."""
    rows = results[(results["scenario"] == scenario) & (results["protection"] == protection)]
    return rows.groupby("size")["normalised"].mean()


def test_it_leaves_figures_and_a_page(demo: Path):
    report = demo / "report"
    for number in (2, 3, 5):
        for kind in ("png", "svg", "pdf"):
            assert (report / f"figure_{number}.{kind}").stat().st_size > 1000
    page = (report / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure ") >= 4
    assert "figure_4 skipped: all cosines of different tasks under sum_rate round to 0.00" in page
    assert "clip-mini" in page
    assert "Sum-rate attack" in (demo / "stdout.txt").read_text()


def test_every_task_is_learnt_and_was_not_known(results: pd.DataFrame):
    tasks = results.groupby("task")[["finetuned_score", "base_score"]].first()
    assert sorted(tasks.index) == sorted(EMBEDDED_NAMES)
    assert (tasks["finetuned_score"] > 0.8).all(), tasks  # of 100 test images: ± 0.04
    assert tasks["finetuned_score"].mean() > 0.85
    assert (tasks["base_score"] < tasks["finetuned_score"] - 0.4).all(), tasks


def test_merging_interferes(results: pd.DataFrame):
    clean = scores(results, "clean", "none")
    assert list(clean.index) == [2, 3, 4, 5, 6, 7, 8]
    assert clean[8] < clean[2] - 0.2


def test_the_attack_breaks_and_r_mtllmf_repairs(results: pd.DataFrame):
    attacked, ideal = (scores(results, name, "none").mean() for name in ("sum_rate", "ideal"))
    protected = scores(results, "sum_rate", "r-mtllmf").mean()
    assert attacked < 0.6 * ideal
    assert protected > 1.3 * attacked


def test_all_cells_are_there(results: pd.DataFrame):
    assert results["draw"].nunique() == DEMO_SWEEP["draws"]
    noisy = results[(results["scenario"] != "clean") & (results["protection"] != "control")]
    cells = noisy[["combination", "scenario", "draw", "protection"]].drop_duplicates()
    assert len(cells) == 7 * 3 * 2 * 4
