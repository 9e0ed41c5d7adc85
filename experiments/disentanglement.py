"""Does the noise of the uplink make fused tasks interfere? Weight disentanglement error.

    python experiments/disentanglement.py --run runs/demo

needs a run folder with the fine-tuned models of all tasks (`rmtllmf finetune`). R-MTLLMF's eqs. (7)
and (8): the fraction of test samples whose class differs between base + a tau_i, task vector as
sent, and the merged model, task vectors as received. For a few pairs as a heat map over both
scales; for two and more tasks as a number, at the merging coefficient for their number (a is the
same). The noise is the sweep's own: draw k has the channel, and the noise of seed 0, of a `rmtllmf
sweep` with the same tasks, `--seed`, `--preset` and `--c0`, so the results can be compared. User q
of the channel sends the q-th task in alphabetical order.

Written to results/disentanglement/: README.md, pairs.csv (every point of the heat maps),
combinations.csv (every task's term), pairs and sizes as PNG and SVG. Finished work is kept in the
run folder, so that a killed run resumes. `--quick` takes minutes: a coarse map of one pair, two
combinations per size, 50 samples per task, one draw.

In the maps, the blue cross and diagonal are of tasks that do not interfere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro
from figures_disentanglement import by_size, cells, pairs_figure, sizes_figure
from study import (
    Users,
    done,
    load,
    made_by,
    sign,
    work_store,
    write_figure,
    write_page,
)

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.common.errors import InputError, require_at_least, require_known
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.evaluation.disentanglement import (
    get_distance,
    pair_wde,
    single_outputs,
    task_samples,
    wde_terms,
)
from rmtllmf_jax.report.intervals import FEW, Interval, differences, interval
from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.runs.environment import use_compilation_cache
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.grid import Cell, Combination, choose_combinations
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.samples import evaluation_sets
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.sweep.uplinks import Uplinks
from rmtllmf_jax.uplink import Scenario

_QUICK = {"points": 5, "samples": 50, "draws": 1, "combinations": 2, "pair_count": 1}


@dataclass(frozen=True)
class Options(Users):
    """What to run."""

    pairs: tuple[str, ...] = ()
    """Pairs with a heat map, as TASK+TASK; by default --pair-count random ones."""
    pair_count: int = 3
    """Number of random pairs if none is named, drawn so that tasks occur about equally often."""
    points: int = 9
    """Scales per side of a heat map."""
    lowest: float = -2.0
    """Smallest scale of a heat map."""
    highest: float = 2.0
    """Largest scale of a heat map."""
    combinations: int = 5
    """Combinations of each number of tasks, drawn likewise; 0 is all."""
    scale: str = "power-law"
    """Merging coefficient of combinations: a rule of `fusion.SCALES`, or a number."""
    scenarios: tuple[str, ...] = ("clean", "ideal", "strongest_user", "sum_rate")
    """Scenarios of the channel; clean has no noise."""
    draws: int = 2
    """Draws of channel and noise."""
    distance: str = "disagreement"
    """Share of samples that change class (disagreement), or KL(single || merged) in nats (kl)."""
    samples: int = 200
    """Test images per task; 0 is all."""
    eval_batch_size: int = 100
    """Images per step; only changes speed and memory."""
    points_at_once: int | None = None
    """Points of a heat map at once; by default one after another, best on a CPU."""
    preset: str = "paper"
    """Channel preset."""
    c0: float = uplink.DEFAULT_C0_DB
    """Parameter-domain SNR (dB) of a user with MSE 1."""
    seed: int = 0
    """Root of pairs, combinations, samples, channels and noise."""
    quick: bool = False
    """A coarse version in minutes; overrides points, samples, draws, combinations, pair_count."""
    out: Path = Path(__file__).parent / "results" / "disentanglement"
    """Where the tables and figures go."""

    def settings(self) -> Settings:
        """Return the sweep's settings of channel, noise and test images."""
        return Settings(
            preset=self.preset,
            c0_db=self.c0,
            eval_samples=self.samples,
            eval_batch_size=self.eval_batch_size,
            seed=self.seed,
        )


class Study:
    """The models of a run, with what was measured of them."""

    def __init__(self, inputs: SweepInputs, options: Options) -> None:
        self.inputs, self.options = inputs, options
        self.found: dict[str, Any] = {}
        settings = options.settings()
        self.uplinks = Uplinks(inputs, settings)
        rows = [task.test for task in inputs.data]
        sets = evaluation_sets(rows, settings.eval_samples, settings)
        self.samples = task_samples(sets, inputs.model.image_size)
        self.combinations = choose_combinations(
            inputs.tasks, options.combinations or None, options.seed
        )
        self.pairs = chosen_pairs(inputs.tasks, options)
        self.grid = np.linspace(options.lowest, options.highest, options.points, dtype=np.float32)
        same = {"features": inputs.model.features, "distance": options.distance}
        self.pair_wde = jax.jit(partial(pair_wde, **same, batch_size=options.points_at_once))
        self.single_outputs = jax.jit(partial(single_outputs, **same))
        self.wde_terms = jax.jit(partial(wde_terms, **same))
        self._singles: dict[float, jax.Array] = {}

    def cells(self) -> list[tuple[str, int]]:
        """Return every scenario with its draws; clean draws nothing and has one."""
        return [
            (scenario, draw)
            for scenario in self.options.scenarios
            for draw in range(1 if scenario == "clean" else self.options.draws)
        ]

    def noise(self, scenario: str, draw: int) -> Any:
        """Return the errors of all task vectors, stacked: those of the sweep's seed 0."""
        cell = Cell((), scenario, draw, 0, "none")
        sources = self.uplinks.sources(cell)
        if not self.uplinks.summed(cell):  # poisoned: the received vectors
            return jax.tree.map(jnp.subtract, sources, self.inputs.vectors)
        return _errors(sources, self.uplinks.factor(cell))

    def heat_map(self, pair: Combination, noise: Any) -> list[list[float]]:
        """Return the error of a pair over both scales."""
        users = np.array([self.inputs.tasks.index(task) for task in pair])
        parts = (self.inputs.vectors, self.inputs.heads, self.samples, noise)
        vectors, heads, samples, errors = (
            jax.tree.map(lambda leaf: leaf[users], part) for part in parts
        )
        scales = jnp.asarray(self.grid)
        found = self.pair_wde(
            self.inputs.base, vectors, heads, samples, scales, scales, noise=errors
        )
        return np.asarray(found).tolist()

    def terms(self, combination: Combination, received: Any) -> list[float]:
        """Return the term of every task of a combination; one program serves all combinations."""
        inputs, scale = self.inputs, fusion.scale_of(self.options.scale, len(combination))
        scales = jnp.array([scale])
        if scale not in self._singles:  # independent of noise and combination
            self._singles[scale] = self.single_outputs(
                inputs.base, inputs.vectors, inputs.heads, self.samples, scales
            )
        weights = np.array([task in combination for task in inputs.tasks], np.float32)
        found = self.wde_terms(
            inputs.base,
            received,
            inputs.heads,
            self.samples,
            jnp.asarray(weights)[None],
            scales,
            self._singles[scale],
            jnp.array([0]),
        )
        return np.asarray(found)[0, weights > 0].tolist()


_errors = jax.jit(uplink.errors)
_received = jax.jit(lambda vectors, noise: jax.tree.map(jnp.add, vectors, noise))


def chosen_pairs(tasks: tuple[str, ...], options: Options) -> list[Combination]:
    """Return the pairs that get a heat map.

    **Raises:** `InputError` if a named one is not a pair of the tasks.
    """
    if not options.pairs:
        drawn = choose_combinations(tasks, options.pair_count, options.seed)
        return [pair for pair in drawn if len(pair) == 2]
    pairs = []
    for text in options.pairs:
        names = tuple(sorted(set(text.split("+"))))
        if len(names) != 2:
            raise InputError(f"--pairs takes TASK+TASK of two tasks, got {text!r}.")
        for name in names:
            require_known("task of --pairs", name, tasks)
        pairs.append(names)
    return pairs


def measure(study: Study, parts: CellStore) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of pairs and of combinations, computing what the store lacks."""
    cells = study.cells()
    work: list[tuple[str, Combination, Callable[..., Any]]] = [
        *(("pair", pair, study.heat_map) for pair in study.pairs),
        *(("terms", combination, study.terms) for combination in study.combinations),
    ]
    with progress_bar("disentanglement", len(cells) * len(work)) as advance:
        for scenario, draw in cells:
            names = [f"{kind}/{'+'.join(chosen)}/{scenario}/{draw}" for kind, chosen, _ in work]
            noise = received = None
            if any(name not in parts for name in names):
                noise = study.noise(scenario, draw)
                received = _received(study.inputs.vectors, noise)
            for name, (kind, chosen, compute) in zip(names, work, strict=True):
                errors = noise if kind == "pair" else received
                study.found[name] = done(parts, name, partial(compute, chosen, errors))
                advance(1)
    return pd.DataFrame(pair_rows(study)), pd.DataFrame(term_rows(study))


def pair_rows(study: Study) -> Iterator[dict[str, Any]]:
    """Yield one row per point of every heat map."""
    for task_a, task_b in study.pairs:
        for scenario, draw in study.cells():
            values = study.found[f"pair/{task_a}+{task_b}/{scenario}/{draw}"]
            for scale_a, row in zip(study.grid.tolist(), values, strict=True):
                for scale_b, value in zip(study.grid.tolist(), row, strict=True):
                    yield {
                        "task_a": task_a,
                        "task_b": task_b,
                        "scenario": scenario,
                        "draw": draw,
                        "seed": study.options.seed,
                        "distance": study.options.distance,
                        "scale_a": scale_a,
                        "scale_b": scale_b,
                        "wde": value,
                    }


def term_rows(study: Study) -> Iterator[dict[str, Any]]:
    """Yield one row per task of every combination."""
    for combination in study.combinations:
        text = "+".join(combination)
        for scenario, draw in study.cells():
            values = study.found[f"terms/{text}/{scenario}/{draw}"]
            for task, value in zip(combination, values, strict=True):
                yield {
                    "combination": text,
                    "size": len(combination),
                    "scenario": scenario,
                    "draw": draw,
                    "seed": study.options.seed,
                    "distance": study.options.distance,
                    "scale": fusion.scale_of(study.options.scale, len(combination)),
                    "task": task,
                    "wde": value,
                }


def sizes_sheet(combinations: pd.DataFrame, unit: str) -> Sheet:
    """Return xi / N with intervals, one row per scenario and one column per size."""
    means = by_size(combinations)
    sizes, rows = sorted(means["size"].unique()), []
    for scenario, group in means.groupby("scenario", sort=False):
        found = group.set_index("size")[["mean", "low", "high"]].reindex(sizes)
        texts = [Interval(*row).text(".3f", scale=1.0) for row in found.to_numpy()]
        rows.append([str(scenario), unit, *texts])
    title = "Mean over tasks (xi / N), with 95 % intervals over combinations and draws"
    return Sheet(title, ["scenario", "unit", *(f"N = {size}" for size in sizes)], rows)


def conclusion(combinations: pd.DataFrame) -> str:
    """Say how much tasks interfere without noise, what noise adds, and where it adds more."""
    every = cells(combinations)
    clean = every[every["scenario"] == "clean"]
    if clean.empty or len(clean) == len(every):
        return "Without both clean and noisy cells it cannot be said what the noise adds."
    sizes = sorted(clean["size"].unique())
    ends = sorted({sizes[0], sizes[-1]})
    bare = [f"{text(interval(clean[clean['size'] == n]))} at N = {n}" for n in ends]
    added, more, few = [], [], set()
    for scenario, own in every[every["scenario"] != "clean"].groupby("scenario", sort=False):
        pairs = differences(own, clean, ["combination"])
        pairs["excess"] = pairs["difference"] - pairs["other"]
        by_n = dict(list(pairs.groupby("size")))
        adds = {n: interval(at, "difference") for n, at in by_n.items()}
        few |= {str(n) for n, found in adds.items() if found.levels < FEW}
        seen = [str(n) for n, found in adds.items() if sign(found, ".2f", 1.0)]
        gains = listed(text(adds[n], "+") for n in ends)
        added.append(f"{gains} under {scenario} (measurable at {_sizes(seen)})")
        above = [str(n) for n, at in by_n.items() if sign(interval(at, "excess"), ".2f", 1.0) > 0]
        more += [f"under {scenario} at {_sizes(above)}"] if above else []
    said = [
        f"Without noise xi / N is {listed(bare)}: so much do the tasks interfere by merging alone.",
        f"There the noise adds {'; '.join(added)}.",
        f"It adds more than merging itself {listed(more)}."
        if more
        else "Nowhere does it measurably add more than merging itself.",
    ]
    if few:
        said.append(f"At {_sizes(sorted(few))} so few combinations and draws decide nothing.")
    return " ".join(said)


def _sizes(sizes: list[str]) -> str:
    return f"N = {listed(sizes)}" if sizes else "no N"


def text(found: Interval, sign: str = "") -> str:
    """Return an error as printed."""
    return found.text(".2f", sign, scale=1.0)


def page(combinations: pd.DataFrame, options: Options, seconds: float, resumed: bool) -> list[str]:
    """Return the paragraphs of the page of table and figures."""
    lines = [
        made_by("disentanglement.py", options.seed, seconds, resumed=resumed),
        conclusion(combinations),
        f"Distance: {options.distance}, {options.samples or 'all'} test samples per task, "
        f"{options.draws} draws, scale {options.scale}, c0 = {options.c0:g} dB. Every "
        "point of the heat maps: pairs.csv; every task's term: combinations.csv.",
    ]
    sheet = sizes_sheet(combinations, get_distance(options.distance).unit)
    parts = ["# Weight disentanglement error under every scenario", *lines]
    parts += [f"## {sheet.title}", markdown_table(sheet), "![By number of tasks](sizes.png)"]
    parts += ["## Pairs, over both scales", "![Heat maps of pairs](pairs.png)"]
    return parts


def require_usable(options: Options) -> None:
    """Check the options.

    **Raises:** `InputError` that names the option.
    """
    for scenario in options.scenarios:
        Scenario(scenario)  # refuses what is none
    for name, least in (("points", 2), ("draws", 1), ("pair_count", 1), ("combinations", 0)):
        require_at_least(f"--{name.replace('_', '-')}", getattr(options, name), least)
    if not options.scenarios or not options.lowest < options.highest:
        raise InputError(
            "expected a scenario, and --lowest below --highest; got "
            f"{len(options.scenarios)} scenarios and {options.lowest} to {options.highest}."
        )
    get_distance(options.distance)
    fusion.scale_of(options.scale, 2)


def main(options: Options) -> None:
    """Measure pairs and combinations; write tables, figures and the page."""
    started = time.perf_counter()
    if options.quick:
        options = replace(options, **_QUICK)
    require_usable(options)
    use_compilation_cache(options.cache_dir)
    inputs = load(options)
    require_at_least("the number of tasks", len(inputs.tasks), 2)
    settings = options.settings()
    kept = ("points", "lowest", "highest", "scale", "distance")
    meaning = {name: getattr(options, name) for name in kept}
    meaning |= {"settings": settings.key()}
    with work_store(options.run, "disentanglement", inputs, meaning) as parts:
        resumed = len(parts) > 0
        pairs, combinations = measure(Study(inputs, options), parts)
    options.out.mkdir(parents=True, exist_ok=True)
    pairs.to_csv(options.out / "pairs.csv", index=False, float_format="%.6g")
    combinations.to_csv(options.out / "combinations.csv", index=False, float_format="%.6g")
    write_figure(options.out / "pairs", pairs_figure(pairs))
    write_figure(options.out / "sizes", sizes_figure(combinations))
    lines = page(combinations, options, time.perf_counter() - started, resumed)
    write_page(options.out, lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
