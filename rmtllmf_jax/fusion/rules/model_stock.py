"""Model Stock: the mean of models, drawn towards the base by the angle between them.

>>> import jax.numpy as jnp
>>> stacked = {"w": jnp.array([[2.0, 0.0], [1.2, 1.6]])}               # a cosine of 0.6
>>> [round(float(x), 3) for x in ModelStock()(stacked)["w"]]           # 2 * 0.6 / 1.6 of the mean
[1.2, 0.6]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    merge_leaves,
    norms_of,
    one_where_zero,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.rules.method import MergeMethod
from rmtllmf_jax.fusion.similarity import inner_products
from rmtllmf_jax.fusion.trees import check_stacked

_SINGULAR = 1e-6


@dataclass(frozen=True)
class ModelStock(MergeMethod):
    """``t sum_q s_q tau_q`` in each tensor, with s = w / sum w and ``t = N c / (1 + (N - 1) c)``.

    c is the mean cosine of the tensor's task vectors over pairs of N tasks (with pair weights ``w_q
    w_p``). The result is the point nearest to the centre that the models are assumed to surround.
    Orthogonal vectors give t = 0, which is the base. A single task has no angle and keeps its
    vector; where ``1 + (N - 1) c`` is 0 the result is 0. A negative c moves away from the models,
    as published and as in mergekit.
    """

    title: ClassVar[str] = "Model Stock"
    reference: ClassVar[str] = "Jang et al., arXiv 2403.19522"
    per_leaf: ClassVar[bool] = True
    is_mean: ClassVar[bool] = True

    weights: tuple[float, ...] = ()
    """One weight per task vector, of which the ratios matter; none: 1 for each."""

    def __call__(
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`."""
        by_user = user_weights(self.weights, check_stacked(stacked), weights)
        shares = by_user / one_where_zero(jnp.sum(by_user))
        number = jnp.sum(by_user != 0)
        pairs = by_user[:, None] * by_user * (1 - jnp.eye(len(by_user)))

        def merge(_: str, leaf: Array) -> Array:
            return weighted(shares * _towards(_mean_cosine(leaf, pairs), number), leaf)

        return merge_leaves(merge, stacked)


def _mean_cosine(
    leaf: Float[Array, "users ..."], pairs: Float[Array, "users users"]
) -> Float[Array, ""]:
    lengths = one_where_zero(norms_of(leaf))
    cosines = jnp.clip(inner_products(leaf) / (lengths[:, None] * lengths), -1, 1)
    return jnp.sum(jnp.where(pairs != 0, pairs * cosines, 0)) / one_where_zero(jnp.sum(pairs))


def _towards(cosine: Float[Array, ""], number: Array) -> Float[Array, ""]:
    below = 1 + (number - 1) * cosine
    singular = jnp.abs(below) < _SINGULAR
    ratio = jnp.where(singular, 0, number * cosine / jnp.where(singular, 1, below))
    return jnp.where(number > 1, ratio, 1)
