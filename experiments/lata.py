"""What of LATA's claims holds for a very small language model, and what under an attacked uplink?

    python experiments/lata.py --model stories260k --data lm --work runs/lata

needs a decoder of text that knows stories and little else (a Hugging Face directory; the page is of
stories260K, a Llama of 260 thousand parameters), and a folder with WikiText-2, GSM8K, MBPP,
HumanEval and Self-Instruct's instructions under the names in `FILES`. Each seed fine-tunes the
model on four tasks, of the whole texts: `wiki` (WikiText-2's validation text, judged on its test
text), `maths` (GSM8K), `code` (MBPP, judged on HumanEval, which is never trained on) and
`instructions`, whose task vector is LATA's reference. Everything is scored by the normalised score
exp(nats of the fine-tuned model - nats). Then, after Chen et al., arXiv 2502.20186:

* multi-task: `wiki`, `maths` and `code` merged by task arithmetic, TIES, DARE and LATA's three
  weightings, in pairs and all three; options and coefficient are the best on validation texts;
* forgetting: `maths` or `code` is subtracted from the base, by plain negation and by LATA's
  weightings; at the coefficient at which the task's loss has risen by so many nats, how much have
  the losses on stories (drawn from the base itself) and on WikiText-2 risen?
* uplink: all three are sent through the paper's channel, quiet and under the sum-rate attack, with
  and without defences. The base station has no reference there: LATA's is the mean of the others.

A claim is said to hold where all seeds agree. Finished pieces are kept in --work, and the same
command resumes. Written to results/lata/: README.md, multi_task.csv, forgetting.csv, uplink.csv.
Twenty-two minutes on two busy cores.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import tyro
from study import done, made_by, sweep, write_page

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.files import content_hash, write_bytes
from rmtllmf_jax.common.values import described
from rmtllmf_jax.data import TextFile, evaluation_subset, load_texts
from rmtllmf_jax.evaluation import Batch, NegativeLogLikelihood, evaluate
from rmtllmf_jax.evaluation.batches import batches_of
from rmtllmf_jax.fusion.rules import methods_of
from rmtllmf_jax.models import Sampled, generate, load_decoder, read_tokenizer
from rmtllmf_jax.report.sheet import Sheet, markdown_table
from rmtllmf_jax.runs import (
    Run,
    configure_texts,
    default_cache,
    open_run,
    train_users,
    use_compilation_cache,
)
from rmtllmf_jax.runs.folder import working_in
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training import FineTuned, Recipe

FILES = {
    "wiki": ("wikitext2_valid.txt", "wikitext2_test.txt"),
    "maths": ("gsm8k_train.jsonl", "gsm8k_test.jsonl"),
    "code": ("mbpp.jsonl", "humaneval.jsonl"),
    "instructions": ("instructions_seed.jsonl", "instructions_user_oriented.jsonl"),
}
"""Training and test file of every task, in --data."""
TASKS, REFERENCE = ("code", "maths", "wiki"), "instructions"
BASE, PLAIN = "base", "task_arithmetic"
LATAS = ("lata", "lata(weighting=logarithmic)", "lata(weighting=threshold, sigma=[0.0, 0.2, 0.4])")
RULES = (PLAIN, "ties(density=[0.1, 0.2, 0.5])", "dare(drop=[0.5, 0.9])", *LATAS)
SENT = (PLAIN, "ties", *LATAS[:2])
FORGOTTEN, KEPT = ("maths", "code"), ("stories", "wiki")
RISES = (0.25, 0.5, 1.0)
"""Nats by which a task's loss has risen where utilities are compared."""
SCALES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0)
PROTECTIONS = ("none", "r-mtllmf", "phy", "holistic")


@dataclass(frozen=True)
class Options:
    """What to run."""

    model: Path
    """Directory of the decoder."""
    data: Path
    """Folder of the texts."""
    work: Path = Path("runs/lata")
    """Where users and finished pieces are kept."""
    seeds: int = 3
    """Fine-tunings, each with all that follows."""
    steps: int = 300
    """Steps of each fine-tuning."""
    batch_size: int = 8
    """Rows per step."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    length: int = 128
    """Tokens per row."""
    rows: int = 24
    """Rows per task to choose and to judge by; 0 is all."""
    draws: int = 2
    """Channel realisations."""
    c0: float = -16.0
    """Parameter-domain SNR in dB of a user with MSE 1."""
    realign_steps: int = 20
    """Steps of realignment, of eight texts each."""
    cache_dir: Path = field(default_factory=default_cache)
    """Folder of tokens and compiled programs."""
    out: Path = Path(__file__).parent / "results" / "lata"
    """Where the page goes."""


def prepare(data: Path, work: Path) -> Path:
    """Write the tasks as files of texts, and return the file that names them."""
    work.mkdir(parents=True, exist_ok=True)

    def rows(name: str) -> list[dict[str, Any]]:
        if not (data / name).is_file():
            raise InputError(f"{data / name}: no such file; --data must hold all of FILES.")
        return [json.loads(line) for line in (data / name).read_text("utf-8").splitlines() if line]

    def write(name: str, texts: Iterable[str]) -> None:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        write_bytes(work / name, lines.encode())

    for part, name in zip(("train", "test"), FILES["maths"], strict=True):
        write(
            f"maths_{part}.jsonl",
            (f"Question: {row['question']}\nAnswer: {row['answer']}\n" for row in rows(name)),
        )
    learnt, judged = FILES["code"]
    problems = [(row["task_id"], f"# {row['text']}\n{row['code']}\n") for row in rows(learnt)]
    known = {  # MBPP's own splits: its test problems are free, as HumanEval is judged by
        "train": lambda number: 11 <= number <= 510 or number > 600,
        "validation": lambda number: 511 <= number <= 600,
    }
    for part, within in known.items():
        chosen = (text.replace("\r\n", "\n") for number, text in problems if within(number))
        write(f"code_{part}.jsonl", chosen)
    write("code_test.jsonl", (row["prompt"] + row["canonical_solution"] for row in rows(judged)))
    for part, name in zip(("train", "test"), FILES["instructions"], strict=True):
        write(f"instructions_{part}.jsonl", map(_instruction, rows(name)))
    for part, name in zip(("train", "test"), FILES["wiki"], strict=True):
        shutil.copyfile(data / name, work / f"wiki_{part}.txt")
    tasks = {
        task: {"train": f"{task}_train.{kind}", "test": f"{task}_test.{kind}"}
        for task in FILES
        for kind in ("txt" if task == "wiki" else "jsonl",)
    }
    tasks["code"]["validation"] = "code_validation.jsonl"
    write_bytes(work / "tasks.yaml", json.dumps(tasks, indent=2).encode())  # JSON is YAML
    return work / "tasks.yaml"


def _instruction(row: dict[str, Any]) -> str:
    first = row["instances"][0]
    parts = (row["instruction"], first["input"], first["output"])
    return "\n".join(part for part in parts if part) + "\n"


def fine_tuned(options: Options, tasks: Path, seed: int) -> Run:
    """Return the run folder of a seed, with all four users."""
    folder = options.work / f"seed-{seed}"
    config = configure_texts(str(options.model), str(tasks), length=options.length, seed=seed)
    recipe = Recipe(options.steps, options.batch_size, options.learning_rate, 0.1)
    decoder, base = config.load_model()
    with working_in(folder):
        data = config.load_tasks(sorted(FILES), options.cache_dir)
        models = FineTuned(decoder, base, recipe, seed)
        train_users(decoder, base, data, config, models, folder)
    return open_run(folder, sorted(FILES), cache_dir=options.cache_dir)


def stories(options: Options) -> Path:
    """Return a file of what the base writes by itself, sampled once."""
    path = options.work / "stories.txt"
    if not path.exists():
        decoder, base = load_decoder(options.model)
        tokenizer = read_tokenizer(options.model, decoder.shape)
        start = tokenizer("Once upon a time")["input_ids"]
        count = min(200, decoder.shape.positions - len(start))
        sampler, key = Sampled(temperature=1.0), jax.random.key(0)
        told = generate(
            decoder, base, [start] * 64, count, sampler=sampler, key=key, end=tokenizer.eos_token_id
        )
        lines = [" ".join(tokenizer.decode([*start, *added]).split()) for added in told]
        write_bytes(path, "\n".join(lines).encode())
    return path


def about(tasks: tuple[str, ...], rule: str) -> dict[str, Any]:
    """Return what a row of merged tasks begins with."""
    return {"combination": "+".join(tasks), "size": len(tasks), "rule": rule}


class Bench:
    """A seed's users, and the nats of any model on rows of their tasks."""

    def __init__(self, options: Options, run: Run) -> None:
        self.options, self.run = options, run

    @cached_property
    def batches(self) -> dict[tuple[str, str], list[Batch]]:
        """By task and part, `stories` among them."""
        options = self.options
        told = load_texts(
            TextFile(stories(options)), options.model, options.length, options.cache_dir
        )
        parts: dict[tuple[str, str], Any] = {("stories", "test"): told}
        for task in self.run.tasks:
            parts |= {(task.name, "validation"): task.validation, (task.name, "test"): task.test}
        found = {}
        for name, part in parts.items():
            some = part.take(evaluation_subset(len(part), options.rows, 0))
            found[name] = list(batches_of(some, options.rows or 32))
        return found

    def nats(self, params: Any, task: str, part: str) -> float:
        """Return a model's nats per token."""
        decoder: Any = self.run.model
        return evaluate(NegativeLogLikelihood(), decoder, params, self.batches[task, part])

    @cached_property
    def tuned(self) -> dict[tuple[str, str], float]:
        """Nats of every task's own model."""
        return {
            (task, part): self.nats(self.run.finetuned(task), task, part)
            for task in TASKS
            for part in ("validation", "test")
        }

    def normalised(self, params: Any, tasks: tuple[str, ...], part: str) -> float:
        """Return the mean normalised score over some tasks."""
        metric = NegativeLogLikelihood()
        return float(
            np.mean(
                [
                    metric.normalised(self.nats(params, task, part), self.tuned[task, part])
                    for task in tasks
                ]
            )
        )

    def vectors(self, tasks: Iterable[str]) -> Any:
        """Return the stacked task vectors of some tasks."""
        places = np.array([self.run.names.index(task) for task in tasks])
        return jax.tree.map(lambda leaf: leaf[places], self.run.vectors)

    def merged(self, method: Any, tasks: tuple[str, ...]) -> Any:
        """Return the merged vector; LATA's reference is the vector of the instructions."""
        key = jax.random.key(0) if getattr(method, "random", False) else None
        given = {}
        if isinstance(method, fusion.Lata):
            iota = self.vectors([REFERENCE])
            given["reference"] = jax.tree.map(lambda leaf: leaf[0], iota)
        return method(self.vectors(tasks), key, **given)

    def unmerged(self, tasks: tuple[str, ...]) -> dict[str, Any]:
        """Return what the base model has on test, as `multi_task` returns it."""
        return about(tasks, BASE) | {"score": self.normalised(self.run.base, tasks, "test")}

    def multi_task(self, tasks: tuple[str, ...], rule: str) -> dict[str, Any]:
        """Return what a rule reaches on test with what is best on validation."""
        best: tuple[float, Any, float, Any] = (-np.inf, None, 0.0, None)
        for method in methods_of(fusion.parse_method(rule)):
            vector = self.merged(method, tasks)
            for scale in fusion.candidate_scales(method):
                params = fusion.add_to_base(self.run.base, vector, scale)
                score = self.normalised(params, tasks, "validation")
                if score > best[0]:
                    best = (score, method, scale, params)
        score, method, scale, params = best
        found = about(tasks, rule) | {
            "method": described(method),
            "scale": scale,
            "validation": score,
        }
        return found | {"score": self.normalised(params, tasks, "test")}

    def forgetting(self, task: str, rule: str) -> list[dict[str, Any]]:
        """Return the nats on a task and on what is to be kept as its vector is subtracted."""
        rows = []
        for method in methods_of(fusion.parse_method(rule)):
            vector = self.merged(method, (task,))
            for scale in SCALES:
                params = fusion.add_to_base(self.run.base, vector, -scale)
                names = {"forgotten": task, **dict(zip(KEPT, KEPT, strict=True))}
                nats = {name: self.nats(params, on, "test") for name, on in names.items()}
                about = {"task": task, "rule": rule, "method": described(method)}
                rows.append({**about, "scale": scale, **nats})
        return rows


def kept_at(curve: pd.DataFrame, rise: float) -> dict[str, float]:
    """Return by how much the losses on what is to be kept have risen where the task's rose so far.

    At the first coefficient at which it has, interpolated; NaN if it never does.

    >>> curve = pd.DataFrame({"scale": [0, 1, 2], "forgotten": [5.0, 5.5, 6.5]})
    >>> kept_at(curve.assign(stories=[1.0, 1.2, 2.0], wiki=[4.0, 4.0, 5.0]), 1.0)
    {'stories': 0.6, 'wiki': 0.5}
    """
    curve = curve.sort_values("scale")
    risen = (curve["forgotten"] - curve["forgotten"].iloc[0]).to_numpy()
    over = np.flatnonzero(risen >= rise)
    if not len(over):
        return dict.fromkeys(KEPT, float("nan"))
    after = int(over[0])
    share = (rise - risen[after - 1]) / (risen[after] - risen[after - 1])
    found = {}
    for name in KEPT:
        lost = (curve[name] - curve[name].iloc[0]).to_numpy()
        found[name] = round(float(lost[after - 1] + share * (lost[after] - lost[after - 1])), 6)
    return found


def equal_forgetting(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the rises of `KEPT` at `RISES`, of each rule its method with the least on stories."""
    rows = []
    for (seed, task, rule), own in curves.groupby(["seed", "task", "rule"], sort=False):
        for rise in RISES:
            each = [kept_at(curve, rise) for _, curve in own.groupby("method")]
            there = [found for found in each if not np.isnan(found["stories"])]
            best = min(there, key=lambda found: found["stories"]) if there else each[0]
            rows.append({"seed": seed, "task": task, "rule": rule, "rise": rise, **best})
    return pd.DataFrame(rows)


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Return a mean, and the least and the largest value.

    >>> spread([0.1, 0.3, 0.2])
    '0.200 (0.100 to 0.300)'
    """
    found = np.array(list(values), float)
    if np.isnan(found).any():
        return "-"
    low, mean, high = (f"{each:.{digits}f}" for each in (found.min(), found.mean(), found.max()))
    return f"{mean} ({low} to {high})"


def claim(differences: Iterable[float]) -> str:
    """Return whether all seeds say that something is better, that it is not, or neither.

    >>> claim([0.1, 0.2]), claim([-0.1, -0.2]), claim([0.1, -0.1])
    ('holds', 'does not hold', 'is not decided')
    """
    found = np.array(list(differences), float)
    if len(found) and (found > 0).all():
        return "holds"
    return "does not hold" if len(found) and (found <= 0).all() else "is not decided"


def by_seed(table: pd.DataFrame, rule: str, column: str) -> pd.Series:
    """Return the mean of a rule's column in every seed."""
    return table[table["rule"] == rule].groupby("seed")[column].mean()


def multi_task_claims(table: pd.DataFrame) -> list[str]:
    """Return a sentence per rival: whether LATA's best weighting is better at many tasks."""
    best = max(LATAS, key=lambda rule: float(by_seed(table, rule, "score").mean()))
    told = []
    for rival in (BASE, *(rule for rule in RULES if rule not in LATAS)):
        lead = by_seed(table, best, "score") - by_seed(table, rival, "score")
        told.append(
            f"Merged tasks: that LATA ({best}) beats {rival} {claim(lead)}: mean normalised score "
            f"{spread(by_seed(table, best, 'score'))} against "
            f"{spread(by_seed(table, rival, 'score'))}, difference {spread(lead)}."
        )
    return told


def forgetting_claims(table: pd.DataFrame) -> list[str]:
    """Return a sentence per utility: whether LATA keeps more at equal forgetting."""
    told = []
    for name in KEPT:
        at = table.dropna(subset=[name])
        # Of rises that every rule reaches alone: others would be compared on other tasks.
        full = at.groupby(["seed", "task", "rise"])["rule"].transform("nunique")
        at = at[full == table["rule"].nunique()]
        if at.empty:
            told.append(f"Forgetting, {name}: not all rules make the tasks forgotten so far.")
            continue
        best = min(LATAS, key=lambda rule: float(by_seed(at, rule, name).mean()))
        lead = by_seed(at, PLAIN, name) - by_seed(at, best, name)
        told.append(
            f"Forgetting: that LATA ({best}) keeps more of {name} than plain negation at equal "
            f"forgetting {claim(lead)}: the loss rises by {spread(by_seed(at, best, name))} nats "
            f"against {spread(by_seed(at, PLAIN, name))}, difference {spread(lead)}."
        )
    return told


def uplink_claims(table: pd.DataFrame) -> list[str]:
    """Return a sentence per scenario: whether LATA is better than task arithmetic there."""
    told = []
    for (scenario, protection), at in table.groupby(["scenario", "protection"], sort=False):
        if protection == "control":
            continue
        means = {rule: by_seed(at, rule, "normalised") for rule in SENT}
        best = max((rule for rule in SENT if rule in LATAS), key=lambda rule: means[rule].mean())
        lead = means[best] - means[PLAIN]
        told.append(
            f"Uplink, {scenario}, {protection}: that LATA ({best}) beats task arithmetic "
            f"{claim(lead)}: {spread(means[best])} against {spread(means[PLAIN])}."
        )
    return told


def sheet(title: str, table: pd.DataFrame, index: list[str], column: str, score: str) -> Sheet:
    """Return means with the range over seeds: a row per `index`, a column per value of `column`."""
    columns = list(dict.fromkeys(table[column]))
    rows = []
    for names, own in table.groupby(index, sort=False):
        cells = []
        for value in columns:
            there = own[own[column] == value].groupby("seed")[score].mean()
            cells.append(spread(there) if len(there) else "-")
        rows.append([*map(str, names), *cells])
    return Sheet(title, [*index, *map(str, columns)], rows, names=len(index))


def pieces(options: Options, tasks: Path) -> dict[str, pd.DataFrame]:
    """Return the three tables, computing what --work does not hold."""
    meaning = {key: value for key, value in asdict(options).items() if key not in _WHERE}
    found: dict[str, list[dict[str, Any]]] = {"multi_task": [], "forgetting": [], "uplink": []}
    for seed in range(options.seeds):
        run = fine_tuned(options, tasks, seed)
        bench = Bench(options, run)
        name = content_hash({"inputs": run.inputs().fingerprint, **meaning})
        with CellStore(options.work / "pieces" / name, every=0.0) as parts:

            def piece(name: str, compute: Callable[[], Any], parts: Any = parts) -> Any:
                return done(parts, name, compute)

            for size in range(2, len(TASKS) + 1):
                for members in combinations(TASKS, size):
                    row = piece(f"base {'+'.join(members)}", partial(bench.unmerged, members))
                    found["multi_task"].append({"seed": seed, **row})
                    for rule in RULES:
                        compute = partial(bench.multi_task, members, rule)
                        row = piece(f"multi {'+'.join(members)} {rule}", compute)
                        found["multi_task"].append({"seed": seed, **row})
            for task in FORGOTTEN:
                for rule in (PLAIN, *LATAS):
                    rows = piece(f"forget {task} {rule}", partial(bench.forgetting, task, rule))
                    found["forgetting"] += [{"seed": seed, **row} for row in rows]
        found["uplink"] += _sent(options, run).assign(seed=seed).to_dict("records")
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


_WHERE = ("model", "data", "work", "cache_dir", "out", "seeds")


def _sent(options: Options, run: Run) -> pd.DataFrame:
    """Return the results of a sweep over the uplink, by the program of the command line."""
    alone = open_run(run.path, TASKS, cache_dir=options.cache_dir)
    settings = Settings(
        scale="validation",
        c0_db=options.c0,
        metric="perplexity",
        eval_samples=options.rows,
        validation_samples=options.rows,
        eval_batch_size=options.rows or 32,
        shots=16,
        realign=Recipe(options.realign_steps, 8, 1e-3, 0.0),
    )
    grid = Grid(
        (TASKS,),
        ("clean", "ideal", "sum_rate"),
        PROTECTIONS,
        options.draws,
        1,
        tuple(map(fusion.parse_method, SENT)),
    )
    return sweep(run.path, alone.inputs(), settings, grid)["results"]


def main(options: Options) -> None:
    """Measure, print and write the page."""
    started, resumed = time.perf_counter(), (options.work / "pieces").is_dir()
    require_at_least("--seeds", options.seeds, 1)
    use_compilation_cache(options.cache_dir)
    tables = pieces(options, prepare(options.data, options.work))
    multi, sent = tables["multi_task"], tables["uplink"]
    kept = equal_forgetting(tables["forgetting"])
    claims = [*multi_task_claims(multi), *forgetting_claims(kept), *uplink_claims(sent)]
    over = f"mean, least and largest of {options.seeds} seeds"
    sheets = [
        sheet(f"Merged tasks: normalised score ({over})", multi, ["rule"], "size", "score"),
        *(
            sheet(
                f"Forgetting: rise of the loss on {name} in nats, by that on the task ({over})",
                kept,
                ["task", "rule"],
                "rise",
                name,
            )
            for name in KEPT
        ),
        sheet(
            f"Uplink, three tasks: normalised score ({over})",
            sent,
            ["scenario", "protection"],
            "rule",
            "normalised",
        ),
    ]
    lines = [
        "# LATA's claims on a very small language model",
        made_by(
            "lata.py",
            f"0 to {options.seeds - 1}",
            time.perf_counter() - started,
            resumed=resumed,
        ),
        "\n".join(f"* {told}" for told in claims),
        "A claim holds where every seed says so, and does not where every seed says the opposite. "
        "LATA's best weighting is the best on the test texts themselves, which favours it.",
        *(f"## {each.title}\n\n{markdown_table(each)}" for each in sheets),
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(options.out / f"{name}.csv", index=False, float_format="%.6g")
    write_page(options.out, lines)


if __name__ == "__main__":
    main(tyro.cli(Options))
