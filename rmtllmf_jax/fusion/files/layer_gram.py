"""The inner products of task vectors, layer by layer, from one pass over the files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64

from rmtllmf_jax.fusion.files.checkpoint import Checkpoint
from rmtllmf_jax.fusion.files.vectors import Stack
from rmtllmf_jax.fusion.layers import group_by_layer, layers_of

_CHUNK = 2**20  # numbers that are in float64 at once


def layer_grams(
    base: Checkpoint,
    models: list[Checkpoint],
    keys: tuple[str, ...],
    granularity: str,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Float64[np.ndarray, "users users"]]:
    """Return the matrix of inner products of the task vectors in each layer, summed in float64.

    Its diagonal holds the squared norms. Layers are in the order of `group_by_layer`.

    **Arguments:**

    - `granularity`: of the layers (`fusion.layers.GRANULARITIES`).
    - `advance`: called with 1 after each tensor.

    **Raises:** `InputError` if an input holds NaN or is cut short.
    """
    users = len(models)
    grams = {layer: np.zeros((users, users)) for layer in group_by_layer(keys, granularity)}
    with Stack(base, models) as stack:
        for key, layer in layers_of(keys, granularity).items():
            _, rows = stack.read(key)
            grams[layer] += gram(rows)
            advance(1)
    return grams


def gram(rows: Float[np.ndarray, "users ..."]) -> Float64[np.ndarray, "users users"]:
    """Return the inner products of the rows, summed in float64 without a copy of all of them."""
    flat = rows.reshape(len(rows), -1)
    total = np.zeros((len(rows), len(rows)))
    for first in range(0, flat.shape[1], _CHUNK):
        chunk = flat[:, first : first + _CHUNK].astype(np.float64)
        total += chunk @ chunk.T
    return total
