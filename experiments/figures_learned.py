"""Figures of learned attacks and powers, and of where noise hurts."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from rmtllmf_jax.report.intervals import interval
from rmtllmf_jax.report.style import SEQUENCE


def attack_figure(rows: pd.DataFrame) -> Figure:
    """Draw the accuracy (%) that each attacker leaves: one dot per channel, the mean with 95 %.

    `rows` has the columns channel, attack and accuracy.
    """
    return _strips(rows, "attack", "channel")


def power_figure(rows: pd.DataFrame) -> Figure:
    """Draw the accuracy (%) under each power control: one dot per cell, the mean with 95 %.

    `rows` has the columns cell, channel, control and accuracy; a dot is a cell's mean.
    """
    means = rows.groupby(["control", "cell"], sort=False)["accuracy"].mean().reset_index()
    return _strips(means, "control", "cell")


def _strips(rows: pd.DataFrame, column: str, cluster: str) -> Figure:
    names = list(dict.fromkeys(rows[column]))
    figure = Figure(figsize=(6.5, 0.8 + 0.5 * len(names)), layout="constrained")
    panel = figure.subplots()
    for place, name in enumerate(names):
        own = rows[rows[column] == name]
        values, found = 100 * own["accuracy"], interval(own, "accuracy", (cluster,))
        colour, marker = SEQUENCE[place % len(SEQUENCE)]
        spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(1)
        panel.plot(values, place + spread, ".", color=colour, alpha=0.35, markersize=5)
        panel.plot(100 * found.mean, place, color=colour, marker=marker)
        panel.hlines(place, 100 * found.low, 100 * found.high, color=colour)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xlabel(f"accuracy of the fused model (%)\nmean and 95 % interval over {cluster}s")
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def sensitivity_figure(by_layer: pd.DataFrame) -> Figure:
    """Draw ``d score / d log mu`` in points as a heat map: one row per layer, one column per task.

    `by_layer` has layers as its index and tasks as its columns.
    """
    values = 100 * by_layer.to_numpy(float)
    rows, columns = values.shape
    figure = Figure(figsize=(2.6 + 0.7 * columns, 1.4 + 0.32 * rows), layout="constrained")
    panel = figure.subplots()
    limit = max(float(np.abs(values).max(initial=0.0)), 1e-12)
    image = panel.imshow(values, cmap="PuOr", norm=TwoSlopeNorm(0.0, -limit, limit), aspect="auto")
    panel.set_xticks(range(columns), by_layer.columns, rotation=40, ha="right")
    panel.set_yticks(range(rows), by_layer.index)
    bar = figure.colorbar(image, ax=panel)
    bar.set_label("points of soft accuracy\nper e-fold of the MSE")
    return figure
