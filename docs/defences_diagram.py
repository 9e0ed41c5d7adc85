"""Draws defences.svg, who acts where along the chain: python docs/defences_diagram.py."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from rmtllmf_jax.report.style import image_bytes

PICTURE = Path(__file__).with_suffix("").with_name("defences.svg")
CHAIN = (
    ("task vectors", "sign_flip, scaled", "finetune --weight-noise"),
    ("transport", "", "sparse, coded"),
    ("air", "sum_rate, jammer, ...", "repeat, hop, harq, schedule"),
    ("receiver", "", "sic, estimated, minimax, ..."),
    ("estimators", "", "shrink, singular_values, reliability"),
    ("merge", "", "median, trimmed_mean, ties, ..."),
    ("repairs", "", "reload, realign"),
)
"""What happens, the attackers' values there, and the defenders'."""
ATTACK, DEFENCE = "#D55E00", "#0072B2"


def picture() -> Figure:
    """Return the chain from left to right, attackers above and defenders below."""
    figure = Figure(figsize=(12.0, 2.9), layout="constrained")
    panel = figure.subplots()
    panel.set_axis_off()
    panel.set_xlim(-0.6, len(CHAIN) - 0.4)
    panel.set_ylim(-1.15, 1.15)
    for place, (name, attack, defence) in enumerate(CHAIN):
        box = FancyBboxPatch(
            (place - 0.36, -0.2), 0.72, 0.4, boxstyle="round,pad=0.04", fc="0.94", ec="0.4"
        )
        panel.add_patch(box)
        panel.text(place, 0, name, ha="center", va="center", fontsize=10)
        if place:
            arrow = {"arrowstyle": "->", "color": "0.3"}
            panel.annotate("", (place - 0.41, 0), (place - 0.59, 0), arrowprops=arrow)
        for words, side, colour in ((attack, 1, ATTACK), (defence, -1, DEFENCE)):
            if words:
                arrow = {"arrowstyle": "->", "color": colour}
                at = (place, 0.26 * side), (place, 0.52 * side)
                panel.annotate("", *at, arrowprops=arrow)
                low = "bottom" if side > 0 else "top"
                text = words.replace(", ", "\n")
                panel.text(place, 0.56 * side, text, ha="center", va=low, fontsize=9, color=colour)
    panel.text(-0.55, 1.1, "attacker", color=ATTACK, va="top", fontsize=11, weight="bold")
    panel.text(-0.55, -1.1, "defender", color=DEFENCE, va="bottom", fontsize=11, weight="bold")
    return figure


if __name__ == "__main__":
    PICTURE.write_bytes(image_bytes(picture(), "svg"))
