"""`rmtllmf evaluate`: a model's score on the tasks of a run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rmtllmf_jax.cli.help_text import Place
from rmtllmf_jax.cli.options import Configured, MetricText, print_as_json, print_table
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.runs.environment import use_compilation_cache

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rmtllmf_jax.evaluation.metrics import Metric
    from rmtllmf_jax.runs import Run
    from rmtllmf_jax.sweep.engine import Engine


@dataclass(kw_only=True)
class Evaluate(Configured):
    """Print the score of a model on a run folder's tasks, for images with their frozen heads.

    Without --directory and --configuration, each task's fine-tuned model is scored.

    Examples: rmtllmf evaluate runs/a --directory merged --tasks mnist;
    rmtllmf evaluate runs/a --configuration combination=dtd+mnist scenario=sum_rate
    """

    directory: Place | None = None
    """A model directory, as written by `export` and `fuse`: its image tower, or language model, is
    evaluated."""
    tasks: tuple[str, ...] = ()
    """Tasks; by default all of the run folder, or of the configuration."""
    split: Literal["test", "validation"] = "test"
    """Samples to evaluate on: as many as in the last sweep's settings; all if there was none."""
    metric: MetricText = None
    json: bool = False
    """Print JSON and nothing else: an object of `model`, `metric` and `tasks`; per task an object
    of score, base_score, finetuned_score, normalised and images, or rows of texts."""

    def run(self) -> None:
        """Run the sub-command."""
        from rmtllmf_jax.common.values import described
        from rmtllmf_jax.evaluation.known import get_metric
        from rmtllmf_jax.sweep.configuration import engine_of

        metric = None if self.metric is None else get_metric(self.metric)
        if self.directory is not None and self.configuration:
            raise InputError("--directory and --configuration are two models: give one of them.")
        use_compilation_cache(self.cache_dir)
        run = self.swept()
        metric = metric or get_metric(run.config.metric)
        engine = engine_of(run, metric)
        name, params, tasks = self._model(run, engine)
        found = {}
        for task in tasks:
            base = engine.score(run.base, task, self.split)
            tuned = engine.score(run.finetuned(task), task, self.split)
            reached = tuned if params is None else engine.score(params, task, self.split)
            found[task] = {
                "score": reached,
                "base_score": base,
                "finetuned_score": tuned,
                "normalised": metric.normalised(reached, tuned) if tuned else math.nan,
                run.config.samples: engine.samples(task, self.split).count,
            }
        if self.json:
            print_as_json({"model": name, "metric": described(metric), "tasks": found})
        else:
            _print(f"{name}, {self.split} {run.config.samples}", run.config.samples, found, metric)

    def _model(self, run: Run, engine: Engine) -> tuple[str, PyTree | None, tuple[str, ...]]:
        """Return a model's name, its parameters, and the tasks; none for the fine-tuned ones."""
        from rmtllmf_jax.sweep.configuration import job_of, model_of

        for task in self.tasks:
            require_known("task", task, run.names)
        tasks = self.tasks or run.names
        if self.configuration:
            job = job_of(self.rows(run))
            chosen = self.tasks or job.cell.combination
            return " ".join(self.configuration), model_of(engine, job), chosen
        if self.directory is not None:
            config: Any = run.config
            params = config.load_like(self.directory, run.model, run.base)
            return self.directory, params, tasks
        return "fine-tuned models", None, tasks


def _print(
    title: str, samples: str, found: Mapping[str, Mapping[str, Any]], metric: Metric
) -> None:
    from rmtllmf_jax.report.sheets import percent

    def text(name: str, value: float) -> str:
        return percent(value) if name == "normalised" or metric.unit == "%" else f"{value:.4g}"

    names = ("score", "normalised", "base_score", "finetuned_score")
    rows = [
        [task, *(text(name, row[name]) for name in names), f"{row[samples]:,}"]
        for task, row in found.items()
    ]
    header = ["task", metric.label, "normalised", "base", "fine-tuned", samples]
    print_table(title, header, rows)
