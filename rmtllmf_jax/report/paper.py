"""The paper's numbers next to a run's: R-MTLLMF (arXiv 2411.18220), CLIP ViT-B/16, eight tasks.

Explaining why they differ is left to the author of a run, as in the scripts of `experiments/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from rmtllmf_jax.report.intervals import differences, interval
from rmtllmf_jax.report.io import completed, find, metric_of
from rmtllmf_jax.report.labels import PROTECTIONS, SCENARIOS, unfused
from rmtllmf_jax.report.sheet import Sheet
from rmtllmf_jax.report.tables import cell_scores, for_seeds, versions

MISSING = "not in this run"

Row = tuple[str, str, str]

ACCURACIES = {
    ("clean", "none"): "91.2",
    ("ideal", "none"): "36.3",
    ("sum_rate", "none"): "4-6",
    ("strongest_user", "none"): "4-6",
    ("ideal", "r-mtllmf"): "89.1",
    ("sum_rate", "r-mtllmf"): "54.8",
    ("strongest_user", "r-mtllmf"): "53.3",
}
"""Accuracy relative to fine-tuning as printed, in per cent, by scenario and protection."""

_UNDEFENDED = ("none", "freeze", "realign", "r-mtllmf")
"""What does nothing to the uplink, whose MSE is the paper's."""

# scenario -> average MSE and "SNR" (dB) as printed.
_CHANNEL = {
    "ideal": (".013", "-16.2"),
    "sum_rate": (".21", "-27.3"),
    "strongest_user": (".16", "-21.7"),
}


def paper_sheet(
    results: pd.DataFrame, cosines: pd.DataFrame | None, run: Mapping[str, Any]
) -> Sheet:
    """Return the table "paper | ours" of a run.

    `run` is the content of `run.json`. Ours are for task arithmetic without an axis: means (over
    those at each number of tasks) with their 95 % intervals.
    """
    results = completed(results)
    merged = (results["rule"] == "task_arithmetic") & (results["axis"] == "")
    results = results[merged | unfused(results["protection"])]
    if metric_of(results) != "accuracy":
        results = results.iloc[:0]  # the paper has no other metric
    rows: list[Row] = [("Every measured number (task arithmetic, no axis)", "-", MISSING)]
    if len(results):
        cells = {note: cell_scores(rest) for note, rest in versions(results).items()}
        counts = [len(_scores(cells[""], *kind)) for kind in ACCURACIES]
        rows = [
            (what, printed, f"{ours}, {count} cells" if count else ours)
            for (what, printed, ours), count in zip(_bracketed(_accuracies, cells), counts)
        ]
        rows += [*_channel(results, run), *_cosines(cosines), *_bracketed(_gains, cells)]
    header = ["quantity", "paper", "ours"]
    return Sheet("The paper's numbers and this run's", header, [list(row) for row in rows], names=3)


def _bracketed(
    measure: Callable[[pd.DataFrame], Iterator[Row]], cells: dict[str, pd.DataFrame]
) -> Iterator[Row]:
    """Yield the rows of all cells, each with its value without weak tasks in brackets."""
    whole, *rest = (list(measure(table)) for table in cells.values())
    for place, (what, printed, ours) in enumerate(whole):
        notes = [
            f" ({rows[place][2]} {note})" for note, rows in zip(list(cells)[1:], rest, strict=True)
        ]
        yield what, printed, ours if ours == MISSING else "".join([ours, *notes])


def _accuracies(cells: pd.DataFrame) -> Iterator[Row]:
    for (scenario, protection), printed in ACCURACIES.items():
        what = f"{SCENARIOS[scenario]}, {PROTECTIONS[protection]}: normalised accuracy (%)"
        yield what, printed, _mean(_scores(cells, scenario, protection))


def _channel(results: pd.DataFrame, run: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the average MSE and the worst user's SNR in the parameters, over channel draws."""
    # Parameter-domain SNR of a user with MSE 1; none where it was not used.
    used = find(run, "transport") in (None, "gaussian") and find(run, "kappa") is None
    c0_db = find(run, "c0_db") if used else None
    users = {scenario: _user_mse(results, scenario) for scenario in _CHANNEL}
    for scenario, (printed, _) in _CHANNEL.items():
        ours = _over_draws(users[scenario].mean(axis=1), ".3g")
        attacked, ideal = users[scenario], users["ideal"]
        alike = all(map(pd.Index.equals, attacked.axes, ideal.axes))
        if scenario == "strongest_user" and len(ideal) and alike:
            # The user whose MSE grows most relative to the ideal uplink in the same draw.
            alone = attacked.where(
                (attacked / ideal).rank(axis=1, method="first") == ideal.shape[1]
            )
            ours += f"; the attacked user alone {_over_draws(alone.max(axis=1), '.3g')}"
        yield f"{SCENARIOS[scenario]}: average MSE", printed, ours
    for scenario, (_, printed) in _CHANNEL.items():
        mse = users[scenario].max(axis=1)
        ours = "not defined" if len(mse) else MISSING
        if len(mse) and c0_db is not None and (users[scenario] > 0).all(axis=None):
            ours = _over_draws(-10 * np.log10(mse) + float(c0_db), ".1f")
        yield f'{SCENARIOS[scenario]}: "SNR" (dB)', printed, ours


def _user_mse(results: pd.DataFrame, scenario: str) -> pd.DataFrame:
    """Return (draws, users): MSE of each user in each channel draw; empty without the scenario."""
    rows = results[results["protection"].isin(_UNDEFENDED) & (results["scenario"] == scenario)]
    keys = ["draw", "seed"]
    table = rows.pivot_table(index=keys, columns="task", values="mse", aggfunc="first").dropna()
    return table.reset_index().drop(columns="seed").drop_duplicates().set_index("draw")


def _cosines(cosines: pd.DataFrame | None) -> Iterator[Row]:
    """Yield the range of the cosines of pairs of tasks, each a mean over draws and seeds."""
    kinds = (
        ("ideal", ("r-mtllmf", "freeze"), "R-MTLLMF", "at most .24"),
        ("sum_rate", ("none",), "unprotected", ".48-.52"),
    )
    for scenario, protections, label, printed in kinds:
        ours = MISSING
        rows = completed(pd.DataFrame() if cosines is None else cosines)
        if len(rows):
            rows = rows[(rows["axis"] == "") & (rows["scenario"] == scenario)]
            rows = rows[rows["task_a"] < rows["task_b"]]
            there = [name for name in protections if name in set(rows["protection"])]
            rows = rows[rows["protection"].isin(there[:1])]
        if len(rows):
            pairs = rows.groupby(["task_a", "task_b"])["cosine"].mean()
            ours = f"{pairs.min():z.2f} to {pairs.max():z.2f}, mean {pairs.mean():z.2f}"
            if (largest := pairs.abs().max()) < 0.005:
                ours = f"at most {largest:.1g} in absolute value"
        yield f"{SCENARIOS[scenario]}, {label}: cosines of task vectors", printed, ours


def _gains(cells: pd.DataFrame) -> Iterator[Row]:
    ratio = _ratio(paired(cells, ("ideal", "r-mtllmf"), ("clean", "none")))
    ours = f"{100 * ratio:.0f}" if isinstance(ratio, float) else ratio
    yield "R-MTLLMF, ideal, over the noiseless baseline (%)", "97.7", ours
    for scenario in ("sum_rate", "strongest_user"):
        ratio = _ratio(paired(cells, (scenario, "r-mtllmf"), (scenario, "none")))
        ours = f"{ratio:.1f} x" if isinstance(ratio, float) else ratio
        yield f"{SCENARIOS[scenario]}: protected over unprotected", "9-14 x", ours
    for half in ("freeze", "realign"):
        found = []
        for scenario in _CHANNEL:
            pairs = paired(cells, (scenario, "r-mtllmf"), (scenario, half))
            if len(pairs):
                found.append(f"{SCENARIOS[scenario]} {interval(pairs, 'difference').text()}")
        ours = ", ".join(found) or MISSING
        yield f"{PROTECTIONS[half]}: points worse than both halves", "21-53", ours


def _scores(cells: pd.DataFrame, scenario: str, protection: str) -> pd.DataFrame:
    return cells[(cells["scenario"] == scenario) & (cells["protection"] == protection)]


def paired(cells: pd.DataFrame, first: tuple[str, str], second: tuple[str, str]) -> pd.DataFrame:
    """Return `differences` of matching cells of two kinds (scenario, protection).

    A clean merge without randomness has one draw and few seeds, which are used for all.
    """
    one, other = (_scores(cells, *kind) for kind in (first, second))
    keys = ["combination", "draw", "seed"]
    if "clean" in (first[0], second[0]):
        keys = ["combination", "seed"]
    if first[0] == "clean":
        one = for_seeds(one, other["seed"])
    if second[0] == "clean":
        other = for_seeds(other, one["seed"])
    return differences(one, other, keys)


def _mean(cells: pd.DataFrame) -> str:
    return interval(cells).text() if len(cells) else MISSING


def _over_draws(values: pd.Series, form: str) -> str:
    """Return the mean over channel realisations (the index) with its interval."""
    table = values.rename("value").rename_axis("draw").reset_index()
    return interval(table, "value").text(form, scale=1.0) if len(table) else MISSING


def _ratio(pairs: pd.DataFrame) -> float | str:
    """Return the ratio of the means, or why there is none."""
    if pairs.empty:
        return MISSING
    above, below = pairs.groupby("size")[["score", "other"]].mean().mean()
    return float(above / below) if below > 0 else "not defined: unprotected has 0 %"
