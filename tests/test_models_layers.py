"""Layers have the values and derivatives of JAX's and flax's own, in every precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.models.layers import LayerNorm, attend

BATCH, TOKENS, WIDTH, HEADS = 3, 7, 12, 2
TOLERANCES = {"float32": 2e-5, "float64": 1e-12}


@pytest.fixture(params=TOLERANCES)
def dtype(request: pytest.FixtureRequest) -> Iterator[str]:
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def draw(count: int, shape: tuple[int, ...], dtype: str) -> list[jax.Array]:
    random = np.random.default_rng(0)
    return [jnp.asarray(2 * random.normal(size=shape), dtype) for _ in range(count)]


def check_alike(ours: Callable[..., Any], theirs: Callable[..., Any], given: Any, dtype: str):
    """Compare values, gradients, and gradients' own changes (forward over reverse mode)."""

    def found(function: Callable[..., jax.Array]) -> tuple:
        def score(given: Any) -> jax.Array:
            return jnp.sum(jnp.sin(function(*given)))

        ones = jax.tree.map(jnp.ones_like, given)
        return function(*given), *jax.jvp(jax.grad(score), (given,), (ones,))

    close = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    for a, b in zip(*(jax.tree.leaves(found(side)) for side in (ours, theirs)), strict=True):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, **close)


def reference(query: jax.Array, key: jax.Array, value: jax.Array, causal: bool) -> jax.Array:
    """Attention head by head, with plain products."""
    part, found = WIDTH // HEADS, []
    for head in range(HEADS):
        q, k, v = (x[..., head * part : (head + 1) * part] for x in (query, key, value))
        powers = jnp.exp(q @ k.mT / jnp.sqrt(jnp.asarray(part, q.dtype)))
        powers = jnp.tril(powers) if causal else powers
        found.append(powers / powers.sum(-1, keepdims=True) @ v)
    return jnp.concatenate(found, axis=-1)


@pytest.mark.parametrize(("read", "causal"), [(TOKENS, False), (TOKENS, True), (1, False)])
def test_attention_is_the_sum_over_heads(dtype: str, read: int, causal: bool) -> None:
    query, key, value = draw(3, (BATCH, TOKENS, WIDTH), dtype)
    check_alike(
        lambda *given: attend(*given, HEADS, causal),
        lambda *given: reference(*given, causal),
        (query[:, :read], key, value),
        dtype,
    )


def test_attention_in_bfloat16_has_its_softmax_in_float32() -> None:
    given = draw(3, (BATCH, TOKENS, WIDTH), "bfloat16")

    def theirs(*given: jax.Array) -> jax.Array:
        split = [x.reshape(*x.shape[:2], HEADS, -1) for x in given]
        return jax.nn.dot_product_attention(*split).reshape(given[0].shape)

    def found(function: Callable[..., jax.Array]) -> list[jax.Array]:
        def score(given: list[jax.Array]) -> jax.Array:
            return jnp.sum(function(*given).astype(jnp.float32) ** 2)

        return [function(*given), *jax.grad(score)(given)]

    ours = found(lambda *given: attend(*given, HEADS))
    for a, b in zip(ours, found(theirs), strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(*(x.astype(jnp.float32) for x in (a, b)), rtol=0.02, atol=0.06)


def test_attention_takes_large_logits() -> None:
    """The largest logit is taken off first, and hidden tokens stay hidden."""
    query, key, value = draw(3, (BATCH, TOKENS, WIDTH), "float32")
    found = attend(1e4 * query, key, value, HEADS, causal=True)
    assert jnp.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0], value[:, 0], rtol=1e-6)


def test_layer_norm_is_that_of_flax(dtype: str) -> None:
    (x,) = draw(1, (BATCH, TOKENS, WIDTH), dtype)
    scale, bias = draw(2, (WIDTH,), dtype)
    ours = LayerNorm(epsilon=1e-3)
    theirs = nn.LayerNorm(epsilon=1e-3, use_fast_variance=False)

    def of(module: nn.Module) -> Callable[..., jax.Array]:
        return lambda x, scale, bias: module.apply({"params": {"scale": scale, "bias": bias}}, x)

    check_alike(of(ours), of(theirs), (x, scale, bias), dtype)
    start = [jax.tree.map(jnp.asarray, m.init(jax.random.key(0), x)) for m in (ours, theirs)]
    jax.tree.map(np.testing.assert_array_equal, *start)


def test_layer_norm_of_bfloat16_is_the_rounded_one() -> None:
    (x,) = draw(1, (BATCH, WIDTH), "bfloat16")
    params = LayerNorm(1e-6).init(jax.random.key(0), x)
    found, exact = (LayerNorm(1e-6).apply(params, y) for y in (x, x.astype(jnp.float32)))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(*(y.astype(jnp.float32) for y in (found, exact.astype(x.dtype))))
