"""Whether the protection helps, in numbers and then in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from rmtllmf_jax.report.intervals import FEW, PAIR, Interval, differences, interval
from rmtllmf_jax.report.labels import (
    PROTECTIONS,
    SCENARIOS,
    UNFUSED,
    arrange,
    control_among,
    in_order,
    is_unfused,
    joined,
    listed,
    rule_name,
    unfused,
)
from rmtllmf_jax.report.tables import SETTING, caveat, cell_scores, for_seeds, parts, versions

_PAIR = [*SETTING, *PAIR]
_RIVALS = {
    "base": ("the base model", ["combination"]),
    "control": ("the control", ["combination", "seed"]),
    "none": ("unprotected", _PAIR),
    "freeze": ("freezing alone", _PAIR),
    "realign": ("realignment alone", _PAIR),
    "r-mtllmf": ("R-MTLLMF", _PAIR),
}
"""What a protection is compared with: its name in a sentence, and what a pair shares."""

_HALVES = ("none", "freeze", "realign")
"""What has no verdict of its own; nor has what merges nothing."""

_BEATS, _TIES, _LOSES = "beats", "cannot be distinguished from", "is worse than"
_FEW = {5: "five"}[FEW]
_UNKNOWN = "cannot be judged against"
_VERBS = _BEATS, _TIES, _LOSES, _UNKNOWN
_TOO_FEW = f"Too few combinations, realisations or seeds (fewer than {_FEW}) for a verdict on"
_COLUMNS = ["protected", "other", "difference", "low", "high", "levels", "pairs"]


def comparisons(results: pd.DataFrame, protection: str = "r-mtllmf") -> pd.DataFrame:
    """Compare a protection with its rivals, pair by pair.

    The rivals: `base`, `control` (its own, if the table has it, see `labels.control_among`), `none`
    (no protection), `freeze` and `realign` (R-MTLLMF's halves), and `r-mtllmf` for others. A pair
    shares combination, draw and seed (with the control, which has no uplink, combination and
    seed; with the base the combination); cells without a partner are left out. One row per (rule,
    axis, level, scenario, size, `against`) that has a pair; along an axis `size` is NaN, and means
    are over the sizes.
    Columns: these, `protected` and `other` (mean average normalised score over the pairs),
    `difference` with its interval `low` and `high` (based on `levels`, see
    `intervals.Interval`), `pairs` (their number), and `strongest` (whether this is the rival with
    the least difference: means of rivals with fewer channels are of other cells).
    """
    cells = cell_scores(results)
    protected = cells[cells["protection"] == protection]
    control = control_among(protection, cells["protection"].unique())
    found = []
    for against, (_, on) in _RIVALS.items():
        name = control if against == "control" else against
        others = cells[cells["protection"] == name]
        if against in ("none", "freeze"):  # a clean one has no seed of its own
            clean, mine = (each["scenario"] == "clean" for each in (others, protected))
            again = for_seeds(others[clean], protected.loc[mine, "seed"])
            others = pd.concat([others[~clean], again], ignore_index=True)
        if name != protection:
            found.append(differences(protected, others, on).assign(against=against))
    pairs = in_order(pd.concat(found, ignore_index=True), [*SETTING, "scenario", "size"])
    pairs["at"] = pairs["size"].where(pairs["axis"] == "")
    keys = [*SETTING, "scenario", "at"]
    rows = []
    for names, own in pairs.groupby([*keys, "against"], dropna=False, sort=False):
        protected, other = own.groupby("size")[["score", "other"]].mean().mean()
        gain = interval(own, "difference")
        row = {"protected": protected, "other": other, "difference": gain.mean, "low": gain.low}
        row |= {"high": gain.high, "levels": gain.levels, "pairs": len(own)}
        rows.append(dict(zip([*keys, "against"], names, strict=True)) | row)
    table = pd.DataFrame(rows, columns=[*keys, "against", *_COLUMNS]).rename(columns={"at": "size"})
    best = table.groupby([*SETTING, "scenario", "size"], dropna=False)["difference"].idxmin()
    return table.assign(strongest=table.index.isin(best))


def verdict(results: pd.DataFrame) -> list[str]:
    """Return `sentences`; with weak tasks, also their names and the sentences without them."""
    note = caveat(results)
    said = [*sentences(results), *([note] if note else [])]
    for without, informative in list(versions(results).items())[1:]:
        lead = without.replace("without", "Without", 1)
        said += [f"{lead}: {line}" for line in sentences(informative)]
    return said


def sentences(results: pd.DataFrame) -> list[str]:
    """Return one sentence per scenario: R-MTLLMF against its strongest rival, by N or by level.

    There is also one for every other protection, or a single one if there is nothing to compare.
    With several rules, each sentence names its own. If several of them could only say that there
    are too few replicates, one sentence at the end says so for all of them.
    """
    there = arrange(results["protection"], PROTECTIONS)
    judged = [name for name in there if name not in _HALVES and not is_unfused(name)]
    found = [each for name in judged for each in _compared(results, name)]
    if not found:
        return ["No scenario is protected: whether a protection helps cannot be said."]
    too_few = [(lead, who) for lead, who, rows in found if {*map(_verb, rows)} == {_UNKNOWN}]
    if len(too_few) == 1:
        too_few = []
    said = [
        f"{lead}: {who} {_against_the_strongest(rows)}"
        for lead, who, rows in found
        if (lead, who) not in too_few
    ]
    by_lead: dict[str, list[str]] = {}
    for lead, who in too_few:
        by_lead.setdefault(lead, []).append(who)
    where = "; ".join(f"{lead}: {', '.join(names)}" for lead, names in by_lead.items())
    return [*said, f"{_TOO_FEW} {where}."] if where else said


def _compared(
    results: pd.DataFrame, protection: str
) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yield scenario, protection and the comparisons with the strongest rival there."""
    table = comparisons(results, protection)
    several_rules = table["rule"].nunique() > 1
    over = "mean over N" if results["size"].nunique() > 1 else ""
    keys = ["rule", "axis", "scenario"]
    for (rule, axis, scenario), group in table[table["strongest"]].groupby(keys, sort=False):
        name = SCENARIOS.get(scenario, scenario)
        lead = f"{rule_name(rule).capitalize()}, {name}" if several_rules else name
        who = PROTECTIONS.get(protection, protection)
        yield joined(lead, over if axis else ""), who, group.to_dict("records")


def _against_the_strongest(rows: list[dict[str, Any]]) -> str:
    axis = rows[0]["axis"]
    rivals = [_RIVALS[row["against"]][0] for row in rows]
    only = len(set(rivals)) == 1
    clauses, unit = [], " points"
    name = f"its strongest rival{f', {rivals[0]},' if only else ''}"
    for verb in _VERBS:
        where = []
        for row, rival in zip(rows, rivals):
            if _verb(row) == verb:
                told = joined("" if only else rival, _gain(row, unit))
                where.append(f"{_place(row)} ({told})")
                unit = ""
        if where:
            clauses.append(f"{verb} {name} at {axis or 'N'} = {listed(where)}")
            name = "it"
    if any(_verb(row) == _UNKNOWN for row in rows):
        clauses[-1] += f": fewer than {_FEW} combinations, realisations or seeds"
    without = [row for row in rows if row["against"] in UNFUSED and _verb(row) in (_TIES, _LOSES)]
    if not without:
        return f"{'; '.join(clauses)}."
    there = listed([_place(row) for row in without])
    return (
        f"{'; '.join(clauses)}. At {axis or 'N'} = {there} fusing brought no measurable gain: that "
        "rival needs no task vectors."
    )


def _place(row: dict[str, Any]) -> str:
    return f"{row['level' if row['axis'] else 'size']:.4g}"


def _gain(row: dict[str, Any], unit: str) -> str:
    return Interval(row["difference"], row["low"], row["high"]).text(sign="+", unit=unit)


def _verb(row: dict[str, Any]) -> str:
    """Return which one wins, as far as the interval decides it."""
    found = Interval(row["difference"], row["low"], row["high"], row["levels"])
    return {1: _BEATS, 0: _TIES, -1: _LOSES, None: _UNKNOWN}[found.side()]


def replication(results: pd.DataFrame) -> list[str]:
    """Say what the intervals are, and what each part of a run resamples."""
    said = [
        "Intervals are 95 %: a bootstrap that resamples whole combinations (within their number of "
        "tasks N), channel realisations and seeds. Of one alone there is no interval; of fewer "
        f"than {_FEW} it is too narrow to decide anything, as two give the range between them. "
        f"Where there are fewer than {_FEW} combinations, a verdict is about these combinations."
    ]
    for part in parts(results):
        rows = part.results[~unfused(part.results["protection"])]
        rows = part.results if rows.empty else rows
        counts = rows.groupby("size")["combination"].nunique()
        sizes = listed([f"{count} of N = {size}" for size, count in counts.items()])
        lead = joined(part.title, f"along {part.axis}" if part.axis else "")
        draws = rows.groupby("protection")["draw"].nunique()
        fewer = "" if len(set(draws)) == 1 else f" ({draws.min()} where a model is realigned)"
        line = (
            f"combinations: {sizes}; channel realisations: {draws.max()}{fewer}; "
            f"seeds: {rows['seed'].nunique()}."
        )
        said.append(f"{lead}: {line}" if lead else line)
    return [line[:1].upper() + line[1:] for line in said]
