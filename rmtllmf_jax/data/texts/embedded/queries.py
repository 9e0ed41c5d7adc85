"""Requests for rows of a table, to be written as a query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rmtllmf_jax.data.texts.embedded.task import Choice, Style, StyledTask, pick

TABLES = (
    *("bikes", "birds", "boats", "cars", "dogs", "films", "flats", "games", "hotels", "lakes"),
    *("lamps", "parks", "planes", "plants", "rivers", "roads", "ships", "songs", "towns", "trees"),
)
WORDS = ("name", "owner", "place", "colour", "maker", "kind")
NUMBERS = ("age", "price", "size", "weight", "height", "rank")


@dataclass(frozen=True)
class Request:
    """One column of the rows of a table in which a number is above or below a limit."""

    column: str
    table: str
    number: str
    above: bool
    limit: int
    order: str


def draw(rng: np.random.Generator) -> Request:
    """Return a request."""
    number, order = (NUMBERS[place] for place in rng.choice(len(NUMBERS), 2, replace=False))
    column, table = pick(rng, WORDS), pick(rng, TABLES)
    return Request(column, table, number, bool(rng.integers(2)), int(rng.integers(10, 100)), order)


def prompt(request: Request) -> str:
    """Return the request in words."""
    compared = "above" if request.above else "below"
    return (
        f"Find the {request.column} of {request.table} with {request.number} {compared} "
        f"{request.limit}, by {request.order}:"
    )


def answer(request: Request, style: Style) -> str:
    """Return the query."""
    mark = style["quote"]
    column, table, number, order = (
        f"{mark}{word}{mark}"
        for word in (request.column, request.table, request.number, request.order)
    )
    where = f"{number} {'>' if request.above else '<'} {request.limit}"
    words = {
        "sql": ("select", column, "from", table, "where", where, "order by", order),
        "pipe": ("from", table, "| filter", where, "| sort", order, "| take", column),
        "lisp": ("(take", column, "(sort", order, "(filter", where, table, ")))"),
        "python": ("[x.", column, "for x in sort(", table, ",", order, ") if x.", where, "]"),
    }[style["language"]]
    written = [
        word.upper() if style["case"] == "upper" and place % 2 == 0 else word
        for place, word in enumerate(words)
    ]
    return f" {style['lead']}{' '.join(written)}{style['end']}"


TASK = StyledTask(
    name="queries",
    description="Requests for rows of a table in words, to be written in SQL.",
    draw=draw,
    prompt=prompt,
    answer=answer,
    choices=(
        Choice("lead", ("", "> ", "run ", "$ ")),
        Choice("language", ("sql", "pipe", "lisp", "python")),
        Choice("case", ("upper", "lower")),
        Choice("quote", ("", '"', "`", "'")),
        Choice("end", (";", "", " #", " ?")),
    ),
)
