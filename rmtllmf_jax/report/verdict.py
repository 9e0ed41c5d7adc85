"""Whether the protection helps, said in numbers and then in a sentence."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from rmtllmf_jax.report.order import SCENARIOS, arrange
from rmtllmf_jax.report.tables import cell_scores
from rmtllmf_jax.report.weak import caveat, weak_tasks, without_weak_tasks

_TIE = 1e-9  # below it two means differ by rounding only
_PAIR = ["combination", "scenario", "draw", "seed"]


def comparisons(results: pd.DataFrame) -> pd.DataFrame:
    """Compare R-MTLLMF with no protection and with the control, pair by pair.

    A pair shares combination, draw and seed (with the control, which has no uplink: combination and
    seed); cells without a partner are left out. One row a (scenario, `against`), for each scenario
    that has R-MTLLMF cells. Columns: `scenario`, `against` (`none` or `control`), `protected` and
    `other` (mean average normalised accuracy over the pairs), `difference`, its standard `error`
    (NaN for fewer than two pairs; pairs that share tasks are not independent, so it is a lower
    bound), `better` (number of pairs in which R-MTLLMF is better) and `pairs`. Without a pair the
    means are NaN.
    """
    cells = cell_scores(results)
    unprotected = cells[cells["protection"] == "none"][[*_PAIR, "score"]]
    unprotected = unprotected.rename(columns={"score": "none"})
    protected = cells[cells["protection"] == "r-mtllmf"].merge(unprotected, on=_PAIR, how="left")
    rows = []
    for scenario in arrange(protected["scenario"], SCENARIOS):
        for against in ("none", "control"):
            pairs = protected[protected["scenario"] == scenario].dropna(subset=[against])
            gain = pairs["score"] - pairs[against]
            rows.append(
                {
                    "scenario": scenario,
                    "against": against,
                    "protected": pairs["score"].mean(),
                    "other": pairs[against].mean(),
                    "difference": gain.mean(),
                    "error": gain.sem(),
                    "better": int((gain > _TIE).sum()),
                    "pairs": len(pairs),
                }
            )
    means = ["protected", "other", "difference", "error"]
    return pd.DataFrame(rows, columns=["scenario", "against", *means, "better", "pairs"])


def verdict(results: pd.DataFrame) -> list[str]:
    """Return `sentences`; with weak tasks, also what they are and the sentences without them."""
    note, informative = caveat(results), without_weak_tasks(results)
    if note is None or informative.empty:
        return sentences(results) + ([note] if note else [])
    without = f"Without {', '.join(weak_tasks(results))}: "
    return [*sentences(results), note, *(without + line for line in sentences(informative))]


def sentences(results: pd.DataFrame) -> list[str]:
    """Return one sentence a row of `comparisons`, or one that says there is nothing to compare."""
    rows = comparisons(results)
    if rows.empty:
        return ["No scenario has R-MTLLMF cells: whether the protection helps cannot be said."]
    return [_sentence(row) for row in rows.to_dict("records")]


def _sentence(row: dict[str, Any]) -> str:
    scenario = SCENARIOS.get(str(row["scenario"]), str(row["scenario"]))
    other = "unprotected" if row["against"] == "none" else "the control"
    if not row["pairs"]:
        return f"{scenario}: protected cannot be compared with {other}, no cell has both."
    difference = row["difference"]
    spread = 0.0 if math.isnan(row["error"]) else 2 * row["error"]
    verb = "beats" if difference > 0 else "is worse than"
    if abs(difference) <= max(spread, _TIE):
        verb = "cannot be told from"
    return (
        f"{scenario}: protected {verb} {other}: {row['protected']:.1%} against {row['other']:.1%} "
        f"({100 * difference:+.2f} ± {100 * spread:.2f} points, twice the standard error; "
        f"better in {row['better']} of {row['pairs']} pairs)."
    )
