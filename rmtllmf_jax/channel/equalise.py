"""Noise of any covariance over a thermal floor, and the MMSE receivers as filters.

Forming A + n I in float32 loses the floor once the attacker is 60 dB above it, and with the floor
everything that nulling the attacker leaves. Here attack and floor stay apart: C = A + n I in the
eigenbasis of A, which separates the attacker's directions from those that hold the floor alone.

The filters are applied to the antennas' signal Y = H~ X + Z. Whitened, A = W H~ with W^H W = C^-1.
With the users ordered so that the last one decoded comes first, M = I + A^H A = L L^H and D =
diag(L), successive interference cancellation is a decision-feedback equaliser,

    X^ = D^-1 (L^-1 A^H W Y - (L^H - D) X_cancelled),

one feedforward filter and one strictly triangular feedback filter. If the cancelled symbols are the
true ones, the error is D^-1 L^-1 (A^H w - X), w white, of covariance D^-1 L^-1 M L^-H D^-1 =
D^-2: uncorrelated between users, with the mu_q = 1 / L_kk^2 of `rates.sic_mse`. Without
cancellation, X^ = M^-1 A^H W Y has the error covariance M^-1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Int, Real

from rmtllmf_jax.channel.checks import require_channel, require_covariance, require_powers
from rmtllmf_jax.channel.linalg import cholesky, eigh, eigh_of_root, product
from rmtllmf_jax.channel.matrix_functions import in_basis, reciprocal, square_root
from rmtllmf_jax.channel.rates import matched_filter_mse, matched_scale, sic_order
from rmtllmf_jax.channel.realisation import gram, received_power
from rmtllmf_jax.common.errors import InputError


class ColouredNoise(NamedTuple):
    """C = V D V^H of all noise, floor included; D is diagonal except for its derivative."""

    vectors: Complex[Array, "antennas antennas"]
    powers: Complex[Array, "antennas antennas"]

    def whiten(self, right: Complex[Array, "antennas m"]) -> Complex[Array, "antennas m"]:
        """D^(-1/2) V^H B, which turns the noise into noise of covariance I."""
        root = reciprocal(square_root(self.powers))
        return product(root, product(self.vectors.conj().T, right))

    def colour(self, white: Complex[Array, "antennas m"]) -> Complex[Array, "antennas m"]:
        """V D^(1/2) W: from noise of covariance I to noise of covariance C."""
        return product(self.vectors, product(square_root(self.powers), white))

    def behind(self, filters: Complex[Array, "users antennas"]) -> Complex[Array, "users users"]:
        """F C F^H, the covariance of the noise behind filters F."""
        seen = product(filters, self.vectors)
        return product(product(seen, self.powers), seen.conj().T)


def coloured_noise(
    h_tilde: Complex[Array, "antennas users"],
    attack: Complex[Array, "antennas antennas"],
    noise: Real[ArrayLike, ""],
) -> ColouredNoise:
    """The noise of an attacker's covariance over the floor `noise` > 0, on the channel `h_tilde`.

    Parts of `attack` below the rounding error of its trace count as zero: a float32 covariance
    cannot represent more, and 60 dB down they would be a jammer in every direction. Differentiable
    in both.

    **Raises:** `InputError` if the size of `attack` does not match the channel, and outside jit if
    it is not Hermitian or positive semidefinite or the floor is not positive.
    """
    require_channel(h_tilde)
    antennas = h_tilde.shape[0]
    if attack.shape != (antennas, antennas):
        raise InputError(
            f"attack must be {antennas} x {antennas} for {antennas} antennas, got shape "
            f"{attack.shape}."
        )
    require_covariance("attack", attack)
    values, vectors = eigh(attack)
    rounding = len(attack) * jnp.finfo(values.dtype).eps * jnp.sum(values)
    return _over_floor(attack, jnp.where(values > rounding, values, 0), vectors, noise)


def noise_of_root(
    root: Complex[Array, "antennas antennas"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""],
) -> ColouredNoise:
    """`coloured_noise` of the attack ``budget R R^H`` from its lower triangular root.

    Nothing is lost to rounding: R itself records directions far below the largest.
    """
    values, vectors = eigh_of_root(root)
    attack = jnp.asarray(budget, values.dtype) * product(root, root.conj().T)
    power = jax.lax.stop_gradient(jnp.asarray(budget, values.dtype))
    return _over_floor(attack, power * values, vectors, noise)


def effective_gram(
    h_tilde: Complex[Array, "antennas users"],
    attack: Complex[Array, "antennas antennas"],
    noise: Real[ArrayLike, ""],
) -> Complex[Array, "users users"]:
    """G = H~^H C^-1 H~ for the covariance C of an attacker and of the floor `noise` > 0.

    Differentiable in all arrays.

    **Raises:** `InputError` if the size of `attack` does not match the channel, and outside jit
    if it is not Hermitian or positive semidefinite.

    >>> attack = jnp.diag(jnp.array([3.0 + 0j, 0.0]))
    >>> print(effective_gram(jnp.array([[2.0 + 0j], [3.0]]), attack, 1.0).real.round(3))
    [[10.]]
    """
    return gram(coloured_noise(h_tilde, attack, noise).whiten(h_tilde))


def _over_floor(attack: Array, values: Array, vectors: Array, noise: ArrayLike) -> ColouredNoise:
    require_powers(0.0, noise)
    floor = jnp.asarray(noise, values.dtype) * jnp.eye(len(attack), dtype=attack.dtype)
    return ColouredNoise(vectors, in_basis(attack, values, vectors) + floor)


class Equaliser(NamedTuple):
    """Filters of one channel, in user order.

    **Fields:**

    - `feedforward`: applied to the antennas' signal.
    - `feedback`: applied to the cancelled symbols and subtracted; row q is zero at user q itself
      and at those decoded after it. All zero for joint MMSE.
    - `mse`: mu_q of the (biased) estimates where cancellation is perfect.
    - `sequence`: users in decoding order.
    """

    feedforward: Complex[Array, "users antennas"]
    feedback: Complex[Array, "users users"]
    mse: Float[Array, " users"]
    sequence: Int[Array, " users"]


def mmse_equaliser(
    h_tilde: Complex[Array, "antennas users"],
    attack: Complex[Array, "antennas antennas"],
    noise: Real[ArrayLike, ""],
    order: str | None,
    power: Float[Array, " users"] | None = None,
) -> Equaliser:
    """The filters of MMSE-SIC in `order`, or of joint MMSE for `None`.

    The noise has the covariance C = `attack` + `noise` I, a positive semidefinite matrix and a
    floor > 0 in the unit of |h~|^2. The order follows the received powers before the attack, or
    `power` if given. Smooth except where two of them tie.

    **Raises:** `InputError` for an unknown order, for an `attack` of another size, and outside jit
    for one that is not a covariance or a floor that is not positive.
    """
    effective, matched = _matched(h_tilde, attack, noise)
    users = len(effective)
    m = jnp.eye(users, dtype=h_tilde.dtype) + effective
    if order is None:
        # With R = L^-1, M^-1 = R^H R, whose diagonal is the columns' squared norms.
        _, solved = cholesky(m, jnp.concatenate([jnp.eye(users, dtype=m.dtype), matched], axis=1))
        root, forward = solved[:, :users], solved[:, users:]
        mse = jnp.sum(jnp.real(root * root.conj()), axis=0)
        joint = product(root.conj().T, forward)
        return Equaliser(joint, jnp.zeros_like(m), mse, jnp.arange(users))

    sequence = sic_order(received_power(gram(h_tilde)) if power is None else power, order)
    last_first = sequence[::-1]
    factor, forward = cholesky(m[last_first][:, last_first], matched[last_first])
    diagonal = jnp.real(jnp.diagonal(factor))
    forward = forward / diagonal[:, None]
    back = jnp.triu(factor.conj().T, 1) / diagonal[:, None]
    user = jnp.argsort(last_first)
    return Equaliser(forward[user], back[user][:, user], 1 / diagonal[user] ** 2, sequence)


def matched_equaliser(
    h_tilde: Complex[Array, "antennas users"],
    attack: Complex[Array, "antennas antennas"],
    noise: Real[ArrayLike, ""],
) -> Equaliser:
    """The whitened matched filters, scaled to MMSE estimates.

    **Raises:** `InputError` as `mmse_equaliser`.
    """
    effective, matched = _matched(h_tilde, attack, noise)
    forward = matched_scale(effective)[:, None] * matched
    mse = matched_filter_mse(effective)
    return Equaliser(forward, jnp.zeros_like(effective), mse, jnp.arange(len(effective)))


def _matched(h_tilde: Array, attack: Array, noise: ArrayLike) -> tuple[Array, Array]:
    """The effective Gram matrix, and A^H W."""
    coloured = coloured_noise(h_tilde, attack, noise)
    antennas, users = h_tilde.shape
    eye = jnp.eye(antennas, dtype=h_tilde.dtype)
    whitened = coloured.whiten(jnp.concatenate([h_tilde, eye], axis=1))
    channel, whitener = whitened[:, :users], whitened[:, users:]
    return gram(channel), product(channel.conj().T, whitener)


def error_covariance_of(
    equaliser: Equaliser,
    h_tilde: Complex[Array, "antennas users"],
    attack: Complex[Array, "antennas antennas"],
    noise: Real[ArrayLike, ""],
) -> Complex[Array, "users users"]:
    """E[e e^H] of the estimates that given filters make of unit-power symbols.

    Holds for any filters, including those designed for a covariance other than that of the `attack`
    and floor `noise` given here. Cancellation is perfect. The diagonal is the users' MSE.
    """
    eye = jnp.eye(h_tilde.shape[1], dtype=h_tilde.dtype)
    left = product(equaliser.feedforward, h_tilde) - equaliser.feedback - eye
    coloured = coloured_noise(h_tilde, attack, noise)
    return product(left, left.conj().T) + coloured.behind(equaliser.feedforward)
