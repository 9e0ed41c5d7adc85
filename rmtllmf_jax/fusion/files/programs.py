"""Merge rules one tensor at a time, compiled once a shape rather than once a tensor."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from rmtllmf_jax.fusion.files.recipe import Recipe
from rmtllmf_jax.fusion.layers import layer_of
from rmtllmf_jax.fusion.rules import get_rule
from rmtllmf_jax.fusion.rules.dare import DareOptions, DareTiesOptions, keep_mask
from rmtllmf_jax.fusion.rules.lata import LataOptions, lata_weights, reference_cosines
from rmtllmf_jax.fusion.rules.layer_wise import LayerWiseOptions, layer_wise_weights
from rmtllmf_jax.fusion.rules.leaves import user_weights
from rmtllmf_jax.fusion.rules.linear import TaskArithmeticOptions
from rmtllmf_jax.fusion.rules.ties import TiesOptions, trim

LayerWeights = dict[str, Float[np.ndarray, " users"]]


class TensorMerge:
    """A rule that is given one tensor of all task vectors after another (`merging.Merge`).

    A program that knew each tensor's name would be compiled for each of them; this one does not.
    What depends on the name is given to it: weights by layer, and tensors with entries dropped.
    Dropping and trimming go row by row, which takes a few tensors of memory and not 2 Q.
    """

    def __init__(
        self,
        recipe: Recipe,
        weights: LayerWeights | None = None,
    ) -> None:
        """Prepare the rule of a recipe.

        `weights` are those by layer of a rule that only weighs by layer (`layer_wise`, `lata`).
        """
        self._recipe = recipe
        self._weights = weights
        self._rule, self._options = recipe.rule, recipe.options
        if weights is not None:
            self._rule, self._options = get_rule("task_arithmetic"), TaskArithmeticOptions()
        elif isinstance(self._options, DareOptions):
            self._rule = get_rule("task_arithmetic")
            self._options = TaskArithmeticOptions(recipe.options.weights)
        elif isinstance(self._options, TiesOptions | DareTiesOptions):
            self._rule = get_rule("ties")
            self._options = TiesOptions(1.0, recipe.options.normalise, recipe.options.weights)
        self._program = jax.jit(self._merge)
        self._trim = jax.jit(trim, static_argnums=1)

    def __call__(self, key: str, rows: Float[np.ndarray, "users ..."]) -> Float[np.ndarray, "..."]:
        """Return the scale times the merge of a tensor's rows, which may be overwritten."""
        weights = None
        if self._weights is not None:
            layer = layer_of(key, self._recipe.options.granularity)
            weights = jnp.asarray(self._weights[layer], jnp.float32)
        self._sparsify(key, rows)
        return np.asarray(self._program(jax.device_put(rows), weights))

    def _sparsify(self, name: str, rows: np.ndarray) -> None:
        """Trim entries as `ties` does, or drop them as `dare` does, one row after the other."""
        options = self._recipe.options
        if isinstance(options, TiesOptions):
            for user in range(len(rows)):
                row = rows[user : user + 1]
                row[...] = self._trim(jax.device_put(row), options.density)
        elif isinstance(options, DareOptions | DareTiesOptions) and options.drop:
            key = jax.random.key(self._recipe.seed)
            for user in range(len(rows)):
                row = rows[user : user + 1]
                row *= np.asarray(keep_mask(key, user, name, row.shape[1:], options.drop))
                row *= np.float32(1 / (1 - options.drop))

    def _merge(self, rows: Array, weights: Array | None) -> Array:
        given = {} if weights is None else {"weights": weights}
        merged = self._rule.merge({"tensor": rows}, self._options, None, **given)["tensor"]
        return self._recipe.scale * merged


def weights_of_layers(keys: tuple[str, ...], options: LayerWiseOptions, users: int) -> LayerWeights:
    """Return the weights by layer that `layer_wise` gives to the task vectors.

    **Raises:** `InputError` as `layer_wise_weights`, and if the number of weights is not Q.
    """
    by_user = user_weights(options.weights, users)
    by_layer = layer_wise_weights(keys, options, users)
    return {layer: np.asarray(by_user * weights) for layer, weights in by_layer.items()}


def weights_from_grams(
    grams: Mapping[str, Float64[np.ndarray, "vectors vectors"]], options: LataOptions, users: int
) -> LayerWeights:
    """Return the weights by layer that `lata` gives to the task vectors.

    **Arguments:**

    - `grams`: `layer_gram.layer_grams`; a vector more than `users` is the reference.

    **Raises:** `InputError` if there is neither a reference nor a second task vector.
    """
    by_user = user_weights(options.weights, users)
    # Cosines do not change with a common factor, and the squares stay within float32.
    unit = {layer: jnp.asarray(gram / (gram.max() or 1.0), float) for layer, gram in grams.items()}
    cosines = reference_cosines(unit, users, active=by_user != 0)
    by_layer = lata_weights(cosines, options)
    return {layer: np.asarray(by_user * weights) for layer, weights in by_layer.items()}
