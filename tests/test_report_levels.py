"""Rules and levels of an axis are never averaged over, in no table and no figure."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import report_tables as made
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.figures import axis_figure, figure_2, scale_figure
from rmtllmf_jax.report.io import RENAMED, read_cosines, read_results, read_scales
from rmtllmf_jax.report.plates import plates
from rmtllmf_jax.report.sheets import all_sheets, scale_sheet
from rmtllmf_jax.report.style import BASE
from rmtllmf_jax.report.tables import base_by_size, best_scales, cell_scores, parts, summary
from rmtllmf_jax.report.vector_figures import cosine_figure
from rmtllmf_jax.report.verdict import comparisons, sentences

LEVELS = (-10.0, 0.0, 10.0)
RULES = ("task_arithmetic", "ties")
CELL = ["combination", "scenario", "axis", "level", "draw", "seed", "rule", "protection"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Two rules along an axis, with clean merges and controls, which have no level."""
    kinds = {"protections": ("none", "r-mtllmf"), "axis": "snr_db", "levels": LEVELS}
    return made.results(rules=RULES, **kinds)


def loop_scores(table: pd.DataFrame) -> dict[tuple[object, ...], float]:
    """Average normalised accuracy of each cell, by plain loops; NaN levels read None."""
    cells: dict[tuple[object, ...], list[float]] = {}
    for row in table.to_dict("records"):
        key = tuple(None if row[name] != row[name] else row[name] for name in CELL)
        cells.setdefault(key, []).append(row["normalised"])
    return {key: statistics.mean(values) for key, values in cells.items()}


def chosen(scores: dict[tuple[object, ...], float], **wanted: object) -> list[float]:
    places = {CELL.index(name): value for name, value in wanted.items()}
    return [
        score
        for key, score in scores.items()
        if all(key[place] == value for place, value in places.items())
    ]


def lines_of(figure: Figure, panel: int) -> dict[str, object]:
    return {line.get_label(): line for line in figure.axes[panel].get_lines()}


# Reading


def test_older_tables_are_task_arithmetic_without_an_axis(tmp_path: Path):
    names = {new: old for old, new in RENAMED.items()}
    old = made.results().drop(columns=["rule", "axis", "level"]).rename(columns=names)
    old.to_parquet(tmp_path / "results.parquet")
    made.cosines().to_parquet(tmp_path / "cosines.parquet")
    made.scales().rename(columns=names).to_parquet(tmp_path / "scales.parquet")
    for read in (
        read_results(tmp_path / "results.parquet"),
        read_cosines(tmp_path / "cosines.parquet"),
    ):
        assert set(read["rule"]) == {"task_arithmetic"}
        assert set(read["axis"]) == {""}
        assert read["level"].isna().all()
    assert set(read_scales(tmp_path / "scales.parquet")["rule"]) == {"task_arithmetic"}
    pd.testing.assert_frame_equal(summary(old), summary(made.results()))


def test_levels_and_rules_tell_rows_apart(tmp_path: Path, table: pd.DataFrame):
    path = tmp_path / "results.parquet"
    table.to_parquet(path)
    assert len(read_results(path)) == len(table)
    pd.concat([table, table[table["level"] == 0.0].iloc[:1]]).to_parquet(path)
    with pytest.raises(InputError, match=r"more than once .*level=0\.0"):
        read_results(path)
    table.drop(index=table.index[table["level"] == 10.0][0]).to_parquet(path)
    with pytest.raises(InputError, match=r"tasks, expected [23]\..*axis=snr_db, level=10\.0"):
        read_results(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("axis", "", "axis is '' and level -10.0"),
        ("level", math.nan, "axis is 'snr_db' and level nan"),
        ("level", "high", "column level is not float"),
        ("rule", None, "column rule is not str"),
    ],
)
def test_a_level_needs_an_axis_and_the_other_way_round(
    tmp_path: Path, table: pd.DataFrame, name: str, value: object, message: str
):
    low = table[table["level"] == -10.0].reset_index(drop=True)
    low.assign(**{name: value}).to_parquet(tmp_path / "results.parquet")
    with pytest.raises(InputError, match=rf"results\.parquet: .*{message}"):
        read_results(tmp_path / "results.parquet")


def test_spoilt_scales_are_refused(tmp_path: Path):
    path = tmp_path / "scales.parquet"
    pd.concat([made.scales(), made.scales().iloc[:1]]).to_parquet(path)
    with pytest.raises(InputError, match=r"scales\.parquet: .*more than once"):
        read_scales(path)
    made.scales().drop(columns="scale").to_parquet(path)
    with pytest.raises(InputError, match=r"scales\.parquet: lacks the columns scale"):
        read_scales(path)


# Averages


def test_cells_are_told_apart_by_rule_and_level(table: pd.DataFrame):
    expected = loop_scores(table)
    seen = cell_scores(table)
    assert len(seen) == len(expected)
    controls = {key[0]: score for key, score in expected.items() if key[-1] == "control"}
    for row in seen.to_dict("records"):
        key = tuple(None if row[name] != row[name] else row[name] for name in CELL)
        assert row["score"] == pytest.approx(expected[key])
        assert row["control"] == pytest.approx(controls[row["combination"]])


def test_averages_are_those_of_one_rule_and_level(table: pd.DataFrame):
    scores = loop_scores(table)
    seen = summary(table)
    assert len(seen) == 1 + 2 * 2 * (1 + 2 * len(LEVELS))
    rows = seen[(seen["axis"] == "snr_db") & (seen["rule"] == "ties")].to_dict("records")
    for row in rows:
        same = {name: row[name] for name in ("scenario", "protection", "level", "rule")}
        values = chosen(scores, **same)
        assert row["cells"] == len(values) == 2 * len(made.COMBINATIONS)
        assert row["mean"] == pytest.approx(statistics.mean(values))
        assert row["std"] == pytest.approx(statistics.stdev(values))


def test_the_base_models_own_accuracy(table: pd.DataFrame):
    # By construction 0.4 + 0.05 N of the fine-tuned accuracy.
    assert base_by_size(table).to_dict() == pytest.approx({2: 0.5, 3: 0.55})


def test_parts_hold_one_rule_and_one_axis_each(table: pd.DataFrame):
    found = parts(table)
    names = [(part.axis, part.rule, part.title, part.stem) for part in found]
    assert names == [
        ("", "task_arithmetic", "task arithmetic", "_task_arithmetic"),
        ("", "ties", "ties", "_ties"),
        ("snr_db", "task_arithmetic", "task arithmetic", "_task_arithmetic"),
        ("snr_db", "ties", "ties", "_ties"),
    ]
    controls = int((table["protection"] == "control").sum())
    for part in found:
        merged = part.results[part.results["protection"] != "control"]
        assert set(merged["rule"]) == {part.rule}
        assert set(merged["axis"]) == {part.axis}
        assert len(part.results) - len(merged) == controls
    (only,) = parts(made.results())
    assert (only.title, only.stem, len(only.results)) == ("", "", len(made.results()))


def test_rules_whose_names_differ_in_signs_have_files_of_their_own(table: pd.DataFrame):
    same = table.assign(rule=table["rule"].map({"task_arithmetic": "a b", "ties": "a-b"}))
    stems = [part.stem for part in parts(same) if part.axis]
    assert len(set(stems)) == 2


def test_sheets_of_an_axis_have_a_column_a_level(table: pd.DataFrame):
    scores = loop_scores(table)
    sheets = {sheet.title: sheet for sheet in all_sheets(table, spread=False)}
    sheet = sheets["Average normalised accuracy (%) by snr_db, mean, ties"]
    assert sheet.header[2:] == ["-10", "0", "10"]
    rows = {(row[0], row[1]): row[2:] for row in sheet.rows}
    for place, level in enumerate(LEVELS):
        values = chosen(scores, rule="ties", level=level, scenario="ideal", protection="none")
        assert rows["ideal", "none"][place] == f"{100 * statistics.mean(values):.1f}"
    control = statistics.mean(chosen(scores, protection="control"))
    assert rows["-", "control"] == [f"{100 * control:.1f}"] * 3


# Verdict


def test_comparisons_pair_cells_of_one_level_and_rule(table: pd.DataFrame):
    scores = loop_scores(table)
    seen = comparisons(table)
    assert len(seen) == 2 * 2 * (1 + 2 * len(LEVELS))
    keys = ["rule", "level", "scenario", "against"]
    row = seen.set_index(keys).loc[("ties", 10.0, "sum_rate", "none")]
    same = {"rule": "ties", "level": 10.0, "scenario": "sum_rate"}
    protected = chosen(scores, **same, protection="r-mtllmf")
    other = chosen(scores, **same, protection="none")
    assert row["pairs"] == len(protected)
    assert row["difference"] == pytest.approx(statistics.mean(protected) - statistics.mean(other))


def test_an_axis_is_one_sentence_with_the_levels_of_each_outcome(table: pd.DataFrame):
    values = {"none": 0.5, "control": 0.6}
    gains = {-10.0: 0.4, 0.0: 0.5, 10.0: 0.7}
    rows = table[table["rule"] == "task_arithmetic"]
    flat = rows["protection"].map(values).fillna(rows["level"].map(gains)).fillna(0.9)
    said = sentences(rows.assign(normalised=flat))
    assert (
        "Ideal (no attack), over snr_db: protected beats unprotected at 10; cannot be "
        "distinguished from unprotected at 0; is worse than unprotected at -10 (points: -10.0 at "
        "-10, +20.0 at 10)."
    ) in said
    worse = sentences(rows.assign(normalised=flat.replace(0.7, 0.4)))
    (line,) = [line for line in worse if line.startswith("Sum-rate") and "the control" in line]
    assert line.endswith("bring no measurable gain over the same shots without them.")
    both = sentences(table)
    assert all(line.startswith(("Task arithmetic, ", "Ties, ")) for line in both)


def test_no_gain_over_the_control_is_said():
    table = made.results(("ideal",))
    values = {"control": 0.8, "r-mtllmf": 0.7}
    flat = table["protection"].map(values).fillna(0.1)
    (line,) = [x for x in sentences(table.assign(normalised=flat)) if "the control" in x]
    assert "is worse than the control: 70.0% against 80.0%" in line
    assert "The fused task vectors bring no measurable gain" in line
    better = table.assign(normalised=flat.replace(0.8, 0.6))
    assert not any("no measurable gain" in line for line in sentences(better))


# Figures


def test_the_axis_figure_has_a_panel_a_scenario(table: pd.DataFrame):
    rows = table[table["rule"] == "task_arithmetic"]
    scores = loop_scores(rows)
    figure = axis_figure(rows, "snr_db")
    assert [panel.get_title() for panel in figure.axes] == ["Ideal (no attack)", "Sum-rate attack"]
    for place, scenario in enumerate(("ideal", "sum_rate")):
        lines = lines_of(figure, place)
        assert list(lines) == ["Unprotected", "R-MTLLMF", "Control (realigned base)", BASE]
        for band, protection in enumerate(("none", "r-mtllmf")):
            line = lines["Unprotected" if protection == "none" else "R-MTLLMF"]
            same = {"scenario": scenario, "protection": protection}
            values = [chosen(scores, **same, level=level) for level in LEVELS]
            means = np.array([100 * statistics.mean(v) for v in values])
            stds = np.array([100 * statistics.stdev(v) for v in values])
            np.testing.assert_array_equal(line.get_xdata(), LEVELS)
            np.testing.assert_allclose(line.get_ydata(), means)
            edges = figure.axes[place].collections[band].get_paths()[0].vertices[:, 1]
            ends = [(means - stds).min(), (means + stds).max()]
            np.testing.assert_allclose([edges.min(), edges.max()], ends)
        control = 100 * statistics.mean(chosen(scores, protection="control"))
        line = lines["Control (realigned base)"]
        np.testing.assert_allclose(line.get_ydata(), [control] * 2)
        np.testing.assert_array_equal(line.get_xdata(), [-10, 10])
        # Three pairs at .5 and one triple at .55.
        np.testing.assert_allclose(lines[BASE].get_ydata(), [51.25] * 2)
    assert "± 1 standard deviation" in figure.get_suptitle()


def test_one_scenario_has_a_panel_a_size():
    kinds = {"protections": ("none",), "axis": "mse"}
    table = made.results(("clean", "ideal"), levels=(0.0, 0.01, 0.1, 1.0), **kinds)
    scores = loop_scores(table[table["size"] == 3])
    figure = axis_figure(table, "mse")
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["Ideal (no attack), 2 tasks", "Ideal (no attack), 3 tasks"]
    seen = lines_of(figure, 1)["Unprotected"].get_ydata()
    means = [statistics.mean(chosen(scores, level=level)) for level in (0.0, 0.01, 0.1, 1.0)]
    np.testing.assert_allclose(seen, 100 * np.array(means))
    panel = figure.axes[1]
    assert panel.get_xscale() == "symlog"
    np.testing.assert_allclose(panel.get_xticks(), [0, 0.01, 0.1, 1])
    positive = table[(table["level"] > 0) | table["level"].isna()]
    assert axis_figure(positive, "mse").axes[0].get_xscale() == "log"


def test_figures_refuse_what_has_no_common_mean(table: pd.DataFrame):
    with pytest.raises(InputError, match="several merge methods or levels"):
        figure_2(table)
    with pytest.raises(InputError, match="the rules task_arithmetic, ties, expected one"):
        axis_figure(table, "snr_db")
    with pytest.raises(InputError, match=r"unknown axis 'snr'.*'snr_db'"):
        axis_figure(table, "snr")
    cosines = made.cosines().assign(axis="mse", level=[0.1, 0.2] * 54)
    with pytest.raises(InputError, match="several levels"):
        cosine_figure(cosines, "ideal")
    two = pd.concat([made.scales().assign(rule=rule) for rule in RULES])
    with pytest.raises(InputError, match="several merge methods"):
        scale_figure(two)


def test_every_part_has_figures_of_its_own(table: pd.DataFrame):
    found, skipped = plates(table, None, None)
    names = ["axis_snr_db_task_arithmetic", "axis_snr_db_ties"]
    assert [plate.stem for plate in found] == names
    assert "figure_2 skipped: only clean merges have no axis; see axis_* instead." in skipped
    assert all("± 1 sample standard deviation" in plate.caption for plate in found)
    plain = made.results(rules=RULES, protections=("none",))
    scales = pd.concat([made.scales().assign(rule=rule) for rule in RULES])
    cosines = made.cosines().assign(rule="task_arithmetic", axis="", level=math.nan)
    found, skipped = plates(plain, cosines, scales)
    assert [plate.stem for plate in found] == [
        *("figure_2_task_arithmetic", "figure_2_ties", "figure_3", "figure_4"),
        *("scale_law_task_arithmetic", "scale_law_ties"),
    ]
    assert skipped == [
        "figure_5 skipped: no noisy uplink has task arithmetic under all of none, freeze, realign, "
        "r-mtllmf."
    ]
    assert "Errors of different users: independent." in found[2].caption
    along = cosines.assign(axis="mse", level=0.1)
    assert (
        "figure_3 skipped: the cosines of ideal lie along an axis." in plates(plain, along, None)[1]
    )


# The merging coefficient


def test_best_scales_and_whether_they_are_at_the_edge():
    best = best_scales(made.scales().assign(rule="task_arithmetic"))
    assert best["size"].tolist() == [2, 3]
    assert best["scale"].tolist() == [0.3, 0.1]
    assert best["mean"].tolist() == pytest.approx([0.9, 0.85])
    assert best["low"].tolist() == [False, True]
    assert not best["high"].any()
    tied = made.scales().assign(normalised=0.5)
    assert best_scales(tied)["scale"].tolist() == [0.1, 0.1]


def test_the_scale_sheet_stands_next_to_the_public_law():
    sheet = scale_sheet(made.results(), made.scales().assign(rule="task_arithmetic"))
    assert sheet is not None
    assert sheet.header[2:] == ["2", "3"]
    assert {row[1]: row[2:] for row in sheet.rows} == {
        "used": ["0.3", "0.3"],
        "best on validation": ["0.3", "0.1 (edge)"],
        "there, on validation": ["90.0", "85.0"],
        "published fit 1.13 N^-0.655": [f"{1.13 * n**-0.655:.2f}" for n in (2, 3)],
    }
    controls = made.results()
    assert scale_sheet(controls[controls["protection"] == "control"], None) is None


def test_the_scale_figure_draws_curves_best_points_and_the_law():
    figure = scale_figure(made.scales().assign(rule="task_arithmetic"))
    curves = lines_of(figure, 0)
    np.testing.assert_allclose(curves["2 tasks"].get_ydata(), [70, 80, 90, 80])
    points = lines_of(figure, 1)
    np.testing.assert_allclose(points["Best on validation"].get_xydata(), [[2, 0.3]])
    np.testing.assert_allclose(points["Best, the least that was tried"].get_xydata(), [[3, 0.1]])
    law = points["Published fit $1.13 N^{-0.655}$"]
    np.testing.assert_allclose(law.get_ydata()[[0, -1]], [1.13 * n**-0.655 for n in (2, 3)])
