"""Metrics of language models, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from test_models_decoder import DECODER, logits_of, params

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.evaluation import (
    LANGUAGE_METRICS,
    AnswerAccuracy,
    Batch,
    BitsPerByte,
    NegativeLogLikelihood,
    Perplexity,
    TokenLoss,
    evaluate,
    get_metric,
)

__all__ = ["params"]  # a fixture

METRICS = (NegativeLogLikelihood(), Perplexity(), BitsPerByte())
NATS = {"base": 3.0, "merged": 2.2, "finetuned": 2.0}
"""Negative log-likelihood per token (per byte for bits per byte)."""


def as_score(metric: TokenLoss, nats: float) -> float:
    """Return the score whose negative log-likelihood that is."""
    if isinstance(metric, Perplexity):
        return math.exp(nats)
    return nats / math.log(2) if isinstance(metric, BitsPerByte) else nats


@pytest.mark.parametrize("metric", METRICS, ids=described)
def test_normalised_scores_by_hand(metric: TokenLoss):
    """Merged = fine-tuned: 1; merged = base: exp(nats of fine-tuned - nats of base)."""
    base, merged, tuned = (as_score(metric, nats) for nats in NATS.values())
    assert metric.normalised(tuned, tuned) == pytest.approx(1)
    assert metric.normalised(base, tuned) == pytest.approx(math.exp(2.0 - 3.0))
    assert metric.normalised(merged, tuned) == pytest.approx(math.exp(2.0 - 2.2))
    assert metric.gain_kept(tuned, base, tuned) == pytest.approx(1)
    assert metric.gain_kept(base, base, tuned) == pytest.approx(0)
    assert metric.gain_kept(merged, base, tuned) == pytest.approx(0.8)
    assert math.isnan(metric.gain_kept(merged, tuned, tuned))
    assert metric.normalised(as_score(metric, 600.0), tuned) == pytest.approx(0)


def uniform(batch: Batch) -> jnp.ndarray:
    """A model that knows nothing of eight tokens."""
    return jnp.zeros((*batch.inputs["tokens"].shape, 8))


def test_sums_by_hand():
    """Three targets count, of 2, 0 and 3 bytes; a padded one may be anything."""
    tokens = jnp.array([[0, 1], [2, 3]])
    inputs = {"tokens": tokens, "bytes": jnp.array([[2, 0], [3, 9]])}
    batch = Batch(inputs, tokens, jnp.array([[1.0, 1.0], [1.0, 0.0]]))
    nats = 3 * math.log(8)
    assert map_floats(NegativeLogLikelihood()(uniform, batch)) == pytest.approx((nats, 3))
    assert Perplexity().score(*map_floats(Perplexity()(uniform, batch))) == pytest.approx(8)
    assert map_floats(BitsPerByte()(uniform, batch)) == pytest.approx((9, 5))
    broken = jnp.zeros((2, 2, 8)).at[1, 1].set(jnp.nan)
    assert NegativeLogLikelihood()(lambda _: broken, batch)[0] == pytest.approx(nats)
    broken = jnp.zeros((2, 2, 8)).at[0, 1, 0].set(jnp.nan)
    assert jnp.isnan(BitsPerByte()(lambda _: broken, batch)[0])


def map_floats(pair: tuple[jnp.ndarray, jnp.ndarray]) -> tuple[float, ...]:
    return tuple(map(float, pair))


def questions() -> Batch:
    """Two questions with three and two choices; the model below prefers token 1 to 2 to 3."""
    following = jnp.array([[[1, 3, 0], [2, 0, 0], [3, 3, 3]], [[3, 0, 0], [2, 2, 0], [0, 0, 0]]])
    counts = jnp.array([[[1, 1, 0], [1, 0, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0], [0, 0, 0]]])
    sizes = jnp.array([[[4, 4, 9], [1, 9, 9], [1, 1, 1]], [[1, 9, 9], [5, 5, 9], [9, 9, 9]]])
    inputs = {"tokens": following * 0, "next": following, "counts": counts, "bytes": sizes}
    return Batch(inputs, jnp.array([1, 0]), jnp.ones(2))


def liking(batch: Batch) -> jnp.ndarray:
    """Probabilities .5, .25 and .125 of the tokens 1, 2 and 3."""
    row = jnp.log(jnp.array([0.125, 0.5, 0.25, 0.125]))
    return jnp.broadcast_to(row, (*batch.inputs["tokens"].shape, 4))


def test_answers_by_hand():
    """In bits: 1 + 3, 2, 9 of the first question; 3, 4 and none of the second."""
    batch = questions()
    bits = -AnswerAccuracy().likelihoods(liking, batch) / math.log(2)
    np.testing.assert_allclose(bits, [[4, 2, 9], [3, 4, math.inf]], rtol=1e-6)
    bits = -AnswerAccuracy("token").likelihoods(liking, batch) / math.log(2)
    np.testing.assert_allclose(bits, [[2, 2, 3], [3, 2, math.inf]], rtol=1e-6)
    bits = -AnswerAccuracy("byte").likelihoods(liking, batch) / math.log(2)
    np.testing.assert_allclose(bits, [[0.5, 2, 3], [3, 0.4, math.inf]], rtol=1e-6)
    assert map_floats(AnswerAccuracy()(liking, batch)) == (2, 2)
    assert map_floats(AnswerAccuracy("byte")(liking, batch)) == (0, 2)
    half = replace(batch, weight=jnp.array([1.0, 0.0]))
    assert map_floats(AnswerAccuracy()(liking, half)) == (1, 1)
    broken = jnp.full((2, 3, 3, 4), jnp.nan)
    assert jnp.isnan(AnswerAccuracy()(lambda _: broken, batch)[0])


def test_a_decoder_is_scored_over_batches(params: dict):
    """Sums add up over batches, and question by question as row by row."""
    tokens = np.random.default_rng(0).integers(0, 29, (2, 9)).astype(np.int32)
    rows = [
        Batch({"tokens": jnp.asarray(row[None, :-1])}, jnp.asarray(row[None, 1:]), jnp.ones((1, 8)))
        for row in tokens
    ]
    rows[1] = replace(rows[1], weight=rows[1].weight.at[0, 3:].set(0))
    logits = np.asarray(logits_of(params, tokens[:, :-1]), np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    chances = np.take_along_axis(powers / powers.sum(-1, keepdims=True), tokens[:, 1:, None], -1)
    losses = -np.log(chances[..., 0])
    expected = (losses[0].sum() + losses[1, :3].sum()) / 11
    assert evaluate(NegativeLogLikelihood(), DECODER, params, rows) == pytest.approx(
        expected, rel=1e-5
    )
    perplexity = evaluate(get_metric("perplexity", LANGUAGE_METRICS), DECODER, params, rows)
    assert perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    inputs = {"tokens": tokens[None, :, :-1], "next": tokens[None, :, 1:]}
    inputs |= {"counts": np.ones((1, 2, 8)), "bytes": np.ones((1, 2, 8))}
    best = int(np.argmin(losses.sum(1)))
    batch = Batch({k: jnp.asarray(x) for k, x in inputs.items()}, jnp.array([best]), jnp.ones(1))
    assert evaluate(AnswerAccuracy(), DECODER, params, [batch]) == 1


def test_what_cannot_be_scored(params: dict):
    tokens = jnp.zeros((1, 4), jnp.int32)
    nothing = Batch({"tokens": tokens}, tokens, jnp.zeros((1, 4)))
    with pytest.raises(InputError, match="nothing to evaluate on"):
        evaluate(Perplexity(), DECODER, params, [nothing])
    broken = {**params, "lm_head": {"kernel": params["lm_head"]["kernel"] * jnp.nan}}
    with pytest.raises(InputError, match="not finite"):
        evaluate(Perplexity(), DECODER, broken, [replace(nothing, weight=jnp.ones((1, 4)))])
    with pytest.raises(InputError, match="per must be answer or byte or token, got word"):
        get_metric("answer_accuracy(per=word)", LANGUAGE_METRICS)
    with pytest.raises(InputError, match="unknown metric 'perplexit'"):
        get_metric("perplexit", LANGUAGE_METRICS)
