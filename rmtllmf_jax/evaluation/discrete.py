"""Discrete choices: values that determine a choice and cannot be differentiated through it."""

from __future__ import annotations

from functools import partial

import jax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Inexact

from rmtllmf_jax.common.errors import InputError


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def discrete(choice: str, x: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """Return `x`, from which `choice` is about to be made (an argmax, an order of users).

    The derivative of what follows would be zero, or would silently ignore the choice.

    **Raises:** `InputError` that names the choice if a derivative is requested (`jax.grad`,
    `jax.jvp`, ... while they trace; not if `x` is a constant to them).

    >>> import jax.numpy as jnp
    >>> int(jnp.argmax(discrete("the largest", jnp.array([1.0, 3.0, 2.0]))))
    1
    """
    return x


def _refuse(choice: str, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    if not isinstance(tangents[0], SymbolicZero):
        raise InputError(
            f"{choice} is a discrete choice, which has no derivative: hold it fixed, or "
            "differentiate something smooth in its place."
        )
    return primals[0], tangents[0]


discrete.defjvp(_refuse, symbolic_zeros=True)
