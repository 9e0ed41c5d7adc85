"""TSV-Merge: the strongest singular vectors of every task, made orthogonal to those of the others.

>>> import jax.numpy as jnp
>>> first, second = jnp.diag(jnp.array([3.0, 1.0])), jnp.diag(jnp.array([0.5, 2.0]))
>>> merged = TsvMerge()({"kernel": jnp.stack([first, second])})["kernel"]
>>> (jnp.round(merged, 4) + 0.0).tolist()                      # half of the rank for each
[[3.0, 0.0], [0.0, 2.0]]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
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


@dataclass(frozen=True)
class TsvMerge(MergeMethod):
    """Task singular vectors: ``U diag(w_q sigma_q) V^T`` for matrices, the average for the rest.

    Each of N tasks keeps the ``max(1, int(r / N))`` strongest singular triples of its matrix, r its
    smaller side. All left vectors, side by side, are replaced by the orthonormal ones nearest to
    them (Procrustes), and so are the right ones: the tasks no longer interfere. Directions that
    these leave undetermined, as where tasks share a vector, stay out. Singular vectors are
    constants for differentiation, singular values are not.

    One decomposition per task and matrix and two per matrix: seconds for a block of a large model.
    """

    title: ClassVar[str] = "TSV-Merge"
    reference: ClassVar[str] = "Gargiulo et al., arXiv 2412.00081"
    per_leaf: ClassVar[bool] = True
    is_mean: ClassVar[bool] = True
    scales: ClassVar[tuple[float, ...]] = (0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0)

    weights: tuple[float, ...] = ()
    """One weight per task vector, times its singular values; none: 1 for each."""

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

        def merge(_: str, leaf: Array) -> Array:
            if leaf.ndim != 3 or leaf.size == 0:
                return weighted(shares, leaf)
            return _merged(leaf, by_user.astype(leaf.dtype))

        return merge_leaves(merge, stacked)


def _merged(
    matrices: Float[Array, "users rows columns"], weights: Float[Array, " users"]
) -> Float[Array, "rows columns"]:
    users, rank = len(matrices), min(matrices.shape[1:])
    left, values, right = jax.lax.map(_svd, jax.lax.stop_gradient(matrices))
    active = weights != 0
    kept = jnp.maximum(rank // jnp.maximum(jnp.sum(active), 1), 1)
    floor = jnp.finfo(values.dtype).eps * max(matrices.shape[1:]) * values[:, :1]
    chosen = active[:, None] & (jnp.arange(rank) < kept) & ~(values <= floor)
    # At most `rank` triples are chosen, or one of each user, whoever takes part: these come first.
    order = jnp.argsort(~chosen.ravel(), stable=True)[: max(rank, users)]

    def side_by_side(vectors: Array) -> Array:
        columns = jnp.moveaxis(vectors, 0, 1).reshape(vectors.shape[1], -1)[:, order]
        return _orthonormal(jnp.where(chosen.ravel()[order], columns, 0))

    with jax.default_matmul_precision("highest"):
        own = jnp.sum(left * (matrices @ right), axis=1) * weights[:, None]
        sizes = jnp.where(chosen, own, 0).ravel()[order]
        return (side_by_side(left) * sizes) @ side_by_side(right).T


def _orthonormal(columns: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """Return the orthonormal columns nearest to these, within the space that they span."""
    left, values, right = _svd(columns)
    spans = values > jnp.finfo(values.dtype).eps * max(columns.shape) * values[0]
    # What is not finite must stay so.
    return (jnp.where(spans | jnp.isnan(values), left, 0)) @ right.T


@jax.custom_batching.sequential_vmap
def _svd(matrix: Float[Array, "rows columns"]) -> tuple[Array, Array, Array]:
    """Return U, s and V, one matrix after the other.

    Many batches of them in one program can deadlock, see `channel.linalg`.
    """
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right.T
