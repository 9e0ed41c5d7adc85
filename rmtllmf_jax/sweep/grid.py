"""The grid of cells that a sweep covers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product
from typing import Any

import numpy as np

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.values import described
from rmtllmf_jax.defences.protection import (
    Protection,
    Stages,
    control_of,
    protection_name,
    repairs_of,
    split,
)
from rmtllmf_jax.fusion.rules import TASK_ARITHMETIC, Method, OneOf, fact, methods_of
from rmtllmf_jax.fusion.rules.method import require_few_enough
from rmtllmf_jax.sweep.axis import NO_AXIS, Axis
from rmtllmf_jax.sweep.needs import require_met
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.uplink import Scenario

MOST_CELLS = 10_000_000
"""More do not fit a machine's memory."""

Combination = tuple[str, ...]
"""Task names, sorted."""


@dataclass(frozen=True)
class Cell:
    """One merged model: which tasks, over which channel, merged and protected how."""

    combination: Combination
    scenario: str
    """Name of a `uplink.Scenario`."""
    draw: int
    seed: int
    protection: str | Protection
    """Repairs, or the name of those of the settings: none, freeze, realign, r-mtllmf, control."""
    rule: Method | OneOf = TASK_ARITHMETIC
    """Merge method, or those that validation chooses from."""
    axis: str = ""
    """What `level` is, one of `axis.AXES`; empty where the channel preset says it all."""
    level: float | None = None


@dataclass(frozen=True)
class Grid:
    """All cells of a sweep."""

    combinations: tuple[Combination, ...]
    scenarios: tuple[Any, ...]
    """Names of scenarios, or attacks themselves; kept as `uplink.Scenario`."""
    protections: tuple[str | Protection, ...]
    """To these the control of those that realign is added, see `defences.control_of`."""
    draws: int
    seeds: int
    rules: tuple[Method | OneOf, ...] = (TASK_ARITHMETIC,)
    axis: Axis = NO_AXIS
    repaired_draws: int | None = None
    """Channel realisations of the cells that are repaired by more than reloading, as realignment
    costs a hundred times what evaluation does; by default all of `draws`."""

    def __post_init__(self) -> None:
        """Refuse an empty grid, and parts that cannot be combined."""
        require_at_least("draws", self.draws, 1)
        if self.repaired_draws is not None:
            require_at_least("repaired draws", self.repaired_draws, 1, self.draws)
        require_at_least("seeds", self.seeds, 1)
        for name in ("combinations", "scenarios", "protections", "rules"):
            if not getattr(self, name):
                raise InputError(f"the grid has no cell: {name} is empty.")
        scenarios = tuple(dict.fromkeys(map(Scenario, self.scenarios)))
        object.__setattr__(self, "scenarios", scenarios)
        for scenario in scenarios:
            self.axis.require_meaning(scenario)
        controls = filter(None, map(control_of, self.protections))
        object.__setattr__(
            self, "protections", tuple(dict.fromkeys([*self.protections, *controls]))
        )
        for rule in self.rules:
            require_swept(rule)
            for method in methods_of(rule):
                require_few_enough(method, max(map(len, self.combinations)))

    def cells(self) -> list[Cell]:
        """Return the cells in a fixed order, each once.

        `clean` has no channel and so a single draw and no level. The control has no uplink and so
        appears only under `clean`, whether or not the grid has it, and only under the first rule,
        as nothing is merged. A clean merge that is not realigned draws nothing (except with a
        random rule) and so has a single seed.

        **Raises:** `InputError` if there are more than `MOST_CELLS`.
        """
        if (count := len(self.combinations) * sum(self.counts().values())) > MOST_CELLS:
            raise InputError(
                f"the grid has {count:,} cells, and a sweep holds {MOST_CELLS:,}: take fewer "
                "combinations, draws, seeds or levels."
            )
        return [
            Cell(combination, scenario, draw, seed, protection, rule, *level)
            for combination in self.combinations
            for seed in range(self.seeds)
            for scenario in self._scenarios()
            for draw in range(self.draws)
            for level in self.axis.levels_of(scenario)
            for rule in self.rules
            for protection in self.protections
            if seed < self._seeds(scenario, rule, protection)
            and draw < self._draws(scenario, protection)
        ]

    def record(self) -> dict[str, Any]:
        """Return the grid as stored in `run.json`."""
        return asdict(self) | {
            "rules": [described(rule) for rule in self.rules],
            "protections": [protection_name(protection) for protection in self.protections],
            "repaired": [protection_name(each) for each in self.protections if _repaired(each)],
            "repaired_draws": self._repaired_draws,
        }

    def counts(self) -> Counter[tuple[str, str | Protection]]:
        """Return the number of cells of each combination, by scenario and protection."""
        found: Counter[tuple[str, str | Protection]] = Counter()
        for scenario, rule, protection in product(self._scenarios(), self.rules, self.protections):
            seeds = self._seeds(scenario, rule, protection)
            number = self._draws(scenario, protection) * len(self.axis.levels_of(scenario)) * seeds
            found[scenario, protection] += number
        return +found

    def require_fitting(self, settings: Settings, tasks: int) -> None:
        """Check that channel preset, attackers, protections and the axis can go together.

        **Arguments:** `tasks`: how many there are.

        **Raises:** `InputError` if they cannot.
        """
        preset = settings.channel(tasks)
        for stages in self.sent_by(settings):
            self.axis.require_fitting(preset, settings.carrier(stages))
            if self.axis.name == "mse" and (acting := stages.receiver or stages.air):
                raise InputError(
                    f"the axis mse gives the users' errors, and {described(acting)} acts on a "
                    "channel: choose another axis, or leave it out."
                )
            for scenario in self.scenarios:
                if (attack := Scenario(scenario).attack) is not None:
                    settings.require_fitting(settings.link(preset, attack, stages), stages)

    def sent_by(self, settings: Settings) -> list[Stages]:
        """Return the distinct ways in which the protections send, without their repairs."""
        each = (settings.stages(protection) for protection in self.protections)
        return list(dict.fromkeys(stages._replace(repairs=()) for stages in each))

    def _scenarios(self) -> tuple[str, ...]:
        """Return the scenarios, and `clean`, the scenario of the controls."""
        return self.scenarios if "clean" in self.scenarios else ("clean", *self.scenarios)

    @property
    def _repaired_draws(self) -> int:
        return self.draws if self.repaired_draws is None else self.repaired_draws

    def _draws(self, scenario: str, protection: str | Protection) -> int:
        if Scenario(scenario).attack is None:
            return 1
        return self._repaired_draws if _repaired(protection) else self.draws

    def _seeds(self, scenario: str, rule: Method | OneOf, protection: str | Protection) -> int:
        """Return the seeds of a kind of cell, 0 if there is none."""
        if split(repairs_of(protection)).fuse:
            there = scenario in self.scenarios
        else:
            there = scenario == "clean" and rule == self.rules[0]
        if not there:
            return 0
        quiet = Scenario(scenario).attack is None
        return 1 if quiet and _draws_nothing(rule, protection) else self.seeds


def _repaired(protection: str | Protection) -> bool:
    """Whether the repairs do more than reload leaves of the base."""
    return bool(split(repairs_of(protection)).rest)


def _draws_nothing(rule: Method | OneOf, protection: str | Protection) -> bool:
    random = any(fact(method, "random") for method in methods_of(rule))
    return not _repaired(protection) and not random


def require_swept(rule: Any) -> None:
    """Check that a sweep has what a merge method needs.

    **Raises:** `InputError` that says what it lacks, or that it is not a method.
    """
    if not (isinstance(rule, OneOf) or callable(rule)):
        raise InputError(
            f"merge method: expected a value such as fusion.Ties(density=0.1), got {rule!r}."
        )
    for method in methods_of(rule):
        require_met(method)


def choose_combinations(
    tasks: Sequence[str], per_size: int | None, seed: int, sizes: Sequence[int] = ()
) -> tuple[Combination, ...]:
    """Return combinations of 2 to N of the tasks, smaller ones first.

    **Arguments:**

    - `per_size`: how many of each size, drawn by `seed` so that tasks occur about equally often;
      `None` takes all (247 for eight tasks), and so does a number larger than the total. A single
      task is its own combination.
    - `sizes`: take only these numbers of tasks, where that many exist; the choice of combinations
      within a size does not depend on it.

    **Raises:** `InputError` if there is no task, or none of the sizes.
    """
    names = sorted(tasks)
    if not names:
        raise InputError("the grid has no cell: no task is given.")
    if per_size is not None:
        require_at_least("combinations per size", per_size, 1)
    every = range(min(2, len(names)), len(names) + 1)
    taken = [size for size in every if not sizes or size in sizes]
    if not taken:
        raise InputError(
            f"the grid has no cell: combinations of {', '.join(map(str, sizes))} tasks are asked "
            f"for, and {len(names)} tasks have those of {every[0]} to {every[-1]}."
        )
    chosen: list[Combination] = []
    for size in taken:
        there = list(combinations(names, size))
        if per_size is not None and per_size < len(there):
            there = _balanced(there, per_size, np.random.default_rng([seed, size]))
        chosen += sorted(there)
    return tuple(chosen)


def _balanced(
    there: list[Combination], count: int, generator: np.random.Generator
) -> list[Combination]:
    """Draw combinations one by one, each time among those with the least used tasks."""
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
