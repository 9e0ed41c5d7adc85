"""The paper's numbers next to a run's: R-MTLLMF (arXiv 2411.18220), CLIP ViT-B/16, eight tasks.

Why they differ is for the author of a run to say, as the scripts of `experiments/` do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from rmtllmf_jax.report.order import PROTECTIONS, SCENARIOS
from rmtllmf_jax.report.paper_facts import Facts
from rmtllmf_jax.report.sheets import Sheet

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
_MSES = {"ideal": ".013", "sum_rate": ".21", "strongest_user": ".16"}
_SNRS = {"ideal": "-16.2", "sum_rate": "-27.3", "strongest_user": "-21.7"}
_NOISY = ("ideal", "sum_rate", "strongest_user")


def paper_sheet(
    results: pd.DataFrame, cosines: pd.DataFrame | None, run: Mapping[str, Any]
) -> Sheet:
    """Return the table "paper | ours" of a run.

    `run` is the content of `run.json`. Ours are means over combinations, draws and seeds ± one
    sample standard deviation, of task arithmetic without an axis.
    """
    facts = Facts.of(results, cosines, run)
    parts = (_accuracies, _mses, _snrs, _cosines, _ratios, _halves)
    rows = [row for part in parts for row in part(facts)]
    if facts.results.empty:
        rows = [("Every measured number (task arithmetic, no axis)", "-", MISSING)]
    header = ["quantity", "paper", "ours"]
    title = "The paper's numbers and this run's"
    return Sheet(title, header, [list(row) for row in rows], names=3)


def _accuracies(facts: Facts) -> Iterator[Row]:
    for (scenario, protection), printed in _ACCURACIES.items():
        what = f"{_name(scenario)}, {PROTECTIONS[protection]}: normalised accuracy (%)"

        def ours(facts: Facts, kind: tuple[str, str] = (scenario, protection)) -> str:
            return _mean(100 * facts.scores(*kind), ".1f")

        scores = facts.scores(scenario, protection)
        cells = f", {len(scores)} cells" if len(scores) else ""
        yield what, printed, _with_informative(facts, ours) + cells


def _mses(facts: Facts) -> Iterator[Row]:
    for scenario, printed in _MSES.items():
        table = facts.user_mse(scenario)
        ours = _mean(table.mean(axis=1).to_numpy(float), ".3g")
        attacked = facts.attacked_mse() if scenario == "strongest_user" else None
        if attacked is not None:
            ours += f"; the attacked user alone {_mean(attacked, '.3g')}"
        yield f"{_name(scenario)}: average MSE", printed, ours


def _snrs(facts: Facts) -> Iterator[Row]:
    for scenario, printed in _SNRS.items():
        ours = _mean(facts.worst_snr_db(scenario), ".1f")
        if ours == MISSING and len(facts.user_mse(scenario)):
            ours = "not defined"
        yield f'{_name(scenario)}: "SNR" (dB)', printed, ours


def _cosines(facts: Facts) -> Iterator[Row]:
    kinds = (
        ("ideal", ("r-mtllmf", "freeze"), "R-MTLLMF", "at most .24"),
        ("sum_rate", ("none",), "unprotected", ".48-.52"),
    )
    for scenario, protections, label, printed in kinds:
        pairs = facts.pair_cosines(scenario, protections)
        low, high, mean = (
            round(float(x), 2) + 0.0 for x in (pairs.min(), pairs.max(), pairs.mean())
        )
        ours = f"{low:.2f} to {high:.2f}, mean {mean:.2f}"
        what = f"{_name(scenario)}, {label}: cosines of task vectors"
        yield what, printed, ours if len(pairs) else MISSING


def _ratios(facts: Facts) -> Iterator[Row]:
    def over_baseline(facts: Facts) -> str:
        pairs = facts.pairs(("ideal", "r-mtllmf"), ("clean", "none"))
        return _ratio(pairs, lambda value: f"{100 * value:.1f}")

    what = "R-MTLLMF, ideal, over the noiseless baseline (%)"
    yield what, "97.7", _with_informative(facts, over_baseline)
    for scenario in ("sum_rate", "strongest_user"):

        def over_unprotected(facts: Facts, scenario: str = scenario) -> str:
            pairs = facts.pairs((scenario, "r-mtllmf"), (scenario, "none"))
            return _ratio(pairs, lambda value: f"{value:.2f} x")

        what = f"{_name(scenario)}: protected over unprotected"
        yield what, "9-14 x", _with_informative(facts, over_unprotected)


def _halves(facts: Facts) -> Iterator[Row]:
    for half in ("freeze", "realign"):

        def worse(facts: Facts, half: str = half) -> str:
            found = []
            for scenario in _NOISY:
                pairs = facts.pairs((scenario, "r-mtllmf"), (scenario, half))
                if len(pairs):
                    points = 100 * (pairs[:, 0] - pairs[:, 1]).mean()
                    found.append(f"{_name(scenario)} {points:.1f}")
            return ", ".join(found) or MISSING

        what = f"{PROTECTIONS[half]}: points worse than both halves"
        yield what, "21-53", _with_informative(facts, worse)


def _with_informative(facts: Facts, ours: Callable[[Facts], str]) -> str:
    """Return a number, with its value without weak tasks in brackets."""
    text = ours(facts)
    if facts.informative is None or text == MISSING:
        return text
    return f"{text} ({ours(facts.informative)} without {', '.join(facts.weak)})"


def _mean(values: np.ndarray, form: str) -> str:
    if not len(values):
        return MISSING
    mean = format(float(np.mean(values)), form)
    return f"{mean} ± {float(np.std(values, ddof=1)):{form}}" if len(values) > 1 else mean


def _ratio(pairs: np.ndarray, form: Callable[[float], str]) -> str:
    if not len(pairs):
        return MISSING
    above, below = pairs.mean(axis=0)
    return form(above / below) if below > 0 else "not defined: unprotected has 0 %"


def _name(scenario: str) -> str:
    return SCENARIOS[scenario]
