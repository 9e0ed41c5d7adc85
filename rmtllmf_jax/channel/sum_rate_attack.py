"""The noise covariance of given trace that minimises the sum rate (P1).

R-MTLLMF (arXiv 2411.18220), problem P1: min over C >= 0, tr C = P_N, of log det(I + H P H^H C^-1).
C shares the eigenvectors of H P H^H, and its eigenvalues solve sigma^2 + lambda sigma - lambda / nu
= 0 with lambda = eig(K). The paper's (14) writes P_i v_i for lambda_i, but v_i already holds the
power: that counts it twice and makes the answer depend on the unit of power.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from rmtllmf_jax.channel.linalg import product
from rmtllmf_jax.channel.matrix_functions import divide, positive_part, square_root
from rmtllmf_jax.channel.spectral_attacks import Rule

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
    """Power [sigma_i - noise]_+ of an attacker who counts the floor, and nu: they sum to `budget`.

    Newton in log nu from the left, where the sum, convex and falling, is never below `budget`.
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


def _total(effective: Array, nu: Array, noise: Array) -> Array:
    """N of G = K / N: the root of the quadratic for sigma = N - n with lambda = g N put in."""
    eye = jnp.eye(len(effective), dtype=effective.dtype)
    c = noise + 1 / nu
    root = square_root(c**2 * product(effective, effective) + 4 * noise / nu * effective)
    return divide(c * effective + 2 * noise * eye + root, 2 * (eye + effective))


def _floor_aware_total(effective: Array, nu: Array, noise: Array) -> Array:
    """N of G = K / N where N = max(sigma, n): sigma = g / (nu (1 + g))."""
    eye = jnp.eye(len(effective), dtype=effective.dtype)
    sigma = divide(effective, nu * (eye + effective))
    return noise * eye + positive_part(sigma - noise * eye)


SUM_RATE = Rule(lambda values, budget, noise: sum_rate_powers(values, budget), _total)
FLOOR_AWARE = Rule(floor_aware_powers, _floor_aware_total)
