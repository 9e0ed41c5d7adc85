"""Whether the protection helps, in numbers and then in a sentence."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from rmtllmf_jax.report.order import SCENARIOS, in_order
from rmtllmf_jax.report.parts import rule_name
from rmtllmf_jax.report.tables import SETTING, cell_scores
from rmtllmf_jax.report.weak import caveat, weak_tasks, without_weak_tasks

_VERBS = _BEATS, _TIES, _LOSES = "beats", "cannot be distinguished from", "is worse than"
_TIE = 1e-9  # smaller differences of means are rounding
_PAIR = [*SETTING, "combination", "scenario", "draw", "seed"]
_RIVALS = {
    "none": ("unprotected", ""),
    "realign": (
        "realignment alone",
        " Reloading the frozen leaves brings no measurable gain over realignment alone.",
    ),
    "control": (
        "the control",
        " The fused task vectors bring no measurable gain over the same shots without them.",
    ),
}
"""What R-MTLLMF is compared with, and what follows if R-MTLLMF does not beat it."""


def comparisons(results: pd.DataFrame) -> pd.DataFrame:
    """Compare R-MTLLMF with no protection, realignment alone and the control, pair by pair.

    A pair shares combination, draw and seed (with the control, which has no uplink: combination and
    seed); cells without a partner are left out. One row per (rule, axis, level, scenario,
    `against`), for each scenario that has R-MTLLMF cells. Columns: these five (`against`: `none`,
    `control` and `realign`, if the results have it), `protected` and `other` (mean average
    normalised accuracy over the pairs), `difference`, its standard `error` (NaN for fewer than two
    pairs; pairs that share tasks are not independent, so it is a lower bound), `better` (number of
    pairs in which R-MTLLMF is better) and `pairs`. Without a pair the means are NaN.
    """
    cells = cell_scores(results)
    protected = cells[cells["protection"] == "r-mtllmf"]
    for name in ("none", "realign"):
        rival = cells[cells["protection"] == name][[*_PAIR, "score"]]
        protected = protected.merge(rival.rename(columns={"score": name}), on=_PAIR, how="left")
    rivals = [name for name in _RIVALS if name != "realign" or protected[name].notna().any()]
    keys = [*SETTING, "scenario"]
    rows = []
    for names, group in in_order(protected, keys).groupby(keys, dropna=False, sort=False):
        for against in rivals:
            pairs = group.dropna(subset=[against])
            gain = pairs["score"] - pairs[against]
            rows.append(
                {
                    **dict(zip(keys, names)),
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
    return pd.DataFrame(rows, columns=[*keys, "against", *means, "better", "pairs"])


def verdict(results: pd.DataFrame) -> list[str]:
    """Return `sentences`; with weak tasks, also their names and the sentences without them."""
    note, informative = caveat(results), without_weak_tasks(results)
    if note is None or informative.empty:
        return sentences(results) + ([note] if note else [])
    without = f"Without {', '.join(weak_tasks(results))}: "
    return [*sentences(results), note, *(without + line for line in sentences(informative))]


def sentences(results: pd.DataFrame) -> list[str]:
    """Return `comparisons` in words, or one sentence that says there is nothing to compare.

    One sentence per row; along an axis, one for all levels. With several rules each names its own.
    """
    table = comparisons(results)
    if table.empty:
        return ["No scenario has R-MTLLMF cells: whether the protection helps cannot be said."]
    several = table["rule"].nunique() > 1
    said = []
    keys = ["rule", "axis", "scenario", "against"]
    for (rule, axis, *_), group in table.groupby(keys, sort=False):
        rows = group.to_dict("records")
        lead = f"{rule_name(rule).capitalize()}, " if several else ""
        said.append(lead + (_along(axis, rows) if axis else _sentence(rows[0])))
    return said


def _sentence(row: dict[str, Any]) -> str:
    scenario, other = _names(row)
    if not row["pairs"]:
        return f"{scenario}: protected cannot be compared with {other}, no cell has both."
    verb, spread = _verb(row)
    shown = (
        f"{scenario}: protected {verb} {other}: {row['protected']:.1%} against {row['other']:.1%}"
    )
    gain = f"{100 * row['difference']:+.2f}"
    if row["pairs"] == 1:
        return f"{shown} ({gain} points in the only pair, which has no spread)."
    no_gain = "" if verb == _BEATS else _RIVALS[row["against"]][1]
    return (
        f"{shown} ({gain} ± {100 * spread:.2f} points, twice the standard error; "
        f"better in {row['better']} of {row['pairs']} pairs).{no_gain}"
    )


def _along(axis: str, rows: list[dict[str, Any]]) -> str:
    scenario, other = _names(rows[0])
    paired = [row for row in rows if row["pairs"]]
    lead = f"{scenario}, over {axis}: protected"
    if not paired:
        return f"{lead} cannot be compared with {other}, no cell has both."
    found: dict[str, list[str]] = {}
    for row in paired:
        found.setdefault(_verb(row)[0], []).append(f"{row['level']:.4g}")
    where = [f"{verb} {other} at {', '.join(found[verb])}" for verb in _VERBS if verb in found]
    first, last = (
        f"{100 * row['difference']:+.1f} at {row['level']:.4g}" for row in (paired[0], paired[-1])
    )
    no_gain = "" if _BEATS in found else _RIVALS[rows[0]["against"]][1]
    return f"{lead} {'; '.join(where)} (points: {first}, {last}).{no_gain}"


def _names(row: dict[str, Any]) -> tuple[str, str]:
    scenario = SCENARIOS.get(str(row["scenario"]), str(row["scenario"]))
    return scenario, _RIVALS[row["against"]][0]


def _verb(row: dict[str, Any]) -> tuple[str, float]:
    """Return which wins, and twice the standard error, which a winner has to exceed.

    For a single pair that is unknown, and neither wins.
    """
    spread = 2 * row["error"]
    if math.isnan(spread) or abs(row["difference"]) <= max(spread, _TIE):
        return _TIES, spread
    return (_BEATS if row["difference"] > 0 else _LOSES), spread
