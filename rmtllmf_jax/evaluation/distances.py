"""Distances between two models' predictions, per sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rmtllmf_jax.common.errors import require_known


@dataclass(frozen=True)
class Distance:
    """What is kept of a model's logits, and the distance between two models' kept outputs."""

    read: Callable[..., Array]
    """Maps logits (*batch, classes) to what is kept, with the same leading axes."""
    between: Callable[..., Array]
    """Maps the kept outputs of the first and the second model to distances (*batch)."""
    unit: str
    """Unit of a distance, for axes and tables."""


def labels(logits: Float[Array, "*batch classes"]) -> Int[Array, "*batch"]:
    """Return the class of the largest logit, never a class of a head's padding."""
    return jnp.argmax(logits, axis=-1)


def disagreement(
    first: Int[Array, "*batch"], second: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Return ``1{first != second}``, the distance of R-MTLLMF, eq. (8). Its gradient is zero."""
    return (first != second).astype(float)


def log_probabilities(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Return the logarithm of the softmax; about -1e9 for a class of a head's padding."""
    return jax.nn.log_softmax(logits, axis=-1)


def kl_divergence(
    first: Float[Array, "*batch classes"], second: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """Return ``KL(first || second) = sum_c p_c (log p_c - log q_c)`` in nats, of log probabilities.

    Padded classes have p = 0 and finite logarithms, so they add nothing, not even to gradients.
    Zero for equal models up to rounding, which may leave about -1e-7 in float32.
    """
    return jnp.sum(jnp.exp(first) * (first - second), axis=-1)


DISTANCES: Mapping[str, Distance] = MappingProxyType(
    {
        "disagreement": Distance(labels, disagreement, "share of samples"),
        "kl": Distance(log_probabilities, kl_divergence, "nats"),
    }
)
"""`disagreement` of the predicted classes, or `kl`, KL(single || merged) of the softmax outputs."""


def get_distance(name: str) -> Distance:
    """Return a distance by its name.

    **Raises:** `InputError` that gives the nearest name.
    """
    return DISTANCES[require_known("distance", name, DISTANCES)]
