"""Figures of the hypothesis test (9)-(12), from its table: first-order theory beside Monte Carlo.

One row of the table is a (combination, task, mse); the columns are those of `COLUMNS`. Lines are
medians over combinations and tasks, bands show their range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.style import add_legend

TESTS = {
    "own": "$T$ for the actual noise",
    "reference": "$T$ for the reference MSE",
    "tolerance": "Fixed tolerance",
}
"""The thresholds for |R - 1|, each with its printed name."""

COLUMNS: Mapping[str, str] = {
    "mse": "mean MSE of the users",
    "predicted_std": "first-order standard deviation of R - 1, median over samples and logits",
    "measured_std": "half the central 68.27 % of a logit's R over draws, median likewise",
    "ratio_rms": "root mean square of (R - 1) / its predicted std",
    "ratio_robust": "half the central 68.27 % of the same",
    "ratio_spread_error": "standard error of ratio_robust over draws",
    "change_rms": "as ratio_rms, of z' / z - 1",
    "change_robust": "as ratio_robust, of z' / z - 1",
    "change_spread_error": "standard error of change_robust over draws",
    "margin_rms": "as ratio_rms, of the margin's change",
    "margin_robust": "as ratio_robust, of the margin's change",
    "margin_spread_error": "standard error of margin_robust over draws",
    "blind": "share of logits with T >= 1",
    **{
        f"{test}_{part}": f"rate of |R - 1| > {limit}, {what}"
        for test, limit in (
            ("own", "T for this MSE"),
            ("reference", "T for the reference MSE"),
            ("tolerance", "the tolerance"),
        )
        for part, what in (
            ("predicted", "first order"),
            ("ratio_law", "exact if the logit were linear in the parameters"),
            ("measured", "Monte Carlo"),
            ("error", "standard error of the Monte Carlo rate over draws"),
        )
    },
    "overtaken_predicted": "chance that the second class overtakes the first, first order",
    "overtaken_measured": "how often it does, Monte Carlo",
    "overtaken_error": "standard error over draws",
    "changed_measured": "how often the decision changes to any class, Monte Carlo",
    "changed_error": "standard error over draws",
}
"""The columns of the table, and their meanings."""


def level_columns(levels: Sequence[float]) -> dict[str, str]:
    """Return the columns of the test at the nominal rates alpha = 1 - beta, with their meanings."""
    return {
        f"own_{part}_at_{level:g}": f"as own_{part}, T for a nominal rate of {level:g}"
        for part in ("measured", "ratio_law")
        for level in levels
    }


# Okabe and Ito's palette, safe for colour-blind readers; in grey, markers distinguish the lines.
_THEORY, _LAW = ("#000000", "", "--"), ("#E69F00", "", "-.")
_RATIO, _CHANGE = ("#0072B2", "o", "-"), ("#009E73", "^", "-")
_MARGIN, _ANY = ("#CC79A7", "D", "-"), ("#D55E00", "s", "-")
_BY_MSE = (("#56B4E9", "v"), ("#0072B2", "o"), ("#009E73", "^"), ("#E69F00", "s"), ("#D55E00", "D"))
AGREE = 0.1
"""How far Monte Carlo over first order may lie from 1."""


def first_order_holds_up_to(
    table: pd.DataFrame, what: str = "ratio", within: float = AGREE
) -> float:
    """Return the largest MSE up to which Monte Carlo over theory is `within` of 1.

    The median of ``<what>_robust`` over combinations and tasks, give or take two median standard
    errors, at that MSE and at every smaller one of the table; NaN if the smallest already fails.
    `what` is `ratio`, `change` or `margin`.
    """
    curve = _curve(table, f"{what}_robust")["middle"]
    error = _curve(table, f"{what}_spread_error")["middle"].fillna(0.0)
    fails = np.flatnonzero(~(np.abs(curve - 1) <= within + 2 * error))
    end = fails[0] if len(fails) else len(curve)
    return float(curve.index[end - 1]) if end else float("nan")


def spread_figure(table: pd.DataFrame, note: str = "") -> Figure:
    """Draw the spread of R against the MSE, predicted and by Monte Carlo, and their ratio.

    The dotted line is where the first order fails for R: the ratio of the robust spreads leaves 0.9
    to 1.1, the grey band, by more than two standard errors. `note` is added to the title.

    **Raises:** `InputError` if the table has no row or lacks a column.
    """
    _require(table)
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    size, ratio = figure.subplots(1, 2)
    _draw(size, table, "predicted_std", _THEORY, "First order (11)")
    _draw(size, table, "measured_std", _RATIO, "$R$, by quantiles")
    size.set_ylabel("Standard deviation of $R - 1$, median logit")
    ratio.axhspan(1 - AGREE, 1 + AGREE, color="0.9", zorder=0)
    ratio.axhline(1, color="0.3", linewidth=0.8)
    for name, style, what in (
        ("ratio", _RATIO, "$R = z/z'$"),
        ("change", _CHANGE, "$z'/z$"),
        ("margin", _MARGIN, "margin"),
    ):
        _draw(ratio, table, f"{name}_robust", style, f"{what}, by quantiles")
        faint = (style[0], "", ":")
        _draw(ratio, table, f"{name}_rms", faint, f"{what}, by moments", band=False)
    ratio.set_ylabel("Monte Carlo over first order")
    end = first_order_holds_up_to(table)
    for panel in (size, ratio):
        panel.set_yscale("log")
        if np.isfinite(end):
            label = f"$R$: within {AGREE:.0%} up to here"
            panel.axvline(end, color="0.4", linestyle=":", linewidth=1.2, label=label)
        _tidy(panel)
    _finish(figure, [size, ratio], f"Spread of the logits' ratio{_after(note)}")
    return figure


def rejection_figure(table: pd.DataFrame, confidence: float, note: str = "") -> Figure:
    """Draw the rate of |R - 1| > T against the MSE, one panel per threshold of `TESTS`.

    The dotted line is the nominal rate 1 - `confidence`. `note` is added to the title.

    **Raises:** `InputError` if the table has no row or lacks a column.
    """
    _require(table)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, len(TESTS), sharey=True)
    for panel, (test, title) in zip(panels, TESTS.items()):
        _draw(panel, table, f"{test}_predicted", _THEORY, "First order")
        _draw(panel, table, f"{test}_ratio_law", _LAW, "Exact for a linear logit")
        _draw(panel, table, f"{test}_measured", _RATIO, "Monte Carlo")
        if test != "tolerance":
            look = {"color": "0.4", "linestyle": ":", "linewidth": 1.2}
            panel.axhline(1 - confidence, label=f"nominal {1 - confidence:.3g}", **look)
        panel.set_title(title, fontsize=11)
        panel.set_ylim(-0.02, 1.02)
        _tidy(panel)
    panels[0].set_ylabel("Share of samples and logits rejected")
    _finish(figure, list(panels), f"Rejections of H0 by |R - 1| > T{_after(note)}")
    return figure


def level_figure(table: pd.DataFrame, levels: Sequence[float], note: str = "") -> Figure:
    """Draw the rate of |R - 1| > T against the nominal rate alpha, one line per MSE: at most five.

    T is for the actual noise, so the first order predicts alpha: the dashed diagonal. Thin lines
    without markers are exact for a logit that is linear in the parameters. The MSEs are the
    smallest of the table and its largest. `note` is added to the title.

    **Raises:** `InputError` if the table has no row or lacks a column, `level_columns` among them.
    """
    _require(table, level_columns(levels))
    figure = Figure(figsize=(6.8, 5.4), layout="constrained")
    panel, alpha = figure.subplots(), np.sort(np.asarray(levels, float))
    panel.plot(alpha, alpha, color=_THEORY[0], linestyle=_THEORY[2], label="First order: alpha")
    every = sorted(table["mse"].unique())
    chosen = [*every[: max(len(every) - 4, 0)][:1], *every[-4:]]
    for mse, (colour, marker) in zip(chosen, _BY_MSE, strict=False):
        middle = table[table["mse"] == mse].median(numeric_only=True)
        measured, law = (
            [middle[f"own_{part}_at_{level:g}"] for level in alpha]
            for part in ("measured", "ratio_law")
        )
        panel.plot(alpha, measured, color=colour, marker=marker, markersize=5, label=f"MSE {mse:g}")
        panel.plot(alpha, law, color=colour, linewidth=0.8, linestyle="-.")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("Nominal rate $\\alpha = 1 - \\beta$")
    panel.set_ylabel("Share of samples and logits rejected")
    _plain(panel)
    add_legend(figure, [panel], columns=2)
    lines = "median over combinations and tasks; thin: exact for a linear logit"
    figure.suptitle(f"Rejections of H0 by level{_after(note)}\n{lines}", fontsize=10)
    return figure


def flip_figure(table: pd.DataFrame, note: str = "") -> Figure:
    """Draw how often decisions flip against the MSE: predicted from the margin, and counted.

    The theory covers only the second class, so the rate of any change lies above it. `note` is
    added to the title.

    **Raises:** `InputError` if the table has no row or lacks a column.
    """
    _require(table)
    figure = Figure(figsize=(6.8, 4.8), layout="constrained")
    panel = figure.subplots()
    _draw(panel, table, "overtaken_predicted", _THEORY, "Second overtakes first: first order")
    _draw(panel, table, "overtaken_measured", _MARGIN, "Second overtakes first: Monte Carlo")
    _draw(panel, table, "changed_measured", _ANY, "Decision changes: Monte Carlo")
    panel.set_ylabel("Share of samples")
    panel.set_ylim(-0.02, 1.02)
    _tidy(panel)
    _finish(figure, [panel], f"Decisions that noise flips{_after(note)}")
    return figure


def _require(table: pd.DataFrame, more: Mapping[str, str] = MappingProxyType({})) -> None:
    missing = [column for column in (*COLUMNS, *more) if column not in table.columns]
    if missing:
        raise InputError(f"the table of the hypothesis test lacks columns: {', '.join(missing)}.")
    if table.empty:
        raise InputError("the table of the hypothesis test has no row.")


def _curve(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return median, smallest and largest of a column by MSE (the index, ascending)."""
    groups = table.groupby("mse")[column]
    return pd.DataFrame({"middle": groups.median(), "low": groups.min(), "high": groups.max()})


def _draw(
    panel: Axes,
    table: pd.DataFrame,
    column: str,
    style: tuple[str, str, str],
    label: str,
    band: bool = True,
) -> None:
    colour, marker, line = style
    curve = _curve(table, column)
    # A moment of R may be infinite; a line has a gap there.
    curve = curve.where(np.isfinite(curve))
    x = curve.index.to_numpy(float)
    (drawn,) = panel.plot(x, curve["middle"], color=colour, linestyle=line, label=label)
    drawn.set(marker=marker, markersize=5)
    if band and not np.array_equal(curve["low"], curve["high"]):
        panel.fill_between(x, curve["low"], curve["high"], color=colour, alpha=0.13, linewidth=0)


def _tidy(panel: Axes) -> None:
    panel.set_xscale("log")
    panel.set_xlabel("Mean MSE of the users")
    _plain(panel)


def _plain(panel: Axes) -> None:
    panel.set_axisbelow(True)
    panel.grid(color="0.92", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)


def _finish(figure: Figure, panels: list[Axes], title: str) -> None:
    add_legend(figure, panels, columns=2 if figure.get_figwidth() < 8 else 4)
    bands = "median over combinations and tasks; shading: the least to the largest of them"
    figure.suptitle(f"{title}\n{bands}", fontsize=10)


def _after(note: str) -> str:
    return f", {note}" if note else ""
