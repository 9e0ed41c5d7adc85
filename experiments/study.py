"""Shared by the experiments: a run folder's users, sweeps, learning, conclusions, provenance."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd
from matplotlib.figure import Figure

from rmtllmf_jax import gradients
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash, write_bytes
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.evaluation import Accuracy, SoftAccuracy
from rmtllmf_jax.gradients import Objective, Parameters
from rmtllmf_jax.report.intervals import CLUSTERS, FEW, Interval, differences, interval
from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.style import image_bytes
from rmtllmf_jax.report.tables import versions
from rmtllmf_jax.runs.environment import default_cache, provenance
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.runs.run import Run, open_run
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.memory import filled
from rmtllmf_jax.sweep.objective import objective_of, with_users
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.program import numerics
from rmtllmf_jax.sweep.run import run_grid, store_key
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.recipes import REALIGN, Recipe
from rmtllmf_jax.uplink import DEFAULT_C0_DB


@dataclass(frozen=True)
class Users:
    """The location of an experiment's users; the experiment's own options come after these."""

    run: Path
    """Run folder of `rmtllmf finetune`."""
    model: str | None = None
    """Pretrained model; by default where it was when the run was fine-tuned."""
    data: Path | None = None
    """Folder of the images; by default where they were."""
    tasks: tuple[str, ...] = ()
    """Tasks; by default all of the run."""
    cache_dir: Path = field(default_factory=default_cache)
    """Folder of decoded images and compiled programs."""


@dataclass(frozen=True)
class Realigning(Users):
    """Options of realignment, whose best values depend on the model (realign_choice.py), and
    further fine-tunings.
    """

    also: tuple[Path, ...] = ()
    """Run folders of the same model and tasks that were fine-tuned with other seeds: their cells
    stand as further seeds."""
    realign_steps: int = REALIGN.steps
    """Steps of realignment."""
    realign_learning_rate: float = REALIGN.learning_rate
    """Its peak learning rate."""
    control_learning_rate: float | None = None
    """Peak learning rate of the control, the base model realigned; by default the same."""

    def realign(self) -> Recipe:
        """Return the recipe of realignment."""
        return replace(REALIGN, steps=self.realign_steps, learning_rate=self.realign_learning_rate)


@dataclass(frozen=True)
class Learner(Users):
    """Options for tuning something on validation images and evaluating it on test images."""

    temperature: float = 1.0
    """Temperature of the soft accuracy."""
    tuning_samples: int = 32
    """Validation images per task."""
    eval_samples: int = 100
    """Test images per task; 0 is all."""
    scale: str = "0.25"
    """Merging coefficient: a number or power-law."""
    c0: float = DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1."""
    seed: int = 0
    """Root of all random numbers."""


def load(users: Users) -> SweepInputs:
    """Return base model, task vectors, heads and samples of a run folder.

    **Raises:** `InputError` as `Run` does.
    """
    return opened(users).inputs()


def opened(users: Users) -> Run:
    """Return the run folder, with model and data where they are now.

    **Raises:** `InputError` as `open_run` does.
    """
    where = {"model": users.model, "data": users.data, "cache_dir": users.cache_dir}
    return open_run(users.run, users.tasks, **where)


def sweep(
    run: Path, inputs: SweepInputs, settings: Settings, grid: Grid
) -> dict[str, pd.DataFrame]:
    """Return the tables of a grid; cells in the run folder's store are not computed again."""
    engine = Engine(inputs, settings, filled(one_device(), inputs, settings))
    tables = run_grid(engine, grid, run / "sweep" / store_key(inputs, settings))
    del tables["programs"]
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def objectives(
    inputs: SweepInputs,
    options: Learner,
    scenario: str,
    tuning: dict[str, int],
    judging: dict[str, int],
) -> tuple[Objective, Objective]:
    """Return the objectives for tuning (soft accuracy) and for judging (hard, at a given MSE).

    **Arguments:**

    - `tuning`, `judging`: their draws, in the form of `objective_of`.

    **Raises:** `InputError` as `objective_of` does.
    """
    settings = Settings(
        scale=options.scale,
        c0_db=options.c0,
        eval_samples=options.eval_samples,
        validation_samples=options.tuning_samples,
        seed=options.seed,
    )
    soft = {"split": "validation", "metric": SoftAccuracy(options.temperature), **tuning}
    tuned = objective_of(inputs, settings, scenario, **soft)
    judge = objective_of(inputs, settings, "ideal", metric=Accuracy(), **judging)
    return with_users(tuned, len(inputs.tasks)), with_users(judge, len(inputs.tasks))


def base_alone(judge: Objective) -> str:
    """Return a sentence on the base model's accuracy as an objective judges it."""
    nothing = Parameters(scale=jnp.zeros(()))
    accuracy = gradients.value(judge, nothing, jax.random.key(0))
    return f"The base model, which needs no uplink, has {100 * float(accuracy):.1f} %."


def opened_all(options: Realigning) -> list[Run]:
    """Return the run folder and those of `also`.

    **Raises:** `InputError` as `opened`, or if they differ in more than the seed.
    """
    runs = [opened(replace(options, run=run)) for run in (options.run, *options.also)]
    for place, run in enumerate(runs):
        for what, given, expected in (
            ("tasks", run.names, runs[0].names),
            ("configuration", _without_seed(run), _without_seed(runs[0])),
            ("recipe", run.summary()["recipe"], runs[0].summary()["recipe"]),
        ):
            if given != expected:
                raise InputError(
                    f"--also {run.path}: {what} {given}, and that of {runs[0].path} is {expected}: "
                    "take runs that differ in the seed of fine-tuning alone."
                )
        if run.config.seed in [other.config.seed for other in runs[:place]]:
            raise InputError(
                f"--also {run.path}: fine-tuned with seed {run.config.seed}, as another run is: "
                "every run needs a seed of its own."
            )
    return runs


def _without_seed(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.config.key().items() if name != "seed"}


def sweep_all(runs: Sequence[Run], settings: Settings, grid: Grid) -> dict[str, pd.DataFrame]:
    """Return the tables of a grid over all fine-tunings, whose seeds follow each other.

    The validation scores are means over them, though each had its own best coefficient.
    """
    found = [sweep(run.path, run.inputs(), settings, grid) for run in runs]
    for number, tables in enumerate(found):
        for table in tables.values():
            if "seed" in table:
                table["seed"] += number * grid.seeds
    tables = {
        name: pd.concat([each[name] for each in found], ignore_index=True) for name in found[0]
    }
    if "scales" in tables:  # of the scale rule validation alone
        keys = [name for name in tables["scales"] if name != "normalised"]
        means = tables["scales"].groupby(keys, as_index=False, sort=False, dropna=False)
        tables["scales"] = means.mean()
    return tables


def informative(results: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the results without the tasks that fine-tuning did not teach, and a note of these."""
    return list(versions(results).items())[-1]


def work_store(
    run: Path, experiment: str, inputs: SweepInputs, meaning: Mapping[str, Any]
) -> CellStore:
    """Return the store of an experiment's finished work, of these inputs and options alone."""
    name = content_hash({"inputs": inputs.fingerprint, "jax": numerics(), **meaning})
    return CellStore(run / experiment / name, every=0.0)


def done(parts: CellStore, name: str, compute: Callable[[], Any]) -> Any:
    """Return a result of JSON's types (or an iterator), computed if the store lacks it."""
    if name not in parts:
        parts.add(name, [{"result": json.dumps(compute(), default=list)}])
    return json.loads(parts[name][0]["result"])


def all_rows(
    options: Learner,
    inputs: SweepInputs,
    experiment: str,
    unit: str,
    rows_of: Callable[[int], Iterable[dict[str, Any]]],
) -> tuple[pd.DataFrame, bool]:
    """Return the rows of all pieces of an experiment, and whether some were finished before.

    **Arguments:**

    - `unit`: the option with the number of pieces; another number of them, other file locations,
      and `quick` and `full` in themselves change no piece.
    - `rows_of`: the rows of one piece, by its number; not called for those in the store.
    """
    where = ("run", "model", "data", "cache_dir", "out", "quick", "full", unit)
    meaning = {name: value for name, value in asdict(options).items() if name not in where}
    count: int = getattr(options, unit)
    rows: list[dict[str, Any]] = []
    with (
        work_store(options.run, experiment, inputs, meaning) as parts,
        progress_bar(experiment.replace("_", " "), count, unit=unit) as advance,
    ):
        resumed = len(parts) > 0
        for number in range(count):
            rows += done(parts, str(number), partial(rows_of, number))
            advance(1)
    return pd.DataFrame(rows), resumed


def gap(
    rows: pd.DataFrame, column: str, one: str, other: str, *on: str, of: str = "accuracy"
) -> Interval:
    """Return the mean difference between the rows of two values of a column, pair by pair.

    **Arguments:**

    - `on`: the columns that a pair shares; the first one is what the interval resamples.
    - `of`: the column that is compared.
    """
    named = rows.rename(columns={of: "score"})
    first, second = (named[named[column] == name] for name in (one, other))
    return interval(differences(first, second, list(on)), "difference", on[:1])


def quotient(
    cells: pd.DataFrame, above: str, below: str, clusters: tuple[str, ...] = CLUSTERS
) -> Interval:
    """Return the ratio of the means of two columns, with the interval of its linearisation."""
    ratio = cells[above].mean() / cells[below].mean()
    line = ratio + (cells[above] - ratio * cells[below]) / cells[below].mean()
    return interval(cells.assign(ratio=line), "ratio", clusters)


def sign(found: Interval, form: str = ".1f", scale: float = 100.0) -> int:
    """Return `Interval.side`, 0 also where too few levels decide nothing."""
    return found.side(form, scale=scale) or 0


def stands(found: Interval, above: str, below: str, of: str, form: str = ".1f") -> str:
    """Return the words for a difference (`above` 0, `below` it), or why there are none.

    **Arguments:**

    - `of`: what is replicated, as `channel`.
    """
    few = f"cannot be judged on {found.levels} {of}{'s' if found.levels > 1 else ''} against"
    words = {1: above, -1: below, 0: "cannot be distinguished from", None: few}
    return words[found.side(form)]


def caution(found: Iterable[Interval], of: str) -> str:
    """Return a sentence if an interval rests on too few levels, else nothing.

    **Arguments:**

    - `of`: what is replicated, as `draws`.
    """
    least = min(each.levels for each in found)
    return f" So few {of} ({least}) decide nothing." if least < FEW else ""


def grouped(told: Iterable[tuple[str, str]]) -> str:
    """Return pairs of words and a name as `beat a and b, and fall behind c`."""
    names: dict[str, list[str]] = {}
    for words, name in told:
        names.setdefault(words, []).append(name)
    return ", and ".join(f"{words} {listed(own)}" for words, own in names.items())


def short(rule: str) -> str:
    """Return a rule without the options that were chosen on validation samples."""
    return re.sub(r"\w+=\[.*?\](, )?", "", rule).replace(", )", ")").removesuffix("()")


def at_the_ends(tables: Mapping[str, pd.DataFrame]) -> str:
    """Name the rules whose coefficient is the least or the largest of several that were tried.

    Of the tables of a sweep that chose no coefficient, it says nothing.
    """
    if "scales" not in tables:
        return ""
    results = tables["results"]
    tried = tables["scales"].groupby(["rule", "size"])["scale"].agg(["min", "max"])
    chosen = results[results["protection"] == "none"].groupby(["rule", "size"], sort=False)["scale"]
    found: dict[str, list[str]] = {}
    for (rule, size), scales in chosen.unique().items():
        ends = tried.loc[(rule, size)]
        if ends["min"] < ends["max"] and set(scales) & set(ends):
            found.setdefault(short(rule), []).append(str(size))
    if not found:
        return "No coefficient that was chosen is the least or the largest of those tried."
    where = listed(f"{rule} (N = {listed(sizes)})" for rule, sizes in found.items())
    return f"At the end of the coefficients tried, and perhaps better beyond it: {where}."


HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be decided"


def claimed(found: Interval, least: float, most: float, digits: int = 2) -> str:
    """Return whether a mean lies between two numbers, as far as its interval decides that."""
    low, high = round(found.low, digits), round(found.high, digits)
    if found.levels < FEW:
        return OPEN
    if least <= low and high <= most:
        return HOLDS
    return FAILS if high < least or low > most else OPEN


def made_by(script: str, seed: int | str, seconds: float, *, resumed: bool = False) -> str:
    """Return sentences on how a page was made."""
    made = provenance()
    command = shlex.join(["python", f"experiments/{script}", *sys.argv[1:]])
    return (
        f"`{command}`: seed {seed}, {seconds:.0f} s{' (resumed)' if resumed else ''}, "
        f"{made['machine']['cpus']} cores ({made['machine']['device']}), jax "
        f"{made['versions']['jax']}, commit {made['commit']}."
    )


def write_page(out: Path, lines: Iterable[str]) -> None:
    """Write the paragraphs of an experiment's page, and print them."""
    text = "\n\n".join(lines) + "\n"
    write_bytes(out / "README.md", text.encode())
    print(text)


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG and SVG; the same figure gives the same bytes."""
    for kind in ("png", "svg"):
        write_bytes(path.with_suffix(f".{kind}"), image_bytes(figure, kind, dpi=150))
