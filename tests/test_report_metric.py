"""A table of another metric than accuracy: its own numbers, names and direction."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import report_tables as made

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.figures import figure_2
from rmtllmf_jax.report.io import read_results
from rmtllmf_jax.report.paper import MISSING, paper_sheet
from rmtllmf_jax.report.plates import plates
from rmtllmf_jax.report.sheets import all_sheets
from rmtllmf_jax.report.tables import summary, weak_tasks


@pytest.fixture(scope="module")
def entropies() -> pd.DataFrame:
    """Lower is better, and above one: the base is worse than the fine-tuned model."""
    table = made.results(("clean", "ideal"))
    names = ["score", "base_score", "finetuned_score"]
    table[names] = 3 / (0.1 + table[names])
    return table.assign(
        metric="cross_entropy", normalised=table["finetuned_score"] / table["score"]
    )


def test_cross_entropies_are_read_and_compared_the_other_way(
    entropies: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "results.parquet"
    entropies.to_parquet(path)
    table = read_results(path)
    assert table["score"].max() > 1
    (base,) = made.where(summary(table).to_dict("records"), protection="base")
    own = (table["finetuned_score"] / table["base_score"]).rename("score")
    each = own.groupby([table["size"], table["combination"]]).mean().reset_index()
    assert base["mean"] == pytest.approx(made.mean(each.to_dict("records")))
    assert base["mean"] < 1
    assert weak_tasks(table) == []
    for wrong in (
        table.assign(normalised=table["normalised"] * 1.1),
        table.assign(metric="accuracy"),
    ):
        wrong.to_parquet(path)
        with pytest.raises(InputError, match=r"results\.parquet: "):
            read_results(path)


def test_tables_and_figures_name_the_metric_in_its_unit(entropies: pd.DataFrame) -> None:
    sheets = all_sheets(entropies, spread=True)
    assert {sheet.title for sheet in sheets} == {
        "Average normalised cross_entropy (%) by number of tasks; 95 % intervals: bootstrap over "
        "combinations, channel realisations and seeds",
        "Mean cross_entropy of each task",
    }
    (tasks,) = [sheet for sheet in sheets if sheet.title.startswith("Mean")]
    base = entropies.groupby("task")["base_score"].mean()
    assert tasks.rows[0] == ["-", "base", *(f"{value:.4g}" for value in base)]
    assert [row[2] for row in paper_sheet(entropies, None, {}).rows] == [MISSING]
    drawn, _ = plates(entropies, None, None)
    assert drawn[0].title == "Figure 2: cross_entropy by number of tasks"
    assert figure_2(entropies).get_supylabel() == "Average normalised cross_entropy (%)"
