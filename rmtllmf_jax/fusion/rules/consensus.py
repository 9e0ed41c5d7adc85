"""Consensus task arithmetic: parameters that only one task wants are left out of the sum.

>>> import jax.numpy as jnp
>>> stacked = {"w": jnp.array([[1.0, 5.0], [1.0, 0.1], [1.0, -0.1]])}
>>> ConsensusTa()(stacked)["w"].tolist()            # the second is the first task's alone
[3.0, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from rmtllmf_jax.common.errors import require_at_least, require_non_negative
from rmtllmf_jax.fusion.rules.leaves import PerUser, merge_leaves, user_weights, weighted
from rmtllmf_jax.fusion.rules.method import MergeMethod
from rmtllmf_jax.fusion.trees import check_stacked


@dataclass(frozen=True)
class ConsensusTa(MergeMethod):
    """``sum_q w_q tau_q`` where at least `agree` tasks want the parameter, else 0 (TALL masks).

    Task q wants it if ``|w_q tau_q| >= ratio |sum_{p != q} w_p tau_p|``: the sum moves the
    parameter for the task, not against it. With fewer tasks than `agree`, all must want it.
    Non-finite entries of the sum stay. The masks are constants for differentiation.
    """

    title: ClassVar[str] = "Consensus TA"
    reference: ClassVar[str] = "Wang et al., arXiv 2405.07813"
    per_leaf: ClassVar[bool] = True
    scales: ClassVar[tuple[float, ...]] = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.8)

    ratio: float = 0.4
    """How large a task's entry must be beside those of all others (lambda)."""
    agree: int = 2
    """Tasks that must want a parameter; 1 drops what no task wants alone."""
    weights: tuple[float, ...] = ()
    """One weight per task vector, in the masks as well as in the sum; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        require_non_negative("ratio", self.ratio)
        require_at_least("agree", self.agree, 1)

    def __call__(
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`."""
        by_user = user_weights(self.weights, check_stacked(stacked), weights)
        active = by_user != 0
        needed = jnp.minimum(self.agree, jnp.sum(active))

        def merge(_: str, leaf: Array) -> Array:
            total = weighted(by_user, leaf)
            wanting = jnp.zeros(total.shape, jnp.int32)
            for user in range(len(leaf)):
                own = (by_user[user] * leaf[user]).astype(leaf.dtype)
                wanting += active[user] & (jnp.abs(own) >= self.ratio * jnp.abs(total - own))
            return jnp.where((wanting >= needed) | ~jnp.isfinite(total), total, 0)

        return merge_leaves(merge, stacked)
