"""The weight disentanglement error: heat maps of pairs, and its growth with the number of tasks.

Read from tables, one row per number:

- pairs: `task_a`, `task_b`, `scenario`, `draw`, `scale_a`, `scale_b`, `distance` and `wde`, the
  mean over the two tasks;
- combinations: `combination`, `size`, `scenario`, `draw`, `task`, `distance` and `wde`, the task's
  own term.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.intervals import interval
from rmtllmf_jax.report.labels import SCENARIOS, arrange, in_order

# Okabe and Ito's palette, with markers for reading in grey.
_STYLES = {
    "clean": ("#000000", "x"),
    "ideal": ("#0072B2", "o"),
    "strongest_user": ("#D55E00", "s"),
    "sum_rate": ("#009E73", "^"),
}
_SPARE = (("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "D"), ("#F0E442", "*"))
_LABELS = {"disagreement": "Samples that change class (%)", "kl": "KL(single || merged) (nats)"}
_FACTORS = {"disagreement": 100.0, "kl": 1.0}


def pairs_figure(pairs: pd.DataFrame) -> Figure:
    """Draw the error of every pair over its two scales: one row per pair, one column per scenario.

    Means over the two tasks and over draws. All panels share one colour scale from zero: dark is
    where the two tasks do not interfere.

    **Raises:** `InputError` if the table is empty or holds several distances.
    """
    distance = _distance(pairs)
    names = sorted(set(zip(pairs["task_a"], pairs["task_b"], strict=True)))
    scenarios = arrange(pairs["scenario"], SCENARIOS)
    keys = ["task_a", "task_b", "scenario", "scale_a", "scale_b"]
    means = _FACTORS[distance] * pairs.groupby(keys)["wde"].mean()
    size = (2.2 + 2.3 * len(scenarios), 1.0 + 2.3 * len(names))
    figure = Figure(figsize=(max(size[0], 5.0), size[1]), layout="constrained")
    axes = figure.subplots(len(names), len(scenarios), squeeze=False)
    # A table with only zeros still needs some scale.
    largest = 100.0 if distance == "disagreement" else max(float(means.max()), 1e-9)
    for row, (task_a, task_b) in zip(axes, names, strict=True):
        for panel, scenario in zip(row, scenarios, strict=True):
            if (task_a, task_b, scenario) not in means.index.droplevel([3, 4]):
                panel.set_axis_off()
                continue
            grid = means[task_a, task_b, scenario].unstack("scale_a")
            mesh = panel.pcolormesh(
                grid.columns, grid.index, grid, cmap="cividis", vmin=0, vmax=largest
            )
            panel.set_aspect("equal")
            panel.set_xlabel(f"Scale of {task_a}", fontsize=9)
            panel.set_title(SCENARIOS.get(scenario, scenario), fontsize=10)
            panel.tick_params(labelsize=8)
        row[0].set_ylabel(f"Scale of {task_b}", fontsize=9)
    figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02).set_label(_LABELS[distance])
    figure.suptitle(
        "Weight disentanglement error of pairs\nmean over the two tasks and over draws", fontsize=10
    )
    return figure


def sizes_figure(combinations: pd.DataFrame) -> Figure:
    """Draw the error against the number of tasks N, one line per scenario.

    xi / N, the mean over a combination's tasks, so that sizes compare; means with their 95 %
    intervals over combinations and draws.

    **Raises:** `InputError` if the table is empty or holds several distances.
    """
    distance = _distance(combinations)
    table = by_size(combinations)
    scenarios = arrange(table["scenario"], SCENARIOS)
    spare = iter(_SPARE * len(scenarios))
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, scenario in enumerate(scenarios):
        rows = table[table["scenario"] == scenario]
        colour, marker = _STYLES.get(scenario) or next(spare)
        mean = _FACTORS[distance] * rows["mean"].to_numpy(float)
        low, high = (
            _FACTORS[distance] * rows[end].fillna(rows["mean"]).to_numpy(float)
            for end in ("low", "high")
        )
        reach = np.maximum([mean - low, high - mean], 0.0)
        # Side by side, so that bars of one size do not hide each other.
        x = rows["size"].to_numpy(float) + 0.08 * (place - (len(scenarios) - 1) / 2)
        name = SCENARIOS.get(scenario, scenario)
        axes.errorbar(
            x, mean, yerr=reach, color=colour, marker=marker, markersize=5, capsize=2, label=name
        )
    axes.set_xticks(sorted(table["size"].unique()))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Number of fused tasks")
    axes.set_ylabel(_LABELS[distance])
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.set_title(
        "Weight disentanglement error, mean over the tasks\n"
        "mean and 95 % interval over combinations and draws",
        fontsize=10,
    )
    return figure


def cells(combinations: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (scenario, size, combination, draw): `score`, the mean over its tasks."""
    keys = ["scenario", "size", "combination", "draw"]
    return combinations.groupby(keys)["wde"].mean().rename("score").reset_index()


def by_size(combinations: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (scenario, size): the `Interval` of xi / N over combinations and draws."""
    keys = ["scenario", "size"]
    rows = [
        dict(zip(keys, names, strict=True)) | asdict(interval(own))
        for names, own in cells(combinations).groupby(keys)
    ]
    return in_order(pd.DataFrame(rows), keys)


def _distance(table: pd.DataFrame) -> str:
    """Return the distance in a table."""
    found = list(np.unique(table["distance"])) if len(table) else []
    if len(found) != 1 or found[0] not in _LABELS:
        raise InputError(
            f"expected a table of one distance ({' or '.join(_LABELS)}), got "
            f"{', '.join(map(str, found)) or 'no row'}."
        )
    return str(found[0])
