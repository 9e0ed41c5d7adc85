"""Small Hermitian factorisations that are safe to batch.

jaxlib's CPU kernels for batched LAPACK calls split the batch over XLA's thread pool and wait for
the parts on a thread of that pool. When as many of them run at once as there are threads, each
waits for a thread that another holds, for ever: with jaxlib 0.10.2 on two cores, a program with
several independent batched `cholesky` or `eigh` calls hangs (the scenarios of one cell are such
calls). Hence plain elimination here, and eigenvalues one matrix at a time on the CPU.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float


@jax.jit
def invert_positive(
    matrix: Complex[Array, "n n"],
) -> tuple[Float[Array, " n"], Complex[Array, "n n"]]:
    """Pivots and inverse of a Hermitian positive definite matrix, by Gauss-Jordan elimination.

    The pivots are the squared diagonal of the Cholesky factor, so that their product is the
    determinant. No pivoting, which a positive definite matrix does not need.
    """

    def eliminate(m: Array, k: Array) -> tuple[Array, Array]:
        pivot = jnp.real(m[k, k])
        row, column = m[k] / pivot, m[:, k]
        m = m - column[:, None] * row
        m = m.at[k].set(row).at[:, k].set(-column / pivot).at[k, k].set(1 / pivot)
        return m, pivot

    inverse, pivots = jax.lax.scan(eliminate, matrix, jnp.arange(matrix.shape[0]))
    return pivots, inverse


@jax.jit
def eigh(
    matrix: Complex[Array, "n n"],
) -> tuple[Float[Array, " n"], Complex[Array, "n n"]]:
    """Ascending eigenvalues, and eigenvectors as columns, of a Hermitian matrix."""
    return jax.lax.platform_dependent(matrix, cpu=_one_by_one, default=_batched)


def _batched(matrix: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


_one_by_one = jax.custom_batching.sequential_vmap(_batched)
