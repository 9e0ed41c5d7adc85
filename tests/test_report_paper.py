"""The paper's numbers beside a run's: computed again with plain loops."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pandas as pd
import pytest
import report_tables as made

from rmtllmf_jax.report.io import find, settings
from rmtllmf_jax.report.paper import MISSING, paired, paper_sheet
from rmtllmf_jax.report.tables import cell_scores

SCENARIOS = ("clean", "ideal", "sum_rate", "strongest_user")
NAMES = {
    "clean": "Clean (no noise)",
    "ideal": "Ideal (no attack)",
    "sum_rate": "Sum-rate attack",
    "strongest_user": "Strongest-user attack",
}
ACCURACY = "normalised accuracy (%)"


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return made.results(SCENARIOS)


def sheet(
    table: pd.DataFrame, cosines: pd.DataFrame | None = None, run: dict[str, Any] | None = None
) -> dict[str, tuple[str, str]]:
    """Quantity -> paper, ours."""
    rows = paper_sheet(table, cosines, made.RUN if run is None else run).rows
    found = {row[0]: (row[1], row[2]) for row in rows}
    assert len(found) == len(rows)
    return found


def flat(table: pd.DataFrame, values: dict[tuple[str, str], float]) -> pd.DataFrame:
    """Give every cell of a kind one score."""
    kinds = zip(table["scenario"], table["protection"])
    return table.assign(normalised=[values.get(kind, 0.5) for kind in kinds])


def draws_of(scenario: str) -> list[list[float]]:
    return [
        [made.user_mse(scenario, math.nan, draw, task) for task in made.TASKS] for draw in (0, 1)
    ]


def over_draws(values: list[float], form: str) -> str:
    """Two draws, whose interval is the range between them."""
    return f"{statistics.mean(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


PRINTED = {
    f"{NAMES['clean']}, Unprotected: {ACCURACY}": "91.2",
    f"{NAMES['ideal']}, Unprotected: {ACCURACY}": "36.3",
    f"{NAMES['sum_rate']}, Unprotected: {ACCURACY}": "4-6",
    f"{NAMES['strongest_user']}, Unprotected: {ACCURACY}": "4-6",
    f"{NAMES['ideal']}, R-MTLLMF: {ACCURACY}": "89.1",
    f"{NAMES['sum_rate']}, R-MTLLMF: {ACCURACY}": "54.8",
    f"{NAMES['strongest_user']}, R-MTLLMF: {ACCURACY}": "53.3",
    f"{NAMES['ideal']}: average MSE": ".013",
    f"{NAMES['sum_rate']}: average MSE": ".21",
    f"{NAMES['strongest_user']}: average MSE": ".16",
    f'{NAMES["ideal"]}: "SNR" (dB)': "-16.2",
    f'{NAMES["sum_rate"]}: "SNR" (dB)': "-27.3",
    f'{NAMES["strongest_user"]}: "SNR" (dB)': "-21.7",
    f"{NAMES['ideal']}, R-MTLLMF: cosines of task vectors": "at most .24",
    f"{NAMES['sum_rate']}, unprotected: cosines of task vectors": ".48-.52",
    "R-MTLLMF, ideal, over the noiseless baseline (%)": "97.7",
    f"{NAMES['sum_rate']}: protected over unprotected": "9-14 x",
    f"{NAMES['strongest_user']}: protected over unprotected": "9-14 x",
    "Freeze only: points worse than both halves": "21-53",
    "Realign only: points worse than both halves": "21-53",
}


def test_every_number_of_the_paper_has_its_row(table: pd.DataFrame):
    seen = sheet(table, made.cosines(SCENARIOS))
    assert {what: row[0] for what, row in seen.items() if what in PRINTED} == PRINTED
    assert all(seen[what][1] not in ("", MISSING) for what in PRINTED)


def test_accuracies_are_means_over_the_cells(table: pd.DataFrame):
    seen = sheet(table)
    for scenario, protection, label in (
        ("clean", "none", "Unprotected"),
        ("ideal", "r-mtllmf", "R-MTLLMF"),
        ("strongest_user", "r-mtllmf", "R-MTLLMF"),
    ):
        cells = made.where(made.cells(table), scenario=scenario, protection=protection)
        low, high = made.ends(cells)
        ends = f" [{100 * low:.0f}, {100 * high:.0f}]" if scenario != "clean" else ""
        ours = seen[f"{NAMES[scenario]}, {label}: {ACCURACY}"][1]
        assert ours == f"{100 * made.mean(cells):.0f}{ends}, {len(cells)} cells"


def test_mse_and_snr_are_over_channel_draws(table: pd.DataFrame):
    seen = sheet(table)
    for scenario in ("ideal", "sum_rate"):
        users = draws_of(scenario)
        means = [statistics.mean(draw) for draw in users]
        assert seen[f"{NAMES[scenario]}: average MSE"][1] == over_draws(means, ".3g")
        worst = [-10 * math.log10(max(draw)) - 31 for draw in users]
        assert seen[f'{NAMES[scenario]}: "SNR" (dB)'][1] == over_draws(worst, ".1f")


def test_the_mse_is_that_of_the_undefended_uplink(table: pd.DataFrame):
    defended = table[table["protection"] == "none"].assign(protection="repeat(times=2)", mse=0.001)
    both = pd.concat([defended, table], ignore_index=True)
    assert (
        sheet(both)["Ideal (no attack): average MSE"]
        == sheet(table)["Ideal (no attack): average MSE"]
    )


def test_every_cell_has_its_partner_without_noise():
    """Of two fine-tunings with two seeds each: their clean merges draw nothing."""
    rows = made.results(("clean", "ideal"), protections=("none",), seeds=4)
    rows = rows[(rows["scenario"] != "clean") | rows["seed"].isin([0, 2])]
    cells = cell_scores(rows)
    pairs = paired(cells, ("ideal", "none"), ("clean", "none"))
    assert len(pairs) == (cells["scenario"] == "ideal").sum()
    assert pairs.groupby(pairs["seed"] // 2)["other"].nunique().max() == len(made.COMBINATIONS)


def test_more_seeds_add_no_channel_draw():
    one, two = (made.results(SCENARIOS, seeds=seeds) for seeds in (1, 2))
    what = f"{NAMES['ideal']}: average MSE"
    assert sheet(one)[what] == sheet(two)[what]


def test_the_attacked_user_is_the_one_whose_mse_grows_most(table: pd.DataFrame):
    ideal, attacked = draws_of("ideal"), draws_of("strongest_user")
    found = []
    for before, after in zip(ideal, attacked):
        growth = [b / a for a, b in zip(before, after)]
        found.append(after[growth.index(max(growth))])
    ours = sheet(table)[f"{NAMES['strongest_user']}: average MSE"][1]
    assert ours.endswith(f"; the attacked user alone {over_draws(found, '.3g')}")
    alone = sheet(table[table["scenario"] != "ideal"])
    assert "attacked user alone" not in alone[f"{NAMES['strongest_user']}: average MSE"][1]


def test_cosines_are_over_pairs_of_tasks(table: pd.DataFrame):
    cosines = made.cosines()
    seen = sheet(table, cosines)
    rows = cosines[(cosines["scenario"] == "sum_rate") & (cosines["protection"] == "none")]
    pairs = [
        statistics.mean(rows.loc[(rows["task_a"] == a) & (rows["task_b"] == b), "cosine"].tolist())
        for a, b in (("dtd", "mnist"), ("dtd", "svhn"), ("mnist", "svhn"))
    ]
    ours = seen[f"{NAMES['sum_rate']}, unprotected: cosines of task vectors"][1]
    low, high, mean = (round(x, 2) + 0.0 for x in (min(pairs), max(pairs), statistics.mean(pairs)))
    assert ours == f"{low:.2f} to {high:.2f}, mean {mean:.2f}"
    small = cosines.assign(cosine=-0.0042)
    ours = sheet(table, small)[f"{NAMES['sum_rate']}, unprotected: cosines of task vectors"][1]
    assert ours == "at most 0.004 in absolute value"


def test_ratios_and_differences(table: pd.DataFrame):
    values = {
        ("clean", "none"): 0.8,
        ("ideal", "r-mtllmf"): 0.6,
        ("sum_rate", "none"): 0.05,
        ("sum_rate", "r-mtllmf"): 0.55,
        ("strongest_user", "none"): 0.25,
        ("strongest_user", "r-mtllmf"): 0.5,
        ("ideal", "freeze"): 0.4,
        ("sum_rate", "freeze"): 0.1,
        ("strongest_user", "freeze"): 0.3,
    }
    seen = sheet(flat(table, values))
    assert seen["R-MTLLMF, ideal, over the noiseless baseline (%)"][1] == "75"
    assert seen[f"{NAMES['sum_rate']}: protected over unprotected"][1] == "11.0 x"
    assert seen[f"{NAMES['strongest_user']}: protected over unprotected"][1] == "2.0 x"
    half = seen["Freeze only: points worse than both halves"]
    names = [NAMES[name] for name in ("ideal", "sum_rate", "strongest_user")]
    assert half[1] == f"{names[0]} 20 [20, 20], {names[1]} 45 [45, 45], {names[2]} 20 [20, 20]"


def test_what_the_run_lacks_is_said(table: pd.DataFrame):
    seen = sheet(table[table["scenario"].isin(["clean", "ideal"])])
    for what in PRINTED:
        if "attack:" in what or "attack," in what:
            assert seen[what][1] == MISSING
    assert seen[f"{NAMES['ideal']}, R-MTLLMF: cosines of task vectors"][1] == MISSING


@pytest.mark.parametrize("change", [{"rule": "ties"}, {"axis": "snr_db", "level": 3.0}])
def test_another_rule_or_a_level_is_not_the_papers(table: pd.DataFrame, change: dict[str, Any]):
    extra = table.assign(normalised=0.99, **change)
    both = pd.concat([table, extra[extra["protection"] != "control"]], ignore_index=True)
    assert sheet(both) == sheet(table)
    alone = extra[extra["protection"] != "control"]
    assert sheet(alone)["Every measured number (task arithmetic, no axis)"][1] == MISSING


def test_averages_without_weak_tasks_stand_in_brackets(table: pd.DataFrame):
    weak = table["task"] == "dtd"
    scored = table.assign(
        finetuned_score=table["finetuned_score"].where(~weak, 0.5),
        base_score=table["base_score"].where(~weak, 0.5),
        normalised=np.where(weak, 3.0, 0.5),
    )
    seen = sheet(scored)
    for what in (f"{NAMES['clean']}, Unprotected: {ACCURACY}",):
        assert "(50 without dtd)" in seen[what][1]
    assert "(1.0 x without dtd)" in seen[f"{NAMES['sum_rate']}: protected over unprotected"][1]


def test_a_draw_is_a_draw_though_its_numbers_repeat(table: pd.DataFrame):
    same = table.assign(mse=0.1, mse_mean=0.1)
    assert sheet(same)[f"{NAMES['ideal']}: average MSE"][1] == "0.1 [0.1, 0.1]"


def test_settings_are_found_wherever_they_stand():
    run = {"a": {"steps": 1, "recipe": {"steps": 2}}, "steps": 3, "none": None, "b": {"none": 4}}
    assert find(run, "steps") == 3
    assert find(run, "none") == 4
    assert find(run, "nothing") is None
    shown = dict(settings(made.RUN))
    assert shown["settings.preset"] == "paper"
    assert shown["users.recipe"] == '{"steps": 200, "batch_size": 64}'
    assert shown["seconds"] == "12.5"
