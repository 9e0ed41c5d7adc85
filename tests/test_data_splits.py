"""Index sets: what is drawn, from what, and that seeds mean the same tomorrow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.splits import evaluation_subset, few_shot, split_validation

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(
    lambda values: np.array(values, dtype=np.int32)
)
SEEDS = st.integers(0, 2**40)


@given(labels=LABELS, fraction=st.floats(0, 0.99), seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_validation_is_disjoint_complete_and_stratified(
    labels: np.ndarray, fraction: float, seed: int
) -> None:
    counts = np.bincount(labels)
    expected = np.minimum(np.floor(fraction * counts + 0.5), np.maximum(counts - 1, 0))
    if fraction > 0 and expected.sum() == 0:
        with pytest.raises(InputError, match="no validation image"):
            split_validation(labels, fraction, seed)
        return
    training, validation = split_validation(labels, fraction, seed)
    for part in (training, validation):
        assert np.all(np.diff(part) > 0)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([training, validation])), np.arange(len(labels))
    )
    np.testing.assert_array_equal(np.bincount(labels[validation], minlength=len(counts)), expected)
    assert set(labels[training]) == set(labels)
    again = split_validation(labels, fraction, seed)
    np.testing.assert_array_equal(again[1], validation)


def test_validation_draws_differ_by_seed_and_are_not_a_prefix() -> None:
    labels = np.repeat(np.arange(4), 50)
    first, second = (split_validation(labels, 0.2, seed)[1] for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert len(first) == len(second) == 40
    assert not np.array_equal(first[:10], np.arange(10))


def test_a_class_draws_the_same_whatever_the_others_hold() -> None:
    few, many = np.repeat([0, 1], [30, 5]), np.repeat([0, 1], [30, 500])
    for labels in (few, many):
        np.testing.assert_array_equal(few_shot(labels, 5, 7)[:5], few_shot(few, 5, 7)[:5])
    validation = [split_validation(labels, 0.2, 7)[1] for labels in (few, many)]
    np.testing.assert_array_equal(validation[0][:6], validation[1][:6])


def test_classes_do_not_share_a_stream() -> None:
    labels = np.repeat([0, 1], 40)
    for drawn in (few_shot(labels, 10, 0), split_validation(labels, 0.25, 0)[1]):
        assert len(drawn) == 20
        assert not np.array_equal(drawn[:10], drawn[10:] - 40)


def test_purposes_do_not_share_a_stream() -> None:
    labels = np.zeros(200, dtype=np.int32)
    draws = [
        split_validation(labels, 0.1, 0)[1],
        few_shot(labels, 20, 0),
        evaluation_subset(200, 20, 0),
    ]
    for i in range(3):
        assert not np.array_equal(draws[i], draws[(i + 1) % 3])


@given(labels=LABELS, per_class=st.integers(1, 8), seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_few_shot_is_exact_nested_and_sorted(labels: np.ndarray, per_class: int, seed: int) -> None:
    counts = np.bincount(labels)
    chosen = few_shot(labels, per_class, seed, allow_fewer=True)
    assert np.all(np.diff(chosen) > 0)
    np.testing.assert_array_equal(
        np.bincount(labels[chosen], minlength=len(counts)), np.minimum(counts, per_class)
    )
    assert set(chosen) <= set(few_shot(labels, per_class + 1, seed, allow_fewer=True))
    if counts[counts > 0].min() >= per_class:
        np.testing.assert_array_equal(few_shot(labels, per_class, seed), chosen)
    else:
        with pytest.raises(InputError, match=rf"has \d+ images, {per_class} are asked for"):
            few_shot(labels, per_class, seed)


@given(count=st.integers(1, 300), samples=st.integers(0, 400), seed=SEEDS)
@settings(max_examples=100, deadline=None)
def test_evaluation_subset_is_nested_and_sorted(count: int, samples: int, seed: int) -> None:
    chosen = evaluation_subset(count, samples, seed)
    assert len(chosen) == (count if samples == 0 else min(samples, count))
    assert np.all(np.diff(chosen) > 0)
    assert chosen.min() >= 0
    assert chosen.max() < count
    if samples:
        assert set(chosen) <= set(evaluation_subset(count, samples + 7, seed))


def test_evaluation_subset_is_spread_and_depends_on_the_seed() -> None:
    first, second = evaluation_subset(1000, 100, 0), evaluation_subset(1000, 100, 1)
    assert not np.array_equal(first, second)
    assert 400 < first.mean() < 600


SOME = np.array([0, 0, 1, 0])
FRACTIONS = (-0.1, 1.0, float("nan"), float("inf"))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        *((lambda x=x: split_validation(SOME, x), "fraction must be") for x in FRACTIONS),
        (lambda: split_validation(SOME[:0]), "labels must hold"),
        (lambda: few_shot(np.array([0, -1]), 1, 0), "labels must hold"),
        (lambda: split_validation(SOME, 0.5, -1), "seed must be at least 0, got -1"),
        (lambda: few_shot(SOME, 1, -1), "seed must be at least 0, got -1"),
        (lambda: few_shot(SOME, 2, 0), "class 1 has 1 images, 2 are"),
        (lambda: few_shot(SOME, 1, 0, classes=("a", "b", "owl")), r"class 2 \(owl\) has 0 images"),
        (lambda: few_shot(SOME, 1, 0, classes=("a",)), "label 1 is not one of the 1 classes"),
        (lambda: few_shot(SOME, 0, 0), "per_class must be at least 1, got 0"),
        (lambda: evaluation_subset(20, 1, -1), "seed must be at least 0, got -1"),
        (lambda: evaluation_subset(10, -3, 0), "samples must be at least 0, got -3"),
        (lambda: evaluation_subset(0, 3, 0), "count must be at least 1, got 0"),
    ],
)
def test_nonsense_is_refused(draw: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw()
