"""The paper's numbers next to a run's: R-MTLLMF (arXiv 2411.18220), CLIP ViT-B/16, eight tasks.

Why they differ is for the author of a run to say, as the scripts of `experiments/` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from rmtllmf_jax.report.io import completed, find, metric_of
from rmtllmf_jax.report.labels import PROTECTIONS, SCENARIOS
from rmtllmf_jax.report.sheets import Sheet
from rmtllmf_jax.report.tables import cell_scores, versions

MISSING = "not in this run"

Row = tuple[str, str, str]

# (scenario, protection) -> percentage as printed.
_ACCURACIES = {
    ("clean", "none"): "91.2",
    ("ideal", "none"): "36.3",
    ("sum_rate", "none"): "4-6",
    ("strongest_user", "none"): "4-6",
    ("ideal", "r-mtllmf"): "89.1",
    ("sum_rate", "r-mtllmf"): "54.8",
    ("strongest_user", "r-mtllmf"): "53.3",
}
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

    `run` is the content of `run.json`. Ours are means over combinations, draws and seeds ± one
    sample standard deviation, of task arithmetic without an axis.
    """
    results = completed(results)
    merged = (results["rule"] == "task_arithmetic") & (results["axis"] == "")
    results = results[merged | (results["protection"] == "control")]
    if metric_of(results) != "accuracy":
        results = results.iloc[:0]  # the paper has no other metric
    rows: list[Row] = [("Every measured number (task arithmetic, no axis)", "-", MISSING)]
    if len(results):
        cells = {note: cell_scores(rest) for note, rest in versions(results).items()}
        counts = [len(_scores(cells[""], *kind)) for kind in _ACCURACIES]
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
    for (scenario, protection), printed in _ACCURACIES.items():
        what = f"{SCENARIOS[scenario]}, {PROTECTIONS[protection]}: normalised accuracy (%)"
        scores = _scores(cells, scenario, protection)["score"].to_numpy(float)
        yield what, printed, _mean(100 * scores, ".1f")


def _channel(results: pd.DataFrame, run: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the average MSE and the worst user's SNR in the parameters, over channel draws."""
    # Parameter-domain SNR of a user with MSE 1; none where it was not used.
    used = find(run, "transport") in (None, "gaussian") and find(run, "kappa") is None
    c0_db = find(run, "c0_db") if used else None
    users = {scenario: _user_mse(results, scenario) for scenario in _CHANNEL}
    for scenario, (printed, _) in _CHANNEL.items():
        ours = _mean(users[scenario].mean(axis=1).to_numpy(float), ".3g")
        attacked, ideal = users[scenario], users["ideal"]
        alike = all(map(pd.Index.equals, attacked.axes, ideal.axes))
        if scenario == "strongest_user" and len(ideal) and alike:
            # The user whose MSE grows most relative to the ideal uplink in the same draw.
            values = attacked.to_numpy(float)
            worst = np.argmax(values / ideal.to_numpy(float), axis=1)
            alone = _mean(values[np.arange(len(values)), worst], ".3g")
            ours += f"; the attacked user alone {alone}"
        yield f"{SCENARIOS[scenario]}: average MSE", printed, ours
    for scenario, (_, printed) in _CHANNEL.items():
        mse = users[scenario].to_numpy(float)
        ours = "not defined" if len(mse) else MISSING
        if len(mse) and c0_db is not None and (mse > 0).all():
            ours = _mean(-10 * np.log10(mse.max(axis=1)) + float(c0_db), ".1f")
        yield f'{SCENARIOS[scenario]}: "SNR" (dB)', printed, ours


def _user_mse(results: pd.DataFrame, scenario: str) -> pd.DataFrame:
    """Return (draws, users): MSE of each user in each channel draw; empty without the scenario."""
    rows = results[(results["protection"] != "control") & (results["scenario"] == scenario)]
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
            low, high, mean = (
                round(float(x), 2) + 0.0 for x in (pairs.min(), pairs.max(), pairs.mean())
            )
            ours = f"{low:.2f} to {high:.2f}, mean {mean:.2f}"
        yield f"{SCENARIOS[scenario]}, {label}: cosines of task vectors", printed, ours


def _gains(cells: pd.DataFrame) -> Iterator[Row]:
    ratio = _ratio(_pairs(cells, ("ideal", "r-mtllmf"), ("clean", "none")))
    ours = f"{100 * ratio:.1f}" if isinstance(ratio, float) else ratio
    yield "R-MTLLMF, ideal, over the noiseless baseline (%)", "97.7", ours
    for scenario in ("sum_rate", "strongest_user"):
        ratio = _ratio(_pairs(cells, (scenario, "r-mtllmf"), (scenario, "none")))
        ours = f"{ratio:.2f} x" if isinstance(ratio, float) else ratio
        yield f"{SCENARIOS[scenario]}: protected over unprotected", "9-14 x", ours
    for half in ("freeze", "realign"):
        found = []
        for scenario in _CHANNEL:
            pairs = _pairs(cells, (scenario, "r-mtllmf"), (scenario, half))
            if len(pairs):
                points = 100 * (pairs[:, 0] - pairs[:, 1]).mean()
                found.append(f"{SCENARIOS[scenario]} {points:.1f}")
        ours = ", ".join(found) or MISSING
        yield f"{PROTECTIONS[half]}: points worse than both halves", "21-53", ours


def _scores(cells: pd.DataFrame, scenario: str, protection: str) -> pd.DataFrame:
    return cells[(cells["scenario"] == scenario) & (cells["protection"] == protection)]


def _pairs(cells: pd.DataFrame, first: tuple[str, str], second: tuple[str, str]) -> np.ndarray:
    """Return (pairs, 2): scores of matching cells of two kinds (scenario, protection).

    A clean merge without randomness has one draw and one seed, which then stand for all.
    """
    sides = [_scores(cells, *kind) for kind in (first, second)]
    keys = ["combination", "draw", "seed"]
    if "clean" in (first[0], second[0]):
        once = any(side["seed"].nunique() == 1 for side in sides)
        keys = ["combination"] if once else ["combination", "seed"]
    both = sides[0][[*keys, "score"]].merge(sides[1][[*keys, "score"]], on=keys)
    return both[["score_x", "score_y"]].to_numpy(float)


def _mean(values: np.ndarray, form: str) -> str:
    if not len(values):
        return MISSING
    mean = format(float(np.mean(values)), form)
    return f"{mean} ± {float(np.std(values, ddof=1)):{form}}" if len(values) > 1 else mean


def _ratio(pairs: np.ndarray) -> float | str:
    """Return the ratio of the means, or why there is none."""
    if not len(pairs):
        return MISSING
    above, below = pairs.mean(axis=0)
    return float(above / below) if below > 0 else "not defined: unprotected has 0 %"
