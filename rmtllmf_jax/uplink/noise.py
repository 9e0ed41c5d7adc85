"""Task vectors as received: one by one, or the error of their weighted sum in one draw.

Keys are folded with a leaf's name and a user's number, so that adding either leaves the noise of
the others alone.

**A sweep over SNR** needs one draw of the Gaussians, rescaled. Map over the MSE and not over the
key, and `jax.vmap` draws once for all points::

    jax.vmap(noise_of_sum, in_axes=(None, None, 0, None, None))(stacked, weights, mses, kappa, key)

The noise of `noise_of_sum` is then the same array at all points up to a factor, and that of
`transmit` wherever the users' MSEs change by a common factor (and each user's own noise, whatever
the MSEs, under the default model).
"""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.fusion import leaf_path, stack_size
from rmtllmf_jax.uplink.error_models import INDEPENDENT, ErrorModel, safe_sqrt

_SHARED = 2**32 - 1  # Folded into the key of a source that all users share: no user's number.


def transmit(
    stacked: PyTree[Float[Array, "users ..."]],
    mse: Float[Array, " users"],
    kappa: Float[Array, " users"] | PyTree[Float[Array, " users"]],
    key: Key[Array, ""],
    error_model: ErrorModel = INDEPENDENT,
) -> PyTree[Float[Array, "users ..."]]:
    """Return the task vectors as received, one by one: ``tau_q + e_q``.

    **Arguments:**

    - `stacked`: the task vectors sent, leaves with a leading axis of Q users.
    - `mse`: mu_q of each user; zero is a perfect uplink.
    - `kappa`: one a user, or a tree of them (`kappa_per_leaf`).
    - `key`: the same key gives the same Gaussians, whatever the MSE (common random numbers).
    - `error_model`: how the users' errors hang together.
    """
    sources = jnp.arange(stack_size(stacked), dtype=jnp.uint32)
    if error_model.shared:
        sources = jnp.append(sources, jnp.uint32(_SHARED))

    def send(path: tuple, leaf: Array, kappa_leaf: Array) -> Array:
        keys = jax.vmap(lambda source: jax.random.fold_in(_leaf_key(key, path), source))(sources)
        noise = jax.vmap(lambda k: jax.random.normal(k, leaf.shape[1:], leaf.dtype))(keys)
        return leaf + error_model.mix(kappa_leaf * safe_sqrt(mse), noise)

    return jax.tree_util.tree_map_with_path(send, stacked, _kappa_tree(kappa, stacked))


def noise_of_sum(
    stacked: PyTree[Float[Array, "users ..."]],
    weights: Float[Array, " users"],
    mse: Float[Array, " users"],
    kappa: Float[Array, " users"] | PyTree[Float[Array, " users"]],
    key: Key[Array, ""],
    error_model: ErrorModel = INDEPENDENT,
) -> PyTree[Float[Array, "..."]]:
    """Return the error of ``sum_q weights_q tau^_q``, drawn once.

    Merging is linear and the users' errors are jointly Gaussian with some covariance S across
    users, the same in every coordinate of a leaf. Their weighted sum is one Gaussian with variance
    ``w^T S w`` (``sum_q weights_q^2 kappa_q^2 mu_q`` if independent): one draw in place of Q.
    """

    def draw(path: tuple, leaf: Array, kappa_leaf: Array) -> Array:
        noise = jax.random.normal(_leaf_key(key, path), leaf.shape[1:], leaf.dtype)
        return noise * error_model.std_of_sum(weights, kappa_leaf, mse).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, stacked, _kappa_tree(kappa, stacked))


def _kappa_tree(
    kappa: Float[Array, " users"] | PyTree[Float[Array, " users"]], stacked: PyTree
) -> PyTree[Float[Array, " users"]]:
    if jax.tree_util.all_leaves([kappa]):
        return jax.tree.map(lambda _: kappa, stacked)
    return kappa


def _leaf_key(key: Key[Array, ""], path: tuple) -> Key[Array, ""]:
    """Return a key by the leaf's name, so that adding a leaf leaves the others' noise alone."""
    return jax.random.fold_in(key, zlib.crc32(leaf_path(path).encode()))
