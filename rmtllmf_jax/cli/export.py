"""`rmtllmf export`: a merged or fine-tuned model as a Hugging Face directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from rmtllmf_jax.cli.help_text import Place


@dataclass(kw_only=True)
class Export:
    """Write a fine-tuned model, or the merge of several, as a directory that transformers opens.

    Example: rmtllmf export runs/a --tasks mnist svhn dtd --scale 0.3 --to merged
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder that `finetune` or `reproduce` made."""
    to: Path
    """The directory to write; it must not exist."""
    tasks: tuple[str, ...] = ()
    """Tasks to merge, or one; none means all of the run folder."""
    scale: float | None = None
    """Merging coefficient: base + scale * sum of the task vectors. By default 1 for one task (the
    fine-tuned model itself), and the power law of the number of tasks for several."""
    model: Place | None = None
    """Where the pretrained model of the run is now, if it was moved since `finetune`."""

    def run(self) -> None:
        """Run the sub-command."""
        from rmtllmf_jax import fusion
        from rmtllmf_jax.common.errors import require_non_negative
        from rmtllmf_jax.models.export import export_model
        from rmtllmf_jax.models.pretrained import read_pretrained
        from rmtllmf_jax.runs import open_run

        run = open_run(self.run_folder, self.tasks, model=self.model)
        config, names = run.config, run.names
        scale = self.scale
        if scale is None:
            scale = 1.0 if len(names) == 1 else fusion.power_law(len(names))
        require_non_negative("--scale", scale)
        base = run.base
        total = fusion.TaskVector.between(base, base)
        for name in names:
            total = total + fusion.TaskVector.between(run.finetuned(name), base)
        export_model(
            self.to,
            read_pretrained(config.model),
            base + scale * total,
            config.image_size,
            fit=config.fit,
            normalised=config.normalise,
        )
        print(f"{self.to}: base + {scale:g} * ({' + '.join(names)})")
