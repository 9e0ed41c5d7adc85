"""What figures 3 and 4 share: cosines of received task vectors under one scenario."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from study import (
    FAILS,
    HOLDS,
    OPEN,
    Users,
    caution,
    claimed,
    gap,
    load,
    made_by,
    sign,
    write_figure,
    write_page,
)

from rmtllmf_jax.report.intervals import Interval, interval
from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.report.vector_figures import DRAWN, cosine_figure, largest_cosine
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.sweep.cosines import cosine_rows
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.run import store_key
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.uplink import DEFAULT_C0_DB

RESULTS = Path(__file__).parent / "results"

CLAIMS = {
    "ideal": ("at most .24 as R-MTLLMF receives them", "freeze", -1.0, 0.24),
    "sum_rate": (".48 to .52 without protection", "none", 0.48, 0.52),
}
"""The paper's cosines between tasks: in words, what is done to the embeddings, least, largest."""


@dataclass(frozen=True)
class Options(Users):
    """What to run."""

    error_models: tuple[str, ...] = ("independent", "noisy_reference")
    """How the users' errors are correlated."""
    draws: int = 20
    """Channel realisations."""
    c0: float = DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """Three draws."""
    out: Path | None = None
    """Where tables and figures go; by default results/figure_3 or results/figure_4."""


def draw_figure(options: Options, number: int, scenario: str) -> None:
    """Compute the cosines under a scenario, and write tables, figures and the page."""
    started = time.perf_counter()
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    draws = 3 if options.quick else options.draws
    grid = Grid((inputs.tasks,), ("clean", scenario), ("none",), draws, 1)
    out = options.out or RESULTS / f"figure_{number}"
    out.mkdir(parents=True, exist_ok=True)
    found, pictures = [], []
    for model in options.error_models:
        settings = Settings(error_model=model, c0_db=options.c0, seed=options.seed)
        engine = Engine(inputs, settings, one_device())
        with CellStore(options.run / "sweep" / store_key(inputs, settings) / "cosines") as parts:
            rows = pd.DataFrame(cosine_rows(engine, grid, parts))
        if largest_cosine(rows[rows["scenario"] == scenario]) >= DRAWN:
            name = model.replace("=", "_")
            write_figure(out / name, cosine_figure(rows, scenario))
            pictures.append(f"![{model}]({name}.png)")
        found.append(rows)
    rows = pd.concat(found)
    rows.to_csv(out / "cosines.csv", index=False, float_format="%.6g")
    seconds = time.perf_counter() - started
    lines = [
        f"# Figure {number}: cosines of received task vectors, {scenario}",
        made_by(f"figure_{number}.py", options.seed, seconds),
        conclusion(rows, scenario),
        f"{draws} channel draws of the preset paper, {len(inputs.tasks)} users, c0 = "
        f"{options.c0:g} dB.",
        markdown_table(summary(rows)),
        *pictures,
    ]
    write_page(out, lines)


def summary(rows: pd.DataFrame) -> Sheet:
    """Return mean cosines between different tasks with intervals over draws, and their range."""
    pairs = rows[rows["task_a"] < rows["task_b"]]
    cells = []
    keys = ["scenario", "error_model", "protection"]
    for names, group in pairs.groupby(keys, sort=False):
        signs = f"{group['sign_agreement'].mean():.3f}"
        cells.append([*map(str, names), text(mean(group)), span(by_pair(group)), signs])
    header = ["scenario", "error model", "embeddings", "cosine", "by pair", "sign agreement"]
    title = "Between different tasks: mean with its 95 % interval over draws, least to largest pair"
    return Sheet(title, header, cells, names=3)


def conclusion(rows: pd.DataFrame, scenario: str) -> str:
    """Say under which error model the paper's cosines are found, and what reloading changes."""
    words, protection, least, most = CLAIMS[scenario]
    pairs = rows[rows["task_a"] < rows["task_b"]]
    sent = by_pair(pairs[(pairs["scenario"] == "clean") & (pairs["protection"] == "none")])
    received = pairs[pairs["scenario"] == scenario]
    found, moved = [], []
    for model, group in received.groupby("error_model", sort=False):
        own = group[group["protection"] == protection]
        every = by_pair(own)
        ends = {claimed(every[0], least, 1.0), claimed(every[-1], -1.0, most)}
        verdict = next(each for each in (FAILS, OPEN, HOLDS) if each in ends)
        found.append(
            f"with {model} errors that {verdict}: {text(mean(own))}, {span(every)} by pair"
        )
        on = ("draw", "seed", "task_a", "task_b")
        change = gap(group, "protection", "freeze", "none", *on, of="cosine")
        if sign(change, ".3f", 1.0):
            moved.append(f"{text(change, '+')} with {model} errors")
    told = f"changes their mean by {listed(moved)}" if moved else "changes no mean measurably"
    return (
        f"The paper has cosines between tasks of {words}; {'; '.join(found)}. As sent they are "
        f"{span(sent)}. Reloading the embeddings {told}.{caution([mean(received)], 'draws')}"
    )


def by_pair(pairs: pd.DataFrame) -> list[Interval]:
    """Return the mean cosine of each pair of tasks, the least first."""
    groups = pairs.groupby(["task_a", "task_b"])
    return sorted((mean(own) for _, own in groups), key=lambda found: found.mean)


def mean(pairs: pd.DataFrame) -> Interval:
    """Return the mean cosine with its interval over draws."""
    return interval(pairs, "cosine", ("draw",))


def text(found: Interval, sign: str = "") -> str:
    """Return a cosine as printed."""
    return found.text(".3f", sign, scale=1.0)


def span(pairs: list[Interval]) -> str:
    """Return the range of the pairs' means."""
    return f"{pairs[0].mean:z.3f} to {pairs[-1].mean:z.3f}"
