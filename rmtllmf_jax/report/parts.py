"""The results split into parts that may be averaged: one merge method, over one axis or none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pandas as pd

from rmtllmf_jax.report.order import AXES, RULES, arrange
from rmtllmf_jax.report.reading import completed

_MERGE = ["combination", "seed", "task"]


@dataclass(frozen=True)
class Part:
    """The rows of one rule and one axis (empty: none), and the controls, which have neither."""

    rule: str
    axis: str
    results: pd.DataFrame
    title: str = ""
    """Its rule as printed; empty if the run has only one."""
    stem: str = ""
    """The same as a suffix of file names."""

    @property
    def beside_an_axis(self) -> bool:
        """Whether the part holds only rows that an axis does not apply to: clean and controls."""
        return not self.axis and set(self.results["scenario"]) <= {"clean"}


def parts(results: pd.DataFrame) -> list[Part]:
    """Return the parts of a run's results: rules in order, those without an axis first."""
    results = completed(results)
    controls = results[results["protection"] == "control"].drop_duplicates(_MERGE)
    merged = results[results["protection"] != "control"]
    if merged.empty:
        return [Part(str(results["rule"].iloc[0]), "", results)]
    found = []
    for axis in arrange(merged["axis"], ["", *AXES]):
        for rule in arrange(merged.loc[merged["axis"] == axis, "rule"], RULES):
            own = merged[(merged["rule"] == rule) & (merged["axis"] == axis)]
            there = controls[controls["combination"].isin(own["combination"])].assign(rule=rule)
            found.append(Part(rule, axis, pd.concat([own, there], ignore_index=True)))
    return list(_told_apart(found))


def rule_name(rule: str) -> str:
    """Return the printed name of a merge rule."""
    return RULES.get(rule, rule.replace("_", " "))


def file_stem(name: str) -> str:
    """Return a name of a table as part of a file name: only letters, digits and `_`."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def _told_apart(found: list[Part]) -> Iterator[Part]:
    several = len({part.rule for part in found}) > 1
    stems: set[str] = set()
    for part in found:
        axis, stem = file_stem(part.axis), f"_{file_stem(part.rule)}" if several else ""
        while f"{axis}{stem}" in stems:  # names that differ only in other characters
            stem += "_"
        stems.add(f"{axis}{stem}")
        yield replace(part, title=rule_name(part.rule) if several else "", stem=stem)
