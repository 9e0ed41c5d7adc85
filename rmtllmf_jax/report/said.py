"""Texts of language models as tables: one per task, a row per model, a column per prompt."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from rmtllmf_jax.report.labels import in_order, is_unfused, joined
from rmtllmf_jax.report.sheet import Sheet

ALONE = ("as in the test split", "base", "fine-tuned")
"""Protections of the rows that no uplink has touched, in order: the text itself, and the models
before and after fine-tuning."""
KEYS = ["scenario", "protection"]
LONGEST = 200  # letters shown of a text


def said_sheets(said: pd.DataFrame) -> Iterator[Sheet]:
    """Yield a table per task: each model's continuations of the same few prompts."""
    several = said["rule"].nunique() > 1
    for task, own in said.groupby("task"):
        alone = own["protection"].isin(ALONE)
        rows = [
            [name, "-", *_texts(found)]
            for name in ALONE
            if len(found := own[own["protection"] == name])
        ]
        merged = in_order(own[~alone], ["rule", *KEYS])
        for (rule, scenario, protection), found in merged.groupby(["rule", *KEYS], sort=False):
            fused = not is_unfused(protection)
            name = joined(protection, rule if several and fused else "")
            rows.append([name, scenario if fused else "-", *_texts(found)])
        prompts = own.drop_duplicates("number").sort_values("number")["given"]
        header = ["model", "scenario", *map(shortened, prompts)]
        yield Sheet(f"What the models say: {task}", header, rows, names=len(header))


def _texts(rows: pd.DataFrame) -> list[str]:
    return [shortened(text) for text in rows.sort_values("number")["text"]]


def shortened(text: str) -> str:
    """Return a text on one line, cut off where it is long.

    >>> shortened(" one\\ntwo ")
    'one ⏎ two'
    """
    text = " ⏎ ".join(" ".join(line.split()) for line in text.strip().splitlines())
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
