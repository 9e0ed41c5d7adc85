"""From the channel's MSE to received task vectors: the one place where channel and fusion meet.

A user's task vector arrives as ``tau_q + e_q`` with ``e_q ~ N(0, kappa_q^2 mu_q I)``, where mu_q
is the user's MSE after MMSE-SIC and kappa_q the scale between a unit-power symbol and a
parameter. Errors of different users are independent, which is exact for MMSE-SIC. kappa is
explicit: the paper's "variance = MSE" is kappa = 1, which no real model survives.
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.fusion import leaf_path, rms, stack_size

DEFAULT_C0_DB = -31.0
"""Parameter-domain SNR in dB of a user with MSE 1: the value that fits the paper's SNRs."""


def kappa_from_c0(
    stacked: PyTree[Float[Array, "users ..."]], c0_db: float | Float[Array, ""] = DEFAULT_C0_DB
) -> Float[Array, " users"]:
    """Return ``kappa_q = rms(tau_q) 10^(-c0/20)``.

    A user with MSE mu then has the parameter-domain SNR ``-10 log10(mu) + c0`` dB.
    """
    return rms(stacked) * 10.0 ** (-c0_db / 20)


def kappa_per_leaf(
    stacked: PyTree[Float[Array, "users ..."]], c0_db: float | Float[Array, ""] = DEFAULT_C0_DB
) -> PyTree[Float[Array, " users"]]:
    """Return a kappa for each leaf and user, normalised by the leaf's own rms.

    The shape of a transmitter that normalises every parameter block to unit power.
    """
    return jax.tree.map(lambda leaf: kappa_from_c0(leaf, c0_db), stacked)


def _kappa_tree(
    kappa: Float[Array, " users"] | PyTree[Float[Array, " users"]], stacked: PyTree
) -> PyTree[Float[Array, " users"]]:
    if jax.tree_util.all_leaves([kappa]):
        return jax.tree.map(lambda _: kappa, stacked)
    return kappa


def _sqrt(x: Array) -> Array:
    """Return the square root with derivative 0 at 0, where a perfect uplink sits."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def _leaf_key(key: Key[Array, ""], path: tuple) -> Key[Array, ""]:
    """Return a key by the leaf's name, so that adding a leaf leaves the others' noise alone."""
    return jax.random.fold_in(key, zlib.crc32(leaf_path(path).encode()))


def transmit(
    stacked: PyTree[Float[Array, "users ..."]],
    mse: Float[Array, " users"],
    kappa: Float[Array, " users"] | PyTree[Float[Array, " users"]],
    key: Key[Array, ""],
) -> PyTree[Float[Array, "users ..."]]:
    """Return the task vectors as received, one by one: ``tau_q + kappa_q sqrt(mu_q) z_q``.

    **Arguments:**

    - `stacked`: the task vectors sent, leaves with a leading axis of Q users.
    - `mse`: mu_q of each user; zero is a perfect uplink.
    - `kappa`: one a user, or a tree of them (`kappa_per_leaf`).
    - `key`: the same key gives the same z, whatever the MSE (common random numbers).
    """
    users = stack_size(stacked)

    def send(path: tuple, leaf: Array, kappa_leaf: Array) -> Array:
        keys = jax.vmap(lambda user: jax.random.fold_in(_leaf_key(key, path), user))(
            jnp.arange(users)
        )
        noise = jax.vmap(lambda k: jax.random.normal(k, leaf.shape[1:], leaf.dtype))(keys)
        std = kappa_leaf * _sqrt(mse)
        return leaf + noise * std.reshape(-1, *[1] * (leaf.ndim - 1)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(send, stacked, _kappa_tree(kappa, stacked))


def noise_of_sum(
    stacked: PyTree[Float[Array, "users ..."]],
    weights: Float[Array, " users"],
    mse: Float[Array, " users"],
    kappa: Float[Array, " users"] | PyTree[Float[Array, " users"]],
    key: Key[Array, ""],
) -> PyTree[Float[Array, "..."]]:
    """Return the error of ``sum_q weights_q tau^_q``, drawn once.

    Merging is linear and the users' errors are independent Gaussians, so their weighted sum is
    one Gaussian with variance ``sum_q weights_q^2 kappa_q^2 mu_q``: one draw in place of Q.
    """

    def draw(path: tuple, leaf: Array, kappa_leaf: Array) -> Array:
        variance = jnp.sum(jnp.square(weights * kappa_leaf) * mse)
        noise = jax.random.normal(_leaf_key(key, path), leaf.shape[1:], leaf.dtype)
        return noise * _sqrt(variance).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, stacked, _kappa_tree(kappa, stacked))
