"""`rmtllmf reproduce`: the whole pipeline, from images to figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tyro

from rmtllmf_jax.cli.environment import use_compilation_cache
from rmtllmf_jax.cli.options import Cache, FinetuneOptions, Out, SweepOptions, default_cache
from rmtllmf_jax.cli.run_folder import working_in

RECIPES = ("vit-tiny",)

QUICK: dict[str, Any] = {
    "steps": 100,
    "batch_size": 32,
    "combinations": "1",
    "eval_samples": 100,
    "validation_samples": 50,
    "realign_steps": 20,
}
"""What `--quick` sets: minutes in place of hours on two cores."""


@dataclass(kw_only=True)
class Reproduce(FinetuneOptions, SweepOptions):
    """Fine-tune, transmit, merge, protect, evaluate and report; goes on where it was stopped.

    Example: rmtllmf reproduce vit-tiny --model MODEL --data DATA --out runs/a --quick
    """

    recipe: tyro.conf.Positional[str]
    """What to reproduce: vit-tiny (a Hugging Face ViT with closed-form heads)."""
    out: Out
    quick: bool = False
    """Use fewer steps, samples and combinations: ends within 30 minutes on two cores. Options that
    are given keep their values."""
    seed: int = 0
    """Root of all random numbers."""
    cache_dir: Cache = field(default_factory=default_cache)

    def run(self) -> None:
        """Run the sub-command."""
        from rmtllmf_jax.cli.finetune import finetune
        from rmtllmf_jax.cli.report import report
        from rmtllmf_jax.cli.sweep import check, sweep
        from rmtllmf_jax.common.errors import require_known

        require_known("recipe", self.recipe, RECIPES)
        check(self, self.tasks, self.seed)
        use_compilation_cache(self.cache_dir)
        with working_in(self.out):
            finetune(self, self.out, self.seed, self.cache_dir)
            sweep(self, self.out, self.tasks, self.seed, self.cache_dir)
            report(self.out)
