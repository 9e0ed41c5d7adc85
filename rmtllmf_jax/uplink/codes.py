"""Coded transmission: the best that a user can send in bits at the rate that its link supports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree, Real

from rmtllmf_jax.channel import ATTACKS, Attack
from rmtllmf_jax.channel.checks import require_positive
from rmtllmf_jax.common.errors import InputError, require_at_least, require_non_negative
from rmtllmf_jax.common.values import Known
from rmtllmf_jax.fusion.merge import PerUser
from rmtllmf_jax.fusion.trees import check_stacked
from rmtllmf_jax.uplink.magnitudes import (
    Magnitudes,
    are_largest,
    binned,
    largest,
    lloyd_max,
    magnitudes,
    squared_error,
)
from rmtllmf_jax.uplink.noise import per_user
from rmtllmf_jax.uplink.sparse import entropy
from rmtllmf_jax.uplink.streams import (
    Picked,
    Powers,
    Rows,
    Sending,
    powers_of_rows,
    whole_vectors,
)
from rmtllmf_jax.uplink.vectors import Shapes, as_leaves, as_vectors, mean_squares

_OUTAGE = 4  # folded into the key: the other numbers are leaves' names
_TINY = 1e-37
_MOST_BITS = 10  # levels nearer to each other than the bins of `magnitudes`
_HEADER, _LEVEL = 40, 32  # bits of side information: how many entries of how many bits; a level


def outage_probability(
    mse: Real[ArrayLike, "*#shape"],
    rate_bits: Real[ArrayLike, "*#shape"],
    symbols: Real[ArrayLike, ""],
) -> Float[Array, "*#shape"]:
    """The probability that a block of `symbols` symbols at `rate_bits` bits each is lost.

    ``Q(sqrt(m / V) (R - r ln 2))`` with the capacity R = -ln(mse) and the dispersion
    V = 1 - (1 + SINR)^-2 = 1 - mse^2, both of a complex Gaussian channel. Differentiable in all
    arguments; derivatives with respect to `mse` are zero outside ]0, 1[.

    Reference: Polyanskiy, Poor and Verdu, IEEE Trans. Inf. Theory 56 (2010).

    >>> [round(float(outage_probability(mse, 1.0, 100)), 3) for mse in (0.4, 0.5, 0.6)]
    [0.007, 0.5, 0.989]
    """
    mse = jnp.asarray(mse, jnp.result_type(float))
    mse = jnp.clip(mse, _TINY, 1 - jnp.finfo(mse.dtype).eps)
    gap = -jnp.log(mse) - jnp.asarray(rate_bits) * np.log(2)
    return norm.sf(jnp.sqrt(symbols / (1 - jnp.square(mse))) * gap)


class Chosen(NamedTuple):
    """What each user sends, see `Coded.chosen`."""

    bits: Int[Array, " users"]
    """Bits of an entry that is sent, its sign included."""
    sent: Int[Array, " users"]
    """How many entries are sent."""
    error: Float[Array, " users"]
    """Mean squared error of an entry, if the vector is not lost."""


@dataclass(frozen=True)
class Coded:
    """The best that a user can send in bits at the rate that its link supports: no Gaussian error.

    A user with SINR gamma sends R = log2(1 + gamma / gap) bits per channel use: the share rho of
    its largest entries with b bits each, one for the sign and b - 1 for one of 2^(b - 1)
    magnitudes, and their positions, ``rho b + H2(rho) <= uses R``; or all entries, which need no
    positions, ``b <= uses R``. The levels are fitted to what is sent (`magnitudes.lloyd_max`) and
    sent as float32; they and a header of 40 bits are paid for. Each user takes the choice with the
    least squared error on its own vector, omitted entries included. An entry is omitted if 0 is
    closer to it than its level. kappa plays no part.

    The rate follows from the planned MSE. If the link supports less, the vector is lost and arrives
    as zeros; with a `block`, it is lost at random (`outage_probability` at SINR / gap, so that
    without a margin half of the vectors are lost even if all goes as planned).

    What is sent is held constant under `jax.grad`: rho, b, levels. The derivative with respect to
    the MSE is that of the outage, and needs `expected`.

    >>> sent, mse = {"w": jnp.array([[0.1, -3.0, 3.0, 0.2] * 500])}, jnp.array([0.3])
    >>> coded = Coded(gap_db=0.0)
    >>> received = coded.deliver(sent, mse, jnp.ones(1), jax.random.key(0))
    >>> print(received["w"][0, :4], coded.chosen(sent, mse).bits)
    [ 0. -3.  3.  0.] [1]
    """

    of_mse: ClassVar[bool] = True
    by_leaf: ClassVar[bool] = False
    stage: ClassVar[str] = "transport"

    uses: float = 1.0
    """Channel uses per parameter of the model, all side information included."""
    gap_db: float = 3.0
    """SINR that the code loses to the capacity."""
    bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8)
    """Bits per entry to choose from, 1 to 10."""
    plan: Attack | None = None
    """The attack that the rate is planned for; whoever calls gives its MSE as `planned`."""
    margin_db: float = 0.0
    """SINR that is planned to be missing."""
    block: int | None = None
    """Symbols of the code, whose fate is the vector's; by default infinitely many."""
    expected: bool = False
    """Multiply by the probability of arrival, instead of drawing outages: needs a `block`."""

    choices: ClassVar[Mapping[str, Known]] = {"plan": ATTACKS}

    def __post_init__(self) -> None:
        require_positive("uses", self.uses)
        require_non_negative("gap_db", self.gap_db)
        require_non_negative("margin_db", self.margin_db)
        if not self.bits:
            raise InputError("bits must name at least one number of bits, got none.")
        for each in self.bits:
            require_at_least("bits", each, 1, _MOST_BITS)
        if self.block is not None:
            require_at_least("block", self.block, 1)
        elif self.expected:
            raise InputError(
                "expected needs the length of a block: without one a vector arrives or does not; "
                "give for example block=1000."
            )

    def uses_of(self, mse: PerUser, shapes: Shapes) -> Float[Array, " users"]:
        """`uses` of each user, whatever its MSE."""
        return jnp.full_like(jnp.asarray(mse, jnp.result_type(float)), self.uses)

    def variance(
        self, stacked: PyTree[Float[Array, "users ..."]], mse: PerUser, kappa: PerUser
    ) -> PyTree[Float[Array, " users"]]:
        """Zero: what is lost is uncorrelated with what arrives, and no factor recovers it."""
        return jax.tree.map(jnp.zeros_like, mean_squares(stacked))

    def energy(self, stacked: PyTree[Float[Array, "users ..."]]) -> PyTree[Float[Array, " users"]]:
        """Mean square of a leaf."""
        return mean_squares(stacked)

    def outage(self, mse: PerUser, planned: PerUser | None = None) -> Float[Array, " users"]:
        """The probability that each user's vector is lost: 0 or 1 without a `block`."""
        users = np.size(mse)
        there = self._with_gap(per_user("mse", mse, users), 0.0)
        needed = self._needed(per_user("planned", mse if planned is None else planned, users))
        if self.block is None:
            return (there > needed).astype(there.dtype)
        return outage_probability(there, -jnp.log2(needed), self.block)

    def chosen(self, stacked: PyTree[Float[Array, "users ..."]], planned: PerUser) -> Chosen:
        """What each user sends, planned for these MSEs."""
        found, _ = self._encoded(stacked, planned)
        return found

    def deliver(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        mse: PerUser | PyTree[Array],
        kappa: PerUser | PyTree[Array],
        key: Key[Array, ""],
        *,
        planned: PerUser | None = None,
    ) -> PyTree[Float[Array, "users ..."]]:
        """The task vectors as received; `planned` defaults to `mse`. `kappa` is not used.

        **Raises:** `InputError` for MSEs by leaf, or not one per user; leaves as `transmit`.
        """
        users = check_stacked(stacked)
        by_user = _one_each("mse", mse, users)
        planned = by_user if planned is None else _one_each("planned", planned, users)
        outage = self.outage(by_user, planned)
        arrived = self._arrived(outage, key)
        _, received = self._encoded(stacked, planned)
        return as_leaves(received * arrived.astype(received.dtype)[:, None], stacked)

    def stream(self, sending: Sending) -> _CodedStream:
        """Leaf by leaf, after three passes that find what each user sends."""
        return _CodedStream(self, sending)

    def _arrived(self, outage: Array, key: Key[Array, ""]) -> Float[Array, " users"]:
        """Return 1 for each user whose vector arrives and 0 for others, or the probability."""
        if self.block is None or self.expected:
            return 1 - outage
        numbers = jnp.arange(outage.size, dtype=jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, _OUTAGE), numbers)
        return (jax.vmap(jax.random.uniform)(keys) >= outage).astype(outage.dtype)

    def _encoded(self, stacked: PyTree[Array], planned: PerUser) -> tuple[Chosen, Array]:
        vectors = jax.lax.stop_gradient(as_vectors(stacked))
        users, size = vectors.shape
        counts = self._counts(_one_each("planned", planned, users), size)

        def one(given: tuple[Array, Array]) -> tuple[Chosen, Array]:
            vector, count = given
            bins = magnitudes(vector)
            found, kept, level = self._best(bins, count, size)
            return found, _reproduced(vector, bins, kept, level)

        return jax.lax.map(one, (vectors, counts))

    def _counts(self, planned: Array, size: int) -> Int[Array, "users choices"]:
        """Return how many entries may be sent at each number of bits, for a part and for all."""
        rate = jax.lax.stop_gradient(-jnp.log2(self._needed(planned)))
        bits = jnp.asarray(self.bits)
        budget = self.uses * rate[:, None] - (_HEADER + _LEVEL * 2.0 ** (bits - 1)) / size
        some = jnp.floor(largest_share(budget, bits) * size).astype(jnp.int32)
        return jnp.concatenate([some, jnp.where(budget < bits, 0, size)], axis=1)

    @partial(jax.jit, static_argnums=(0, 3))
    def _best(
        self, bins: Magnitudes, count: Int[Array, " choices"], size: int
    ) -> tuple[Chosen, Int[Array, " bins"], Float[Array, " bins"]]:
        """Return what a user sends: how many entries of each bin, and the level of each bin."""
        bits = jnp.asarray(self.bits)
        drops = jnp.repeat(jnp.array([True, False]), bits.size)
        bits = jnp.tile(bits, 2)
        fit = jax.vmap(partial(lloyd_max, most=1 << (max(self.bits) - 1)), (None, 0, 0, 0))
        kept = jax.vmap(largest, (None, 0))(bins, count)
        level = fit(bins, kept, 1 << (bits - 1), drops)
        kept = jnp.where((level == 0) & drops[:, None], 0, kept)
        errors = jax.vmap(squared_error, (None, 0, 0))(bins, kept, level)
        best = jnp.argmin(errors)
        kept, level = kept[best], level[best]
        return Chosen(bits[best], jnp.sum(kept), errors[best] / size), kept, level

    def _with_gap(self, mse: Array, margin_db: float) -> Array:
        """The MSE at an SINR reduced by the gap and a margin."""
        lower = 10.0 ** ((self.gap_db + margin_db) / 10)
        mse = jnp.clip(mse, 0.0, 1.0)
        return lower * mse / (1 + (lower - 1) * mse)

    def _needed(self, planned: Array) -> Array:
        """The MSE, gap included, that corresponds to the rate, capped at the useful rate."""
        enough = max(2.0 ** (-(max(self.bits) + 1) / self.uses), _TINY)
        return jnp.maximum(self._with_gap(planned, self.margin_db), enough)


class _CodedStream:
    kappa = None

    def __init__(self, code: Coded, sending: Sending) -> None:
        size, _, bins = whole_vectors(sending)
        mse = sending.all_mse if code.plan is None else sending.planned(code.plan)
        planned = jnp.asarray(mse)
        counts = code._counts(planned, size)
        self._bins, self._kept, self._levels = bins, [], []
        for each, count in zip(bins, counts, strict=True):
            _, kept, level = code._best(each, count, size)
            self._kept.append(kept)
            self._levels.append(level)
        self._picked = Picked(sending, bins, self._kept)
        outage = code.outage(sending.all_mse, planned)
        self._arrived = np.asarray(code._arrived(outage, sending.key))

    def __call__(self, name: str, rows: Rows) -> Powers:
        energy = powers_of_rows(rows)
        for user in range(len(rows)):
            row = rows[user, ...]
            mask = self._picked(name, row, user)
            of_user = self._bins[user].largest, self._levels[user]
            sent = np.asarray(_levels(row.reshape(-1), *of_user)).reshape(row.shape)
            row[...] = np.where(mask, sent, 0) * self._arrived[user]
        return Powers(np.zeros_like(energy), energy)


def _reproduced(vector: Array, bins: Magnitudes, kept: Array, level: Array) -> Array:
    """Return a vector as sent."""
    magnitude = jnp.where(are_largest(bins, kept), level[bins.of], 0)
    return jnp.where(vector < 0, -magnitude, magnitude)


@jax.jit
def _levels(row: Array, first: Array, level: Array) -> Array:
    """Return the levels that reproduce entries if they are sent."""
    magnitude = level[binned(row, first)[0]]
    return jnp.where(row < 0, -magnitude, magnitude)


def largest_share(
    budget: Real[ArrayLike, "*#shape"], bits: Real[ArrayLike, "*#shape"]
) -> Float[Array, "*#shape"]:
    """The largest share of entries that `budget` bits per entry pay for, positions included.

    ``share bits + H2(share) <= budget`` at `bits` per entry. The left side grows up to the share
    2^bits / (1 + 2^bits), the largest value returned; so bisection finds it.

    >>> [round(float(largest_share(budget, 1)), 3) for budget in (0.0, 1.0, 2.0)]
    [0.0, 0.227, 0.667]
    """
    budget = jnp.asarray(budget, jnp.result_type(float))
    bits = jnp.asarray(bits, budget.dtype)

    def halved(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        paid = middle * bits + entropy(middle) <= budget
        return jnp.where(paid, middle, low), jnp.where(paid, high, middle)

    peak = jnp.broadcast_to(
        1 / (1 + jnp.exp2(-bits)), jnp.broadcast_shapes(budget.shape, bits.shape)
    )
    low, _ = jax.lax.fori_loop(0, 60, halved, (jnp.zeros_like(peak), peak))
    return low


def _one_each(name: str, values: Any, users: int) -> Float[Array, " users"]:
    if not jax.tree_util.all_leaves([values]) and not isinstance(values, list | tuple):
        raise InputError(
            f"{name} must be one number per user, got a tree: a code runs over all leaves of a "
            "user; protect leaves unequally with another transport."
        )
    return per_user(name, values, users)
