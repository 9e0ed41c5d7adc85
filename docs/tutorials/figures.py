"""Draws a figure for every tutorial: python docs/tutorials/figures.py [NAME ...].

A figure is a function of the names that the page's first blocks leave behind.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from rmtllmf_jax import channel, fusion, gradients
from rmtllmf_jax.report.style import SEQUENCE, image_bytes, styles, tidy

FOLDER = Path(__file__).parent
TABLE = FOLDER.parents[1] / "experiments" / "results" / "defences" / "by_n.csv"
_BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def names_of(page: str, blocks: int) -> dict[str, Any]:
    """Return what the first blocks of a page define, run in a folder of their own."""
    names: dict[str, Any] = {"__name__": page}
    with tempfile.TemporaryDirectory() as folder, chdir(folder), redirect_stdout(StringIO()):
        for kind, code in _BLOCK.findall((FOLDER / f"{page}.md").read_text())[:blocks]:
            if kind == "bash":
                subprocess.run(["bash", "-euc", code], check=True)
            else:
                exec(compile(code, page, "exec"), names)
    return names


def fuse() -> Figure:
    """The two task vectors and what methods make of them, in the plane that the two span."""
    found = names_of("fuse", 2)
    first, second = (fusion.leaves_by_path(found[name].tree) for name in ("first", "second"))
    flat = [np.concatenate([np.ravel(leaf) for leaf in each.values()]) for each in (first, second)]
    axes = np.linalg.qr(np.stack(flat, axis=1))[0]
    axes *= np.sign(np.diag(axes.T @ np.stack(flat, axis=1)))
    stacked = fusion.stack([found["first"].tree, found["second"].tree])
    points = {"first": flat[0], "second": flat[1]}
    for name, method, scale in (
        ("average", fusion.Average(), 1.0),
        ("task arithmetic", fusion.TaskArithmetic(), fusion.power_law(2)),
        ("ties(density=0.2)", fusion.Ties(density=0.2), 1.0),
    ):
        leaves = fusion.leaves_by_path(method(stacked)).values()
        points[name] = scale * np.concatenate([np.ravel(leaf) for leaf in leaves])
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    panel = figure.subplots()
    for (name, point), (colour, marker) in zip(points.items(), SEQUENCE):
        x, y = axes.T @ point
        arrow = {"arrowstyle": "->", "color": colour, "lw": 1.5}
        panel.annotate("", (x, y), (0, 0), arrowprops=arrow)
        panel.plot(x, y, marker, color=colour, label=name)
    panel.plot(0, 0, "o", color="black", label="base")
    panel.set_xlabel("along the first task vector")
    panel.set_ylabel("across it")
    panel.set_aspect("equal")
    tidy(panel)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


def channel_() -> Figure:
    """How the users' errors are distributed over drops, by attack."""
    found = names_of("channel", 1)
    keys = channel.draw_keys(jax.random.key(0), 1000)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    panel = figure.subplots()
    attacks = (channel.NoAttack(), channel.StrongestUser(), channel.SumRate(), channel.SumMse())
    for attack, (colour, _) in zip(attacks, SEQUENCE[2:]):
        link = channel.Link(found["paper"], attack)
        mse = np.sort(np.ravel(jax.jit(jax.vmap(link.mse))(keys)))
        mean, mse = mse.mean(), mse[::25]
        share = np.linspace(0, 100, len(mse))
        label = {"NoAttack": "thermal noise alone"}.get(
            type(attack).__name__, type(attack).__name__
        )
        panel.plot(mse, share, color=colour, label=f"{label}, mean {mean:.2f}")
    panel.set_xscale("log")
    panel.set_xlim(1e-4, 1)
    panel.set_xlabel("mean squared error of a user's symbols")
    panel.set_ylabel("users with less (%)")
    panel.legend(frameon=False, fontsize=9)
    tidy(panel)
    return figure


def gradients_() -> Figure:
    """The score by the near user's power, and the slope that the gradient has at full power."""
    found = names_of("gradients", 3)
    fixed, key, here = found["fixed"], found["key"], found["here"]
    powers = np.linspace(0.1, 2.0, 24)
    scores = []
    for power in powers:
        at = gradients.Parameters(powers=here.powers.at[0].set(power), budget=here.budget)
        scores.append(float(gradients.value(fixed, at, key)))
    score, slope = float(found["score"]), float(found["slope"].powers[0])
    near = powers[(powers > 0.4) & (powers < 1.6)]
    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    panel = figure.subplots()
    panel.plot(powers, scores, color="#0072B2", label="score")
    panel.plot(
        near, score + slope * (near - 1), "--", color="#D55E00", label="gradient at full power"
    )
    panel.plot(1, score, "o", color="#D55E00")
    panel.set_xlabel("power of the near user, as a fraction of full power")
    panel.set_ylabel("soft accuracy")
    panel.legend(frameon=False, fontsize=9)
    tidy(panel)
    return figure


def protect() -> Figure:
    """What the demo's eight tasks keep under the sum-rate attack, by protection."""
    table = pd.read_csv(TABLE)
    table = table[(table["size"] == 8) & (table["scenario"] == "sum_rate")]
    means = 100 * table.groupby("protection")["score"].mean()
    clean = pd.read_csv(TABLE).query(
        "size == 8 and scenario == 'clean' and protection == 'r-mtllmf'"
    )
    shown = {
        "unprotected": "none",
        "R-MTLLMF: reload and realign": "r-mtllmf",
        "the code alone: phy": "coded",
        "both: holistic": "holistic",
    }
    figure = Figure(figsize=(6.4, 2.4), layout="constrained")
    panel = figure.subplots()
    colours = [styles([])[{"coded": "phy"}.get(name, name)][0] for name in shown.values()]
    bars = panel.barh(list(shown), [means[name] for name in shown.values()], color=colours)
    panel.bar_label(bars, fmt="%.0f", padding=3)
    panel.axvline(100 * clean["score"].mean(), ls=":", color="0.3", label="R-MTLLMF, no channel")
    panel.invert_yaxis()
    panel.set_xlim(0, 105)
    panel.set_xlabel("normalised accuracy of eight fused tasks (%)")
    panel.legend(frameon=False, fontsize=9, loc="upper center")
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def own_model_and_data() -> Figure:
    """The first digits, and what they are in each of the three tasks."""
    found = names_of("own_model_and_data", 2)
    figure = Figure(figsize=(7.2, 1.9), layout="constrained")
    panels = figure.subplots(1, 8)
    for index, panel in enumerate(panels):
        panel.imshow(found["images"][index], cmap="gray_r")
        words = [classes[int(labels[index])] for labels, classes in found["tasks"].values()]
        panel.set_title("\n".join(words), fontsize=8)
        panel.set_axis_off()
    return figure


def sweep_on_tpu() -> Figure:
    """Who reads and writes what when several hosts sweep."""
    boxes = {
        "run folder\nfinetuned.json, heads/": (0, 0),
        "process 0": (1.4, 0.8),
        "process 1": (1.4, 0),
        "process N - 1": (1.4, -0.8),
        "--store\nparts of finished cells": (2.8, 0),
        "results.parquet\nby process 0": (4.2, 0),
    }
    figure = Figure(figsize=(8.4, 2.6), layout="constrained")
    panel = figure.subplots()
    panel.set_axis_off()
    panel.set_xlim(-0.6, 4.8)
    panel.set_ylim(-1.2, 1.2)
    for words, (x, y) in boxes.items():
        height = 0.5 if "\n" in words else 0.36
        corner = (x - 0.45, y - height / 2)
        panel.add_patch(
            FancyBboxPatch(corner, 0.9, height, boxstyle="round,pad=0.05", fc="0.94", ec="0.4")
        )
        panel.text(x, y, words, ha="center", va="center", fontsize=8.5)
    for y in (0.8, 0, -0.8):
        for start, end in (((0.5, y * 0.2), (0.9, y)), ((1.9, y), (2.3, y * 0.2))):
            panel.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.3"})
    panel.annotate("", (3.7, 0), (3.3, 0), arrowprops={"arrowstyle": "->", "color": "0.3"})
    return figure


def lata() -> Figure:
    """The score by coefficient, and what forgetting a task costs the others, by method."""
    found = names_of("lata", 5)
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    left, *others = figure.subplots(1, 3)
    scales = np.arange(0.1, 1.3, 0.1)
    for (name, method), (colour, marker) in zip(found["methods"].items(), SEQUENCE[1:]):
        merged = method(found["run"].vectors)
        scores = [
            found["score"](fusion.add_to_base(found["run"].base, merged, scale)) for scale in scales
        ]
        left.plot(scales, scores, color=colour, marker=marker, ms=3, label=name)
        for task, panel in zip(("queries", "sums"), others):
            forgotten, kept = found["curves"][task, name]
            panel.plot(forgotten, kept, color=colour, marker=marker, ms=3)
            panel.set_xlabel(f"rise of the loss on {task} (nats)")
    left.set_xlabel("merging coefficient")
    left.set_ylabel("normalised score (%)")
    for panel in others:
        panel.set_xlim(0, 5)
        panel.set_ylim(0, 0.8)
    others[0].set_ylabel("rise of the others' losses (nats)")
    for panel in (left, *others):
        tidy(panel)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def send_a_llama() -> Figure:
    """Memory of fine-tuning and of the sweep, from the page's table, and that of an H100."""
    page = (FOLDER / "send_a_llama.md").read_text()
    rows = re.findall(r"^\| memory of (?:the )?(\S+) \|(.*)\|$", page, re.MULTILINE)
    figure = Figure(figsize=(6.4, 2.4), layout="constrained")
    panel = figure.subplots()
    places = np.arange(4)
    for number, (name, cells) in enumerate(rows):
        sizes = [float(cell.split()[0]) for cell in cells.split("|")]
        bars = panel.barh(
            places + 0.4 * (number - 0.5), sizes, 0.38, color=SEQUENCE[number + 1][0], label=name
        )
        text = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        panel.bar_label(bars, fmt="%.0f", padding=3, fontsize=9, bbox=text)
    panel.axvline(80, ls=":", color="0.3", label="one H100")
    panel.set_yticks(places, ["1.1 B", "1.1 B, LoRA", "6.7 B", "6.7 B, LoRA"])
    panel.invert_yaxis()
    panel.set_xscale("log")
    panel.set_xlim(4, 700)
    panel.set_xlabel("memory (GB)")
    panel.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    panel.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "fuse": fuse,
    "channel": channel_,
    "gradients": gradients_,
    "protect": protect,
    "own_model_and_data": own_model_and_data,
    "sweep_on_tpu": sweep_on_tpu,
    "lata": lata,
    "send_a_llama": send_a_llama,
}
"""By tutorial; the file is `<tutorial>.svg` beside it."""


if __name__ == "__main__":
    for name in sys.argv[1:] or FIGURES:
        (FOLDER / f"{name}.svg").write_bytes(image_bytes(FIGURES[name](), "svg"))
        print(name, os.path.getsize(FOLDER / f"{name}.svg"))
