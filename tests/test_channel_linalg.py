"""The factorisations written over the batch, against numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import complex_normal
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax.channel.linalg import eigh, eigh_of_root, inverse, ldl, pivots
from rmtllmf_jax.channel.matrix_functions import Ruled

pytestmark = pytest.mark.usefixtures("x64")


def unitary(rng, n):
    return np.linalg.qr(complex_normal(rng, n, n))[0]


def with_eigenvalues(rng, values):
    q = unitary(rng, len(values))
    return q * np.asarray(values) @ q.conj().T


eigh_batch = jax.jit(jax.vmap(eigh))


def assert_eigh(matrix, rtol):
    """Residual, orthonormality and eigenvalues of one matrix, on the scale of the largest."""
    values, vectors = (np.asarray(x[0], complex) for x in eigh_batch(jnp.array(matrix)[None]))
    n, top = len(matrix), max(np.linalg.norm(matrix, 2), np.finfo(float).tiny)
    assert np.max(np.abs(vectors.conj().T @ vectors - np.eye(n))) < rtol
    assert np.max(np.abs(vectors * values @ vectors.conj().T - matrix)) < rtol * top
    expected = np.linalg.eigvalsh(matrix)
    assert np.max(np.abs(np.sort(values.real) - expected)) < rtol * top
    assert np.all(values.real >= 0)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 9),
    conditioning=st.floats(0, 12),
    repeats=st.integers(1, 9),
    log_scale=st.floats(-12, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_eigh_of_any_spectrum(n, conditioning, repeats, log_scale, seed):
    rng = np.random.default_rng(seed)
    values = 10 ** -np.sort(rng.uniform(0, conditioning, n))
    values[:repeats] = values[0]
    assert_eigh(with_eigenvalues(rng, values) * 10**log_scale, 1e-13)


@settings(deadline=None, max_examples=20)
@given(n=st.integers(2, 9), data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_eigh_of_rank_deficient_matrices(n, data, seed):
    rank = data.draw(st.integers(0, n - 1))
    root = complex_normal(np.random.default_rng(seed), n, rank)
    assert_eigh(root @ root.conj().T, 1e-13)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.complex128, 1e-13), (np.complex64, 1e-5)])
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_eigh_of_zero_identity_and_diagonal(n, dtype, rtol):
    for matrix in (np.zeros((n, n)), np.eye(n), np.diag(np.arange(n)), np.ones((n, n))):
        assert_eigh(matrix.astype(dtype), rtol)


def graded(rng, draws, n, decades):
    """D A D with a well-conditioned A: users near and far."""
    scale = 10 ** rng.uniform(-decades / 2, decades / 2, (draws, n))
    a = np.array([with_eigenvalues(rng, rng.uniform(1, 3, n)) for _ in range(draws)])
    return a * scale[:, :, None] * scale[:, None, :]


def exact_eigenvalues(matrices):
    """Ascending, by one-sided Jacobi in 80-bit floats, which numpy's own LAPACK does not know."""
    found = []
    for matrix in matrices:
        m = matrix.astype(np.clongdouble)
        n = len(m)
        # Cholesky with the largest diagonal first, then rotations of its columns.
        order = np.argsort(-np.diagonal(m).real)
        m = m[np.ix_(order, order)]
        columns = np.zeros_like(m)
        for k in range(n):
            columns[k:, k] = m[k:, k] / np.sqrt(m[k, k].real)
            m = m - np.outer(columns[:, k], columns[:, k].conj())
        for _ in range(12):
            for i in range(n):
                for j in range(i + 1, n):
                    x, y = columns[:, i].copy(), columns[:, j].copy()
                    a, b, z = np.vdot(x, x).real, np.vdot(y, y).real, np.vdot(x, y)
                    if abs(z) == 0:
                        continue
                    phase, tau = z / abs(z), (b - a) / (2 * abs(z))
                    t = (1 if tau >= 0 else -1) / (abs(tau) + np.sqrt(1 + tau**2))
                    c = 1 / np.sqrt(1 + t**2)
                    columns[:, i] = c * x - c * t * phase.conj() * y
                    columns[:, j] = c * t * phase * x + c * y
        found.append(np.sort(np.sum(np.abs(columns) ** 2, axis=0)))
    return np.array(found)


@pytest.mark.parametrize(
    ("dtype", "decades", "rtol"),
    # Eight decades: users 80 dB apart under an attacker who weighs them by their power.
    [(np.complex128, 12, 2e-14), (np.complex64, 6, 1e-5), (np.complex64, 8, 1e-5)],
)
def test_every_eigenvalue_of_a_graded_matrix_is_right_to_eps_of_itself(dtype, decades, rtol):
    matrices = graded(np.random.default_rng(1), 40, 8, decades).astype(dtype)
    expected = exact_eigenvalues(matrices)
    values, vectors = map(np.asarray, eigh_batch(jnp.array(matrices)))
    assert values.dtype == np.zeros((), dtype).real.dtype
    assert np.max(np.abs(np.sort(values, axis=1) / expected - 1)) < rtol
    orthonormal = vectors.conj().swapaxes(1, 2) @ vectors
    assert np.max(np.abs(orthonormal - np.eye(8))) < rtol
    # LAPACK's are not: the test above asks for something.
    lapack = np.linalg.eigvalsh(matrices.astype(dtype))
    assert np.max(np.abs(lapack / expected - 1)) > 3 * np.max(
        np.abs(np.sort(values, axis=1) / expected - 1)
    )


@pytest.mark.parametrize("batch", [1, 143, 144, 145, 289])
def test_batches_around_the_pass_size_hold_the_same_matrices(batch):
    matrices = jnp.array(graded(np.random.default_rng(2), 289, 4, 2))
    values, vectors = map(np.asarray, eigh_batch(matrices[:batch]))
    rebuilt = (vectors * values[:, None]) @ vectors.conj().swapaxes(1, 2)
    np.testing.assert_allclose(rebuilt, matrices[:batch], atol=1e-12, rtol=1e-12)


def test_nested_vmap_is_a_reshape():
    matrices = jnp.array(graded(np.random.default_rng(3), 30, 3, 2))
    flat = eigh_batch(matrices)
    nested = jax.jit(jax.vmap(jax.vmap(jax.vmap(eigh))))(matrices.reshape(2, 3, 5, 3, 3))
    for one, other in zip(flat, nested):
        np.testing.assert_array_equal(one, other.reshape(one.shape))


def test_eigh_of_input_that_is_not_finite_ends():
    values, _ = eigh(jnp.full((4, 4), jnp.nan, complex))
    assert np.all(np.isnan(values))


@functools.partial(jax.jit, static_argnums=0)
def first_and_second(function, matrix, direction):
    def along(t):
        moved = function(matrix + t * direction)
        return jnp.concatenate([jnp.real(moved).ravel(), jnp.imag(moved).ravel()])

    slope = jax.jacrev(along)
    return along(0.0), slope(0.0), jax.jacfwd(jax.jacfwd(along))(0.0), jax.jacrev(slope)(0.0)


def parts(x):
    return np.concatenate([np.real(x).ravel(), np.imag(x).ravel()])


def positive_definite(rng, n):
    root = complex_normal(rng, n, n + 2)
    direction = complex_normal(rng, n, n)
    return root @ root.conj().T + 0.1 * np.eye(n), direction + direction.conj().T


@pytest.mark.parametrize("n", [1, 2, 8])
def test_inverse_with_derivatives(n):
    matrix, direction = positive_definite(np.random.default_rng(n), n)
    value, slope, *curvatures = first_and_second(inverse, jnp.array(matrix), jnp.array(direction))
    expected = np.linalg.inv(matrix)
    moved = -expected @ direction @ expected
    scale = np.linalg.norm(expected, 2) * np.linalg.norm(direction, 2)
    atol = 1e-13 * np.linalg.norm(expected, 2) * np.array([1, scale, scale**2])
    np.testing.assert_allclose(value, parts(expected), atol=10 * atol[0])
    np.testing.assert_allclose(slope, parts(moved), atol=10 * atol[1])
    for curvature in curvatures:
        expected_curvature = 2 * expected @ direction @ expected @ direction @ expected
        np.testing.assert_allclose(curvature, parts(expected_curvature), atol=100 * atol[2])


def minors(matrix):
    """Leading principal minors' log determinants: their differences are the pivots' logs."""
    return np.array([np.linalg.slogdet(matrix[:k, :k])[1] for k in range(1, len(matrix) + 1)])


@pytest.mark.parametrize("n", [1, 2, 8])
def test_pivots_with_derivatives(n):
    matrix, direction = positive_definite(np.random.default_rng(n + 20), n)
    found = first_and_second(
        lambda m: jnp.cumsum(jnp.log(pivots(m))) + 0j, jnp.array(matrix), jnp.array(direction)
    )
    value, slope, *curvatures = (np.asarray(x)[:n] for x in found)
    np.testing.assert_allclose(value, minors(matrix), rtol=1e-12, atol=1e-12)
    # d log det A = tr A^-1 dA, and d^2 = -tr A^-1 dA A^-1 dA.
    solved = [np.linalg.solve(matrix[:k, :k], direction[:k, :k]) for k in range(1, n + 1)]
    np.testing.assert_allclose(slope, [np.trace(s).real for s in solved], rtol=1e-10, atol=1e-11)
    for curvature in curvatures:
        expected = [-np.trace(s @ s).real for s in solved]
        np.testing.assert_allclose(curvature, expected, rtol=1e-10)


def test_ldl_is_the_cholesky_factor():
    matrix, _ = positive_definite(np.random.default_rng(4), 6)
    values, e = map(np.asarray, ldl(jnp.array(matrix)))
    factor = np.linalg.cholesky(matrix)
    np.testing.assert_allclose(values, np.diagonal(factor).real ** 2, rtol=1e-12)
    np.testing.assert_allclose(e @ factor, np.diag(np.diagonal(factor)), atol=1e-12)
    np.testing.assert_array_equal(e, np.tril(e))
    np.testing.assert_array_equal(np.diagonal(e), 1)


@pytest.mark.parametrize("budget_db", [60, 80])
def test_eigh_of_a_float32_matrix_of_rank_one_leaves_rounding_alone(budget_db):
    """What is left of the other eigenvalues does not grow from column to column."""
    rng = np.random.default_rng(12)
    h = complex_normal(rng, 200, 16, 1).astype(np.complex64)
    matrices = np.float32(10 ** (budget_db / 10)) * h @ h.conj().swapaxes(1, 2)
    values = np.sort(np.asarray(eigh_batch(jnp.array(matrices))[0]), axis=1)
    assert np.all(values[:, :-1] < 16 * np.finfo(np.float32).eps * values[:, -1:])


def test_eigh_of_a_root_keeps_what_its_product_loses():
    """Eigenvalues 100 dB apart in float32, singular roots too, against float64."""
    rng = np.random.default_rng(13)
    roots = np.tril(complex_normal(rng, 50, 9, 9)) * 10 ** -rng.uniform(0, 2.5, (50, 1, 9))
    roots[:5, :, 4] = 0
    single = jnp.array(roots.astype(np.complex64))
    values, vectors = (np.asarray(x) for x in jax.jit(jax.vmap(eigh_of_root))(single))
    exact = np.linalg.svd(np.asarray(single, complex), compute_uv=False) ** 2
    size = np.sqrt(exact[:, :1])
    error = np.abs(np.sqrt(np.sort(values)[:, ::-1]) - np.sqrt(exact))
    assert np.max(error / size) < 2e-6
    orthonormal = np.einsum("bij,bik->bjk", vectors.conj(), vectors)
    assert np.max(np.abs(orthonormal - np.eye(9))) < 1e-5


@Ruled
def _constant_exp(tree):
    return jax.lax.stop_gradient({"y": jnp.exp(tree["x"]), "same": tree["x"]})


@_constant_exp.defjvp
def _constant_exp_jvp(primals, tangents):
    value, dx = _constant_exp(*primals), tangents[0]["x"]
    return value, {"y": value["y"] * dx, "same": dx}


def test_jax_itself_loses_rules_in_loops_before_0_12():
    """Where this fails, `jax.custom_jvp` can take the place of `Ruled`."""
    plain = jax.custom_jvp(lambda x: jax.lax.stop_gradient(jnp.exp(x)))
    plain.defjvp(lambda primals, tangents: (plain(*primals), plain(*primals) * tangents[0]))
    second = jax.grad(jax.grad(lambda x: jax.lax.map(lambda k: plain(k * x), jnp.ones(1))[0]))(0.0)
    assert second == (1 if jax.__version_info__ >= (0, 12) else 0)


def test_a_rule_holds_in_loops_batches_and_branches():
    """Where `jax.custom_jvp` would give the derivative of a constant."""

    def term(x):
        found = _constant_exp({"x": x})
        return found["y"] * found["same"]  # x exp(x)

    ways = {
        "scan": lambda x: jax.lax.scan(lambda s, k: (s + term(k * x), None), 0.0, factors)[0],
        "map": lambda x: jnp.sum(jax.lax.map(lambda k: term(k * x), factors)),
        "vmap": lambda x: jnp.sum(jax.vmap(lambda k: term(k * x))(factors)),
        "remat": lambda x: jnp.sum(jax.vmap(jax.checkpoint(lambda k: term(k * x)))(factors)),
        "cond": lambda x: sum(jax.lax.cond(x > 0, term, lambda x: x, k * x) for k in factors),
        "nested": lambda x: jnp.sum(
            jax.lax.map(lambda k: jax.vmap(jax.vmap(term))(k * x[None, None])[0, 0], factors)
        ),
    }
    factors, x = jnp.array([1.0, 2.0]), jnp.array(0.3)
    kx = np.array([0.3, 0.6])
    exact = [np.sum(np.array([1.0, 2.0]) ** n * (n + kx) * np.exp(kx)) for n in range(4)]

    @jax.jit
    def derivatives(x):
        second = {name: jax.grad(jax.grad(way)) for name, way in ways.items()}
        return {
            name: (way(x), jax.grad(way)(x), second[name](x), jax.jacfwd(second[name])(x))
            for name, way in ways.items()
        }

    for found in derivatives(x).values():
        np.testing.assert_allclose(found, exact, rtol=1e-12)
