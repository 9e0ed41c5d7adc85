"""What "SNR" can mean on this uplink: at the antennas, behind the equaliser, in the parameters.

All are ratios, one per user, and `worst_user` takes the least; `db` turns them into dB. They differ
by tens of dB on one channel, so a figure names its definition. R-MTLLMF (arXiv 2411.18220) prints
-16.2 / -21.7 / -27.3 dB (no attack, strongest user, sum rate) and does not define them. No SNR
measured at the receiver fits all three; the worst user's `parameter_snr` with c0 = -31 dB does:
over the drops of the preset `paper` its dB average to -16.5 / -21.9 / -27.2. The average is of dB,
drop by drop: `db(parameter_snr(mean of the worst MSEs))` would be -23.0 for the strongest user.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rmtllmf_jax.channel.rates import unbiased_sinr
from rmtllmf_jax.common.errors import require_at_least

__all__ = ["db", "from_db", "parameter_snr", "receive_snr", "unbiased_sinr", "worst_user"]


def db(ratio: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """10 log10 of a power ratio; -inf for 0.

    >>> db(jnp.array([1.0, 100.0])).tolist()
    [0.0, 20.0]
    """
    return 10 * jnp.log10(ratio)


def from_db(value_db: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Power ratio 10^(x / 10) of x dB.

    >>> from_db(jnp.array([0.0, 20.0])).tolist()
    [1.0, 100.0]
    """
    return 10 ** (value_db / 10)


def receive_snr(
    received_power: Float[Array, "*batch users"],
    antennas: int,
    budget: Real[ArrayLike, ""] = 0.0,
    noise: Real[ArrayLike, ""] = 1.0,
) -> Float[Array, "*batch users"]:
    """Receive SNR per antenna, p_q ||h_q||^2 / tr C: signal over noise power before any equaliser.

    tr C = N_R n + P_N whatever the attacker's covariance looks like; without attack the SNR is
    p_q ||h_q||^2 / (N_R n). `received_power` is p_q ||h_q||^2 over all antennas, `budget` P_N and
    `noise` the thermal power n of one antenna, in one unit. The other users do not count.

    **Raises:** `InputError` for fewer than one antenna.

    >>> power = jnp.array([32.0])
    >>> receive_snr(power, antennas=16).tolist()
    [2.0]
    >>> receive_snr(power, antennas=16, budget=16.0).tolist()
    [1.0]
    """
    require_at_least("antennas", antennas, 1)
    return received_power / (antennas * jnp.asarray(noise) + budget)


def parameter_snr(
    mse: Float[Array, "*batch"], c0_db: Real[ArrayLike, ""]
) -> Float[Array, "*batch"]:
    """SNR of the received parameters, rms(tau_q)^2 / (kappa_q^2 mu_q) = 10^(c0 / 10) / mu_q.

    In dB: -10 log10(mu_q) + c0. `c0_db` is the SNR of a user with MSE 1; the noise then has the
    scale kappa_q = rms(tau_q) 10^(-c0 / 20). Infinite for a perfect uplink.

    >>> parameter_snr(jnp.array([0.5, 0.25]), c0_db=0.0).tolist()
    [2.0, 4.0]
    """
    return 10 ** (jnp.asarray(c0_db, mse.dtype) / 10) / mse


def worst_user(snr: Float[Array, "*batch users"]) -> Float[Array, "*batch"]:
    """The least of the users' SNRs, min_q: one weak user spoils the merge.

    Non-smooth where two users tie.

    >>> worst_user(jnp.array([[1.0, 3.0], [5.0, 2.0]])).tolist()
    [1.0, 2.0]
    """
    return jnp.min(snr, axis=-1)
