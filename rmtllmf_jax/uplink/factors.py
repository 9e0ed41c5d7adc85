"""Two factors of a matrix, and how they are sent when leaves are read one at a time, from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from rmtllmf_jax.fusion.similarity import exact_squares
from rmtllmf_jax.uplink.eigen import eigh_in_turn
from rmtllmf_jax.uplink.streams import Powers, Rows, Sending

Size = tuple[int, int, int]
Sizes = Mapping[str, Size]
"""Rows, rank and columns of matrices, by the path of their leaves."""

_PROBES = 128  # columns that are tried to span a matrix
_EXACT = 3e-6  # of the norm of a matrix that float32 made of fewer columns than that
_ROOM = 2**28  # bytes of factors that are kept between the passes


def balanced(
    matrix: Float[Array, "rows columns"], rank: int
) -> tuple[Float[Array, "rows rank"], Float[Array, "rank columns"]]:
    """Return b and a of the nearest product ``b a`` of a rank, with equal norms in each direction:
    singular vectors times the square roots of singular values.

    In each direction the largest entry along the longer side is positive. Computed from the Gram
    matrix of the shorter side: singular values below 1e-3 of the largest are inexact in float32.
    """
    rows, columns = matrix.shape
    if rows > columns:
        b, a = balanced(matrix.T, rank)
        return a.T, b.T
    with jax.default_matmul_precision("highest"):
        _, basis = eigh_in_turn(matrix @ matrix.T)
        left = basis[:, ::-1][:, :rank]
        right = left.T @ matrix
        root = jnp.sqrt(jnp.linalg.norm(right, axis=1))
        largest = jnp.take_along_axis(right, jnp.argmax(jnp.abs(right), axis=1)[:, None], axis=1)
        sign = jnp.where(largest < 0, -1, 1)
        return left * (root * sign[:, 0]), right * sign / jnp.where(root > 0, root, 1)[:, None]


def factor_shapes(sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Return the shapes of the factors, by the paths that they are sent under."""
    return {
        f"{path}/{side}": shape
        for path, (rows, rank, columns) in sizes.items()
        for side, shape in (("a", (rank, columns)), ("b", (rows, rank)))
    }


def product_variance(noise: Mapping[str, Any], squares: Mapping[str, Any], size: Size) -> Any:
    """Return the mean power of a product's error, from the factors' `noise` and summed squares.

    Errors on `a` and `b` are independent, and the same on all entries of a factor.
    """
    rows, rank, columns = size
    of_a, of_b = noise["a"], noise["b"]
    each = of_a * squares["b"] / rows + of_b * squares["a"] / columns
    return each + of_a * of_b * rank


def factors_of(
    matrix: Float[np.ndarray, "rows columns"], rank: int
) -> tuple[Float[np.ndarray, "rows rank"], Float[np.ndarray, "rank columns"]]:
    """Return `balanced` of a matrix, fast if it is large and of low rank, as LoRA's are.

    A few random combinations of its columns then span it, and their coordinates are factored.
    """
    rows, columns = matrix.shape
    if rows > columns:
        b, a = factors_of(matrix.T, rank)
        return a.T, b.T
    span = _span(matrix, max(_PROBES, 2 * rank))
    if span is None:
        return _as_numpy(_balanced(matrix, rank))
    b, a = _as_numpy(_balanced(span.T @ matrix, rank))
    return span @ b, a


def _span(matrix: np.ndarray, most: int) -> np.ndarray | None:
    """Return an orthonormal basis of the columns' span, if it is far smaller than the row count.

    Halko, Martinsson and Tropp, SIAM Review 53 (2011), algorithm 4.1.
    """
    if len(matrix) < 2 * most:
        return None
    probes = np.random.default_rng(0).standard_normal((matrix.shape[1], most), np.float32)
    basis, _ = np.linalg.qr(matrix @ probes)
    rest = matrix - basis @ (basis.T @ matrix)
    return basis if np.linalg.norm(rest) <= _EXACT * np.linalg.norm(matrix) else None


_balanced = jax.jit(balanced, static_argnums=1)


def _as_numpy(pair: tuple[Array, Array]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(pair[0]), np.asarray(pair[1])


class FactorStream:
    """Factors of matrices over the stream of what carries them; other leaves arrive as zeros."""

    def __init__(self, sizes: Sizes, carrier: Any, sending: Sending) -> None:
        self._sizes, self._sending = sizes, sending
        self._found: dict[str, dict[str, Rows]] = {}
        self._room = _ROOM
        self._mean_squares: Float64[np.ndarray, " users"] | None = None
        self.kappa: Float[np.ndarray, " users"] | None = None
        how = replace(sending, shapes=factor_shapes(sizes), leaves=self._leaves, kappa=self._scaled)
        self._carried = carrier.stream(how)

    def __call__(self, name: str, rows: Rows) -> Powers:
        """Send the factors of a leaf."""
        nothing = np.zeros(len(rows), np.float32)
        if name not in self._sizes:
            rows[...] = 0
            return Powers(nothing, nothing)
        height, _, width = self._sizes[name]
        sent = self._factors(name, rows)
        square = {side: exact_squares(each) for side, each in sent.items()}
        overlaps = (sent["b"].swapaxes(1, 2) @ sent["b"], sent["a"] @ sent["a"].swapaxes(1, 2))
        energy = np.einsum("urs,urs->u", *overlaps, dtype=np.float64) / (height * width)
        arrived = {side: each.copy() for side, each in sent.items()}
        noise = {side: self._carried(f"{name}/{side}", each) for side, each in arrived.items()}
        rows[...] = (arrived["b"] @ arrived["a"]).reshape(rows.shape)
        of_factors = {side: each.variance for side, each in noise.items()}
        variance = product_variance(of_factors, square, self._sizes[name])
        return Powers(variance.astype(np.float32), energy.astype(np.float32))

    def _leaves(self, what: str) -> Iterator[tuple[str, Rows]]:
        """Read all factors; the leaves' files are read only where the factors are not known."""
        if self._mean_squares is not None and self._found.keys() == self._sizes.keys():
            for name in sorted(self._found):
                yield from _copies(name, self._found[name])
            return
        total, size = np.zeros(self._sending.users), 0
        for name, rows in self._sending.leaves(what):
            total += exact_squares(rows)
            size += rows[0].size
            if name in self._sizes:
                yield from _copies(name, self._factors(name, rows))
        self._mean_squares = total / size

    def _factors(self, name: str, rows: Rows) -> dict[str, Rows]:
        if name in self._found:
            return self._found[name]
        height, rank, width = self._sizes[name]
        pairs = [factors_of(row.reshape(height, width), rank) for row in rows]
        found = {"a": np.stack([a for _, a in pairs]), "b": np.stack([b for b, _ in pairs])}
        size = sum(each.nbytes for each in found.values())
        if size <= self._room:
            self._found[name] = found
            self._room -= size
        return found

    def _scaled(self, mean_squares: Any) -> Float[np.ndarray, " users"]:
        """The noise scale of the factors' entries; symbols keep unit power."""
        sent = mean_squares()  # a pass that has measured the whole vectors too
        whole = self._mean_squares
        assert whole is not None
        self.kappa = self._sending.kappa(lambda: whole)
        return (self.kappa * np.sqrt(sent / np.where(whole > 0, whole, 1))).astype(np.float32)


def _copies(name: str, factors: dict[str, Rows]) -> Iterator[tuple[str, Rows]]:
    for side, each in factors.items():
        yield f"{name}/{side}", each.copy()
