"""The magnitudes of a vector in bins: which are the largest, and how they are best quantised.

Sorting millions of entries takes seconds. A bin holds the magnitudes whose float32 patterns agree
in their first bits: 1,024 bins per octave, that of the largest magnitude first, 32 octaves in all
(anything smaller is in the last). The choice of the largest entries is then exact to a thousandth
of their magnitude, and their number is exact. All is held constant under `jax.grad`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

BINS = 1 << 15
_SHIFT = 13  # of the 23 bits of a float32's fraction
_POOL = 32  # bins that a first guess at a density takes together
_ROUNDS = 30


class Magnitudes(NamedTuple):
    """The magnitudes of one vector in bins, from the largest magnitude down."""

    of: Int[Array, " size"]
    """The bin of each entry."""
    number: Int[Array, " bins"]
    mean: Float[Array, " bins"]
    """Mean magnitude in each bin."""
    largest: Int[Array, ""]
    """Pattern of the largest."""


def magnitudes(vector: Float[Array, " size"]) -> Magnitudes:
    """Return the magnitudes of a vector in bins."""
    largest = jnp.max(_pattern(jnp.abs(jax.lax.stop_gradient(vector))))
    of, number, rest = binned(vector, largest)
    return Magnitudes(of, number, mean_of_bins(largest, number, rest), largest)


def binned(
    vector: Float[Array, " size"], largest: Int[Array, ""]
) -> tuple[Int[Array, " size"], Int[Array, " bins"], Float[Array, " bins"]]:
    """Return the bin of each entry, and per bin the count and the sum that `mean_of_bins` takes.

    Counts and sums of the parts of a vector add up to those of the vector.
    """
    size = jnp.abs(jax.lax.stop_gradient(vector))
    of = _bin(_pattern(size), largest)
    number = jnp.zeros(BINS, jnp.int32).at[of].add(1)
    rest = jnp.zeros(BINS, size.dtype).at[of].add(size - _middle(largest, size.dtype)[of])
    return of, number, rest


def mean_of_bins(
    largest: Int[Array, ""], number: Int[Array, " bins"], rest: Float[Array, " bins"]
) -> Float[Array, " bins"]:
    """Return the mean magnitude in each bin from the sum of differences to its middle.

    Differences, as a float32 cannot hold the sum of millions of equal numbers.
    """
    return _middle(largest, rest.dtype) + rest / jnp.maximum(number, 1)


def _middle(largest: Int[Array, ""], dtype: jnp.dtype) -> Float[Array, " bins"]:
    return _magnitude(largest - (1 << (_SHIFT - 1)), jnp.arange(BINS)).astype(dtype)


def largest(of: Magnitudes, count: Int[Array, ""]) -> Int[Array, " bins"]:
    """Return how many of the `count` largest magnitudes are in each bin."""
    return jnp.clip(count - (jnp.cumsum(of.number) - of.number), 0, of.number)


def are_largest(
    of: Magnitudes, kept: Int[Array, " bins"], before: Int[ArrayLike, ""] = 0
) -> Bool[Array, " size"]:
    """Return which entries these are; in the one bin that is kept in part, the first ones.

    `before` is the number of entries of that bin in the earlier parts of the vector.
    """
    parted = parted_bin(of, kept)
    here = of.of == parted
    return (of.of < parted) | here & (jnp.cumsum(here) + before <= kept[parted])


def parted_bin(of: Magnitudes, kept: Int[Array, " bins"]) -> Int[Array, ""]:
    """Return the one bin that is kept in part, or `BINS` if there is none."""
    short = kept < of.number
    return jnp.where(jnp.any(short), jnp.argmax(short), BINS)


def lloyd_max(
    of: Magnitudes,
    kept: Int[Array, " bins"],
    levels: Int[Array, ""],
    drops: Bool[Array, ""],
    most: int,
) -> Float[Array, " bins"]:
    """Return the level that reproduces each bin, out of those fitted to the kept magnitudes.

    Levels are the means of their cells, so that the error is uncorrelated with what is received;
    cells begin half-way between levels, to the nearest bin. The first guess is that of Panter and
    Dite: the density of levels is proportional to the cube root of that of magnitudes. S. P. Lloyd,
    Least Squares Quantization in PCM, IEEE Trans. Inf. Theory 28 (1982).

    **Arguments:**

    - `levels`: how many, at most `most`, which is static.
    - `drops`: whether magnitudes below half of the lowest level get the level 0, as they are better
      left out.
    """
    weight = kept.astype(of.mean.dtype)
    number, total = _summed(weight), _summed(weight * of.mean)
    cell = jnp.arange(1, most + 1)

    def means(starts: Array) -> Array:
        ends = jnp.concatenate([jnp.zeros(1, jnp.int32), starts, jnp.full(1, BINS, jnp.int32)])
        within = jnp.diff(number[ends])
        empty = _magnitude(of.largest, ends[:-1]).astype(of.mean.dtype)
        found = jnp.where(within > 0, jnp.diff(total[ends]) / jnp.maximum(within, 1), empty)
        return jnp.where(jnp.arange(most + 1) < levels, found, 0)

    def real(starts: Array) -> Array:
        return jnp.where(cell < levels + drops, starts, BINS)

    def improved(_: Array, starts: Array) -> Array:
        level = means(starts)
        middle = _pattern((level[1:] + level[:-1]) / 2)
        return real(_bin(middle - (1 << (_SHIFT - 1)), of.largest))  # the nearest beginning

    begin = jnp.arange(0, BINS + 1, _POOL)
    width = -jnp.diff(_magnitude(of.largest, begin)).astype(of.mean.dtype)
    density = _summed(jnp.cbrt(weight.reshape(-1, _POOL).sum(axis=1) * jnp.square(width)))
    guess = jnp.interp(density[-1] * cell / levels, density, begin.astype(density.dtype))
    starts = jax.lax.fori_loop(0, _ROUNDS, improved, real(guess.astype(jnp.int32)))
    return means(starts)[jnp.searchsorted(starts, jnp.arange(BINS), side="right")]


def squared_error(
    of: Magnitudes, kept: Int[Array, " bins"], level: Float[Array, " bins"]
) -> Float[Array, ""]:
    """Return the squared error over all entries: kept ones by their levels, others by zero."""
    lost = (of.number - kept) * jnp.square(of.mean)
    return jnp.sum(kept * jnp.square(of.mean - level) + lost)


def _pattern(magnitude: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    return jax.lax.bitcast_convert_type(magnitude.astype(jnp.float32), jnp.int32)


def _bin(patterns: Int[Array, "*shape"], largest: Int[Array, ""]) -> Int[Array, "*shape"]:
    return jnp.clip((largest - patterns) >> _SHIFT, 0, BINS - 1)


def _magnitude(largest: Int[Array, ""], bins: Int[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return where bins begin, from above."""
    patterns = jnp.maximum(largest - (bins.astype(jnp.int32) << _SHIFT), 0)
    return jax.lax.bitcast_convert_type(patterns, jnp.float32)


def _summed(values: Float[Array, " bins"]) -> Float[Array, " ends"]:
    return jnp.concatenate([jnp.zeros(1, values.dtype), jnp.cumsum(values)])
