"""Figures of task vectors: their cosines, as received and layer by layer, and their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.report.labels import PROTECTIONS, SCENARIOS, arrange
from rmtllmf_jax.report.style import tidy

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "x", "*")
DRAWN = 0.005
"""The least `largest_cosine` that is drawn."""
_NAMED = 40  # beyond this number only every few layers are labelled


def largest_cosine(rows: pd.DataFrame) -> float:
    """Return the largest mean cosine of two different tasks in absolute value.

    Below `DRAWN` all of them round to 0.00, and a heat map of them shows nothing.
    """
    pairs = rows[rows["task_a"] != rows["task_b"]]
    return float(pairs.groupby(["protection", "task_a", "task_b"])["cosine"].mean().abs().max())


def cosine_figure(cosines: pd.DataFrame, scenario: str) -> Figure:
    """Draw the cosines between received task vectors, averaged over draws and seeds.

    One panel per protection of the scenario. Entry (i, j) is the cosine of tasks i and j, tasks in
    alphabetical order; the colour scale is -1 to 1 in every figure. The title names the error model
    if the table does.

    **Raises:** `InputError` if the table has no such scenario, or several levels of an axis, which
    have no common mean.
    """
    require_known("scenario", scenario, arrange(cosines["scenario"], SCENARIOS))
    rows = cosines[cosines["scenario"] == scenario]
    if "level" in rows and rows["level"].nunique(dropna=False) > 1:
        raise InputError("cosines: several levels of an axis, expected one or none.")
    protections = arrange(rows["protection"], PROTECTIONS)
    tasks = sorted(set(rows["task_a"]) | set(rows["task_b"]))
    side = max(0.55 * len(tasks), 2.2)
    width = len(protections) * (side + 0.9) + 1.0
    figure = Figure(figsize=(max(width, 4.6), side + 1.6), layout="constrained")
    panels = figure.subplots(1, len(protections), sharey=True, squeeze=False)[0]
    means = rows.groupby(["protection", "task_a", "task_b"])["cosine"].mean().unstack()
    for panel, protection in zip(panels, protections):
        values = means.loc[protection].reindex(index=tasks, columns=tasks).to_numpy(float)
        image = _draw_matrix(panel, values, tasks)
        panel.set_title(PROTECTIONS.get(protection, protection), fontsize=11)
    bar = figure.colorbar(image, ax=list(panels), fraction=0.05, pad=0.02)
    bar.set_label("Cosine similarity")
    name = SCENARIOS.get(scenario, scenario)
    title = f"{name}: cosines of received task vectors\nmean over channel draws and seeds"
    if "error_model" in rows:
        title += f"; error model: {', '.join(sorted(rows['error_model'].unique()))}"
    figure.suptitle(title, fontsize=11)
    return figure


def similarity_figure(
    tasks: Sequence[str],
    cosines: Float[np.ndarray, "tasks tasks"],
    by_layer: Mapping[str, Float[np.ndarray, "tasks tasks"]],
) -> Figure:
    """Draw the cosines of task vectors (`fusion.exact_cosines`) beside those of their layers.

    The right panel has one mark per layer (`fusion.layer_cosines`): the mean over pairs of tasks
    and their range; none where a layer is zero in all pairs.

    **Raises:** `InputError` if there are fewer than two tasks.
    """
    if len(tasks) < 2:
        raise InputError(f"cosines need two task vectors or more, got {list(tasks)}.")
    side = max(0.55 * len(tasks), 2.6)
    height = max(side + 0.9, 0.22 * len(by_layer) + 1.4)
    figure = Figure(figsize=(2 * side + 3.4, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    image = _draw_matrix(left, np.asarray(cosines), list(tasks))
    left.set_title("All parameters", fontsize=11)
    figure.colorbar(image, ax=left, fraction=0.05, pad=0.02).set_label("Cosine similarity")

    pairs = np.triu_indices(len(tasks), k=1)
    for place, matrix in enumerate(by_layer.values()):
        values = matrix[pairs][np.isfinite(matrix[pairs])]
        if values.size:  # a layer that a task left unchanged has no direction
            mean = values.mean()
            reach = [[mean - values.min()], [values.max() - mean]]
            right.errorbar(mean, place, xerr=reach, fmt="o", color="C0", capsize=2)
    right.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    right.set_yticks(range(len(by_layer)), list(by_layer), fontsize=8)
    right.invert_yaxis()
    right.set_xlabel("Cosine between two tasks: mean, smallest, largest")
    right.set_title("Layer by layer", fontsize=11)
    right.spines[["top", "right"]].set_visible(False)
    return figure


def layer_weights_figure(
    weights: Mapping[str, Sequence[float]], models: Sequence[str], title: str
) -> Figure:
    """Draw the weight of each model in each layer, in layer order.

    `weights` holds one number per model, by layer.
    """
    layers = list(weights)
    height = 2.6 + 0.05 * min(60, max(map(len, layers)))
    width = min(16.0, max(5.0, 2.0 + 0.25 * len(layers)))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    for number, (model, line) in enumerate(zip(models, zip(*weights.values()))):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        axes.plot(range(len(layers)), line, color=colour, marker=marker, markersize=5, label=model)
    every = -(-len(layers) // _NAMED)
    axes.set_xticks(range(0, len(layers), every), layers[::every], rotation=90, fontsize=7)
    axes.set_ylabel("Weight of the task vector")
    axes.set_title(title, fontsize=10)
    tidy(axes)
    figure.legend(loc="outside lower center", ncols=min(4, len(models)), frameon=False)
    return figure


def _draw_matrix(panel: Axes, values: np.ndarray, tasks: list[str]) -> AxesImage:
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
