"""Scores of a sample's logits: accuracy, and differentiable substitutes for it.

Accuracy is a step function of the parameters: its derivative is zero almost everywhere. The others
have useful ones. `soft_accuracy` tends to accuracy as the temperature falls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Real

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.evaluation.discrete import discrete

Score = Callable[
    [Float[Array, "batch classes"], Int[Array, " batch"], Real[ArrayLike, ""]],
    Float[Array, " batch"],
]
"""`(logits, labels, temperature) -> a number per sample`."""


_SOFT = "take the score soft_accuracy, which tends to it as the temperature falls"


def accuracy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    temperature: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, " batch"]:
    """1 where the largest logit is the label's, else 0. `temperature` is not used.

    **Raises:** `InputError` if it is differentiated.

    >>> accuracy(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])).tolist()
    [1.0, 0.0]
    """
    guess = jnp.argmax(discrete("hard accuracy (the largest logit)", logits, _SOFT), axis=-1)
    return (guess == labels).astype(logits.dtype)


def soft_accuracy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    temperature: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, " batch"]:
    """``softmax(logits / temperature)`` at the label: the probability of being right.

    The accuracy of a classifier that samples its answer. As `temperature` > 0 falls to zero it
    tends to `accuracy`, wherever the largest logit is unique.

    >>> logits, labels = jnp.array([[1.0, 0.0]]), jnp.array([0])
    >>> [round(soft_accuracy(logits, labels, t).item(), 3) for t in (1.0, 0.2)]
    [0.731, 0.993]
    """
    return jnp.exp(-cross_entropy(logits, labels, temperature))


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    temperature: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, " batch"]:
    """``-log softmax(logits / temperature)`` at the label, in nats: lower is better.

    >>> jnp.exp(cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))).round(3).tolist()
    [4.0]
    """
    scaled = logits / temperature
    return jax.nn.logsumexp(scaled, axis=-1) - _at(scaled, labels)


def margin(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    temperature: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, " batch"]:
    """The label's logit minus the largest other one, over `temperature`: positive where correct.

    Differentiable where that other one is unique.

    >>> margin(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])).tolist()
    [2.0, -1.0]
    """
    here = jnp.arange(logits.shape[-1]) == labels[:, None]
    others = jnp.max(jnp.where(here, -jnp.inf, logits), axis=-1)
    return (_at(logits, labels) - others) / temperature


def _at(logits: Array, labels: Array) -> Array:
    return jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        "accuracy": accuracy,
        "soft_accuracy": soft_accuracy,
        "cross_entropy": cross_entropy,
        "margin": margin,
    }
)
"""Every score by name; all but `accuracy` have derivatives."""


def get_score(score: str | Score) -> Score:
    """Return the score of a name; a score of one's own is itself.

    **Raises:** `InputError` that names the nearest one, or for what is no function.

    >>> get_score("margin") is margin
    True
    """
    if isinstance(score, str):
        return SCORES[require_known("score", score, SCORES)]
    if not callable(score):
        raise InputError(f"score: expected a name or (logits, labels, temperature), got {score!r}.")
    return score
