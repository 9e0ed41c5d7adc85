"""Figure 5: what each half of R-MTLLMF is worth, and how many shots per class it needs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.looks import add_legend, draw_line, styles, tidy
from rmtllmf_jax.report.order import PROTECTIONS, SCENARIOS, arrange

_COLUMNS = ("variant", "shots", "size", "scenario", "score")


def figure_5(table: pd.DataFrame, shots: int = 10, note: str = "") -> Figure:
    """Draw the ablation: (a) the variants side by side, (b) accuracy against shots per class.

    `table` has one row per cell: `variant` (a protection, or a name of the caller's own), `shots`
    (samples per class, 0 for a variant that is not realigned), `size` (number of tasks), `scenario`
    and `score` (average normalised accuracy, a fraction). Panel (a) shows every variant at `shots`
    samples, and those without any, in groups by scenario; the panels (b), one per scenario, show
    every variant that was realigned on at least two numbers of samples. Points are means over the
    rows (combinations of all sizes, draws, seeds), bars and shading ± one sample standard
    deviation. If all rows have the same number of samples, there is only panel (a). `note` is added
    to the title.

    **Raises:** `InputError` that names a missing column, for an empty table or a score that is not
    finite, or if no row has `shots` samples.
    """
    _check(table, shots)
    scenarios = arrange(table["scenario"], SCENARIOS)
    variants = arrange(table["variant"], PROTECTIONS)
    looks = styles(variants)
    several = table.loc[table["shots"] > 0, "shots"].nunique() > 1
    width, height = max(1.2 + 2.9 * max(len(scenarios), 2), 6.5), 6.8 if several else 3.8
    figure = Figure(figsize=(width, height), layout="constrained")
    rows = figure.subfigures(1 + several, 1, squeeze=False)[:, 0]
    groups = rows[0].subplots()
    _draw_groups(groups, table[table["shots"].isin([0, shots])], scenarios, variants, looks)
    tidy(groups, f"(a) At {shots} samples per class")
    panels = [groups]
    if several:
        panels += rows[1].subplots(1, len(scenarios), sharey=True, squeeze=False)[0].tolist()
        rows[1].supxlabel("Samples per class for realignment", fontsize=10)
    for panel, scenario in zip(panels[1:], scenarios, strict=several):
        lines = table[(table["scenario"] == scenario) & (table["shots"] > 0)]
        _draw_shots(panel, lines, variants, looks)
        tidy(panel, f"(b) {SCENARIOS.get(scenario, scenario)}")
    highest = max(panel.get_ylim()[1] for panel in panels)
    for panel in panels:
        panel.set_ylim(0, max(105.0, highest))
    add_legend(figure, panels, 5)
    for row in rows:
        row.supylabel("Average normalised\naccuracy (%)", fontsize=10)
    what = f"Ablation of R-MTLLMF{', ' if note else ''}{note}"
    over = "mean over combinations, draws and seeds; bars and shading: ± 1 standard deviation"
    figure.suptitle(f"{what}\n{over}", fontsize=10)
    return figure


def _check(table: pd.DataFrame, shots: int) -> None:
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise InputError(f"ablation table: lacks {', '.join(missing)}; it has {list(table)}.")
    if table.empty or not np.isfinite(table["score"].to_numpy(float)).all():
        raise InputError("ablation table: expected rows, each with a score that is finite.")
    counts = sorted({int(count) for count in table["shots"]} - {0})
    if shots not in counts:
        raise InputError(f"ablation table: shots are {counts}, expected {shots} among them.")


def _draw_groups(
    panel: Axes,
    rows: pd.DataFrame,
    scenarios: list[str],
    variants: list[str],
    looks: dict[str, tuple[str, str]],
) -> None:
    shown = [name for name in variants if (rows["variant"] == name).any()]
    width = 0.8 / max(len(shown), 1)
    for place, variant in enumerate(shown):
        scores = rows[rows["variant"] == variant].groupby("scenario")["score"]
        table = scores.agg(["mean", "std"])
        for position, scenario in enumerate(scenarios):
            if scenario in table.index:
                mean, std = (table.loc[[scenario], name].to_numpy(float) for name in table)
                x = np.array([position + width * (place - (len(shown) - 1) / 2)])
                label = PROTECTIONS.get(variant, variant)
                draw_line(panel, x, mean, std, looks[variant], label)
    panel.set_xticks(range(len(scenarios)), [SCENARIOS.get(name, name) for name in scenarios])
    panel.set_xlim(-0.5, len(scenarios) - 0.5)


def _draw_shots(
    panel: Axes, rows: pd.DataFrame, variants: list[str], looks: dict[str, tuple[str, str]]
) -> None:
    for variant in variants:
        table = rows[rows["variant"] == variant].groupby("shots")["score"].agg(["mean", "std"])
        if len(table) > 1:
            label = PROTECTIONS.get(variant, variant)
            x = table.index.to_numpy(float)
            mean, std = table["mean"].to_numpy(float), table["std"].to_numpy(float)
            draw_line(panel, x, mean, std, looks[variant], label)
    counts = sorted({int(count) for count in rows["shots"]})
    panel.set_xscale("log")
    panel.set_xticks(counts, [str(count) for count in counts])
    panel.minorticks_off()
