"""Accuracy along an axis of a sweep: an SNR, an MSE or an attacker's budget."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.report.looks import add_legend, draw_line, draw_reference, styles, tidy
from rmtllmf_jax.report.order import AXES, PROTECTIONS, SCENARIOS, arrange
from rmtllmf_jax.report.reading import completed
from rmtllmf_jax.report.tables import base_by_size, spread


def axis_figure(results: pd.DataFrame, axis: str, note: str = "") -> Figure:
    """Draw the average normalised accuracy (%) against the level of an axis.

    One line per protection: mean over combinations, draws and seeds; the band is ± one sample
    standard deviation over them. Several scenarios have one panel each (all sizes together), a
    single scenario one panel per number of tasks. The control (dashed) and the base model under its
    own heads (dotted) need no uplink and no level. The axis `mse` is logarithmic. `note` is added
    to the title.

    **Raises:** `InputError` if no row has that axis, or if those that have it were merged by
    several rules, which have no common mean.
    """
    results = completed(results)
    received = results[(results["axis"] == axis) & (results["protection"] != "control")]
    require_known("axis", axis, arrange(results.loc[results["axis"] != "", "axis"], AXES))
    if received["rule"].nunique() > 1:
        rules = ", ".join(sorted(received["rule"].unique()))
        raise InputError(f"results: the rules {rules}, expected one; see report.parts.parts.")
    control = results[results["protection"] == "control"]
    control = control[control["combination"].isin(received["combination"])]
    looks = styles(received["protection"])
    panels = list(_panels(received))
    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(1.2 + 3.2 * columns, 6.5), 1.5 + 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel in axes.flat[len(panels) :]:
        panel.remove()
    highest = 1.0
    for panel, (title, rows_of_panel) in zip(axes.flat, panels):
        table = spread(rows_of_panel, ["protection"])
        for protection in arrange(table["protection"], PROTECTIONS):
            line = table[table["protection"] == protection].sort_values("level")
            x, mean, std = (line[name].to_numpy(float) for name in ("level", "mean", "std"))
            label = PROTECTIONS.get(protection, protection)
            draw_line(panel, x, mean, std, looks[protection], label)
            highest = max(highest, *(mean + np.nan_to_num(std)))
        same = control[control["combination"].isin(rows_of_panel["combination"])]
        _draw_references(panel, rows_of_panel, same)
        _scale_levels(panel, axis, rows_of_panel["level"].to_numpy(float))
        tidy(panel, title)
        panel.set_xlabel(AXES.get(axis, axis), fontsize=9)
    axes.flat[0].set_ylim(0, 105 * highest)
    add_legend(figure, axes.flat[: len(panels)], 6 if columns > 2 else 3)
    figure.supylabel("Average normalised accuracy (%)", fontsize=10)
    what = f"Accuracy of the fused model relative to fine-tuning{', ' if note else ''}{note}"
    over = "mean over combinations, draws and seeds; shading (bar): ± 1 standard deviation"
    figure.suptitle(f"{what}\n{over}", fontsize=10)
    return figure


def _panels(received: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    scenarios = arrange(received["scenario"], SCENARIOS)
    if len(scenarios) > 1:
        for name in scenarios:
            yield SCENARIOS.get(name, name), received[received["scenario"] == name]
        return
    name = SCENARIOS.get(scenarios[0], scenarios[0])
    for size, rows in received.groupby("size"):
        yield f"{name}, {size} tasks", rows


def _draw_references(panel: Axes, rows: pd.DataFrame, control: pd.DataFrame) -> None:
    ends = np.array([rows["level"].min(), rows["level"].max()], float)
    if len(control):
        mean = spread(control, ["protection"])["mean"].mean()
        draw_reference(panel, ends, np.repeat(mean, 2), "control")
    # Over the combinations of all sizes, like the other lines of the panel.
    sizes = rows.groupby("size")["combination"].nunique()
    base = float(np.average(base_by_size(rows), weights=sizes))
    draw_reference(panel, ends, np.repeat(base, 2), "base")


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
