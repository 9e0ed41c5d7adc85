"""AdaMerging: weights learned by making predictions on unlabelled inputs more certain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.common.errors import (
    InputError,
    require_at_least,
    require_non_negative,
)
from rmtllmf_jax.fusion.layers import Granularity, group_by_layer, require_granularity
from rmtllmf_jax.fusion.merge import add_to_base
from rmtllmf_jax.fusion.rules.layer_wise import LAYERS, merge_by_layer
from rmtllmf_jax.fusion.rules.leaves import PerUser, user_weights
from rmtllmf_jax.fusion.rules.method import MergeMethod
from rmtllmf_jax.fusion.trees import (
    check_stacked,
    leaves_by_path,
    require_same_structure,
    stack_size,
)

ADAMERGING_GRANULARITIES = ("task", "block", "tensor")
Entropy = Callable[[PyTree, PyTree], Float[Array, ""]]


class AdaMerged(NamedTuple):
    """What `AdaMerging.learn` found."""

    weights: dict[str, Float[Array, " users"]]
    """By layer; with granularity `task` all layers have the same."""
    merged: PyTree
    """The merged task vector: the model is the base plus it, scale 1."""
    losses: Float[Array, " steps"]
    """The entropy before each step, on the step's batch."""


@dataclass(frozen=True)
class AdaMerging(MergeMethod):
    """The ``w`` that minimise the entropy of ``base + sum_q w_lq tau_lq`` on unlabelled batches.

    One step of Adam per batch: ``w <- w - rate m^ / (sqrt(v^) + 1e-8)``, m^ and v^ the corrected
    running means of the gradient and its square; the model sees w clipped to [0, 1] while Adam
    keeps the unclipped w, as published.
    """

    name: ClassVar[str] = "adamerging"
    title: ClassVar[str] = "AdaMerging"
    reference: ClassVar[str] = "Yang et al., arXiv 2310.02575"
    is_mean: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("base", "entropy", "batches")
    scales: ClassVar[tuple[float, ...]] = (1.0,)
    choices: ClassVar[Mapping[str, Any]] = {"granularity": LAYERS | {"task": "task"}}

    granularity: Granularity = "tensor"
    """One weight per task vector (`task`), or per layer too (`block`; `tensor` as published; or an
    expression, `layers(pattern='.*?stage\\d+')`)."""
    initial: float = 0.3
    """All weights before the first step."""
    learning_rate: float = 1e-3
    """Of Adam, with its usual decay rates .9 and .999."""
    clip: bool = True
    """Keep weights within [0, 1]."""
    steps: int = 100
    """Steps of a sweep; `learn` takes one per batch that it is given."""
    batch_size: int = 64
    """Images per step of a sweep, the tasks of the combination in turn."""

    def __post_init__(self) -> None:
        """Check the names and numbers."""
        require_granularity(self.granularity, ADAMERGING_GRANULARITIES)
        require_non_negative("initial", self.initial)
        require_non_negative("learning_rate", self.learning_rate)
        if self.clip and self.initial > 1:
            raise InputError(
                f"initial must be at most 1 where weights are clipped, {self.initial!r}."
            )
        require_at_least("steps", self.steps, 1)
        require_at_least("batch_size", self.batch_size, 1)

    def __call__(  # type: ignore[override]  # it needs more
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        base: PyTree[Array],
        entropy: Entropy,
        batches: PyTree[Array],
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, to be used with scale 1; arguments as for `learn`."""
        return self.learn(stacked, base, entropy, batches, weights).merged

    def learn(
        self,
        stacked: PyTree[Array],
        base: PyTree[Array],
        entropy: Entropy,
        batches: PyTree[Array],
        weights: PerUser | None = None,
    ) -> AdaMerged:
        """Return the weights by layer, the merged task vector, and the entropy of each step.

        **Arguments:**

        - `stacked`: leaves with a leading axis of Q users (`fusion.stack`), real floating-point.
        - `base`: the base parameters, of the same structure without the leading axis.
        - `entropy`: `(parameters, batch) -> scalar`, the mean entropy (`prediction_entropy`) over
          all tasks; a function, or a callable pytree. Compiled once per function, so pass the same
          function again, not a new lambda.
        - `batches`: one batch per step, stacked: leaves with a leading axis of steps.
        - `weights`: one per user, times the learned ones: 0 leaves a user out; by default 1 each.

        **Raises:** `InputError` if base and task vectors do not match (with every differing path),
        if the task vectors hold integers, or if there is no batch.
        """
        check_stacked(stacked)
        one = jax.tree.map(lambda leaf: leaf[0], stacked)
        require_same_structure(one, base, ("task vectors", "base"))
        if stack_size(batches) == 0:
            raise InputError(
                "there are no batches to learn the weights from: the leading axis has length 0."
            )
        if jax.tree_util.all_leaves([entropy]):  # a plain function is static
            entropy = Partial(entropy)
        by_user = user_weights((), stack_size(stacked), weights)
        return _learn(stacked, base, batches, by_user, entropy, method=self)


@partial(jax.jit, static_argnames="method")
def _learn(
    stacked: PyTree[Array],
    base: PyTree[Array],
    batches: PyTree[Array],
    by_user: Float[Array, " users"],
    entropy: Entropy,
    *,
    method: AdaMerging,
) -> AdaMerged:
    granularity = "tensor" if method.granularity == "task" else method.granularity
    layers = list(group_by_layer(leaves_by_path(stacked), granularity))
    rows = 1 if method.granularity == "task" else len(layers)

    def by_layer(raw: Array) -> dict[str, Array]:
        table = by_user * (jnp.clip(raw, 0, 1) if method.clip else raw)
        return dict(zip(layers, jnp.broadcast_to(table, (len(layers), raw.shape[1])), strict=True))

    def loss(raw: Array, batch: PyTree) -> Array:
        merged = merge_by_layer(stacked, by_layer(raw), granularity)
        return entropy(add_to_base(base, merged, 1.0), batch)

    def step(state: tuple, numbered: tuple) -> tuple[tuple, Array]:
        raw, mean, square = state
        number, batch = numbered
        value, gradient = jax.value_and_grad(loss)(raw, batch)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        towards = mean / (1 - 0.9**number)
        spread = jnp.sqrt(square / (1 - 0.999**number)) + 1e-8
        return (raw - method.learning_rate * towards / spread, mean, square), value

    first = jnp.full((rows, stack_size(stacked)), method.initial)
    numbers = jnp.arange(1, stack_size(batches) + 1, dtype=first.dtype)
    start = (first, jnp.zeros_like(first), jnp.zeros_like(first))
    (raw, _, _), losses = jax.lax.scan(step, start, (numbers, batches))
    weights = by_layer(raw)
    return AdaMerged(weights, merge_by_layer(stacked, weights, granularity), losses)


def prediction_entropy(logits: Float[Array, "*batch classes"]) -> Float[Array, ""]:
    """Return the mean entropy ``-sum_c p_c log p_c`` of softmax predictions, in nats."""
    logarithms = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.mean(jnp.sum(jnp.exp(logarithms) * logarithms, axis=-1))
