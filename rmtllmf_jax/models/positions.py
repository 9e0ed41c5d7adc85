"""Position embeddings for another image size."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float


def _cubic(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return Keys' cubic kernel with a = -0.75, which torch's bicubic mode uses."""
    a, x = -0.75, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _bicubic_matrix(new: int, old: int) -> Float[np.ndarray, "new old"]:
    """Return the matrix of one-dimensional bicubic interpolation, edge samples repeated."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        index = np.clip(first + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(new), index), _cubic(centres - (first + tap)))
    return matrix


def interpolate_positions(
    positions: Float[np.ndarray, "one tokens width"], grid: int
) -> Float[np.ndarray, "one new_tokens width"]:
    """Interpolate position embeddings to ``grid x grid`` patches; the class token's row is kept.

    Bicubic with a = -0.75 and without antialiasing, as `interpolate_pos_encoding` of Hugging
    Face's ViT in torch. Embeddings that do not form a square of patches are returned unchanged.
    """
    patches = positions.shape[1] - 1
    old = math.isqrt(max(patches, 0))
    if old == grid or old == 0 or old**2 != patches:
        return positions
    matrix = _bicubic_matrix(grid, old)
    image = positions[0, 1:].astype(np.float64).reshape(old, old, -1)
    image = np.einsum("ai,bj,ijw->abw", matrix, matrix, image)
    image = image.reshape(1, grid * grid, -1).astype(positions.dtype)
    return np.concatenate([positions[:, :1], image], axis=1)
