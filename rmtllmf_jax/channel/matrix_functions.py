"""Functions of Hermitian matrices with derivatives of every order, right at repeated eigenvalues.

All matrices here commute and are diagonal at the point of evaluation: they are written in the
eigenbasis of one matrix, which stays fixed when that matrix moves. Derivatives then come from the
equation that a function satisfies and not from eigenvectors: R R = X gives the Sylvester equation
R dR + dR R = dX, which in this basis is a division by r_i + r_j and never by a difference of
eigenvalues. The solve is itself differentiable (`jax.lax.custom_linear_solve`), and so on for
every order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Complex, Float, Inexact

from rmtllmf_jax.channel.linalg import eigh, off_zero, product


class Ruled:
    """A function of arrays, or pytrees of them, with the derivative that `defjvp` sets.

    Like `jax.custom_jvp`, which before JAX 0.12 loses its rule where reverse mode passes through
    `scan` or `lax.map`: to hoist invariant parts out of the loop, JAX partially evaluates the
    loop's body and there replaces a call that has a rule by the function's body. The next
    derivative is then that of the body; for constants, such as eigenvalues, it is silently zero. A
    primitive is left alone.

    The first `static` arguments are hashable values and are not differentiated; the rule gets them
    before primals and tangents. Where the rule needs the function's value it calls the function,
    which gives derivatives of every order.
    """

    def __init__(self, function: Callable[..., Any], static: int = 0) -> None:
        self.function, self._static = function, static
        functools.update_wrapper(self, function)

    def defjvp(self, rule: Callable[..., tuple[Any, Any]]) -> None:
        """Set the rule, ``(*static, primals, tangents) -> (value, tangent)``."""
        self.rule = rule

    def __call__(self, *args: Any) -> Any:
        """Return the function's value."""
        static, given = args[: self._static], args[self._static :]
        leaves, tree = jax.tree.flatten(given)
        shape = jax.eval_shape(functools.partial(self.function, *static), *given)
        found = _PRIMITIVE.bind(*leaves, call=_Call(self, static, tree))
        return jax.tree.unflatten(jax.tree.structure(shape), found)


@dataclass(frozen=True)
class _Call:
    """A call of a function on flat arguments, with the axes that `jax.vmap` has added to them."""

    owner: Ruled
    static: tuple
    tree: jax.tree_util.PyTreeDef
    axes: tuple[tuple[int | None, ...], ...] = ()

    def __call__(self, *leaves: Any) -> list[Any]:
        def function(*leaves: Any) -> list[Any]:
            return jax.tree.leaves(self.owner.function(*self.static, *self._args(leaves)))

        for axes in self.axes:
            function = jax.vmap(function, in_axes=axes)
        return function(*leaves)

    def jvp(self, primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        """Values and tangents by the rule."""

        def rule(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
            args = self._args(primals), self._args(tangents)
            value, tangent = self.owner.rule(*self.static, *args)
            return jax.tree.leaves(value), jax.tree.leaves(tangent)

        for axes in self.axes:
            rule = jax.vmap(rule, in_axes=(axes, axes))
        return rule(tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))

    def _args(self, leaves: Any) -> tuple:
        return jax.tree.unflatten(self.tree, leaves)


def _of_batch(leaves: Any, axes: Any, *, call: _Call) -> tuple[list[Any], list[int]]:
    found = _PRIMITIVE.bind(*leaves, call=replace(call, axes=(*call.axes, tuple(axes))))
    return found, [0] * len(found)


_PRIMITIVE = Primitive("ruled")
_PRIMITIVE.multiple_results = True
_PRIMITIVE.def_impl(lambda *leaves, call: jax.jit(call)(*leaves))
_PRIMITIVE.def_abstract_eval(lambda *leaves, call: jax.make_jaxpr(call)(*leaves).out_avals)
ad.primitive_jvps[_PRIMITIVE] = lambda primals, tangents, call: call.jvp(primals, tangents)
batching.primitive_batchers[_PRIMITIVE] = _of_batch
mlir.register_lowering(
    _PRIMITIVE, mlir.lower_fun(lambda *leaves, call: call(*leaves), multiple_results=True)
)


def eigenbasis(
    matrix: Complex[Array, "n n"],
) -> tuple[Float[Array, " n"], Complex[Array, "n n"]]:
    """Eigenvalues, kept off zero, and eigenvectors of a PSD matrix: constants for derivatives."""
    values, vectors = eigh(matrix)
    return off_zero(values), vectors


def own_units(
    gram: Complex[Array, "n n"], *powers: Float[Array, ""]
) -> tuple[Inexact[Array, "..."], ...]:
    """`gram` and the `powers` in units of its mean diagonal: no attack depends on the unit.

    The range of float32 is too small for squares of eigenvalues in watts. The unit is a constant.
    """
    mean = jax.lax.stop_gradient(jnp.mean(jnp.real(jnp.diagonal(gram))))
    unit = jnp.where(mean > 0, mean, 1)
    return gram / unit, *(power / unit for power in powers)


def in_basis(
    matrix: Complex[Array, "n n"], values: Float[Array, " n"], vectors: Complex[Array, "n n"]
) -> Complex[Array, "n n"]:
    """V^H A V for the eigenbasis of A: diagonal to the last bit, with the derivative in A."""
    moved = congruence(vectors.conj().T, (matrix + matrix.conj().T) / 2)
    return with_derivative_of(moved, jnp.diag(values).astype(vectors.dtype))


def in_own_basis(
    matrix: Complex[Array, "n n"],
) -> tuple[Complex[Array, "n n"], Complex[Array, "n n"]]:
    """A PSD matrix in its eigenbasis, and the basis."""
    values, vectors = eigenbasis(matrix)
    return in_basis(matrix, values, vectors), vectors


@Ruled
def with_derivative_of(moved: Array, value: Array) -> Array:
    """`value`, a constant, with the derivative of `moved`, which it equals up to rounding."""
    del moved
    return value


@with_derivative_of.defjvp
def _with_derivative_of_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    return with_derivative_of(*primals), tangents[0]


def congruence(
    matrix: Inexact[Array, "m n"], middle: Inexact[Array, "n n"]
) -> Inexact[Array, "m m"]:
    """A B A^H in full precision."""
    return product(product(matrix, middle), matrix.conj().T)


def divide(
    numerator: Inexact[Array, "n n"], denominator: Inexact[Array, "n n"]
) -> Inexact[Array, "n n"]:
    """N / D of commuting matrices, as the solution X of D X + X D = 2 N; D positive definite."""
    return _sylvester(denominator, 2 * numerator)


def reciprocal(matrix: Inexact[Array, "n n"]) -> Inexact[Array, "n n"]:
    """1 / D of a positive definite matrix, see `divide`."""
    return divide(jnp.eye(len(matrix), dtype=matrix.dtype), matrix)


@Ruled
def square_root(matrix: Inexact[Array, "n n"]) -> Inexact[Array, "n n"]:
    """The positive square root of a positive definite matrix that is diagonal at the point."""
    return jnp.diag(jnp.sqrt(jnp.real(jnp.diagonal(matrix)))).astype(matrix.dtype)


@square_root.defjvp
def _square_root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    root = square_root(*primals)
    return root, _sylvester(root, *tangents)


def positive_part(matrix: Inexact[Array, "n n"]) -> Inexact[Array, "n n"]:
    """[X]_+ of a matrix that is diagonal at the point; smooth where no eigenvalue is zero."""
    return (matrix + _absolute(matrix)) / 2


@Ruled
def _absolute(matrix: Array) -> Array:
    """The positive square root of X X."""
    return jnp.diag(jnp.abs(jnp.real(jnp.diagonal(matrix)))).astype(matrix.dtype)


@_absolute.defjvp
def _absolute_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    size = _absolute(x)
    return size, _sylvester(size, product(x, dx) + product(dx, x))


def _sylvester(a: Array, b: Array) -> Array:
    """X with A X + X A = B for a PSD matrix A that is diagonal at the point."""
    diagonal = jax.lax.stop_gradient(jnp.real(jnp.diagonal(a)))
    pairs = diagonal[:, None] + diagonal
    # Only |X| at X = 0 has a pair of zeros: take its derivative as zero there.
    inverse = jnp.where(pairs > 0, 1 / jnp.where(pairs > 0, pairs, 1), 0)

    def solve(_: object, right: Array) -> Array:
        return right * inverse

    def matvec(x: Array) -> Array:
        return product(a, x) + product(x, a)

    return jax.lax.custom_linear_solve(matvec, b, solve, transpose_solve=solve)
