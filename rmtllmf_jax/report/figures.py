"""The paper's figures, drawn from the tables without pyplot and without global state.

The cosine heat maps are drawn in `heat_maps.py` and imported from here.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.heat_maps import cosine_figure, cosine_heat_map
from rmtllmf_jax.report.order import PROTECTIONS, SCENARIOS, arrange
from rmtllmf_jax.report.tables import by_size

__all__ = ["cosine_figure", "cosine_heat_map", "figure_2"]

# Okabe and Ito's palette: told apart by colour-blind readers; markers tell the lines apart in grey.
_STYLES = {
    "none": ("#D55E00", "s"),
    "freeze": ("#56B4E9", "^"),
    "realign": ("#CC79A7", "v"),
    "r-mtllmf": ("#0072B2", "o"),
    "control": ("#000000", "x"),
}
_SPARE = [("#009E73", "D"), ("#E69F00", "P"), ("#F0E442", "*")]


def figure_2(results: pd.DataFrame, note: str = "") -> Figure:
    """Draw the average normalised accuracy (%) against the number of tasks, one panel a scenario.

    A line a protection: mean over combinations, draws and seeds; the band (a bar where there is
    one size only) is ± one sample standard deviation over them. The control needs no uplink: its
    mean is the dashed line of every panel. `note` goes into the title.

    **Raises:** `InputError` if `results` holds nothing but controls.
    """
    table = by_size(results)
    received = table[table["protection"] != "control"]
    control = table[table["protection"] == "control"]
    scenarios = arrange(received["scenario"], SCENARIOS)
    if not scenarios:
        raise InputError("results: only control rows, expected a scenario with another protection.")
    protections = arrange(received["protection"], PROTECTIONS)
    styles = _styles(protections)
    sizes = sorted(int(size) for size in table["size"].unique())

    columns = min(len(scenarios), 4)
    rows = math.ceil(len(scenarios) / columns)
    figure = Figure(figsize=(max(1.2 + 3.0 * columns, 6.5), 1.3 + 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel in axes.flat[len(scenarios) :]:
        panel.remove()
    for panel, scenario in zip(axes.flat, scenarios):
        lines = received[received["scenario"] == scenario]
        for place, protection in enumerate(protections):
            line = lines[lines["protection"] == protection]
            shift = 0.14 * (place - (len(protections) - 1) / 2) if len(sizes) == 1 else 0.0
            if len(line):
                _draw_line(panel, line, protection, styles[protection], shift)
        if len(control):
            _draw_control(panel, control)
        panel.set_title(SCENARIOS.get(scenario, scenario), fontsize=11)
        panel.set_xlabel("Number of fused tasks")
        panel.set_xticks(sizes)
        panel.set_xlim(sizes[0] - 0.5, sizes[-1] + 0.5)
        panel.set_ylim(0, max(105.0, 105.0 * table["max"].max()))
        panel.set_axisbelow(True)
        panel.grid(axis="y", color="0.9", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    handles = {
        label: handle
        for panel in axes.flat[: len(scenarios)]
        for handle, label in zip(*panel.get_legend_handles_labels())
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=5 if columns > 2 else 3,
        frameon=False,
    )
    figure.supylabel("Average normalised accuracy (%)", fontsize=10)
    shape = "shading" if len(sizes) > 1 else "bar"
    title = f"mean over combinations, draws and seeds; {shape}: ± 1 standard deviation"
    what = f"Accuracy of the fused model relative to fine-tuning{', ' if note else ''}{note}"
    figure.suptitle(f"{what}\n{title}", fontsize=10)
    return figure


def _styles(protections: list[str]) -> dict[str, tuple[str, str]]:
    others = [name for name in protections if name not in _STYLES]
    return _STYLES | {name: _SPARE[i % len(_SPARE)] for i, name in enumerate(others)}


def _draw_line(
    panel: Axes, line: pd.DataFrame, protection: str, style: tuple[str, str], shift: float
) -> None:
    colour, marker = style
    x = line["size"].to_numpy(float) + shift
    mean = 100 * line["mean"].to_numpy(float)
    spread = 100 * line["std"].fillna(0.0).to_numpy(float)
    label = PROTECTIONS.get(protection, protection)
    joined = "-" if len(x) > 1 else "none"
    panel.plot(x, mean, color=colour, marker=marker, markersize=5, linestyle=joined, label=label)
    if len(x) > 1:
        panel.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
    else:
        panel.vlines(x, mean - spread, mean + spread, color=colour, linewidth=1.6)


def _draw_control(panel: Axes, control: pd.DataFrame) -> None:
    x = control["size"].to_numpy(float)
    mean = 100 * control["mean"].to_numpy(float)
    if len(x) == 1:
        x, mean = np.array([x[0] - 0.4, x[0] + 0.4]), np.repeat(mean, 2)
    colour, label = _STYLES["control"][0], PROTECTIONS["control"]
    panel.plot(x, mean, color=colour, linestyle="--", linewidth=1.3, label=label, zorder=1.5)
