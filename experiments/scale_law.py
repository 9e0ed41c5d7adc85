"""The best merging coefficient by number of tasks, next to the published fit 1.13 N^-0.655.

    python experiments/scale_law.py --run runs/vit-tiny [--quick]

The fit is for CLIP ViT-B/16, whose task vectors are small. The coefficient that validation samples
choose for another model may be far from it, which decides how much an unprotected merge reaches.
Noiseless merges of 2 to 8 tasks; every candidate of `fusion.candidate_scales`.

A minute on two cores after figure_2.py, with which it shares cells. Reached with ViT-Ti/16 at 64
pixels, five combinations of each size: the best coefficient is .5 at two tasks, .15 at three, and
from four on .1, the smallest that was tried; the fit gives .72, .55 and .46 to .29. At the fit's
coefficient the merge of eight tasks keeps about 40 % of the fine-tuned accuracy on validation
instead of 59 %.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from study import Users, load, made_by, sweep, write_figure, write_page

from rmtllmf_jax.report.figures import scale_figure
from rmtllmf_jax.report.sheets import markdown_table, scale_sheet
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.settings import Settings


@dataclass(frozen=True)
class Options(Users):
    """What to run."""

    combinations: int = 5
    """Combinations of each size."""
    eval_samples: int = 200
    """Test images per task; 0 is all."""
    validation_samples: int = 100
    """Validation images per task; 0 is all."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """One combination of each size, 50 images."""
    out: Path = Path(__file__).parent / "results" / "scale_law"
    """Where tables and figures go."""


def main(options: Options) -> None:
    """Measure the curves; write table, figure and page."""
    started = time.perf_counter()
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    quick = options.quick
    settings = Settings(
        scale="validation",
        eval_samples=50 if quick else options.eval_samples,
        validation_samples=50 if quick else options.validation_samples,
        seed=options.seed,
    )
    chosen = choose_combinations(inputs.tasks, 1 if quick else options.combinations, options.seed)
    tables = sweep(options.run, inputs, settings, Grid(chosen, ("clean",), ("none",), 1, 1))
    options.out.mkdir(parents=True, exist_ok=True)
    tables["scales"].to_csv(options.out / "scales.csv", index=False, float_format="%.6g")
    write_figure(options.out / "scale_law", scale_figure(tables["scales"]))
    sheet = scale_sheet(tables["results"], tables["scales"])
    lines = [
        "# The best merging coefficient by number of tasks",
        made_by("scale_law.py", options.seed, time.perf_counter() - started),
        markdown_table(sheet),
        "![Validation curves and the published fit](scale_law.png)",
    ]
    write_page(options.out, lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
