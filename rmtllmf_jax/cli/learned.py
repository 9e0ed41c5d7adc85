"""What is shown of fine-tuning once it is done: learning curves and test accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rmtllmf_jax.data.samples import Task
    from rmtllmf_jax.models.shared import SharedModel
    from rmtllmf_jax.runs.manifest import AnyRecord

CURVES = "curves"
"""Folder of a run's learning curves: `step`, `loss` and validation scores as CSV, per model."""
FIGURE = "learning_curves.png"
_POINTS = 100  # of a curve in the figure, at most


class Trained(NamedTuple):
    """What a fine-tuning worked with, and what it made."""

    model: SharedModel
    base: PyTree
    tasks: tuple[Task, ...]
    records: Mapping[str, AnyRecord]


def draw_curves(out: Path, records: Mapping[str, AnyRecord]) -> None:
    """Draw the curves of the models that were fine-tuned here, and print the figure's place."""
    from rmtllmf_jax.common.files import replacing
    from rmtllmf_jax.report.curve_figures import Curve, learning_curves
    from rmtllmf_jax.training.watch import VALIDATION_LOSS, best_step, mean_losses, read_curve

    curves = {}
    for task, record in records.items():
        rows = read_curve((out / CURVES / Path(record.finetuned).name).with_suffix(".csv"))
        if not rows:
            continue
        steps, losses = mean_losses(rows, max(1, len(rows) // _POINTS))
        scored = [step for step in sorted(rows) if VALIDATION_LOSS in rows[step]]
        kept = record.recipe.get("choice", {}).get("keep_best", False)
        validation = [rows[step][VALIDATION_LOSS] for step in scored]
        curves[task] = Curve(steps, losses, scored, validation, best_step(rows) if kept else None)
    if not curves:
        return
    with replacing(out / FIGURE) as path:
        learning_curves(curves).savefig(path, format="png", dpi=150)
    print(out / FIGURE)


def print_test(out: Path, trained: Trained) -> None:
    """Print what every task's model reaches on its test images, under its own head."""
    from rmtllmf_jax.models.shared import images_only
    from rmtllmf_jax.runs.users import accuracy, load_user

    backbone = images_only(trained.model, "accuracies under heads")
    images: Any
    for images in trained.tasks:
        name, rows = images.name, images.test
        params, head = load_user(out, trained.records[name], trained.base, backbone.width)
        assert head is not None
        reached = accuracy(backbone, params, head, rows, f"test {name}")
        print(f"{name}: test accuracy {100 * reached:.1f} % (fine-tuned, {len(rows):,} images)")
