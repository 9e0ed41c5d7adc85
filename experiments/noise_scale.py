"""Is there one noise scale c0 at which all six accuracies of the paper hold at once?

    python experiments/noise_scale.py --run runs/demo [--quick]

R-MTLLMF prints accuracies relative to fine-tuning: 91.2 % without noise; unprotected 36.3 under
thermal noise and 4 to 6 under either attack; R-MTLLMF 89.1, 54.8 (sum rate) and 53.3 (strongest
user). How large the error of a parameter is for a given MSE of the uplink it does not say: c0, the
SNR in the parameters of a user whose MSE is 1. The value of -31 dB fits the SNRs that the paper
prints, not its accuracies. Here c0 is swept, with the same channels and the same noise at every
level, and for each the largest distance of the six accuracies to the paper's is given, next to
realignment alone and to the base model and the control, which need no uplink. The control, the base
model realigned on the same images, is also what R-MTLLMF is compared with: down to which c0 it is
worth sending anything.

Means over combinations of 2, 4, 6 and 8 tasks and over channel realisations, at the coefficient
that is best without noise. An hour on two cores, or a third of it with `--sizes 8` and one
fine-tuning, as on the page in results/noise_scale/.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure
from study import (
    Realigning,
    informative,
    made_by,
    opened_all,
    stands,
    sweep_all,
    write_figure,
    write_page,
)

from rmtllmf_jax.report.intervals import Interval, differences, interval
from rmtllmf_jax.report.labels import PROTECTIONS, SCENARIOS, joined, listed
from rmtllmf_jax.report.paper import ACCURACIES
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.report.style import add_legend, styles, tidy
from rmtllmf_jax.report.tables import cell_scores, summary
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.sweep.axis import Axis
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.settings import Settings

PAPER = {
    kind: float(np.mean([float(each) for each in printed.split("-")])) / 100
    for kind, printed in ACCURACIES.items()
    if kind[0] != "clean"
}
"""The paper's six accuracies relative to fine-tuning; 4 to 6 % is taken as 5."""


@dataclass(frozen=True)
class Options(Realigning):
    """What to run."""

    levels: tuple[float, ...] = (-20, -25, -28, -29, -30, -31, -34, -37, -40, -45, -50, -60)
    """Values of c0 in dB."""
    protections: tuple[str, ...] = ("none", "realign", "r-mtllmf")
    """Protections; `none` and `r-mtllmf` are needed."""
    sizes: tuple[int, ...] = (2, 4, 6, 8)
    """Numbers of tasks."""
    combinations: int = 2
    """Combinations of each size."""
    draws: int = 20
    """Channel realisations."""
    repaired_draws: int = 8
    """Channel realisations of R-MTLLMF."""
    eval_samples: int = 100
    """Test images per task; 0 is all."""
    validation_samples: int = 60
    """Validation images per task; 0 is all."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """Three levels, one combination of two and of all tasks, one realisation."""
    out: Path = Path(__file__).parent / "results" / "noise_scale"
    """Where tables and figures go."""


def main(options: Options) -> None:
    """Sweep; write table, figure and page."""
    started = time.perf_counter()
    use_compilation_cache(options.cache_dir)
    runs = opened_all(options)
    tasks = runs[0].names
    quick = options.quick
    settings = Settings(
        scale="validation",
        eval_samples=50 if quick else options.eval_samples,
        validation_samples=options.validation_samples,
        realign=options.realign(),
        control_learning_rate=options.control_learning_rate,
        seed=options.seed,
    )
    sizes = (2, len(tasks)) if quick else options.sizes
    combinations = 1 if quick else options.combinations
    grid = Grid(
        choose_combinations(tasks, combinations, options.seed, sizes),
        ("clean", "ideal", "strongest_user", "sum_rate"),
        options.protections,
        1 if quick else options.draws,
        1,
        repaired_draws=1 if quick else min(options.repaired_draws, options.draws),
        axis=Axis("c0_db", (-20.0, -40.0, -60.0) if quick else options.levels),
    )
    without, results = informative(sweep_all(runs, settings, grid)["results"])
    options.out.mkdir(parents=True, exist_ok=True)
    cells = cell_scores(results)
    cells.to_csv(options.out / "cells.csv", index=False, float_format="%.6g")
    table = summary(results)
    write_figure(options.out / "noise_scale", figure(table))
    numbers = f"{', '.join(map(str, sizes))} tasks"
    lines = [
        "# The noise scale c0 and the paper's six accuracies",
        made_by("noise_scale.py", options.seed, time.perf_counter() - started),
        f"{conclusion(table)} {rivalry(cells)}",
        f"{len(grid.combinations)} combination{'s' * (len(grid.combinations) > 1)} of "
        f"{joined(numbers, without)}, "
        f"{grid.draws} channel realisations ({grid.repaired_draws} where a model is realigned), "
        f"{len(runs)} fine-tuning seed{'s' * (len(runs) > 1)}. Accuracies are means; leads have "
        f"95 % intervals over combinations, realisations and seeds. {unsent(table)}",
        markdown_table(sheet(table)),
        "![Accuracy by noise scale](noise_scale.png)",
    ]
    write_page(options.out, lines)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean accuracy by level, a column for each (scenario, protection)."""
    noisy = table[table["axis"] == "c0_db"]
    return noisy.pivot(index="level", columns=["scenario", "protection"], values="mean")


def distances(table: pd.DataFrame) -> pd.DataFrame:
    """Return the difference to the paper's accuracies by level, a column for each of the six."""
    means = wide(table)
    return pd.DataFrame({kind: means[kind] - printed for kind, printed in PAPER.items()})


def conclusion(table: pd.DataFrame) -> str:
    """Return what the six accuracies say about c0."""
    apart = distances(table)
    worst = apart.abs().max(axis=1)
    level = float(worst.idxmin())
    (scenario, protection) = apart.loc[level].abs().idxmax()
    near = (apart.abs() <= 0.1).sum(axis=1)
    return (
        f"The six accuracies are nearest to the paper's at c0 = {level:g} dB, and there "
        f"{PROTECTIONS[protection]} under {SCENARIOS[scenario]} is "
        f"{100 * apart.loc[level][(scenario, protection)]:+.0f} points off. "
        + (
            "All six are within ten points."
            if worst.min() <= 0.1
            else f"No c0 brings all six within ten points: {near.max()} of them at most, at "
            f"{', '.join(f'{each:g}' for each in near.index[near == near.max()])} dB."
        )
    )


def leads(cells: pd.DataFrame) -> dict[float, dict[tuple[str, int], Interval]]:
    """Return R-MTLLMF's lead over the control by level, attack and number of tasks."""
    noisy = cells[(cells["axis"] == "c0_db") & (cells["protection"] == "r-mtllmf")]
    control = cells[cells["protection"] == "control"]
    pairs = differences(noisy, control, ["combination", "seed"])
    pairs = pairs[pairs["scenario"] != "ideal"]
    found: dict[float, dict[tuple[str, int], Interval]] = {}
    for (level, scenario, size), own in pairs.groupby(["level", "scenario", "size"]):
        found.setdefault(level, {})[scenario, size] = interval(own, "difference")
    return dict(sorted(found.items(), reverse=True))


def rivalry(cells: pd.DataFrame) -> str:
    """Say down to which c0 R-MTLLMF beats the control, and from which one it loses to it.

    At each level it is judged under the attack, and at the N, where it leads least.
    """
    sides, clauses = [], []
    for level, by_kind in leads(cells).items():
        (scenario, size), least = min(by_kind.items(), key=lambda each: each[1].mean)
        sides.append(least.side(".1f"))
        clauses.append(
            f"{stands(least, 'beats', 'loses to', 'level')} the control at c0 = {level:g} dB "
            f"({least.text('.1f', '+')} points, {SCENARIOS[scenario]}, N = {size})"
        )
    beaten = len(list(takewhile(lambda side: side == 1, sides)))
    end = sides.index(-1) + 1 if -1 in sides else len(sides)
    told = listed(clauses[max(beaten - 1, 0) : end])
    return f"Where it leads least under the attacks, R-MTLLMF {told}."


def unsent(table: pd.DataFrame) -> str:
    """Say what needs no uplink."""
    clean = 100 * table[table["scenario"] == "clean"].groupby("protection")["mean"].mean()
    return (
        f"Without an uplink the base model has {clean['base']:.0f} %, the control "
        f"{clean['control']:.0f} % and the tasks merged {clean['none']:.0f} %."
    )


def sheet(table: pd.DataFrame) -> Sheet:
    """Return all accuracies by c0, the paper's first."""
    means, apart = wide(table), distances(table)
    kinds = list(means.columns)
    header = ["c0 (dB)", *(f"{scenario}, {protection}" for scenario, protection in kinds), "worst"]
    printed = [f"{100 * PAPER[kind]:.0f}" if kind in PAPER else "-" for kind in kinds]
    rows = [["paper", *printed, "-"]]
    for level, row in means.iterrows():
        values = [f"{100 * row[kind]:.0f}" for kind in kinds]
        rows.append([f"{level:g}", *values, f"{100 * apart.loc[level].abs().max():.0f}"])
    return Sheet("Normalised accuracy (%), and points off the paper", header, rows, names=1)


def figure(table: pd.DataFrame) -> Figure:
    """Draw the accuracy against c0, a panel for each scenario; crosses are the paper's."""
    means = 100 * wide(table)
    drawn = Figure(figsize=(10.5, 4.2), layout="constrained")
    scenarios = list(dict.fromkeys(scenario for scenario, _ in means.columns))
    panels = drawn.subplots(1, len(scenarios), sharey=True)
    clean = table[table["axis"] == ""].set_index(["scenario", "protection"])["mean"]
    lines = (("none", "clean", "-."), ("control", "clean", "--"), ("base", "clean", ":"))
    for panel, scenario in zip(panels, scenarios, strict=True):
        for protection, where, dashes in lines:
            label = "Merged without noise" if protection == "none" else PROTECTIONS[protection]
            panel.axhline(
                100 * clean[where, protection], color="0.3", linestyle=dashes, label=label
            )
        for protection in means[scenario]:
            colour, marker = styles(())[protection]
            look = {"color": colour, "marker": marker, "label": PROTECTIONS[protection]}
            panel.plot(means.index, means[scenario, protection], **look)
            if (scenario, protection) in PAPER:
                printed = 100 * PAPER[scenario, protection]
                panel.axhspan(printed - 2, printed + 2, color=colour, alpha=0.2, linewidth=0)
        panel.invert_xaxis()
        panel.set_xlabel("c0 (dB): more noise to the right")
        tidy(panel, SCENARIOS[scenario])
    panels[0].set_ylim(0, 105)
    panels[0].set_ylabel("Average normalised accuracy (%)")
    add_legend(drawn, panels, 6)
    drawn.suptitle(
        "Shaded: the accuracies that the paper prints (R-MTLLMF, unprotected)", fontsize=10
    )
    return drawn


if __name__ == "__main__":
    main(tyro.cli(Options))
