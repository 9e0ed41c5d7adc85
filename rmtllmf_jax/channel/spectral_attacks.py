"""Attacks whose covariance shares the eigenvectors of H P H^H, and their derivatives.

The attacker puts the power sigma_i on the i-th eigendirection, so that with the thermal floor n the
eigenvalue lambda_i of K becomes g_i = lambda_i / N_i, N_i = sigma_i + n. Each attack chooses sigma
through one multiplier nu, found from sum sigma = budget. In terms of the result, all is explicit:

    K = G N(G; nu, n),    tr(N(G; nu, n) - n I) = budget,

with N a composition of products, quotients and square roots of matrices. So an attack is the
inverse of an explicit map; its derivatives of every order follow from the implicit function theorem
and from `matrix_functions`, without differences of eigenvalues and with nu implicit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Real

from rmtllmf_jax.channel.linalg import product
from rmtllmf_jax.channel.matrix_functions import (
    Ruled,
    congruence,
    divide,
    eigenbasis,
    in_basis,
    own_units,
    positive_part,
    square_root,
    with_derivative_of,
)
from rmtllmf_jax.channel.realisation import gram


class Rule(NamedTuple):
    """How an attacker spreads its power over the eigendirections.

    **Fields:**

    - `powers`: `(eigenvalues, budget, noise) -> (sigma, nu)`; no derivative passes through it.
    - `total`: `(G, nu, noise) -> N`, the attacker's and thermal power as a matrix function of the
      effective Gram matrix, real or complex.
    """

    powers: Callable[..., tuple[Array, Array]]
    total: Callable[..., Array]


_Result = tuple[Array, Array, Array]
"""What an attack solves for: G, log nu, and the noise, which keeps the equations square."""
_Wanted = tuple[Array, Array, Array]
"""What it must satisfy: K, budget, noise."""


def spectral_attack(
    rule: Rule,
    gram: Complex[Array, "users users"],
    budget: Float[Array, ""],
    noise: Float[Array, ""],
) -> Complex[Array, "users users"]:
    """Effective Gram matrix V diag(lambda / (sigma + noise)) V^H of `gram` = V diag(lambda) V^H."""
    _, vectors, (effective, _, _), _ = _solved(rule, gram, budget, noise)
    return congruence(vectors, effective)


def spectral_covariance(
    rule: Rule,
    h_tilde: Complex[Array, "antennas users"],
    budget: Float[Array, ""],
    noise: Float[Array, ""],
) -> Complex[Array, "antennas antennas"]:
    """The attacker's own covariance H~ V diag(sigma / lambda) V^H H~^H, of trace `budget`."""
    here, vectors, solved, sigma = _solved(rule, gram(h_tilde), budget, noise)
    attack = _attacker(rule, solved, sigma)
    return congruence(product(h_tilde, vectors), divide(attack, here))


def spectral_powers(
    rule: Rule,
    gram: Complex[Array, "n n"],
    budget: Float[Array, ""],
    noise: Float[Array, ""],
) -> tuple[Complex[Array, "n n"], Complex[Array, "n n"]]:
    """V and the attacker's powers diag(sigma), of trace `budget`, for `gram` = V diag(lambda) V^H.

    The attack is V diag(sigma) V^H if the columns of a channel, not its rows, are the users.
    """
    _, vectors, solved, sigma = _solved(rule, gram, budget, noise)
    unit = noise / solved[2]
    return vectors, unit * _attacker(rule, solved, sigma)


def _attacker(rule: Rule, solved: _Result, sigma: Array) -> Array:
    """The attacker's powers in the eigenbasis, in the unit of the problem solved."""
    effective, log_nu, floor = solved
    total = rule.total(effective, jnp.exp(log_nu), floor)
    moved = total - floor * jnp.eye(len(total), dtype=total.dtype)
    # N - n has lost the digits of a sigma far below the floor.
    return with_derivative_of(moved, jnp.diag(sigma).astype(total.dtype))


def _solved(
    rule: Rule, gram: Complex[Array, "users users"], budget: Array, noise: Array
) -> tuple[Array, Array, _Result, Array]:
    """K in its eigenbasis, that basis, the solution of the attack, and sigma as a constant."""
    gram, budget, noise = own_units(gram, budget, noise)
    values, vectors, sigma, nu = _solve_powers(rule, gram, budget, noise)
    floor = jax.lax.stop_gradient(noise)
    start = values / (sigma + floor), jnp.log(nu), floor
    here = in_basis(gram, values, vectors)
    return here, vectors, _solve(rule, start, (here, budget, noise)), sigma


def _solve_powers(
    rule: Rule, gram: Complex[Array, "users users"], budget: Array, noise: Array
) -> tuple[Array, Array, Array, Array]:
    """Eigenvalues, eigenvectors, the attacker's powers and nu, as constants."""
    values, vectors = eigenbasis(gram)
    budget, noise = jax.lax.stop_gradient((budget, noise))
    # An attacker without power has a derivative too: let it spend what rounding barely shows.
    spent = jnp.maximum(budget, 64 * jnp.finfo(values.dtype).eps * noise)
    sigma, nu = rule.powers(values, spent, noise)
    return values, vectors, sigma * (budget / spent), nu


def _equations(rule: Rule, result: _Result) -> _Wanted:
    """The explicit map."""
    effective, log_nu, noise = result
    total = rule.total(effective, jnp.exp(log_nu), noise)
    gram = (product(effective, total) + product(total, effective)) / 2
    return gram, jnp.real(jnp.trace(total)) - len(total) * noise, noise


@partial(Ruled, static=1)
def _solve(rule: Rule, start: _Result, wanted: _Wanted) -> _Result:
    """The result that satisfies `wanted`; `start` holds its values, G as a vector."""
    return jnp.diag(start[0]).astype(wanted[0].dtype), *start[1:]


@_solve.defjvp
def _solve_jvp(rule: Rule, primals: tuple, tangents: tuple) -> tuple[_Result, _Result]:
    start, wanted = primals
    result = _solve(rule, start, wanted)
    solve = partial(_solve_linear, _slopes(rule, start))

    def matvec(change: _Result) -> _Wanted:
        return jax.jvp(partial(_equations, rule), (result,), (change,))[1]

    def transpose_solve(_: object, cotangent: _Result) -> _Wanted:
        (out,) = jax.linear_transpose(solve, tangents[1])(cotangent)
        return out

    # Reverse mode wants all parts of the right-hand side to be linear, or none.
    gram, budget, noise = tangents[1]
    linear = 0 * (jnp.real(gram[0, 0]) + budget + noise)
    change = jax.lax.custom_linear_solve(
        matvec,
        (gram + linear, budget + linear, noise + linear),
        lambda _, wanted: solve(wanted),
        transpose_solve=transpose_solve,
    )
    return result, change


class _Slopes(NamedTuple):
    """Derivatives of `_equations` at a diagonal result, where they act entry by entry."""

    divided: Float[Array, "n n"]
    """Divided differences of lambda(g): dK_ij / dG_ij."""
    value: Float[Array, " n"]
    total: Float[Array, " n"]
    by_value: Float[Array, " n"]
    by_log_nu: Float[Array, " n"]
    by_noise: Float[Array, " n"]
    """g, N, and the derivatives of N(g; nu, n)."""


def _slopes(rule: Rule, start: _Result) -> _Slopes:
    value, log_nu, noise = start
    zero, one, none = jnp.zeros_like(noise), jnp.ones_like(noise), jnp.zeros_like(jnp.diag(value))

    def total(effective: Array, log_nu: Array, noise: Array) -> Array:
        return rule.total(effective, jnp.exp(log_nu), noise)

    # A derivative that acts entry by entry shows all its factors on a matrix of ones.
    here, push = jax.linearize(total, jnp.diag(value), log_nu, noise)
    by_value = push(jnp.ones_like(none), zero, zero)
    along = jnp.diagonal(here)
    mean = (along[:, None] + along + (value[:, None] + value) * by_value) / 2
    by_log_nu, by_noise = (jnp.diagonal(push(none, *step)) for step in ((one, zero), (zero, one)))
    return _Slopes(mean, value, along, jnp.diagonal(by_value), by_log_nu, by_noise)


def _solve_linear(slopes: _Slopes, b: _Wanted) -> _Result:
    """The change of the result that changes K, budget and noise by `b`."""
    d_gram, d_budget, d_noise = b
    slope = jnp.diagonal(slopes.divided)
    kept = slopes.total / slope
    d_lam = jnp.real(jnp.diagonal(d_gram))
    missing = d_budget - jnp.sum(slopes.by_value / slope * d_lam)
    missing -= d_noise * jnp.sum(slopes.by_noise * kept - 1)
    d_log_nu = missing / jnp.sum(slopes.by_log_nu * kept)
    moved = slopes.value * (slopes.by_log_nu * d_log_nu + slopes.by_noise * d_noise)
    change = (d_gram - jnp.diag(moved)) / slopes.divided
    return change, d_log_nu, d_noise


# P1 of R-MTLLMF, the least sum rate: sigma solves sigma^2 + lambda sigma - lambda / nu = 0
# with lambda = eig(K). The paper's (14) writes P_i v_i for lambda_i, but v_i already holds the
# power: that counts it twice and makes the answer depend on the unit of power. P1 is not the worst
# case for the MSE: at the `paper` preset the sum-MSE attack leaves an average a quarter larger.

# Four steps reach 5e-15 with eigenvalues and budget spread over 160 dB; one to spare.
_NEWTON_STEPS = 5
# The cut-off makes the equation convex only: at most a step for each power that is cut, and a few.
_CUT_STEPS = 30


def sum_rate_powers(
    eigenvalues: Float[Array, " users"], budget: Real[ArrayLike, ""]
) -> tuple[Float[Array, " users"], Float[Array, ""]]:
    """Attacker's power sigma_i on each eigendirection, and the multiplier nu: sum sigma = budget.

    With u_i = asinh(sqrt(nu lambda_i) / 2) the positive root of the quadratic is sigma_i =
    sqrt(lambda_i / nu) exp(-u_i), free of cancellation, and the sum rate that remains without a
    thermal floor is 2 sum_i u_i. nu by Newton in log nu on log(sum sigma) - log(budget), a function
    whose slope stays within [-1, -1/2]. `eigenvalues` and `budget` must be positive.
    """
    power = jnp.asarray(budget, eigenvalues.dtype)
    root = jnp.sqrt(eigenvalues)
    # Both bounds lie above the solution's nu: sigma <= sqrt(lambda / nu) and sigma <= 1 / nu.
    nu = jnp.minimum((jnp.sum(root) / power) ** 2, eigenvalues.size / power)
    for _ in range(_NEWTON_STEPS):
        sigma, slope = _sigma(root, nu)
        excess = jnp.log(jnp.sum(sigma) / power)
        # Multiplying nu keeps full precision where exp(log nu) would lose digits in float32.
        nu = nu * jnp.exp(-excess * jnp.sum(sigma) / jnp.sum(slope))
    return _sigma(root, nu)[0], nu


def floor_aware_powers(
    eigenvalues: Float[Array, " users"], budget: Real[ArrayLike, ""], noise: Real[ArrayLike, ""]
) -> tuple[Float[Array, " users"], Float[Array, ""]]:
    """Powers [sigma_i - noise]_+ of a floor-aware attacker, summing to `budget`, and nu.

    Newton in log nu from the left, where the sum, convex and decreasing, is never below `budget`.
    All three must be positive.
    """
    power = jnp.asarray(budget, eigenvalues.dtype)
    root = jnp.sqrt(eigenvalues)
    _, nu = sum_rate_powers(eigenvalues, power + eigenvalues.size * noise)

    def step(_: Array, nu: Array) -> Array:
        sigma, slope = _sigma(root, nu)
        active = sigma > noise
        excess = jnp.sum(jnp.where(active, sigma - noise, 0)) - power
        falls = jnp.sum(jnp.where(active, slope, 0))
        return nu * jnp.exp(jnp.where(falls < 0, -excess / jnp.where(falls < 0, falls, -1), 0))

    nu = jax.lax.fori_loop(0, _CUT_STEPS, step, nu)
    return jnp.maximum(_sigma(root, nu)[0] - noise, 0), nu


def _sigma(root: Array, nu: Array) -> tuple[Array, Array]:
    """sqrt(lambda / nu) exp(-asinh h), h = sqrt(nu lambda) / 2, and its derivative in log nu.

    The exponential is written as 1 / (h + sqrt(1 + h^2)).
    """
    h = jnp.sqrt(nu) * root / 2
    hypot = jnp.sqrt(1 + h**2)
    sigma = root / (jnp.sqrt(nu) * (h + hypot))
    return sigma, -sigma * (1 + h / hypot) / 2


def _sum_rate_total(effective: Array, nu: Array, noise: Array) -> Array:
    """N of G = K / N: the root of the quadratic for sigma = N - n with lambda = g N inserted."""
    eye = jnp.eye(len(effective), dtype=effective.dtype)
    c = noise + 1 / nu
    root = square_root(c**2 * product(effective, effective) + 4 * noise / nu * effective)
    return divide(c * effective + 2 * noise * eye + root, 2 * (eye + effective))


def _floor_aware_total(effective: Array, nu: Array, noise: Array) -> Array:
    """N of G = K / N where N = max(sigma, n): sigma = g / (nu (1 + g))."""
    eye = jnp.eye(len(effective), dtype=effective.dtype)
    sigma = divide(effective, nu * (eye + effective))
    return noise * eye + positive_part(sigma - noise * eye)


SUM_RATE = Rule(lambda values, budget, noise: sum_rate_powers(values, budget), _sum_rate_total)
FLOOR_AWARE = Rule(floor_aware_powers, _floor_aware_total)


def sum_mse_powers(
    eigenvalues: Float[Array, " users"], budget: Real[ArrayLike, ""], noise: Real[ArrayLike, ""]
) -> tuple[Float[Array, " users"], Float[Array, ""]]:
    """Powers sigma_i = [sqrt(lambda_i / nu) - lambda_i - noise]_+, summing to `budget`, and nu.

    Linear in y = 1 / sqrt(nu) between the levels at which directions become worth attacking, so
    sorting these gives y exactly. All three must be positive.
    """
    root = jnp.sqrt(eigenvalues)
    needed = eigenvalues + noise
    start = needed / root
    order = jnp.argsort(start)
    level = (budget + jnp.cumsum(needed[order])) / jnp.cumsum(root[order])
    # y if the k cheapest directions are attacked: right at the last k whose start it reaches.
    reached = level > start[order]
    y = level[jnp.max(jnp.where(reached, jnp.arange(root.size), 0))]
    return jnp.maximum(y * root - needed, 0), y**-2


def _sum_mse_total(effective: Array, nu: Array, noise: Array) -> Array:
    """N of G = K / N where N = max(sqrt(lambda / nu) - lambda, n) = max(g / (nu (1 + g)^2), n)."""
    eye = jnp.eye(len(effective), dtype=effective.dtype)
    attacked = divide(divide(effective, eye + effective), nu * (eye + effective))
    return noise * eye + positive_part(attacked - noise * eye)


SUM_MSE = Rule(sum_mse_powers, _sum_mse_total)
