"""Attacks on content, and what the robust merge methods make of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described, parse
from rmtllmf_jax.fusion import Average, ClippedNorm, Median, TrimmedMean
from rmtllmf_jax.uplink import POISONS, Poison, Scaled, SignFlip

ALL = [SignFlip(), SignFlip(2), Scaled(), Scaled(1, -2.5)]


def vectors(users: int = 4) -> dict:
    """Return task vectors that agree but for a tenth."""
    random = np.random.default_rng(0)
    rows = 1 + 0.1 * random.normal(size=(users, 3, 5))
    return {"w": jnp.asarray(rows, jnp.float32), "b": jnp.asarray(rows[:, 0, 0], jnp.bfloat16)}


@pytest.mark.parametrize("poison", ALL, ids=described)
def test_one_user_is_multiplied_and_the_others_stay_bitwise(poison: Poison):
    stacked = vectors()
    sent = jax.jit(poison)(stacked)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), sent)
    factor = -1 if isinstance(poison, SignFlip) else poison.factor
    for name, leaf in stacked.items():
        assert sent[name].dtype == leaf.dtype
        expected = np.array(leaf, np.float32)
        expected[poison.user] *= factor
        expected = np.asarray(jnp.asarray(expected).astype(leaf.dtype), np.float32)
        np.testing.assert_array_equal(wide[name], expected)
    twice = jax.vmap(poison)(jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), stacked))
    assert_trees_equal(jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float32), twice), wide)


@pytest.mark.parametrize("poison", ALL, ids=described)
def test_they_are_values(poison: Poison):
    assert isinstance(poison, Poison)
    assert poison.stage == "content"
    assert parse(described(poison), POISONS, "attack") == poison
    assert hash(parse(described(poison), POISONS, "attack")) == hash(poison)
    assert sorted(POISONS) == ["scaled", "sign_flip"]


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="sign_flip needs a user of 0 to 3, as there are 4 task"):
        SignFlip(4)(vectors())
    with pytest.raises(InputError, match="user must be at least 0, got -1"):
        Scaled(-1)
    with pytest.raises(InputError, match="factor must be a finite number, got inf"):
        Scaled(0, float("inf"))
    with pytest.raises(InputError, match="one common leading axis"):
        Scaled()({"a": jnp.zeros((2, 3)), "b": jnp.zeros((3, 3))})


@pytest.mark.parametrize("poison", [SignFlip(1), Scaled(1, 1e6), Scaled(1, -1e6)], ids=described)
@pytest.mark.parametrize("method", [Median(), TrimmedMean()], ids=described)
def test_robust_methods_stay_where_they_were(poison: Poison, method: Median):
    honest, sent = vectors(), poison(vectors())
    away = {m: np.abs(m(sent)["w"] - m(honest)["w"]).max() for m in (method, Average())}
    assert away[method] < 0.3
    assert away[Average()] > 0.4


def test_clipped_norms_bound_what_one_user_does():
    honest, sent = vectors(), Scaled(1, 1e6)(vectors())
    total, most = ClippedNorm()(sent)["w"], ClippedNorm()(honest)["w"]
    np.testing.assert_allclose(total, most, rtol=0.1)
