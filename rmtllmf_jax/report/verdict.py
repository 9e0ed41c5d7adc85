"""Whether the protection helps, in numbers and then in a sentence."""

from __future__ import annotations

from typing import Any

import pandas as pd

from rmtllmf_jax.report.labels import SCENARIOS, in_order, rule_name
from rmtllmf_jax.report.tables import SETTING, caveat, cell_scores, versions

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
    note = caveat(results)
    said = [*sentences(results), *([note] if note else [])]
    for without, informative in list(versions(results).items())[1:]:
        lead = without.replace("without", "Without", 1)
        said += [f"{lead}: {line}" for line in sentences(informative)]
    return said


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
    for (rule, axis, scenario, against), group in table.groupby(keys, sort=False):
        name = SCENARIOS.get(scenario, scenario)
        lead = f"{rule_name(rule).capitalize()}, {name}" if several else name
        rows = [row for row in group.to_dict("records") if row["pairs"]]
        other, no_gain = _RIVALS[against]
        lead += f", over {axis}: protected" if axis else ": protected"
        if not rows:
            said.append(f"{lead} cannot be compared with {other}, no cell has both.")
            continue
        found = _along(rows, other) if axis else _once(rows[0], other)
        unknown = not axis and rows[0]["pairs"] == 1
        beats = any(_verb(row) == _BEATS for row in rows)
        said.append(f"{lead} {found}.{'' if beats or unknown else no_gain}")
    return said


def _once(row: dict[str, Any], other: str) -> str:
    shown = f"{_verb(row)} {other}: {row['protected']:.1%} against {row['other']:.1%}"
    gain = f"{100 * row['difference']:+.2f}"
    if row["pairs"] == 1:
        return f"{shown} ({gain} points in the only pair, which has no spread)"
    return (
        f"{shown} ({gain} ± {200 * row['error']:.2f} points, twice the standard error; "
        f"better in {row['better']} of {row['pairs']} pairs)"
    )


def _along(rows: list[dict[str, Any]], other: str) -> str:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(_verb(row), []).append(f"{row['level']:.4g}")
    where = [f"{verb} {other} at {', '.join(found[verb])}" for verb in _VERBS if verb in found]
    first, last = (
        f"{100 * row['difference']:+.1f} at {row['level']:.4g}" for row in (rows[0], rows[-1])
    )
    return f"{'; '.join(where)} (points: {first}, {last})"


def _verb(row: dict[str, Any]) -> str:
    """Return who wins: the difference has to exceed twice its standard error.

    For a single pair that is unknown (NaN), and neither wins.
    """
    gap = abs(row["difference"])
    if gap > 2 * row["error"] and gap > _TIE:
        return _BEATS if row["difference"] > 0 else _LOSES
    return _TIES
