"""The merging coefficient by number of tasks, next to the published fit."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.looks import SEQUENCE, tidy
from rmtllmf_jax.report.sheets import Sheet, percent

LAW = "1.13 N^-0.655"
"""The published fit: best coefficients of a full sweep on CLIP ViT-B/16, for N = 2 to 7."""


def public_law(tasks: np.ndarray) -> np.ndarray:
    """Return 1.13 N^-0.655, the published best merging coefficient for each number N of tasks."""
    return 1.13 * np.asarray(tasks, float) ** -0.655


def best_scales(scales: pd.DataFrame) -> pd.DataFrame:
    """Return the best coefficient of every size on the validation split.

    `scales` is the table of `reading.read_scales` for one merge method. One row per size: `size`,
    `scale` (the smallest of the best ones), `mean` (normalised accuracy there, averaged over the
    combinations, a fraction) and `edge` (whether it is the smallest or the largest one tried, so
    that the true best one may lie outside).
    """
    means = scales.groupby(["size", "scale"], as_index=False)["normalised_accuracy"].mean()
    means = means.sort_values(["size", "normalised_accuracy", "scale"], ascending=[1, 0, 1])
    best = means.drop_duplicates("size").rename(columns={"normalised_accuracy": "mean"})
    ends = scales.groupby("size")["scale"].agg(["min", "max"]).reindex(best["size"]).to_numpy()
    return best.assign(edge=(ends == best[["scale"]].to_numpy()).any(axis=1)).reset_index(drop=True)


def scale_sheet(results: pd.DataFrame, scales: pd.DataFrame | None) -> Sheet | None:
    """Return one merge method's coefficients by size: used, best on validation, published fit.

    `None` if nothing was merged.
    """
    merged = results[(results["protection"] != "control") & (results["scale"] > 0)]
    if merged.empty:
        return None
    sizes = sorted({int(size) for size in merged["size"]})
    used = merged.groupby("size")["scale"].agg(["min", "max"])
    spans = [_span(used.loc[size, "min"], used.loc[size, "max"]) for size in sizes]
    rows = [["merging coefficient", "used", *spans]]
    if scales is not None:
        best = best_scales(scales).set_index("size")
        there = [best.loc[size] if size in best.index else None for size in sizes]
        values = [
            "-" if row is None else f"{row['scale']:g}{' (edge)' if row['edge'] else ''}"
            for row in there
        ]
        reached = ["-" if row is None else percent(row["mean"]) for row in there]
        rows += [
            ["merging coefficient", "best on validation", *values],
            ["normalised accuracy (%)", "there, on validation", *reached],
        ]
    rows.append(
        [
            "merging coefficient",
            f"published fit {LAW}",
            *(f"{value:.2f}" for value in public_law(np.array(sizes))),
        ]
    )
    title = "Merging coefficient by number of tasks"
    return Sheet(title, ["what", "which", *(str(size) for size in sizes)], rows)


def scale_figure(scales: pd.DataFrame, note: str = "") -> Figure:
    """Draw the validation curves by number of tasks, and their best coefficients beside the fit.

    `scales` is the table of `reading.read_scales` for one merge method. Left: normalised accuracy
    (%) of the noiseless merge on validation samples against the coefficient, mean over the
    combinations of a size. Right: the best coefficient of every size (a triangle points outwards
    if it is at the edge of the range tried) and 1.13 N^-0.655. `note` is added to the title.

    **Raises:** `InputError` for several merge methods.
    """
    if scales["rule"].nunique() > 1:
        raise InputError("scales: several merge methods, expected one.")
    figure = Figure(figsize=(9.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    means = scales.groupby(["size", "scale"])["normalised_accuracy"].mean()
    sizes = sorted({int(size) for size in scales["size"]})
    for place, size in enumerate(sizes):
        colour, marker = SEQUENCE[place % len(SEQUENCE)]
        curve = means.loc[size]
        look = {"color": colour, "marker": marker, "markersize": 4, "label": f"{size} tasks"}
        left.plot(curve.index.to_numpy(float), 100 * curve.to_numpy(float), **look)
    left.set_ylim(bottom=0)
    left.set_xlabel("Merging coefficient")
    left.set_ylabel("Normalised accuracy on validation (%)")
    left.legend(frameon=False, fontsize=8, ncols=math.ceil(len(sizes) / 4))
    tidy(left, "Validation curves")

    best = best_scales(scales)
    least = scales.groupby("size")["scale"].min().reindex(best["size"]).to_numpy()
    low = best["edge"].to_numpy() & (best["scale"].to_numpy() == least)
    high = best["edge"].to_numpy() & ~low
    x, y = best["size"].to_numpy(float), best["scale"].to_numpy(float)
    right.plot(x, y, color="#0072B2", linewidth=1)
    for chosen, marker, label in (
        (~low & ~high, "o", "Best on validation"),
        (low, "v", "Best, the least that was tried"),
        (high, "^", "Best, the largest that was tried"),
    ):
        if chosen.any():
            right.plot(x[chosen], y[chosen], marker, color="#0072B2", label=label)
    fine = np.linspace(x.min(), x.max(), 50)
    right.plot(
        fine, public_law(fine), "--", color="0.3", label=f"Published fit ${LAW[:6]}^{{-0.655}}$"
    )
    right.set_ylim(bottom=0)
    right.set_xticks(sizes)
    right.set_xlabel("Number of fused tasks")
    right.set_ylabel("Merging coefficient")
    right.legend(frameon=False, fontsize=8)
    tidy(right, "Best coefficient")
    figure.suptitle(f"Merging coefficient without noise{', ' if note else ''}{note}", fontsize=10)
    return figure


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if math.isclose(low, high) else f"{low:.3g}-{high:.3g}"
