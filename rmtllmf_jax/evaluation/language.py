"""Metrics of language models, and a decoder's score on batches of texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.values import by_name
from rmtllmf_jax.data.samples import SampleArrays
from rmtllmf_jax.data.texts.packing import PackedTexts
from rmtllmf_jax.data.texts.questions import Questions
from rmtllmf_jax.evaluation.batches import Batch, batches_of, in_batches
from rmtllmf_jax.evaluation.discrete import discrete
from rmtllmf_jax.evaluation.metrics import CrossEntropy, Metric, Outputs, PerSample

if TYPE_CHECKING:
    from rmtllmf_jax.models.decoder import Decoder


class TokenLoss(PerSample):
    """A metric that is a function of the negative log-likelihood: lower is better.

    A model's outputs are the logits of the next tokens, (..., tokens, vocabulary); the targets are
    these tokens, and `weight` is 1 where they count.
    """

    higher_is_better: ClassVar[bool] = False

    def per_sample(
        self, logits: Float[Array, "*batch classes"], target: Int[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Return the negative log-likelihood of every token, in nats."""
        return CrossEntropy().per_sample(logits, target)

    def nats(self, score: float) -> float:
        """Return the mean negative log-likelihood of a score, in nats."""
        raise NotImplementedError

    def normalised(self, score: float, finetuned: float) -> float:
        """Return ``exp(nats(finetuned) - nats(score))``.

        1 is as good as fine-tuned; the base model has ``exp(nats(finetuned) - nats(base))``.
        """
        return math.exp(min(self.nats(finetuned) - self.nats(score), 700.0))

    def gain_kept(self, score: float, base: float, finetuned: float) -> float:
        """Return ``(nats(base) - nats(score)) / (nats(base) - nats(finetuned))``."""
        return super().gain_kept(*map(self.nats, (score, base, finetuned)))


@dataclass(frozen=True)
class NegativeLogLikelihood(TokenLoss):
    """Nats per token.

    >>> round(NegativeLogLikelihood().normalised(2.0, finetuned=1.5), 3)
    0.607
    """

    title: ClassVar[str] = "Negative log-likelihood"
    unit: ClassVar[str] = "nats per token"

    def nats(self, score: float) -> float:
        """Return the score itself."""
        return score


@dataclass(frozen=True)
class Perplexity(TokenLoss):
    """The exponential of the mean over all tokens: comparable only for the same tokenizer.

    >>> round(Perplexity().score(total=6.0, weight=4.0), 3)
    4.482
    >>> round(Perplexity().normalised(8.0, finetuned=2.0), 3)
    0.25
    """

    title: ClassVar[str] = "Perplexity"

    def score(self, total: float, weight: float) -> float:
        """Return the perplexity from the sums over all batches; infinite on overflow."""
        mean = total / weight
        return math.exp(mean) if mean < 700 else math.inf

    def nats(self, score: float) -> float:
        """Return its logarithm."""
        return math.log(score)


@dataclass(frozen=True)
class BitsPerByte(TokenLoss):
    """Bits per byte of the text in UTF-8: comparable across tokenizers.

    In batches, `inputs["bytes"]` is the number of bytes that each target stands for.

    >>> round(BitsPerByte().normalised(1.5, finetuned=1.0), 3)
    0.707
    """

    inputs: ClassVar[tuple[str, ...]] = ("bytes",)
    title: ClassVar[str] = "Bits per byte"
    unit: ClassVar[str] = "bits"

    def __call__(self, model: Outputs, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return the bits of a batch, NaN where logits are not finite, and its bytes."""
        nats, _ = super().__call__(model, batch)
        return nats / math.log(2), jnp.sum(batch.weight * batch.inputs["bytes"])

    def nats(self, score: float) -> float:
        """Return the mean in nats per byte."""
        return score * math.log(2)


@dataclass(frozen=True)
class AnswerAccuracy(Metric):
    """1 where the right answer is the likeliest one among a question's choices, else 0.

    For a batch of questions, `inputs` holds `tokens`, `next`, `counts` and `bytes`, each
    (questions, choices, tokens): `counts` is 1 where the next token is part of the answer, and a
    choice without such a token does not exist. `target` is the right choice, and `weight` the
    weight of a question. Likelihoods are as in the evaluation harness of EleutherAI: of whole
    answers ("acc"), or per byte ("acc_norm") or token, which does not favour short ones.
    """

    per: Literal["answer", "byte", "token"] = "answer"
    """What the logarithm of an answer's likelihood is divided by."""

    inputs: ClassVar[tuple[str, ...]] = ("next", "counts", "bytes")
    title: ClassVar[str] = "Answers"
    unit: ClassVar[str] = "%"
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.per not in ("answer", "byte", "token"):
            raise InputError(f"per must be answer, byte or token, got {self.per!r}.")

    def likelihoods(self, model: Outputs, batch: Batch) -> Float[Array, "questions choices"]:
        """Return the log-likelihood of every choice; minus infinity where there is none."""
        of = batch.inputs
        losses = CrossEntropy().per_sample(model(batch), of["next"])
        total = -jnp.sum(jnp.where(of["counts"] > 0, losses, 0.0), axis=-1)
        count = jnp.sum(of["counts"], axis=-1)
        size = {"answer": count > 0, "token": count}.get(self.per)
        size = jnp.sum(of["counts"] * of["bytes"], axis=-1) if size is None else size
        return jnp.where(count > 0, total / jnp.maximum(size, 1), -jnp.inf)

    def __call__(self, model: Outputs, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return the weight of the correctly answered questions, and that of all."""
        found = self.likelihoods(model, batch)
        guess = jnp.argmax(discrete("the likeliest answer", found, "take a TokenLoss"), axis=-1)
        right = jnp.where(jnp.isnan(jnp.max(found, axis=-1)), jnp.nan, guess == batch.target)
        total = jnp.sum(jnp.where(batch.weight > 0, batch.weight * right, 0.0))
        return total, jnp.sum(batch.weight)


LANGUAGE_METRICS = by_name(NegativeLogLikelihood, Perplexity, BitsPerByte, AnswerAccuracy)
"""Metrics of language models, by the names that the command line knows."""


def text_batches(texts: PackedTexts, batch_size: int) -> Iterator[Batch]:
    """Yield rows of tokens in batches of one size, the last one padded, for a `TokenLoss`.

    **Raises:** `InputError` if there are no rows.
    """
    require_at_least("rows of tokens", len(texts), 1)
    yield from batches_of(texts, batch_size)


def question_batches(questions: Questions, batch_size: int) -> Iterator[Batch]:
    """Yield questions in batches of one size, the last one padded, for `AnswerAccuracy`.

    **Raises:** `InputError` if there are no questions.
    """
    require_at_least("questions", len(questions), 1)
    names = {"tokens": "tokens", "next": "following", "counts": "scored", "bytes": "sizes"}
    inputs = {name: getattr(questions, field) for name, field in names.items()}
    weight = np.ones(len(questions), np.float32)
    yield from in_batches(SampleArrays(inputs, questions.label, weight), batch_size)


def language_outputs(decoder: Decoder, params: PyTree) -> Outputs:
    """Return a decoder in a metric's form: the logits of the tokens after `inputs["tokens"]`.

    See `Decoder.outputs`.
    """
    return lambda batch: decoder.outputs(params, None, batch.inputs)


def evaluate(metric: Metric, decoder: Decoder, params: PyTree, batches: Iterable[Batch]) -> float:
    """Return the score of a decoder over batches; those of the same shape share a program.

    **Raises:** `InputError` if nothing in the batches counts, or if the logits are not finite.
    """
    total = weight = 0.0
    for batch in batches:
        found = _sums(params, batch, metric=metric, decoder=decoder)
        total, weight = total + float(found[0]), weight + float(found[1])
    if not weight:
        raise InputError("there is nothing to evaluate on: no token, byte or question counts.")
    if not math.isfinite(total):
        raise InputError("the logits are not finite; check the weights of the model.")
    return metric.score(total, weight)


@partial(jax.jit, static_argnames=("metric", "decoder"))
def _sums(
    params: PyTree, batch: Batch, *, metric: Metric, decoder: Decoder
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    return metric(language_outputs(decoder, params), batch)
