"""Which cells a sweep covers: combinations, and the cells that they span."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from math import comb

import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.values import described
from rmtllmf_jax.data.tasks import TASK_NAMES
from rmtllmf_jax.defences import FromBase, Realign, Reload
from rmtllmf_jax.fusion import Average, Dare, MergeMethod, TaskArithmetic, Ties
from rmtllmf_jax.sweep.axis import Axis
from rmtllmf_jax.sweep.grid import Grid, choose_combinations, require_swept
from rmtllmf_jax.sweep.job import Job, base_job, finetuned_job

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


def test_the_fewest_tasks() -> None:
    assert choose_combinations(["mnist"], None, 0) == (("mnist",),)
    with pytest.raises(InputError, match="no task"):
        choose_combinations([], None, 0)
    with pytest.raises(InputError, match="combinations per size must be at least 1"):
        choose_combinations(TASK_NAMES, 0, 0)


def test_some_numbers_of_tasks_alone() -> None:
    whole = choose_combinations(TASK_NAMES, 3, 0)
    some = choose_combinations(TASK_NAMES, 3, 0, (8, 2, 8))
    assert some == tuple(each for each in whole if len(each) in (2, 8))
    assert choose_combinations(TASK_NAMES[:4], 3, 0, (2, 8)) == choose_combinations(
        TASK_NAMES[:4], 3, 0, (2,)
    )
    with pytest.raises(
        InputError, match=r"of 1, 9 tasks are asked for, and 8 tasks have .* 2 to 8"
    ):
        choose_combinations(TASK_NAMES, 3, 0, (1, 9))


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


# Cells


def test_cells_are_the_product_less_what_means_the_same() -> None:
    seen = {(c.combination, c.scenario, c.draw, c.seed, c.protection) for c in grid().cells()}
    noisy = set(product(PAIRS, ("ideal", "sum_rate"), range(3), range(2), PROTECTIONS[:4]))
    clean = set(product(PAIRS, ["clean"], [0], range(2), ("realign", "r-mtllmf", "control")))
    alike = set(product(PAIRS, ["clean"], [0], [0], ("none", "freeze")))
    assert seen == noisy | clean | alike
    assert len(grid().cells()) == len(seen)


@pytest.mark.parametrize(
    ("protections", "controls"),
    [
        (("none", "freeze"), []),
        (("none", "realign"), ["control"]),
        (("r-mtllmf", "control", "none"), ["control"]),
        (
            ((Realign(5),), (Reload(), Realign())),
            [(FromBase(), Realign(5)), (FromBase(), Reload(), Realign())],
        ),
        (((Reload(),),), []),
    ],
)
def test_what_realigns_brings_its_control(protections: tuple, controls: list) -> None:
    """It stands under the scenario clean, be that one of the grid's or not, with every seed."""
    for scenarios in (("ideal",), SCENARIOS):
        made = grid(scenarios=scenarios, protections=protections)
        assert made.protections == tuple(dict.fromkeys([*protections, *controls]))
        cells = made.cells()
        found = [cell for cell in cells if cell.protection in controls]
        assert {(cell.protection, cell.scenario) for cell in found} == {
            (c, "clean") for c in controls
        }
        assert len(found) == len(PAIRS) * 2 * len(controls)
        assert {cell.scenario for cell in cells if cell not in found} == set(scenarios)
        listed = grid(scenarios=("clean", *scenarios), protections=made.protections).cells()
        assert [cell for cell in listed if cell in cells] == cells


def test_cells_are_counted_without_making_them() -> None:
    axis = Axis("snr_db", (0.0, 5.0))
    kinds: list[dict] = [{}, {"rules": (Dare(), Ties()), "axis": axis}, {"repaired_draws": 2}]
    for some in (*(grid(**kind) for kind in kinds), grid(protections=("control",))):
        made = Counter((cell.scenario, cell.protection) for cell in some.cells())
        assert made == {kind: len(PAIRS) * count for kind, count in some.counts().items()}
    many = grid(draws=10**12)
    assert many.counts()["ideal", "none"] == 2 * 10**12
    with pytest.raises(
        InputError, match=r"has 32,000,000,000,0\d\d cells, and a sweep holds 10,000"
    ):
        many.cells()


def test_what_is_repaired_may_have_fewer_channels_than_the_rest() -> None:
    """Those that it has are the first ones of the others, so that pairs share them."""
    whole, some = grid().cells(), grid(repaired_draws=1).cells()
    repaired = ("realign", "r-mtllmf", "control")
    assert some == [c for c in whole if c.draw == 0 or c.protection not in repaired]
    assert grid(repaired_draws=3).cells() == whole
    own = grid(protections=((Reload(),), (Reload(), Realign())), repaired_draws=1)
    assert {c.draw for c in own.cells() if c.protection == (Reload(),)} == {0, 1, 2}
    assert {c.draw for c in own.cells() if len(c.protection) > 1} == {0}


def test_control_stands_once_and_a_random_rule_keeps_its_seeds() -> None:
    cells = grid(rules=(Dare(), Ties())).cells()
    assert len(set(cells)) == len(cells)
    assert {cell.rule for cell in cells if cell.protection == "control"} == {Dare()}
    assert {cell.scenario for cell in cells if cell.protection == "control"} == {"clean"}

    def seeds(rule: MergeMethod, protection: str) -> set[int]:
        clean = [cell for cell in cells if cell.scenario == "clean"]
        return {c.seed for c in clean if (c.rule, c.protection) == (rule, protection)}

    for protection in ("none", "freeze"):
        assert seeds(Dare(), protection) == {0, 1}
        assert seeds(Ties(), protection) == {0}
    assert seeds(Dare(), "realign") == seeds(Ties(), "realign") == {0, 1}


def test_every_rule_and_level_is_a_cell_of_its_own() -> None:
    plain, axis = grid(), Axis("snr_db", (-5.0, 0.0, 5.0))
    cells = grid(rules=(Average(), Ties()), axis=axis).cells()
    assert len(set(cells)) == len(cells)
    seen = Counter((c.scenario, c.rule, c.axis, c.level) for c in cells if c.scenario != "clean")
    assert set(seen) == {
        (scenario, rule, "snr_db", level)
        for scenario, rule, level in product(
            ("ideal", "sum_rate"), (Average(), Ties()), (-5.0, 0.0, 5.0)
        )
    }
    noisy = sum(cell.scenario == "ideal" for cell in plain.cells())
    assert seen["ideal", Ties(), "snr_db", 0.0] == noisy
    clean = [cell for cell in cells if cell.scenario == "clean"]
    assert {(cell.axis, cell.level) for cell in clean} == {("", None)}
    before = [cell for cell in plain.cells() if cell.scenario == "clean"]
    merged = [cell for cell in before if cell.protection != "control"]
    assert len(clean) == 2 * len(merged) + len(before) - len(merged)


# Jobs


def every_job(wide: Grid) -> list[Job]:
    jobs = [Job(cell, scale) for cell in wide.cells() for scale in (0.3, 0.5)]
    jobs += [replace(job, split="validation") for job in jobs]
    tasks = ("dtd", "mnist", "svhn")
    for split in ("test", "validation"):
        jobs += [base_job(tasks, split), *(finetuned_job(task, split) for task in tasks)]
    return jobs


def test_jobs_have_hashes_of_their_own_that_say_what_they_are() -> None:
    wide = grid(rules=(TaskArithmetic(), Dare(), Ties(0.1)), axis=Axis("snr_db", (0.0, 5.0)))
    jobs = every_job(wide)
    assert len({job.hash for job in jobs}) == len(set(jobs)) == len(jobs)
    for job in jobs[::7]:
        content = {
            "cell": {
                "combination": list(job.cell.combination),
                "scenario": job.cell.scenario,
                "draw": job.cell.draw,
                "seed": job.cell.seed,
                "protection": job.cell.protection,
                "rule": described(job.cell.rule),
                "axis": job.cell.axis,
                "level": job.cell.level,
            },
            "scale": job.scale,
            "split": job.split,
            "kind": job.kind,
        }
        assert job.hash == content_hash(content)


def test_a_job_is_the_same_in_every_grid_that_holds_it() -> None:
    """A larger grid of levels, rules, draws or seeds finds the cells of a smaller one."""
    axis, more = Axis("snr_db", (0.0,)), Axis("snr_db", (5.0, 0.0, -5.0))
    small = {Job(cell, 0.3).hash for cell in grid(axis=axis, draws=1, seeds=1).cells()}
    large = grid(
        axis=more,
        rules=(TaskArithmetic(), Ties()),
        combinations=(("mnist", "svhn"), *PAIRS),
        scenarios=("sum_rate", "white", "clean", "ideal"),
    )
    assert small < {Job(cell, 0.3).hash for cell in large.cells()}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"combinations": ()}, "combinations"),
        ({"scenarios": ()}, "scenarios"),
        ({"protections": ()}, "protections"),
        ({"rules": ()}, "rules"),
        ({"draws": 0}, "draws"),
        ({"repaired_draws": 0}, "repaired draws must be at least 1"),
        ({"repaired_draws": 4}, "repaired draws must be at most 3, got 4"),
        ({"seeds": -1}, "seeds"),
        ({"scenarios": ("clean", "sumrate")}, "scenario 'sumrate'. Did you mean 'sum_rate'"),
        ({"protections": ("rmtllmf",)}, "protection 'rmtllmf'. Did you mean 'r-mtllmf'"),
        ({"axis": Axis("mse", (0.1,))}, "attacks a channel"),
        ({"axis": Axis("budget_db", (10.0,))}, "no attacker"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        grid(**change)
    with pytest.raises(InputError, match=r"expected a value such as fusion.Ties\(.*, got 'ties'"):
        require_swept("ties")
