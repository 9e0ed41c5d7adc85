"""Metrics: how good a model's outputs are on a batch, as values.

Accuracy is a step function of the parameters: its derivative is zero almost everywhere. The others
have useful ones. `SoftAccuracy` tends to accuracy as the temperature falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import by_name
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.evaluation.discrete import discrete

Outputs = Callable[[Batch], Array]
"""A model with its parameters and the head of the task: `batch -> outputs`, for instance logits."""


class Metric:
    """`metric(model, batch) -> (sum, weight)`; sums and weights of batches add up.

    A metric is a frozen dataclass with this base, hashable and pure: equal values share one
    compiled program. The class variables hold what tables, figures and searches have to know.
    """

    title: ClassVar[str] = "Score"
    """In figures and tables: "Accuracy"."""
    unit: ClassVar[str] = ""
    """Of the score; of "%" the score is a fraction, which is printed in percent."""
    higher_is_better: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ()
    """What of a batch's inputs the metric looks at by itself."""

    def __call__(self, model: Outputs, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return the weighted sum over a batch, and the weight; non-finite if the outputs are."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """Title and unit: "Accuracy (%)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def score(self, total: float, weight: float) -> float:
        """Return the score from the sums over all batches: their mean."""
        return total / weight

    def normalised(self, score: float, finetuned: float) -> float:
        """Return a score relative to the fine-tuned model's: 1 is as good, more is better."""
        if self.higher_is_better:
            return score / finetuned
        return finetuned / score if score else math.inf

    def gain_kept(self, score: float, base: float, finetuned: float) -> float:
        """Return the share kept of the fine-tuned model's gain over the base: 0 is none, 1 is all.

        NaN where fine-tuning has changed nothing.

        >>> round(Accuracy().gain_kept(0.7, base=0.5, finetuned=0.9), 3)
        0.5
        """
        gain = finetuned - base
        return (score - base) / gain if gain else math.nan


class PerSample(Metric):
    """A metric that is the weighted mean of a number per sample."""

    def per_sample(
        self, logits: Float[Array, "*batch classes"], target: Int[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Return the number of every sample."""
        raise NotImplementedError

    def __call__(self, model: Outputs, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return the weighted sum of `per_sample`, NaN where logits are not finite; the weight."""
        logits = model(batch)
        found = self.per_sample(logits, batch.target)
        # The maximum propagates NaN, which an argmax hides.
        found = jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), found, jnp.nan)
        # A padded row has weight 0, and may be anything.
        total = jnp.sum(jnp.where(batch.weight > 0, batch.weight * found, 0.0))
        return total, jnp.sum(batch.weight)


@dataclass(frozen=True)
class Accuracy(PerSample):
    """1 where the largest logit is the label's, else 0.

    Differentiating it is an `InputError`.

    >>> Accuracy().per_sample(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])).tolist()
    [1.0, 0.0]
    """

    title: ClassVar[str] = "Accuracy"
    unit: ClassVar[str] = "%"
    differentiable: ClassVar[bool] = False

    def per_sample(
        self, logits: Float[Array, "*batch classes"], target: Int[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Return 1 where the decision is right."""
        instead = "take the metric SoftAccuracy, which tends to it as the temperature falls"
        guess = jnp.argmax(discrete("hard accuracy (the largest logit)", logits, instead), axis=-1)
        return (guess == target).astype(logits.dtype)


@dataclass(frozen=True)
class _AtTemperature(PerSample):
    temperature: float = 1.0
    """Divides the logits."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature must be a finite number > 0, got {self.temperature!r}.")


@dataclass(frozen=True)
class CrossEntropy(_AtTemperature):
    """``-log softmax(logits / temperature)`` at the label, in nats: lower is better.

    >>> value = CrossEntropy().per_sample(jnp.zeros((1, 4)), jnp.array([2]))
    >>> jnp.exp(value).round(3).tolist()
    [4.0]
    """

    title: ClassVar[str] = "Cross-entropy"
    unit: ClassVar[str] = "nats"
    higher_is_better: ClassVar[bool] = False

    def per_sample(
        self, logits: Float[Array, "*batch classes"], target: Int[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Return the cross-entropy."""
        scaled = logits / self.temperature
        return jax.nn.logsumexp(scaled, axis=-1) - _at(scaled, target)


@dataclass(frozen=True)
class SoftAccuracy(_AtTemperature):
    """``softmax(logits / temperature)`` at the label: the probability of being right.

    The accuracy of a classifier that samples its answer. As `temperature` > 0 falls to zero it
    tends to `Accuracy`, wherever the largest logit is unique.

    >>> logits, labels = jnp.array([[1.0, 0.0]]), jnp.array([0])
    >>> [round(SoftAccuracy(t).per_sample(logits, labels).item(), 3) for t in (1.0, 0.2)]
    [0.731, 0.993]
    """

    title: ClassVar[str] = "Soft accuracy"
    unit: ClassVar[str] = "%"

    def per_sample(
        self, logits: Float[Array, "*batch classes"], target: Int[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Return the probability of the label."""
        return jnp.exp(-CrossEntropy(self.temperature).per_sample(logits, target))


@dataclass(frozen=True)
class Margin(_AtTemperature):
    """The label's logit minus the largest other one, over `temperature`: positive where correct.

    Differentiable where that other one is unique.

    >>> Margin().per_sample(jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])).tolist()
    [2.0, -1.0]
    """

    title: ClassVar[str] = "Margin"

    def per_sample(
        self, logits: Float[Array, "*batch classes"], target: Int[Array, "*batch"]
    ) -> Float[Array, "*batch"]:
        """Return the margin."""
        here = jnp.arange(logits.shape[-1]) == target[..., None]
        others = jnp.max(jnp.where(here, -jnp.inf, logits), axis=-1)
        return (_at(logits, target) - others) / self.temperature


def _at(logits: Array, target: Array) -> Array:
    return jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]


METRICS = by_name(Accuracy, SoftAccuracy, CrossEntropy, Margin)
"""Metrics of labels by the names that the command line knows, see `evaluation.known`."""
