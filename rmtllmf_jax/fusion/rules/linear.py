"""Task arithmetic and the average: one weight a task vector.

>>> import jax.numpy as jnp
>>> stacked = {"w": jnp.array([[1.0, 2.0], [3.0, -2.0]])}
>>> task_arithmetic(stacked, TaskArithmeticOptions(weights=(1.0, 0.5)))["w"].tolist()
[2.5, 1.0]
>>> average(stacked, AverageOptions())["w"].tolist()
[2.0, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    check_weights,
    merge_leaves,
    one_where_zero,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.trees import check_stacked


@jax.tree_util.register_static
@dataclass(frozen=True)
class TaskArithmeticOptions:
    """Options of `task_arithmetic`."""

    weights: tuple[float, ...] = ()
    """One weight a task vector; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the weights."""
        check_weights(self.weights)


@jax.tree_util.register_static
@dataclass(frozen=True)
class AverageOptions:
    """Options of `average`."""

    weights: tuple[float, ...] = ()
    """One weight a task vector, of which the ratios matter; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the weights."""
        check_weights(self.weights)


def task_arithmetic(
    stacked: PyTree[Array],
    options: TaskArithmeticOptions,
    key: Key[Array, ""] | None = None,
    *,
    weights: PerUser | None = None,
) -> PyTree[Array]:
    """Return ``sum_q w_q tau_q``, leaf by leaf.

    **Arguments:**

    - `stacked`: leaves with a leading axis of Q users (`fusion.stack`), real floating-point.
    - `options`: the weights.
    - `key`: not used.
    - `weights`: in place of the options' weights; an array to map over or to differentiate by.

    **Returns:** leaves without the leading axis, of the same types; sums are in float32 or wider.

    **Raises:** `InputError` if the leaves have no common leading axis, or hold integers, or if the
    number of weights is not Q.

    Reference: Ilharco et al., "Editing Models with Task Arithmetic", arXiv 2212.04089.
    """
    w = user_weights(options.weights, check_stacked(stacked), weights)
    return merge_leaves(lambda _, leaf: weighted(w, leaf), stacked)


def average(
    stacked: PyTree[Array],
    options: AverageOptions,
    key: Key[Array, ""] | None = None,
    *,
    weights: PerUser | None = None,
) -> PyTree[Array]:
    """Return ``sum_q w_q tau_q / sum_q w_q``, with equal weights the sum divided by Q.

    With scale 1 the merged model is the average of the models. Weights that sum to 0 divide by 1.
    Arguments, types and errors as in `task_arithmetic`.

    Reference: Wortsman et al., "Model soups", arXiv 2203.05482.
    """
    w = user_weights(options.weights, check_stacked(stacked), weights)
    share = w / one_where_zero(jnp.sum(w))
    return merge_leaves(lambda _, leaf: weighted(share, leaf), stacked)
