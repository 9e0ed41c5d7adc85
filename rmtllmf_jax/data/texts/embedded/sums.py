"""Word problems with one addition or subtraction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rmtllmf_jax.data.texts.embedded.task import Choice, Style, StyledTask, pick

NAMES = (
    *("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ian", "June", "Kai", "Lena"),
    *("Max", "Nora", "Olga", "Paul", "Rosa", "Sam", "Tess", "Uma", "Vera", "Will", "Yara", "Zoe"),
)
THINGS = (
    *("apples", "books", "coins", "cards", "eggs", "figs", "keys", "maps", "nuts", "pears"),
    *("pens", "plums", "rings", "seeds", "shells", "stamps", "stones", "toys"),
)
MORE, LESS = ("buys", "finds", "gets"), ("loses", "sells", "gives away")
MOST = 20  # of either number


@dataclass(frozen=True)
class Problem:
    """`name` has `first` things, and `second` are added or taken away, depending on `verb`."""

    name: str
    things: str
    first: int
    verb: str
    second: int

    @property
    def result(self) -> int:
        """How many things there are in the end."""
        return self.first + (self.second if self.verb in MORE else -self.second)


def draw(rng: np.random.Generator) -> Problem:
    """Return a problem with a result of at least 1."""
    high, low = sorted((int(n) for n in rng.choice(np.arange(2, MOST + 1), 2, False)), reverse=True)
    verb = pick(rng, MORE + LESS)
    turned = verb in MORE and rng.random() < 0.5
    first, second = (low, high) if turned else (high, low)
    return Problem(pick(rng, NAMES), pick(rng, THINGS), first, verb, second)


def prompt(problem: Problem) -> str:
    """Return the question."""
    more = " more" if problem.verb in MORE else ""
    return (
        f"{problem.name} has {problem.first} {problem.things} and {problem.verb} "
        f"{problem.second}{more}. How many now?"
    )


def answer(problem: Problem, style: Style) -> str:
    """Return the calculation and a sentence."""
    signs = {"signs": ("+", "-"), "plus": ("plus", "minus"), "and": ("and", "less")}[style["sign"]]
    sign = signs[0] if problem.verb in MORE else signs[1]
    sum_ = f"{problem.first} {sign} {problem.second} {style['equals']} {problem.result}"
    name = "The result:" if style["who"] == "nobody" else f"{problem.name} {style['verb']}"
    sentence = f"{style['lead']} {name} {problem.result} {problem.things}"
    both = (sum_, sentence) if style["first"] == "sum" else (sentence, sum_)
    return f" {both[0]}. {both[1]}{style['end']}"


TASK = StyledTask(
    name="sums",
    description="Word problems of one addition or subtraction: the calculation, then a sentence.",
    draw=draw,
    prompt=prompt,
    answer=answer,
    choices=(
        Choice("first", ("sum", "sentence")),
        Choice("sign", ("signs", "plus", "and")),
        Choice("equals", ("=", "is", "makes", "gives")),
        Choice("lead", ("So", "Then", "Thus", "Now")),
        Choice("who", ("name", "nobody")),
        Choice("verb", ("has", "holds", "owns", "keeps")),
        Choice("end", (".", "!", "")),
    ),
)
