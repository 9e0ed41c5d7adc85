"""Intervals by resampling whole clusters: against plain loops, and in simulation."""

from __future__ import annotations

import itertools
import statistics
import time

import numpy as np
import pandas as pd
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.report.intervals import Interval, differences, interval


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers for every test."""
    return np.random.default_rng(3)


def crossed(sizes: dict[int, int], draws: int, seeds: int = 1) -> pd.DataFrame:
    """Return a cell per combination, draw and seed, without a score."""
    kinds = [(size, f"{size}_{each}") for size, count in sizes.items() for each in range(count)]
    rows = [
        (*kind, draw, seed)
        for kind, draw, seed in itertools.product(kinds, range(draws), range(seeds))
    ]
    return pd.DataFrame(rows, columns=["size", "combination", "draw", "seed"])


def effects(
    rng: np.random.Generator, cells: pd.DataFrame, noise: float = 0.0, **deviations: float
) -> pd.DataFrame:
    """Give every level and every cell an effect of its own; the mean of all is zero."""
    score = noise * rng.standard_normal(len(cells))
    for name, deviation in deviations.items():
        codes, levels = pd.factorize(cells[name])
        score += deviation * rng.standard_normal(len(levels))[codes]
    return cells.assign(score=score)


def by_loops(rng: np.random.Generator, cells: pd.DataFrame, resamples: int) -> list[float]:
    """Resample combinations (within their size) and draws, one less than there are, by loops."""
    rows, means = cells.to_dict("records"), []
    draws = sorted(set(cells["draw"]))
    by_size = {n: sorted(set(own["combination"])) for n, own in cells.groupby("size")}
    for _ in range(resamples):
        drawn = list(rng.choice(draws, len(draws) - 1))
        at_each = []
        for size, names in by_size.items():
            chosen = list(rng.choice(names, max(1, len(names) - 1)))
            scores = [
                row["score"]
                for row in rows
                for _ in range(chosen.count(row["combination"]) * drawn.count(row["draw"]))
                if row["size"] == size
            ]
            at_each.append(statistics.mean(scores))
        means.append(statistics.mean(at_each))
    return np.quantile(means, [0.025, 0.975]).tolist()


def test_it_is_what_plain_loops_resample(rng: np.random.Generator):
    cells = effects(rng, crossed({2: 4, 5: 1}, 5), 0.5, combination=1.0, draw=1.0)
    found = interval(cells)
    means = cells.groupby("size")["score"].mean()
    assert found.mean == pytest.approx(means.mean())
    assert found.levels == 5
    low, high = by_loops(rng, cells, 2000)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.05 * (high - low))


@pytest.mark.parametrize(
    "deviations", [{"draw": 1.0}, {"draw": 1.0, "combination": 1.0}, {"combination": 0.5}, {}]
)
def test_it_covers_the_mean_under_crossed_effects(
    rng: np.random.Generator, deviations: dict[str, float]
):
    """And the naive interval, of independent cells, only where nothing else varies."""
    covered, naive, repeats = 0, 0, 400
    for _ in range(repeats):
        cells = effects(rng, crossed({2: 10}, 20), 0.5, **deviations)
        found = interval(cells)
        covered += found.low <= 0 <= found.high
        naive += abs(found.mean) < 1.96 * cells["score"].sem()
    assert covered >= 0.9 * repeats
    assert (naive < 0.7 * repeats) == bool(deviations)


@pytest.mark.parametrize(("draws", "covers"), [(2, 0.5), (5, 0.86)])
def test_few_levels_cover_too_little(rng: np.random.Generator, draws: int, covers: float):
    cells = crossed({2: 1}, draws)
    found = [interval(effects(rng, cells, draw=1.0)) for _ in range(400)]
    assert np.mean([x.low <= 0 <= x.high for x in found]) == pytest.approx(covers, abs=0.06)


def test_it_does_not_depend_on_the_order_of_rows_or_on_names(rng: np.random.Generator):
    cells = effects(rng, crossed({2: 6, 3: 4}, 8, 2), 1.0, combination=1.0, draw=1.0)
    found = interval(cells)
    assert interval(cells) == found
    shuffled = interval(cells.sample(frac=1, random_state=1))
    assert [shuffled.low, shuffled.high] == pytest.approx([found.low, found.high], rel=1e-12)
    renamed = interval(cells.assign(draw=7 * cells["draw"] % 8 + 100))
    width = found.high - found.low
    assert [renamed.low, renamed.high] == pytest.approx([found.low, found.high], abs=0.1 * width)


def test_what_is_not_replicated_has_no_interval():
    cells = crossed({2: 3, 3: 1}, 2).assign(score=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    once = cells[cells["draw"] == 0]
    whole = interval(once)  # the only combination of three tasks
    assert whole.mean == pytest.approx((0.3 + 0.7) / 2)
    assert np.isnan([whole.low, whole.high]).all()
    assert whole.levels == 1
    assert interval(once[once["size"] == 2]).levels == 3
    three = interval(cells[cells["size"] == 3])  # one combination, two draws
    assert (three.low, three.high) == pytest.approx((0.7, 0.8))
    assert interval(once.head(1)).text() == "10"
    assert interval(once.head(0)).text() == "-"
    assert np.isnan(interval(cells, clusters=("seed",)).low)
    with pytest.raises(InputError, match="column score: a mean needs finite values"):
        interval(cells.assign(score=np.nan))


@pytest.mark.parametrize(("scenario", "levels"), [("clean", 6), ("ideal", 3)])
def test_combinations_decide_nothing_of_few_channels(scenario: str, levels: int):
    """All of them are sent over the same ones."""
    cells = crossed({2: 6}, 3).assign(score=0.5, scenario=scenario)
    assert interval(cells).levels == levels
    assert interval(cells[cells["draw"] == 0]).levels == (6 if scenario == "clean" else 1)
    assert interval(cells[cells["draw"] == 0]).low == 0.5


def test_a_table_with_holes_can_lose_a_size():
    """A resample without any draw of the second size is left out."""
    cells = crossed({2: 2, 3: 2}, 4)
    cells = cells[(cells["size"] == 2) | (cells["draw"] == 0)]
    found = interval(cells.assign(score=1.0 * (cells["size"] == 3)))
    assert [found.low, found.mean, found.high] == pytest.approx([0.5] * 3)


def test_thousands_of_cells_take_less_than_a_second(rng: np.random.Generator):
    cells = effects(rng, crossed({2: 50, 3: 50}, 25, 2), draw=1.0)
    started = time.process_time()
    interval(cells)
    assert time.process_time() - started < 1


def test_its_text_is_in_whole_points():
    assert Interval(0.834, 0.7951, 0.8649).text() == "83 [80, 86]"
    assert Interval(-0.001, -0.012, 0.03).text(sign="+", unit=" points") == "+0 points [-1, 3]"
    assert Interval(0.0123, 0.01, 0.02).text(".2g", scale=1.0) == "0.012 [0.01, 0.02]"


def test_differences_are_of_those_that_have_a_partner():
    cells = crossed({2: 2}, 2).assign(score=[0.5, 0.6, 0.7, 0.8])
    base = pd.DataFrame({"combination": ["2_0", "2_2"], "score": [0.4, 0.9]})
    found = differences(cells, base, ["combination"])
    assert found["other"].tolist() == [0.4, 0.4]
    assert found["difference"].tolist() == pytest.approx([0.1, 0.2])
