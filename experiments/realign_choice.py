"""The learning rate of realignment: chosen on validation samples, for two and four tasks.

Needs a run folder with fine-tuned users (`rmtllmf finetune`). For each candidate it transmits,
merges, reloads and realigns as R-MTLLMF does, and averages the normalised accuracy on *validation*
samples over four combinations under `ideal` and `sum_rate`; the test split plays no part. Takes
about four minutes on two cores for ViT-Ti/16 at 64 pixels.

    python experiments/realign_choice.py runs/vit-tiny

The result that fixed the default is in results/realign_choice.csv.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from study import Users, done, load, work_store

from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell
from rmtllmf_jax.sweep.job import Job, finetuned_job
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.recipes import REALIGN

COMBINATIONS = (
    ("mnist", "eurosat"),
    ("gtsrb", "sun397"),
    ("dtd", "mnist", "resisc45", "svhn"),
    ("eurosat", "gtsrb", "sun397", "svhn"),
)
CANDIDATES = {"steps": (60,), "learning_rate": (3e-5, 1e-4, 3e-4, 1e-3)}
SCALES = {2: 0.4, 4: 0.25}


def main(run: Path) -> None:
    """Print and save the table of candidates."""
    names = {task for combination in COMBINATIONS for task in combination}
    inputs = load(Users(run, tasks=tuple(names)))
    rows = []
    with work_store(run, "realign_choice", inputs, {}) as parts:
        for steps in CANDIDATES["steps"]:
            for learning_rate in CANDIDATES["learning_rate"]:
                recipe = replace(REALIGN, steps=int(steps), learning_rate=learning_rate)
                settings = Settings(realign=recipe, validation_samples=100)
                engine = Engine(inputs, settings, one_device())
                row = {"steps": steps, "learning_rate": learning_rate}
                for scenario in ("ideal", "sum_rate"):
                    name = f"{steps}/{learning_rate}/{scenario}"
                    row[scenario] = done(parts, name, partial(score, engine, scenario))
                rows.append(row)
                print(row, flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).parent / "results" / "realign_choice.csv", index=False)


def score(engine: Engine, scenario: str) -> float:
    """Return R-MTLLMF's mean normalised validation accuracy over the combinations."""
    values = []
    for combination in COMBINATIONS:
        cell = Cell(tuple(sorted(combination)), scenario, 0, 0, "r-mtllmf")
        jobs = [Job(cell, SCALES[len(combination)], "validation")]
        jobs += [finetuned_job(task, "validation") for task in combination]
        found = {job: sums for chunk in engine.run(jobs) for job, sums in chunk}
        values += [
            found[jobs[0]][task][0] / sums[task][0]  # of as many images
            for job in jobs[1:]
            for task, sums in [(*job.cell.combination, found[job])]
        ]
    return float(np.mean(values))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
