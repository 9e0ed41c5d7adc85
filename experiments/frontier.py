"""How to pretrain a base model on which fusing helps: what was tried for clip-mini, and chosen.

    python experiments/frontier.py

A testbed needs a base model that knows its tasks by half, and merged models that are much better
(testbed.py). results/frontier/tried.csv holds one row per small pretraining (vision encoder of
width 192 with 4 layers, 128 pairs per step, the embedded tasks under other seeds with CIFAR-10,
EuroSAT and MNIST; then 100 fine-tuning steps of 64 per task, 200 test images): `base` and `n2` to
`n8` are normalised accuracies in per cent at the best coefficient of a grid on the test images
themselves (`scale_n8`). The runs without a text tower were of a prototype that has a direction per
class in its place; its script is not kept.

Three ways to keep zero-shot accuracy at some 60 % were compared: to stop early, to see some classes
rarely (the r-th class of a task as often as r^-a), and to see all equally often but to *name* some
rarely (the r-th of n in exp(-a r / (n - 1)) of its captions). Only the last one lifts the frontier:
the features are good, and what fine-tuning adds is small and its own for every task.

long.csv holds the whole pretrainings (pretrain_clip_mini.py: 4,000 steps from scratch, 1,500 where
the image tower begins as a ViT that ImageNet taught), measured by testbed.py: `base`, `n2`, `n4`
and `merged` (of `most` tasks) are normalised, `fine-tuned` is the mean accuracy. Those of 50 test
images are of one combination of each size.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from study import write_figure, write_page

from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.report.style import SEQUENCE, tidy

OUT = Path(__file__).parent / "results" / "frontier"
KINDS = {"all": "all named", "seen": "some seen rarely", "named": "some named rarely"}
"""How classes are treated, by a word of the column `captions`."""
SCRATCH = "scratch"
BASE = 45, 70
"""Per cent that a testbed's base model should have."""


def kinds_of(tried: pd.DataFrame) -> pd.Series:
    """Return the key in `KINDS` of every run."""
    return tried["captions"].str.extract(f"({'|'.join(KINDS)})")[0]


def conclusion(tried: pd.DataFrame) -> str:
    """Say by kind how much eight merged tasks gain where the base model is in its range."""
    fitting = tried[tried["base"].between(*BASE)]
    gain, kinds = fitting["n8"] - fitting["base"], kinds_of(fitting)
    said = []
    for kind, name in KINDS.items():
        own = gain[kinds == kind]
        number = f"{own.min():+.0f} to {own.max():+.0f} points" if len(own) else "no such run"
        said.append(f"{name} {number}")
    return (
        f"Where the base model has {BASE[0]} to {BASE[1]} % of fine-tuning's accuracy, eight "
        f"merged tasks gain over it: {listed(said)}."
    )


def whole_conclusion(whole: pd.DataFrame) -> str:
    """Say how far apart the gains of pretrainings on the same tasks lie."""
    gain = whole["merged"] - whole["base"]
    said = []
    kinds = whole["tasks"].str.split(r"[ ,]").str[0]
    for (kind, start), own in gain.groupby([kinds, whole["start"]], sort=False):
        least, most = f"{own.min():.0f}", f"{own.max():.0f}"
        points = least if least == most else f"{least} to {most}"
        begun = "" if start == SCRATCH else f" with the image tower begun from {start}"
        said.append(f"on the {kind} tasks by {points} points{begun}")
    return (
        f"Merging all tasks gains over the base model {listed(said)}. Two pretrainings that differ "
        "little may lie as far apart as those of one kind here, and one alone decides nothing."
    )


def main() -> None:
    """Draw the frontier and write its page."""
    tried = pd.read_csv(OUT / "tried.csv")
    gain = tried["n8"] - tried["base"]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    panel = figure.subplots()
    kinds = kinds_of(tried)
    for place, (kind, name) in enumerate(KINDS.items()):
        colour, marker = SEQUENCE[place]
        for tower, face in (("no", "none"), ("yes", colour)):
            own = (kinds == kind) & (tried["text_tower"] == tower)
            label = name + (", with a text tower" if tower == "yes" else "")
            look = {"markerfacecolor": face, "label": label if own.any() else None}
            panel.plot(tried["base"][own], gain[own], marker, color=colour, **look)
    panel.axvspan(*BASE, color="0.93", zorder=0)
    panel.axhline(15, color="0.5", linewidth=0.8)
    panel.set_xlabel("Base model over fine-tuned (%)")
    panel.set_ylabel("Eight merged tasks minus base (points)")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, fontsize=8)
    tidy(panel, "Shaded, above the line: what a testbed needs")
    write_figure(OUT / "frontier", figure)
    header = ["captions", "text tower", "steps", "learning rate of fine-tuning"]
    header += ["base", "N = 2", "N = 4", "N = 8", "coefficient, N = 8", "largest cosine"]
    rows = [[str(value) for value in row] for row in tried.itertuples(index=False)]
    title = "Normalised test accuracy (%) of small pretrainings"
    whole = pd.read_csv(OUT / "long.csv")
    titles = ["tasks", "image tower from", "pixels", "text tower spreads", "naming"]
    titles += ["test images", "fine-tuned", "base", "N = 2", "N = 4"]
    titles += ["most tasks", "these merged"]
    cells = [[str(value) for value in row] for row in whole.itertuples(index=False)]
    lines = [
        "# How to pretrain a base model on which fusing helps",
        "`python experiments/frontier.py` draws tried.csv, one row per small pretraining.",
        conclusion(tried),
        "Each row is one pretraining and one fine-tuning, and its coefficients are the best on the "
        "test images themselves: differences of a few points say nothing.",
        markdown_table(Sheet(title, header, rows)),
        "![Gain of eight merged tasks against the base model's accuracy](frontier.png)",
        "## Whole pretrainings",
        whole_conclusion(whole),
        markdown_table(Sheet("Test accuracy (%) of whole pretrainings", titles, cells)),
    ]
    write_page(OUT, lines)


if __name__ == "__main__":
    main()
