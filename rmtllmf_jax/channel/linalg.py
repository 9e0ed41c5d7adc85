"""Small Hermitian factorisations, vectorised over the batch.

`jax.numpy.linalg` calls LAPACK once per matrix on a CPU. Jaxlib's kernels split a batch of such
calls over XLA's thread pool and wait for the parts on a thread of that pool: with jaxlib 0.10.2 on
two cores, a program with several independent batched `cholesky` or `eigh` calls (the scenarios of
one configuration are such calls) hangs forever. Hence plain elimination, and a Jacobi eigensolver
in which every operation runs over all matrices at once. It is also more accurate: near and far
users make K a graded matrix. LAPACK finds its small eigenvalues only to eps * lambda_max, Jacobi's
method to eps of themselves (Demmel and Veselic, Jacobi's method is more accurate than QR, 1992).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Inexact

# Matrices a pass on a CPU: the state of a pass (1 KB a matrix for n = 8) stays in the second-level
# cache. No power of two, for which the rows of the state would fall on the same cache lines.
_CPU_PASS = 504
# Mean eigenvalue of what Jacobi's method works on: squares of the least and the largest are numbers
# in float32. A power of four, which rounds nothing.
_UNIT = 2.0**44
# Five sweeps or six do; more only for input that is not finite.
_MOST_SWEEPS = 12

_Columns = tuple[Array, Array]
"""Real and imaginary part, each (columns, rows, batch)."""


def product(left: Inexact[Array, "*m k"], right: Inexact[Array, "k n"]) -> Inexact[Array, "*m n"]:
    """A B in full precision, which accelerators do not give by default."""
    return jnp.matmul(left, right, precision="highest")


def ldl(
    matrix: Inexact[Array, "n n"],
) -> tuple[Float[Array, " n"], Inexact[Array, "n n"]]:
    """Pivots d and the unit lower triangular E with E A E^H = diag(d), A positive definite.

    Plain elimination: no pivoting, which a positive definite matrix does not need. The pivots are
    the squared diagonal of the Cholesky factor, E the inverse of the factor with unit diagonal.
    """
    n = matrix.shape[0]

    def eliminate(m: Array, k: Array) -> tuple[Array, Array]:
        pivot = jnp.real(m[k, k])
        below = jnp.arange(n) > k
        factor = jnp.where(below, m[:, k] / pivot, 0)
        # The columns that are done hold E, which takes part in the row operations.
        m = (m - factor[:, None] * m[k]).at[:, k].set(jnp.where(below, -factor, m[:, k]))
        return m, pivot

    eliminated, pivots = jax.lax.scan(eliminate, matrix, jnp.arange(n))
    return pivots, jnp.tril(eliminated, -1) + jnp.eye(n, dtype=matrix.dtype)


@jax.custom_jvp
def pivots(matrix: Inexact[Array, "n n"]) -> Float[Array, " n"]:
    """Pivots of a Hermitian positive definite matrix; their product is its determinant."""
    return ldl(matrix)[0]


@pivots.defjvp
def _pivots_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    values, e = ldl(*primals)
    moved = product(e, *tangents)
    return values, jnp.real(jnp.sum(moved * e.conj(), axis=1))


@jax.custom_jvp
def inverse(matrix: Inexact[Array, "n n"]) -> Inexact[Array, "n n"]:
    """Inverse of a Hermitian positive definite matrix."""
    values, e = ldl(matrix)
    return product(e.conj().T / values, e)


@inverse.defjvp
def _inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverted = inverse(*primals)
    moved = product(inverted, *tangents)
    return inverted, -product(moved, inverted)


def cholesky(
    matrix: Complex[Array, "n n"], right: Complex[Array, "n m"]
) -> tuple[Complex[Array, "n n"], Complex[Array, "n m"]]:
    """L and L^-1 B for a Hermitian positive definite L L^H, by elimination of [A | B]."""

    def eliminate(m: Array, k: Array) -> tuple[Array, Array]:
        root = jnp.sqrt(jnp.real(m[k, k]))
        row = m[k] / root
        return m - (m[:, k] / root)[:, None] * row, row

    size = matrix.shape[0]
    both = jnp.concatenate([matrix, right], axis=1)
    _, rows = jax.lax.scan(eliminate, both, jnp.arange(size))
    return jnp.triu(rows[:, :size]).conj().T, rows[:, size:]


def correlation_root(matrix: Inexact[Array, "n n"]) -> Inexact[Array, "n n"]:
    """L with L L^H = R for a correlation matrix R, singular ones included, by outer products.

    Smooth at full rank, even at repeated eigenvalues. A rank-deficient R is reproduced only up to
    the root of the rounding error.
    """
    least = matrix.shape[0] * jnp.finfo(matrix.dtype).eps

    def peel(rest: Array, k: Array) -> tuple[Array, Array]:
        pivot = jnp.real(rest[k, k])
        # The inner choice keeps the derivative of the root finite where the outer one drops it.
        safe = jnp.where(pivot > least, pivot, 1)
        column = jnp.where(pivot > least, rest[:, k] / jnp.sqrt(safe), 0)
        return rest - column[:, None] * column.conj(), column

    _, columns = jax.lax.scan(peel, matrix, jnp.arange(matrix.shape[0]))
    return columns.T


@jax.jit
def eigh(
    matrix: Complex[Array, "n n"],
) -> tuple[Float[Array, " n"], Complex[Array, "n n"]]:
    """Eigenvalues in no particular order, and eigenvectors as columns, of a Hermitian PSD matrix.

    Every eigenvalue of a well-scaled graded matrix D A D is right to a few eps of itself. Those
    below eps^3 times the mean come out at about that size, with eigenvectors that complete the
    basis, so rank-deficient matrices need no special care. Constant for differentiation: no
    derivative passes through.
    """
    values, vectors = _eigh_of_batch(jax.lax.stop_gradient(matrix)[None])
    return values[0], vectors[0]


@jax.jit
def eigh_of_root(
    root: Complex[Array, "n n"],
) -> tuple[Float[Array, " n"], Complex[Array, "n n"]]:
    """Eigenvalues and eigenvectors of R R^H, from R itself, as constants for derivatives.

    An eigenvalue is right to eps of the root of the largest, not of the largest, which is what a
    product in float32 loses from 60 dB on. R is lower triangular; where it is singular, its
    diagonal is kept off zero by an amount no larger than the rounding error.
    """
    root = jax.lax.stop_gradient(root)
    eps = jnp.finfo(root.dtype).eps
    diagonal = jnp.diagonal(root)
    least = eps * jnp.maximum(jnp.max(jnp.abs(root)), jnp.finfo(root.dtype).tiny ** 0.25)
    small = jnp.abs(diagonal) < least
    root = root + jnp.diag(jnp.where(small, least - diagonal, 0))
    values, vectors = _eigh_of_root_batch(root[None])
    return values[0], vectors[0]


def off_zero(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """Eigenvalues or powers >= 0, raised above zero far below the rounding of any other case."""
    limits = jnp.finfo(values.dtype)
    return jnp.maximum(values, jnp.maximum(limits.eps**3 * jnp.max(values), limits.tiny**0.5))


def _over_batch(one_pass: Callable[[Array], tuple[Array, Array]]) -> Callable:
    """A solver over a leading axis, made from one pass; `vmap` merges its axis with that one."""

    def in_passes(matrices: Array) -> tuple[Array, Array]:
        batch, n = matrices.shape[:2]
        passes = -(-batch // _CPU_PASS)
        size = -(-batch // passes)
        padding = [(0, passes * size - batch), (0, 0), (0, 0)]
        stacked = jnp.pad(matrices, padding).reshape(passes, size, n, n)
        values, vectors = jax.lax.map(one_pass, stacked)
        return values.reshape(-1, n)[:batch], vectors.reshape(-1, n, n)[:batch]

    @jax.custom_batching.custom_vmap
    def solve(matrices: Array) -> tuple[Array, Array]:
        return jax.lax.platform_dependent(matrices, cpu=in_passes, default=one_pass)

    @solve.def_vmap
    def solve_batches(
        axis_size: int, in_batched: list[bool], matrices: Array
    ) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
        del in_batched  # one argument: it is batched, or this would not be called
        merged = solve(matrices.reshape(-1, *matrices.shape[2:]))
        split = jax.tree.map(lambda leaf: leaf.reshape(axis_size, -1, *leaf.shape[1:]), merged)
        return split, (True, True)

    return solve


def _jacobi_pass(matrices: Array) -> tuple[Array, Array]:
    """One-sided Jacobi on the columns of the Cholesky factor (Veselic and Hari, 1989).

    A = C C^H, and rotations make the columns of C V orthogonal: these are the eigenvectors times
    the square roots of the eigenvalues. The batch axis is last from here on, so that every
    operation is vectorised.
    """
    diagonal = jnp.real(jnp.diagonal(matrices, axis1=1, axis2=2))
    scale = jnp.maximum(jnp.mean(diagonal, axis=1), jnp.finfo(diagonal.dtype).tiny)
    scaled = jnp.moveaxis(matrices / scale[:, None, None] * _UNIT, 0, -1)
    values, vectors = _of_columns(_cholesky_columns(scaled))
    return values / _UNIT * scale[:, None], vectors


def _root_pass(roots: Array) -> tuple[Array, Array]:
    """One-sided Jacobi on the columns of a given factor."""
    size = jnp.max(jnp.abs(roots), axis=(1, 2))
    columns = jnp.moveaxis(roots / size[:, None, None] * _UNIT**0.5, (0, 1, 2), (2, 1, 0))
    values, vectors = _of_columns(columns)
    return values / _UNIT * jnp.square(size)[:, None], vectors


def _of_columns(columns: Array) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors of C C^H from C as (columns, rows, batch)."""
    n = columns.shape[0]
    columns = jnp.pad(columns, [(0, n % 2), (0, 0), (0, 0)])
    columns = _orthogonalise(columns.real, columns.imag)[:n]
    values = jnp.sum(jnp.square(jnp.abs(columns)), axis=1)
    vectors = jnp.moveaxis(columns / jnp.sqrt(values)[:, None], (0, 1), (2, 1))
    return values.T, vectors


_eigh_of_batch = _over_batch(_jacobi_pass)
_eigh_of_root_batch = _over_batch(_root_pass)


def _cholesky_columns(matrix: Array) -> Array:
    """Columns C with A = C C^H, (columns, rows, batch).

    Cholesky's method pivots on the largest remaining diagonal entry, which graded and
    rank-deficient matrices need; the rows stay in place. A pivot below the rounding error of its
    diagonal entry is set to that error. The entries below it are rounding errors too, which as a
    column would grow from step to step.
    """
    n, batch = matrix.shape[1:]
    eye = jnp.eye(n, dtype=bool)[:, :, None]
    eps = jnp.finfo(matrix.real.dtype).eps

    def diagonal_of(matrix: Array) -> Array:
        return jnp.sum(jnp.where(eye, matrix.real, 0), axis=1)

    least = jnp.maximum(n * eps * diagonal_of(matrix), eps**3 * _UNIT)

    def eliminate(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        rest, free = state
        left = jnp.where(free, diagonal_of(rest), -jnp.inf)
        chosen = jnp.arange(n)[:, None] == jnp.argmax(left, axis=0)
        pivot = jnp.sum(jnp.where(chosen, jnp.maximum(left, least), 0), axis=0)
        lost = jnp.any(chosen & (left <= least), axis=0)
        column = jnp.sum(jnp.where(chosen, rest, 0), axis=1)
        column = jnp.where(free & ~lost, column, 0)
        column = jnp.where(chosen, pivot, column) / jnp.sqrt(pivot)
        return (rest - column[:, None] * column.conj(), free & ~chosen), column

    start = matrix, jnp.ones((n, batch), bool)
    _, columns = jax.lax.scan(eliminate, start, length=n)
    return columns


def _orthogonalise(real: Array, imag: Array) -> Array:
    """Orthogonalise columns in pairs: a round rotates n / 2 disjoint pairs, a sweep every pair."""
    half = real.shape[0] // 2

    def one_round(state: tuple[_Columns, _Columns, Array], _: None) -> tuple[tuple, None]:
        left, right, unfinished = state
        left, right, large = _rotate(left, right)
        turned = [_next_pairs(x, y) for x, y in zip(left, right, strict=True)]
        left, right = zip(*turned, strict=True)
        return (left, right, unfinished | large), None

    def sweep(state: tuple[Array, Array, tuple]) -> tuple[Array, Array, tuple]:
        count, _, (left, right) = state
        none = jnp.zeros((half, real.shape[-1]), bool)
        rounds = 2 * half - 1
        (left, right, large), _ = jax.lax.scan(one_round, (left, right, none), None, length=rounds)
        return count + 1, jnp.any(large), (left, right)

    def goes_on(state: tuple[Array, Array, tuple]) -> Bool[Array, ""]:
        return state[1] & (state[0] < _MOST_SWEEPS)

    pairs = (real[:half], imag[:half]), (real[half:], imag[half:])
    start = jnp.array(0), jnp.array(True), pairs
    _, _, (left, right) = jax.lax.while_loop(goes_on, sweep, start)
    real, imag = (jnp.concatenate(sides) for sides in zip(left, right, strict=True))
    return jax.lax.complex(real, imag)


def _rotate(left: _Columns, right: _Columns) -> tuple[_Columns, _Columns, Array]:
    """The rotation that makes each left column orthogonal to its right one.

    Also returns which pairs were not yet orthogonal to rounding and so need another sweep.
    """
    (xr, xi), (yr, yi) = left, right
    limits = jnp.finfo(xr.dtype)

    def inner(product: Callable[[int], Array]) -> Array:
        # Unrolled: XLA does not make a vector loop of a sum over a leading axis.
        return functools.reduce(jnp.add, map(product, range(xr.shape[1])))

    x_norm = inner(lambda k: xr[:, k] ** 2 + xi[:, k] ** 2)
    y_norm = inner(lambda k: yr[:, k] ** 2 + yi[:, k] ** 2)
    zr = inner(lambda k: xr[:, k] * yr[:, k] + xi[:, k] * yi[:, k])
    zi = inner(lambda k: xr[:, k] * yi[:, k] - xi[:, k] * yr[:, k])
    squared = zr**2 + zi**2

    # tan of the angle, the smaller root, with the phase of x^H y. tiny: orthogonal and as long.
    gap = y_norm - x_norm
    reach = jnp.abs(gap) + jnp.sqrt(gap**2 + 4 * squared) + limits.tiny
    tan = [jnp.where(gap < 0, -2.0, 2.0) * part / reach for part in (zr, zi)]
    cos = 1 / jnp.sqrt(1 + tan[0] ** 2 + tan[1] ** 2)
    c, sr, si = (part[:, None] for part in (cos, cos * tan[0], cos * tan[1]))
    left = c * xr - (sr * yr + si * yi), c * xi - (sr * yi - si * yr)
    right = c * yr + (sr * xr - si * xi), c * yi + (sr * xi + si * xr)
    rounding = xr.shape[1] * limits.eps
    return left, right, squared > rounding**2 * x_norm * y_norm


def _next_pairs(left: Array, right: Array) -> tuple[Array, Array]:
    """One turn of the round-robin tournament: the first column stays, the others move on."""
    if len(left) == 1:
        return left, right
    moved = jnp.concatenate([left[:1], right[:1], left[1:-1]])
    return moved, jnp.concatenate([right[1:], left[-1:]])
