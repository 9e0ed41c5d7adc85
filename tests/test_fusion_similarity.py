"""Cosines over all coordinates, in float64, whole and layer by layer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.similarity import sign_agreement

SHAPES = {
    "embeddings": {"cls": (1, 8), "patch": {"kernel": (3, 8)}},
    "encoder": {"layers": {"0": {"fc1": (8, 4), "fc2": (4, 8)}, "1": {"fc1": (8, 4)}}},
}


def stacked(users: int = 3) -> dict:
    random = np.random.default_rng(0)

    def fill(node: object) -> object:
        if isinstance(node, dict):
            return {key: fill(value) for key, value in node.items()}
        return jnp.asarray(random.normal(size=(users, *node)).astype(np.float32))

    return fill(SHAPES)


def cosines(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    unit = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return unit @ unit.T


def rows_of(leaves: list) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in leaves], axis=1)


def test_exact_cosines_are_those_of_all_coordinates():
    tree = stacked()
    expected = cosines(rows_of(list(fusion.leaves_by_path(tree).values())))
    np.testing.assert_allclose(fusion.exact_cosines(tree), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(fusion.cosine_matrix(tree), expected, atol=1e-6)


def test_sums_do_not_lose_small_coordinates():
    """One large coordinate and a million small ones: in float32 the small ones would vanish."""
    small = np.full(1 << 21, 1e-4, np.float32)
    a = np.concatenate([[4.0], small]).astype(np.float32)
    b = np.concatenate([[4.0], -small]).astype(np.float32)
    rest = np.sum(small.astype(np.float64) ** 2)
    tree = {"w": jnp.asarray(np.stack([a, b]))}
    assert fusion.exact_cosines(tree)[0, 1] == pytest.approx((16 - rest) / (16 + rest), rel=1e-12)


def test_layers_have_cosines_of_their_own():
    tree = stacked()
    found = fusion.layer_cosines(tree)
    assert list(found) == ["embeddings", "encoder/layers/0", "encoder/layers/1"]
    zero = tree["encoder"]["layers"]["0"]
    np.testing.assert_allclose(
        found["encoder/layers/0"], cosines(rows_of([zero["fc1"], zero["fc2"]])), rtol=1e-12
    )
    assert len(fusion.layer_cosines(tree, "tensor")) == 5
    with pytest.raises(InputError, match="unknown granularity"):
        fusion.layer_cosines(tree, "blocks")


def test_a_zero_vector_has_no_direction():
    tree = {"w": jnp.asarray([[1.0, 0.0], [0.0, 0.0]])}
    found = fusion.exact_cosines(tree)
    assert found[0, 0] == 1
    assert np.isnan(found[0, 1])


def test_sign_agreement_is_the_share_of_equal_signs():
    tree = stacked()
    rows = rows_of(list(fusion.leaves_by_path(tree).values()))
    expected = np.mean(np.sign(rows)[:, None] == np.sign(rows)[None], axis=2)
    assert len(np.unique(expected)) == 4  # else it means nothing
    np.testing.assert_allclose(sign_agreement(tree), expected, atol=1e-6)
    np.testing.assert_allclose(jax.jit(sign_agreement)(tree), expected, atol=1e-6)


def test_a_zero_agrees_half_and_an_opposite_vector_not_at_all():
    tree = {"w": jnp.asarray([[1.0, -2.0, 0.0, 3.0], [-1.0, 2.0, 5.0, -3.0]])}
    np.testing.assert_allclose(sign_agreement(tree), [[7 / 8, 1 / 8], [1 / 8, 1.0]], atol=1e-7)
