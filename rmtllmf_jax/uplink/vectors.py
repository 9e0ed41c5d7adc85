"""All leaves of each user as one vector, and back; means over a leaf."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.fusion.trees import as_type_of, check_stacked, leaves_by_path, widened

Shapes = Mapping[str, tuple[int, ...]]
"""Of the leaves of a task vector, by path."""


def shapes_of(stacked: PyTree[Array]) -> Shapes:
    """The shapes of the leaves without the axis of users."""
    return {path: leaf.shape[1:] for path, leaf in leaves_by_path(stacked).items()}


def as_vectors(stacked: PyTree[Array]) -> Float[Array, "users size"]:
    """All leaves of a user as one vector."""
    users = check_stacked(stacked)
    leaves = [widened(leaf).reshape(users, -1) for leaf in jax.tree.leaves(stacked)]
    return jnp.concatenate(leaves, axis=1)


def as_leaves(vectors: Array, like: PyTree[Array]) -> PyTree[Array]:
    """Undo `as_vectors`, in the leaves' types unless the vectors are boolean."""
    leaves, tree = jax.tree.flatten(like)
    ends = np.cumsum([leaf[0].size for leaf in leaves])[:-1].tolist()
    parts = jnp.split(vectors, ends, axis=1)
    return jax.tree.unflatten(
        tree,
        [
            part.reshape(leaf.shape)
            if part.dtype == bool
            else as_type_of(leaf, part.reshape(leaf.shape))
            for part, leaf in zip(parts, leaves, strict=True)
        ],
    )


def mean_squares(stacked: PyTree[Float[Array, "users ..."]]) -> PyTree[Float[Array, " users"]]:
    """The mean square of each leaf and user.

    >>> mean_squares({"w": jnp.array([[1.0, 7.0], [0.0, 0.0]])})["w"].tolist()
    [25.0, 0.0]
    """
    return jax.tree.map(lambda leaf: mean_of_leaf(jnp.square(widened(leaf))), stacked)


def mean_of_leaf(leaf: Array) -> Float[Array, " users"]:
    """The mean of each user's entries."""
    return jnp.mean(leaf, axis=tuple(range(1, leaf.ndim)))
