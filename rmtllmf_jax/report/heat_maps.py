"""Heat maps of the cosines between received task vectors."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.report.order import PROTECTIONS, SCENARIOS, arrange


def cosine_heat_map(cosines: pd.DataFrame, scenario: str, protection: str) -> Figure:
    """Draw the cosines between received task vectors, averaged over draws and seeds.

    Cell (i, j) holds the cosine of tasks i and j, tasks in alphabetical order; the colour scale is
    -1 to 1 in every figure. The title names the error model where the table does.

    **Raises:** `InputError` if the table has no such scenario or protection, or several levels of
    an axis, which have no common mean.
    """
    return _heat_maps(cosines, scenario, [protection])


def cosine_figure(cosines: pd.DataFrame, scenario: str) -> Figure:
    """Draw `cosine_heat_map` for each protection of a scenario, side by side.

    **Raises:** `InputError` if the table has no such scenario.
    """
    protections = cosines.loc[cosines["scenario"] == scenario, "protection"]
    return _heat_maps(cosines, scenario, arrange(protections, PROTECTIONS))


def _heat_maps(cosines: pd.DataFrame, scenario: str, protections: list[str]) -> Figure:
    require_known("scenario", scenario, arrange(cosines["scenario"], SCENARIOS))
    rows = cosines[cosines["scenario"] == scenario]
    if "level" in rows and rows["level"].nunique(dropna=False) > 1:
        raise InputError("cosines: several levels of an axis, expected one or none.")
    tasks = sorted(set(rows["task_a"]) | set(rows["task_b"]))
    side = max(0.55 * len(tasks), 2.2)
    width = len(protections) * (side + 0.9) + 1.0
    figure = Figure(figsize=(max(width, 4.6), side + 1.6), layout="constrained")
    panels = figure.subplots(1, len(protections), sharey=True, squeeze=False)[0]
    for panel, protection in zip(panels, protections):
        require_known("protection", protection, arrange(rows["protection"], PROTECTIONS))
        chosen = rows[rows["protection"] == protection]
        means = chosen.pivot_table(
            index="task_a", columns="task_b", values="cosine", aggfunc="mean"
        )
        image = draw_matrix(panel, means.reindex(index=tasks, columns=tasks).to_numpy(float), tasks)
        panel.set_title(PROTECTIONS.get(protection, protection), fontsize=11)
    bar = figure.colorbar(image, ax=list(panels), fraction=0.05, pad=0.02)
    bar.set_label("Cosine similarity")
    name = SCENARIOS.get(scenario, scenario)
    title = f"{name}: cosines of received task vectors\nmean over channel draws and seeds"
    if "error_model" in rows:
        title += f"; error model: {', '.join(sorted(rows['error_model'].unique()))}"
    figure.suptitle(title, fontsize=11)
    return figure


def draw_matrix(panel: Axes, values: np.ndarray, tasks: list[str]) -> AxesImage:
    """Draw cosines between tasks, with their numbers; the colour scale is -1 to 1."""
    image = panel.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    for (row, column), value in np.ndenumerate(values):
        text = "-" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}"  # no "-0.00"
        colour = "white" if abs(value) > 0.6 else "black"
        panel.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    panel.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", rotation_mode="anchor")
    panel.set_yticks(range(len(tasks)), tasks)
    panel.tick_params(length=0, labelsize=9)
    panel.spines[:].set_visible(False)
    return image
