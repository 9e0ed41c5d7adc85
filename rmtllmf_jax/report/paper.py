"""The paper's numbers next to a run's: R-MTLLMF (arXiv 2411.18220), CLIP ViT-B/16, eight tasks.

"why different" holds what the run's own tables and configuration say, see `paper_reasons.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from rmtllmf_jax.report import paper_reasons as reasons
from rmtllmf_jax.report.order import PROTECTIONS, SCENARIOS
from rmtllmf_jax.report.paper_facts import Facts
from rmtllmf_jax.report.sheets import Sheet

MISSING = "not in this run"

Row = tuple[str, str, str, str]

# (scenario, protection) -> per cent as printed.
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
    """Return the table "paper | ours | why different" of a run.

    `run` is the content of `run.json`. Ours are means over combinations, draws and seeds ± one
    sample standard deviation, of task arithmetic without an axis.
    """
    facts = Facts.of(results, cosines, run)
    settings = reasons.settings(facts)
    rows = [(setting.what, setting.paper, setting.ours, setting.why) for setting in settings]
    if facts.results.empty:
        rows.append(("Every measured number", "-", MISSING, "No task arithmetic without an axis."))
    else:
        for part in (_accuracies, _mses, _snrs, _cosines, _ratios, _halves):
            rows += part(facts)
    header = ["quantity", "paper", "ours", "why different"]
    title = "The paper's numbers and this run's"
    return Sheet(title, header, [list(row) for row in rows], names=4)


def _accuracies(facts: Facts) -> Iterator[Row]:
    for (scenario, protection), printed in _ACCURACIES.items():
        what = f"{_name(scenario)}, {PROTECTIONS[protection]}: normalised accuracy (%)"

        def ours(facts: Facts, kind: tuple[str, str] = (scenario, protection)) -> str:
            return _mean(100 * facts.scores(*kind), ".1f")

        scores = facts.scores(scenario, protection)
        why = reasons.accuracy(facts, scenario, protection, printed) if len(scores) else ""
        cells = f", {len(scores)} cells" if len(scores) else ""
        yield what, printed, _with_informative(facts, ours) + cells, why


def _mses(facts: Facts) -> Iterator[Row]:
    for scenario, printed in _MSES.items():
        table = facts.user_mse(scenario)
        ours = _mean(table.mean(axis=1).to_numpy(float), ".3g")
        attacked = facts.attacked_mse() if scenario == "strongest_user" else None
        if attacked is not None:
            ours += f"; the attacked user alone {_mean(attacked, '.3g')}"
        why = reasons.mse(facts, scenario) if len(table) else ""
        yield f"{_name(scenario)}: average MSE", printed, ours, why


def _snrs(facts: Facts) -> Iterator[Row]:
    for scenario, printed in _SNRS.items():
        ours = _mean(facts.worst_snr_db(scenario), ".1f")
        if ours == MISSING and len(facts.user_mse(scenario)):
            ours = "not defined"
        why = reasons.snr(facts, scenario) if ours != MISSING else ""
        yield f'{_name(scenario)}: "SNR" (dB)', printed, ours, why


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
        why = reasons.cosine(facts, scenario) if len(pairs) else ""
        what = f"{_name(scenario)}, {label}: cosines of task vectors"
        yield what, printed, ours if len(pairs) else MISSING, why


def _ratios(facts: Facts) -> Iterator[Row]:
    def over_baseline(facts: Facts) -> str:
        pairs = facts.pairs(("ideal", "r-mtllmf"), ("clean", "none"))
        return _ratio(pairs, lambda value: f"{100 * value:.1f}")

    what = "R-MTLLMF, ideal, over the noiseless baseline (%)"
    ours = _with_informative(facts, over_baseline)
    why = reasons.over_baseline(facts) if ours != MISSING else ""
    yield what, "97.7", ours, why
    for scenario in ("sum_rate", "strongest_user"):

        def over_unprotected(facts: Facts, scenario: str = scenario) -> str:
            pairs = facts.pairs((scenario, "r-mtllmf"), (scenario, "none"))
            return _ratio(pairs, lambda value: f"{value:.2f} x")

        ours = _with_informative(facts, over_unprotected)
        why = reasons.over_unprotected(facts, scenario) if ours != MISSING else ""
        yield f"{_name(scenario)}: protected over unprotected", "9-14 x", ours, why


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

        ours = _with_informative(facts, worse)
        why = reasons.half(facts, half, _NOISY) if ours != MISSING else ""
        yield f"{PROTECTIONS[half]}: points worse than both halves", "21-53", ours, why


def _with_informative(facts: Facts, ours: Callable[[Facts], str]) -> str:
    """Return a number, and in brackets what it is without weak tasks."""
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
