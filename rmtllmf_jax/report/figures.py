"""The paper's figures, drawn from the tables without pyplot or global state.

Figure 2 is drawn here; the cosine heat maps (3 and 4), the ablation (5) and the accuracy along an
axis are drawn in their own files and can be imported from here.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.ablation import figure_5
from rmtllmf_jax.report.axis_figure import axis_figure
from rmtllmf_jax.report.heat_maps import cosine_figure, cosine_heat_map
from rmtllmf_jax.report.looks import add_legend, draw_line, draw_reference, styles, tidy
from rmtllmf_jax.report.order import PROTECTIONS, SCENARIOS, arrange
from rmtllmf_jax.report.scale_law import scale_figure
from rmtllmf_jax.report.tables import SETTING, base_by_size, by_size

__all__ = [
    "axis_figure",
    "cosine_figure",
    "cosine_heat_map",
    "figure_2",
    "figure_5",
    "scale_figure",
]


def figure_2(results: pd.DataFrame, note: str = "") -> Figure:
    """Draw the average normalised accuracy (%) against the number of tasks, one panel per scenario.

    One line per protection: mean over combinations, draws and seeds; the band (a bar where there is
    only one size) is ± one sample standard deviation over them. Two lines need no uplink and are
    the same in every panel: the mean of the control (dashed) and the base model under the tasks'
    own heads (dotted). `note` is added to the title.

    **Raises:** `InputError` if `results` holds only controls, or several merge methods or levels of
    an axis, which have no common mean.
    """
    table = by_size(results)
    received = table[table["protection"] != "control"]
    control = table[table["protection"] == "control"].drop_duplicates("size")
    scenarios = arrange(received["scenario"], SCENARIOS)
    if not scenarios:
        raise InputError("results: only control rows, expected a scenario with another protection.")
    if len(received[SETTING].drop_duplicates()) > 1:
        raise InputError(
            "results: several merge methods or levels of an axis, expected one; split them "
            "with report.parts.parts, and draw an axis with axis_figure."
        )
    protections = arrange(received["protection"], PROTECTIONS)
    looks = styles(protections)
    base = base_by_size(results)
    sizes = [int(size) for size in base.index]

    columns = min(len(scenarios), 4)
    rows = math.ceil(len(scenarios) / columns)
    figure = Figure(figsize=(max(1.2 + 3.0 * columns, 6.5), 1.5 + 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel in axes.flat[len(scenarios) :]:
        panel.remove()
    for panel, scenario in zip(axes.flat, scenarios):
        lines = received[received["scenario"] == scenario]
        for place, protection in enumerate(protections):
            line = lines[lines["protection"] == protection]
            shift = 0.14 * (place - (len(protections) - 1) / 2) if len(sizes) == 1 else 0.0
            if len(line):
                numbers = (line[name].to_numpy(float) for name in ("size", "mean", "std"))
                x, mean, std = numbers
                label = PROTECTIONS.get(protection, protection)
                draw_line(panel, x + shift, mean, std, looks[protection], label)
        if len(control):
            across = _across(control["size"].to_numpy(float), control["mean"].to_numpy(float))
            draw_reference(panel, *across, "control")
        draw_reference(panel, *_across(np.array(sizes, float), base.to_numpy(float)), "base")
        tidy(panel, SCENARIOS.get(scenario, scenario))
        panel.set_xlabel("Number of fused tasks")
        panel.set_xticks(sizes)
        panel.set_xlim(sizes[0] - 0.5, sizes[-1] + 0.5)
        panel.set_ylim(0, max(105.0, 105.0 * table["max"].max(), 105.0 * base.max()))
    add_legend(figure, axes.flat[: len(scenarios)], 6 if columns > 2 else 3)
    figure.supylabel("Average normalised accuracy (%)", fontsize=10)
    shape = "shading" if len(sizes) > 1 else "bar"
    title = f"mean over combinations, draws and seeds; {shape}: ± 1 standard deviation"
    what = f"Accuracy of the fused model relative to fine-tuning{', ' if note else ''}{note}"
    figure.suptitle(f"{what}\n{title}", fontsize=10)
    return figure


def _across(x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a line's points; for a single one, a short horizontal line."""
    return (x, mean) if len(x) > 1 else (np.array([x[0] - 0.4, x[0] + 0.4]), np.repeat(mean, 2))
