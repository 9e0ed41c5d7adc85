"""Attacks whose covariance shares the eigenvectors of H P H^H, and their derivatives.

The attacker puts the power sigma_i on the i-th eigendirection, so that with the thermal floor n the
eigenvalue lambda_i of K becomes g_i = lambda_i / N_i, N_i = sigma_i + n. Each attack chooses sigma
through one multiplier nu, found from sum sigma = budget. Seen from the result, all is explicit:

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
from jaxtyping import Array, Complex, Float

from rmtllmf_jax.channel.derivative_rules import Ruled
from rmtllmf_jax.channel.linalg import product
from rmtllmf_jax.channel.matrix_functions import (
    congruence,
    divide,
    eigenbasis,
    in_basis,
    own_units,
    with_derivative_of,
)
from rmtllmf_jax.channel.realisation import gram


class Rule(NamedTuple):
    """How an attacker spreads its power over the eigendirections.

    **Fields:**

    - `powers`: `(eigenvalues, budget, noise) -> (sigma, nu)`; no derivative goes through it.
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
    solved = _solved(rule, gram(h_tilde), budget, noise)
    here, vectors, (effective, log_nu, floor), sigma = solved
    total = rule.total(effective, jnp.exp(log_nu), floor)
    moved = total - floor * jnp.eye(len(total), dtype=total.dtype)
    # N - n has lost the digits of a sigma far below the floor.
    attack = with_derivative_of(moved, jnp.diag(sigma).astype(total.dtype))
    return congruence(product(h_tilde, vectors), divide(attack, here))


def _solved(
    rule: Rule, gram: Complex[Array, "users users"], budget: Array, noise: Array
) -> tuple[Array, Array, _Result, Array]:
    """K in its eigenbasis and the basis, what the attack solves for, and sigma as a constant."""
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
    """The result that satisfies `wanted`; `start` holds its numbers, G as a vector."""
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
