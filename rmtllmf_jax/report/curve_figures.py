"""Learning curves of fine-tuning, one panel per task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.style import tidy

_ACROSS = 4  # panels in a row


@dataclass(frozen=True)
class Curve:
    """Points of a task's training: steps and numbers; scores may be at other steps, or absent."""

    steps: Sequence[int]
    losses: Sequence[float]
    scored: Sequence[int] = ()
    validation: Sequence[float] = ()
    """Validation losses."""
    kept: int | None = None
    """The step that was kept, if it is not the last."""


def learning_curves(curves: Mapping[str, Curve]) -> Figure:
    """Draw the training and validation losses over the steps of every task.

    **Raises:** `InputError` if there are no curves.
    """
    if not curves:
        raise InputError("there are no learning curves to draw.")
    across = min(_ACROSS, len(curves))
    down = math.ceil(len(curves) / across)
    figure = Figure(figsize=(2.6 * across + 0.6, 2.1 * down + 0.7), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel, (task, curve) in zip(panels, curves.items()):
        panel.plot(curve.steps, curve.losses, color="#0072B2", label="training")
        if curve.scored:
            panel.plot(curve.scored, curve.validation, "o-", color="#D55E00", label="validation")
        if curve.kept is not None:
            panel.axvline(curve.kept, color="0.5", linestyle=":", label="kept")
        tidy(panel, task)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    figure.supxlabel("Step", fontsize=10)
    figure.supylabel("Cross-entropy in nats", fontsize=10)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure
