"""The demo of language models: what it leaves behind, and that it tells the story."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from rmtllmf_jax.cli.reproduce import DEMO_LM_SWEEP
from rmtllmf_jax.data import EMBEDDED_TEXTS
from rmtllmf_jax.report.io import read_said

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo_lm")]


@pytest.fixture(scope="module")
def results(demo_lm: Path) -> pd.DataFrame:
    return pd.read_parquet(demo_lm / "results.parquet")


@pytest.fixture(scope="module")
def said(demo_lm: Path) -> pd.DataFrame:
    return read_said(demo_lm / "said.parquet")


def scores(results: pd.DataFrame, scenario: str, protection: str) -> pd.Series:
    """Return the mean normalised perplexity by number of tasks."""
    rows = results[(results["scenario"] == scenario) & (results["protection"] == protection)]
    return rows.groupby("size")["normalised"].mean()


def test_the_base_model_knows_the_tasks_by_half_and_merging_helps(results: pd.DataFrame):
    assert set(results["metric"]) == {"perplexity"}
    alone = results.groupby("task")[["finetuned_score", "base_score"]].first()
    assert sorted(alone.index) == sorted(EMBEDDED_TEXTS)
    base = alone["finetuned_score"] / alone["base_score"]
    assert (base < 0.75).all(), base
    assert 0.45 < base.mean() < 0.7, base
    clean = scores(results, "clean", "none")
    assert list(clean.index) == list(DEMO_LM_SWEEP["sizes"])
    assert (clean > 0.8).all(), clean
    assert clean[4] > base.mean() + 0.15


def test_attacks_destroy_what_repair_brings_back(results: pd.DataFrame):
    none, repaired = (
        {name: scores(results, name, protection) for name in ("ideal", "sum_rate")}
        for protection in ("none", "r-mtllmf")
    )
    assert (none["ideal"] > 0.75).all()
    assert (none["sum_rate"] < 0.3).all()
    assert (repaired["sum_rate"] > 2 * none["sum_rate"]).all()
    assert (scores(results, "sum_rate", "holistic") > repaired["sum_rate"]).all()


def test_the_page_shows_what_was_said_before_and_after(said: pd.DataFrame, demo_lm: Path):
    page = (demo_lm / "report" / "index.html").read_text(encoding="utf-8")
    counts = said.groupby(["task", "scenario", "protection"])["number"].nunique()
    assert (counts == 3).all()
    assert set(said["task"]) == set(EMBEDDED_TEXTS)
    for name in EMBEDDED_TEXTS:
        assert f"What the models say: {name}" in page

    def styled(scenario: str, protection: str) -> float:
        """Return the share of queries that are written in the task's language, SQL."""
        rows = said[(said["scenario"] == scenario) & (said["protection"] == protection)]
        queries = rows[rows["task"] == "queries"]["text"].str.strip()
        return queries.str.fullmatch("SELECT .* FROM .* WHERE .* ORDER BY .*;").mean()

    for protection in ("as in the test split", "fine-tuned", "none"):
        assert styled("clean", protection) == 1
    assert styled("clean", "base") < 1
    assert styled("sum_rate", "none") < styled("sum_rate", "holistic")
