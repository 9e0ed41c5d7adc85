"""The figures that a run's tables allow, each with its title and caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from rmtllmf_jax.report.figures import axis_figure, figure_2, figure_5, scale_figure
from rmtllmf_jax.report.io import metric_of
from rmtllmf_jax.report.labels import (
    AXES,
    RULES,
    SCENARIOS,
    arrange,
    file_stem,
    joined,
    rule_name,
    unfused,
)
from rmtllmf_jax.report.tables import LAW, Part, cell_scores, parts, versions
from rmtllmf_jax.report.vector_figures import DRAWN, cosine_figure, largest_cosine

STEMS = ("figure_2*", "figure_3*", "figure_4*", "figure_5*", "axis_*", "scale_law*")
"""Patterns of the file names of a report's figures."""

_ABLATION = ("none", "freeze", "realign", "r-mtllmf")
_LINES = (
    "One line per protection: mean over combinations, channel realisations and seeds; the shading "
    "(a bar where there is one point) is its 95 % interval, by a bootstrap that resamples them. "
    "Dashed: the control, the base model realigned on the same shots without any task vector. "
    "Dotted: the base model under the tasks' own heads."
)
_HEAT_MAP = (
    "Cosines between the task vectors as received, mean over channel draws and seeds; one "
    "panel per protection (freeze: the embeddings are those of the base model and count as "
    "zero). {errors} The colour scale is -1 to 1 in every figure."
)
_HALVES = (
    "What each half of R-MTLLMF is worth. Left: means over combinations, channel realisations and "
    "seeds, and then over the numbers of tasks; right: differences to R-MTLLMF, in pairs of one "
    "combination, realisation and seed. Bars: 95 % intervals, by a bootstrap that resamples "
    "these. A run has one number of samples per class; experiments/figure_5.py draws several."
)
_SCALES = (
    "Left: normalised accuracy of the noiseless merge on validation samples, mean over the "
    "combinations of a size. Right: the best coefficient of each size next to the "
    f"published fit {LAW}; a triangle marks one at the edge of the range tried."
)


@dataclass(frozen=True)
class Plate:
    """A figure with its file's stem, its title and its caption."""

    stem: str
    figure: Figure
    title: str
    caption: str
    narrow: Figure | None = None
    """The same with its panels one below the other, for a phone."""


def plates(
    results: pd.DataFrame,
    cosines: pd.DataFrame | None,
    scales: pd.DataFrame | None,
    shots: int | None = None,
) -> tuple[list[Plate], list[str]]:
    """Return the figures of a run, and a sentence for each of the paper's that cannot be drawn.

    `shots` is the number of samples per class for realignment, from `run.json`.
    """
    whole = parts(results)
    made = [
        *(plate for part in whole for plate in _accuracies(part, any(p.axis for p in whole))),
        _cosines("figure_3", "ideal", cosines),
        _cosines("figure_4", "sum_rate", cosines),
        _ablation(whole, shots),
        *([] if scales is None else _scales(scales)),
    ]
    skipped = [plate for plate in made if isinstance(plate, str)]
    return [plate for plate in made if isinstance(plate, Plate)], list(dict.fromkeys(skipped))


def _accuracies(part: Part, along_an_axis: bool) -> Iterator[Plate | str]:
    """Yield the accuracy of a part by size or level; `along_an_axis` if the run has an axis."""
    merged = part.results[~unfused(part.results["protection"])]
    if merged.empty:
        yield "figure_2 skipped: results.parquet holds control rows only."
        return
    if along_an_axis and not part.axis and set(merged["scenario"]) == {"clean"}:
        yield "figure_2 skipped: only clean merges have no axis; see axis_* instead."
        return
    metric = metric_of(part.results)
    if part.axis:
        stem = f"axis_{file_stem(part.axis)}"
        title = f"{metric.capitalize()} along {part.axis}"
        one = merged["scenario"].nunique() == 1
        panel = "number of tasks" if one else "scenario (the mean over the numbers of tasks)"
        by = AXES.get(part.axis, part.axis)
    else:
        stem, title = "figure_2", f"Figure 2: {metric} by number of tasks"
        panel, by = "scenario", "number of fused tasks"
    caption = f"Average normalised {metric} by {by}, one panel per {panel}. {_LINES}"
    for note, results in versions(part.results).items():
        named = joined(part.title, note)
        wide, narrow = (
            axis_figure(results, part.axis, named, narrow=narrow)
            if part.axis
            else figure_2(results, named, narrow=narrow)
            for narrow in (False, True)
        )
        ending = "_informative" if note else ""
        yield Plate(f"{stem}{part.stem}{ending}", wide, joined(title, named), caption, narrow)


def _cosines(stem: str, scenario: str, cosines: pd.DataFrame | None) -> Plate | str:
    if cosines is None:
        return f"{stem} skipped: the run has no cosines.parquet."
    rows = cosines[cosines["scenario"] == scenario]
    if rows.empty:
        return f"{stem} skipped: cosines.parquet has no scenario {scenario}."
    if (rows["axis"] != "").any():
        return f"{stem} skipped: the cosines of {scenario} lie along an axis."
    largest = largest_cosine(rows)
    if largest < DRAWN:
        return (
            f"{stem} skipped: all cosines of different tasks under {scenario} round to 0.00; the "
            f"largest is {largest:.1g} in absolute value."
        )
    errors = "The error model is not recorded."
    if "error_model" in rows:
        errors = f"Errors of different users: {', '.join(sorted(rows['error_model'].unique()))}."
    title = f"{stem.capitalize().replace('_', ' ')}: cosines of task vectors, {SCENARIOS[scenario]}"
    return Plate(stem, cosine_figure(rows, scenario), title, _HEAT_MAP.format(errors=errors))


def _ablation(whole: list[Part], shots: int | None) -> Plate | str:
    """Draw figure 5 where a noisy uplink has both halves of R-MTLLMF, alone and together."""
    for part in whole:
        noisy = part.results[part.results["scenario"] != "clean"]
        noisy = noisy[noisy["protection"].isin(_ABLATION)]
        if part.rule != "task_arithmetic" or part.axis or noisy["protection"].nunique() < 4:
            continue
        if shots is None:
            return "figure_5 skipped: the samples per class of realignment are not recorded."
        cells = cell_scores(noisy).rename(columns={"protection": "variant"})
        cells = cells[cells["variant"] != "base"]
        realigned = cells["variant"].isin(["realign", "r-mtllmf"])
        figure = figure_5(cells.assign(shots=realigned * shots), shots)
        return Plate("figure_5", figure, "Figure 5: the halves of R-MTLLMF", _HALVES)
    return (
        "figure_5 skipped: no noisy uplink has task arithmetic under all of "
        f"{', '.join(_ABLATION)}."
    )


def _scales(scales: pd.DataFrame) -> Iterator[Plate]:
    rules = arrange(scales["rule"], RULES)
    for rule in rules:
        note, ending = (rule_name(rule), f"_{file_stem(rule)}") if len(rules) > 1 else ("", "")
        title = joined("Merging coefficient by number of tasks", note)
        figure = scale_figure(scales[scales["rule"] == rule], note)
        yield Plate(f"scale_law{ending}", figure, title, _SCALES)
