"""QAM and the quantiser: geometry, theory against integration and Monte Carlo, calibration."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rmtllmf_jax.channel import modem
from rmtllmf_jax.channel.quantise import GAUSSIAN_CLIP, dequantise, normalise, quantise
from rmtllmf_jax.common.errors import InputError

ORDERS = modem.QAM_ORDERS
COUNT = 16
modulate = jax.jit(modem.modulate)
demodulate = jax.jit(modem.demodulate, static_argnums=1)
nearest_symbols = jax.jit(modem.nearest_symbols, static_argnums=1)
soft_demodulate = jax.jit(modem.soft_demodulate, static_argnums=(2, 3))
every_order = pytest.mark.parametrize("order", ORDERS)

pytestmark = pytest.mark.usefixtures("x64")


def labels(order: int) -> np.ndarray:
    """Bits (order, log2 order) of the symbols, most significant first, by string formatting."""
    width = order.bit_length() - 1
    return np.array([[int(digit) for digit in f"{k:0{width}b}"] for k in range(order)])


def noisy(order: int, sinr: float, count: int, seed: int) -> tuple[np.ndarray, jax.Array]:
    """Indices of equally likely symbols, and the symbols after AWGN of variance 1 / sinr."""
    rng = np.random.default_rng(seed)
    sent = rng.integers(0, order, count)
    noise = rng.normal(size=(count, 2)) @ [1, 1j] / np.sqrt(2 * sinr)
    return sent, jnp.asarray(np.asarray(modem.constellation(order))[sent] + noise)


@every_order
def test_constellation_is_gray_mapped_square_and_of_unit_energy(order: int):
    points = np.asarray(modem.constellation(order))
    assert np.unique(points.round(12)).size == order
    np.testing.assert_allclose(np.mean(np.abs(points) ** 2), 1, rtol=1e-14)
    np.testing.assert_allclose(np.mean(points), 0, atol=1e-15)
    spacing = np.sqrt(6 / (order - 1))
    distance = np.abs(points[:, None] - points)
    assert np.min(distance[distance > 0]) == pytest.approx(spacing, rel=1e-12)
    neighbours = np.argwhere(np.isclose(distance, spacing))
    side = round(order**0.5)
    assert len(neighbours) == 4 * side * (side - 1)
    differing = (labels(order)[neighbours[:, 0]] != labels(order)[neighbours[:, 1]]).sum(axis=1)
    np.testing.assert_array_equal(differing, 1)


@every_order
def test_the_first_half_of_the_bits_is_in_phase(order: int):
    points = np.asarray(modem.constellation(order)).reshape(round(order**0.5), -1)
    np.testing.assert_array_equal(points.real, points.real[:, :1].repeat(points.shape[1], axis=1))
    np.testing.assert_array_equal(points.imag, points.imag[:1].repeat(points.shape[0], axis=0))


@every_order
def test_hard_decisions_invert_the_mapping(order: int):
    bits = jnp.asarray(labels(order))
    symbols = modulate(bits)
    np.testing.assert_array_equal(symbols, modem.constellation(order))
    np.testing.assert_array_equal(demodulate(symbols, order), bits)
    np.testing.assert_array_equal(nearest_symbols(symbols, order), symbols)
    # Points far outside go to the edge, whatever their distance.
    np.testing.assert_array_equal(
        nearest_symbols(jnp.array([9 - 9j]), order), jnp.real(symbols).max() * np.array([1 - 1j])
    )


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(ORDERS),
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=COUNT, max_size=COUNT),
)
def test_slicing_an_axis_at_a_time_is_the_nearest_of_all(order: int, points: list):
    received = np.array(points) @ [1, 1j]
    distance = np.abs(received[:, None] - np.asarray(modem.constellation(order)))
    sliced = np.asarray(nearest_symbols(jnp.asarray(received), order))
    np.testing.assert_allclose(np.abs(received - sliced), distance.min(axis=1), atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 255), min_size=COUNT, max_size=COUNT))
def test_integers_and_bits(values: list):
    bits = modem.integers_to_bits(jnp.array(values), 8)
    np.testing.assert_array_equal(bits, labels(256)[values])
    np.testing.assert_array_equal(modem.bits_to_integers(bits), values)


@every_order
def test_soft_values_are_the_sums_over_all_symbols(order: int):
    """Against the definition: all M points and no axes."""
    _, received = noisy(order, 5.0, 200, seed=1)
    variance = 0.13
    distance = np.abs(np.asarray(received)[:, None] - np.asarray(modem.constellation(order))) ** 2
    metric = -distance[:, None] / variance
    one = labels(order).T.astype(bool)

    def ratio(reduce) -> np.ndarray:
        return reduce(np.where(one, -np.inf, metric)) - reduce(np.where(one, metric, -np.inf))

    exact = ratio(lambda values: np.logaddexp.reduce(values, axis=-1))
    largest = ratio(lambda values: np.max(values, axis=-1))
    soft = functools.partial(soft_demodulate, received, variance, order)
    np.testing.assert_allclose(soft("log_map"), exact, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(soft("max_log"), largest, rtol=1e-10, atol=1e-10)
    # Positive favours 0: the sign of max-log is the hard decision.
    np.testing.assert_array_equal(soft("max_log") < 0, demodulate(received, order) == 1)


@every_order
def test_log_map_is_calibrated(order: int):
    """Among bits with P(b = 0) = 1 / (1 + exp(-LLR)) near p, a share p is 0: 5 sigma a bin."""
    sinr = 0.15 * order
    sent, received = noisy(order, sinr, 100_000, seed=2)
    llr = soft_demodulate(received, 1 / sinr, order)
    zero = labels(order)[sent].ravel() == 0
    p = 1 / (1 + np.exp(-np.asarray(llr).ravel()))
    bins = np.minimum((p * 10).astype(int), 9)
    assert np.bincount(bins, minlength=10).min() > 200
    for k in range(10):
        inside = bins == k
        sigma = np.sqrt(np.sum(p[inside] * (1 - p[inside])))
        assert abs(np.sum(zero[inside] - p[inside])) < 5 * sigma


def test_a_variance_a_symbol():
    received = jnp.array([0.3 + 0.1j, -0.5 + 0.9j])
    variance = jnp.array([0.1, 0.7])
    together = soft_demodulate(received, variance, 16)
    alone = [soft_demodulate(y, float(v), 16) for y, v in zip(received, variance)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@every_order
@pytest.mark.parametrize("error_rate", [0.02, 0.3])
def test_error_rates_are_those_of_a_simulation(order: int, error_rate: float):
    """Within 5 sigma of 200,000 symbols, at the SINR that theory gives for the error rate."""
    grid = np.logspace(-1, 4, 4000)
    sinr = float(
        grid[np.argmin(abs(modem.symbol_error_rate(jnp.asarray(grid), order) - error_rate))]
    )
    count = 200_000
    sent, received = noisy(order, sinr, count, seed=3)
    wrong = np.asarray(demodulate(received, order)) != labels(order)[sent]
    sigma = np.sqrt(error_rate * (1 - error_rate) / count)
    expected = float(modem.symbol_error_rate(jnp.asarray(sinr), order))
    assert abs(np.mean(wrong.any(axis=1)) - expected) < 5 * sigma
    # A symbol's share of wrong bits lies in [0, 1]: its variance is below its mean.
    expected = float(modem.bit_error_rate(jnp.asarray(sinr), order))
    assert abs(np.mean(wrong) - expected) < 5 * np.sqrt(expected / count)


def test_64_qam_in_closed_form():
    sinr = np.logspace(-2, 3.5, 50)
    tail = stats.norm.sf(np.sqrt(sinr / 21))
    np.testing.assert_allclose(
        modem.symbol_error_rate(jnp.asarray(sinr), 64), 1 - (1 - 7 / 4 * tail) ** 2, atol=1e-15
    )
    # The closed form above rounds to 0 where the rate is below 1e-16, this one does not.
    far = modem.symbol_error_rate(jnp.asarray(21 * 100.0), 64)
    np.testing.assert_allclose(far, 7 / 2 * stats.norm.sf(10), rtol=1e-12)


@every_order
def test_bit_error_rate_is_the_sum_over_all_decisions(order: int):
    """Against P(decide j | sent i) times the bits in which they differ, on one axis."""
    side = round(order**0.5)
    spacing = np.sqrt(6 / (order - 1))
    middles = spacing * (np.arange(side) - (side - 1) / 2)
    edges = np.concatenate([[-np.inf], middles[:-1] + spacing / 2, [np.inf]])
    gray = np.arange(side) ^ np.arange(side) >> 1
    differing = np.bitwise_count(gray[:, None] ^ gray)
    for sinr in (0.01, 1.0, 10.0, 100.0, 1000.0):
        decided = np.diff(stats.norm.cdf((edges - middles[:, None]) * np.sqrt(2 * sinr)), axis=1)
        expected = np.sum(decided * differing) / side / np.log2(side)
        rate = modem.bit_error_rate(jnp.asarray(sinr), order)
        np.testing.assert_allclose(rate, expected, rtol=1e-9, atol=1e-15)


def test_error_vector_magnitude():
    np.testing.assert_allclose(modem.error_vector_magnitude(jnp.array([1.0, 100.0])), [1, 0.1])


def test_gradients_of_the_soft_values_and_none_of_the_hard_ones():
    at = jnp.array([0.2, -0.4])

    @jax.jit
    def soft(at):
        return jnp.sum(soft_demodulate(jax.lax.complex(at[0], at[1]), 0.2, 64))

    step = 1e-6
    numeric = [(soft(at + step * d) - soft(at - step * d)) / (2 * step) for d in np.eye(2)]
    np.testing.assert_allclose(jax.grad(soft)(at), numeric, rtol=1e-7)
    hard = jax.grad(lambda at: jnp.real(nearest_symbols(jax.lax.complex(at, at), 64)))
    assert hard(0.2) == 0


def test_one_trace_and_the_dtype_of_the_input():
    @functools.partial(jax.jit, static_argnums=1)
    @chex.assert_max_traces(n=1)
    def soft(symbols, order):
        return soft_demodulate(symbols, 0.1, order)

    with jax.enable_x64(False):
        points = modem.constellation(64)
        assert points.dtype == jnp.complex64
        for shift in (0.0, 0.1):
            assert soft(points + shift, 64).dtype == jnp.float32
        assert modem.symbol_error_rate(jnp.float32(3.0), 64).dtype == jnp.float32
    assert modem.constellation(64, jnp.complex64).dtype == jnp.complex64
    assert nearest_symbols(points, 64).dtype == jnp.complex64


@pytest.mark.parametrize("order", [2, 8, 1024])
def test_unknown_orders_are_named(order: int):
    for function in (modem.constellation, modem.bits_per_symbol):
        with pytest.raises(InputError, match=f"unknown QAM order {order}, expected one of 4, 16"):
            function(order)
    with pytest.raises(InputError, match="unknown QAM order"):
        modem.symbol_error_rate(jnp.ones(1), order)


def test_unknown_method_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'max_log'"):
        modem.soft_demodulate(jnp.zeros(1, complex), 1.0, 4, method="maxlog")


@functools.partial(jax.jit, static_argnums=1)
def round_trip(values, bits, clip):
    return dequantise(quantise(values, bits, clip), bits, clip)


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(sorted(GAUSSIAN_CLIP)),
    st.floats(0.5, 8),
    st.lists(st.floats(-1, 1), min_size=COUNT, max_size=COUNT),
)
def test_inside_the_clip_range_the_error_is_half_a_cell(bits: int, clip: float, shares: list):
    values = clip * jnp.array(shares)
    back = round_trip(values, bits, clip)
    np.testing.assert_array_less(abs(back - values), clip / 2**bits * (1 + 1e-12))
    # What was received is sent again without further loss.
    np.testing.assert_array_equal(round_trip(back, bits, clip), back)


def test_outside_the_clip_range_the_outermost_cells_are_used():
    np.testing.assert_array_equal(
        quantise(jnp.array([-99.0, -1.0, 1.0, 99.0]), 2, 1.0), [0, 0, 3, 3]
    )
    np.testing.assert_allclose(dequantise(jnp.arange(4), 2, 1.0), [-0.75, -0.25, 0.25, 0.75])


@pytest.mark.parametrize(
    ("bits", "documented"), [(2, 0.1188), (4, 0.01154), (6, 0.001040), (8, 0.0000877)]
)
def test_default_clip_is_the_best_for_a_gaussian(bits: int, documented: float):
    x = np.linspace(-8, 8, 400_001)
    density = stats.norm.pdf(x) * (x[1] - x[0])

    def distortion(clip: float) -> float:
        return float(density @ np.square(np.asarray(round_trip(x, bits, clip)) - x))

    best = distortion(GAUSSIAN_CLIP[bits])
    assert best == pytest.approx(documented, rel=1e-3)
    for other in (-0.02, 0.02):
        assert distortion(GAUSSIAN_CLIP[bits] + other) > best


def test_no_default_clip_for_odd_bits():
    with pytest.raises(InputError, match=r"no default clip for 5 bits \(known: 2, 4, 6, 8\)"):
        quantise(jnp.ones(2), 5)
    assert quantise(jnp.array([0.99]), 5, 1.0) == 31


def test_blocks_are_normalised_one_by_one():
    rng = np.random.default_rng(5)
    blocks = jnp.asarray(rng.normal(size=(3, 40)) * np.array([[1e-4], [1.0], [0.0]]))
    unit, rms = normalise(blocks)
    np.testing.assert_allclose(rms, np.sqrt(np.mean(np.square(blocks), axis=1)), rtol=1e-14)
    np.testing.assert_allclose(np.mean(np.square(unit), axis=1), [1, 1, 0], rtol=1e-14)
    np.testing.assert_allclose(unit * rms[:, None], blocks, rtol=1e-14)
    gradient = jax.jit(jax.grad(lambda x: sum(jnp.sum(part) for part in normalise(x))))(blocks)
    assert np.all(np.isfinite(gradient))
