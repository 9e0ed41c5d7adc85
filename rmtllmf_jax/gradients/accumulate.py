"""Sums over many terms whose derivative costs the memory of one term.

Reverse mode through a loop keeps what every turn computed until the last one is done: for an
evaluation all activations of all images. Rematerialisation (`jax.checkpoint`) keeps less and
computes every turn again. For a sum neither is needed: the gradient of each term can be taken and
added up while its turn lasts. That is gradient accumulation as training does it, but as the
derivative rule of a pure function, so that `jax.grad`, `jax.jvp`, `jax.hessian` and `jax.vmap` go
through.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.common.errors import InputError

Term = Callable[[PyTree, PyTree, PyTree], Float[Array, ""]]
"""`(parameters, constants, x) -> a scalar`, pure."""


def accumulated_sum(
    term: Term, parameters: PyTree, constants: PyTree, xs: PyTree[Array]
) -> Float[Array, ""]:
    """Return ``sum_x term(parameters, constants, x)`` over the leading axis of `xs`, one by one.

    A derivative in `parameters` takes one pass, with the memory of one term and one gradient: the
    terms' activations are dropped as the sum goes on, and nothing is computed twice.

    **Arguments:**

    - `term`: the same object compiles once. It may close over no traced value.
    - `constants`: what all terms share and nothing is differentiated in.

    **Raises:** `InputError` where a derivative in `constants` or `xs` is asked for.
    """
    return _sum(term, parameters, constants, xs)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum(term: Term, parameters: PyTree, constants: PyTree, xs: PyTree) -> Array:
    return _scan(lambda x: term(parameters, constants, x), xs)


def _sum_jvp(term: Term, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    parameters, constants, xs = primals
    if any(map(_moves, _tangents((tangents[1], tangents[2])))):
        raise InputError(
            "accumulated_sum has derivatives in its parameters alone: what is to be differentiated "
            "cannot be among the constants or the terms' own data."
        )
    leaves, tree = jax.tree.flatten(parameters)
    slopes = _tangents(tangents[0])
    moving = [place for place, slope in enumerate(slopes) if _moves(slope)]

    def of_moving(chosen: list[Array], x: PyTree) -> Array:
        every = list(leaves)
        for place, leaf in zip(moving, chosen, strict=True):
            every[place] = leaf
        return term(jax.tree.unflatten(tree, every), constants, x)

    here = [leaves[place] for place in moving]
    total, gradient = _scan(lambda x: jax.value_and_grad(of_moving)(here, x), xs)
    change = jnp.zeros_like(total)
    for part, place in zip(gradient, moving, strict=True):
        change += jnp.real(jnp.sum(part * slopes[place]))
    return total, change


_sum.defjvp(_sum_jvp, symbolic_zeros=True)


def _scan(step: Callable[[PyTree], Any], xs: PyTree) -> Any:
    """Return the sum of what `step` returns, over the leading axis of `xs`."""
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    shapes = jax.eval_shape(step, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total: PyTree, x: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, step(x)), None

    return jax.lax.scan(add, zeros, xs)[0]


def _tangents(tree: PyTree) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero)
