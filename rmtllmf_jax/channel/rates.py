"""Rates and mean squared errors of the MMSE receivers, from one factorisation of M = I + G.

G = H~^H C^-1 H~ is the effective Gram matrix: the users' Gram matrix seen through the covariance C
of all noise. With the users ordered so that the last one decoded comes first, the Cholesky
factor M = L L^H gives R_k = 2 log L_kk and mu_k = L_kk^-2: the pivots L_kk^2 are the textbook's
1 + p_q h_q^H X_q^-1 h_q, and no X_q is ever formed or inverted. Rates are in nats. All results
are in user order, whatever the decoding order.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int

from rmtllmf_jax.channel.linalg import inverse, pivots, product
from rmtllmf_jax.common.errors import require_known

ORDERS = ("weakest_first", "strongest_first")
"""Decoding orders of successive interference cancellation (SIC)."""


def sic_order(received_power: Float[Array, " users"], order: str) -> Int[Array, " users"]:
    """Users in decoding order, first decoded first.

    R-MTLLMF (arXiv 2411.18220) decodes `"weakest_first"`, so that the strongest user is last and
    free of interference; `"strongest_first"` is the usual choice. Ties go to the lower index.

    **Raises:** `InputError` for another order.

    >>> sic_order(jnp.array([3.0, 1.0, 2.0]), "weakest_first").tolist()
    [1, 2, 0]
    """
    ascending = require_known("SIC order", order, ORDERS) == "weakest_first"
    return jnp.argsort(received_power if ascending else -received_power)


@jax.jit
def sic_rates(
    gram_eff: Complex[Array, "users users"], order_indices: Int[Array, " users"]
) -> Float[Array, " users"]:
    """R_q in nats, R-MTLLMF eq. (3), under successive interference cancellation.

    `order_indices` lists the users in decoding order. Smooth in `gram_eff`; as a function of the
    channel it jumps where two received powers cross and the order swaps.

    >>> rates = sic_rates(jnp.diag(jnp.array([3.0 + 0j, 1.0])), jnp.array([1, 0]))
    >>> print(jnp.exp(rates).round(3))
    [4. 2.]
    """
    return jnp.log(_pivots(gram_eff, order_indices))


@jax.jit
def sic_mse(
    gram_eff: Complex[Array, "users users"], order_indices: Int[Array, " users"]
) -> Float[Array, " users"]:
    """mu_q = exp(-R_q), R-MTLLMF eq. (5): the biased MMSE of a unit-power symbol, in (0, 1].

    >>> sic_mse(jnp.array([[3.0, 4.0], [4.0, 7.0 + 0j]]), jnp.array([0, 1])).tolist()
    [0.5, 0.125]
    """
    return 1 / _pivots(gram_eff, order_indices)


@jax.jit
def lmmse_mse(gram_eff: Complex[Array, "users users"]) -> Float[Array, " users"]:
    """diag(M^-1): the MSE of the joint linear receiver, which cancels nobody.

    >>> lmmse_mse(jnp.diag(jnp.array([3.0 + 0j, 1.0]))).tolist()
    [0.25, 0.5]
    """
    return jnp.real(jnp.diagonal(inverse(_identity_plus(gram_eff))))


@jax.jit
def matched_filter_mse(
    gram_eff: Complex[Array, "users users"], order_indices: Int[Array, " users"] | None = None
) -> Float[Array, " users"]:
    """1 / (1 + SINR_q) behind the whitened matched filter C^-1 h~_q, which suppresses nobody.

    SINR_q = G_qq^2 / (sum_r |G_qr|^2 + G_qq) over the users r != q, or with `order_indices` (users
    in decoding order) over those decoded later. Never below `lmmse_mse` or `sic_mse`.

    >>> mse = matched_filter_mse(jnp.array([[3.0, 4.0], [4.0, 7.0 + 0j]]))
    >>> [round(user, 3) for user in mse.tolist()]
    [0.679, 0.319]
    """
    own = jnp.real(jnp.diagonal(gram_eff))
    size = own.shape[0]
    others = ~jnp.eye(size, dtype=bool)
    if order_indices is not None:
        position = jnp.argsort(order_indices)
        others = position > position[:, None]
    squared = jnp.real(gram_eff) ** 2 + jnp.imag(gram_eff) ** 2
    noise = own + jnp.sum(jnp.where(others, squared, 0), axis=1)
    # tiny: a silent user has neither signal nor noise, and MSE 1.
    return 1 / (1 + own * (own / jnp.maximum(noise, jnp.finfo(own).tiny)))


def matched_filter_errors(gram_eff: Complex[Array, "users users"]) -> Complex[Array, "users users"]:
    """E[e e^H] behind the whitened matched filter, scaled to MMSE estimates.

    (D G - I)(D G - I)^H + D G D for the scales D; its diagonal is `matched_filter_mse`.
    """
    mse = matched_filter_mse(gram_eff)
    scale = matched_scale(gram_eff)
    scaled = scale[:, None] * gram_eff
    left = scaled - jnp.eye(len(mse), dtype=gram_eff.dtype)
    errors = product(left, left.conj().T) + scaled * scale
    own = jnp.eye(len(mse), dtype=bool)
    return jnp.where(own, mse, errors)


def matched_scale(gram_eff: Complex[Array, "users users"]) -> Float[Array, " users"]:
    """(1 - mu_q) / G_qq, which scales the matched filter's output to an MMSE estimate."""
    own = jnp.real(jnp.diagonal(gram_eff))
    return (1 - matched_filter_mse(gram_eff)) / jnp.maximum(own, jnp.finfo(own).tiny)


def error_covariance(
    gram_eff: Complex[Array, "users users"], order_indices: Int[Array, " users"] | None = None
) -> Complex[Array, "users users"]:
    """E[e e^H] of the users' errors: (I + G)^-1 for joint LMMSE, diagonal for MMSE-SIC.

    Behind MMSE-SIC without error propagation (`order_indices`: users in decoding order) the errors
    of different users are uncorrelated, whatever the covariance of the noise.
    """
    if order_indices is None:
        return inverse(_identity_plus(gram_eff))
    return jnp.diag(sic_mse(gram_eff, order_indices)).astype(gram_eff.dtype)


@jax.jit
def sum_rate(gram_eff: Complex[Array, "users users"]) -> Float[Array, ""]:
    """Sum rate log det M in nats, R-MTLLMF eq. (13): the SIC rates of any order add up to it.

    >>> round(float(jnp.exp(sum_rate(jnp.diag(jnp.array([3.0 + 0j, 1.0]))))), 3)
    8.0
    """
    return jnp.sum(jnp.log(pivots(_identity_plus(gram_eff))))


def sum_rate_lower_bound(gram_eff: Complex[Array, "users users"]) -> Float[Array, ""]:
    """Lower bound log(1 + tr G) in nats, which R-MTLLMF eq. (4) calls the sum rate.

    It is not: det(I + G) >= 1 + tr G with equality for rank one only, and the gap is wide (5.6
    against 25.8 nats in one draw). Use `sum_rate`.

    >>> round(float(jnp.exp(sum_rate_lower_bound(jnp.diag(jnp.array([3.0 + 0j, 1.0]))))), 3)
    5.0
    """
    return jnp.log1p(jnp.real(jnp.trace(gram_eff)))


def unbiased_sinr(mse: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """SINR = 1 / mu - 1 behind a biased MMSE `mse` in (0, 1], as a ratio.

    >>> unbiased_sinr(jnp.array([1.0, 0.25])).tolist()
    [0.0, 3.0]
    """
    return (1 - mse) / mse


def _identity_plus(gram_eff: Complex[Array, "users users"]) -> Complex[Array, "users users"]:
    return jnp.eye(gram_eff.shape[0], dtype=gram_eff.dtype) + gram_eff


def _pivots(
    gram_eff: Complex[Array, "users users"], order_indices: Int[Array, " users"]
) -> Float[Array, " users"]:
    """L_kk^2 in user order, for M with the last decoded user first."""
    last_first = order_indices[::-1]
    found = pivots(_identity_plus(gram_eff)[last_first][:, last_first])
    return jnp.zeros_like(found).at[last_first].set(found)
