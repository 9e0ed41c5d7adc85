"""Sums over many terms whose derivative costs the memory of one term.

Reverse mode through a loop keeps what every iteration computed until the last one is done: for an
evaluation, all activations of all images. Rematerialisation (`jax.checkpoint`) keeps less and
computes every iteration again. A sum needs neither: the gradient of each term can be taken and
added up within its iteration. This is gradient accumulation as in training, but as the derivative
rule of a pure function, so that `jax.grad`, `jax.jvp`, `jax.hessian` and `jax.vmap` work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    terms' activations are dropped as the sum proceeds, and nothing is computed twice.

    **Arguments:**

    - `term`: the same object compiles once. It must not close over traced values.
    - `constants`: shared by all terms and not differentiated.

    **Raises:** `InputError` where a derivative in `constants` or `xs` is requested.
    """
    flat = [jax.tree.flatten(tree) for tree in (parameters, constants, xs)]
    whole = _Whole(term, tuple(tree for _, tree in flat))
    return _sum(whole, *(leaves for leaves, _ in flat))


@dataclass(frozen=True)
class _Whole:
    """A term as a function of the leaves of its arguments, as a derivative rule sees no trees."""

    term: Term
    trees: tuple[jax.tree_util.PyTreeDef, ...]

    def __call__(self, *leaves: list) -> Float[Array, ""]:
        return self.term(*map(jax.tree.unflatten, self.trees, leaves))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum(whole: _Whole, parameters: list, constants: list, xs: list) -> Array:
    return _scan(lambda shared, x: whole(parameters, shared, x), constants, xs)


def _sum_jvp(whole: _Whole, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    parameters, constants, xs = primals
    slopes, *others = tangents
    if any(_moves(slope) for part in others for slope in part):
        raise InputError(
            "accumulated_sum has derivatives only in its parameters: values to differentiate by "
            "cannot be among the constants or the terms' own data."
        )
    moving = [place for place, slope in enumerate(slopes) if _moves(slope)]

    def of_moving(chosen: list[Array], shared: list[Array], x: list[Array]) -> Array:
        every = list(parameters)
        for place, leaf in zip(moving, chosen, strict=True):
            every[place] = leaf
        return whole(every, shared, x)

    here = [parameters[place] for place in moving]
    total, gradient = _scan(partial(jax.value_and_grad(of_moving), here), constants, xs)
    change = jnp.zeros_like(total)
    for part, place in zip(gradient, moving, strict=True):
        change += jnp.real(jnp.sum(part * slopes[place]))
    return total, change


_sum.defjvp(_sum_jvp, symbolic_zeros=True)


def _scan(step: Callable[[PyTree, PyTree], Any], shared: PyTree, xs: PyTree) -> Any:
    """Return the sum of what `step` returns, over the leading axis of `xs`."""
    step = jax.jit(step)  # traced once for its shapes and for the loop
    first = jax.tree.map(lambda leaf: leaf[0], xs)
    shapes = jax.eval_shape(step, shared, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total: PyTree, x: PyTree) -> tuple[PyTree, None]:
        # Tied to the turn: what follows from shared data alone (all images of all batches as
        # numbers, in a loop over draws) would be computed and kept before the loop.
        here = jax.lax.optimization_barrier((shared, x))
        return jax.tree.map(jnp.add, total, step(*here)), None

    return jax.lax.scan(add, zeros, xs)[0]


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero)
