"""What each defence wins back under a worst-case attacker, at equal channel uses and energy.

    python experiments/defences.py --run runs/demo [--also runs/demo-1] [--quick]

R-MTLLMF repairs the model after fusion and asks for protection of the physical layer on top. Here
defences on the air, in the code and at the receiver act alone and together with its repair, under
the same channels and the same attacker, who knows the defence and answers it:

1. by number of tasks, under the sum-rate attack of the preset's budget, with channel uses per
   parameter (side information included), and the worst task beside the mean;
2. against the attacker's power: how many dB more he needs to bring a defence down to what R-MTLLMF
   keeps at the preset's budget, and to the control, which needs no uplink;
3. under every other attack of that budget.

Each sends as many symbols of unit power as parameters, or fewer. The rivals fuse nothing or have no
channel: the base model, the control, and the same repair of what was fused without noise.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure
from study import (
    Realigning,
    caution,
    grouped,
    made_by,
    opened_all,
    stands,
    sweep_all,
    write_figure,
    write_page,
)

from rmtllmf_jax.channel import PRESETS
from rmtllmf_jax.defences import parse_protection
from rmtllmf_jax.report.intervals import Interval, differences, interval
from rmtllmf_jax.report.labels import PROTECTIONS, SCENARIOS, UNFUSED, listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.report.style import add_legend, styles, tidy
from rmtllmf_jax.report.tables import cell_scores
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.sweep.axis import Axis
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.uplink import DEFAULT_C0_DB

REPAIR = "r-mtllmf"
REALIGN = "realign"
ATTACK = "sum_rate"
BUDGET = PRESETS["paper"].attack_budget_db
COSTS = 1.0
"""Points below which an attack is said to cost nothing."""
RIVALS = (*UNFUSED, "none", REALIGN, REPAIR)
"""What is shown without a channel, where only repairs act."""
NEAR = 2.0
"""Points within which `holistic` is asked to be of the same repair without a channel."""


@dataclass(frozen=True)
class Options(Realigning):
    """What to run."""

    defences: tuple[str, ...] = (
        "shrink",
        "singular_values",
        "reliability",
        "repeat(times=4)+sparse(share=0.15)",
        "hop(bands=8, shared=true)",
        "coded",
    )
    """Defences that are tried alone and before R-MTLLMF's repair."""
    attacks: tuple[str, ...] = (
        "ideal",
        "white_in_range",
        "strongest_user",
        "min_max_rate",
        "sum_mse",
    )
    """Attacks of the last table, besides the sum-rate attack."""
    levels: tuple[float, ...] = (0, 10, 20, 30, 40, 50)
    """The attacker's power over the noise of one antenna, in dB."""
    sizes: tuple[int, ...] = (2, 4, 6, 8)
    """Numbers of tasks."""
    combinations: int = 2
    """Combinations of each size."""
    draws: int = 20
    """Channel realisations."""
    repaired_draws: int = 8
    """Channel realisations where a model is realigned."""
    curve_sizes: tuple[int, ...] = (2, 8)
    """Numbers of tasks of the second and third part."""
    curve_draws: int = 5
    """Channel realisations of the second and third part."""
    c0: float = DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1."""
    eval_samples: int = 100
    """Test images per task; 0 is all."""
    validation_samples: int = 60
    """Validation images per task; 0 is all."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """Two defences, one combination of two tasks, one realisation, three levels."""
    out: Path = Path(__file__).parent / "results" / "defences"
    """Where tables and figures go."""

    def chosen(self) -> Options:
        """Return the options after `--quick`."""
        if not self.quick:
            return self
        return replace(
            self,
            defences=("shrink", "coded"),
            attacks=("ideal",),
            levels=(0, 20, 40),
            sizes=(2,),
            combinations=1,
            draws=1,
            repaired_draws=1,
            curve_sizes=(2,),
            curve_draws=1,
            eval_samples=50,
        )


def main(options: Options) -> None:
    """Sweep; write tables, figure and page."""
    started, options = time.perf_counter(), options.chosen()
    use_compilation_cache(options.cache_dir)
    runs = opened_all(options)
    settings = Settings(
        scale="validation",
        eval_samples=options.eval_samples,
        validation_samples=options.validation_samples,
        c0_db=options.c0,
        realign=options.realign(),
        control_learning_rate=options.control_learning_rate,
        seed=options.seed,
    )
    chosen = choose_combinations(runs[0].names, options.combinations, options.seed, options.sizes)
    alone = ("none", *options.defences)
    whole = settings.stages(parse_protection("holistic"))
    before = [
        pair
        for pair in (f"{each}+{REPAIR}" for each in options.defences)
        if settings.stages(parse_protection(pair)) != whole  # which has a row of its own
    ]
    repaired = (REALIGN, REPAIR, *before, "holistic")
    grid = Grid(
        chosen,
        ("clean", ATTACK),
        tuple(map(parse_protection, (*alone, *repaired))),
        options.draws,
        1,
        repaired_draws=options.repaired_draws,
    )
    several = replace(
        grid,
        combinations=tuple(each for each in chosen if len(each) in options.curve_sizes),
        scenarios=(ATTACK,),
        draws=options.curve_draws,
        repaired_draws=None,
        protections=tuple(map(parse_protection, ("none", REALIGN, REPAIR, "phy", "holistic"))),
    )
    powers = replace(several, axis=Axis("budget_db", options.levels))
    others = replace(several, scenarios=(ATTACK, *options.attacks))
    by_n, by_power, by_attack = (
        sweep_all(runs, settings, each)["results"] for each in (grid, powers, others)
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for name, results in (("by_n", by_n), ("by_power", by_power), ("by_attack", by_attack)):
        scores(results).to_csv(options.out / f"{name}.csv", index=False, float_format="%.6g")
    write_figure(options.out / "defences", figure(scores(by_power)))
    spent = time.perf_counter() - started
    lines = [
        "# Defences under a worst-case attacker",
        made_by("defences.py", options.seed, spent),
        *page(*map(scores, (by_n, by_power, by_attack))),
        "![Accuracy against the attacker's power](defences.png)",
    ]
    write_page(options.out, lines)


def scores(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell: `score` (mean over its tasks), `worst` (task), `uses` (mean)."""
    keys = ["combination", "scenario", "axis", "level", "draw", "seed", "protection"]
    worst = results.groupby(keys, dropna=False, as_index=False).agg(
        worst=("normalised", "min"), uses=("uses", "mean")
    )
    return cell_scores(results).merge(worst, on=keys, how="left")


def page(by_n: pd.DataFrame, by_power: pd.DataFrame, by_attack: pd.DataFrame) -> Iterator[str]:
    """Yield the paragraphs of the page."""
    yield conclusion(by_n)
    yield bought(by_power, by_attack)
    for sheet in (size_sheet(by_n), power_sheet(by_power), attack_sheet(by_attack)):
        yield f"## {sheet.title}\n\n{markdown_table(sheet)}"


def part(cells: pd.DataFrame, scenario: str, protection: str) -> pd.DataFrame:
    """Return the cells of a scenario and a protection."""
    return cells[(cells["scenario"] == scenario) & (cells["protection"] == protection)]


def against(
    cells: pd.DataFrame, one: tuple[str, str], other: tuple[str, str]
) -> dict[int, Interval]:
    """Return the difference between two (scenario, protection) by number of tasks, in pairs.

    Cells without a channel have one draw, and some one seed: a pair shares what both have.
    """
    first, second = part(cells, *one), part(cells, *other)
    on = ["combination"] + [
        name
        for name in ("draw", "seed")
        if second[name].nunique() > 1 and first[name].nunique() > 1
    ]
    pairs = differences(first, second, on)
    return {int(size): interval(own, "difference") for size, own in pairs.groupby("size")}


def conclusion(cells: pd.DataFrame) -> str:
    """Return what `holistic` reaches by number of tasks, and the best of the others."""
    here, attacked, whole = (ATTACK, "holistic"), (ATTACK, REPAIR), ("clean", REPAIR)
    ideal, gains, lost = (
        against(cells, *pair) for pair in ((here, whole), (here, attacked), (whole, attacked))
    )
    points = ", ".join(f"{found.text(sign='+')} at N = {n}" for n, found in ideal.items())
    near = [str(n) for n, found in ideal.items() if 100 * found.mean >= -NEAR]
    where = {0: "at no N", len(ideal): "at every N"}.get(len(near), f"at N = {listed(near or '-')}")
    shares = {n: gains[n].mean / lost[n].mean for n in gains if 100 * lost[n].mean > COSTS}
    won = [f"{100 * share:.0f} % (N = {n})" for n, share in shares.items()]
    said = [
        f"Under the sum-rate attack `holistic` is on average within {NEAR:g} points of the "
        f"same repair without any channel {where} ({points} points).",
        f"Of what the attack costs R-MTLLMF it wins back {listed(won)}."
        if won
        else "The attack costs R-MTLLMF nothing at this scale of the noise.",
    ]
    rivals = (
        ("the control", ("clean", "control")),
        ("the base model", ("clean", "base")),
        ("realignment alone", (ATTACK, REALIGN)),
        ("R-MTLLMF", attacked),
    )
    for name, rival in rivals:
        told = grouped(
            (
                f"{stands(each, 'beats', 'loses to', 'level')} {name} at N =",
                f"{n} ({each.text(sign='+')})",
            )
            for n, each in against(cells, here, rival).items()
        )
        said.append(f"It {told}.")
    alone, before = best(cells, repaired=False), best(cells, repaired=True)
    if alone and before:
        said.append(
            f"Of the other defences the best alone is {alone}, and before the repair {before} "
            "(means over N)."
        )
    return " ".join(filter(None, said)) + caution(
        [*ideal.values(), *gains.values()], "channel realisations"
    )


def best(cells: pd.DataFrame, *, repaired: bool) -> str | None:
    """Return the best defence but those of a code under the attack, with its mean over N; None if
    there is no other.
    """
    own = cells[(cells["scenario"] == ATTACK) & ~cells["protection"].isin((*RIVALS, "holistic"))]
    own = own[~own["protection"].str.contains("coded")]
    own = own[own["protection"].str.endswith(REPAIR) == repaired]
    if own.empty:
        return None
    by_size = own.groupby(["protection", "size"])["score"].mean().groupby("protection").mean()
    return f"`{by_size.idxmax()}` with {100 * by_size.max():.0f} %"


def size_sheet(cells: pd.DataFrame) -> Sheet:
    """Return accuracy, worst task and channel uses by number of tasks."""
    sizes = sorted(cells["size"].unique())
    rows = []
    kinds = list(dict.fromkeys(zip(cells["scenario"], cells["protection"], strict=True)))
    kinds = [kind for kind in kinds if kind[0] != "clean" or kind[1] in RIVALS]
    for scenario, protection in sorted(kinds, key=lambda kind: _order(cells, *kind)):
        own = part(cells, scenario, protection)
        row = [SCENARIOS.get(scenario, scenario), PROTECTIONS.get(protection, protection)]
        uses = own["uses"].mean()
        row.append("-" if np.isnan(uses) or uses == 0 else f"{uses:.2f}")
        for size in sizes:
            there = own[own["size"] == size]
            worst = there["worst"].mean()
            tail = "" if np.isnan(worst) else f", {100 * worst:.0f}"
            row.append(f"{interval(there).text()}{tail}")
        rows.append(row)
    header = ["scenario", "defence", "uses", *(f"N = {size}" for size in sizes)]
    return Sheet("Normalised accuracy (%), and that of the worst task", header, rows)


def _order(cells: pd.DataFrame, scenario: str, protection: str) -> tuple[bool, bool, float]:
    own = part(cells, scenario, protection)
    return (
        scenario != "clean",
        REPAIR in protection or protection in (REALIGN, "holistic"),
        own["score"].mean(),
    )


def curve(cells: pd.DataFrame, protection: str, size: int) -> pd.Series:
    """Return the mean accuracy of a number of tasks by the attacker's power."""
    own = part(cells, ATTACK, protection)
    return own[own["size"] == size].groupby("level")["score"].mean()


def power_of(line: pd.Series, accuracy: float) -> float:
    """Return the least power at which a line falls to an accuracy; infinite if it never does."""
    levels, values = line.index.to_numpy(float), line.to_numpy(float)
    below = np.flatnonzero(values <= accuracy)
    if not len(below):
        return np.inf
    at = int(below[0])
    if at == 0:
        return float(levels[0])
    share = (values[at - 1] - accuracy) / (values[at - 1] - values[at])
    return float(levels[at - 1] + share * (levels[at] - levels[at - 1]))


def more(line: pd.Series, accuracy: float) -> str:
    """Return how many dB over the preset's budget bring a defence down to an accuracy."""
    power = power_of(line, accuracy)
    if power <= BUDGET:
        return "no more"
    if np.isfinite(power):
        return f"{power - BUDGET:.0f} dB more"
    return f"more than {line.index.max() - BUDGET:.0f} dB more"


def bought(by_power: pd.DataFrame, by_attack: pd.DataFrame) -> str:
    """Return how many dB more the attacker needs against each defence, by number of tasks.

    Until it has the accuracy of R-MTLLMF at the preset's budget, and that of the control.
    """
    sizes = [int(size) for size in sorted(by_power["size"].unique())]
    attacked, control = (
        cells.groupby("size")["score"].mean()
        for cells in (part(by_attack, ATTACK, REPAIR), part(by_power, "clean", "control"))
    )
    lines = {
        (protection, n): curve(by_power, protection, n)
        for protection in (REPAIR, "phy", "holistic")
        for n in sizes
    }
    if all(100 * (lines[REPAIR, n].max() - attacked[n]) <= COSTS for n in sizes):
        return "At the preset's budget the attack costs R-MTLLMF nothing that could be bought back."
    rivals = {"R-MTLLMF at the preset's budget": attacked, "the control": control}
    kept = (
        f"{100 * attacked[n]:.0f} % at N = {n} (the control {100 * control[n]:.0f})" for n in sizes
    )
    draws = by_power["draw"].nunique()
    said = [
        f"At the preset's budget of {BUDGET:.1f} dB R-MTLLMF keeps {listed(kept)} on the "
        f"{draws} channel{'s' * (draws > 1)} of the next tables."
    ]
    for name, rival in rivals.items():
        needed = []
        for protection in ("phy", "holistic"):
            told = grouped(
                (f"{more(lines[protection, n], rival[n])} at N =", str(n)) for n in sizes
            )
            needed.append(f"against `{protection}` {told}")
        said.append(f"To bring a defence down to {name} the attacker needs {'; '.join(needed)}.")
    return " ".join(said)


def power_sheet(cells: pd.DataFrame) -> Sheet:
    """Return accuracy by number of tasks, defence and the attacker's power."""
    levels = sorted(cells.loc[cells["axis"] == "budget_db", "level"].unique())
    title = "Normalised accuracy (%) against the attacker's power"
    return by_defence(cells, title, "level", {level: f"{level:g} dB" for level in levels})


def attack_sheet(cells: pd.DataFrame) -> Sheet:
    """Return accuracy by number of tasks, defence and attack of the preset's budget."""
    attacks = dict.fromkeys(cells.loc[cells["scenario"] != "clean", "scenario"])
    title = "Normalised accuracy (%) under other attacks"
    return by_defence(
        cells, title, "scenario", {name: SCENARIOS.get(name, name) for name in attacks}
    )


def by_defence(cells: pd.DataFrame, title: str, column: str, values: dict[Any, str]) -> Sheet:
    """Return accuracy by number of tasks and defence, at the named values of a column.

    First the rivals without an uplink, to whom these make no difference.
    """
    rows = []
    for size, here in cells.groupby("size"):
        sent = here[here["scenario"] != "clean"]
        for name in (*UNFUSED, *dict.fromkeys(sent["protection"])):
            own = part(here, "clean", name) if name in UNFUSED else sent[sent["protection"] == name]
            at = [own if name in UNFUSED else own[own[column] == value] for value in values]
            label = PROTECTIONS.get(name, name)
            rows.append([str(size), label, *(interval(each).text() for each in at)])
    return Sheet(title, ["N", "defence", *values.values()], rows)


def figure(cells: pd.DataFrame) -> Figure:
    """Draw accuracy against the attacker's power, a panel for each number of tasks."""
    sizes = sorted(cells["size"].unique())
    drawn = Figure(figsize=(max(3.2 * len(sizes) + 1, 6.0), 4.0), layout="constrained")
    panels = np.atleast_1d(drawn.subplots(1, len(sizes), sharey=True))
    names = list(dict.fromkeys(cells.loc[cells["scenario"] == ATTACK, "protection"]))
    for panel, size in zip(panels, sizes, strict=True):
        here = cells[cells["size"] == size]
        for name, dashes in (("control", "--"), ("base", ":")):
            level = 100 * part(here, "clean", name)["score"].mean()
            panel.axhline(level, color="0.3", linestyle=dashes, label=PROTECTIONS[name])
        for name in names:
            colour, marker = styles(names)[name]
            own = part(here, ATTACK, name)
            found = {level: interval(rows) for level, rows in own.groupby("level")}
            levels = list(found)
            label = PROTECTIONS.get(name, name)
            means = [100 * each.mean for each in found.values()]
            panel.plot(levels, means, color=colour, marker=marker, label=label)
            low, high = ([100 * getattr(f, end) for f in found.values()] for end in ("low", "high"))
            panel.fill_between(levels, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.axvline(BUDGET, color="0.6", linewidth=0.8)
        panel.set_xlabel("Attacker's power (dB)")
        tidy(panel, f"{size} tasks")
    panels[0].set_ylim(0, 105)
    panels[0].set_ylabel("Average normalised accuracy (%)")
    add_legend(drawn, panels, min(3, len(sizes) + 1))
    return drawn


if __name__ == "__main__":
    main(tyro.cli(Options))
