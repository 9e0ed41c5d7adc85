"""Printed names and order of scenarios, protections, rules and axes."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from rmtllmf_jax.common.values import parts_of

SCENARIOS = {
    "clean": "Clean (no noise)",
    "ideal": "Ideal (no attack)",
    "strongest_user": "Strongest-user attack",
    "sum_rate": "Sum-rate attack",
    "sum_rate_floor_aware": "Sum-rate attack, floor-aware",
    "min_max_rate": "Min-max-rate attack",
    "sum_mse": "Sum-MSE attack",
    "white": "White noise",
    "white_in_range": "White noise in range",
    "jammer": "Jammer with few antennas",
    "guessed": "Attack on a guessed channel",
}
"""Known scenarios in order, each with its printed name: an attack's `title`, without its module."""

PROTECTIONS = {
    "base": "Base model",
    "control": "Control (realigned base)",
    "none": "Unprotected",
    "freeze": "Freeze only",
    "realign": "Realign only",
    "r-mtllmf": "R-MTLLMF",
    "phy": "Physical layer alone",
    "holistic": "Physical layer and R-MTLLMF",
}
"""Known protections in order, each with its printed name; the first two fuse nothing."""

MEANINGS = {
    "clean": "the task vectors arrive as they were sent.",
    "ideal": "the only noise is the receiver's thermal noise.",
    "strongest_user": "an attacker jams the direction of the user that is received most strongly.",
    "sum_rate": "an attacker shapes its noise to minimise the sum of the users' rates: the "
    "worst that its power can do by that measure.",
    "base": "the pretrained model; nothing is merged, and nothing is sent.",
    "control": "the pretrained model, realigned on the same samples as R-MTLLMF; "
    "nothing is merged. What does not beat it is not worth sending.",
    "none": "merged as received.",
    "freeze": "merged, then the embeddings are reset to those of the base model.",
    "realign": "merged, then fine-tuned for a few steps on a few samples.",
    "r-mtllmf": "both: embeddings reset to the base model's and frozen, then realigned.",
    "phy": "defences on the physical layer, without a repair of the model.",
    "holistic": "defences on the physical layer, followed by R-MTLLMF.",
}
"""What scenarios and protections mean, in a sentence for a reader of the report alone."""

UNFUSED = ("base", "control")
"""Rows without task vectors, which have no uplink either; so are those that begin with
`from_base`, the controls of protections with a number of samples of their own."""


def is_unfused(protection: str) -> bool:
    """Tell whether a protection merges nothing."""
    return protection in UNFUSED or protection.startswith("from_base")


def unfused(protections: pd.Series) -> pd.Series:
    """Tell of each protection whether it merges nothing."""
    return protections.map(is_unfused).astype(bool)


def control_among(protection: str, there: Iterable[str]) -> str:
    """Return the control of a protection among those of a table.

    It has all repairs of the protection, on the base model; `control` unless there is such a one.

    >>> control_among("coded+realign(shots=5)", ["from_base+realign(shots=5)", "control"])
    'from_base+realign(shots=5)'
    """
    parts = parts_of(protection)
    own = [
        name
        for name in there
        if name.startswith("from_base+") and {*parts_of(name)[1:]} <= {*parts}
    ]
    return max(own, key=lambda name: len(parts_of(name)), default="control")


RULES = {"task_arithmetic": "task arithmetic"}
"""The rule that comes first; the others follow by name."""

AXES = {
    "snr_db": "SNR per antenna of a user at 1 km (dB)",
    "mse": "MSE of every user",
    "budget_db": "Attacker's power over the noise of one antenna (dB)",
    "users": "Users of the channel",
    "antennas": "Receive antennas",
    "k_factor_db": "Rician K factor (dB)",
    "correlation": "Correlation of neighbouring antennas",
    "c0_db": "Parameter-domain SNR of a user with MSE 1 (dB)",
}
"""Known axes of a sweep, each with the meaning of its levels."""


def arrange(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return the distinct `names`: the `known` ones in order, then the others alphabetically."""
    present = set(names)
    first = [name for name in known if name in present]
    return first + sorted(present.difference(first))


def in_order(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Sort `frame` by `by`; `scenario`, `protection` and `rule` sort in the order of this file.

    Rows are renumbered from 0.
    """
    orders = {"scenario": SCENARIOS, "protection": PROTECTIONS, "rule": RULES}

    def positions(column: pd.Series) -> pd.Series:
        if column.name not in orders:
            return column
        names = arrange(column, orders[column.name])
        return column.map({name: position for position, name in enumerate(names)})

    return frame.sort_values(by, key=positions, kind="stable", ignore_index=True)


def rule_name(rule: str) -> str:
    """Return the printed name of a merge rule."""
    return RULES.get(rule, rule.replace("_", " "))


def file_stem(name: str) -> str:
    """Return a name from a table as part of a file name: only letters, digits and `_`."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def joined(*words: str) -> str:
    """Return the words that are not empty, with commas."""
    return ", ".join(filter(None, words))


def listed(words: Iterable[str]) -> str:
    """Return one or more words as `a, b and c`."""
    *first, last = words
    return " and ".join(filter(None, [", ".join(first), last]))
