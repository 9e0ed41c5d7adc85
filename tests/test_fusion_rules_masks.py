"""Methods that leave entries out: DELLA, Breadcrumbs, and the masks of consensus."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import Breadcrumbs, ConsensusTa, Dare, Della, DellaLinear, TaskArithmetic
from rmtllmf_jax.fusion.rules.sparsifiers import MagPrune, keep_probability

KEY = jax.random.key(2)
few = settings(max_examples=6, deadline=None)
seeds = st.integers(0, 10**6)


def rows_of(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def merged(method: Any, leaf: np.ndarray, **more: Any) -> np.ndarray:
    return np.asarray(method({"kernel": jnp.asarray(leaf)}, **more)["kernel"])


# Breadcrumbs


@few
@given(st.sampled_from([0.1, 0.5, 0.9, 0.99]), st.sampled_from([0.0, 0.01, 0.3]), seeds)
def test_breadcrumbs_keep_a_band_of_the_sorted_magnitudes(density: float, gamma: float, seed: int):
    leaf, weights = rows_of(seed, 3, 7, 9), np.array([1.0, -0.5, 2.0])
    expected = np.zeros((7, 9))
    for row, weight in zip(leaf.astype(np.float64), weights, strict=True):
        size, flat = row.size, row.ravel()
        order = np.argsort(np.abs(flat))
        kept = int(density * size)
        first = max(0, size - kept - int(gamma * size))
        mask = np.zeros(size)
        mask[order[first : first + kept]] = 1
        expected += weight * (mask * flat).reshape(row.shape)
    found = merged(Breadcrumbs(density, gamma), leaf, weights=weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_breadcrumbs_by_hand():
    leaf = np.array([[10.0, -4.0, 3.0, 0.1, 0.2]], np.float32)
    assert merged(Breadcrumbs(0.4, 0.2), leaf).tolist() == [0, -4, 3, 0, 0]
    assert merged(Breadcrumbs(0.9, 0.2), leaf).tolist() == [0, -4, 3, *leaf[0, 3:].tolist()]
    assert merged(Breadcrumbs(1.0, 0.2), leaf).tolist() == leaf[0].tolist()
    for bad in ({"density": 0.0}, {"density": 1.1}, {"gamma": -0.1}, {"gamma": 1.1}):
        with pytest.raises(InputError, match=next(iter(bad))):
            Breadcrumbs(**bad)


# DELLA


@pytest.mark.parametrize("outputs_last", [True, False])
def test_the_probability_rises_with_the_rank_among_the_weights_of_an_output(outputs_last: bool):
    row = rows_of(0, 5, 4)
    found = np.asarray(keep_probability(jnp.asarray(row), 0.5, 0.2, outputs_last))
    lines = row.T if outputs_last else row
    for line, probability in zip(lines, found.T if outputs_last else found, strict=True):
        rank = np.argsort(np.argsort(np.abs(line)))
        np.testing.assert_allclose(probability, 0.3 + 0.4 * rank / (len(line) - 1), rtol=1e-6)
    vector = np.asarray(keep_probability(jnp.array([3.0, -1.0, 2.0]), 0.5, 0.2, outputs_last))
    np.testing.assert_allclose(vector, [0.7, 0.3, 0.5], rtol=1e-6)
    assert float(keep_probability(jnp.array(3.0), 0.5, 0.2, outputs_last)) == 0.5


def test_della_keeps_as_often_as_it_says_and_its_mean_is_the_vector():
    """Over many keys, entry by entry within five standard errors."""
    leaf, draws = jnp.asarray(rows_of(1, 1, 6, 5)), 2000
    method = DellaLinear(0.5, 0.3)

    @jax.jit
    @jax.vmap
    def once(key: jax.Array) -> jax.Array:
        return method({"kernel": leaf}, key)["kernel"]

    found = np.asarray(once(jax.random.split(KEY, draws)))
    probability = np.asarray(keep_probability(leaf[0], 0.5, 0.3, True))
    spread = np.sqrt(probability * (1 - probability) / draws)
    assert (np.abs((found != 0).mean(0) - probability) < 5 * spread).all()
    assert (np.abs(found.mean(0) / leaf[0] - 1) < 5 * spread / probability).all()


@pytest.mark.parametrize("rescale", ["l1", None])
def test_della_against_numpy_with_the_same_masks(rescale: Any):
    leaf, weights = rows_of(2, 3, 6, 5), np.array([1.0, 0.5, 2.0])
    sparsify = MagPrune(0.6, 0.2, rescale)
    kept = np.asarray(sparsify(jnp.asarray(leaf), "kernel", KEY)) != 0
    assert 0.3 < kept.mean() < 0.9
    assert (kept[0] != kept[1]).any()
    rows = leaf * kept
    if rescale == "l1":
        rows *= (np.abs(leaf).sum((1, 2)) / np.abs(rows).sum((1, 2)))[:, None, None]
    votes = weights[:, None, None] * rows
    found = merged(DellaLinear(0.6, 0.2, rescale), leaf, key=KEY, weights=weights)
    np.testing.assert_allclose(found, votes.sum(0), atol=1e-5)
    agree = np.sign(votes) == np.where(votes.sum(0) >= 0, 1, -1)
    share = (weights[:, None, None] * agree).sum(0)
    expected = (votes * agree).sum(0) / np.where(share == 0, 1, share)
    found = merged(Della(0.6, 0.2, rescale), leaf, key=KEY, weights=weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_della_without_its_ranks_is_dare():
    leaf = rows_of(3, 2, 6, 5)
    found = merged(DellaLinear(0.6, 0.0), leaf, key=KEY)
    np.testing.assert_allclose(found, merged(Dare(0.4), leaf, key=KEY), rtol=1e-5)
    assert (merged(DellaLinear(1.0), leaf, key=KEY) == leaf.sum(0)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.1}, "got -0.05 and 0.25"),
        ({"density": 0.9}, "got 0.75 and 1.05"),
        ({"density": 1.5}, "density must be above 0"),
        ({"epsilon": -0.1}, "epsilon must be a finite number >= 0"),
        ({"rescale": "l2"}, "unknown rescale 'l2'"),
    ],
)
@pytest.mark.parametrize("kind", [Della, DellaLinear])
def test_bad_options_of_della_are_refused(kind: Any, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        kind(**options)


def test_della_needs_a_key():
    with pytest.raises(InputError, match="draws random masks: give it a key"):
        merged(Della(), rows_of(0, 2, 3))


# Consensus


@few
@given(st.sampled_from([0.0, 0.4, 1.0]), st.sampled_from([1, 2, 3, 5]), seeds)
def test_consensus_against_numpy(ratio: float, agree: int, seed: int):
    leaf, weights = rows_of(seed, 4, 30), np.array([1.0, 0.0, -0.5, 2.0])
    rows = (weights[:, None] * leaf)[weights != 0]
    total = rows.sum(0)
    wanting = (np.abs(rows) >= ratio * np.abs(total - rows)).sum(0)
    expected = np.where(wanting >= min(agree, len(rows)), total, 0)
    found = merged(ConsensusTa(ratio, agree), leaf, weights=weights)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_consensus_of_one_task_and_of_no_ratio_is_the_sum():
    leaf = rows_of(5, 3, 8)
    np.testing.assert_array_equal(merged(ConsensusTa(), leaf[:1]), leaf[0])
    everything = merged(ConsensusTa(ratio=0.0), leaf)
    np.testing.assert_array_equal(everything, merged(TaskArithmetic(), leaf))
    slope = jax.grad(lambda x: ConsensusTa()({"w": x})["w"].sum())(jnp.asarray(leaf))
    np.testing.assert_array_equal(slope[0] != 0, merged(ConsensusTa(), leaf) != 0)
    for bad in ({"ratio": -1.0}, {"agree": 0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            ConsensusTa(**bad)
