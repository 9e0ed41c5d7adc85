"""RegMean: linear layers with the outputs nearest to those of every task's own layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.common.errors import InputError, require_non_negative
from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    inputs_first,
    merge_leaves,
    one_where_zero,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.rules.method import MergeMethod
from rmtllmf_jax.fusion.trees import check_stacked, leaves_by_path


@dataclass(frozen=True)
class RegMean(MergeMethod):
    """``(sum_q w_q G_q)^-1 sum_q w_q G_q tau_q`` for matrices with G_q, else the average.

    It minimises ``sum_q w_q ||X_q W - X_q W_q||^2``, X_q the inputs of the layer on task q: with
    scale 1 the merged model has that W. Before solving, entries of G_q off the diagonal are
    multiplied by alpha = `off_diagonal`, and `ridge` times the mean diagonal is added to it.
    """

    name: ClassVar[str] = "regmean"
    title: ClassVar[str] = "RegMean"
    reference: ClassVar[str] = "Jin et al., arXiv 2212.09849"
    per_leaf: ClassVar[bool] = True
    is_mean: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("grams",)
    scales: ClassVar[tuple[float, ...]] = (1.0,)

    off_diagonal: float = 0.9
    """What the Gram matrices' entries off the diagonal are multiplied by, 0 to 1 (alpha)."""
    ridge: float = 1e-6
    """Added to the diagonal, times its mean: inputs that no task sees are averaged."""
    input_axis: int | None = None
    """Axis of the inputs in a matrix: 0 for kernels (in, out), 1 for torch's weights (out, in);
    none: 1 for leaves that are called `weight`, 0 for others."""
    weights: tuple[float, ...] = ()
    """One weight per task vector, times its Gram matrix; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        require_non_negative("ridge", self.ridge)
        if not 0 <= self.off_diagonal <= 1:
            raise InputError(f"off_diagonal must be from 0 to 1, got {self.off_diagonal!r}.")
        if self.input_axis not in (0, 1, None):
            raise InputError(f"input_axis must be 0, 1 or none, got {self.input_axis!r}.")

    def __call__(  # type: ignore[override]  # it needs more
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        grams: Mapping[str, Float[Array, "users inputs inputs"]],
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector, see `MergeMethod`.

        `grams`: ``G_q = X_q^T X_q`` of a layer's inputs, (users, in, in), by the path of its
        matrix; leaves without one are averaged.

        **Raises:** `InputError` also if a Gram matrix belongs to no leaf, or its shape does not
        match the inputs of its matrix.
        """
        users = check_stacked(stacked)
        w = user_weights(self.weights, users, weights)
        self._check(stacked, grams, users)
        share = w / one_where_zero(jnp.sum(w))

        def merge(path: str, leaf: Array) -> Array:
            if path not in grams:
                return weighted(share, leaf)
            own = grams[path].astype(leaf.dtype)
            if self._axis(path) == 1:
                return self._solve(own, leaf.mT, w).T
            return self._solve(own, leaf, w)

        return merge_leaves(merge, stacked)

    def _axis(self, path: str) -> int:
        return self.input_axis if self.input_axis is not None else 1 - inputs_first(path)

    def _solve(self, grams: Array, kernels: Array, w: Array) -> Array:
        diagonal = jnp.eye(grams.shape[-1], dtype=grams.dtype)
        grams = grams * jnp.where(diagonal > 0, 1, self.off_diagonal)
        mean = jnp.mean(jnp.diagonal(grams, axis1=1, axis2=2))
        # A layer that sees nothing at all still needs something to divide by.
        grams = grams + jnp.where(mean > 0, self.ridge * mean, 1) * diagonal
        products = jnp.matmul(grams, kernels, precision="highest")
        return jnp.linalg.solve(weighted(w, grams), weighted(w, products))

    def _check(self, stacked: PyTree[Array], grams: Mapping[str, Array], users: int) -> None:
        leaves = leaves_by_path(stacked)
        for path, gram in grams.items():
            if path not in leaves:
                raise InputError(
                    f"grams: {path} is not a leaf of the task vectors: {', '.join(leaves)}."
                )
            shape = leaves[path].shape
            if len(shape) != 3:
                raise InputError(f"grams: {path} has the shape {shape[1:]}, which is not a matrix.")
            inputs = shape[1 + self._axis(path)]
            if gram.shape != (users, inputs, inputs):
                raise InputError(
                    f"grams: {path} needs the shape {(users, inputs, inputs)} (users, in, in), got "
                    f"{gram.shape}; its matrix is {shape[1:]} with inputs on axis "
                    f"{self._axis(path)}."
                )
