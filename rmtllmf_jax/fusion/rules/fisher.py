"""Fisher merging: each parameter's mean weighted by how much each task's predictions depend on it.

>>> import jax.numpy as jnp
>>> stacked = {"w": jnp.array([[4.0, 4.0], [0.0, 0.0]])}
>>> fishers = {"w": jnp.array([[3.0, 1.0], [1.0, 1.0]])}
>>> fisher(stacked, FisherOptions(fishers=fishers))["w"].tolist()
[3.0, 2.0]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from rmtllmf_jax.common.errors import InputError, require_non_negative
from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    check_weights,
    merge_leaves,
    one_where_zero,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.trees import check_stacked, leaves_by_path, require_same_structure


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["fishers"],
    meta_fields=["floor", "weights"],
)
@dataclass(frozen=True)
class FisherOptions:
    """Options of `fisher`."""

    floor: float = 1e-6
    """Least Fisher information: where no task depends on a parameter, the mean is plain."""
    weights: tuple[float, ...] = ()
    """One weight a task vector, times its Fisher information; none: 1 for each."""
    fishers: PyTree = field(default=None, metadata={"tree": True})
    """Diagonal Fisher information, entries >= 0, of the shape of the stacked task vectors."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_weights(self.weights)
        require_non_negative("floor", self.floor)


def fisher(
    stacked: PyTree[Array],
    options: FisherOptions,
    key: Key[Array, ""] | None = None,
    *,
    weights: PerUser | None = None,
) -> PyTree[Array]:
    """Return ``sum_q w_q F_q tau_q / sum_q w_q F_q``, parameter by parameter; F_q at least `floor`.

    F_q is the diagonal of the Fisher information of task q, the mean over inputs and labels drawn
    from the predictions of the squared gradient of the log-likelihood. With scale 1 the merged
    model is the Fisher-weighted mean of the models. Where the weights sum to 0 the result is 0.

    **Arguments:**

    - `stacked`: leaves with a leading axis of Q users (`fusion.stack`), real floating-point.
    - `options`: the Fisher information, its floor, and weights.
    - `key`: not used.
    - `weights`: w_q in place of the options' weights; an array to map over or differentiate by.

    **Returns:** leaves without the leading axis, of the same types; sums are in float32 or wider.

    **Raises:** `InputError` if there is no Fisher information, or if it does not match the task
    vectors (with every differing path), if the leaves have no common leading axis, or hold
    integers, or if the number of weights is not Q.

    Reference: Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", arXiv 2111.09832.
    """
    w = user_weights(options.weights, check_stacked(stacked), weights)
    if options.fishers is None:
        raise InputError("fisher needs options.fishers: a tree like the stacked task vectors.")
    require_same_structure(stacked, options.fishers, ("task vectors", "fishers"))
    fishers = leaves_by_path(options.fishers)

    def merge(path: str, leaf: Array) -> Array:
        information = jnp.maximum(fishers[path].astype(leaf.dtype), options.floor)
        return weighted(w, information * leaf) / one_where_zero(weighted(w, information))

    return merge_leaves(merge, stacked)
