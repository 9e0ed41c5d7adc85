"""Figures of a results table, drawn without pyplot or global state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.report.intervals import PAIR, differences, interval
from rmtllmf_jax.report.io import completed, metric_of
from rmtllmf_jax.report.labels import AXES, PROTECTIONS, SCENARIOS, arrange, joined, unfused
from rmtllmf_jax.report.style import SEQUENCE, add_legend, styles, tidy
from rmtllmf_jax.report.tables import SETTING, best_scales, public_law, summary

_OVER = "mean over combinations, draws and seeds"
_FUSED = "{} of the fused model relative to fine-tuning"
_SCORE = "Average normalised {} (%)"

# Lines that need no uplink: colour, dashes and width.
_REFERENCES = {
    "control": ("#000000", (0, (4.0, 2.0)), 1.3),
    "base": ("#4d4d4d", (0, (1.0, 1.2)), 1.6),
}

_PHONE = 4.2
"""Inches that are shown on a phone's width without becoming illegible."""

Line = tuple[np.ndarray, np.ndarray]


def figure_2(results: pd.DataFrame, note: str = "", *, narrow: bool = False) -> Figure:
    """Draw the average normalised accuracy (%) against the number of tasks, one panel per scenario.

    One line per protection: mean over combinations, draws and seeds; the band (a bar where there is
    only one size) is its 95 % interval (`intervals.interval`). Two lines need no uplink and are the
    same in every panel: the mean of the control (dashed) and the base model under the tasks' own
    heads (dotted). `note` is added to the title; a `narrow` figure has its panels one below the
    other.

    **Raises:** `InputError` if `results` holds only controls, or several merge methods or levels of
    an axis, which have no common mean.
    """
    table = summary(results, "size").rename(columns={"size": "x"})
    received = table[~unfused(table["protection"])]
    if received.empty:
        raise InputError("results: only control rows, expected a scenario with another protection.")
    if len(received[SETTING].drop_duplicates()) > 1:
        raise InputError(
            "results: several merge methods or levels of an axis, expected one; split them "
            "with report.parts, and draw an axis with axis_figure."
        )
    sizes = sorted({int(size) for size in table["x"]})
    if len(sizes) == 1:
        protections = arrange(received["protection"], PROTECTIONS)
        places = received["protection"].map(protections.index) - (len(protections) - 1) / 2
        received = received.assign(x=received["x"] + 0.14 * places)
    references = {
        name: _across(own["x"], own["mean"])
        for name in _REFERENCES
        if len(own := table[table["protection"] == name])
    }
    panels = [
        (name, received[received["scenario"] == scenario], references)
        for scenario, name in _scenarios(received)
    ]
    band = "shading" if len(sizes) > 1 else "bar"
    title = f"{joined(_FUSED.format(metric_of(results).capitalize()), note)}\n{_OVER}; {band}"
    score = _SCORE.format(metric_of(results))
    figure, axes = _draw_scores(panels, 3.0, title, score, narrow=narrow)
    for panel in axes:
        panel.set_xlabel("Number of fused tasks")
        panel.set_xticks(sizes)
        panel.set_xlim(sizes[0] - 0.5, sizes[-1] + 0.5)
    _set_top(axes[0], table)
    return figure


def axis_figure(
    results: pd.DataFrame, axis: str, note: str = "", *, narrow: bool = False
) -> Figure:
    """Draw the average normalised accuracy (%) against the level of an axis.

    One line per protection: mean over combinations, draws and seeds; the band is its 95 % interval
    (`intervals.interval`). Several scenarios have one panel each (the mean over the sizes), a
    single scenario one panel per number of tasks. The control (dashed) and the base model under its
    own heads (dotted) need no uplink and no level. The axis `mse` is logarithmic. `note` is added
    to the title; a `narrow` figure has its panels one below the other.

    **Raises:** `InputError` if no row has that axis, or if those that have it were merged by
    several rules, which have no common mean.
    """
    results = completed(results)
    received = results[(results["axis"] == axis) & ~unfused(results["protection"])]
    require_known("axis", axis, arrange(results.loc[results["axis"] != "", "axis"], AXES))
    if received["rule"].nunique() > 1:
        rules = ", ".join(sorted(received["rule"].unique()))
        raise InputError(f"results: the rules {rules}, expected one; see report.parts.")
    control = results[results["protection"] == "control"]
    scenarios = _scenarios(received)
    groups = [(name, received[received["scenario"] == scenario]) for scenario, name in scenarios]
    if len(groups) == 1:
        ((name, rows),) = groups
        groups = [(f"{name}, {size} tasks", own) for size, own in rows.groupby("size")]
    panels = []
    for name, rows in groups:
        same = control[control["combination"].isin(rows["combination"])]
        table = summary(pd.concat([rows, same])).rename(columns={"level": "x"})
        ends = rows["level"].agg(["min", "max"])
        references = {
            protection: _across(ends, [*own["mean"]] * 2)
            for protection in _REFERENCES
            if len(own := table[table["protection"] == protection])
        }
        panels.append((name, table[table["axis"] == axis], references))
    title = (
        f"{joined(_FUSED.format(metric_of(results).capitalize()), note)}\n{_OVER}; shading (bar)"
    )
    score = _SCORE.format(metric_of(results))
    figure, axes = _draw_scores(panels, 3.2, title, score, axis, narrow=narrow)
    for panel in axes:
        panel.set_xlabel(AXES.get(axis, axis), fontsize=9)
    _set_top(axes[0], pd.concat([lines for _, lines, _ in panels]))
    return figure


def _set_top(panel: Axes, table: pd.DataFrame) -> None:
    """Make the percentage scale start at 0 and include 100 and every interval."""
    panel.set_ylim(0, 105.0 * max(1.0, table[["mean", "high"]].max(axis=None)))


def _scenarios(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the scenarios of a table in order, each with its printed name."""
    return [(name, SCENARIOS.get(name, name)) for name in arrange(table["scenario"], SCENARIOS)]


def _across(x: Iterable[Any], mean: Iterable[Any]) -> Line:
    """Return a reference line's points; for a single one, a short horizontal line."""
    places, means = np.array([*x], float), np.array([*mean], float)
    if len(means) == 1:
        return places[0] + np.array([-0.4, 0.4]), np.repeat(means, 2)
    return places[: len(means)], means


def _draw_scores(
    panels: Sequence[tuple[str, pd.DataFrame, Mapping[str, Line]]],
    side: float,
    title: str,
    score: str,
    axis: str = "",
    *,
    narrow: bool,
) -> tuple[Figure, list[Axes]]:
    """Draw panels side by side: title, lines of the protections, and lines without an uplink."""
    columns = 1 if narrow else min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    size = max(1.2 + side * columns, 6.5), 1.5 + 2.9 * rows
    if narrow:
        size = _PHONE, 1.5 + 2.2 * rows
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for panel in axes[len(panels) :]:
        panel.remove()
    protections = pd.concat([lines["protection"] for _, lines, _ in panels])
    for panel, (name, lines, references) in zip(axes, panels):
        _draw_protections(panel, lines, protections)
        for protection, (x, mean) in references.items():
            colour, dashes, width = _REFERENCES[protection]
            look = {"color": colour, "linestyle": dashes, "linewidth": width}
            panel.plot(x, 100 * mean, zorder=1.5, label=PROTECTIONS[protection], **look)
        _scale_levels(panel, axis, lines["x"].to_numpy(float))
        tidy(panel, name)
    figure.supylabel(score, fontsize=10)
    drawn = list(axes[: len(panels)])
    if narrow:  # whose page says the rest
        add_legend(figure, drawn, 2, fontsize=8)
    else:
        _finish(figure, drawn, 6 if columns > 2 else 3, title)
    return figure, drawn


def _draw_protections(panel: Axes, lines: pd.DataFrame, protections: Iterable[str]) -> None:
    """Draw the columns `x` and `mean` (fractions, in percent) of each protection.

    A line with a band, or a point with a bar, from `low` to `high`; NaN draws neither. Unknown
    names among all `protections` get spare colours.
    """
    names = arrange(protections, PROTECTIONS)
    looks = styles(names)
    for name in names:
        line = lines[lines["protection"] == name].sort_values("x")
        if line.empty:
            continue
        x = line["x"].to_numpy(float)
        mean, low, high = 100 * line[["mean", "low", "high"]].to_numpy(float).T
        colour, marker = looks[name]
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 5}
        look |= {"linestyle": "-" if len(x) > 1 else "none", "label": PROTECTIONS.get(name, name)}
        panel.plot(x, mean, **look)
        if len(x) > 1:
            panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            panel.vlines(x, low, high, color=colour, linewidth=1.6)


def _scale_levels(panel: Axes, axis: str, levels: np.ndarray) -> None:
    """Make the axis `mse` logarithmic; with a level 0, linear below the smallest other one."""
    above = levels[levels > 0]
    if axis != "mse" or not len(above):
        return
    if len(above) == len(levels):
        panel.set_xscale("log")
        return
    least, most = float(above.min()), float(above.max())
    panel.set_xscale("symlog", linthresh=least)
    decades = range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1)
    panel.set_xticks([0.0, *(10.0**decade for decade in decades)])
    panel.minorticks_off()


def _finish(figure: Figure, panels: list[Axes], columns: int, title: str) -> None:
    add_legend(figure, panels, columns)
    figure.suptitle(f"{title}: 95 % interval", fontsize=10)


def figure_5(table: pd.DataFrame, shots: int = 10, note: str = "") -> Figure:
    """Draw the ablation: (a) the variants side by side, (b) accuracy against shots per class.

    `table` has one row per cell: `variant` (a protection, or a name chosen by the caller), `shots`
    (samples per class, 0 for a variant that is not realigned), `size` (number of tasks),
    `scenario`, `combination`, `draw`, `seed` and `score` (average normalised accuracy, a fraction).
    Panel (a) shows every variant at `shots` samples, and those without any, in groups by scenario;
    beside it stand their differences to `r-mtllmf` there, over pairs of one combination, draw and
    seed. The panels (b), one per scenario, show every variant that was realigned on at least two
    numbers of samples; there are none if all rows have the same number. Points are means over the
    cells of each size, then over the sizes, bars and shading their 95 % intervals
    (`intervals.interval`). `note` is added to the title.

    **Raises:** `InputError` that names a missing column, for an empty table or a score that is not
    finite, or if no row has `shots` samples, or none of them is of `r-mtllmf`.
    """
    _check_ablation(table, shots)
    scenarios, names = zip(*_scenarios(table))
    table = table.assign(protection=table["variant"])
    protections = arrange(table["protection"], PROTECTIONS)
    several = table.loc[table["shots"] > 0, "shots"].nunique() > 1
    width, height = max(2.4 + 2.9 * max(len(scenarios), 2), 6.5), 6.8 if several else 3.8
    figure = Figure(figsize=(width, height), layout="constrained")
    rows = figure.subfigures(1 + several, 1, squeeze=False)[:, 0]
    left, right = rows[0].subplots(1, 2)

    at = table[table["shots"].isin([0, shots])]
    whole = at[at["protection"] == "r-mtllmf"]
    gaps = differences(at[at["protection"] != "r-mtllmf"], whole, PAIR)
    for panel, cells, column, title in (
        (left, at, "score", f"(a) At {shots} samples per class"),
        (right, gaps, "difference", f"Minus {PROTECTIONS['r-mtllmf']}, in pairs (points)"),
    ):
        points = _means(cells, ["protection", "scenario"], column)
        shown = arrange(points["protection"], protections)
        places = points["protection"].map(shown.index) - (len(shown) - 1) / 2
        groups = points["scenario"].map(scenarios.index)
        points = points.assign(x=groups + 0.8 / max(1, len(shown)) * places)
        for _, own in points.groupby("scenario", sort=False):
            _draw_protections(panel, own, protections)
        panel.set_xticks(range(len(scenarios)), names)
        panel.set_xlim(-0.5, len(scenarios) - 0.5)
        tidy(panel, title)
    right.axhline(0, color="0.3", linewidth=0.8, zorder=1)

    panels = [left]
    if several:
        panels += rows[1].subplots(1, len(scenarios), sharey=True, squeeze=False)[0].tolist()
        rows[1].supxlabel("Samples per class for realignment", fontsize=10)
    for panel, scenario, name in zip(panels[1:], scenarios, names):
        rows_here = table[(table["scenario"] == scenario) & (table["shots"] > 0)]
        lines = _means(rows_here.assign(x=rows_here["shots"]), ["protection", "x"], "score")
        counts = sorted({int(count) for count in lines["x"]})
        drawn = lines[lines.duplicated("protection", keep=False)]
        _draw_protections(panel, drawn, protections)
        panel.set_xscale("log")
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.minorticks_off()
        tidy(panel, f"(b) {name}")
    highest = max(panel.get_ylim()[1] for panel in panels)
    for panel in panels:
        panel.set_ylim(0, max(105.0, highest))
    for row in rows:
        row.supylabel("Average normalised\naccuracy (%)", fontsize=10)
    what = joined("Ablation of R-MTLLMF", note)
    _finish(figure, panels, 5, f"{what}\n{_OVER}; bars and shading")
    return figure


def _means(table: pd.DataFrame, by: list[str], column: str) -> pd.DataFrame:
    """Return `mean`, `low` and `high` of a column, grouped by others."""
    rows = [
        dict(zip(by, names)) | asdict(interval(own, column)) for names, own in table.groupby(by)
    ]
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high"])


def _check_ablation(table: pd.DataFrame, shots: int) -> None:
    needed = ("variant", "shots", "size", *PAIR, "score")
    if missing := [name for name in needed if name not in table]:
        raise InputError(f"ablation table: lacks {', '.join(missing)}; it has {list(table)}.")
    if table.empty or not np.isfinite(table["score"].to_numpy(float)).all():
        raise InputError("ablation table: expected rows, each with a score that is finite.")
    counts = sorted({int(count) for count in table["shots"]} - {0})
    if shots not in counts:
        raise InputError(f"ablation table: shots are {counts}, expected {shots} among them.")
    if "r-mtllmf" not in set(table.loc[table["shots"] == shots, "variant"]):
        raise InputError(f"ablation table: no r-mtllmf at {shots} samples to compare with.")


def scale_figure(scales: pd.DataFrame, note: str = "") -> Figure:
    """Draw the validation curves by number of tasks, and their best coefficients beside the fit.

    `scales` is the table of `io.read_scales` for one merge method. Left: normalised accuracy (%) of
    the noiseless merge on validation samples against the coefficient, mean over the combinations of
    a size. Right: the best coefficient of every size (a triangle points outwards if it is at the
    edge of the range tried) and 1.13 N^-0.655. `note` is added to the title.

    **Raises:** `InputError` for several merge methods.
    """
    scales = completed(scales)
    if scales["rule"].nunique() > 1:
        raise InputError("scales: several merge methods, expected one.")
    figure = Figure(figsize=(9.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    means = scales.groupby(["size", "scale"])["normalised"].mean()
    sizes = sorted({int(size) for size in scales["size"]})
    for place, size in enumerate(sizes):
        colour, marker = SEQUENCE[place % len(SEQUENCE)]
        curve = means.loc[size]
        look = {"color": colour, "marker": marker, "markersize": 4, "label": f"{size} tasks"}
        left.plot(curve.index.to_numpy(float), 100 * curve.to_numpy(float), **look)
    left.set_xlabel("Merging coefficient")
    left.set_ylabel("Normalised accuracy on validation (%)")
    tidy(left, "Validation curves")

    best = best_scales(scales)
    x, y, low, high = (best[name].to_numpy() for name in ("size", "scale", "low", "high"))
    right.plot(x, y, color="#0072B2", linewidth=1)
    for chosen, marker, label in (
        (~low & ~high, "o", "Best on validation"),
        (low, "v", "Best, the least that was tried"),
        (high, "^", "Best, the largest that was tried"),
    ):
        if chosen.any():
            right.plot(x[chosen], y[chosen], marker, color="#0072B2", label=label)
    fine = np.linspace(x.min(), x.max(), 50)
    fit = "Published fit $1.13 N^{-0.655}$"
    right.plot(fine, public_law(fine), "--", color="0.3", label=fit)
    right.set_xticks(sizes)
    right.set_xlabel("Number of fused tasks")
    right.set_ylabel("Merging coefficient")
    tidy(right, "Best coefficient")
    for panel, columns in ((left, math.ceil(len(sizes) / 4)), (right, 1)):
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False, fontsize=8, ncols=columns)
    figure.suptitle(joined("Merging coefficient without noise", note), fontsize=10)
    return figure
