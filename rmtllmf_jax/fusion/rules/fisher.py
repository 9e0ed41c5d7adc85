"""Fisher merging: per parameter a mean weighted by how much each task's predictions depend on it.

>>> import jax.numpy as jnp
>>> stacked = {"w": jnp.array([[4.0, 4.0], [0.0, 0.0]])}
>>> fishers = {"w": jnp.array([[3.0, 1.0], [1.0, 1.0]])}
>>> Fisher()(stacked, fishers=fishers)["w"].tolist()
[3.0, 2.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from rmtllmf_jax.common.errors import require_non_negative
from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    merge_leaves,
    one_where_zero,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.rules.method import MergeMethod
from rmtllmf_jax.fusion.trees import check_stacked, leaves_by_path, require_same_structure


@dataclass(frozen=True)
class Fisher(MergeMethod):
    """``sum_q w_q F_q tau_q / sum_q w_q F_q``, parameter by parameter; F_q at least `floor`.

    F_q is the diagonal of the Fisher information of task q: the squared gradient of the
    log-likelihood, averaged over inputs and over labels drawn from the predictions. With scale 1
    the merged model is the Fisher-weighted mean of the models. Where the weights sum to 0 the
    result is 0.
    """

    title: ClassVar[str] = "Fisher merging"
    reference: ClassVar[str] = "Matena and Raffel, arXiv 2111.09832"
    per_leaf: ClassVar[bool] = True
    is_mean: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("fishers",)
    scales: ClassVar[tuple[float, ...]] = (1.0,)

    floor: float = 1e-6
    """Least Fisher information: where no task depends on a parameter, the mean is plain."""
    weights: tuple[float, ...] = ()
    """One weight per task vector, times its Fisher information; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        require_non_negative("floor", self.floor)

    def __call__(  # type: ignore[override]  # it needs more
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        fishers: PyTree[Array],
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`.

        `fishers`: diagonal Fisher information, entries >= 0, shaped like the stacked task vectors.

        **Raises:** `InputError` also if it does not match them (with every differing path).
        """
        w = user_weights(self.weights, check_stacked(stacked), weights)
        require_same_structure(stacked, fishers, ("task vectors", "fishers"))
        by_path = leaves_by_path(fishers)

        def merge(path: str, leaf: Array) -> Array:
            information = jnp.maximum(by_path[path].astype(leaf.dtype), self.floor)
            return weighted(w, information * leaf) / one_where_zero(weighted(w, information))

        return merge_leaves(merge, stacked)
