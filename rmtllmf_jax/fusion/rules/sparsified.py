"""TIES, DARE and DARE-TIES: sparsify each task vector, then add up or let the signs vote.

>>> import jax, jax.numpy as jnp
>>> stacked = {"w": jnp.array([[4.0, -1.0, 3.0, 0.1], [2.0, 5.0, -7.0, 0.2]])}
>>> Ties(density=0.5)(stacked)["w"].tolist()
[4.0, 5.0, -7.0, 0.0]
>>> merged = Dare(drop=0.5)({"w": jnp.ones((2, 100))}, jax.random.key(0))["w"]
>>> sorted(set(merged.tolist()))
[0.0, 2.0, 4.0]
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    merge_leaves,
    one_where_zero,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.rules.method import MergeMethod
from rmtllmf_jax.fusion.trees import check_stacked

# Sparsifiers: (leaf, path, key, first) -> leaf, compiled once per shape. `first` is the number of
# the first user of the leaf, so that files may be sparsified user by user.


@dataclass(frozen=True)
class Trim:
    """Keep the share `density` of each user's entries, the largest in magnitude; zero the rest."""

    density: float

    def __post_init__(self) -> None:
        """Check the number."""
        if not 0 < self.density <= 1:
            raise InputError(f"density must be above 0 and at most 1, got {self.density!r}.")

    def __call__(
        self,
        leaf: Float[Array, "users ..."],
        path: str = "",
        key: Key[Array, ""] | None = None,
        first: int = 0,
    ) -> Float[Array, "users ..."]:
        """Return the leaf trimmed; entries that tie with the last one kept are all kept."""
        if self.density >= 1 or leaf.size == 0:
            return leaf
        return _trimmed(leaf, self.density)


@dataclass(frozen=True)
class Drop:
    """Zero each entry with a probability, and divide the rest by the probability of keeping."""

    probability: float

    def __post_init__(self) -> None:
        """Check the number."""
        if not 0 <= self.probability < 1:
            raise InputError(f"drop must be at least 0 and below 1, got {self.probability!r}.")

    def __call__(
        self,
        leaf: Float[Array, "users ..."],
        path: str,
        key: Key[Array, ""] | None,
        first: int = 0,
    ) -> Float[Array, "users ..."]:
        """Return the leaf with entries dropped, by a mask that path, key and user fix."""
        if key is None:
            raise InputError("this method draws random masks: give it a key, jax.random.key(seed).")
        if self.probability == 0:
            return leaf
        return _dropped(leaf, _leaf_key(key, path), first, self.probability)


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
    def sparsifier(self) -> Trim | Drop:
        """What zeroes entries of each task vector."""
        raise NotImplementedError

    @property
    def consensus(self) -> Sum | Elect:
        """What makes one vector of what is left."""
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
    vector at once; tensor by tensor is what merging tools do and what files can be streamed by.
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

    Over the keys the mean is task arithmetic; p = 0 is task arithmetic. Entries that are not finite
    are never dropped. The masks follow from the key, the user's number and the leaf's path
    (`keep_mask`), not from the order of the leaves.

    Under `jax.jit` each leaf costs a random generator to compile; a model of hundreds of leaves is
    merged sooner leaf by leaf, ``{path: leaf}`` at a time, with the same masks.
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


@partial(jax.jit, static_argnames="density")
def _trimmed(leaf: Float[Array, "users ..."], density: float) -> Float[Array, "users ..."]:
    magnitudes = jnp.abs(leaf.reshape(leaf.shape[0], -1))
    kept = max(1, int(density * magnitudes.shape[1]))
    mask = magnitudes >= kth_largest(magnitudes, kept)[:, None]
    return jnp.where(mask.reshape(leaf.shape) | ~jnp.isfinite(leaf), leaf, 0)


@jax.jit
def kth_largest(
    magnitudes: Float[Array, "users size"], k: int | Int[Array, ""]
) -> Float[Array, " users"]:
    """Return the k-th largest of each row of numbers >= 0, exactly, without sorting.

    Floats >= 0 are ordered as their bits are, so the answer is built bit by bit from the highest:
    a bit stays if at least k entries reach the value. One count per bit takes a tenth of the time
    of sorting millions of entries; row after row, so that a row stays in the processor's cache.
    """
    width = magnitudes.dtype.itemsize * 8
    integer = jnp.dtype(f"int{width}")  # the sign bit is 0; unsigned ones compare slowly

    def of_row(row: Array) -> Array:
        def add_bit(step: Array, found: Array) -> Array:
            higher = found | (jnp.ones((), integer) << (width - 2 - step).astype(integer))
            return jnp.where(jnp.sum(row >= higher) >= k, higher, found)

        return jax.lax.fori_loop(0, width - 1, add_bit, jnp.zeros((), integer))

    found = jax.lax.map(of_row, jax.lax.bitcast_convert_type(magnitudes, integer))
    return jax.lax.bitcast_convert_type(found, magnitudes.dtype)


def keep_mask(
    key: Key[Array, ""],
    user: int | Int[Array, ""],
    path: str,
    shape: tuple[int, ...],
    drop: float,
) -> Bool[Array, "..."]:
    """Return which entries of a user's leaf are kept, each with probability ``1 - drop``."""
    return _kept(_leaf_key(key, path), user, shape, drop)


def _leaf_key(key: Key[Array, ""], path: str) -> Key[Array, ""]:
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


@partial(jax.jit, static_argnames="drop")
def _dropped(
    leaf: Float[Array, "users ..."], leaf_key: Key[Array, ""], first: ArrayLike, drop: float
) -> Float[Array, "users ..."]:
    def drop_from(numbered: tuple[Array, Array]) -> Array:
        user, row = numbered
        kept = _kept(leaf_key, user, row.shape, drop)
        # Non-finite entries must not vanish by chance.
        return jnp.where(kept | ~jnp.isfinite(row), row * (1 / (1 - drop)), 0)

    # One after the other: a generator for each user takes as many times as long to compile.
    return jax.lax.map(drop_from, (first + jnp.arange(leaf.shape[0]), leaf))


def _kept(
    leaf_key: Key[Array, ""], user: int | Int[Array, ""], shape: tuple[int, ...], drop: float
) -> Bool[Array, "..."]:
    # In float32 always, so that the masks are the same with and without 64-bit mode.
    uniform = jax.random.uniform(jax.random.fold_in(leaf_key, user), shape, jnp.float32)
    return uniform >= drop
