"""Sparsifiers: zero entries of each task vector, by magnitude or at random, and rescale.

They are called as ``sparsifier(leaf, path, key, first) -> leaf`` and compiled once per shape.
`first` is the number of the first user of the leaf, so that files may be sparsified user by user.
Entries that are not finite are never dropped: they must not vanish by chance.

>>> import jax.numpy as jnp
>>> leaf = jnp.array([[4.0, -1.0, 3.0, 0.1]])
>>> Trim(density=0.5)(leaf).tolist(), Band(density=0.5, gamma=0.25)(leaf).tolist()
([[4.0, 0.0, 3.0, 0.0]], [[0.0, -1.0, 3.0, 0.0]])
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from rmtllmf_jax.common.errors import InputError, require_known, require_non_negative
from rmtllmf_jax.fusion.rules.leaves import inputs_first, one_where_zero

RESCALES = ("probability", "l1")
"""Divide what is kept by the probability of keeping it, or restore the sum of the magnitudes."""


@dataclass(frozen=True)
class Trim:
    """Keep the share `density` of each user's entries, the largest in magnitude; zero the rest."""

    density: float

    def __post_init__(self) -> None:
        """Check the number."""
        _require_density(self.density)

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
        leaf_key = _leaf_key(key, path)
        if self.probability == 0:
            return leaf
        return _dropped(leaf, leaf_key, first, self.probability)


@dataclass(frozen=True)
class Band:
    """Drop the share `gamma` of the largest entries, then the smallest until `density` is left."""

    density: float
    gamma: float

    def __post_init__(self) -> None:
        """Check the numbers."""
        _require_density(self.density)
        require_non_negative("gamma", self.gamma, 1.0)

    def __call__(
        self,
        leaf: Float[Array, "users ..."],
        path: str = "",
        key: Key[Array, ""] | None = None,
        first: int = 0,
    ) -> Float[Array, "users ..."]:
        """Return the band; fewer outliers are dropped if `density` requires; ties are kept."""
        if self.density >= 1 or leaf.size == 0:
            return leaf
        size = leaf[0].size
        kept = max(1, int(self.density * size))
        return _band(leaf, min(int(self.gamma * size), size - kept), kept)


@dataclass(frozen=True)
class MagPrune:
    """Drop at random, small entries rather than large ones.

    Among the weights of one output the probability of keeping rises evenly with the rank of the
    magnitude, from ``density - epsilon`` to ``density + epsilon``. Outputs are the first axis of
    leaves called `weight`, as in torch, and the last of others, as in Flax; a leaf with one axis is
    one row.
    """

    density: float
    epsilon: float
    rescale: str | None

    def __post_init__(self) -> None:
        """Check the numbers and the name."""
        _require_density(self.density)
        require_non_negative("epsilon", self.epsilon)
        low, high = self.density - self.epsilon, self.density + self.epsilon
        if self.density < 1 and (low <= 0 or high > 1):
            raise InputError(
                "density - epsilon must be above 0 and density + epsilon at most 1, got "
                f"{low:g} and {high:g}."
            )
        if self.rescale is not None:
            require_known("rescale", self.rescale, RESCALES)

    def __call__(
        self,
        leaf: Float[Array, "users ..."],
        path: str,
        key: Key[Array, ""] | None,
        first: int = 0,
    ) -> Float[Array, "users ..."]:
        """Return the leaf with entries dropped, by a mask that path, key and user fix."""
        leaf_key = _leaf_key(key, path)
        if self.density >= 1 or leaf.size == 0:
            return leaf
        return _pruned(leaf, leaf_key, first, self, inputs_first(path))


def _require_density(density: float) -> None:
    if not 0 < density <= 1:
        raise InputError(f"density must be above 0 and at most 1, got {density!r}.")


@partial(jax.jit, static_argnames="density")
def _trimmed(leaf: Float[Array, "users ..."], density: float) -> Float[Array, "users ..."]:
    magnitudes = jnp.abs(leaf.reshape(leaf.shape[0], -1))
    kept = max(1, int(density * magnitudes.shape[1]))
    mask = magnitudes >= kth_largest(magnitudes, kept)[:, None]
    return jnp.where(mask.reshape(leaf.shape) | ~jnp.isfinite(leaf), leaf, 0)


@partial(jax.jit, static_argnames=("outliers", "kept"))
def _band(leaf: Float[Array, "users ..."], outliers: int, kept: int) -> Float[Array, "users ..."]:
    magnitudes = jnp.abs(leaf.reshape(leaf.shape[0], -1))
    most, least = (kth_largest(magnitudes, k)[:, None] for k in (outliers + 1, outliers + kept))
    mask = (magnitudes >= least) & (magnitudes <= most)
    return jnp.where(mask.reshape(leaf.shape) | ~jnp.isfinite(leaf), leaf, 0)


@jax.jit
def kth_largest(
    magnitudes: Float[Array, "users size"], k: int | Int[Array, ""]
) -> Float[Array, " users"]:
    """Return the k-th largest of each row of numbers >= 0, exactly, without sorting.

    Floats >= 0 have the same order as their bits, so the answer is built bit by bit from the
    highest: a bit stays if at least k entries reach the value. One count per bit takes a tenth of
    the time of sorting millions of entries; row after row, so that a row stays in the processor's
    cache.
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


def _leaf_key(key: Key[Array, ""] | None, path: str) -> Key[Array, ""]:
    if key is None:
        raise InputError("this method draws random masks: give it a key, jax.random.key(seed).")
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


@partial(jax.jit, static_argnames=("how", "outputs_last"))
def _pruned(
    leaf: Float[Array, "users ..."],
    leaf_key: Key[Array, ""],
    first: ArrayLike,
    how: MagPrune,
    outputs_last: bool,
) -> Float[Array, "users ..."]:
    def prune(numbered: tuple[Array, Array]) -> Array:
        user, row = numbered
        probability = keep_probability(row, how.density, how.epsilon, outputs_last)
        uniform = _uniform(leaf_key, user, row.shape)
        left = jnp.where((uniform >= 1 - probability) | ~jnp.isfinite(row), row, 0)
        if how.rescale == "probability":
            return left / probability
        if how.rescale == "l1":
            return left * (jnp.sum(jnp.abs(row)) / one_where_zero(jnp.sum(jnp.abs(left))))
        return left

    return jax.lax.map(prune, (first + jnp.arange(leaf.shape[0]), leaf))


def keep_probability(
    row: Float[Array, "..."], density: float, epsilon: float, outputs_last: bool
) -> Float[Array, "..."]:
    """Return the probability that each entry of a user's leaf is kept, see `MagPrune`."""
    by_output = jnp.moveaxis(row, -1, 0) if outputs_last and row.ndim > 1 else row
    lines = by_output.reshape(len(by_output) if row.ndim > 1 else 1, -1)
    size = lines.shape[1]
    rank = jnp.argsort(jnp.argsort(jnp.abs(lines), axis=1), axis=1).astype(row.dtype)  # from 0
    share = rank / (size - 1) if size > 1 else jnp.full_like(rank, 0.5)
    probability = (density - epsilon + 2 * epsilon * share).reshape(by_output.shape)
    return jnp.moveaxis(probability, 0, -1) if outputs_last and row.ndim > 1 else probability


def _kept(
    leaf_key: Key[Array, ""], user: int | Int[Array, ""], shape: tuple[int, ...], drop: float
) -> Bool[Array, "..."]:
    return _uniform(leaf_key, user, shape) >= drop


def _uniform(
    leaf_key: Key[Array, ""], user: int | Int[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "..."]:
    # In float32 always, so that the masks are the same with and without 64-bit mode.
    return jax.random.uniform(jax.random.fold_in(leaf_key, user), shape, jnp.float32)
