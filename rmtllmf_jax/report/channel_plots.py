"""Figures of a channel and its attacks, drawn from arrays without pyplot or global state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rmtllmf_jax.report.labels import SCENARIOS
from rmtllmf_jax.report.style import add_legend, tidy

# Okabe and Ito's palette, safe for colour-blind readers; in grey, markers distinguish the lines.
_STYLES = {
    "none": ("#009E73", "o"),
    "strongest_user": ("#E69F00", "s"),
    "sum_rate": ("#D55E00", "^"),
    "sum_rate_floor_aware": ("#CC79A7", "v"),
    "sum_mse": ("#0072B2", "D"),
    "min_max_rate": ("#56B4E9", "P"),
    "white": ("#999999", "x"),
    "white_in_range": ("#F0E442", "*"),
}
_CHANNEL = {"label": "Channel $HPH^H$", "color": "#000000", "marker": "d"}

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


def _look(attack: str) -> dict[str, Any]:
    colour, marker = _STYLES.get(attack, ("#000000", "."))
    label = "No attack" if attack == "none" else SCENARIOS.get(attack, attack)
    return {"color": colour, "marker": marker, "label": label}


def user_figure(drops: Mapping[str, np.ndarray], note: str) -> Figure:
    """Draw MSE and rate of each user against its rank by received power, one line per attack.

    `drops` holds the users' MSE under each attack, (drops, users), users from the weakest to the
    strongest. Mean over drops; the band holds the middle 90 % of them. `note` is added to the
    title.
    """
    # Decreasing sizes: where attacks coincide, the line below still shows.
    sizes = np.linspace(1, 0.55, len(drops))
    band = {"alpha": min(0.15, 0.5 / len(drops)), "linewidth": 0}
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    mse, rate = figure.subplots(1, 2)
    for size, (attack, values) in zip(sizes, drops.items()):
        look = _look(attack) | {"markersize": 9 * size, "linewidth": 3 * size}
        place = np.arange(1, values.shape[1] + 1)
        low, high = np.percentile(values, (5, 95), axis=0, method="inverted_cdf")
        mse.plot(place, values.mean(axis=0, dtype=float), **look)
        mse.fill_between(place, low, high, color=look["color"], **band)
        rate.plot(place, -np.log(values).mean(axis=0, dtype=float), **look)
        rate.fill_between(place, -np.log(high), -np.log(low), color=look["color"], **band)
    mse.set_yscale("log")
    mse.set_ylabel("MSE of a unit-power symbol")
    rate.set_ylabel("Rate (nats per channel use)")
    rate.set_ylim(bottom=0)
    for panel in (mse, rate):
        _count_along_x(panel, "User by received power, weakest to strongest")
    _finish(figure, mse, f"Users: mean over drops, band from 5 to 95 % of them\n{note}")
    return figure


def distribution_figure(drops: Mapping[str, np.ndarray], note: str) -> Figure:
    """Draw the empirical distribution of a drop's mean MSE, one line per attack.

    `drops` is that of `user_figure`. The marker is the mean over drops.
    """
    figure = Figure(figsize=(6.5, 4.6), layout="constrained")
    panel = figure.subplots()
    for attack, values in drops.items():
        look = _look(attack)
        value = np.sort(values.mean(axis=1, dtype=float))
        mean, share = float(value.mean()), np.arange(len(value) + 1) / len(value)
        value = np.insert(value, 0, value[0])
        panel.step(value, share, where="post", color=look["color"])
        panel.plot([mean], [float(np.interp(mean, value, share))], **look)
    panel.set_xscale("log")
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("MSE, mean over the users of a drop")
    panel.set_ylabel("Share of drops at or below")
    tidy(panel)
    _finish(figure, panel, f"Distribution over drops; marker: their mean\n{note}")
    return figure


def eigenvalue_figure(
    channel: np.ndarray, attacks: Mapping[str, np.ndarray], budget: float, note: str
) -> Figure:
    """Draw the eigenvalues of H P H^H and of each attacker's covariance, in dB.

    `channel` and every array of `attacks` are (drops, n), each row in descending order, in units of
    the thermal noise; the first drop is shown. Values 50 dB below the `budget` are rounding errors
    and are left out.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    lines = [(_CHANNEL, channel)] + [
        (_look(name), np.where(values > 1e-5 * budget, values, 0.0))
        for name, values in attacks.items()
        if np.any(values)
    ]
    for panel, drops in zip(panels, (slice(0, 1), slice(None))):
        for look, values in lines:
            mean = np.mean(values[drops], axis=0)
            place = np.flatnonzero(mean)  # no power has no dB
            panel.plot(place + 1, 10 * np.log10(mean[place]), markersize=5, **look)
        panel.axhline(0, color="0.5", linestyle=":", label="Thermal noise")
        _count_along_x(panel, "Eigenvalue, from the largest")
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
        look = _look(attack)
        for panel, points, sinr, wrong in zip(row, *received):
            points_look = {"color": look["color"], "alpha": 0.4, "linewidths": 0}
            panel.scatter(points.real, points.imag, s=3, **points_look)
            ideal = {"s": 9, "marker": "+", "color": "black", "linewidths": 0.6}
            panel.scatter(constellation.real, constellation.imag, **ideal)
            panel.set_title(f"SINR {sinr:.1f} dB, {wrong:.1%} wrong", fontsize=9)
            panel.set_aspect("equal")
            panel.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
            panel.tick_params(labelsize=8)
        row[0].set_ylabel(f"{look['label']}\nQuadrature", fontsize=9)
    for panel, name in zip(panels[0], USERS):
        panel.set_title(f"{name}\n{panel.get_title()}", fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("In-phase", fontsize=9)
    figure.suptitle(f"Symbols behind the equaliser\n{note}", size=10)
    return figure


def _count_along_x(panel: Axes, label: str) -> None:
    panel.set_xlabel(label)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    tidy(panel)


def _finish(figure: Figure, panel: Axes, title: str) -> None:
    add_legend(figure, [panel], 3 if figure.get_figwidth() < 8 else 4, fontsize=9)
    figure.suptitle(title, fontsize=10)
