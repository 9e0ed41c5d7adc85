"""The figures of a report, read back from what they draw, and which of them a run has."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import numpy as np
import pandas as pd
import pytest
import report_tables as made
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from rmtllmf_jax.channel import ATTACKS
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.figures import axis_figure, figure_2, figure_5, scale_figure
from rmtllmf_jax.report.labels import SCENARIOS
from rmtllmf_jax.report.plates import plates
from rmtllmf_jax.report.vector_figures import cosine_figure, similarity_figure

LEVELS = (-10.0, 0.0, 10.0)
RULES = ("task_arithmetic", "ties")
CONTROL, BASE = "Control (realigned base)", "Base model"
LABELS = {
    "none": "Unprotected",
    "freeze": "Freeze only",
    "realign": "Realign only",
    "r-mtllmf": "R-MTLLMF",
}


def lines_of(panel: Axes) -> dict[str, Line2D]:
    return {str(line.get_label()): line for line in panel.get_lines()}


def assert_line(panel: Axes, label: str, points: dict[float, list[made.Row]]) -> None:
    """The line holds the means of the cells at each x, its band their intervals."""
    line = lines_of(panel)[label]
    means = [100 * made.mean(cells) for cells in points.values()]
    ends = 100 * np.array([made.ends(cells) for cells in points.values()])
    np.testing.assert_array_equal(line.get_xdata(), list(points))
    np.testing.assert_allclose(line.get_ydata(), means)
    bands = [band.get_paths() for band in panel.collections]
    bands = [np.concatenate([path.vertices[:, 1] for path in paths]) for paths in bands if paths]
    reach = [np.nanmin(ends), np.nanmax(ends)]
    assert any(np.allclose([band.min(), band.max()], reach) for band in bands)


def test_figure_2_draws_means_bands_and_references():
    table = made.results(("clean", "ideal", "sum_rate", "a_new_attack"), seeds=2)
    cells = made.cells(table)
    figure = figure_2(table, "a note")
    scenarios = dict(zip(("clean", "ideal", "sum_rate", "a_new_attack"), figure.axes, strict=True))
    titles = ["Clean (no noise)", "Ideal (no attack)", "Sum-rate attack", "a_new_attack"]
    assert [panel.get_title() for panel in figure.axes] == titles
    assert len({panel.get_ylim() for panel in figure.axes}) == 1
    for scenario, panel in scenarios.items():
        assert list(lines_of(panel)) == [*LABELS.values(), CONTROL, BASE]
        for protection, label in LABELS.items():
            names = {"scenario": scenario, "protection": protection}
            assert_line(panel, label, {n: made.where(cells, **names, size=n) for n in (2, 3)})
        control = [100 * made.mean(made.where(cells, protection="control", size=n)) for n in (2, 3)]
        np.testing.assert_allclose(lines_of(panel)[CONTROL].get_ydata(), control)
        np.testing.assert_allclose(lines_of(panel)[BASE].get_ydata(), [50, 55])
    assert figure.get_suptitle().endswith("shading: 95 % interval")
    assert "fine-tuning, a note\n" in figure.get_suptitle()
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [*LABELS.values(), CONTROL, BASE]


def test_figure_2_with_one_cell_spreads_its_points():
    table = made.results(("ideal",), draws=1)
    table = table[table["size"] == 3]
    cells = made.cells(table)
    (panel,) = figure_2(table).axes
    lines = lines_of(panel)
    places = [float(lines[label].get_xdata()[0]) for label in LABELS.values()]
    assert len(set(places)) == 4
    assert all(abs(place - 3) < 0.5 for place in places)
    for protection, label in LABELS.items():
        (cell,) = made.where(cells, protection=protection)
        np.testing.assert_allclose(lines[label].get_ydata(), [100 * cell["score"]])
    assert np.ptp(lines[CONTROL].get_xdata()) > 0.5
    (control,) = made.where(cells, protection="control")
    np.testing.assert_allclose(lines[CONTROL].get_ydata(), [100 * control["score"]] * 2)


@pytest.fixture(scope="module")
def axis() -> pd.DataFrame:
    """Two rules along an axis, with clean merges and controls, which have no level."""
    kinds = {"protections": ("none", "r-mtllmf"), "axis": "snr_db", "levels": LEVELS}
    return made.results(rules=RULES, **kinds)


def test_the_axis_figure_has_a_panel_a_scenario(axis: pd.DataFrame):
    rows = axis[axis["rule"] == "task_arithmetic"]
    cells = made.cells(rows)
    figure = axis_figure(rows, "snr_db")
    assert [panel.get_title() for panel in figure.axes] == ["Ideal (no attack)", "Sum-rate attack"]
    for panel, scenario in zip(figure.axes, ("ideal", "sum_rate")):
        assert list(lines_of(panel)) == ["Unprotected", "R-MTLLMF", CONTROL, BASE]
        for protection in ("none", "r-mtllmf"):
            names = {"scenario": scenario, "protection": protection}
            points = {x: made.where(cells, **names, level=x) for x in LEVELS}
            assert_line(panel, LABELS[protection], points)
        control = 100 * made.mean(made.where(cells, protection="control"))
        line = lines_of(panel)[CONTROL]
        np.testing.assert_allclose(line.get_ydata(), [control] * 2)
        np.testing.assert_array_equal(line.get_xdata(), [-10, 10])
        # The mean of .5 at two tasks and .55 at three.
        np.testing.assert_allclose(lines_of(panel)[BASE].get_ydata(), [52.5] * 2)
    assert "95 % interval" in figure.get_suptitle()


def test_one_scenario_has_a_panel_a_size():
    levels = (0.0, 0.01, 0.1, 1.0)
    table = made.results(("clean", "ideal"), axis="mse", levels=levels, protections=("none",))
    cells = made.where(made.cells(table), size=3)
    figure = axis_figure(table, "mse")
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["Ideal (no attack), 2 tasks", "Ideal (no attack), 3 tasks"]
    points = {level: made.where(cells, level=level) for level in levels}
    assert_line(figure.axes[1], "Unprotected", points)
    assert figure.axes[1].get_xscale() == "symlog"
    np.testing.assert_allclose(figure.axes[1].get_xticks(), [0, 0.01, 0.1, 1])
    positive = table[(table["level"] > 0) | table["level"].isna()]
    assert axis_figure(positive, "mse").axes[0].get_xscale() == "log"


def test_figures_refuse_what_has_no_common_mean(axis: pd.DataFrame):
    along = made.cosines().assign(axis="mse", level=[0.1, 0.2] * 54)
    two = pd.concat([made.scales().assign(rule=rule) for rule in RULES])
    for draw, message in (
        (lambda: figure_2(axis), "several merge methods or levels"),
        (lambda: figure_2(axis[axis["protection"] == "control"]), "only control rows"),
        (lambda: axis_figure(axis, "snr_db"), "the rules task_arithmetic, ties, expected one"),
        (lambda: axis_figure(axis, "snr"), r"unknown axis 'snr'.*'snr_db'"),
        (lambda: cosine_figure(along, "ideal"), "several levels"),
        (lambda: cosine_figure(along, "idea"), r"unknown scenario 'idea'.*'ideal'"),
        (lambda: scale_figure(two), "several merge methods"),
        (lambda: similarity_figure(["dtd"], np.ones((1, 1)), {}), "two task vectors or more"),
    ):
        with pytest.raises(InputError, match=message):
            draw()


def ablation() -> pd.DataFrame:
    rows = []
    for scenario, size, draw in itertools.product(("sum_rate", "ideal"), (2, 3), (0, 1)):
        for variant, counts in (("none", [0]), ("r-mtllmf", [1, 10, 50]), ("a variant", [10])):
            for shots in counts:
                score = 0.1 * size + shots / 100 + 0.05 * (scenario == "ideal") + 0.2 * draw
                score += 0.01 * len(variant) + 0.02 * draw * (variant == "none")
                names = {"variant": variant, "shots": shots, "size": size, "scenario": scenario}
                rows.append(names | {"combination": str(size), "draw": draw, "score": score})
    return pd.DataFrame(rows).assign(seed=0)


def points_of(panel: Axes) -> dict[str, list[tuple[float, float]]]:
    points: dict[str, list[tuple[float, float]]] = {}
    for line in panel.get_lines():
        points.setdefault(str(line.get_label()), []).append(tuple(line.get_xydata()[0]))
    return {name: sorted(found) for name, found in points.items()}


def test_figure_5_draws_groups_and_lines():
    figure = figure_5(ablation())
    groups, gaps, ideal, sum_rate = figure.subfigs[0].axes + figure.subfigs[1].axes
    titles = [panel.get_title() for panel in (ideal, sum_rate)]
    assert titles == ["(b) Ideal (no attack)", "(b) Sum-rate attack"]
    places = [text.get_text() for text in groups.get_xticklabels()]
    assert places == ["Ideal (no attack)", "Sum-rate attack"]
    points = points_of(groups)
    heights = {name: [y for _, y in found] for name, found in points.items()}
    assert heights["Unprotected"] == pytest.approx([45, 40])  # mean of .34, .56 and .29, .51
    assert heights["R-MTLLMF"] == pytest.approx([58, 53])
    assert heights["a variant"] == pytest.approx([59, 54])
    assert all([round(x) for x, _ in found] == [0, 1] for found in points.values())
    assert_bar(groups, [34, 56])
    less = {name: [y for _, y in found] for name, found in points_of(gaps).items()}
    assert less["Unprotected"] == pytest.approx([-13, -13])  # -.14 and -.12
    assert less["a variant"] == pytest.approx([1, 1])
    assert "R-MTLLMF" not in less
    assert_bar(gaps, [-14, -12])
    assert any(set(line.get_ydata()) == {0} for line in gaps.get_lines())
    (line,) = ideal.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [[1, 49], [10, 58], [50, 98]])
    assert [text.get_text() for text in ideal.get_xticklabels()] == ["1", "10", "50"]
    assert "95 % interval" in figure.get_suptitle()
    # A single number of samples needs the first row alone.
    alone, _ = figure_5(ablation().query("shots in [0, 10]")).axes
    assert points_of(alone) == points != {}


def assert_bar(panel: Axes, ends: list[float]) -> None:
    bars = [path.vertices[:, 1] for held in panel.collections for path in held.get_paths()]
    assert any(np.allclose(bar, ends) for bar in bars)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.drop(columns=["size", "draw"]), "lacks size, draw"),
        (lambda t: t.iloc[:0], "expected rows"),
        (lambda t: t.assign(score=math.nan), "a score that is finite"),
        (lambda t: t[t["shots"] != 10], r"shots are \[1, 50\], expected 10"),
        (lambda t: t[t["variant"] != "r-mtllmf"], "no r-mtllmf at 10 samples"),
    ],
)
def test_figure_5_says_what_its_table_lacks(spoil: Any, message: str):
    with pytest.raises(InputError, match=message):
        figure_5(spoil(ablation()))


def test_the_scale_figure_draws_curves_best_points_and_the_law():
    left, right = map(lines_of, scale_figure(made.scales()).axes)
    np.testing.assert_allclose(left["2 tasks"].get_ydata(), [70, 80, 90, 80])
    np.testing.assert_allclose(right["Best on validation"].get_xydata(), [[2, 0.3]])
    np.testing.assert_allclose(right["Best, the least that was tried"].get_xydata(), [[3, 0.1]])
    law = right["Published fit $1.13 N^{-0.655}$"]
    np.testing.assert_allclose(law.get_ydata()[[0, -1]], [1.13 * n**-0.655 for n in (2, 3)])


def test_cosine_figure_holds_the_means_of_each_protection():
    table, tasks = made.cosines(), list(made.TASKS)
    figure = cosine_figure(table, "sum_rate")
    maps = [panel for panel in figure.axes if panel.images]
    assert [panel.get_title() for panel in maps] == ["Unprotected", "Freeze only"]
    assert "Sum-rate attack" in figure.get_suptitle()
    assert [text.get_text() for text in maps[0].get_yticklabels()] == tasks
    rows = made.where(table.to_dict("records"), scenario="sum_rate")
    for panel, protection in zip(maps, ("none", "freeze")):
        (image,) = panel.images
        assert image.get_clim() == (-1, 1)
        assert [text.get_text() for text in panel.get_xticklabels()] == tasks
        for place, (a, b) in enumerate((a, b) for a in tasks for b in tasks):
            own = made.where(rows, protection=protection, task_a=a, task_b=b)
            mean = statistics.mean(row["cosine"] for row in own)
            assert image.get_array().ravel()[place] == pytest.approx(mean)
            assert panel.texts[place].get_text() == f"{mean:.2f}".replace("-0.00", "0.00")


def test_similarity_figure_shows_all_parameters_and_layers():
    def matrix(a: float, b: float, c: float) -> np.ndarray:
        return np.array([[1, a, b], [a, 1, c], [b, c, 1]])

    layers = {
        "embeddings": matrix(0.1, 0.2, 0.6),
        "frozen": matrix(np.nan, np.nan, np.nan),
        "layers/0": matrix(0.0, -0.2, 0.2),
        "layers/1": matrix(0.3, np.nan, np.nan),
    }
    left, right = similarity_figure(made.TASKS, matrix(0.05, 0.1, 0.25), layers).axes[:2]
    assert [text.get_text() for text in left.texts][:3] == ["1.00", "0.05", "0.10"]
    assert [label.get_text() for label in left.get_xticklabels()] == list(made.TASKS)
    drawn = []
    for marks, _, (bar,) in right.containers:
        ((start, end),) = [segment[:, 0] for segment in bar.get_segments()]
        drawn.append([marks.get_ydata()[0], marks.get_xdata()[0], start, end])
    expected = [[0, 0.3, 0.1, 0.6], [2, 0.0, -0.2, 0.2], [3, 0.3, 0.3, 0.3]]
    np.testing.assert_allclose(drawn, expected, atol=1e-12)
    assert [label.get_text() for label in right.get_yticklabels()] == list(layers)
    assert right.yaxis_inverted()


def test_every_part_has_figures_of_its_own(axis: pd.DataFrame):
    found, skipped = plates(axis, None, None)
    names = ["axis_snr_db_task_arithmetic", "axis_snr_db_ties"]
    assert [plate.stem for plate in found] == names
    assert "figure_2 skipped: only clean merges have no axis; see axis_* instead." in skipped
    assert "figure_3 skipped: the run has no cosines.parquet." in skipped
    assert all("95 % interval, by a bootstrap" in plate.caption for plate in found)
    plain = made.results(rules=RULES, protections=("none",))
    scales = pd.concat([made.scales().assign(rule=rule) for rule in RULES])
    cosines = made.cosines().assign(axis="")
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
    skipped = plates(plain, cosines.assign(axis="mse", level=0.1), None)[1]
    assert "figure_3 skipped: the cosines of ideal lie along an axis." in skipped
    small = cosines.assign(cosine=cosines["cosine"].where(cosines["cosine"] == 1, -0.0042))
    skipped = plates(plain, small, None)[1]
    assert (
        "figure_4 skipped: all cosines of different tasks under sum_rate round to 0.00; the "
        "largest is 0.004 in absolute value."
    ) in skipped
    missing = "figure_5 skipped: the samples per class of realignment are not recorded."
    assert missing in plates(made.results(("ideal",)), cosines, None)[1]
    none, skipped = plates(
        made.results(protections=()), cosines[cosines["scenario"] == "clean"], None
    )
    assert none == []
    assert "figure_2 skipped: results.parquet holds control rows only." in skipped
    assert "figure_4 skipped: cosines.parquet has no scenario sum_rate." in skipped


def test_scenarios_are_captioned_by_the_titles_of_their_attacks():
    titles = {name: attack.title for name, attack in ATTACKS.items() if name in SCENARIOS}
    assert titles == {name: SCENARIOS[name] for name in titles}
    assert ATTACKS["none"].title == SCENARIOS["ideal"]
    assert set(SCENARIOS) == {*titles, "clean", "ideal"}
