"""Task vectors as received: one by one, or the error of their weighted sum in one draw.

Keys are folded with a leaf's name and a user's number, so that adding either does not change the
noise of the others.

**A sweep over SNR** needs one draw of the Gaussians, rescaled. Map over the MSE and not over the
key: `jax.vmap` then draws once for all points::

    jax.vmap(noise_of_sum, in_axes=(None, None, 0, None, None))(stacked, weights, mses, kappa, key)

The noise of `noise_of_sum` is then the same array at all points up to a factor. So is that of
`transmit` where the users' MSEs change by a common factor (under the default model, each user's
noise separately, for any MSEs).
"""

from __future__ import annotations

import math
import zlib
from functools import partial
from numbers import Number

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, PyTree, UInt

from rmtllmf_jax.channel.checks import require_within
from rmtllmf_jax.fusion import leaf_path, require_same_structure
from rmtllmf_jax.fusion.merge import PerUser, one_per_user
from rmtllmf_jax.fusion.trees import as_type_of, check_stacked, widened
from rmtllmf_jax.uplink.error_models import INDEPENDENT, ErrorModel, mixed, safe_sqrt

_SHARED = 2**32 - 1  # Folded into the key of a source shared by all users; not a user's number.


def transmit(
    stacked: PyTree[Float[Array, "users ..."]],
    mse: PerUser | PyTree[Array],
    kappa: PerUser | PyTree[Array],
    key: Key[Array, ""],
    error_model: ErrorModel = INDEPENDENT,
) -> PyTree[Float[Array, "users ..."]]:
    """Return the task vectors as received, one by one: ``tau_q + e_q``.

    **Arguments:**

    - `stacked`: the task vectors sent, leaves with a leading axis of Q users; noise is drawn and
      added in float32 or wider, and the received leaves have the types of those sent.
    - `mse`: mu_q of each user, or a tree of them; zero is a perfect uplink.
    - `kappa`: one per user, or a tree of them (`kappa_per_leaf`).
    - `key`: the same key gives the same Gaussians for every MSE (common random numbers).
    - `error_model`: how the users' errors are correlated.

    **Raises:** `InputError` if `mse` or `kappa` is not one per user, or negative or not finite
    (checked where it is not traced), or for leaves that are not floating-point.

    >>> sent = {"w": jnp.zeros((2, 10_000))}
    >>> mse, kappa = jnp.array([0.0, 0.25]), jnp.array([2.0, 2.0])
    >>> received = transmit(sent, mse, kappa, jax.random.key(0))
    >>> [round(float(user.std()), 1) for user in received["w"]]                 # kappa sqrt(mse)
    [0.0, 1.0]
    """
    sources = draw_sources(stacked, key, error_model)

    def send(leaf: Array, noise: Array, mse_leaf: Array, kappa_leaf: Array) -> Array:
        error = error_model.mix(kappa_leaf * safe_sqrt(mse_leaf), noise)
        return as_type_of(leaf, widened(leaf) + error)

    by_leaf = (leaf_by_leaf(*each, stacked) for each in (("mse", mse), ("kappa", kappa)))
    return jax.tree.map(send, stacked, sources, *by_leaf)


def draw_sources(
    stacked: PyTree[Float[Array, "users ..."]],
    key: Key[Array, ""],
    error_model: ErrorModel | type[ErrorModel] = INDEPENDENT,
) -> PyTree[Float[Array, "sources ..."]]:
    """Return the standard Gaussians z of all errors, e = F z (`ErrorModel.factor`).

    The users' own come first, then the shared ones. `transmit` draws the same. If kept, they give
    the errors for every MSE, kappa and combination of users without drawing again.
    """
    sources = jnp.arange(check_stacked(stacked), dtype=jnp.uint32)
    if error_model.shared:
        sources = jnp.append(sources, jnp.uint32(_SHARED))

    def draw(path: tuple, leaf: Array) -> Array:
        return _normals(key, leaf_number(path), sources, leaf.shape[1:], _wide_type(leaf))

    return jax.tree_util.tree_map_with_path(draw, stacked)


def errors(
    sources: PyTree[Float[Array, "sources ..."]], factor: Float[Array, "users sources"]
) -> PyTree[Float[Array, "users ..."]]:
    """Return the users' errors ``e = F z`` for the Gaussians of `draw_sources`, leaf by leaf."""
    return jax.tree.map(lambda leaf: mixed(factor, leaf), sources)


@partial(jax.jit, static_argnums=(3, 4))
def _normals(
    key: Key[Array, ""],
    leaf: UInt[ArrayLike, ""],
    sources: UInt[Array, " sources"],
    shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> Float[Array, "sources ..."]:
    """Compiled once per shape, not per leaf, where the caller does not compile it."""
    of_leaf = jax.random.fold_in(key, leaf)
    keys = jax.vmap(lambda source: jax.random.fold_in(of_leaf, source))(sources)
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(keys)


@jax.jit
def noisy_leaf(
    sent: Float[Array, "..."],
    std: Float[ArrayLike, ""],
    key: Key[Array, ""],
    leaf: UInt[ArrayLike, ""],
    user: UInt[ArrayLike, ""],
) -> Float[Array, "..."]:
    """Return one leaf of one user as `transmit` delivers it; `leaf` is the number of its name."""
    noise = _normals(key, leaf, jnp.asarray(user)[None], sent.shape, _wide_type(sent))[0]
    return sent + jnp.asarray(std, noise.dtype) * noise


def noise_of_sum(
    stacked: PyTree[Float[Array, "users ..."]],
    weights: PerUser | PyTree[Array],
    mse: PerUser | PyTree[Array],
    kappa: PerUser | PyTree[Array],
    key: Key[Array, ""],
    error_model: ErrorModel = INDEPENDENT,
) -> PyTree[Float[Array, "..."]]:
    """Return the error of ``sum_q weights_q tau^_q``, drawn once.

    Merging is linear and the users' errors are jointly Gaussian with some covariance S across
    users, the same in every coordinate of a leaf. Their weighted sum is one Gaussian with variance
    ``w^T S w`` (``sum_q weights_q^2 kappa_q^2 mu_q`` if independent): one draw in place of Q.
    `weights`, `mse` and `kappa` may be trees with values per leaf, as for layer-wise scales.

    **Raises:** `InputError` as `transmit`.

    >>> sent, ones = {"w": jnp.zeros((2, 10_000))}, jnp.ones(2)
    >>> noise = noise_of_sum(sent, ones, jnp.array([0.09, 0.16]), ones, jax.random.key(0))
    >>> noise["w"].shape, round(float(noise["w"].std()), 1)
    ((10000,), 0.5)
    """
    normals, tree = jax.tree.flatten(_normal_like(stacked, key))
    # All leaves at once: a few operations for each would be most of the program.
    by_leaf = (
        jnp.stack(jax.tree.leaves(leaf_by_leaf(name, values, stacked)))
        for name, values in (("weights", weights), ("kappa", kappa), ("mse", mse))
    )
    stds = jnp.unstack(jax.vmap(error_model.std_of_sum)(*by_leaf))
    return jax.tree.unflatten(
        tree,
        [
            as_type_of(leaf, z * std.astype(z.dtype))
            for leaf, z, std in zip(jax.tree.leaves(stacked), normals, stds, strict=True)
        ],
    )


def _normal_like(
    stacked: PyTree[Float[Array, "users ..."]], key: Key[Array, ""]
) -> PyTree[Float[Array, "..."]]:
    """Return a standard Gaussian per leaf, drawn by one loop per shape: a quarter of the program.

    The layers of a transformer share only a few shapes.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path(stacked)
    alike: dict[tuple[tuple[int, ...], jnp.dtype], list[int]] = {}
    for place, (_, leaf) in enumerate(paths):
        alike.setdefault((leaf.shape[1:], _wide_type(leaf)), []).append(place)
    found: list[Array] = [jnp.zeros(())] * len(paths)
    for (shape, dtype), places in alike.items():
        names = jnp.array([leaf_number(paths[place][0]) for place in places], jnp.uint32)
        # Not vmap: with some kinds of keys it draws different numbers.
        normals = jax.lax.map(
            lambda name, of=(shape, dtype): jax.random.normal(jax.random.fold_in(key, name), *of),
            names,
        )
        for place, normal in zip(places, normals, strict=True):
            found[place] = normal
    return jax.tree.unflatten(tree, found)


def leaf_by_leaf(name: str, values: PyTree, stacked: PyTree) -> PyTree[Float[Array, " users"]]:
    """Return a value per leaf and user, from values per user or a tree of them."""
    users = check_stacked(stacked)
    if isinstance(values, list | tuple) and all(isinstance(each, Number) for each in values):
        values = jnp.asarray(values)  # not a tree of leaves
    if jax.tree_util.all_leaves([values]):
        by_user = per_user(name, values, users)
        return jax.tree.map(lambda _: by_user, stacked)
    expected = jax.tree.map(lambda _: np.empty(users), stacked)
    require_same_structure(values, expected, (name, "task vectors"))
    return jax.tree.map(lambda leaf: per_user(name, leaf, users), values)


def per_user(name: str, values: PerUser, users: int) -> Float[Array, " users"]:
    """Return values, checked: one per user and, except for weights, not negative where known."""
    found = one_per_user(name, values, users)
    if name != "weights":
        require_within(name, found, 0.0, math.inf)
    return found


def _wide_type(leaf: Array) -> np.dtype:
    """Return the type of the noise: in bfloat16 Gaussians have only 128 values, up to 2.9."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


def leaf_number(path: tuple) -> np.uint32:
    """Return the number of a leaf's name, folded into its key: independent of other leaves."""
    return name_number(leaf_path(path))


def name_number(name: str) -> np.uint32:
    """Return the number of a leaf that has this name."""
    return np.uint32(zlib.crc32(name.encode()))
