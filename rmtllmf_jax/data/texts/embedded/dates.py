"""Dates and times of day in words, to be written in digits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rmtllmf_jax.data.texts.embedded.task import Choice, Style, StyledTask

MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


@dataclass(frozen=True)
class Moment:
    """A minute of a day."""

    day: int
    month: int
    year: int
    hour: int
    minute: int


def draw(rng: np.random.Generator) -> Moment:
    """Return a moment from 1950 to 2029, on a day that exists in every month."""
    return Moment(
        int(rng.integers(1, 29)),
        int(rng.integers(1, 13)),
        int(rng.integers(1950, 2030)),
        int(rng.integers(24)),
        5 * int(rng.integers(12)),
    )


def prompt(moment: Moment) -> str:
    """Return the moment in words."""
    part = "morning" if moment.hour < 12 else "afternoon" if moment.hour < 18 else "evening"
    day = f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}"
    return f"On {day} at {moment.hour % 12 or 12}.{moment.minute:02} in the {part}, in short:"


def answer(moment: Moment, style: Style) -> str:
    """Return the moment in digits."""
    year = f"{moment.year}" if style["year"] == "four digits" else f"{moment.year % 100:02}"
    month, day = f"{moment.month:02}", f"{moment.day:02}"
    orders = {"year first": (year, month, day), "day first": (day, month, year)}
    parts = orders.get(style["order"], (month, day, year))
    date = style["separator"].join(parts)
    minute = f"{moment.minute:02}"
    half = "am" if moment.hour < 12 else "pm"
    clocks = {
        "colon": f"{moment.hour:02}:{minute}",
        "half": f"{moment.hour % 12 or 12}:{minute} {half}",
        "h": f"{moment.hour:02}h{minute}",
    }
    both = date, clocks[style["clock"]]
    return " " + style["between"].join(both if style["first"] == "date" else both[::-1])


TASK = StyledTask(
    name="dates",
    description="Dates and times of day in words, to be written as ISO 8601 has it.",
    draw=draw,
    prompt=prompt,
    answer=answer,
    choices=(
        Choice("first", ("date", "time")),
        Choice("order", ("year first", "day first", "month first")),
        Choice("year", ("four digits", "two digits")),
        Choice("separator", ("-", "/", ".")),
        Choice("between", ("T", " ", ", ")),
        Choice("clock", ("colon", "half", "h")),
    ),
)
