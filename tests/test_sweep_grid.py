"""Which cells a sweep covers: combinations, and the cells that they span."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations, product
from math import comb

import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.tasks import TASK_NAMES
from rmtllmf_jax.sweep.grid import Cell, Grid, choose_combinations

PAIRS = (("dtd", "mnist"), ("dtd", "svhn"))
SCENARIOS = ("clean", "ideal", "sum_rate")
PROTECTIONS = ("none", "freeze", "realign", "r-mtllmf", "control")


def grid(**changes: object) -> Grid:
    values = {
        "combinations": PAIRS,
        "scenarios": SCENARIOS,
        "protections": PROTECTIONS,
        "draws": 3,
        "seeds": 2,
    }
    return Grid(**(values | changes))


# Combinations


def test_eight_tasks_have_247_combinations() -> None:
    chosen = choose_combinations(TASK_NAMES, None, 0)
    every = {c for size in range(2, 9) for c in combinations(sorted(TASK_NAMES), size)}
    assert len(chosen) == 247
    assert set(chosen) == every
    assert [len(c) for c in chosen] == sorted(len(c) for c in chosen)


@pytest.mark.parametrize("per_size", [1, 3, 20, 1000])
def test_so_many_of_each_size_without_repeats(per_size: int) -> None:
    chosen = choose_combinations(TASK_NAMES, per_size, 0)
    assert len(set(chosen)) == len(chosen)
    assert all(list(c) == sorted(set(c)) for c in chosen)
    sizes = Counter(map(len, chosen))
    assert sizes == {size: min(per_size, comb(8, size)) for size in range(2, 9)}


def test_the_seed_alone_chooses() -> None:
    shuffled = random.Random(0).sample(TASK_NAMES, 8)
    assert choose_combinations(shuffled, 3, 5) == choose_combinations(TASK_NAMES, 3, 5)
    assert len({choose_combinations(TASK_NAMES, 3, seed) for seed in range(10)}) == 10


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_size", [2, 3, 4, 8, 12])
def test_tasks_occur_about_equally_often(per_size: int, seed: int) -> None:
    chosen = choose_combinations(TASK_NAMES, per_size, seed)
    for size in range(2, 8):
        used = Counter(task for c in chosen if len(c) == size for task in c)
        counts = [used[task] for task in TASK_NAMES]
        assert max(counts) - min(counts) <= 2, (size, counts)


def test_four_pairs_hold_each_of_eight_tasks_once() -> None:
    pairs = [c for c in choose_combinations(TASK_NAMES, 4, 0) if len(c) == 2]
    assert sorted(task for pair in pairs for task in pair) == sorted(TASK_NAMES)


def test_a_single_task_is_its_own_combination() -> None:
    assert choose_combinations(["mnist"], None, 0) == (("mnist",),)


@pytest.mark.parametrize("per_size", [0, -1])
def test_no_combination_of_a_size_is_refused(per_size: int) -> None:
    with pytest.raises(InputError, match="combinations per size must be at least 1"):
        choose_combinations(TASK_NAMES, per_size, 0)


def test_no_task_is_refused() -> None:
    with pytest.raises(InputError, match="no task"):
        choose_combinations([], None, 0)


# Cells


def test_cells_are_the_product_less_what_means_the_same() -> None:
    seen = {(c.combination, c.scenario, c.draw, c.seed, c.protection) for c in grid().cells()}
    noisy = set(product(PAIRS, ("ideal", "sum_rate"), range(3), range(2), PROTECTIONS[:4]))
    clean = set(product(PAIRS, ["clean"], [0], range(2), ("realign", "r-mtllmf", "control")))
    alike = set(product(PAIRS, ["clean"], [0], [0], ("none", "freeze")))
    assert seen == noisy | clean | alike
    assert len(grid().cells()) == len(seen)


def test_names_are_unique_and_say_what_the_cell_is() -> None:
    names = [cell.name for cell in grid(combinations=(*PAIRS, ("dtd", "mnist", "svhn"))).cells()]
    assert len(set(names)) == len(names)
    assert Cell(("dtd", "svhn"), "ideal", 2, 1, "freeze").name == "dtd+svhn/ideal/2/1/freeze"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"combinations": ()}, "combinations"),
        ({"scenarios": ()}, "scenarios"),
        ({"protections": ()}, "protections"),
        ({"draws": 0}, "draws"),
        ({"seeds": -1}, "seeds"),
        ({"scenarios": ("ideal",), "protections": ("control",)}, "control"),
    ],
)
def test_an_empty_grid_is_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        grid(**change)
