"""Merge methods one tensor at a time, compiled once per shape rather than per tensor."""

from __future__ import annotations

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from rmtllmf_jax.fusion.files.recipe import Recipe
from rmtllmf_jax.fusion.layers import layer_of
from rmtllmf_jax.fusion.rules import LayerWeighted, Sparsified, TaskArithmetic, fact
from rmtllmf_jax.fusion.rules.leaves import user_weights

LayerWeights = dict[str, Float[np.ndarray, " users"]]


class TensorMerge:
    """A method that is given one tensor of all task vectors after another (`merging.Merge`).

    A program that knew each tensor's name would be compiled for each of them; this one does not.
    What depends on the name is given to it: weights by layer, and sparsified tensors. Sparsifying
    goes row by row, which takes a few tensors of memory and not 2 Q.
    """

    def __init__(self, recipe: Recipe, weights: LayerWeights | None = None) -> None:
        """Prepare the method of a recipe; `weights` are those of a `LayerWeighted` one."""
        self._recipe = recipe
        self._weights = weights or {}
        self._program = jax.jit(self._merge)

    def __call__(self, key: str, rows: Float[np.ndarray, "users ..."]) -> Float[np.ndarray, "..."]:
        """Return the scale times the merge of a tensor's rows, which may be overwritten."""
        method, weights = self._recipe.method, None
        masks = jax.random.key(self._recipe.seed)
        if isinstance(method, LayerWeighted):
            layer = layer_of(key, method.granularity)
            weights = jnp.asarray(self._weights[layer], jnp.float32)
        elif isinstance(method, Sparsified):
            sparsify = method.sparsifier
            for user in range(len(rows)):
                row = rows[user : user + 1]
                row[...] = sparsify(jax.device_put(row), key, masks, user)
        elif fact(method, "random"):
            masks = jax.random.fold_in(masks, zlib.crc32(key.encode()))
        return np.asarray(self._program(jax.device_put(rows), weights, masks))

    def _merge(self, rows: Array, weights: Array | None, key: Key[Array, ""]) -> Array:
        method = self._recipe.method
        if isinstance(method, Sparsified):
            merged = method.consensus(rows, user_weights(method.weights, len(rows)))
        elif isinstance(method, LayerWeighted):
            merged = TaskArithmetic()({"tensor": rows}, weights=weights)["tensor"]
        else:
            merged = method({"tensor": rows}, key)["tensor"]
        return self._recipe.scale * merged
