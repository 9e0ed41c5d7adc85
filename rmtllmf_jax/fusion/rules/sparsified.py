"""TIES, DARE, DELLA, Breadcrumbs: sparsify each task vector, then add up or let the signs vote.

>>> import jax, jax.numpy as jnp
>>> stacked = {"w": jnp.array([[4.0, -1.0, 3.0, 0.1], [2.0, 5.0, -7.0, 0.2]])}
>>> Ties(density=0.5)(stacked)["w"].tolist()
[4.0, 5.0, -7.0, 0.0]
>>> merged = Dare(drop=0.5)({"w": jnp.ones((2, 100))}, jax.random.key(0))["w"]
>>> sorted(set(merged.tolist()))
[0.0, 2.0, 4.0]
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
from rmtllmf_jax.fusion.rules.sparsifiers import Band, Drop, MagPrune, Trim
from rmtllmf_jax.fusion.trees import check_stacked

# Consensus: (leaf, weights of the users) -> merged leaf.


@dataclass(frozen=True)
class Sum:
    """Add the users up."""

    def __call__(
        self, leaf: Float[Array, "users ..."], weights: Float[Array, " users"]
    ) -> Float[Array, "..."]:
        """Return ``sum_q w_q leaf_q``."""
        return weighted(weights, leaf)


@dataclass(frozen=True)
class Elect:
    """Take the users whose weighted entry has the sign of the sum of all, entry by entry."""

    normalise: bool

    def __call__(
        self, leaf: Float[Array, "users ..."], weights: Float[Array, " users"]
    ) -> Float[Array, "..."]:
        """Return their mean, or without `normalise` their sum."""
        users = range(leaf.shape[0])
        votes = [(weights[user] * leaf[user]).astype(leaf.dtype) for user in users]
        sign = jnp.where(sum(votes) >= 0, 1, -1)
        # Non-finite entries always count: they must not vanish from the result.
        agree = [(jnp.sign(vote) == sign) | ~jnp.isfinite(vote) for vote in votes]
        total = jnp.asarray(sum(jnp.where(agree[user], votes[user], 0) for user in users))
        if self.normalise:
            share = sum(weights[user] * agree[user] for user in users)
            total = total / one_where_zero(jnp.asarray(share))
        return total.astype(leaf.dtype)


class Sparsified(MergeMethod):
    """Base of methods that are a sparsifier and then a consensus, tensor by tensor."""

    per_leaf: ClassVar[bool] = True
    weights: tuple[float, ...]

    @property
    def sparsifier(self) -> Trim | Drop | Band | MagPrune:
        """The part that zeroes entries of each task vector."""
        raise NotImplementedError

    @property
    def consensus(self) -> Sum | Elect:
        """The part that makes one vector of what is left."""
        raise NotImplementedError

    @property
    def is_mean(self) -> bool:
        """Whether users that agree are averaged."""
        return self.consensus == Elect(normalise=True)

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        _ = self.sparsifier  # checks its number

    def __call__(
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`.

        **Raises:** `InputError` also if masks are random and there is no key.
        """
        w = user_weights(self.weights, check_stacked(stacked), weights)
        sparsify, agree = self.sparsifier, self.consensus
        return merge_leaves(lambda path, leaf: agree(sparsify(leaf, path, key), w), stacked)


@dataclass(frozen=True)
class Ties(Sparsified):
    """TIES: trim each task vector, elect a sign for each parameter, average those that agree.

    1. Trim: ``t_q`` is tau_q where ``|tau_q|`` is among the tensor's ``max(1, int(density n))``
       largest, else 0.
    2. Elect: ``s = +1`` where ``sum_q w_q t_q >= 0``, else -1, parameter by parameter.
    3. Mean of those that agree: ``sum_A w_q t_q / sum_A w_q`` over ``A = {q: sign(w_q t_q) = s}``;
       a parameter that nobody kept stays 0. Without `normalise`, the sum alone.

    Entries that tie with the last one kept are all kept, so that the result does not depend on the
    order of the entries. The thresholds are not differentiable; within a region the merge is linear
    in the task vectors. Entries that are not finite are never dropped. The authors trim the whole
    vector at once; merging tools trim tensor by tensor, which also allows streaming from files.
    """

    title: ClassVar[str] = "TIES"
    reference: ClassVar[str] = "Yadav et al., arXiv 2306.01708"

    density: float = 0.2
    """Share of the entries of each tensor that trimming keeps, those of largest magnitude."""
    normalise: bool = True
    """Divide by the sum of the weights that agree (a mean) rather than only add (a sum)."""
    weights: tuple[float, ...] = ()
    """One weight per task vector, in the vote as well as in the mean; none: 1 for each."""

    @property
    def sparsifier(self) -> Trim:
        """Trimming."""
        return Trim(self.density)

    @property
    def consensus(self) -> Elect:
        """The election."""
        return Elect(self.normalise)


@dataclass(frozen=True)
class Dare(Sparsified):
    """DARE: ``sum_q w_q m_q tau_q / (1 - p)``, each entry of m_q 0 with probability p, else 1.

    The mean over keys is task arithmetic; p = 0 is task arithmetic. Entries that are not finite are
    never dropped. The masks follow from the key, the user's number and the leaf's path
    (`keep_mask`), not from the order of the leaves.

    Under `jax.jit` each leaf costs a random generator to compile; a model with hundreds of leaves
    is merged faster leaf by leaf, ``{path: leaf}`` at a time, with the same masks.
    """

    title: ClassVar[str] = "DARE"
    reference: ClassVar[str] = "Yu et al., arXiv 2311.03099"
    random: ClassVar[bool] = True

    drop: float = 0.9
    """Probability p of dropping an entry; the others are multiplied by 1 / (1 - p)."""
    weights: tuple[float, ...] = ()
    """One weight per task vector; none: 1 for each."""

    @property
    def sparsifier(self) -> Drop:
        """Dropping at random."""
        return Drop(self.drop)

    @property
    def consensus(self) -> Sum:
        """The sum."""
        return Sum()


@dataclass(frozen=True)
class DareTies(Sparsified):
    """DARE-TIES: the TIES election over task vectors sparsified by DARE in place of trimming.

    The sum (with `normalise`, the mean) over the users whose ``w_q m_q tau_q / (1 - p)`` has the
    sign of the sum of all, as in steps 2 and 3 of `Ties`; masks as in `Dare`.
    """

    title: ClassVar[str] = "DARE-TIES"
    reference: ClassVar[str] = "Yu et al., arXiv 2311.03099; Yadav et al., arXiv 2306.01708"
    random: ClassVar[bool] = True

    drop: float = 0.9
    """Probability p of dropping an entry; the others are multiplied by 1 / (1 - p)."""
    normalise: bool = False
    """Divide by the sum of the weights that agree (a mean) rather than only add (a sum)."""
    weights: tuple[float, ...] = ()
    """One weight per task vector, in the vote as well as in the sum; none: 1 for each."""

    @property
    def sparsifier(self) -> Drop:
        """Dropping at random."""
        return Drop(self.drop)

    @property
    def consensus(self) -> Elect:
        """The election."""
        return Elect(self.normalise)


@dataclass(frozen=True)
class Breadcrumbs(Sparsified):
    """Model Breadcrumbs: ``sum_q w_q m_q tau_q``, m_q without the largest and smallest entries.

    In each tensor with n entries, the ``int(gamma n)`` of largest magnitude are outliers and are
    dropped; then the smallest, until ``max(1, int(density n))`` are left. Where that would be too
    few, fewer outliers are dropped. Entries that tie with a kept one are kept.
    """

    title: ClassVar[str] = "Model Breadcrumbs"
    reference: ClassVar[str] = "Davari and Belilovsky, arXiv 2312.06795"

    density: float = 0.9
    """Share of the entries of each tensor that are kept."""
    gamma: float = 0.01
    """Share of the entries that are dropped for being the largest."""
    weights: tuple[float, ...] = ()
    """One weight per task vector; none: 1 for each."""

    @property
    def sparsifier(self) -> Band:
        """The band of magnitudes."""
        return Band(self.density, self.gamma)

    @property
    def consensus(self) -> Sum:
        """The sum."""
        return Sum()


@dataclass(frozen=True)
class Della(Sparsified):
    """DELLA: the TIES election over task vectors that lose small entries rather than large ones.

    An entry is kept with a probability that rises with the rank of its magnitude among the weights
    of the same output, from ``density - epsilon`` to ``density + epsilon``; then steps 2 and 3 of
    `Ties`. Masks as in `Dare`. With `rescale` an entry is divided by its probability, as published
    (the mean over keys is the task vector), or the tensor is multiplied so that the sum of its
    magnitudes is as before (`l1`, as in mergekit).

    Which axis holds the outputs follows from the leaf's name: the first of a `weight`, as in torch,
    the last of others, as in Flax. The published lambda is the merging coefficient.
    """

    title: ClassVar[str] = "DELLA"
    reference: ClassVar[str] = "Deep et al., arXiv 2406.11617"
    random: ClassVar[bool] = True

    density: float = 0.5
    """Share of the entries that are kept in the mean."""
    epsilon: float = 0.15
    """How much more probable it is that the largest entry is kept, and less the smallest."""
    rescale: str | None = "probability"
    """What makes up for the entries dropped: `probability`, `l1`, or none."""
    normalise: bool = True
    """Divide by the sum of the weights that agree (a mean) rather than only add (a sum)."""
    weights: tuple[float, ...] = ()
    """One weight per task vector, in the vote as well as in the mean; none: 1 for each."""

    @property
    def sparsifier(self) -> MagPrune:
        """Dropping at random by rank."""
        return MagPrune(self.density, self.epsilon, self.rescale)

    @property
    def consensus(self) -> Elect:
        """The election."""
        return Elect(self.normalise)


@dataclass(frozen=True)
class DellaLinear(Sparsified):
    """DELLA without the election: the sum of what `Della` keeps of each task vector."""

    title: ClassVar[str] = "DELLA, linear"
    reference: ClassVar[str] = "Deep et al., arXiv 2406.11617"
    random: ClassVar[bool] = True

    density: float = 0.5
    """Share of the entries that are kept in the mean."""
    epsilon: float = 0.15
    """How much more probable it is that the largest entry is kept, and less the smallest."""
    rescale: str | None = "probability"
    """What makes up for the entries dropped: `probability`, `l1`, or none."""
    weights: tuple[float, ...] = ()
    """One weight per task vector; none: 1 for each."""

    @property
    def sparsifier(self) -> MagPrune:
        """Dropping at random by rank."""
        return MagPrune(self.density, self.epsilon, self.rescale)

    @property
    def consensus(self) -> Sum:
        """The sum."""
        return Sum()
