"""The noise covariance of given trace that minimises the largest single-user rate (P2 exactly).

min over C >= 0, tr C = P_N, of max_q p_q h_q^H C^-1 h_q. By duality it equals the maximum over
weights w of the simplex of ||H~ W^(1/2)||_*^2 / P_N (nuclear norm), and C is the root of
H~ W H~^H scaled to the budget. R-MTLLMF prints a rank-one C for P2, which does not solve it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Real

from rmtllmf_jax.channel.linalg import inverse, off_zero
from rmtllmf_jax.channel.matrix_functions import (
    Ruled,
    congruence,
    divide,
    in_own_basis,
    own_units,
    square_root,
)

# A step contracts the error of log w by 3 at least: 1e-16 needs 34.
_MOST_STEPS = 60


def min_max_weights(gram: Complex[Array, "users users"]) -> Float[Array, " users"]:
    """The dual optimum: weights w > 0 of sum one with w_q ~ [(W^(1/2) K W^(1/2))^(1/2)]_qq.

    All users then see the same h~_q^H C^-1 h~_q. Needs linearly independent channels. Derivatives
    of every order by the implicit function theorem.
    """
    (gram,) = own_units(gram)
    # A silent user keeps a weight that is not zero and far too small to matter.
    power = jnp.real(jnp.diagonal(gram))
    gram = gram + jnp.diag(off_zero(power) - power).astype(gram.dtype)

    weights = jnp.exp(_log_weights(gram))
    return weights / jnp.sum(weights)


@Ruled
def _log_weights(gram: Array) -> Array:
    """The log w at which `_gap` is zero."""
    return _fixed_point(gram, jnp.log(jnp.real(jnp.diagonal(gram))))


@_log_weights.defjvp
def _log_weights_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (gram,) = primals
    log_w = _log_weights(gram)
    _, moved = jax.jvp(lambda gram: _gap(gram, log_w), primals, tangents)
    # Minus the Hessian of a concave function: symmetric, positive definite.
    jacobian = jax.jacfwd(partial(_gap, gram))(log_w)
    return log_w, -inverse(jacobian) @ moved


def _gap(gram: Array, log_w: Array) -> Array:
    return jnp.exp(log_w) - _root_diagonal(gram, jnp.exp(log_w))


def min_max_rate(
    gram: Complex[Array, "users users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""],
) -> Complex[Array, "users users"]:
    """Effective Gram matrix under P2 solved exactly, plus the thermal floor.

    The attacker ignores the floor, as the paper's does, and multi-user interference, as P2 is
    printed: it equalises the users' interference-free SINRs p_q h_q^H C^-1 h_q. `gram` must have
    full rank (so not more users than antennas). Derivatives of every order in all arguments.
    """
    real = jnp.real(gram).dtype
    gram, budget, noise = own_units(gram, jnp.asarray(budget, real), jnp.asarray(noise, real))
    amplitude = jnp.sqrt(min_max_weights(gram))
    here, vectors = in_own_basis(amplitude[:, None] * gram * amplitude)
    root = square_root(here)
    per_root = budget / jnp.real(jnp.trace(root))
    eye = jnp.eye(len(gram), dtype=gram.dtype)
    seen = divide(here, per_root * root + noise * eye)
    return congruence(vectors / amplitude[:, None], seen)


def _root_diagonal(gram: Array, weights: Array) -> Array:
    amplitude = jnp.sqrt(weights)
    here, vectors = in_own_basis(amplitude[:, None] * gram * amplitude)
    return jnp.real(jnp.diagonal(congruence(vectors, square_root(here))))


def _fixed_point(gram: Array, start: Array) -> Array:
    """Log w by over-relaxed multiplicative updates.

    The plain update w <- diag(root) contracts log w by factors in (0, 1/2]; the power 4/3 turns
    these into [-1/3, 1/3].
    """
    tolerance = 4 * jnp.finfo(start.dtype).eps

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, log_w, _ = state
        move = jnp.log(_root_diagonal(gram, jnp.exp(log_w))) - log_w
        return count + 1, log_w + 4 / 3 * move, jnp.max(jnp.abs(move))

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        return (state[0] < _MOST_STEPS) & (state[2] > tolerance)

    first = jnp.array(0), start, jnp.full_like(start[0], jnp.inf)
    return jax.lax.while_loop(goes_on, step, first)[1]
