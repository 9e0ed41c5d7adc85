"""Sparse analogue transmission: only the largest entries of a task vector, one symbol each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key, PyTree, Real

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.merge import PerUser
from rmtllmf_jax.fusion.trees import check_stacked
from rmtllmf_jax.uplink.error_models import safe_sqrt
from rmtllmf_jax.uplink.magnitudes import are_largest, largest, magnitudes
from rmtllmf_jax.uplink.noise import leaf_by_leaf, per_user, transmit
from rmtllmf_jax.uplink.streams import (
    GaussianStream,
    Picked,
    Powers,
    Rows,
    Sending,
    Stream,
    add_noise,
    powers_of_rows,
    whole_vectors,
)
from rmtllmf_jax.uplink.vectors import Shapes, as_leaves, as_vectors, mean_of_leaf, mean_squares


def entropy(share: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """H2(share), the bits per entry that tell which entries are sent; 0 at 0 and 1.

    >>> [round(float(entropy(share)), 3) for share in (0.01, 0.1, 0.5)]
    [0.081, 0.469, 1.0]
    """
    share = jnp.asarray(share)
    both = jax.scipy.special.entr(share) + jax.scipy.special.entr(1 - share)
    return both / np.log(2)


@dataclass(frozen=True)
class Sparse:
    """The largest share of each user's entries, one analogue symbol each; others arrive as 0.

    Symbols keep unit power, so that kappa scales with the rms of what is sent: kappa' = kappa
    rms(sent) / rms(all). The positions are sent as bits and take H2(share) / log2(1/mu) channel
    uses.
    `Sparse(1.0)` is `Gaussian`. Which entries are sent is held constant under `jax.grad`.

    >>> sent, ones = {"w": jnp.array([[1.0, -9.0, 2.0, 3.0]])}, jnp.ones(1)
    >>> Sparse(0.5).deliver(sent, 0 * ones, ones, jax.random.key(0))["w"].tolist()
    [[0.0, -9.0, 0.0, 3.0]]
    """

    of_mse: ClassVar[bool] = True
    stage: ClassVar[str] = "transport"

    share: float
    """Of entries that are sent, in ]0, 1]."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"share must be > 0 and <= 1, got {self.share!r}.")

    @property
    def uses(self) -> float:
        """Channel uses per parameter, without positions, which `uses_of` includes."""
        return self.share

    def uses_of(self, mse: PerUser, shapes: Shapes) -> Float[Array, " users"]:
        """Channel uses per parameter of each user, positions included; infinite at zero rate."""
        mse = jnp.asarray(mse, jnp.result_type(float))
        if self.share == 1:
            return jnp.ones_like(mse)
        return self.share + entropy(self.share) / jnp.log2(1 / jnp.clip(mse, 0.0, 1.0))

    def deliver(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        mse: PerUser | PyTree[Array],
        kappa: PerUser,
        key: Key[Array, ""],
        *,
        planned: PerUser | None = None,
    ) -> PyTree[Float[Array, "users ..."]]:
        """The task vectors as received, with the Gaussians of `transmit`; `planned` is not used.

        **Raises:** `InputError` as `transmit`; `kappa` is one per user.
        """
        sent = self._sent(stacked)
        return _only(transmit(stacked, mse, self._kappa(stacked, sent, kappa), key), sent)

    def variance(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        mse: PerUser | PyTree[Array],
        kappa: PerUser,
    ) -> PyTree[Float[Array, " users"]]:
        """kappa'^2 mu times the share of the leaf's entries that are sent.

        The error of what is sent: entries left out do not count as noise.
        """
        sent = self._sent(stacked)
        scale = self._kappa(stacked, sent, kappa)
        by_leaf = leaf_by_leaf("mse", mse, stacked)
        return jax.tree.map(
            lambda here, each: jnp.square(scale) * each * mean_of_leaf(here.astype(scale.dtype)),
            sent,
            by_leaf,
        )

    def energy(self, stacked: PyTree[Float[Array, "users ..."]]) -> PyTree[Float[Array, " users"]]:
        """Mean square of what is sent, over all entries of a leaf."""
        return mean_squares(_only(stacked, self._sent(stacked)))

    def stream(self, sending: Sending) -> Stream:
        """Leaf by leaf, after three passes that find which entries are the largest."""
        return GaussianStream(sending) if self.share == 1 else _SparseStream(self.share, sending)

    def _sent(self, stacked: PyTree[Array]) -> PyTree[Bool[Array, "users ..."]]:
        if self.share == 1:
            return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), stacked)
        vectors = as_vectors(stacked)
        number = jnp.asarray(_number(self.share, vectors.shape[1]), jnp.int32)

        def one(vector: Array) -> Array:
            bins = magnitudes(vector)
            return are_largest(bins, largest(bins, number))

        return as_leaves(jax.lax.map(one, vectors), stacked)

    def _kappa(self, stacked: PyTree[Array], sent: PyTree[Array], kappa: PerUser) -> Array:
        given = per_user("kappa", kappa, check_stacked(stacked))
        if self.share == 1:
            return given
        vectors = as_vectors(stacked)
        whole, part = (
            jnp.sum(jnp.square(each), axis=1)
            for each in (vectors, as_vectors(_only(stacked, sent)))
        )
        per_entry = part / jnp.where(whole > 0, whole, 1) * vectors.shape[1]
        return given * safe_sqrt(per_entry / _number(self.share, vectors.shape[1]))


class _SparseStream:
    def __init__(self, share: float, sending: Sending) -> None:
        self._sending = sending
        size, squares, bins = whole_vectors(sending)
        number = _number(share, size)
        kept = [largest(each, jnp.asarray(number, jnp.int32)) for each in bins]
        self._picked = Picked(sending, bins, kept)
        self.kappa = sending.kappa(lambda: squares / size)
        per_entry = self._picked.squares / np.where(squares > 0, squares, 1) * size
        self._scale = self.kappa * np.sqrt(per_entry / number)

    def __call__(self, name: str, rows: Rows) -> Powers:
        masks = np.stack([self._picked(name, rows[u, ...], u) for u in range(len(rows))])
        np.copyto(rows, 0, where=~masks)
        energy = powers_of_rows(rows)
        std = self._scale * np.sqrt(self._sending.mse(name))
        add_noise(rows, std, name, self._sending.key)
        np.copyto(rows, 0, where=~masks)
        share = masks.reshape(len(rows), -1).mean(axis=1)
        return Powers((np.square(std) * share).astype(np.float32), energy)


def _number(share: float, size: int) -> int:
    return max(1, round(share * size))


def _only(stacked: PyTree[Array], sent: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda leaf, here: jnp.where(here, leaf, 0), stacked, sent)
