"""The noise covariance of given trace that minimises the sum rate (P1), and its derivative.

R-MTLLMF (arXiv 2411.18220), problem P1: min over C >= 0, tr C = P_N, of log det(I + H P H^H C^-1).
C shares the eigenvectors of H P H^H, and its eigenvalues solve sigma^2 + lambda sigma - lambda / nu
= 0 with lambda = eig(K). The paper's (14) writes P_i v_i for lambda_i, but v_i already holds the
power: that counts it twice and makes the answer depend on the unit of power.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Real

from rmtllmf_jax.channel.linalg import eigh

# Four steps reach 5e-15 with eigenvalues and budget spread over 160 dB; one to spare.
_NEWTON_STEPS = 5


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
        h = jnp.sqrt(nu) * root / 2
        sigma = _sigma(root, nu, h)
        slope = -jnp.sum(sigma * (1 + h / _hypot(h))) / (2 * jnp.sum(sigma))
        # Multiplying nu keeps full precision where exp(log nu) would lose digits in float32.
        nu = nu * jnp.exp(-jnp.log(jnp.sum(sigma) / power) / slope)
    return _sigma(root, nu, jnp.sqrt(nu) * root / 2), nu


def sum_rate(
    gram: Complex[Array, "users users"],
    budget: Real[ArrayLike, ""],
    noise: Real[ArrayLike, ""],
) -> Complex[Array, "users users"]:
    """Effective Gram matrix under P1 plus the thermal floor: V diag(lambda / (sigma + noise)) V^H.

    `gram` = V diag(lambda) V^H, `budget` >= 0 the attacker's total power, `noise` > 0 the thermal
    power per antenna. The attacker of the paper ignores the floor, which is added afterwards.

    **Derivatives** in all three arguments follow a rule of their own, exact at repeated
    eigenvalues, where differentiating `eigh` gives NaN. Truly non-smooth is only a rank-deficient
    `gram`: sigma grows like sqrt(lambda) there. Second derivatives exist in budget and noise; in
    `gram` they would differentiate `eigh` inside the rule, which raises on the CPU and is NaN at
    repeated eigenvalues elsewhere.
    """
    real = jnp.real(gram).dtype
    return _sum_rate(gram, jnp.asarray(budget, real), jnp.asarray(noise, real))


@jax.custom_jvp
def _sum_rate(
    gram: Complex[Array, "users users"], budget: Float[Array, ""], noise: Float[Array, ""]
) -> Complex[Array, "users users"]:
    lam, vectors, sigma, _ = _solve(gram, budget, noise)
    return _congruence(vectors, jnp.diag(lam / (sigma + noise)).astype(vectors.dtype))


@_sum_rate.defjvp
def _sum_rate_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    gram, budget, noise = primals
    d_gram, d_budget, d_noise = tangents
    lam, vectors, sigma, nu = _solve(gram, budget, noise)
    total = sigma + noise
    h = jnp.sqrt(nu * lam) / 2
    s = _hypot(h)
    x, r = 4 * h**2, 4 * h * s

    # Change of g(lambda) V-conjugated, at fixed nu: divided differences of g, none by subtraction.
    free = (nu / 2) * (1 + (x[:, None] + x + 4) / (r[:, None] + r))
    divided = (noise + sigma[:, None] * sigma * free) / (total[:, None] * total)
    rotated = _congruence(vectors.conj().T, (d_gram + d_gram.conj().T) / 2)

    # nu moves so that sum sigma stays the budget; 1 - h/s is written as 1 / (s (s + h)).
    d_lam = jnp.real(jnp.diagonal(rotated))
    by_lam = sigma / (2 * lam * s * (s + h))
    by_log_nu = -sigma * (1 + h / s) / 2
    d_log_nu = (d_budget - jnp.sum(by_lam * d_lam)) / jnp.sum(by_log_nu)

    d_g = -lam / total**2 * (by_log_nu * d_log_nu + d_noise)
    value = _congruence(vectors, jnp.diag(lam / total).astype(vectors.dtype))
    return value, _congruence(vectors, divided * rotated + jnp.diag(d_g))


def _solve(gram: Array, budget: Array, noise: Array) -> tuple[Array, Array, Array, Array]:
    """Eigenvalues, eigenvectors, the attacker's powers and nu, kept off zero."""
    lam, vectors = eigh(gram)
    # Far below rounding, so that a zero or slightly negative eigenvalue and a zero budget stay
    # finite without touching any other case.
    limits = jnp.finfo(lam.dtype)
    lam = jnp.maximum(lam, jnp.maximum(limits.eps**2 * lam[-1], limits.tiny**0.5))
    sigma, nu = sum_rate_powers(lam, jnp.maximum(budget, limits.eps**2 * noise))
    return lam, vectors, sigma, nu


def _congruence(matrix: Array, middle: Array) -> Array:
    """A B A^H in full precision."""
    left = jnp.matmul(matrix, middle, precision="highest")
    return jnp.matmul(left, matrix.conj().T, precision="highest")


def _hypot(h: Array) -> Array:
    return jnp.sqrt(1 + h**2)


def _sigma(root: Array, nu: Array, h: Array) -> Array:
    """sqrt(lambda / nu) exp(-asinh h), the exponential written as 1 / (h + sqrt(1 + h^2))."""
    return root / (jnp.sqrt(nu) * (h + _hypot(h)))
