"""`rmtllmf export`: a merged or fine-tuned model as a Hugging Face directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from rmtllmf_jax.cli.options import Configured, suggest
from rmtllmf_jax.common.errors import InputError, require_known, require_non_negative
from rmtllmf_jax.common.files import require_absent

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rmtllmf_jax.models.classifier import Classifier
    from rmtllmf_jax.runs import Run

_NONE = "none"


@dataclass(kw_only=True)
class Export(Configured):
    """Write a model of a run folder as a directory that transformers opens.

    It writes any configuration of results.parquet, received and repaired as it was evaluated; or a
    fine-tuned model, or the noiseless sum of several. A single-task model is an image classifier.

    Examples: rmtllmf export runs/a --configuration combination=dtd+mnist draw=0 --to out;
    rmtllmf export runs/a --tasks mnist svhn dtd --scale 0.3 --to merged
    """

    to: Path
    """The directory to write; it must not exist."""
    tasks: tuple[str, ...] = ()
    """One or more tasks to merge; by default all of the run folder."""
    scale: float | None = None
    """Merging coefficient: base + scale * sum of the task vectors. By default 1 for one task (the
    fine-tuned model itself), and the power law in the number of tasks for several."""
    classifier: str | None = None
    """Task whose head is written as the classifier, so that transformers'
    pipeline("image-classification") answers with its labels; by default the only task, if there is
    just one. `none`: the whole pretrained model, with its text tower, and no head."""

    def run(self) -> None:
        """Run the sub-command."""
        from rmtllmf_jax.models.classifier import CODE_FILE

        if self.configuration and (self.tasks or self.scale is not None):
            raise InputError("--configuration says tasks and scale: leave out --tasks and --scale.")
        require_absent(self.to)
        run, tasks, params, what = self._received() if self.configuration else self._sum()
        classifier = self._classifier(run, tasks)
        run.config.export(self.to, params, classifier)
        print(f"{self.to}: {what}")
        if classifier is not None and (self.to / CODE_FILE).exists():
            print(
                "It classifies images in transformers by "
                f'pipeline("image-classification", "{self.to}", trust_remote_code=True), with the '
                f"class in {CODE_FILE}, which transformers has not; `rmtllmf predict` needs none."
            )
        folder, to = quote(str(self.run_folder)), quote(str(self.to))
        suggest(f"score it: rmtllmf evaluate {folder} --directory {to}")

    def _classifier(self, run: Run, tasks: tuple[str, ...]) -> Classifier | None:
        """Return the head that goes with the model, if one does; a language model has none."""
        if self.classifier == _NONE or (self.classifier is None and run.heads is None):
            return None
        if self.classifier is not None:
            return run.classifier(require_known("--classifier", self.classifier, run.names))
        return run.classifier(tasks[0]) if len(tasks) == 1 else None

    def _received(self) -> tuple[Run, tuple[str, ...], PyTree, str]:
        """Return the model of a configuration, by the program of the sweep."""
        from rmtllmf_jax.sweep.configuration import engine_of, job_of, model_of

        run = self.swept()
        rows = self.rows(run)
        job = job_of(rows)
        params = model_of(engine_of(run), job)
        score = rows["normalised"].mean()
        what = f"{' '.join(self.configuration)}, normalised score {score:.1%}"
        return run, job.cell.combination, params, what

    def _sum(self) -> tuple[Run, tuple[str, ...], PyTree, str]:
        """Return base + scale * sum of the task vectors."""
        from rmtllmf_jax import fusion

        run = self.opened(self.run_folder, self.tasks)
        scale = self.scale
        if scale is None:
            scale = 1.0 if len(run.names) == 1 else fusion.power_law(len(run.names))
        require_non_negative("--scale", scale)
        what = f"base + {scale:g} * ({' + '.join(run.names)})"
        if len(run.names) == 1 and scale == 1:  # bit by bit
            return run, run.names, run.finetuned(run.names[0]), what
        total = fusion.TaskVector.between(run.base, run.base)
        for name in run.names:
            total = total + fusion.TaskVector.between(run.finetuned(name), run.base)
        return run, run.names, run.base + scale * total, what
