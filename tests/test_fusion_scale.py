"""The merging coefficient: rules by the number of tasks, and the search on a validation split."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import scale_of, search_scale


@pytest.mark.parametrize(
    ("rule", "tasks", "expected"),
    [("1/N", 4, 0.25), ("1/sqrt(N)", 4, 0.5), ("power-law", 2, 0.7176), ("0.3", 7, 0.3)],
)
def test_rules_by_the_number_of_tasks(rule: str, tasks: int, expected: float):
    assert scale_of(rule, tasks) == pytest.approx(expected, abs=1e-4)


def test_the_best_candidate_and_the_whole_curve():
    found = search_scale(lambda s: -((s - 0.31) ** 2), [0.5, 0.1, 0.3, 0.9], "validation")
    assert found.best == pytest.approx(0.3)
    np.testing.assert_allclose(found.scales, [0.1, 0.3, 0.5, 0.9])
    np.testing.assert_allclose(found.scores, -((found.scales - 0.31) ** 2), atol=1e-6)


def test_of_equal_scores_the_smaller_wins():
    assert search_scale(lambda s: jnp.minimum(s, 0.4), [0.8, 0.6, 0.5], "val").best == 0.5


def test_all_candidates_share_one_compiled_program():
    score = chex.assert_max_traces(n=1)(lambda scale: -scale)
    search_scale(score, np.linspace(0, 1, 30), "validation")


@pytest.mark.parametrize(
    "split", ["test", "Test", "TEST", "mnist/test[:100]", "MnistTest", "my_testing", "test2"]
)
def test_the_test_split_is_refused_by_name(split: str):
    with pytest.raises(InputError, match="must not be chosen on the split"):
        search_scale(lambda s: s, [0.1], split)


@pytest.mark.parametrize("split", ["latest-validation", "LATEST", "contest/val"])
def test_test_within_a_word_is_no_test_split(split: str):
    assert search_scale(lambda s: -s, [0.1, 0.2], split).best == 0.1


@pytest.mark.parametrize(
    ("score", "candidates", "says"),
    [
        (lambda s: -abs(float(s) - 0.2), [0.1], "the score must be a pure function of jax arrays"),
        (lambda s: np.abs(np.asarray(s)), [0.1], "the score must be a pure function of jax arrays"),
        (lambda s: s * jnp.ones(3), [0.1], r"one number per coefficient, got the shape \(3,\)"),
        (lambda s: s, [], "expected finite candidates"),
        (lambda s: s, [0.1, float("inf")], "expected finite candidates"),
        (
            lambda s: jnp.where(s > 0.4, jnp.nan, s),
            [0.1, 0.5],
            r"the score is NaN at the scale 0\.5",
        ),
    ],
)
def test_searches_that_find_nothing_are_refused(score: Callable, candidates: list, says: str):
    with pytest.raises(InputError, match=says):
        search_scale(score, candidates, "validation")
