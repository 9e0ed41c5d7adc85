"""The surrogate of a link: a Gaussian error on every parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.fusion.merge import PerUser
from rmtllmf_jax.uplink.noise import leaf_by_leaf, transmit
from rmtllmf_jax.uplink.streams import GaussianStream, Sending
from rmtllmf_jax.uplink.vectors import Shapes, mean_squares


@dataclass(frozen=True)
class Gaussian:
    """The surrogate: an independent Gaussian error per parameter, of variance kappa_q^2 mu_q.

    It needs the users' MSE and no channel; `uplink.noise` draws it, and the linear merges of a
    sweep draw it as one sum.

    >>> sent, mse = {"w": jnp.zeros((2, 3))}, jnp.array([0.1, 0.2])
    >>> print(Gaussian().variance(sent, mse, jnp.array([1.0, 2.0]))["w"])
    [0.1 0.8]
    """

    stage: ClassVar[str] = "transport"
    surrogate: ClassVar[bool] = True
    of_mse: ClassVar[bool] = True
    uses: ClassVar[float] = 1.0

    def uses_of(self, mse: PerUser, shapes: Shapes) -> Float[Array, " users"]:
        """1 for each user."""
        return jnp.ones_like(jnp.asarray(mse, jnp.result_type(float)))

    def deliver(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        mse: PerUser | PyTree[Array],
        kappa: PerUser | PyTree[Array],
        key: Key[Array, ""],
        *,
        planned: PerUser | None = None,
    ) -> PyTree[Float[Array, "users ..."]]:
        """`transmit` with independent errors; `planned` is not used."""
        return transmit(stacked, mse, kappa, key)

    def variance(
        self,
        stacked: PyTree[Float[Array, "users ..."]],
        mse: PerUser | PyTree[Array],
        kappa: PerUser | PyTree[Array],
    ) -> PyTree[Float[Array, " users"]]:
        """kappa^2 mu."""
        return jax.tree.map(
            lambda each, scale: jnp.square(scale) * each,
            leaf_by_leaf("mse", mse, stacked),
            leaf_by_leaf("kappa", kappa, stacked),
        )

    def energy(self, stacked: PyTree[Float[Array, "users ..."]]) -> PyTree[Float[Array, " users"]]:
        """Mean square of a leaf."""
        return mean_squares(stacked)

    def stream(self, sending: Sending) -> GaussianStream:
        """Leaf by leaf."""
        return GaussianStream(sending)


GAUSSIAN = Gaussian()
"""The default."""
