"""Figures 2 to 4 of the paper: accuracy by number of tasks, and cosines.

    python experiments/figure_2.py --run runs/demo [--quick | --full]

needs a run folder with the fine-tuned models of all tasks (`rmtllmf finetune`). The paper's claims
(`CLAIMS`): unprotected fusion loses more than half of its accuracy to thermal noise and nearly all
of it under attack; R-MTLLMF is within a few points of the noiseless baseline without an attacker,
and 9 to 14 times the unprotected accuracy with one. Besides the paper's four lines there are two
rivals that fuse nothing: the base model, and the control, which is the base realigned on the same
shots. The paper's 4 to 6 % under attack are what guessing has on its tasks, so "nearly all" is
counted from what guessing has on ours.

By default combinations of 2, 4, 6 and 8 tasks, five of each size, twenty channel draws (eight where
a model is realigned), one seed, 200 test images per task: hours on two cores (half an hour for the
demo's page, with two combinations, two fine-tunings and 100 images). `--full` is all 247
combinations and two seeds on all test images (for a GPU); `--quick` one combination of each size
and 50 images. The coefficient is the best on validation samples for each number of tasks
(`--scale`).

`--also` takes further run folders of the same model and tasks, fine-tuned with another `--seed`:
their cells stand as further seeds, so that intervals are over fine-tunings too.

Written to results/figure_2/: README.md (what holds of the claims, by number of tasks), index.html
(all figures and tables), the figures, summary.md, and the tables; index.html and the PDFs are not
committed. Finished work is kept in the run folder: the same command resumes. With `--axis` the
scenarios are run at several levels of the channel in place of the preset's, e.g. the users' MSE
itself:

    python experiments/figure_2.py --run runs/demo --axis mse=.01,.1 --scenarios clean ideal \
        --protections none r-mtllmf --out results/figure_2_mse
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import tyro
from study import (
    OPEN,
    Realigning,
    at_the_ends,
    claimed,
    informative,
    made_by,
    opened_all,
    quotient,
    sweep_all,
    write_page,
)

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import write_json
from rmtllmf_jax.defences.protection import PAPER
from rmtllmf_jax.report.intervals import FEW, Interval
from rmtllmf_jax.report.labels import listed
from rmtllmf_jax.report.paper import paired, paper_sheet
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.report.sheets import all_sheets
from rmtllmf_jax.report.tables import cell_scores
from rmtllmf_jax.report.verdict import replication, verdict
from rmtllmf_jax.report.write import write_report
from rmtllmf_jax.runs.config import UserRecord
from rmtllmf_jax.runs.environment import provenance, use_compilation_cache
from rmtllmf_jax.sweep.axis import parse_axis
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.sweep.tables import write_table
from rmtllmf_jax.uplink import DEFAULT_C0_DB

SCENARIOS = ("clean", "ideal", "strongest_user", "sum_rate")


@dataclass(frozen=True)
class Claim:
    """A ratio of two mean accuracies, of kinds (scenario, protection), and what the paper says."""

    words: str
    above: tuple[str, str]
    below: tuple[str, str]
    printed: str
    """The paper's ratio."""
    least: float
    most: float
    """The ratios for which the words are true."""
    beyond_guessing: bool = False
    """Whether the ratio is of what the accuracies are above guessing."""


NOISELESS = "clean", "none"
ATTACKS = {"strongest_user": "the strongest-user attack", "sum_rate": "the sum-rate attack"}
INFINITE = float("inf")


def _claims() -> Iterator[Claim]:
    words = "thermal noise costs unprotected fusion more than half"
    yield Claim(words, ("ideal", "none"), NOISELESS, ".40", 0.0, 0.5)
    for attack, name in ATTACKS.items():
        words = f"{name} costs unprotected fusion nearly all"
        yield Claim(
            words, (attack, "none"), NOISELESS, "about 0", -INFINITE, 0.1, beyond_guessing=True
        )
    words = "R-MTLLMF keeps 95 % of the noiseless baseline without an attacker"
    yield Claim(words, ("ideal", "r-mtllmf"), NOISELESS, ".98", 0.95, INFINITE)
    for attack, name in ATTACKS.items():
        words = f"R-MTLLMF has nine times the unprotected accuracy or more under {name}"
        yield Claim(words, (attack, "r-mtllmf"), (attack, "none"), "9 to 14", 9.0, INFINITE)


CLAIMS = tuple(_claims())
"""What the paper claims of mean accuracies; "nearly all" is taken as nine tenths of what is above
guessing, "a few points" as 5 %."""
AVERAGE = "Average normalised"
"""How the report's tables of means begin."""


@dataclass(frozen=True)
class Options(Realigning):
    """What to run."""

    sizes: tuple[int, ...] = (2, 4, 6, 8)
    """Numbers of tasks."""
    combinations: int | None = 5
    """Combinations of each size; by default all."""
    scenarios: tuple[str, ...] = SCENARIOS
    """Channel scenarios."""
    protections: tuple[str, ...] = PAPER
    """Protections; control is the base model realigned without any task vector."""
    axis: str = ""
    """Levels in place of the preset's, as of `rmtllmf sweep`: mse=.01,.1, snr_db=0,10 or
    budget_db=10,20."""
    draws: int = 20
    """Channel realisations."""
    repaired_draws: int = 8
    """Channel realisations where a model is realigned."""
    seeds: int = 1
    """Repetitions with other noise and other few-shot samples."""
    c0: float = DEFAULT_C0_DB
    """Parameter-domain SNR in dB of a user with MSE 1."""
    eval_samples: int = 200
    """Test images per task; 0 is all."""
    validation_samples: int = 100
    """Validation images per task; 0 is all."""
    scale: str = "validation"
    """Merging coefficient: validation, power-law or a number."""
    seed: int = 0
    """Root of all random numbers."""
    quick: bool = False
    """Minutes instead of hours on two cores."""
    full: bool = False
    """All combinations, two seeds, all test images."""
    out: Path = Path(__file__).parent / "results" / "figure_2"
    """Where tables and figures go."""

    def chosen(self) -> Options:
        """Return the options after `--quick` and `--full`."""
        if self.quick:
            return replace(self, combinations=1, draws=1, eval_samples=50, validation_samples=50)
        if self.full:
            every = tuple(range(2, 9))
            return replace(self, sizes=every, combinations=None, seeds=2, eval_samples=0)
        return self


def main(options: Options) -> None:
    """Sweep, and write the report."""
    started, options = time.time(), options.chosen()
    use_compilation_cache(options.cache_dir)
    settings = Settings(
        scale=options.scale,
        eval_samples=options.eval_samples,
        validation_samples=options.validation_samples,
        c0_db=options.c0,
        realign=options.realign(),
        control_learning_rate=options.control_learning_rate,
        seed=options.seed,
    )
    grid = Grid(
        (("every task",),),
        tuple(dict.fromkeys(options.scenarios)),
        tuple(dict.fromkeys(options.protections)),
        options.draws,
        options.seeds,
        axis=parse_axis(options.axis),
        repaired_draws=min(options.repaired_draws, options.draws),
    )
    grid.require_fitting(settings, 1)
    runs = opened_all(options)
    tasks, users = runs[0].names, runs[0].users
    if not all(isinstance(user, UserRecord) for user in users.values()):
        raise InputError(
            f"{runs[0].path} is a run of texts, and the paper's accuracies are of images: "
            "`rmtllmf sweep` and `rmtllmf report` have the figures for texts."
        )
    chosen = choose_combinations(tasks, options.combinations, options.seed, options.sizes)
    grid = replace(grid, combinations=chosen)
    tables = sweep_all(runs, settings, grid)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        write_table(options.out / f"{name}.parquet", table.to_dict("records"))
    configuration = {
        **provenance(),
        "tasks": tasks,
        "classes": {name: user.classes for name, user in users.items()},
        "users": runs[0].summary(),
        "also": [run.summary() for run in runs[1:]],
        "settings": asdict(settings),
        "grid": grid.record(),
        "seconds": round(time.time() - started, 1),
    }
    write_json(options.out / "run.json", configuration)
    pictures = []
    for file in write_report(options.out):
        shutil.move(file, options.out / file.name)
        pictures += [file.stem] if file.suffix == ".png" else []
    shutil.rmtree(options.out / "report")
    lines = [
        "# Figure 2: accuracy by number of tasks",
        made_by("figure_2.py", options.seed, time.time() - started),
        *page(tables, configuration),
        *(f"![{stem}]({stem}.png)" for stem in pictures),
    ]
    write_page(options.out, lines)


def page(tables: dict[str, pd.DataFrame], configuration: dict[str, Any]) -> Iterator[str]:
    """Yield the paragraphs of the page: conclusion, rivals, what the intervals are, tables."""
    results, cosines = tables["results"], tables["cosines"]
    note, rest = informative(results)
    floor = guessing(rest, configuration["classes"])
    ratios = judged(rest, floor)
    yield conclusion(ratios) + (f" All of that {note}." if note else "")
    yield "\n".join(f"- {line}" for line in verdict(results))
    by_size = floor.groupby(rest.groupby("combination")["size"].first()).mean()
    shares = listed(f"{100 * share:.0f} % (N = {size})" for size, share in by_size.items())
    yield f"Guessing has {shares}. {at_the_ends(tables)}".rstrip()
    yield " ".join(replication(results))
    judging = (claims_sheet(ratios),) if any(ratios.values()) else ()
    averages = [each for each in all_sheets(results, spread=True) if each.title.startswith(AVERAGE)]
    for sheet in (*judging, *averages, paper_sheet(results, cosines, configuration)):
        yield f"## {sheet.title}\n\n{markdown_table(sheet)}"


def guessing(results: pd.DataFrame, classes: dict[str, int]) -> pd.Series:
    """Return the normalised accuracy of guessing, by combination."""
    right = 1 / results["task"].map(classes) / results["finetuned_score"]
    return right.groupby(results["combination"]).mean()


def judged(results: pd.DataFrame, floor: pd.Series) -> dict[Claim, dict[int, Interval]]:
    """Return the ratio of every claim by number of tasks; cells of an axis do not count.

    `floor` is the accuracy of guessing, by combination.
    """
    cells = cell_scores(results)
    cells = cells[cells["axis"] == ""]
    found = {}
    for claim in CLAIMS:
        pairs = paired(cells, claim.above, claim.below)
        if claim.beyond_guessing:
            guessed = floor.reindex(pairs["combination"]).to_numpy()
            pairs = pairs.assign(score=pairs["score"] - guessed, other=pairs["other"] - guessed)
        found[claim] = {
            int(size): quotient(own, "score", "other")
            for size, own in pairs.groupby("size")
            if own["other"].any()
        }
    return found


def conclusion(ratios: dict[Claim, dict[int, Interval]]) -> str:
    """Say which of the paper's claims hold, and at which numbers of tasks."""
    told: dict[tuple[str, str], list[str]] = {}
    for claim, by_n in ratios.items():
        said = {n: claimed(found, claim.least, claim.most) for n, found in by_n.items()}
        for words in dict.fromkeys(said.values()):
            where = listed(str(n) for n, each in said.items() if each == words)
            told.setdefault((where, words), []).append(claim.words)
    if not told:
        return "None of the paper's claims can be judged on these cells."
    sentences = []
    for (where, words), claims in told.items():
        each = listed(f"{'whether' if words == OPEN else 'that'} {claim}" for claim in claims)
        what = "each of the paper's claims" if len(claims) == len(ratios) else "it"
        sentences.append(f"At N = {where} {what} {words}{f' {each}' if what == 'it' else ''}.")
    levels = [(n, each.levels) for by_n in ratios.values() for n, each in by_n.items()]
    few = [(n, number) for n, number in levels if number < FEW]
    if few:
        where = listed(str(n) for n in sorted({n for n, _ in few}))
        sentences.append(
            f"At N = {where} so few combinations, draws or seeds "
            f"({min(number for _, number in few)}) decide nothing."
        )
    return " ".join(sentences)


def claims_sheet(ratios: dict[Claim, dict[int, Interval]]) -> Sheet:
    """Return the ratio and the verdict of every claim by number of tasks."""
    sizes = sorted({n for by_n in ratios.values() for n in by_n})
    rows = [
        [
            claim.words,
            claim.printed,
            *(
                f"{by_n[n].text('.2f', scale=1.0)}, {claimed(by_n[n], claim.least, claim.most)}"
                if n in by_n
                else "-"
                for n in sizes
            ),
        ]
        for claim, by_n in ratios.items()
    ]
    header = ["claim", "paper", *(f"N = {n}" for n in sizes)]
    return Sheet("The paper's claims: ratios of mean accuracies by number of tasks", header, rows)


if __name__ == "__main__":
    main(tyro.cli(Options))
