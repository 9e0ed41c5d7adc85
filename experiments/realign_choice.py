"""The learning rate of realignment, chosen on validation samples: R-MTLLMF's and the control's.

    python experiments/realign_choice.py --run runs/vit-tiny --steps 60

Needs a run folder with fine-tuned users (`rmtllmf finetune`). For each candidate it transmits,
merges, reloads and realigns as R-MTLLMF does, and averages the normalised accuracy on *validation*
samples over combinations of two and four tasks under `ideal` and `sum_rate`; the test split plays
no part. The control, the base model realigned on the same shots, is a rival only at its own best
learning rate, so its accuracy is given too. In results/realign_choice/ are the demo's page and
vit-tiny.csv, of an earlier version, which fixed the defaults.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from study import Users, done, load, made_by, work_store, write_page

from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Combination, choose_combinations
from rmtllmf_jax.sweep.job import Job, finetuned_job
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.recipes import REALIGN
from rmtllmf_jax.uplink import DEFAULT_C0_DB

KINDS = (("ideal", "r-mtllmf"), ("sum_rate", "r-mtllmf"), ("clean", "control"))


@dataclass(frozen=True)
class Options(Users):
    """What to try."""

    learning_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4, 1e-3)
    """Peak learning rates."""
    steps: tuple[int, ...] = (REALIGN.steps,)
    """Realignment steps."""
    sizes: tuple[int, ...] = (2, 4)
    """Numbers of tasks."""
    combinations: int = 2
    """Combinations of each size."""
    scale: float = 0.3
    """Merging coefficient."""
    c0: float = DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1."""
    validation_samples: int = 100
    """Validation images per task; 0 is all."""
    seed: int = 0
    """Root of all random numbers."""
    out: Path = Path(__file__).parent / "results" / "realign_choice"
    """Where the table goes."""


def main(options: Options) -> None:
    """Print and save the table of candidates."""
    started = time.perf_counter()
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    chosen = choose_combinations(inputs.tasks, options.combinations, options.seed, options.sizes)
    rows = []
    meaning = {"chosen": chosen, "scale": options.scale, "c0": options.c0, "seed": options.seed}
    meaning |= {"samples": options.validation_samples}
    with work_store(options.run, "realign_choice", inputs, meaning) as parts:
        resumed = len(parts) > 0
        for steps in options.steps:
            for rate in options.learning_rates:
                settings = Settings(
                    realign=replace(REALIGN, steps=steps, learning_rate=rate),
                    validation_samples=options.validation_samples,
                    c0_db=options.c0,
                    seed=options.seed,
                )
                engine = Engine(inputs, settings, one_device())
                row: dict[str, float] = {"steps": steps, "learning_rate": rate}
                for kind in KINDS:
                    compute = partial(score, engine, chosen, kind, options.scale)
                    row[", ".join(kind)] = done(parts, f"{steps}/{rate}/{kind}", compute)
                rows.append(row)
    table = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "validation.csv", index=False, float_format="%.6g")
    cells = [
        [f"{row.pop('steps'):g}", f"{row.pop('learning_rate'):g}"]
        + [f"{100 * value:.1f}" for value in row.values()]
        for row in rows
    ]
    header = ["steps", "learning rate", *(", ".join(kind) for kind in KINDS)]
    lines = [
        "# The learning rate of realignment",
        made_by("realign_choice.py", options.seed, time.perf_counter() - started, resumed=resumed),
        conclusion(table),
        markdown_table(Sheet("Normalised validation accuracy (%)", header, cells)),
    ]
    write_page(options.out, lines)


def conclusion(table: pd.DataFrame) -> str:
    """Return the best candidate of each kind, and whether it is at an end of the rates tried."""
    rates, texts = table["learning_rate"], []
    for kind in KINDS:
        best = table.loc[table[", ".join(kind)].idxmax()]
        edge = best["learning_rate"] in (rates.min(), rates.max()) and rates.nunique() > 1
        texts.append(
            f"{best['learning_rate']:g} with {best['steps']:g} steps for {', '.join(kind)} "
            f"({100 * best[', '.join(kind)]:.1f} %{', the end of those tried' if edge else ''})"
        )
    return (
        f"The best learning rate is {listed(texts)}. Nothing is replicated: close candidates "
        "cannot be distinguished."
    )


def score(
    engine: Engine, combinations: tuple[Combination, ...], kind: tuple[str, str], scale: float
) -> float:
    """Return the mean normalised validation accuracy over the combinations."""
    scenario, protection = kind
    values = []
    for combination in combinations:
        cell = Cell(combination, scenario, 0, 0, protection)
        jobs = [Job(cell, scale, "validation")]
        jobs += [finetuned_job(task, "validation") for task in combination]
        found = {job: sums for chunk in engine.run(jobs) for job, sums in chunk}
        values += [
            found[jobs[0]][task][0] / sums[task][0]  # of as many images
            for job in jobs[1:]
            for task, sums in [(*job.cell.combination, found[job])]
        ]
    return float(np.mean(values))


if __name__ == "__main__":
    main(tyro.cli(Options))
