"""A unit of work of a sweep: one model and the samples that it is evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.values import described
from rmtllmf_jax.defences.protection import protection_name
from rmtllmf_jax.evaluation.metrics import Metric
from rmtllmf_jax.sweep.grid import Cell

Kind = Literal["merged", "base", "finetuned"]


@dataclass(frozen=True)
class Job:
    """A model and a split: a cell of the grid, or a reference to compare cells with."""

    cell: Cell
    scale: float
    """Merging coefficient. A part of the meaning: the rule `validation` may choose another one
    when the grid grows."""
    split: str = "test"
    kind: Kind = "merged"

    @cached_property
    def hash(self) -> str:
        """The key of the job's results within a configuration."""
        content = asdict(self)
        content["cell"] |= {
            "rule": described(self.cell.rule),
            "protection": protection_name(self.cell.protection),
        }
        return content_hash(content)

    def rows(
        self,
        sums: Mapping[str, tuple[float, float]],
        metric: Metric,
        uplink: Mapping[str, Mapping[str, float]],
    ) -> list[dict[str, Any]]:
        """Return a row per task: what was done, and the value of the metric.

        `sums` are the metric's sum and weight of each task. `uplink` is that of `Uplinks.columns`:
        the channel of this particular model.
        """
        cell = self.cell
        return [
            {
                "kind": self.kind,
                "split": self.split,
                "combination": "+".join(cell.combination),
                "size": len(cell.combination),
                "scenario": cell.scenario,
                "axis": cell.axis,
                "level": float("nan" if cell.level is None else cell.level),
                "draw": cell.draw,
                "seed": cell.seed,
                "protection": protection_name(cell.protection),
                "rule": described(cell.rule),
                "scale": float(self.scale),
                "task": task,
                **uplink[task],
                "metric": described(metric),
                "sum": sums[task][0],
                "weight": sums[task][1],
                "score": metric.score(*sums[task]),
            }
            for task in cell.combination
        ]


def base_job(tasks: tuple[str, ...], split: str) -> Job:
    """Return the pretrained model under the heads of all tasks."""
    return Job(Cell(tasks, "clean", 0, 0, "none"), 0.0, split, "base")


def finetuned_job(task: str, split: str) -> Job:
    """Return a task's own fine-tuned model."""
    return Job(Cell((task,), "clean", 0, 0, "none"), 1.0, split, "finetuned")
