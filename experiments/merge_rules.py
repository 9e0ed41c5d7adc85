"""Which merge method is best, and do layer-wise weights help?

    python experiments/merge_rules.py --run runs/demo [--also runs/demo-1]

needs a run folder with the fine-tuned models of all tasks (`rmtllmf finetune`): a sweep without a
channel over 2, 4 and 8 tasks and every merge method. For each fine-tuning and number of tasks,
options and coefficient of a method are those with the highest average normalised accuracy on
*validation* samples, over the same combinations that are then tested; the test split plays no part
in the choice. The rivals merge nothing: the base model, and the control, that model realigned on a
few images of each class at a learning rate of its own. Some methods see more than task vectors:
AdaMerging the test images that are evaluated, without their labels (its own protocol), Fisher
merging and RegMean a few training images of each task. LATA's reference is the mean of the other
tasks' vectors.

Written to results/merge_rules/: README.md (averages with and without tasks that fine-tuning did not
teach), results.csv (every task's test accuracy), choices.csv (every candidate's validation score,
the mean over fine-tunings). The page is of the demo's models, with one setting of AdaMerging, each
cell of which learns for a hundred steps, and without the ramps and the robust methods. SLERP is of
two models and left out. The choice on so few validation images is noisy: neighbouring coefficients
may change places.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import tyro
from study import (
    Realigning,
    at_the_ends,
    grouped,
    made_by,
    opened_all,
    short,
    stands,
    sweep_all,
    write_page,
)

from rmtllmf_jax import fusion
from rmtllmf_jax.fusion.rules import OneOf
from rmtllmf_jax.report.intervals import differences, interval
from rmtllmf_jax.report.labels import UNFUSED
from rmtllmf_jax.report.sheet import Sheet, markdown_table
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
    *("median", "trimmed_mean", "clipped_norm"),
    *("dare(drop=[0.5, 0.9])", "dare_ties(drop=[0.5, 0.9])"),
    *(f"lata(weighting={kind}, granularity=[block, tensor])" for kind in ("linear", "logarithmic")),
    "lata(weighting=threshold, sigma=[0.0, 0.1, 0.2])",
    *(
        f"adamerging(granularity={kind}, initial=[0.1, 0.2, 0.3, 0.6], learning_rate=0.01)"
        for kind in ("task", "tensor")
    ),
    *("breadcrumbs(density=[0.5, 0.9])", "della(density=[0.5, 0.8])"),
    *("della_linear(density=[0.5, 0.8])", "consensus_ta(ratio=[0.2, 0.4, 0.6])"),
    *("multi_slerp", "model_stock", "tsv_merge"),
    *("fisher(floor=[1e-10, 1e-8, 1e-6])", "regmean(off_diagonal=[0.1, 0.5, 0.9])", "ramp"),
)
RAMPS = OneOf(tuple(Ramp(*e) for e in ((0.0, 1.0), (1.0, 0.0), (0.5, 1.0), (1.0, 0.5))), "ramp")


SEEING = ("adamerging", "fisher", "regmean")
"""Rules that see images; all others see task vectors alone."""
LAYER_WISE = ("lata", "adamerging", "ramp")
"""Rules with a weight for each layer; AdaMerging unless its granularity is the task."""
SHARED = ["combination", "seed"]
"""What two scores share that are compared; both are replicated."""


@dataclass(frozen=True)
class Options(Realigning):
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


def scored(results: pd.DataFrame) -> pd.DataFrame:
    """Return the average normalised accuracy (`score`) of every rule, combination and seed.

    First the base model and the control, if it is there; by `rule`, `size`, and the `method` and
    `scale` that were chosen for it.
    """
    base = results.drop_duplicates([*SHARED, "task"]).assign(protection="base")
    base["normalised"] = base["base_score"] / base["finetuned_score"]
    control, merged = (
        results[results["protection"] == name].copy() for name in ("control", "none")
    )
    unmerged = pd.concat([base, control]).assign(method="", scale=0.0)
    unmerged["rule"] = unmerged["protection"]
    keys = ["rule", "size", "method", "scale", *SHARED]
    groups = pd.concat([unmerged, merged]).groupby(keys, sort=False)
    return groups["normalised"].mean().rename("score").reset_index()


def by_rule(results: pd.DataFrame, title: str) -> Sheet:
    """Return means with intervals over combinations and seeds, a row a rule and a column a size."""
    sizes = sorted(results["size"].unique())
    rows = []
    for rule, own in scored(results).groupby("rule", sort=False):
        used = [] if rule in UNFUSED else [f"N = {n}: {chosen(own, n)}" for n in sizes]
        cells = [interval(own[own["size"] == size]).text() for size in sizes]
        rows.append([str(rule), "; ".join(used), *cells])
    return Sheet(title, ["rule", "method chosen", *(f"N = {size}" for size in sizes)], rows)


def chosen(scores: pd.DataFrame, size: int) -> str:
    """Return what was chosen for a number of tasks, by fine-tuning if that differs."""
    there = scores[scores["size"] == size]
    found = (f"{method} scale={scale:g}" for method, scale in zip(there["method"], there["scale"]))
    return " or ".join(dict.fromkeys(found))


def conclusion(results: pd.DataFrame) -> str:
    """Say by number of tasks which method is best, and what layer-wise weights bring."""
    scores = scored(results)
    known = list(dict.fromkeys(scores["rule"]))
    unmerged = [rule for rule in known if rule in UNFUSED]
    rules = [rule for rule in known if rule not in UNFUSED]
    alone = [rule for rule in rules if not rule.startswith(SEEING)]
    layers = [
        rule for rule in rules if rule.startswith(LAYER_WISE) and "granularity=task" not in rule
    ]
    plain = [rule for rule in rules if rule == "task_arithmetic"]
    seeing = [rule for rule in rules if rule not in alone]
    questions = (
        ("The best method and the next", rules, rules),
        ("The best method and the best of what merges nothing", rules, unmerged),
        ("The best of those that see task vectors alone, and of the others", alone, seeing),
        ("The best layer-wise weights and task arithmetic", layers, plain),
    )
    return " ".join(
        f"{question}: {compared(scores, ours, theirs)}."
        for question, ours, theirs in questions
        if ours and set(theirs) - {ours[0]}
    )


def compared(scores: pd.DataFrame, ours: list[str], theirs: list[str]) -> str:
    """Compare by number of tasks the best of some rules with the best of others."""
    clauses = []
    for size, at in scores.groupby("size"):
        means = at.groupby("rule")["score"].mean()
        one = means[ours].idxmax()
        other = means[[rule for rule in theirs if rule != one]].idxmax()
        pairs = differences(*(at[at["rule"] == name] for name in (one, other)), SHARED)
        lead = interval(pairs, "difference")
        verb = stands(lead, "beats", "is worse than", "replicate", ".0f")
        told = f"{short(one)} {verb} {short(other)} at N ="
        clauses.append((told, f"{size} ({lead.text(sign='+')} points)"))
    return grouped(clauses)


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
    runs = opened_all(options)
    names = runs[0].names
    combinations = choose_combinations(names, options.combinations, options.seed, options.sizes)
    grid = Grid(combinations, ("clean",), ("none",), 1, 1, rules)
    tables = sweep_all(runs, settings, grid)
    realigned = replace(
        settings,
        scale="power-law",  # of no merge
        realign=options.realign(),
        control_learning_rate=options.control_learning_rate,
    )
    alone = replace(grid, protections=("control",), rules=(fusion.TaskArithmetic(),))
    results = pd.concat([tables["results"], sweep_all(runs, realigned, alone)["results"]])
    title = "Average normalised accuracy (%), 95 % intervals over combinations"
    title += " and fine-tunings" * (len(runs) > 1)
    given = versions(results)
    sheets = [
        by_rule(rows, f"{title}, {without}" if without else title)
        for without, rows in given.items()
    ]
    without, informative = list(given.items())[-1]
    lead = f"{without.replace('without', 'Without', 1)}: " if without else ""
    lines = [
        f"# Merge methods on {len(names)} tasks",
        made_by("merge_rules.py", options.seed, time.perf_counter() - started),
        lead + conclusion(informative),
        "Test accuracies; options and coefficients were chosen on validation samples. "
        + at_the_ends(tables),
        caveat(results) or "",
        "`base` is the model without any task vector, `control` that model realigned on "
        f"{settings.shots} images per class. Every task: results.csv; every candidate: "
        "choices.csv.",
        *(f"## {sheet.title}\n\n{markdown_table(sheet)}" for sheet in sheets),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    results.to_csv(options.out / "results.csv", index=False, float_format="%.6g")
    tables["scales"].to_csv(options.out / "choices.csv", index=False, float_format="%.6g")
    write_page(options.out, filter(None, lines))


if __name__ == "__main__":
    main(tyro.cli(Options))
