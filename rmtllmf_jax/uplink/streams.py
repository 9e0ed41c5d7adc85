"""What transports do when the task vectors are read one leaf at a time, from files.

A transport that can do so has a method `stream(sending) -> Stream`. What depends on a whole vector
(its power, its largest entries) is found in passes over all leaves before the first one is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Key

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.similarity import exact_squares
from rmtllmf_jax.uplink.magnitudes import (
    BINS,
    Magnitudes,
    are_largest,
    binned,
    mean_of_bins,
    parted_bin,
)
from rmtllmf_jax.uplink.noise import name_number, noisy_leaf
from rmtllmf_jax.uplink.vectors import Shapes

Rows = Float[np.ndarray, "users ..."]
_MOST = 2**31 - 1


class Powers(NamedTuple):
    """What the receiver knows about a leaf: `MseTransport.variance` and `MseTransport.energy`."""

    variance: Float[np.ndarray, " users"]
    energy: Float[np.ndarray, " users"]


@runtime_checkable
class Stream(Protocol):
    """`stream(name, rows) -> Powers`: overwrites the rows of a leaf as sent with what arrives."""

    @property
    def kappa(self) -> Float[np.ndarray, " users"] | None:
        """Noise scale of every user, where there is one."""

    def __call__(self, name: str, rows: Rows) -> Powers | None:
        """Send a leaf."""


@dataclass(frozen=True)
class Sending:
    """What is known before the first leaf is sent."""

    users: int
    shapes: Shapes
    """Of the leaves of a user; what is read may be less, as masks are no task vectors."""
    leaves: Callable[[str], Iterator[tuple[str, Rows]]]
    """Reads all leaves as sent, sorted by name; takes what for, in words."""
    mse: Callable[[str], Float[np.ndarray, " users"]]
    """The users' MSE on a leaf, by its name."""
    all_mse: Float[np.ndarray, " users"]
    """That of symbols sent as the link has it."""
    planned: Callable[[Any], Float[np.ndarray, " users"]]
    """The MSE under another attack than the link's."""
    channel: Callable[[], tuple[Any, ...]]
    """H~, all noise and the receiver's filters."""
    kappa: Callable[[Callable[[], Float64[np.ndarray, " users"]]], Float[np.ndarray, " users"]]
    """The users' noise scale by their mean squares, which are asked for where they count."""
    key: Key[Array, ""]


class GaussianStream:
    """An error of variance kappa^2 mu on every entry: `uplink.transmit`, row by row."""

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        self.kappa = sending.kappa(self._mean_squares)

    def __call__(self, name: str, rows: Rows) -> Powers:
        """Send a leaf."""
        energy = powers_of_rows(rows)
        std = self.kappa * np.sqrt(self._sending.mse(name))
        add_noise(rows, std, name, self._sending.key)
        return Powers(np.square(std), energy)

    def _mean_squares(self) -> Float64[np.ndarray, " users"]:
        sending = self._sending
        total, size = np.zeros(sending.users), 0
        for _, rows in sending.leaves("measuring the task vectors"):
            total += exact_squares(rows)
            size += rows[0].size
        return total / size


def add_noise(rows: Rows, std: Float[np.ndarray, " users"], name: str, key: Key[Array, ""]) -> None:
    """Add the noise of `uplink.transmit` to the rows of a leaf, user by user."""
    leaf = name_number(name)
    for user in range(len(rows)):
        row = rows[user, ...]
        row[...] = noisy_leaf(row, np.float32(std[user]), key, leaf, np.uint32(user))


def powers_of_rows(rows: Rows) -> Float[np.ndarray, " users"]:
    """Return the mean square of each row."""
    return (exact_squares(rows) / rows[0].size).astype(np.float32)


class WholeVectors(NamedTuple):
    """What is known about the users' whole vectors."""

    size: int
    """Entries of each."""
    squares: Float64[np.ndarray, " users"]
    """Sums of squares."""
    bins: list[Magnitudes]
    """Per user, without the bins of single entries."""


def whole_vectors(sending: Sending) -> WholeVectors:
    """Return the magnitudes of the users' vectors, read leaf by leaf, twice.

    **Raises:** `InputError` for vectors with more entries than can be counted.
    """
    if (most_entries := sum(map(prod, sending.shapes.values()))) > _MOST:
        raise InputError(
            f"{most_entries:,} entries are more than are counted to find the largest ({_MOST:,}): "
            "take the transport gaussian or qam."
        )
    users, size = range(sending.users), 0
    squares, most = np.zeros(sending.users), np.zeros(sending.users, np.float32)
    for _, rows in sending.leaves("measuring the task vectors"):
        squares += exact_squares(rows)
        size += rows[0].size
        most = np.maximum(most, [max(row.max(), -row.min()) for row in rows])
    largest = most.astype(np.float32).view(np.int32)
    number, rest = np.zeros((sending.users, BINS), np.int32), np.zeros((sending.users, BINS))
    for _, rows in sending.leaves("counting entries by magnitude"):
        for user in users:
            _, here, differences = _binned(rows[user].reshape(-1), largest[user])
            number[user] += np.asarray(here)
            rest[user] += np.asarray(differences)
    nothing = jnp.zeros(0, jnp.int32)
    bins = []
    for user in users:
        count, first = jnp.asarray(number[user]), jnp.asarray(largest[user])
        mean = mean_of_bins(first, count, jnp.asarray(rest[user], jnp.float32))
        bins.append(Magnitudes(nothing, count, mean, first))
    return WholeVectors(size, squares, bins)


class Picked:
    """Which entries of the users' vectors are the `kept` largest, leaf by leaf."""

    def __init__(
        self, sending: Sending, bins: list[Magnitudes], kept: list[Int[Array, " bins"]]
    ) -> None:
        self._bins, self._kept = bins, kept
        self._before: dict[str, Int[np.ndarray, " users"]] = {}
        self.squares = np.zeros(sending.users)
        """Sums of squares of what is picked."""
        before = np.zeros(sending.users, np.int32)
        for name, rows in sending.leaves("picking the largest entries"):
            self._before[name] = before.copy()
            for user in range(sending.users):
                row = rows[user, ...]
                mask, count = self._picked(name, row, user)
                before[user] += count
                self.squares[user] += exact_squares(np.where(mask, row, 0)[None])[0]

    def __call__(
        self, name: str, row: Float[np.ndarray, "..."], user: int
    ) -> Bool[np.ndarray, "..."]:
        """Return which entries of a leaf are picked."""
        return self._picked(name, row, user)[0]

    def _picked(self, name: str, row: np.ndarray, user: int) -> tuple[np.ndarray, int]:
        before = self._before[name][user]
        mask, count = _picked(row.reshape(-1), self._bins[user], self._kept[user], before)
        return np.asarray(mask).reshape(row.shape), int(count)


_binned = jax.jit(binned)


@jax.jit
def _picked(row: Array, bins: Magnitudes, kept: Array, before: Array) -> tuple[Array, Array]:
    """Return the mask of a row, and how many entries are in the bin that is kept in part."""
    of, _, _ = binned(row, bins.largest)
    mask = are_largest(bins._replace(of=of), kept, before)
    return mask, jnp.sum(of == parted_bin(bins, kept))
