"""`rmtllmf statistics`: what merges by Fisher information and RegMean know of each model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Literal

import tyro

from rmtllmf_jax.cli.options import Relocated, suggest
from rmtllmf_jax.runs.folder import working_in

_USERS = {"fishers": "fisher", "grams": "regmean"}
"""The merge method that each kind is for."""


@dataclass(kw_only=True)
class Statistics(Relocated):
    """Measure each fine-tuned model of a run folder on training images of its task.

    fishers is the diagonal Fisher information, for the merge method fisher; grams are the Gram
    matrices of layer inputs, for regmean. A sweep with the same samples and seed reads them from
    there; rmtllmf fuse --statistics merges exported models with them. The same command resumes
    after an interruption.

    Example: rmtllmf statistics runs/a --kinds grams --samples 256
    """

    run_folder: tyro.conf.Positional[Path]
    """Run folder from `finetune` or `reproduce`; files are written to its folder statistics."""
    tasks: tuple[str, ...] = ()
    """Tasks whose models are measured; by default all of the run folder."""
    kinds: tuple[Literal["fishers", "grams"], ...] = ("fishers", "grams")
    """What to measure."""
    samples: int = 128
    """Training images per task, without labels; 0 means all."""
    seed: int = 0
    """Root of all random numbers: the choice of images, and the labels drawn for fishers."""

    def run(self) -> None:
        """Run the sub-command."""
        from rmtllmf_jax.runs.environment import use_compilation_cache
        from rmtllmf_jax.runs.statistics import collect

        run = self.opened(self.run_folder, self.tasks)
        use_compilation_cache(self.cache_dir)
        with working_in(self.run_folder):
            for place, known in collect(run, self.kinds, self.samples, self.seed):
                there = " (there already)" if known else ""
                print(f"{place.path}: {place.kind} of {place.task}{there}", flush=True)
        rules = " ".join(_USERS[kind] for kind in self.kinds)
        suggest(f"merge by them: rmtllmf sweep --out {quote(str(self.run_folder))} --rules {rules}")
