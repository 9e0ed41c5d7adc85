"""Discrete choices: values that determine a choice and cannot be differentiated through it."""

from __future__ import annotations

from functools import partial

import jax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Inexact

from rmtllmf_jax.common.errors import InputError


def discrete(choice: str, x: Inexact[Array, "*shape"], instead: str) -> Inexact[Array, "*shape"]:
    """Return `x`, from which `choice` is about to be made (an argmax, an order of users).

    The derivative of what follows would be zero, or would silently ignore the choice.

    **Raises:** `InputError` that names the choice, and what to do `instead`, if a derivative is
    requested (`jax.grad`, `jax.jvp`, ... while they trace; not if `x` is a constant to them).

    >>> import jax.numpy as jnp
    >>> int(jnp.argmax(discrete("the largest", jnp.array([1.0, 3.0, 2.0]), "hold it")))
    1
    """
    return _discrete(choice, instead, x)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _discrete(choice: str, instead: str, x: Array) -> Array:
    return x


def _refuse(
    choice: str, instead: str, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    if not isinstance(tangents[0], SymbolicZero):
        raise InputError(f"{choice} is a discrete choice, which has no derivative: {instead}.")
    return primals[0], tangents[0]


_discrete.defjvp(_refuse, symbolic_zeros=True)
