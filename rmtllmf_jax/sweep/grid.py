"""What a sweep covers: a grid of cells, each named by its meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rmtllmf_jax.common.errors import InputError, require_at_least

Combination = tuple[str, ...]
"""Task names, sorted."""


@dataclass(frozen=True)
class Cell:
    """One merged model: which tasks, over which channel, protected how."""

    combination: Combination
    scenario: str
    draw: int
    seed: int
    protection: str

    @property
    def name(self) -> str:
        """The cell as text; what its results are stored under."""
        tasks = "+".join(self.combination)
        return f"{tasks}/{self.scenario}/{self.draw}/{self.seed}/{self.protection}"


@dataclass(frozen=True)
class Grid:
    """All cells of a sweep."""

    combinations: tuple[Combination, ...]
    scenarios: tuple[str, ...]
    protections: tuple[str, ...]
    draws: int
    seeds: int

    def __post_init__(self) -> None:
        """Refuse an empty grid."""
        require_at_least("draws", self.draws, 1)
        require_at_least("seeds", self.seeds, 1)
        for name in ("combinations", "scenarios", "protections"):
            if not getattr(self, name):
                raise InputError(f"the grid has no cell: {name} is empty.")
        if not self.cells():
            raise InputError(
                "the grid has no cell: the protection control stands under the scenario clean "
                f"alone, and the scenarios are {', '.join(self.scenarios)}."
            )

    def cells(self) -> list[Cell]:
        """Return the cells in a fixed order, each once.

        `clean` has no channel and so a single draw; `control` has no uplink and so stands under
        `clean` alone; a clean merge that is not realigned draws nothing and so has a single seed.
        """
        return [
            Cell(combination, scenario, draw, seed, protection)
            for combination in self.combinations
            for seed in range(self.seeds)
            for scenario in self.scenarios
            for draw in range(1 if scenario == "clean" else self.draws)
            for protection in self.protections
            if not (protection == "control" and scenario != "clean")
            and not (scenario == "clean" and protection in ("none", "freeze") and seed > 0)
        ]


def choose_combinations(
    tasks: Sequence[str], per_size: int | None, seed: int
) -> tuple[Combination, ...]:
    """Return combinations of 2 to N of the tasks, smaller ones first.

    **Arguments:**

    - `per_size`: how many of each size, drawn by `seed` so that tasks occur about equally often;
      `None` takes all (247 for eight tasks). More than there are takes all there are. A single
      task is its own combination.
    """
    names = sorted(tasks)
    if not names:
        raise InputError("the grid has no cell: no task is given.")
    if per_size is not None:
        require_at_least("combinations per size", per_size, 1)
    chosen: list[Combination] = []
    for size in range(min(2, len(names)), len(names) + 1):
        there = list(combinations(names, size))
        if per_size is not None and per_size < len(there):
            there = _balanced(there, per_size, np.random.default_rng([seed, size]))
        chosen += sorted(there)
    return tuple(chosen)


def _balanced(
    there: list[Combination], count: int, generator: np.random.Generator
) -> list[Combination]:
    """Draw combinations one by one, each time among those whose tasks were used least."""
    used = dict.fromkeys({task for combination in there for task in combination}, 0)
    chosen: list[Combination] = []
    for _ in range(count):
        rest = [combination for combination in there if combination not in chosen]
        load = np.array([sum(used[task] for task in combination) for combination in rest])
        pick = rest[generator.choice(np.flatnonzero(load == load.min()))]
        chosen.append(pick)
        for task in pick:
            used[task] += 1
    return chosen
