"""kappa, the scale between unit-power symbols and parameters: per user, or per leaf and user."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.fusion import rms

DEFAULT_C0_DB = -31.0
"""Parameter-domain SNR in dB of a user with MSE 1, fitted to the paper's SNRs."""


def kappa_from_c0(
    stacked: PyTree[Float[Array, "users ..."]], c0_db: float | Float[Array, ""] = DEFAULT_C0_DB
) -> Float[Array, " users"]:
    """Return ``kappa_q = rms(tau_q) 10^(-c0/20)``.

    A user with MSE mu then has the parameter-domain SNR ``-10 log10(mu) + c0`` dB.

    >>> import jax.numpy as jnp
    >>> kappa_from_c0({"w": jnp.array([[1.0, 7.0]])}, c0_db=-20.0).tolist()      # 10 x the rms
    [50.0]
    """
    return rms(stacked) * 10.0 ** (-c0_db / 20)


def kappa_per_leaf(
    stacked: PyTree[Float[Array, "users ..."]], c0_db: float | Float[Array, ""] = DEFAULT_C0_DB
) -> PyTree[Float[Array, " users"]]:
    """Return a kappa for each leaf and user, normalised by the leaf's own rms.

    Models a transmitter that normalises every parameter block to unit power.

    >>> import jax.numpy as jnp
    >>> kappa = kappa_per_leaf({"w": jnp.array([[1.0, 7.0]]), "b": jnp.array([[2.0]])}, c0_db=0.0)
    >>> {name: values.tolist() for name, values in kappa.items()}
    {'b': [2.0], 'w': [5.0]}
    """
    return jax.tree.map(lambda leaf: kappa_from_c0(leaf, c0_db), stacked)
