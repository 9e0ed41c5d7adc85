"""Fading: moments by Monte Carlo, steering vectors and matrix roots from first principles."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax.channel.fading import (
    Fading,
    Kronecker,
    Rayleigh,
    Rician,
    correlation_root,
    exponential_correlation,
    kronecker,
    rayleigh,
    require_correlation,
    rician,
    steering_vectors,
)
from rmtllmf_jax.common.errors import InputError

DRAWS = 20_000
FADINGS = (
    Rayleigh(),
    Rician(k_factor_db=6.0),
    Rician(k_factor_db=6.0, angles_deg=(-30.0, 20.0, 75.0)),
    Kronecker(receive_correlation=0.7, transmit_correlation=-0.4),
)

pytestmark = pytest.mark.usefixtures("x64")


def draws_of(fading, antennas=4, users=3, draws=DRAWS):
    keys = jax.random.split(jax.random.key(1), draws)
    return np.asarray(jax.jit(jax.vmap(lambda key: fading(key, antennas, users)))(keys))


def random_correlation(rng, n):
    """A complex correlation matrix of full rank, far from diagonal."""
    root = rng.normal(size=(n, n)) + 1j * rng.normal(size=(n, n)) + 2
    matrix = root @ root.conj().T
    scale = 1 / np.sqrt(np.diagonal(matrix).real)
    return jnp.array(matrix * scale * scale[:, None])


# All kinds


@pytest.mark.parametrize("fading", FADINGS, ids=str)
def test_unit_power(fading):
    """|h|^2 has standard deviation one at most: 5 errors of the mean over 20,000 draws are .035."""
    h = draws_of(fading)
    assert isinstance(fading, Fading)
    assert h.dtype == np.complex128
    np.testing.assert_allclose(np.mean(np.abs(h) ** 2, axis=0), 1, atol=0.035)


@pytest.mark.parametrize("fading", FADINGS, ids=str)
def test_one_trace_for_equal_fadings_and_both_precisions(fading):
    twin = type(fading)(**vars(fading))
    assert hash(twin) == hash(fading)

    def draw(kind, key):
        return kind(key, 4, 3, jnp.complex64)

    chex.clear_trace_counter()
    draw = jax.jit(chex.assert_max_traces(draw, n=1), static_argnums=0)
    assert not np.allclose(draw(fading, jax.random.key(0)), draw(twin, jax.random.key(1)))
    key = jax.random.key(2)
    single = draw(fading, key)
    assert single.dtype == jnp.complex64
    with jax.enable_x64(False):
        default = jax.jit(fading, static_argnums=(1, 2))(key, 4, 3)
    np.testing.assert_allclose(default, single, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fading", FADINGS[:2], ids=str)
def test_nobody_cannot_fade(fading):
    with pytest.raises(InputError, match="antennas must be at least 1"):
        fading(jax.random.key(0), 0, 3)
    with pytest.raises(InputError, match="users must be at least 1"):
        fading(jax.random.key(0), 4, 0)


# Rayleigh


def test_rayleigh_keeps_its_numbers():
    with jax.enable_x64(False):
        h = rayleigh(jax.random.key(8), 2, 2)
    expected = [
        [1.0529408 + 1.5126977j, 0.06035789 + 0.18413135j],
        [0.27502796 + 0.29253864j, -0.10700361 - 0.42198798j],
    ]
    np.testing.assert_allclose(h, expected, rtol=1e-6)


# Rician


def test_steering_vectors_are_the_phases_of_a_plane_wave():
    """Path differences of half a wavelength times sin(angle) between neighbours."""
    angles = jnp.deg2rad(jnp.array([0.0, 30.0, 90.0, -90.0]))
    steering = steering_vectors(angles, 4)
    expected = np.array([[1, 1, 1, 1], [1, 1j, -1, -1j], [1, -1, 1, -1], [1, -1, 1, -1]], complex).T
    np.testing.assert_allclose(steering, expected, atol=1e-12)


@pytest.mark.parametrize("k_factor", [0.0, 0.5, 10.0])
def test_rician_moments(k_factor):
    angles = jnp.array([-0.4, 1.1])

    def draw(key, antennas, users):
        return rician(key, antennas, users, k_factor, angles)

    h = draws_of(draw, users=2)
    mean = np.sqrt(k_factor / (1 + k_factor)) * np.asarray(steering_vectors(angles, 4))
    np.testing.assert_allclose(h.mean(0), mean, atol=0.03)
    scattered = h - mean
    np.testing.assert_allclose(np.mean(np.abs(scattered) ** 2, 0), 1 / (1 + k_factor), atol=0.035)
    # E|h|^4 = 2 - (K / (K + 1))^2, with heavier tails than the power itself.
    fourth = 2 - (k_factor / (1 + k_factor)) ** 2
    np.testing.assert_allclose(np.mean(np.abs(h) ** 4), fourth, atol=0.06)


def test_drawn_angles_fill_the_half_plane():
    """Behind a very large K there is only the steering vector; its slope is sin(angle)."""
    h = draws_of(Rician(k_factor_db=200.0), antennas=2, users=1)[:, 1, 0]
    angles = np.arcsin(np.angle(h) / np.pi)
    np.testing.assert_allclose(np.abs(h), 1, rtol=1e-9)
    np.testing.assert_allclose(angles.std(), np.pi / np.sqrt(12), rtol=0.02)
    assert angles.min() < -1.5
    assert angles.max() > 1.5


def test_one_k_factor_a_user():
    keys = jax.random.key(3)
    angles = jnp.array([0.3, 0.6])
    mixed = rician(keys, 4, 2, jnp.array([0.0, 8.0]), angles)
    for user, k_factor in enumerate((0.0, 8.0)):
        alone = rician(keys, 4, 2, k_factor, angles)
        np.testing.assert_allclose(mixed[:, user], alone[:, user], rtol=1e-12)


def test_rician_derivatives_against_finite_differences():
    weights = jnp.linspace(-1, 1, 12).reshape(4, 3)

    def loss(point):
        k_factor, angles = point
        h = rician(jax.random.key(4), 4, 3, k_factor, angles)
        return jnp.sum(weights * (jnp.real(h) + jnp.abs(h) ** 2))

    point = jnp.array([[0.5, 2.0, 9.0], [-1.0, 0.2, 0.9]])
    steps = 1e-5 * jnp.eye(6).reshape(6, 2, 3)
    losses = jax.jit(jax.vmap(loss))
    numeric = (losses(point + steps) - losses(point - steps)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(point).ravel(), numeric, rtol=1e-7)


def test_rician_keeps_its_numbers():
    """Angles and scattering each follow from a key of their own."""
    with jax.enable_x64(False):
        h = rician(jax.random.key(8), 2, 2, 1.0)
    expected = [
        [0.26283205 - 0.14601372j, 1.4843574 - 0.06592871j],
        [-0.24176046 - 0.17094444j, 0.68542355 + 0.7482927j],
    ]
    np.testing.assert_allclose(h, expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_impossible_rician_draws_are_refused(bad):
    with pytest.raises(InputError, match="k_factor"):
        rician(jax.random.key(0), 4, 2, bad)
    with pytest.raises(InputError, match="angles must be one per user, 3"):
        Rician(3.0, angles_deg=(1.0, 2.0))(jax.random.key(0), 4, 3)
    if bad != -0.1:
        with pytest.raises(InputError, match="k_factor_db"):
            Rician(bad)
        with pytest.raises(InputError, match="angles_deg"):
            Rician(1.0, angles_deg=(bad,))
        with pytest.raises(InputError, match="angles"):
            rician(jax.random.key(0), 4, 2, 1.0, jnp.array([0.0, bad]))


# Kronecker


def test_exponential_correlation():
    expected = [[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]]
    np.testing.assert_allclose(exponential_correlation(3, 0.5), expected)
    np.testing.assert_array_equal(exponential_correlation(3, 0.0), np.eye(3))
    # The inverse of an AR(1) covariance is tridiagonal.
    inverse = np.linalg.inv(exponential_correlation(5, -0.8))
    np.testing.assert_allclose(np.triu(inverse, 2), 0, atol=1e-12)
    single = exponential_correlation(3, jnp.array(0.5, jnp.float32))
    assert single.dtype == jnp.float32
    slope = jax.jacfwd(lambda r: exponential_correlation(3, r))(0.0)
    np.testing.assert_array_equal(slope, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def test_kronecker_moments():
    rng = np.random.default_rng(0)
    receive, transmit = random_correlation(rng, 3), random_correlation(rng, 2)
    keys = jax.random.split(jax.random.key(5), DRAWS)
    h = np.asarray(jax.jit(jax.vmap(lambda key: kronecker(key, receive, transmit)))(keys))
    moments = np.einsum("kiq,kjp->iqjp", h, h.conj()) / DRAWS
    expected = np.einsum("ij,pq->iqjp", np.asarray(receive), np.asarray(transmit))
    np.testing.assert_allclose(moments, expected, atol=0.035)


def test_kronecker_without_correlation_is_rayleigh():
    key = jax.random.key(6)
    np.testing.assert_allclose(Kronecker(0.0)(key, 4, 3), rayleigh(key, 4, 3), rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 4), rank=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_the_root_squares_to_the_matrix(n, rank, seed):
    """At full and at lower rank."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n, rank)) + 1j * rng.normal(size=(n, rank))
    matrix = factor @ factor.conj().T
    scale = 1 / np.sqrt(np.diagonal(matrix).real)
    matrix = jnp.array(matrix * scale * scale[:, None])
    require_correlation("matrix", matrix)
    root = np.asarray(jax.jit(correlation_root)(matrix))
    np.testing.assert_allclose(root @ root.conj().T, matrix, atol=1e-6)
    if rank >= n and np.linalg.eigvalsh(matrix)[0] > 1e-6:
        np.testing.assert_allclose(root, np.linalg.cholesky(matrix), atol=1e-8)


def test_derivatives_in_the_correlation_even_at_repeated_eigenvalues():
    rng = np.random.default_rng(2)
    other, weights = random_correlation(rng, 3), jnp.array(rng.normal(size=(3, 2)))

    @jax.jit
    def exact_and_numeric(start):
        def loss(t):
            mixed = (1 - t) * start + t * other
            h = kronecker(jax.random.key(7), mixed, jnp.eye(2))
            return jnp.sum(weights * jnp.abs(h) ** 2)

        plus, minus = jax.vmap(loss)(jnp.array([1e-5, -1e-5]))
        return jax.grad(loss)(0.0), (plus - minus) / 2e-5

    for start in (jnp.eye(3, dtype=complex), random_correlation(rng, 3)):
        np.testing.assert_allclose(*exact_and_numeric(start), rtol=1e-7)


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (np.ones((2, 3)), "square"),
        ([[1, np.nan], [np.nan, 1]], "finite"),
        ([[1, 0.5], [0.4, 1]], "Hermitian"),
        ([[1, 0.5j], [0.5j, 1]], "Hermitian"),
        ([[1, 0.5], [0.5, 1.1]], "ones on its diagonal, got 1.1"),
        ([[1, 1.5], [1.5, 1]], "positive semidefinite; its least eigenvalue is -0.5"),
    ],
)
def test_matrices_that_are_no_correlation_are_refused(matrix, says):
    for dtype in (jnp.complex64, jnp.complex128):
        bad = jnp.array(np.array(matrix), dtype)
        with pytest.raises(InputError, match=f"R must be (a )?{says}|R must have {says}"):
            require_correlation("R", bad)
    if bad.shape == (2, 2):
        with pytest.raises(InputError, match="receive_correlation"):
            kronecker(jax.random.key(0), bad, jnp.eye(2))
        with pytest.raises(InputError, match="transmit_correlation"):
            kronecker(jax.random.key(0), jnp.eye(2), bad)


@pytest.mark.parametrize("bad", [-1.0, 1.0, float("nan")])
def test_impossible_coefficients_are_refused(bad):
    with pytest.raises(InputError, match="correlation coefficient must be within"):
        exponential_correlation(3, bad)
    with pytest.raises(InputError, match="size of a correlation matrix"):
        exponential_correlation(0, 0.5)
    with pytest.raises(InputError, match="receive_correlation"):
        Kronecker(bad)
    with pytest.raises(InputError, match="transmit_correlation"):
        Kronecker(0.0, bad)
