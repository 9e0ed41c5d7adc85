"""The figures that a run's tables allow, each with its title and caption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from rmtllmf_jax.report.axis_figure import axis_figure
from rmtllmf_jax.report.figures import figure_2, figure_5
from rmtllmf_jax.report.heat_maps import cosine_figure
from rmtllmf_jax.report.order import AXES, RULES, SCENARIOS, arrange
from rmtllmf_jax.report.parts import Part, file_stem, parts, rule_name
from rmtllmf_jax.report.scale_law import LAW, scale_figure
from rmtllmf_jax.report.tables import cell_scores
from rmtllmf_jax.report.weak import weak_tasks, without_weak_tasks

STEMS = ("figure_2*", "figure_3*", "figure_4*", "figure_5*", "axis_*", "scale_law*")
"""Patterns of the file names of a report's figures."""

_ABLATION = ("none", "freeze", "realign", "r-mtllmf")
_HEAT_MAPS = {"figure_3": "ideal", "figure_4": "sum_rate"}
_LINES = (
    "One line per protection: mean over combinations, channel draws and seeds; the shading (a bar "
    "where there is one point) is ± 1 sample standard deviation over them. Dashed: the control, "
    "the base model realigned on the same shots without any task vector. Dotted: the base model "
    "under the tasks' own heads."
)


@dataclass(frozen=True)
class Plate:
    """A figure with its file's stem, its title and its caption."""

    stem: str
    figure: Figure
    title: str
    caption: str


def plates(
    results: pd.DataFrame,
    cosines: pd.DataFrame | None,
    scales: pd.DataFrame | None,
    shots: int | None = None,
) -> tuple[list[Plate], list[str]]:
    """Return the figures of a run, and a sentence for each of the paper's that is not possible.

    `shots` is the number of samples per class for realignment, from `run.json`.
    """
    found: list[Plate] = []
    skipped: list[str] = []
    whole = parts(results)
    for part in whole:
        if (part.results["protection"] == "control").all():
            skipped.append("figure_2 skipped: results.parquet holds control rows only.")
        elif part.axis:
            found += _along(part)
        elif part.beside_an_axis and any(other.axis for other in whole):
            skipped.append("figure_2 skipped: only clean merges have no axis; see axis_* instead.")
        else:
            found += _by_size(part)
    for stem, scenario in _HEAT_MAPS.items():
        if cosines is None:
            skipped.append(f"{stem} skipped: the run has no cosines.parquet.")
        elif scenario not in set(cosines["scenario"]):
            skipped.append(f"{stem} skipped: cosines.parquet has no scenario {scenario}.")
        elif (cosines.loc[cosines["scenario"] == scenario, "axis"] != "").any():
            skipped.append(f"{stem} skipped: the cosines of {scenario} lie along an axis.")
        else:
            found.append(_heat_map(stem, cosines, scenario))
    halves = [part for part in whole if _has_halves(part)]
    if halves and shots is None:
        skipped.append("figure_5 skipped: the samples per class of realignment are not recorded.")
    elif halves and shots is not None:
        found += [_halves(part, shots) for part in halves]
    else:
        skipped.append(
            "figure_5 skipped: no noisy uplink has task arithmetic under all of "
            f"{', '.join(_ABLATION)}."
        )
    if scales is not None:
        found += _scales(scales)
    return found, list(dict.fromkeys(skipped))


def _by_size(part: Part) -> Iterator[Plate]:
    title = f"Figure 2: accuracy by number of tasks{_comma(part.title)}"
    what = "Average normalised accuracy by number of fused tasks, one panel per scenario"
    caption = f"{what}. {_LINES}"
    for note, results, stem in _versions(part):
        drawn = figure_2(results, ", ".join(filter(None, (part.title, note))))
        yield Plate(f"figure_2{part.stem}{stem}", drawn, title + _comma(note), caption)


def _along(part: Part) -> Iterator[Plate]:
    title = f"Accuracy along {part.axis}{_comma(part.title)}"
    one = part.results.loc[part.results["axis"] != "", "scenario"].nunique() == 1
    panel = "number of tasks" if one else "scenario (all sizes together)"
    what = AXES.get(part.axis, part.axis)
    caption = f"Average normalised accuracy by {what}, one panel per {panel}. {_LINES}"
    for note, results, stem in _versions(part):
        drawn = axis_figure(results, part.axis, ", ".join(filter(None, (part.title, note))))
        yield Plate(
            f"axis_{file_stem(part.axis)}{part.stem}{stem}", drawn, title + _comma(note), caption
        )


def _versions(part: Part) -> Iterator[tuple[str, pd.DataFrame, str]]:
    yield "", part.results, ""
    weak, informative = weak_tasks(part.results), without_weak_tasks(part.results)
    if weak and (informative["protection"] != "control").any():
        yield f"without {', '.join(weak)}", informative, "_informative"


def _heat_map(stem: str, cosines: pd.DataFrame, scenario: str) -> Plate:
    number, name = stem.rsplit("_", 1)[1], SCENARIOS[scenario]
    rows = cosines[cosines["scenario"] == scenario]
    model = ", ".join(sorted(rows["error_model"].unique())) if "error_model" in rows else None
    errors = f"Errors of different users: {model}." if model else "The error model is not recorded."
    caption = (
        "Cosines between the task vectors as received, mean over channel draws and seeds; one "
        "panel per protection (freeze: the embeddings are those of the base model and count as "
        "zero). "
        f"{errors} The colour scale is -1 to 1 in every figure."
    )
    title = f"Figure {number}: cosines of task vectors, {name}"
    return Plate(stem, cosine_figure(cosines, scenario), title, caption)


def _has_halves(part: Part) -> bool:
    """Return whether a noisy uplink has both halves of R-MTLLMF, alone and together."""
    protections = set(_ablation(part)["protection"])
    return part.rule == "task_arithmetic" and not part.axis and protections == set(_ABLATION)


def _ablation(part: Part) -> pd.DataFrame:
    noisy = part.results[part.results["scenario"] != "clean"]
    return noisy[noisy["protection"].isin(_ABLATION)]


def _halves(part: Part, shots: int) -> Plate:
    cells = cell_scores(_ablation(part)).rename(columns={"protection": "variant"})
    realigned = cells["variant"].isin(["realign", "r-mtllmf"])
    figure = figure_5(cells.assign(shots=realigned * shots), shots)
    caption = (
        "What each half of R-MTLLMF is worth: mean over combinations of all sizes, channel draws "
        "and seeds; bars: ± 1 sample standard deviation. A run has one number of samples per "
        "class; experiments/figure_5.py draws several."
    )
    return Plate("figure_5", figure, "Figure 5: the halves of R-MTLLMF", caption)


def _scales(scales: pd.DataFrame) -> Iterator[Plate]:
    rules = arrange(scales["rule"], RULES)
    for rule in rules:
        note = rule_name(rule) if len(rules) > 1 else ""
        stem = f"scale_law_{file_stem(rule)}" if len(rules) > 1 else "scale_law"
        caption = (
            "Left: normalised accuracy of the noiseless merge on validation samples, mean over the "
            "combinations of a size. Right: the best coefficient of each size next to the "
            f"published fit {LAW}; a triangle marks one at the edge of the range tried."
        )
        title = f"Merging coefficient by number of tasks{_comma(note)}"
        yield Plate(stem, scale_figure(scales[scales["rule"] == rule], note), title, caption)


def _comma(note: str) -> str:
    return f", {note}" if note else ""
