"""Eigenvectors of many matrices in one compiled program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_batching.sequential_vmap
def eigh_in_turn(gram: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """`jnp.linalg.eigh`, under `vmap` one after the other.

    Many batches of them in one program can deadlock, as happened on a CPU with two cores, jax 0.10.
    """
    values, basis = jnp.linalg.eigh(gram)
    return values, basis
