"""Task arithmetic and the average: one weight per task vector.

>>> import jax.numpy as jnp
>>> stacked = {"w": jnp.array([[1.0, 2.0], [3.0, -2.0]])}
>>> TaskArithmetic(weights=(1.0, 0.5))(stacked)["w"].tolist()
[2.5, 1.0]
>>> Average()(stacked)["w"].tolist()
[2.0, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    merge_leaves,
    one_where_zero,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.rules.method import MergeMethod
from rmtllmf_jax.fusion.trees import check_stacked


class _Weighted(MergeMethod):
    """``sum_q s_q tau_q``, s the `shares` of the weights."""

    per_leaf: ClassVar[bool] = True

    def shares(self, weights: Float[Array, " users"]) -> Float[Array, " users"]:
        """Return what each task vector is multiplied by: the weights themselves."""
        return weights

    def __call__(
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`."""
        shares = self.shares(user_weights(self.weights, check_stacked(stacked), weights))
        return merge_leaves(lambda _, leaf: weighted(shares, leaf), stacked)


@dataclass(frozen=True)
class TaskArithmetic(_Weighted):
    """``sum_q w_q tau_q``, leaf by leaf."""

    title: ClassVar[str] = "task arithmetic"
    reference: ClassVar[str] = "Ilharco et al., arXiv 2212.04089"
    linear: ClassVar[bool] = True

    weights: tuple[float, ...] = ()
    """One weight per task vector; none: 1 for each."""


TASK_ARITHMETIC = TaskArithmetic()
"""With all weights 1: the plain sum."""


@dataclass(frozen=True)
class Average(_Weighted):
    """``sum_q w_q tau_q / sum_q w_q``; with equal weights the sum divided by Q.

    With scale 1 the merged model is the average of the models. Weights that sum to 0 divide by 1.
    """

    title: ClassVar[str] = "average"
    reference: ClassVar[str] = "Wortsman et al., arXiv 2203.05482"
    is_mean: ClassVar[bool] = True

    weights: tuple[float, ...] = ()
    """One weight per task vector, of which the ratios matter; none: 1 for each."""

    def shares(self, weights: Float[Array, " users"]) -> Float[Array, " users"]:
        """Return the weights divided by their sum."""
        return weights / one_where_zero(jnp.sum(weights))
