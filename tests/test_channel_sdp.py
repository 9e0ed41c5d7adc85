"""Optimal attacks against semidefinite programs solved by an independent solver."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import complex_normal

from rmtllmf_jax import channel

cp = pytest.importorskip("cvxpy")

ANTENNAS, USERS, BUDGET = 5, 3, 20.0

pytestmark = pytest.mark.usefixtures("x64")


def draw(seed):
    rng = np.random.default_rng(seed)
    return complex_normal(rng, ANTENNAS, USERS) * 10 ** rng.uniform(-0.5, 0.5, USERS)


def in_range(h):
    """The channel in a basis of its range: an attacker has no use for power outside."""
    return np.linalg.qr(h)[1]


def covariance():
    c = cp.Variable((USERS, USERS), hermitian=True)
    return c, [c >> 0, cp.real(cp.trace(c)) == BUDGET]


def schur(upper, side, lower):
    """[[upper, side^H], [side, lower]] >= 0."""
    whole = cp.bmat([[upper, side.conj().T], [side, lower]])
    return (whole + whole.H) / 2 >> 0


def solve(objective, constraints):
    problem = cp.Problem(objective, constraints)
    problem.solve(solver=cp.SCS, eps=1e-9, max_iters=100_000)
    assert problem.status == cp.OPTIMAL
    return problem.value


def error_matrix(h, noise):
    """W <= (I + H^H (C + noise I)^-1 H)^-1, and the covariance C."""
    c, constraints = covariance()
    w = cp.Variable((USERS, USERS), hermitian=True)
    h, floor = in_range(h), noise * np.eye(USERS)
    # (I + H^H N^-1 H)^-1 = I - H^H (N + H H^H)^-1 H.
    total = c + floor + h @ h.conj().T
    return w, [*constraints, schur(np.eye(USERS) - w, h, total)]


def rate_and_mse(name, h, noise):
    gram = channel.gram(jnp.array(h))
    effective = channel.ATTACKS[name]().from_gram(gram, BUDGET, noise, antennas=ANTENNAS)
    return float(channel.sum_rate(effective)), float(jnp.sum(channel.lmmse_mse(effective)))


@pytest.mark.parametrize("seed", range(3))
def test_sum_rate_is_the_programs_optimum(seed):
    h = draw(seed)
    w, constraints = error_matrix(h, 0.0)
    best = solve(cp.Minimize(-cp.log_det(w)), constraints)
    values = jnp.linalg.eigvalsh(channel.gram(jnp.array(h)))
    _, nu = channel.sum_rate_powers(values, BUDGET)
    formula = float(2 * jnp.sum(jnp.arcsinh(jnp.sqrt(nu * values) / 2)))
    assert best == pytest.approx(formula, rel=1e-6)
    assert rate_and_mse("sum_rate", h, 1e-12)[0] == pytest.approx(formula, rel=1e-9)


@pytest.mark.parametrize("noise", [1.0, 6.0])
@pytest.mark.parametrize("seed", range(2))
def test_floor_aware_sum_rate_is_the_programs_optimum(seed, noise):
    h = draw(seed)
    w, constraints = error_matrix(h, noise)
    best = solve(cp.Minimize(-cp.log_det(w)), constraints)
    assert rate_and_mse("sum_rate_floor_aware", h, noise)[0] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("noise", [0.1, 6.0])
@pytest.mark.parametrize("seed", range(2))
def test_sum_mse_is_the_programs_optimum(seed, noise):
    h = draw(seed)
    w, constraints = error_matrix(h, noise)
    best = solve(cp.Maximize(cp.real(cp.trace(w))), constraints)
    assert rate_and_mse("sum_mse", h, noise)[1] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_min_max_rate_is_the_programs_optimum(seed):
    h = draw(seed)
    c, constraints = covariance()
    t = cp.Variable((1, 1))
    for q in range(USERS):
        constraints.append(schur(t, in_range(h)[:, q : q + 1], c))
    best = solve(cp.Minimize(t[0, 0]), constraints)

    gram = channel.gram(jnp.array(h))
    effective = channel.ATTACKS["min_max_rate"]().from_gram(gram, BUDGET, 1e-12, antennas=ANTENNAS)
    sinr = np.real(np.diagonal(np.asarray(effective)))
    np.testing.assert_allclose(sinr, best, rtol=1e-5)
    np.testing.assert_allclose(sinr, sinr[0], rtol=1e-9)
    # The dual: a sum of singular values, at weights on the simplex.
    weights = np.asarray(channel.min_max_weights(gram))
    singular = np.linalg.svd(h * np.sqrt(weights / weights.sum()), compute_uv=False)
    np.testing.assert_allclose(singular.sum() ** 2 / BUDGET, sinr, rtol=1e-9)
