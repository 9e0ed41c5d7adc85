"""Figure 5: the ablation of R-MTLLMF: halves, samples per class, frozen leaves, realignment.

    python experiments/figure_5.py --run runs/demo [--quick | --full]

The paper: freezing alone or realignment alone is 21 to 53 points worse than both, and more than ten
samples per class bring little. Here all variants are measured on the same channels, noise and
shots: none, freeze, realign and r-mtllmf at ten samples per class; realign and r-mtllmf with 1 to
50; r-mtllmf with other leaves frozen (only class, position or patch embeddings, all LayerNorms),
other numbers of steps and learning rates. Tasks with a class that has fewer training images than
the largest number of samples are left out, and the page says which. Settings are compared on test
samples, as in the paper's figure; none is chosen by it (the defaults come from realign_choice.py).

A quarter of an hour on two busy cores for the demo's page: eight tasks, eight draws, two
fine-tunings, and neither other steps nor other learning rates. What fuses nothing stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from study import (
    Realigning,
    caution,
    claimed,
    grouped,
    informative,
    made_by,
    opened_all,
    sign,
    sweep_all,
    write_figure,
    write_page,
)

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.defences.repairs import EMBEDDINGS
from rmtllmf_jax.report.figures import figure_5
from rmtllmf_jax.report.intervals import PAIR, Interval, differences, interval
from rmtllmf_jax.report.labels import joined, listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.report.tables import cell_scores
from rmtllmf_jax.runs import Run
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.uplink import DEFAULT_C0_DB

HALVES = ("none", "freeze", "realign", "r-mtllmf")
FROZEN = {
    "class token": (r"embeddings/(cls_token|class_embedding)",),
    "position": (r"embeddings/position_embedding.*",),
    "patch": (r"embeddings/patch_embedding.*",),
    "embeddings and norms": (*EMBEDDINGS, r".*(layer_?norm|layrnorm).*"),
}
"""Leaves that r-mtllmf reloads from the base and freezes, in place of all embeddings."""

LOSS = 0.21, 0.53
"""How much worse one half alone is in the paper."""
LITTLE = 0.05
"""What "more samples bring little" is taken to mean at most."""


@dataclass(frozen=True)
class Options(Realigning):
    """What to run."""

    sizes: tuple[int, ...] = (4,)
    """Numbers of tasks."""
    combinations: int = 5
    """Combinations of each size."""
    scenarios: tuple[str, ...] = ("ideal", "sum_rate")
    """Channel scenarios."""
    draws: int = 5
    """Channel realisations."""
    shots: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    """Samples per class."""
    steps: tuple[int, ...] = (15, 30, 60, 120)
    """Realignment steps."""
    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    """Peak learning rates of realignment."""
    c0: float = DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1."""
    eval_samples: int = 200
    """Test images per task; 0 is all."""
    scale: str = "0.25"
    """Merging coefficient: a number or power-law."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """One combination, one draw, 50 images, fewer variants."""
    full: bool = False
    """Sizes 2 to 8, three draws, all test images."""
    out: Path = Path(__file__).parent / "results" / "figure_5"
    """Where tables and figures go."""

    def chosen(self) -> Options:
        """Return the options after `--quick` and `--full`."""
        if self.quick:
            few = {"shots": (1, 10), "steps": (60,), "learning_rates": (1e-4,)}
            return replace(self, combinations=1, draws=1, eval_samples=50, **few)
        if self.full:
            return replace(self, sizes=tuple(range(2, 9)), draws=3, eval_samples=0)
        return self


def variants(options: Options) -> Iterator[tuple[str, str, Settings, tuple[str, ...]]]:
    """Yield group, name of the variant (empty: the protection's), settings and protections."""
    settings = Settings(
        scale=options.scale,
        eval_samples=options.eval_samples,
        c0_db=options.c0,
        realign=options.realign(),
        control_learning_rate=options.control_learning_rate,
        seed=options.seed,
    )
    yield "halves", "", settings, HALVES
    for shots in options.shots:
        if shots != settings.shots:
            yield "shots", "", replace(settings, shots=shots), ("realign", "r-mtllmf")
    for name, patterns in FROZEN.items():
        yield "frozen", f"frozen: {name}", replace(settings, frozen=patterns), ("r-mtllmf",)
    for steps in options.steps:
        if steps != settings.realign.steps:
            recipe = replace(settings.realign, steps=steps)
            yield "steps", f"{steps} steps", replace(settings, realign=recipe), ("r-mtllmf",)
    for rate in options.learning_rates:
        if rate != settings.realign.learning_rate:
            recipe = replace(settings.realign, learning_rate=rate)
            yield "rates", f"rate {rate:g}", replace(settings, realign=recipe), ("r-mtllmf",)


def beside(unfused: pd.DataFrame, cells: pd.DataFrame, shots: int) -> pd.DataFrame:
    """Return the cells without an uplink once for every cell of the uplink, to make pairs."""
    found = []
    for name, on in (("base", ["combination"]), ("control", ["combination", "seed"])):
        own = unfused[unfused["protection"] == name]
        own = own.drop(columns=[each for each in PAIR if each not in on])
        own = own.merge(cells[PAIR].drop_duplicates(), on=on)
        found.append(own.assign(variant=name, shots=shots if name == "control" else 0))
    return pd.concat(found).assign(group="unfused")


def enough(run: Run, most: int) -> tuple[str, ...]:
    """Return the tasks in which every class has at least `most` training images."""
    return tuple(
        task.name
        for task in run.tasks
        if np.bincount(task.train.labels, minlength=len(task.classes)).min() >= most
    )


def main(options: Options) -> None:
    """Sweep variant by variant; write table, figure and page."""
    started, options = time.perf_counter(), options.chosen()
    use_compilation_cache(options.cache_dir)
    runs = opened_all(options)
    tasks = enough(runs[0], max(options.shots))
    left = sorted(set(runs[0].names) - set(tasks))
    if len(tasks) < min(options.sizes):
        raise InputError(
            f"{len(tasks)} tasks have {max(options.shots)} training images in every class, and "
            f"{min(options.sizes)} are to be merged: give fewer --shots or smaller --sizes."
        )
    combinations = choose_combinations(tasks, options.combinations, options.seed, options.sizes)
    found = []
    for group, name, settings, protections in variants(options):
        grid = Grid(combinations, options.scenarios, protections, options.draws, 1)
        without, results = informative(sweep_all(runs, settings, grid)["results"])
        cells = cell_scores(results)
        unfused = ~cells["protection"].isin(protections)  # base and control
        if group == "halves":
            found.append(beside(cells[unfused], cells[~unfused], settings.shots))
        cells = cells[~unfused].copy()
        realigned = cells["protection"].isin(["realign", "r-mtllmf"])
        cells["group"], cells["variant"] = group, name or cells["protection"]
        cells["shots"] = np.where(realigned, settings.shots, 0)
        found.append(cells)
    cells = pd.concat(found, ignore_index=True)
    options.out.mkdir(parents=True, exist_ok=True)
    cells.to_csv(options.out / "cells.csv", index=False, float_format="%.6g")
    drawn = cells[cells["group"].isin(["halves", "shots"])]
    many = f"{len(combinations)} combination{'s' * (len(combinations) > 1)}"
    sizes = f"{', '.join(map(str, options.sizes))} tasks"
    write_figure(options.out / "figure_5", figure_5(drawn, note=many))
    lines = [
        "# Figure 5: the ablation of R-MTLLMF",
        made_by("figure_5.py", options.seed, time.perf_counter() - started),
        conclusion(cells),
        f"{many} of {joined(sizes, without)}, "
        f"{options.draws} channel draws, {len(runs)} fine-tunings, c0 = {options.c0:g} dB, merging "
        f"coefficient {options.scale}"
        + (f"; left out for want of training images: {', '.join(left)}." if left else "."),
        markdown_table(summary(cells)),
        "![Halves, and samples per class](figure_5.png)",
    ]
    write_page(options.out, lines)


def conclusion(cells: pd.DataFrame) -> str:
    """Say what the paper claims of the halves and of samples per class, and which leaves matter."""
    halves = cells[cells["group"] == "halves"]
    usual = int(halves["shots"].max())
    shots = sorted(set(cells.loc[cells["variant"] == "r-mtllmf", "shots"]))
    whole = "r-mtllmf", usual
    said = []
    for what, half in (("Freezing", ("freeze", 0)), ("Realignment", ("realign", usual))):
        loss = lead(cells, whole, half)
        said.append(
            f"{what} alone is worse than both halves by {texts(loss)} points: that it is by 21 to "
            f"53 {verdict(loss, *LOSS)}."
        )
    for name, what, samples in (("base", "base model", 0), ("control", "control", usual)):
        if found := lead(cells, (name, samples), whole):
            said.append(
                f"Against both halves the {what}, which fuses nothing, has "
                f"{texts(found, '+')} points."
            )
    if usual < shots[-1]:
        more = lead(cells, ("r-mtllmf", shots[-1]), whole)
        said.append(
            f"{shots[-1]} samples per class instead of {usual} bring {texts(more, '+')} points: "
            f"that it is little, at most {100 * LITTLE:.0f}, {verdict(more, -1.0, LITTLE)}."
        )
    frozen = {
        (name, scenario): found
        for name in dict.fromkeys(cells.loc[cells["group"] == "frozen", "variant"])
        for scenario, found in lead(cells, (name, usual), whole).items()
    }
    few = caution(loss.values(), "combinations and draws")
    if frozen and not few:
        apart = [
            f"{found.text(sign='+')} ({name.removeprefix('frozen: ')}, {scenario})"
            for (name, scenario), found in frozen.items()
            if sign(found, ".0f")
        ]
        told = f"brings {listed(apart)} points" if apart else "makes no measurable difference"
        said.append(f"To freeze other leaves in place of the embeddings {told}.")
    return " ".join(said) + few


def lead(
    cells: pd.DataFrame, variant: tuple[str, int], other: tuple[str, int]
) -> dict[str, Interval]:
    """Return the difference between two variants (name, samples per class) by scenario."""
    one, two = (
        cells[(cells["variant"] == name) & (cells["shots"] == shots)]
        for name, shots in (variant, other)
    )
    pairs = differences(one, two, PAIR).groupby("scenario", sort=False)
    return {str(scenario): interval(own, "difference") for scenario, own in pairs}


def texts(found: dict[str, Interval], sign: str = "") -> str:
    """Return differences in points with their scenarios."""
    return listed(f"{each.text(sign=sign)} ({scenario})" for scenario, each in found.items())


def verdict(found: dict[str, Interval], least: float, most: float) -> str:
    """Return under which scenarios a claim holds."""
    return grouped(
        (f"{claimed(each, least, most)} under", scenario) for scenario, each in found.items()
    )


def summary(cells: pd.DataFrame) -> Sheet:
    """Return mean and paired difference to r-mtllmf of every variant, by scenario."""
    scenarios = list(dict.fromkeys(cells["scenario"]))
    whole = cells[(cells["group"] == "halves") & (cells["variant"] == "r-mtllmf")]
    gaps = differences(cells, whole, PAIR)
    rows = []
    for (variant, shots), own in gaps.groupby(["variant", "shots"], sort=False):
        by_scenario = [own[own["scenario"] == scenario] for scenario in scenarios]
        texts = [interval(group).text() for group in by_scenario]
        itself = (variant, shots) == ("r-mtllmf", whole["shots"].iloc[0])
        gains = (interval(group, "difference").text(sign="+") for group in by_scenario)
        texts += ["-" if itself else gain for gain in gains]
        rows.append([str(variant), str(shots), *texts])
    title = (
        "Average normalised accuracy (%) and difference to r-mtllmf in pairs (points), 95 % "
        "intervals over combinations and draws"
    )
    columns = [*scenarios, *(f"{scenario}, difference" for scenario in scenarios)]
    return Sheet(title, ["variant", "samples per class", *columns], rows)


if __name__ == "__main__":
    main(tyro.cli(Options))
