"""kappa, the scale between a unit-power symbol and a parameter: one a user, or a leaf and user."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.fusion import rms

DEFAULT_C0_DB = -31.0
"""Parameter-domain SNR in dB of a user with MSE 1: the value that fits the paper's SNRs."""


def kappa_from_c0(
    stacked: PyTree[Float[Array, "users ..."]], c0_db: float | Float[Array, ""] = DEFAULT_C0_DB
) -> Float[Array, " users"]:
    """Return ``kappa_q = rms(tau_q) 10^(-c0/20)``.

    A user with MSE mu then has the parameter-domain SNR ``-10 log10(mu) + c0`` dB.
    """
    return rms(stacked) * 10.0 ** (-c0_db / 20)


def kappa_per_leaf(
    stacked: PyTree[Float[Array, "users ..."]], c0_db: float | Float[Array, ""] = DEFAULT_C0_DB
) -> PyTree[Float[Array, " users"]]:
    """Return a kappa for each leaf and user, normalised by the leaf's own rms.

    The shape of a transmitter that normalises every parameter block to unit power.
    """
    return jax.tree.map(lambda leaf: kappa_from_c0(leaf, c0_db), stacked)
