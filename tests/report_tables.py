"""Made-up tables of a run for the tests of the report: random accuracies, known by their rows."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Iterator
from typing import Any

import pandas as pd

from rmtllmf_jax.report.intervals import interval

Row = dict[str, Any]
TASKS = ("dtd", "mnist", "svhn")
TUNED = {"dtd": 0.8, "mnist": 0.99, "svhn": 0.95}
PROTECTIONS = ("none", "freeze", "realign", "r-mtllmf")
COMBINATIONS = [c for size in (2, 3) for c in itertools.combinations(TASKS, size)]


def user_mse(scenario: str, level: float, draw: int, task: str) -> float:
    """MSE of a task's user, the same in every combination."""
    if scenario == "clean":
        return 0.0
    return random.Random(f"{scenario} {level} {draw} {task}").uniform(0.01, 0.5)


def cell(names: Row, rng: random.Random) -> Iterator[Row]:
    """Rows of one cell, a task each."""
    where = names["scenario"], names["level"], names["draw"]
    users = {task: user_mse(*where, task) for task in names["combination"]}
    for task in names["combination"]:
        accuracy = rng.random() * TUNED[task]
        yield names | {
            "combination": "+".join(names["combination"]),
            "size": len(users),
            "task": task,
            "scale": 0.0 if names["protection"] == "control" else 0.3,
            "kappa": 0.07,
            "mse": users[task],
            "mse_mean": sum(users.values()) / len(users),
            "error_model": "independent",
            "score": accuracy,
            "finetuned_score": TUNED[task],
            "base_score": TUNED[task] * (0.4 + 0.05 * len(users)),
            "normalised": accuracy / TUNED[task],
        }


def results(
    scenarios: tuple[str, ...] = ("clean", "ideal", "sum_rate"),
    rules: tuple[str, ...] = ("task_arithmetic",),
    axis: str = "",
    levels: tuple[float, ...] = (math.nan,),
    protections: tuple[str, ...] = PROTECTIONS,
    draws: int = 2,
    seeds: int = 1,
) -> pd.DataFrame:
    """Return a results table as a sweep writes it, in a shuffled order."""
    rng = random.Random(5)
    rows: list[Row] = []
    for combination, seed in itertools.product(COMBINATIONS, range(seeds)):
        here = {"combination": combination, "seed": seed}
        clean = {"scenario": "clean", "draw": 0, "axis": "", "level": math.nan}
        rows += cell(here | clean | {"protection": "control", "rule": rules[0]}, rng)
        for scenario, rule, protection in itertools.product(scenarios, rules, protections):
            kind = here | {"scenario": scenario, "rule": rule, "protection": protection}
            if scenario == "clean":
                rows += cell(kind | clean, rng)
                continue
            for draw, level in itertools.product(range(draws), levels):
                rows += cell(kind | {"draw": draw, "axis": axis, "level": level}, rng)
    rng.shuffle(rows)
    return pd.DataFrame(rows)


BASE = {"scenario": "clean", "axis": "", "level": None, "draw": 0, "seed": 0, "mse": 0.0}
BASE |= {"protection": "base", "rule": "task_arithmetic"}
"""What the base model's cells have in common."""

CELL = ("combination", "size", "scenario", "axis", "level", "draw", "seed", "rule", "protection")


def cells(table: pd.DataFrame) -> list[Row]:
    """Return the cells of a results table by plain loops: their names (no level: None), `score`
    and `mse`; and one of the base model for every combination.
    """
    rows: dict[tuple[Any, ...], list[Row]] = {}
    for row in table.to_dict("records"):
        key = tuple(None if row[name] != row[name] else row[name] for name in CELL)
        rows.setdefault(key, []).append(row)
    found, bases = [], {}
    for key, own in rows.items():
        names = dict(zip(CELL, key))
        score = statistics.mean(row["normalised"] for row in own)
        found.append(names | {"score": score, "mse": own[0]["mse_mean"]})
        base = statistics.mean(row["base_score"] / row["finetuned_score"] for row in own)
        bases[names["combination"]] = names | BASE | {"score": base}
    return [*found, *bases.values()]


def where(rows: list[Row], **wanted: Any) -> list[Row]:
    """Return the rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def mean(rows: list[Row], name: str = "score") -> float:
    """Return the mean over the sizes of the means over their rows."""
    sizes = {row["size"] for row in rows}
    at_each = [statistics.mean(row[name] for row in where(rows, size=size)) for size in sizes]
    return statistics.mean(at_each)


def ends(rows: list[Row], name: str = "score") -> tuple[float, float]:
    """Return the interval of that mean, which `test_report_intervals.py` tests."""
    found = interval(pd.DataFrame(rows), name)
    return found.low, found.high


def cosines(scenarios: tuple[str, ...] = ("clean", "ideal", "sum_rate")) -> pd.DataFrame:
    """Return a table of cosines."""
    rng = random.Random(8)
    rows = []
    for scenario, draw, protection in itertools.product(scenarios, (0, 1), ("none", "freeze")):
        for a, b in itertools.product(TASKS, TASKS):
            names = {"scenario": scenario, "draw": draw, "seed": 0, "protection": protection}
            value = 1.0 if a == b else rng.uniform(-0.3, 0.3)
            rows.append(
                names | {"task_a": a, "task_b": b, "error_model": "independent", "cosine": value}
            )
    return pd.DataFrame(rows)


def scales() -> pd.DataFrame:
    """Return a validation curve: the best coefficient is 0.3 for two tasks, 0.1 for three."""
    rows = []
    for combination, scale in itertools.product(COMBINATIONS, (0.1, 0.2, 0.3, 0.4)):
        size = len(combination)
        score = 0.9 - abs(scale - (0.3 if size == 2 else 0.05))
        names = {"combination": "+".join(combination), "size": size, "scale": scale}
        rows.append(names | {"rule": "task_arithmetic", "normalised": score})
    return pd.DataFrame(rows)


RUN = {
    "command": "rmtllmf sweep --out runs/a",
    "commit": "0123abc",
    "seconds": 12.5,
    "machine": {"cpus": 2},
    "versions": {"jax": "0.10.2"},
    "settings": {
        "preset": "paper",
        "seed": 0,
        "shots": 10,
        "c0_db": -31.0,
        "kappa": None,
        "order": None,
        "scale": "power-law",
        "eval_samples": 200,
    },
    "users": {
        "setting": {"model": "weights/vit-tiny-patch16-224", "image_size": 64},
        "recipe": {"steps": 200, "batch_size": 64},
    },
}
"""What `run.json` may hold."""
