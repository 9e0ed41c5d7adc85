"""Merging where some users may send anything: the median, trimmed means, and clipped norms.

They are made for users that estimate the same quantity. Task vectors do not: what only one task
wants may be an outlier, too. docs/fusion.md shows their costs and benefits on the demo's tasks.

>>> import jax.numpy as jnp
>>> stacked = {"w": jnp.array([[1.0, 2.0], [3.0, 0.0], [2.0, 1.0], [-99.0, 99.0]])}
>>> Median()(stacked)["w"].tolist(), TrimmedMean(trim=1)(stacked)["w"].tolist()
([1.5, 1.5], [1.5, 1.5])
>>> Median()(stacked, weights=jnp.array([1.0, 1.0, 1.0, 0.0]))["w"].tolist()
[2.0, 1.0]
>>> norms = jnp.array([[3.0, 4.0], [0.0, 5.0], [300.0, 400.0]])
>>> ClippedNorm()({"w": norms})["w"].tolist()                      # 5, 5 and 500: the last is cut
[6.0, 13.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.common.errors import InputError, require_non_negative
from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    merge_leaves,
    one_where_zero,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.rules.method import MergeMethod
from rmtllmf_jax.fusion.trees import check_stacked, widened


class _Middle(MergeMethod):
    """Base of the entry-by-entry means that remain when the outermost users are cut off.

    A weight says how much of a user counts, and only the ratios of the weights matter: the largest
    is one user, 0.5 beside 1 is half a user, 0 nobody. In the call, a weight below 0 counts as 0.
    """

    per_leaf: ClassVar[bool] = True
    is_mean: ClassVar[bool] = True
    # The mean of N vectors that have little in common is an N-th of a sum: up to N times its scale.
    scales: ClassVar[tuple[float, ...]] = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)

    def __post_init__(self) -> None:
        """Check the weights."""
        super().__post_init__()
        for weight in self.weights:
            require_non_negative("a weight, the share that a user has,", weight)

    def cut(self, members: Float[Array, ""]) -> Float[Array, ""]:
        """Return how many of this many users are cut off at each end."""
        raise NotImplementedError

    def __call__(
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`.

        Infinite numbers are cut off like any others; where a user has NaN the result is NaN.
        """
        by_user = user_weights(self.weights, check_stacked(stacked), weights)
        members = jnp.maximum(by_user, 0)
        members = members / one_where_zero(jnp.max(members))
        cut = self.cut(jnp.sum(members))
        return merge_leaves(lambda _, leaf: _middle(leaf, members, cut), stacked)


@dataclass(frozen=True)
class Median(_Middle):
    """The median, entry by entry; for an even number of users the mean of the middle two.

    Up to half of the users may send anything. The derivative goes to the users in the middle.
    """

    title: ClassVar[str] = "median"
    reference: ClassVar[str] = "Yin et al., arXiv 1803.01498"

    weights: tuple[float, ...] = ()
    """One weight per task vector, the share that the user has; none: 1 for each."""

    def cut(self, members: Float[Array, ""]) -> Float[Array, ""]:
        """Return all but one, half of them at each end."""
        return jnp.maximum(members - 1, 0) / 2


@dataclass(frozen=True)
class TrimmedMean(_Middle):
    """The mean, entry by entry, without the largest and the smallest entries.

    As many users as are cut off at one end may send anything. Where less than one would remain, it
    is the `Median`. The derivative goes to the users that remain.
    """

    title: ClassVar[str] = "trimmed mean"
    reference: ClassVar[str] = "Yin et al., arXiv 1803.01498"

    trim: int | float = 1  # 2 stays 2 where it is written
    """What is cut off at each end: a number of users, or below 0.5 a share of those that take part
    (of 0.1 of eight users, four fifths of the outermost one)."""
    weights: tuple[float, ...] = ()
    """One weight per task vector, the share that the user has; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        if not (0 <= self.trim < 0.5 or (self.trim >= 1 and float(self.trim).is_integer())):
            raise InputError(
                "trim must be a whole number of users at each end, or a share of them below 0.5, "
                f"got {self.trim!r}."
            )

    def cut(self, members: Float[Array, ""]) -> Float[Array, ""]:
        """Return the number, or the share of the members, such that at least one remains."""
        cut = self.trim if self.trim >= 1 else self.trim * members
        return jnp.minimum(cut, Median().cut(members))


@dataclass(frozen=True)
class ClippedNorm(MergeMethod):
    """``sum_q w_q min(1, limit m / |tau_q|) tau_q``, m the median norm of users with nonzero w_q.

    No user moves the merged model further than `limit` times as far as the middle one; the
    directions do not change. The norms are over all leaves.
    """

    title: ClassVar[str] = "clipped norms"
    reference: ClassVar[str] = "after Sun et al., arXiv 1911.07963"

    limit: float = 1.0
    """Largest norm, in units of the median of the norms."""
    weights: tuple[float, ...] = ()
    """One weight per task vector in the sum, of which 0 is not in the median; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the number."""
        super().__post_init__()
        require_non_negative("limit", self.limit)

    def __call__(
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`."""
        by_user = user_weights(self.weights, check_stacked(stacked), weights)
        squares = jnp.asarray(sum(map(_squares, jax.tree.leaves(stacked))))
        norms = jnp.where(squares == 0, 0, jnp.sqrt(one_where_zero(squares)))  # smooth at zero
        members = (by_user != 0).astype(norms.dtype)
        most = self.limit * _middle(norms, members, Median().cut(jnp.sum(members)))
        shares = jnp.where(norms <= most, 1, most / one_where_zero(norms))
        return merge_leaves(lambda _, leaf: weighted(by_user * shares, leaf), stacked)


def _squares(leaf: Float[Array, "users ..."]) -> Float[Array, " users"]:
    """Return the sum of each user's squares, in float32 or wider."""
    return jnp.sum(jnp.square(widened(leaf)), axis=range(1, leaf.ndim))


def _middle(
    leaf: Float[Array, "users ..."], members: Float[Array, " users"], cut: Float[Array, ""]
) -> Float[Array, "..."]:
    """Return the mean, entry by entry, of the users between the lowest and highest `cut` ones.

    Sorted by their entries, the users lie side by side, each as wide as its weight, and what lies
    between `cut` and the sum minus `cut` is kept; users with equal entries share their places.
    Comparing all with all takes a fiftieth of the time of sorting a few users on a CPU.
    """
    highest = jnp.sum(members) - cut
    rows = [(members[user], leaf[user]) for user in range(len(leaf))]

    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        row, own = one
        start = sum(width * (other < row) for width, other in rows)
        end = sum(width * (other <= row) for width, other in rows)
        kept = jnp.maximum(jnp.minimum(end, highest) - jnp.maximum(start, cut), 0)
        kept = kept * own / one_where_zero(jnp.asarray(end - start))
        # Not 0 times infinity.
        return total + jnp.where(kept > 0, row, 0) * kept, None

    total, _ = jax.lax.scan(add, jnp.zeros(leaf.shape[1:], leaf.dtype), (leaf, members))
    wrong = sum((width > 0) & jnp.isnan(row) for width, row in rows)
    return jnp.where(wrong, jnp.nan, total / one_where_zero(highest - cut)).astype(leaf.dtype)
