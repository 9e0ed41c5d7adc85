"""What figures 3 and 4 share: cosines of received task vectors under one scenario."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from study import Users, load, made_by, write_figure, write_page

from rmtllmf_jax.report.sheets import Sheet, markdown_table
from rmtllmf_jax.report.vector_figures import cosine_figure
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.sweep.cosines import cosine_rows
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.run import store_key
from rmtllmf_jax.sweep.settings import Settings

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options(Users):
    """What to run."""

    error_models: tuple[str, ...] = ("independent", "noisy_reference")
    """How the users' errors are correlated."""
    draws: int = 20
    """Channel realisations."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """Three draws."""


def draw_figure(options: Options, number: int, scenario: str) -> None:
    """Compute the cosines under a scenario, and write tables, figures and the page."""
    started = time.perf_counter()
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    draws = 3 if options.quick else options.draws
    grid = Grid((inputs.tasks,), ("clean", scenario), ("none",), draws, 1)
    out = RESULTS / f"figure_{number}"
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for model in options.error_models:
        settings = Settings(error_model=model, seed=options.seed)
        engine = Engine(inputs, settings, one_device())
        with CellStore(options.run / "sweep" / store_key(inputs, settings) / "cosines") as parts:
            rows = pd.DataFrame(cosine_rows(engine, grid, parts))
        write_figure(out / model.replace("=", "_"), cosine_figure(rows, scenario))
        found.append(rows)
    rows = pd.concat(found)
    rows.to_csv(out / "cosines.csv", index=False, float_format="%.6g")
    seconds = time.perf_counter() - started
    lines = [
        f"# Figure {number}: cosines of received task vectors, {scenario}",
        made_by(f"figure_{number}.py", options.seed, seconds),
        f"{draws} channel draws of the preset paper, {len(inputs.tasks)} users.",
        markdown_table(summary(rows)),
        *(f"![{model}]({model.replace('=', '_')}.png)" for model in options.error_models),
    ]
    write_page(out, lines)


def summary(rows: pd.DataFrame) -> Sheet:
    """Return mean and range, over pairs and draws, of the cosines between received task vectors."""
    pairs = rows[rows["task_a"] < rows["task_b"]]
    cells = []
    keys = ["scenario", "error_model", "protection"]
    for (scenario, model, protection), group in pairs.groupby(keys, sort=False):
        cosine, signs = group["cosine"], group["sign_agreement"]
        cells.append(
            [
                str(scenario),
                str(model),
                str(protection),
                f"{cosine.mean():.3f} ± {cosine.std():.3f}",
                f"{cosine.min():.3f} to {cosine.max():.3f}",
                f"{signs.mean():.3f}",
            ]
        )
    header = ["scenario", "error model", "embeddings", "cosine", "from, to", "sign agreement"]
    return Sheet("Between different tasks, over pairs and draws", header, cells)
