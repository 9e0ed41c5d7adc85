"""Which merge method is best on the eight real tasks, and do layer-wise weights help?

    python experiments/merge_rules.py --run runs/vit-tiny --model MODEL --data DATA

needs a run folder with the fine-tuned ViT-Ti/16 of all tasks (`rmtllmf finetune`): a sweep without
a channel over 2, 4 and 8 tasks and every merge method. For each number of tasks, options and
coefficient of a method are those with the highest average normalised accuracy on *validation*
samples, over the same combinations that are then tested; the test split plays no part in the
choice. Some methods see more than task vectors: AdaMerging the test images that are evaluated,
without their labels (its own protocol), Fisher merging and RegMean a few training images of each
task. LATA's reference is the mean of the other tasks' vectors.

Written to results/merge_rules/: README.md (averages with and without tasks that fine-tuning did not
teach), results.csv (every task's test accuracy), choices.csv (every candidate's validation score).
The committed tables are of an earlier version, an engine of its own, whose columns are other ones;
AdaMerging began at task arithmetic's coefficient and saw 16 images of each task per step. They took
93 minutes on two busy cores, with 50 validation and 200 test images per task.

What they show: RegMean wins at every size, 2.5, 11 and 1.3 points before the next (96.2, 88.0 and
73.5 % at N = 2, 4, 8 without cars, which fine-tuning did not teach; task arithmetic 91.3, 73.9 and
60.2, the base 76.3, 71.4 and 71.2). It looks at 128 unlabelled images of every task layer by layer;
then at all their tokens in the last block, too, of which models by now compute the class token
alone. Of the methods that see task vectors alone TIES is best (92.6, 76.8, 72.2). Layer-wise
weights do not clearly help: LATA-style and learned ones are 1 to 2 points above task arithmetic at
N = 2, less than the spread, and no better at N = 4; at N = 8 learned ones are 2.6 points above it,
and still below the base. The choice on 50 validation images per task is noisy: neighbouring
coefficients may change places.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import tyro
from study import Users, load, made_by, sweep, write_page

from rmtllmf_jax import fusion
from rmtllmf_jax.fusion.rules import OneOf
from rmtllmf_jax.report.intervals import interval
from rmtllmf_jax.report.sheets import Sheet, markdown_table
from rmtllmf_jax.report.tables import caveat, versions
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.settings import Settings


@dataclass(frozen=True)
class Ramp:
    """Weights that change linearly from the first layer to the last, in the order of the names."""

    first: float
    last: float
    scales: ClassVar[tuple[float, ...]] = fusion.Lata.scales  # adds about half of every vector, too

    def __call__(self, stacked: Any, key: Any = None, *, weights: Any = None) -> Any:
        """Return the merged task vector."""
        layers = list(fusion.group_by_layer(fusion.leaves_by_path(stacked)))
        ramp = np.linspace(self.first, self.last, len(layers)).tolist()
        return fusion.LayerWise(dict(zip(layers, ramp, strict=True)))(stacked, weights=weights)


RULES = (
    *("task_arithmetic", "average", "ties(density=[0.1, 0.2, 0.5])"),
    *("dare(drop=[0.5, 0.9])", "dare_ties(drop=[0.5, 0.9])"),
    *(f"lata(weighting={kind}, granularity=[block, tensor])" for kind in ("linear", "logarithmic")),
    "lata(weighting=threshold, sigma=[0.0, 0.1, 0.2])",
    *(
        f"adamerging(granularity={kind}, initial=[0.1, 0.2, 0.3, 0.6], learning_rate=0.01)"
        for kind in ("task", "tensor")
    ),
    *("fisher(floor=[1e-10, 1e-8, 1e-6])", "regmean(off_diagonal=[0.1, 0.5, 0.9])", "ramp"),
)
RAMPS = OneOf(tuple(Ramp(*e) for e in ((0.0, 1.0), (1.0, 0.0), (0.5, 1.0), (1.0, 0.5))), "ramp")


@dataclass(frozen=True)
class Options(Users):
    """What to run."""

    rules: tuple[str, ...] = RULES
    """Merge methods, as for `rmtllmf sweep --rules`; and `ramp`."""
    sizes: tuple[int, ...] = (2, 4, 8)
    """Numbers of tasks."""
    combinations: int = 6
    """Combinations of each number of tasks, drawn so that tasks occur about equally often."""
    eval_samples: int = 200
    """Test images per task; 0 is all."""
    validation_samples: int = 100
    """Validation images per task; 0 is all."""
    seed: int = 0
    """Root of combinations, samples and random methods."""
    out: Path = Path(__file__).parent / "results" / "merge_rules"
    """Where the tables go."""


def by_rule(results: pd.DataFrame, title: str) -> Sheet:
    """Return means with intervals over combinations, a row a rule and a column a size."""
    base = results.drop_duplicates(["combination", "task"]).assign(rule="base", method="", scale=0)
    base["normalised"] = base["base_score"] / base["finetuned_score"]
    keys = ["rule", "size", "method", "scale"]
    groups = pd.concat([base, results]).groupby([*keys, "combination"], sort=False)
    scores = groups["normalised"].mean().reset_index()
    sizes = sorted(results["size"].unique())
    rows = []
    for rule, own in scores.groupby("rule", sort=False):
        groups = list(own.groupby(keys[1:], sort=False))
        used = [f"N = {size}: {method} scale={scale:g}" for (size, method, scale), _ in groups]
        cells = [interval(group, "normalised").text() for _, group in groups]
        rows.append([str(rule), "; ".join(used), *cells])
    return Sheet(title, ["rule", "method chosen", *(f"N = {size}" for size in sizes)], rows)


def main(options: Options) -> None:
    """Compare the rules; print and write the tables."""
    started = time.perf_counter()
    use_compilation_cache(options.cache_dir)
    rules = tuple(RAMPS if rule == "ramp" else fusion.parse_method(rule) for rule in options.rules)
    settings = Settings(
        scale="validation",
        eval_samples=options.eval_samples,
        validation_samples=options.validation_samples,
        seed=options.seed,
    )
    inputs = load(options)
    combinations = choose_combinations(inputs.tasks, options.combinations, options.seed)
    chosen = tuple(each for each in combinations if len(each) in options.sizes)
    grid = Grid(chosen, ("clean",), ("none",), 1, 1, rules)
    tables = sweep(options.run, inputs, settings, grid)
    results = tables["results"]
    title = "Average normalised accuracy (%), 95 % intervals over combinations"
    sheets = [
        by_rule(rows, f"{title}, {without}" if without else title)
        for without, rows in versions(results).items()
    ]
    lines = [
        "# Every merge method on the eight tasks",
        made_by("merge_rules.py", options.seed, time.perf_counter() - started),
        "Test accuracies; options and coefficients were chosen on validation samples.",
        caveat(results) or "",
        "`base` is the model without any task vector. Every task: results.csv; every candidate: "
        "choices.csv.",
        *(f"## {sheet.title}\n\n{markdown_table(sheet)}" for sheet in sheets),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    results.to_csv(options.out / "results.csv", index=False, float_format="%.6g")
    tables["scales"].to_csv(options.out / "choices.csv", index=False, float_format="%.6g")
    write_page(options.out, filter(None, lines))


if __name__ == "__main__":
    main(tyro.cli(Options))
