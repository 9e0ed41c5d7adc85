"""Users that fine-tune by LoRA, and send factors: accuracy against rank, airtime against rank.

    rmtllmf finetune --model clip-mini --source embedded ... --lora-rank 4 --out runs/lora-4
    python experiments/adapters.py --run runs/demo --lora runs/lora-2 runs/lora-4 [--quick]

Beside the users of a run that fine-tuned all parameters stand those of runs that trained low-rank
updates of the same model on the same tasks. All send over the same channels under the sum-rate
attack, at one channel use per parameter of the model or less:

* the update itself as an analogue vector, each parameter a symbol;
* its two factors (`adapter`), once, or repeated as often as the same airtime allows;
* the factors in bits, at the rate that the attack leaves (`coded`), in the same airtime.

The rivals merge nothing: the base model, and the control. Scores are over those of the full
fine-tuning, so that ranks can be compared. Written to results/adapters/: README.md, cells.csv, the
figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure
from study import Realigning, made_by, opened, stands, sweep, write_figure, write_page

from rmtllmf_jax.channel import Repeat
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.defences import protection_name
from rmtllmf_jax.report.intervals import Interval, differences, interval
from rmtllmf_jax.report.labels import UNFUSED
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.report.style import add_legend, styles, tidy
from rmtllmf_jax.report.tables import cell_scores
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.runs.run import Run
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.lora import Lora, lora_of
from rmtllmf_jax.uplink import DEFAULT_C0_DB, Adapter, Coded
from rmtllmf_jax.uplink.vectors import shapes_of

ATTACK = "sum_rate"
FULL = 0
"""The rank of a user that fine-tuned all parameters, in tables."""
VECTOR, VECTOR_IN_BITS = "vector", "vector, coded"
ONCE, REPEATED, BITS = "factors", "factors, repeated", "factors, coded"


@dataclass(frozen=True)
class Options(Realigning):
    """What to run."""

    lora: tuple[Path, ...] = ()
    """Run folders of `rmtllmf finetune --lora-rank`, of the same model and tasks."""
    sizes: tuple[int, ...] = (2, 8)
    """Numbers of tasks."""
    combinations: int = 2
    """Combinations of each size."""
    draws: int = 8
    """Channel realisations."""
    c0: float = DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1."""
    eval_samples: int = 100
    """Test images per task; 0 is all."""
    validation_samples: int = 60
    """Validation images per task; 0 is all."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """One combination of two tasks, one realisation, few images."""
    out: Path = Path(__file__).parent / "results" / "adapters"
    """Where table, figure and page go."""

    def chosen(self) -> Options:
        """Return the options after `--quick`.

        **Raises:** `InputError` without a run of LoRA users.
        """
        if not self.lora:
            raise InputError("--lora: name at least one run folder of users fine-tuned by LoRA.")
        if not self.quick:
            return self
        few = {"eval_samples": 30, "validation_samples": 20}
        return replace(self, sizes=(2,), combinations=1, draws=1, **few)


def trained_lora(run: Run) -> Lora:
    """Return the LoRA that a run's users trained.

    **Raises:** `InputError` if they did not all train the same.
    """
    found = {lora_of(user.recipe) for user in run.users.values()}
    lora = found.pop()
    if found or lora is None:
        raise InputError(
            f"{run.path}: its users did not all train a LoRA of the same rank and targets: name "
            "runs of `rmtllmf finetune --lora-rank`."
        )
    return lora


def ways(run: Run) -> dict[str, tuple]:
    """Return the protections by which the users of a run send, all within one use per parameter."""
    if lora_of(next(iter(run.users.values())).recipe) is None:
        return {VECTOR: (), VECTOR_IN_BITS: (Coded(),)}
    lora = trained_lora(run)
    once = Adapter(lora.rank, lora.targets)
    share = float(once.uses_of(np.ones(1, np.float32), shapes_of(run.vectors))[0])
    times = max(1, int(1 / share))
    return {
        VECTOR: (),
        ONCE: (once,),
        REPEATED: (once, Repeat(times)),
        BITS: (replace(once, carrier=Coded(uses=1 / share)),),
    }


def results_of(run: Run, options: Options) -> pd.DataFrame:
    """Return a run's results: a row per cell and task, with the `way` and the `rank`."""
    settings = Settings(
        scale="validation",
        eval_samples=options.eval_samples,
        validation_samples=options.validation_samples,
        c0_db=options.c0,
        realign=options.realign(),
        control_learning_rate=options.control_learning_rate,
        seed=options.seed,
    )
    chosen = choose_combinations(run.names, options.combinations, options.seed, options.sizes)
    by_name = ways(run)
    rank = FULL if VECTOR_IN_BITS in by_name else trained_lora(run).rank
    controls = ("control",) if rank == FULL else ()
    protections = (*by_name.values(), *controls)
    grid = Grid(chosen, ("clean", ATTACK), protections, options.draws, 1, repaired_draws=1)
    results = sweep(run.path, run.inputs(), settings, grid)["results"]
    names = {protection_name(values): way for way, values in by_name.items()}
    ways_of = results["protection"].map(names).fillna(results["protection"])
    return results.assign(way=ways_of, rank=rank)


def cells_of(results: pd.DataFrame, reference: pd.Series) -> pd.DataFrame:
    """Return one row per cell: `rank`, `way`, `uses`, and `score` over full fine-tuning.

    `reference`: accuracy of each task's model with all parameters fine-tuned.
    """
    tuned = results["task"].map(reference)
    results = results.assign(finetuned_score=tuned, normalised=results["score"] / tuned)
    keys = ["combination", "scenario", "axis", "level", "draw", "seed", "protection"]
    grouped = results.groupby(keys, dropna=False, as_index=False)
    uses = grouped.agg(uses=("uses", "mean"), way=("way", "first"))
    found = cell_scores(results).merge(uses, on=keys, how="left")
    found["way"] = found["way"].fillna(found["protection"])  # the base model has no row
    return found.assign(rank=results["rank"].iloc[0])


def finetuned_of(results: pd.DataFrame) -> pd.Series:
    """Return the accuracy of each task's own fine-tuned model."""
    return results.groupby("task")["finetuned_score"].first()


def own(cells: pd.DataFrame, rank: int, way: str, scenario: str = ATTACK) -> pd.DataFrame:
    """Return the cells of a rank, a way of sending and a scenario."""
    here = (cells["rank"] == rank) & (cells["way"] == way) & (cells["scenario"] == scenario)
    return cells[here]


def sheet(cells: pd.DataFrame, tuned: dict[int, pd.Series], reference: pd.Series) -> Sheet:
    """Return accuracy by rank and way of sending, with the channel uses, by number of tasks."""
    sizes = sorted(cells["size"].unique())
    rows = []
    for rank in sorted(cells["rank"].unique()):
        name = "all parameters" if rank == FULL else f"LoRA of rank {rank}"
        alone = float((tuned[rank] / reference).mean())
        of_rank = cells[cells["rank"] == rank]
        kinds = [("clean", VECTOR)]
        there = dict.fromkeys(of_rank["way"])
        kinds += [("clean", way) for way in UNFUSED if rank == FULL]
        kinds += [(ATTACK, way) for way in there if way not in UNFUSED]
        for scenario, way in kinds:
            part = own(cells, rank, way, scenario)
            uses = part["uses"].mean()
            row = [name, f"{100 * alone:.0f}", "no channel" if scenario == "clean" else "attacked"]
            row += [way, "-" if np.isnan(uses) or uses == 0 else f"{uses:.3f}"]
            row += [interval(part[part["size"] == size]).text() for size in sizes]
            rows.append(row)
    header = ["users", "own task", "channel", "sent", "uses", *(f"N = {size}" for size in sizes)]
    return Sheet("Accuracy over that of full fine-tuning (%)", header, rows)


def gap(cells: pd.DataFrame, one: tuple[int, str], other: tuple[int, str]) -> Interval:
    """Return the mean difference under the attack between two (rank, way), draw by draw."""
    pairs = differences(own(cells, *one), own(cells, *other), ["combination", "draw"])
    return interval(pairs, "difference")


def conclusion(cells: pd.DataFrame) -> str:
    """Say what the factors win over the vector at each rank, and over full vectors in a code."""
    said = []
    for rank in sorted(set(cells["rank"]) - {FULL}):
        words = []
        for way, rival in (
            (REPEATED, (rank, VECTOR)),
            (BITS, (rank, REPEATED)),
            (BITS, (FULL, VECTOR_IN_BITS)),
        ):
            found = gap(cells, (rank, way), rival)
            verb = stands(found, "beats", "loses to", "level")
            of = "" if rival[0] == rank else " of all parameters"
            words.append(f"`{way}` {verb} `{rival[1]}`{of} ({found.text(sign='+')} points)")
        said.append(f"Rank {rank}: {'; '.join(words)}.")
    return "Under the sum-rate attack, in the airtime of one use per parameter. " + " ".join(said)


def figure(cells: pd.DataFrame) -> Figure:
    """Draw accuracy under the attack against rank, a panel for each number of tasks."""
    sizes = sorted(cells["size"].unique())
    drawn = Figure(figsize=(3.2 * len(sizes) + 1, 4.0), layout="constrained")
    panels = np.atleast_1d(drawn.subplots(1, len(sizes), sharey=True))
    ranks = sorted(set(cells["rank"]) - {FULL})
    looks = {VECTOR: "none", ONCE: "r-mtllmf", REPEATED: "phy", BITS: "holistic"}
    levels = {"control": "--", "base": ":", VECTOR_IN_BITS: "-."}
    for panel, size in zip(panels, sizes, strict=True):
        here = cells[cells["size"] == size]
        for way, dashes in levels.items():
            scenario = "clean" if way in UNFUSED else ATTACK
            level = 100 * own(here, FULL, way, scenario)["score"].mean()
            label = way if way in UNFUSED else "all parameters, coded"
            panel.axhline(level, color="0.3", linestyle=dashes, label=label)
        for way, name in looks.items():
            colour, marker = styles(looks.values())[name]
            found = [interval(own(here, rank, way)) for rank in ranks]
            means = [100 * each.mean for each in found]
            panel.plot(ranks, means, color=colour, marker=marker, label=way)
            low, high = ([100 * getattr(each, end) for each in found] for end in ("low", "high"))
            panel.fill_between(ranks, low, high, color=colour, alpha=0.15, linewidth=0)
        panel.set_xscale("log", base=2)
        panel.set_xticks(ranks, [str(rank) for rank in ranks])
        panel.set_xlabel("Rank of the adapters")
        tidy(panel, f"{size} tasks")
    panels[0].set_ylim(0, 105)
    panels[0].set_ylabel("Accuracy over full fine-tuning (%)")
    add_legend(drawn, panels, 3)
    return drawn


def main(options: Options) -> None:
    """Sweep every run; write table, figure and page."""
    started, options = time.perf_counter(), options.chosen()
    use_compilation_cache(options.cache_dir)
    full = opened(options)
    runs = {FULL: full} | {
        trained_lora(run).rank: run
        for run in (opened(replace(options, run=path)) for path in options.lora)
    }
    for run in runs.values():
        if run.names != full.names:
            raise InputError(
                f"--lora {run.path}: its tasks are {', '.join(run.names)}, and those of "
                f"{full.path} are {', '.join(full.names)}."
            )
    results = {rank: results_of(run, options) for rank, run in runs.items()}
    tuned = {rank: finetuned_of(rows) for rank, rows in results.items()}
    cells = pd.concat([cells_of(rows, tuned[FULL]) for rows in results.values()], ignore_index=True)
    options.out.mkdir(parents=True, exist_ok=True)
    cells.to_csv(options.out / "cells.csv", index=False, float_format="%.6g")
    write_figure(options.out / "adapters", figure(cells))
    spent = time.perf_counter() - started
    write_page(options.out, page(cells, tuned, options, spent))


def page(
    cells: pd.DataFrame, tuned: dict[int, pd.Series], options: Options, seconds: float
) -> Iterator[str]:
    """Yield the paragraphs of the page."""
    yield "# Users that fine-tune by LoRA"
    yield made_by("adapters.py", options.seed, seconds)
    yield conclusion(cells)
    found = sheet(cells, tuned, tuned[FULL])
    yield f"## {found.title}\n\n{markdown_table(found)}"
    yield "![Accuracy against rank](adapters.png)"


if __name__ == "__main__":
    main(tyro.cli(Options))
