"""What a run did, in a paragraph, its results at a glance, and what the words in them mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import PurePath
from typing import Any

import pandas as pd

from rmtllmf_jax.report.intervals import interval
from rmtllmf_jax.report.io import completed, find, metric_of
from rmtllmf_jax.report.labels import (
    MEANINGS,
    PROTECTIONS,
    SCENARIOS,
    arrange,
    is_unfused,
    joined,
    listed,
    rule_name,
    unfused,
)
from rmtllmf_jax.report.sheet import Sheet
from rmtllmf_jax.report.tables import cell_scores, parts, versions

_C0 = (
    "the SNR of the received parameters of a user whose mean squared error (MSE) on the channel "
    "is 1. It sets how much noise a channel error causes in the weights."
)


def done(results: pd.DataFrame, run: Mapping[str, Any]) -> str:
    """Return what was done, in sentences; anything missing from `run.json` is left out."""
    results = completed(results)
    merged = results[~unfused(results["protection"])]
    tasks = sorted(results["task"].unique())
    rows = results if merged.empty else merged
    model, samples = find(run, "model"), find(run, "eval_samples")
    preset, receiver, c0 = find(run, "preset"), find(run, "receiver"), _c0(run)
    name = PurePath(model).name if str(model).startswith(("/", "~")) else model
    each = f"{len(tasks)} users fine-tuned {name or 'one pretrained model'}"
    link = [f"channel preset {preset}" if preset else ""]
    link += [f"receiver {receiver}" if receiver else ""]
    link += ["" if c0 is None else f"c0 {c0:g} dB"]
    sent = rows[rows["scenario"] != "clean"]
    over = f"{_count(sent['draw'].nunique(), 'channel realisation')}"
    over = f"over {over} ({joined(*link)})" if any(link) else f"over {over}"
    sizes = listed(str(size) for size in sorted(rows["size"].unique()))
    combinations = _count(rows["combination"].nunique(), "combination")
    rules = listed(rule_name(rule) for rule in rows["rule"].unique())
    score = metric_of(results)
    scored = f", on {samples} test samples per task" if samples else ""
    return (
        f"{each}, one task each: {listed(tasks)}. The change in each model, its task vector, "
        f"{f'was sent {over}' if len(sent) else 'was merged without a channel'}; the vectors of "
        f"{combinations} of {sizes} tasks were merged by {rules}. Each merged model was scored on "
        f"the tasks of its combination{scored}. A score is a normalised {score}: relative to that "
        "of the model that was fine-tuned for the task alone, averaged over the tasks."
    )


def _c0(run: Mapping[str, Any]) -> float | None:
    """Return the parameter-domain SNR of a run, `None` if kappa was given instead."""
    if find(run, "kappa") is not None:
        return None
    c0 = find(run, "c0_db")
    return c0 if isinstance(c0, int | float) else None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def glance(results: pd.DataFrame) -> list[Sheet]:
    """Return a small table per merge method: methods by scenarios, means over N with intervals.

    None for results along an axis, as its levels have no common mean.
    """
    sheets = []
    for part in parts(results):
        if part.axis:
            continue
        for note, table in versions(part.results).items():
            sizes = listed(str(size) for size in sorted(completed(table)["size"].unique()))
            over = f"{'mean over ' if ' ' in sizes else ''}N = {sizes}"
            title = f"Normalised {metric_of(table)} (%), {over}, with 95 % intervals"
            sheets.append(_glance(table, joined(title, part.title, note)))
    return sheets


def _glance(results: pd.DataFrame, title: str) -> Sheet:
    cells = cell_scores(results)
    received = cells[~unfused(cells["protection"])]
    scenarios = arrange(received["scenario"], SCENARIOS)
    rows = []
    for name in arrange(cells["protection"], PROTECTIONS):
        own = cells[cells["protection"] == name]
        row = [PROTECTIONS.get(name, name)]
        if is_unfused(name):  # without an uplink, the same in every scenario
            row += [interval(own).text()] * len(scenarios)
        else:
            found = (own[own["scenario"] == scenario] for scenario in scenarios)
            row += [interval(each).text() if len(each) else "-" for each in found]
        rows.append(row)
    header = ["method", *(SCENARIOS.get(name, name) for name in scenarios)]
    return Sheet(title, header, rows, names=1)


def definitions(results: pd.DataFrame, run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the scenarios and methods in the results that have a definition, and symbols."""
    there = [*arrange(results["scenario"], SCENARIOS), "base"]
    for name in [*there, *arrange(results["protection"], PROTECTIONS)]:
        if name in MEANINGS:
            yield SCENARIOS.get(name) or PROTECTIONS[name], MEANINGS[name]
    yield "N", "the number of tasks that are merged into one model."
    if _c0(run) is not None:
        yield "c0", _C0


def documentation() -> str | None:
    """Return the address of the package's documentation; `None` if its owner has not set it."""
    try:
        urls = metadata("rmtllmf-jax").get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    named = dict(url.split(", ", 1) for url in urls)
    address = named.get("Documentation")
    return None if address is None or "OWNER" in address else address.rstrip("/")
