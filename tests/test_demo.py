"""The demo, as the README has it: what it leaves behind, and that it tells the paper's story."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from chromium import Chromium, chromium_path

from rmtllmf_jax.cli.reproduce import DEMO_SWEEP
from rmtllmf_jax.data.tasks import EMBEDDED_NAMES

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]


@pytest.fixture(scope="module")
def results(demo: Path) -> pd.DataFrame:
    return pd.read_parquet(demo / "results.parquet")


@pytest.fixture(scope="module")
def scales(demo: Path) -> pd.DataFrame:
    return pd.read_parquet(demo / "scales.parquet")


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


@pytest.mark.parametrize("width", [768, 390])
def test_its_small_table_fits_a_tablet_and_a_phone(demo: Path, tmp_path: Path, width: int):
    binary = chromium_path()
    if binary is None:
        pytest.skip("no chromium on the PATH")
    with Chromium(binary, tmp_path / "profile") as browser:
        browser.resize(width)
        browser.open((demo / "report" / "index.html").as_uri())
        beyond = browser.evaluate("""[...document.querySelectorAll("table.glance")]
          .map(each => each.parentElement.scrollWidth - each.parentElement.clientWidth)""")
    assert beyond == [0]


def test_the_base_model_knows_the_tasks_by_half(results: pd.DataFrame):
    tasks = results.groupby("task")[["finetuned_score", "base_score"]].first()
    assert sorted(tasks.index) == sorted(EMBEDDED_NAMES)
    assert (tasks["finetuned_score"] > 0.7).all(), tasks  # of 100 test images: ± 0.04
    assert 0.45 < tasks["base_score"].sum() / tasks["finetuned_score"].sum() < 0.7


def test_fusing_helps_at_every_number_of_tasks(results: pd.DataFrame, scales: pd.DataFrame):
    clean = scores(results, "clean", "none")
    base = results["base_score"] / results["finetuned_score"]
    assert list(clean.index) == list(DEMO_SWEEP["sizes"])
    assert (clean > 0.8).all(), clean
    assert (clean > base.groupby(results["size"]).mean() + 0.15).all()
    assert clean[8] < clean[2] - 0.05  # and eight interfere more than two
    curves = scales.groupby(["size", "scale"])["normalised"].mean().unstack()
    best = curves.idxmax(axis=1)
    assert ((best > curves.columns.min()) & (best < curves.columns.max())).all(), curves


def test_the_order_is_the_papers(results: pd.DataFrame):
    """By eye in figure 2: noise costs, the sum-rate attack breaks the fused model, and R-MTLLMF
    repairs it; without an attack it is even above the clean merge, as it undoes interference too.
    """
    none, both = (
        {name: scores(results, name, protection) for name in ("clean", "ideal", "sum_rate")}
        for protection in ("none", "r-mtllmf")
    )
    assert (none["ideal"] < none["clean"] + 0.01).all()
    assert (both["ideal"] > none["ideal"] - 0.01).all()
    base = results["base_score"] / results["finetuned_score"]
    base = base.groupby(results["size"]).mean()
    assert none["sum_rate"].mean() < 0.6 * none["ideal"].mean()
    assert (none["sum_rate"] < base)[[4, 8]].all()  # worse than not fusing
    assert both["sum_rate"].mean() > 1.5 * none["sum_rate"].mean()
    assert (both["sum_rate"] > scores(results, "sum_rate", "realign")).all()
    control = scores(results, "clean", "control")
    assert (both["ideal"] > control + 0.05).all()
    assert (both["sum_rate"] > control).all()


def test_all_cells_are_there(results: pd.DataFrame):
    assert results["draw"].nunique() == DEMO_SWEEP["draws"]
    noisy = results[(results["scenario"] != "clean") & (results["protection"] != "control")]
    cells = noisy[["combination", "scenario", "draw", "protection"]].drop_duplicates()
    draws = DEMO_SWEEP["draws"], DEMO_SWEEP["repaired_draws"]
    assert len(cells) == 5 * 3 * 2 * sum(draws)
