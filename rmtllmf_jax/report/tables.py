"""Averages of the results: over a cell's tasks first, then over cells of one size, then over sizes.

Every score is a fraction. Rows are in the order of `labels.py`, whatever the order of the file.
Nothing is averaged over merge methods or over the levels of an axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rmtllmf_jax.report.intervals import interval
from rmtllmf_jax.report.io import CELL, completed, lower_is_better, metric_of, normalised
from rmtllmf_jax.report.labels import (
    AXES,
    RULES,
    arrange,
    file_stem,
    in_order,
    rule_name,
    unfused,
)

SETTING = ["rule", "axis", "level"]
"""Columns that are never averaged over."""

LEAST_GAIN = 0.02
"""A fine-tuned model has to be this much better (in accuracy, or nats) than the base model is."""


def cell_scores(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell: the average normalised score over its tasks.

    Columns: those of `io.CELL`, `size`, `score` (the average normalised score) and `mse` (mean over
    the users). One more row per combination has the protection `base`: the pretrained model under
    the tasks' own heads, which like the control has no uplink (`clean`, draw 0) and a single seed
    (0).
    """
    results = completed(results)
    cells = pd.concat([results, _base(results)]).groupby(CELL, as_index=False, dropna=False)
    cells = cells.agg(
        size=("size", "first"), score=("normalised", "mean"), mse=("mse_mean", "first")
    )
    order = [*SETTING, "size", "combination", "scenario", "draw", "seed", "protection"]
    return in_order(cells, order)[["combination", "size", *CELL[1:], "score", "mse"]]


def _base(results: pd.DataFrame) -> pd.DataFrame:
    """Return the base model's rows, as if it were a protection.

    If the seeds stand for several fine-tunings, its normalised scores are averaged over them.
    """
    once = results.drop_duplicates(["combination", "task", "seed"])
    own = normalised(once, "base_score")
    rows = once.assign(
        normalised=own.groupby([once["combination"], once["task"]]).transform("mean"),
        rule=arrange(results["rule"], RULES)[0],
        protection="base",
        scenario="clean",
        axis="",
        level=np.nan,
        draw=0,
        seed=0,
        mse_mean=0.0,
    )
    return rows.drop_duplicates(["combination", "task"])


def summary(results: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Return one row per (rule, axis, level, *by*, scenario, protection).

    Columns: these, `mean`, `low` and `high` (`intervals.interval` of the average normalised score
    over combinations, draws and seeds), `cells` (their number) and `mse` (mean over the cells).
    """
    keys = [*SETTING, *by, "scenario", "protection"]
    rows = []
    for names, own in cell_scores(results).groupby(keys, dropna=False):
        found = interval(own)
        row = {"mean": found.mean, "low": found.low, "high": found.high, "cells": len(own)}
        rows.append(dict(zip(keys, names, strict=True)) | row | {"mse": own["mse"].mean()})
    return in_order(pd.DataFrame(rows), keys)


def for_seeds(cells: pd.DataFrame, seeds: pd.Series) -> pd.DataFrame:
    """Return cells for each of some seeds: those of the last seed of their own up to it.

    A clean merge that is not realigned draws nothing, so that there is one per fine-tuning, for the
    first of its seeds.
    """
    found = [cells.iloc[:0]]
    for _, same in cells.groupby("rule"):  # a random one draws
        own = np.unique(same["seed"])
        for seed in np.unique(seeds[seeds >= own[0]]):
            last = own[own <= seed][-1]
            found.append(same[same["seed"] == last].assign(seed=seed))
    return pd.concat(found, ignore_index=True)


def models_alone(results: pd.DataFrame) -> pd.DataFrame:
    """Return `base_score` and `finetuned_score` of each task."""
    return completed(results).groupby("task")[["base_score", "finetuned_score"]].mean()


def is_share(results: pd.DataFrame) -> bool:
    """Whether the scores are shares of samples, which are printed in percent."""
    return metric_of(results).removeprefix("soft_").startswith("accuracy")


def shown(results: pd.DataFrame, score: float, percent: str = "") -> str:
    """Return a score as printed: whole points if its metric is a share, `-` for NaN."""
    if np.isnan(score):
        return "-"
    return f"{100 * score:.0f}{percent}" if is_share(results) else f"{score:.4g}"


def weak_tasks(results: pd.DataFrame) -> list[str]:
    """Return the tasks whose fine-tuned model gains less than `LEAST_GAIN`, sorted.

    Fine-tuning failed to teach them: normalising by them says nothing about merging.
    """
    alone = models_alone(results)
    if metric_of(results) == "perplexity":
        alone = np.log(alone)
    gain = alone["finetuned_score"] - alone["base_score"]
    return sorted(alone.index[(-gain if lower_is_better(results) else gain) < LEAST_GAIN])


def versions(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the results by omission: "" (nothing), and all weak tasks if there are any.

    A cell's average is then over its other tasks.
    """
    weak = weak_tasks(results)
    rest = results[~results["task"].isin(weak)]
    return {"": results} | ({f"without {', '.join(weak)}": rest} if weak and len(rest) else {})


def caveat(results: pd.DataFrame) -> str | None:
    """Return a sentence that names the weak tasks and their accuracies, `None` without any."""
    alone = models_alone(results)
    base = "head on the base" if is_share(results) else "base"
    named = ", ".join(
        f"{task} ({shown(results, alone['finetuned_score'][task], '%')} fine-tuned, "
        f"{shown(results, alone['base_score'][task], '%')} {base})"
        for task in weak_tasks(results)
    )
    if not named:
        return None
    return (
        f"Fine-tuning did not teach {named}: normalised {metric_of(results)} of such a task is "
        "noise divided by noise, so every average is given without it too."
    )


@dataclass(frozen=True)
class Part:
    """The rows of one rule and one axis (empty: none), and the controls, which have neither."""

    rule: str
    axis: str
    results: pd.DataFrame
    title: str
    """Its rule as printed; empty if the run has only one."""
    stem: str
    """The same as a suffix of file names."""


def parts(results: pd.DataFrame) -> list[Part]:
    """Return the parts of a run's results: rules in order, those without an axis first."""
    results = completed(results)
    alone = unfused(results["protection"])
    merged, controls = results[~alone], results[alone]
    if merged.empty:
        return [Part(str(results["rule"].iloc[0]), "", results, "", "")]
    controls = controls.drop_duplicates(["protection", "combination", "seed", "task"])
    several = merged["rule"].nunique() > 1
    found: list[Part] = []
    for axis in arrange(merged["axis"], ["", *AXES]):
        for rule in arrange(merged.loc[merged["axis"] == axis, "rule"], RULES):
            own = merged[(merged["rule"] == rule) & (merged["axis"] == axis)]
            there = controls[controls["combination"].isin(own["combination"])].assign(rule=rule)
            stem = f"_{file_stem(rule)}" if several else ""
            taken = {f"{file_stem(part.axis)}{part.stem}" for part in found}
            while f"{file_stem(axis)}{stem}" in taken:  # names that differ in other characters
                stem += "_"
            rows = pd.concat([own, there], ignore_index=True)
            found.append(Part(rule, axis, rows, rule_name(rule) if several else "", stem))
    return found


LAW = "1.13 N^-0.655"
"""The published fit: best coefficients of a full sweep on CLIP ViT-B/16, for N = 2 to 7."""


def public_law(tasks: np.ndarray) -> np.ndarray:
    """Return 1.13 N^-0.655, the published best merging coefficient for each number N of tasks."""
    return 1.13 * np.asarray(tasks, float) ** -0.655


def best_scales(scales: pd.DataFrame) -> pd.DataFrame:
    """Return the best coefficient of every size on the validation split.

    `scales` is the table of `io.read_scales` for one merge method. One row per size: `size`,
    `scale` (the smallest of the best ones), `mean` (normalised score there, averaged over the
    combinations, a fraction), `low` and `high` (whether it is the smallest or the largest one
    tried, in which case the true best may lie outside).
    """
    means = completed(scales).groupby(["size", "scale"], as_index=False)["normalised"].mean()
    means = means.sort_values(["size", "normalised", "scale"], ascending=[True, False, True])
    best = means.drop_duplicates("size", ignore_index=True).rename(columns={"normalised": "mean"})
    tried = scales.groupby("size")["scale"].agg(["min", "max"]).loc[best["size"]].to_numpy()
    low, high = (tried == best[["scale"]].to_numpy()).T
    return best.assign(low=low, high=high & ~low)
