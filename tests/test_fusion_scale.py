"""The merging coefficient: rules by the number of tasks, and the search on a validation split."""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import SCALES, scale_of, search_scale


@pytest.mark.parametrize(
    ("rule", "tasks", "expected"),
    [("1/N", 4, 0.25), ("1/sqrt(N)", 4, 0.5), ("power-law", 2, 0.7176), ("0.3", 7, 0.3)],
)
def test_rules_by_the_number_of_tasks(rule: str, tasks: int, expected: float):
    assert scale_of(rule, tasks) == pytest.approx(expected, abs=1e-4)


def test_every_rule_falls_with_the_number_of_tasks():
    for rule in SCALES.values():
        values = [rule(tasks) for tasks in range(1, 9)]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("rule", "says"),
    [("powerlaw", r"unknown scale 'powerlaw'\. Did you mean 'power-law'"), ("nan", "finite")],
)
def test_rules_that_are_none_are_refused(rule: str, says: str):
    with pytest.raises(InputError, match=says):
        scale_of(rule, 2)


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
    "score",
    [
        lambda s: -abs(float(s) - 0.2),
        lambda s: 1.0 if s > 0.1 else 0.0,
        lambda s: np.abs(np.asarray(s)),
    ],
)
def test_a_score_in_plain_python_is_refused(score: Callable):
    with pytest.raises(InputError, match="the score must be a pure function of jax arrays"):
        search_scale(score, [0.1, 0.2], "validation")


def test_a_score_of_several_numbers_is_refused():
    with pytest.raises(InputError, match=r"one number per coefficient, got the shape \(3,\)"):
        search_scale(lambda s: s * jnp.ones(3), [0.1, 0.2], "validation")


@pytest.mark.parametrize("candidates", [[], [0.1, float("inf")]])
def test_candidates_that_are_none_are_refused(candidates: list[float]):
    with pytest.raises(InputError, match="expected finite candidates"):
        search_scale(lambda s: s, candidates, "validation")


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(InputError, match=r"the score is NaN at the scale 0\.5"):
        search_scale(lambda s: jnp.where(s > 0.4, jnp.nan, s), [0.1, 0.5], "validation")
