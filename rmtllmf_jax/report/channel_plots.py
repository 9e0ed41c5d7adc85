"""Figures of a channel and its attacks, drawn from arrays without pyplot or global state."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rmtllmf_jax.common.files import write_bytes
from rmtllmf_jax.report.channel_tally import Tally
from rmtllmf_jax.report.order import SCENARIOS

# Okabe and Ito's palette, safe for colour-blind readers; in grey, markers distinguish the lines.
_STYLES = {
    "none": ("No attack", "#009E73", "o"),
    "strongest_user": (SCENARIOS["strongest_user"], "#E69F00", "s"),
    "sum_rate": (SCENARIOS["sum_rate"], "#D55E00", "^"),
    "sum_rate_floor_aware": (SCENARIOS["sum_rate_floor_aware"], "#CC79A7", "v"),
    "sum_mse": (SCENARIOS["sum_mse"], "#0072B2", "D"),
    "min_max_rate": (SCENARIOS["min_max_rate"], "#56B4E9", "P"),
    "white": (SCENARIOS["white"], "#999999", "x"),
    "white_in_range": (SCENARIOS["white_in_range"], "#F0E442", "*"),
}
_CHANNEL = ("Channel $HPH^H$", "#000000", "d")

USERS = ("Weakest user", "Median user", "Strongest user")
"""The users whose constellations are drawn, by received power."""


class Equalised(NamedTuple):
    """Three users' symbols (those of `USERS`) behind the equaliser.

    **Fields:**

    - `estimates`: (3, symbols), unbiased.
    - `sinr_db`: (3,), of the unbiased estimates.
    - `error_rate`: (3,), symbol error rate of hard decisions.
    """

    estimates: np.ndarray
    sinr_db: np.ndarray
    error_rate: np.ndarray


def user_figure(tallies: Mapping[str, Tally], note: str) -> Figure:
    """Draw MSE and rate of each user against its rank by received power, one line per attack.

    Mean over drops; the band holds the middle 90 % of them. `note` is added to the title.
    """
    # Decreasing sizes: where attacks coincide, the line below still shows.
    sizes = np.linspace(1, 0.55, len(tallies))
    band = {"alpha": min(0.15, 0.5 / len(tallies)), "linewidth": 0}
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    mse, rate = figure.subplots(1, 2)
    for size, (attack, tally) in zip(sizes, tallies.items()):
        label, colour, marker = _STYLES.get(attack, (attack, "#000000", "."))
        look = {"color": colour, "marker": marker, "label": label}
        look |= {"markersize": 9 * size, "linewidth": 3 * size}
        place = np.arange(1, len(tally.user_mse) + 1)
        low, high = (tally.user_percentile(percent) for percent in (5, 95))
        mse.plot(place, tally.user_mse, **look)
        mse.fill_between(place, low, high, color=colour, **band)
        rate.plot(place, tally.user_rate, **look)
        rate.fill_between(place, -np.log(high), -np.log(low), color=colour, **band)
    mse.set_yscale("log")
    mse.set_ylabel("MSE of a unit-power symbol")
    rate.set_ylabel("Rate (nats per channel use)")
    rate.set_ylim(bottom=0)
    for panel in (mse, rate):
        panel.set_xlabel("User by received power, weakest to strongest")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        _tidy(panel)
    _finish(figure, mse, f"Users: mean over drops, band from 5 to 95 % of them\n{note}")
    return figure


def distribution_figure(tallies: Mapping[str, Tally], note: str) -> Figure:
    """Draw the empirical distribution of a drop's mean MSE, one line per attack.

    The marker is the mean over drops.
    """
    figure = Figure(figsize=(6.5, 4.6), layout="constrained")
    panel = figure.subplots()
    for attack, tally in tallies.items():
        label, colour, marker = _STYLES.get(attack, (attack, "#000000", "."))
        value, share = tally.distribution()
        panel.step(value, share, where="post", color=colour)
        mean = float(np.mean(tally.user_mse))
        height = float(np.interp(mean, value, share))
        panel.plot([mean], [height], marker=marker, color=colour, label=label)
    panel.set_xscale("log")
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("MSE, mean over the users of a drop")
    panel.set_ylabel("Share of drops at or below")
    _tidy(panel)
    _finish(figure, panel, f"Distribution over drops; marker: their mean\n{note}")
    return figure


def eigenvalue_figure(
    channel: np.ndarray, attacks: Mapping[str, np.ndarray], budget: float, note: str
) -> Figure:
    """Draw the attackers' eigenvalues beside those of H P H^H, for one drop and on average.

    `channel` and every array of `attacks` are (drops, n), each row in descending order, in units of
    the thermal noise; the first drop is shown. Values 50 dB below the `budget` are rounding errors
    and left out.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    lines = {"": (_CHANNEL, channel)} | {
        name: (
            _STYLES.get(name, (name, "#000000", ".")),
            np.where(values > 1e-5 * budget, values, 0.0),
        )
        for name, values in attacks.items()
        if np.any(values)
    }
    for panel, drops in zip(panels, (slice(0, 1), slice(None))):
        for (label, colour, marker), values in lines.values():
            mean = np.mean(values[drops], axis=0)
            place = np.flatnonzero(mean)  # no power has no dB
            look = {"color": colour, "marker": marker, "markersize": 5, "label": label}
            panel.plot(place + 1, 10 * np.log10(mean[place]), **look)
        panel.axhline(0, color="0.5", linestyle=":", label="Thermal noise")
        panel.set_xlabel("Eigenvalue, from the largest")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        _tidy(panel)
    panels[0].set_title("The first drop", fontsize=11)
    panels[1].set_title(f"Mean over the first {len(channel):,} drops", fontsize=11)
    panels[0].set_ylabel("Eigenvalue over noise per antenna (dB)")
    _finish(figure, panels[0], f"Eigenvalues of channel and attackers\n{note}")
    return figure


def constellation_figure(
    equalised: Mapping[str, Equalised], constellation: np.ndarray, note: str
) -> Figure:
    """Draw received symbols behind the equaliser: one row per attack, one column per user.

    The users are `USERS`. `constellation` holds the symbols as sent (black crosses). Points outside
    the panels are not shown.
    """
    rows = len(equalised)
    figure = Figure(figsize=(8.4, 0.9 + 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, sharex=True, sharey=True, squeeze=False)
    for row, (attack, received) in zip(panels, equalised.items()):
        label, colour, _ = _STYLES.get(attack, (attack, "#000000", "."))
        for user, panel in enumerate(row):
            points = received.estimates[user]
            panel.scatter(points.real, points.imag, s=3, color=colour, alpha=0.4, linewidths=0)
            ideal = {"s": 9, "marker": "+", "color": "black", "linewidths": 0.6}
            panel.scatter(constellation.real, constellation.imag, **ideal)
            panel.set_title(
                f"SINR {received.sinr_db[user]:.1f} dB, {received.error_rate[user]:.1%} wrong",
                fontsize=9,
            )
            panel.set_aspect("equal")
            panel.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
            panel.tick_params(labelsize=8)
        row[0].set_ylabel(f"{label}\nQuadrature", fontsize=9)
    for panel, name in zip(panels[0], USERS):
        panel.set_title(f"{name}\n{panel.get_title()}", fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("In-phase", fontsize=9)
    figure.suptitle(f"Symbols behind the equaliser\n{note}", size=10)
    return figure


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write `<name>.png` for each figure; same arrays, same bytes."""
    paths = []
    for name, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200)
        paths.append(folder / f"{name}.png")
        write_bytes(paths[-1], buffer.getvalue())
    return paths


def _tidy(panel: Axes) -> None:
    panel.set_axisbelow(True)
    panel.grid(axis="y", color="0.9", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)


def _finish(figure: Figure, panel: Axes, title: str) -> None:
    handles, labels = panel.get_legend_handles_labels()
    columns = 3 if figure.get_figwidth() < 8 else 4
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    figure.suptitle(title, fontsize=10)
