"""The link symbol by symbol against mu, textbook receivers and the theory of QAM over AWGN."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import complex_normal
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax import channel
from rmtllmf_jax.channel import link, modem
from rmtllmf_jax.channel.equalise import coloured_noise, mmse_equaliser
from rmtllmf_jax.channel.linalg import cholesky
from rmtllmf_jax.channel.quantise import GAUSSIAN_CLIP
from rmtllmf_jax.common.errors import InputError

KEY = jax.random.key(11)
SIZE = 20_001
"""Parameters a user, the same in most tests: few shapes, few compilations."""
OPTIONS = ("receiver", "cancellation", "modulation")


def compiled(function, **static):
    """Jitted, and with numpy arrays out: operations between calls need no compilation."""
    jitted = jax.jit(function, **static)
    return lambda *args, **options: jax.device_get(jitted(*args, **options))


_transmit = compiled(link.transmit, static_argnames=OPTIONS)
_equalise = compiled(mmse_equaliser, static_argnums=3)
from_gram = compiled(
    lambda receiver, gram, power: receiver.from_gram(gram, power), static_argnums=0
)
_propagate = compiled(
    lambda x, h, attack, n, key: link.propagate(x, h, coloured_noise(h, attack, n), key)
)
FLOOR = 0.3


def receiver_of(order):
    return channel.Lmmse() if order is None else channel.Sic(order)


def parts(covariance):
    """Attack and floor of the covariance of all noise."""
    return covariance - FLOOR * np.eye(len(covariance)), FLOOR


def equalise(h, covariance, order):
    return _equalise(h, *parts(covariance), order)


def propagate(symbols, h, covariance, key):
    return _propagate(symbols, h, *parts(covariance), key)


symbol_error_rate = compiled(modem.symbol_error_rate, static_argnums=1)


DEFAULTS = {"receiver": channel.Sic(), "cancellation": "genie", "modulation": 64, "clip": None}


def transmit(sent, h, covariance, key, unit=1.0, **options):
    """`link.transmit` with all options spelled out: left out, they would be another program."""
    attack, floor = parts(covariance)
    return _transmit(sent, h * unit, attack * unit**2, floor * unit**2, key, **DEFAULTS | options)


ORDERS = (*channel.ORDERS, None)
every_order = pytest.mark.parametrize("order", ORDERS)


@pytest.fixture(autouse=True, scope="module")
def _x64_compiled_fast():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()


def system(seed: int = 0, users: int = 4, antennas: int = 6, gain: float = 3.0):
    """A near-far channel and a coloured noise covariance."""
    rng = np.random.default_rng(seed)
    h = gain * complex_normal(rng, antennas, users) * 10 ** rng.uniform(-0.4, 0.4, users)
    root = complex_normal(rng, antennas, antennas)
    return h, root @ root.conj().T + FLOOR * np.eye(antennas)


def effective_gram(h, covariance):
    return h.conj().T @ np.linalg.solve(covariance, h)


def expected_mse(h, covariance, order):
    """mu_q by `channel.receivers`, which knows no filter."""
    power = np.linalg.norm(h, axis=0) ** 2
    errors = from_gram(receiver_of(order), effective_gram(h, covariance), power)
    return np.diagonal(errors).real


def blocks(size: int = SIZE, users: int = 4, seed: int = 1) -> np.ndarray:
    scale = 10.0 ** np.arange(-users, 0)[:, None]
    return np.random.default_rng(seed).normal(size=(users, size)) * scale


@pytest.mark.parametrize(("users", "antennas"), [(4, 6), (6, 4)])
@every_order
def test_error_covariance_of_the_filters(users: int, antennas: int, order: str | None):
    """From first principles: X^ - X = (F H - B - I) X + F Z when the true symbols are cancelled.

    With SIC it is diagonal, the mu_q of `sic_mse`; without, (I + G)^-1.
    """
    h, covariance = system(users, users, antennas)
    found = equalise(h, covariance, order)
    f, b = found.feedforward, found.feedback
    bias = f @ h - b - np.eye(users)
    error = bias @ bias.conj().T + f @ covariance @ f.conj().T
    expected = expected_mse(h, covariance, order)
    if order is None:
        joint = np.linalg.inv(np.eye(users) + effective_gram(h, covariance))
        np.testing.assert_allclose(error, joint, atol=1e-12)
        np.testing.assert_array_equal(b, 0)
    else:
        np.testing.assert_allclose(error, np.diag(expected), atol=1e-12)
    np.testing.assert_allclose(found.mse, expected, rtol=1e-11)


@pytest.mark.parametrize("order", channel.ORDERS)
def test_only_users_decoded_before_are_cancelled(order: str):
    h, covariance = system(3)
    found = equalise(h, covariance, order)
    power = np.linalg.norm(h, axis=0)
    np.testing.assert_array_equal(
        found.sequence, np.argsort(power if order == "weakest_first" else -power)
    )
    turn = np.argsort(found.sequence)
    before = turn[None, :] < turn[:, None]
    assert np.all((found.feedback != 0) == before)


def test_cholesky_is_lapacks():
    _, covariance = system(5)
    right = complex_normal(np.random.default_rng(5), 6, 3)
    factor, solved = compiled(cholesky)(covariance, right)
    np.testing.assert_allclose(factor, np.linalg.cholesky(covariance), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(np.linalg.cholesky(covariance) @ solved, right, atol=1e-12)


@pytest.mark.parametrize(
    ("order", "modulation"), [*((order, 64) for order in ORDERS), ("weakest_first", None)]
)
def test_mse_before_slicing_is_mu(order: str | None, modulation: int | None):
    """Five sigma. |error|^2 varies by at most its mean: sigma is below mu / sqrt(symbols)."""
    h, covariance = system(2)
    received = transmit(
        blocks(), h, covariance, KEY, receiver=receiver_of(order), modulation=modulation
    )
    count = received.symbols.shape[1]
    mu = expected_mse(h, covariance, order)
    np.testing.assert_allclose(received.symbol_mse, mu, rtol=5 / np.sqrt(count))
    error = received.estimates - received.symbols
    np.testing.assert_allclose(received.symbol_mse, np.mean(np.abs(error) ** 2, axis=1), rtol=1e-12)
    # Errors of different users: uncorrelated with SIC, (I + G)^-1 without.
    correlation = error @ error.conj().T / count
    joint = np.linalg.inv(np.eye(4) + effective_gram(h, covariance))
    expected = joint if order is None else np.diag(mu)
    scale = np.sqrt(mu[:, None] * mu)
    assert np.max(np.abs(correlation - expected) / scale) < 5 / np.sqrt(count)


def test_analogue_error_is_the_surrogates_variance():
    """rms^2 mu a parameter: two parameters share a symbol's power and its error."""
    h, covariance = system(4)
    sent = blocks()
    received = transmit(sent, h, covariance, KEY, modulation=None)
    assert received.symbols.shape == (4, SIZE // 2 + 1)
    error = np.mean(np.square(received.parameters - sent), axis=1)
    expected = np.mean(np.square(sent), axis=1) * expected_mse(h, covariance, "weakest_first")
    np.testing.assert_allclose(error, expected, rtol=5 * np.sqrt(2 / SIZE))


@pytest.mark.parametrize(
    ("modulation", "order"),
    [(16, "weakest_first"), (64, "weakest_first"), (64, "strongest_first")],
)
def test_symbol_error_rate_of_the_last_decoded_user(modulation: int, order: str):
    """With a genie only Gaussian noise is left for the last user: theory is exact, 5 sigma.

    Users before it see the others' QAM, which is not Gaussian: theory is approximate there.
    """
    h, covariance = system(7)
    last = int(equalise(h, covariance, order).sequence[-1])
    # The last user's SINR, and nothing else of it, is proportional to the power of all.
    h = h * np.sqrt(0.25 * modulation / (1 / expected_mse(h, covariance, order)[last] - 1))
    received = transmit(
        blocks(), h, covariance, KEY, modulation=modulation, receiver=receiver_of(order)
    )
    sinr = 1 / expected_mse(h, covariance, order)[last] - 1
    expected = symbol_error_rate(sinr, modulation)
    assert 0.2 < expected < 0.6
    wrong = np.mean(abs(received.decisions[last] - received.symbols[last]) > 1e-6)
    assert abs(wrong - expected) < 5 * np.sqrt(expected * (1 - expected) / SIZE)


def textbook(signal, h, covariance, sequence, decide):
    """SIC on the antennas: MMSE filter of one user, decide, subtract, next."""
    remaining, estimates = signal.copy(), np.empty((h.shape[1], signal.shape[1]), complex)
    decisions = np.empty_like(estimates)
    for turn, user in enumerate(sequence):
        active = h[:, sequence[turn:]]
        whole = active @ active.conj().T + covariance
        weights = np.linalg.solve(whole, h[:, user])
        estimates[user] = weights.conj() @ remaining
        gain = np.real(weights.conj() @ h[:, user])
        decisions[user] = decide(user, estimates[user] / gain)
        remaining -= np.outer(h[:, user], decisions[user])
    return estimates, decisions


@pytest.mark.parametrize(
    ("order", "cancellation"),
    [("weakest_first", "genie"), ("weakest_first", "decisions"), ("strongest_first", "genie")],
)
def test_the_feedback_filter_is_cancellation_on_the_antennas(order: str, cancellation: str):
    h, covariance = system(8, gain=1.5)
    options = {"receiver": receiver_of(order), "cancellation": cancellation}
    received = transmit(blocks(), h, covariance, KEY, **options)
    noise_key = jax.random.fold_in(KEY, link._NOISE)
    signal = propagate(received.symbols, h, covariance, noise_key)
    sent = received.symbols
    points = compiled(lambda: modem.constellation(64))()

    def decide(user, unbiased):
        if cancellation == "genie":
            return sent[user]
        return points[np.argmin(np.abs(unbiased[:, None] - points), axis=1)]

    sequence = equalise(h, covariance, order).sequence
    estimates, decisions = textbook(signal, h, covariance, sequence, decide)
    np.testing.assert_allclose(received.estimates, estimates, atol=1e-10)
    if cancellation == "decisions":
        np.testing.assert_allclose(received.decisions, decisions, atol=1e-10)
        wrong = np.abs(decisions - sent) > 1e-6
        assert np.any(wrong[sequence[0]]), "errors must have had something to propagate"


def test_wrong_decisions_propagate_and_only_forward():
    h, covariance = system(8, gain=1.5)
    genie, decisions = (
        transmit(blocks(), h, covariance, KEY, cancellation=name) for name in link.CANCELLATIONS
    )
    first = int(equalise(h, covariance, "weakest_first").sequence[0])
    np.testing.assert_allclose(genie.estimates[first], decisions.estimates[first], atol=1e-12)
    later = np.arange(4) != first
    assert np.all(decisions.symbol_mse[later] > 1.1 * genie.symbol_mse[later])


def test_noise_has_the_covariance_asked_for():
    """Entries within five of their standard deviations, sqrt(C_ii C_jj / symbols)."""
    _, covariance = system(9)
    silent = np.zeros((6, 4), complex)
    noise = propagate(np.zeros((4, SIZE), complex), silent, covariance, KEY)
    scale = np.sqrt(np.real(np.outer(np.diagonal(covariance), np.diagonal(covariance))))
    for product, expected in ((noise.conj().T, covariance), (noise.T, 0)):
        error = np.abs(noise @ product / SIZE - expected) / scale
        assert np.max(error) < 5 * np.sqrt(2 / SIZE)


def test_noise_and_scrambling_keep_their_numbers():
    """Each follows from a key of its own."""
    received = transmit(np.zeros((2, 3)), np.eye(2) + 0j, np.eye(2) + 0j, KEY)
    expected = [[7 - 7j, -1 + 1j, -5 + 1j], [-3 + 5j, 7 + 5j, -7 - 7j]]
    np.testing.assert_allclose(received.symbols * np.sqrt(42), expected, rtol=1e-12)
    np.testing.assert_allclose(received.estimates[0, 0], 0.67121834 - 0.47758899j, rtol=1e-7)


@pytest.mark.parametrize("modulation", [16, 64])
def test_over_a_clear_channel_quantisation_is_all_that_is_left(modulation: int):
    h, covariance = system(10, gain=3e3)
    sent = blocks()
    received = transmit(sent, h, covariance, KEY, modulation=modulation)
    bits = modulation.bit_length() - 1
    clip, rms = GAUSSIAN_CLIP[bits], np.sqrt(np.mean(np.square(sent), axis=1, keepdims=True))
    edge = clip * (1 - 2.0**-bits) * rms
    error = np.abs(received.parameters - np.clip(sent, -edge, edge))
    assert np.all(error <= clip / 2**bits * rms * (1 + 1e-9))


def test_a_wider_clip_range_passes_what_the_default_clips():
    h, covariance = system(10, gain=3e3)
    sent = blocks()
    rms = np.sqrt(np.mean(np.square(sent), axis=1, keepdims=True))
    assert np.max(np.abs(sent / rms)) > GAUSSIAN_CLIP[6]
    wide = transmit(sent, h, covariance, KEY, clip=6.0)
    assert np.all(np.abs(wide.parameters - sent) <= 6 / 64 * rms * (1 + 1e-9))


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_scrambled_symbols_have_unit_power_whatever_the_parameters(value: float):
    h, covariance = system(11)
    constant = np.full((4, SIZE), value)
    symbols = transmit(constant, h, covariance, KEY).symbols
    np.testing.assert_allclose(symbols @ symbols.conj().T / SIZE, np.eye(4), atol=5 / SIZE**0.5)


@settings(deadline=None, max_examples=6)
@given(
    st.integers(-20, 20),
    st.integers(-20, 20),
    st.sampled_from([{"cancellation": "decisions"}, {"modulation": None}]),
)
def test_units_do_not_matter(parameter_exponent: int, power_exponent: int, options: dict):
    """Scaling parameters scales what is received; scaling H and the noise together does nothing."""
    h, covariance = system(12)
    send = functools.partial(transmit, **options)
    reference = send(blocks(), h, covariance, KEY)
    unit, power = 2.0**parameter_exponent, 2.0**power_exponent
    received = send(blocks() * unit, h, covariance, KEY, unit=power)
    np.testing.assert_allclose(received.parameters, reference.parameters * unit, rtol=1e-9)
    np.testing.assert_allclose(received.symbol_mse, reference.symbol_mse, rtol=1e-9)


@pytest.mark.slow
def test_gradients_before_slicing():
    """Against central differences in float64; decisions themselves have none."""
    h, covariance = system(13)
    sent = blocks(6)
    rng = np.random.default_rng(13)
    to_h, to_sent = complex_normal(rng, *h.shape), rng.normal(size=(4, 6))

    attack, noise = parts(jnp.asarray(covariance))

    def losses(at, modulation):
        moved = sent + at[1] * 0.1 * np.abs(sent) * to_sent, h + at[0] * to_h
        received = link.transmit(*moved, attack, noise, KEY, modulation=modulation)
        both = jnp.stack([received.estimates, received.decisions])
        return (jnp.sum(jnp.abs(both - (0.3 - 0.2j)) ** 2, axis=(1, 2)),) * 2

    jacobian = compiled(jax.jacrev(losses, has_aux=True), static_argnums=1)
    steps = 1e-5 * np.eye(2)

    def numeric(modulation):
        moves = [jacobian(d, modulation)[1] - jacobian(-d, modulation)[1] for d in steps]
        return np.stack(moves, axis=1) / 2e-5

    analogue, _ = jacobian(np.zeros(2), None)
    np.testing.assert_allclose(analogue, numeric(None), rtol=1e-6)
    (estimates, decisions), _ = jacobian(np.zeros(2), 64)
    np.testing.assert_allclose(estimates[0], numeric(64)[0, 0], rtol=1e-6)
    assert abs(estimates[0]) > 1e-3
    assert estimates[1] == 0, "quantising has no gradient"
    np.testing.assert_array_equal(decisions, 0)


def test_vmap_over_channels_and_keys_in_one_trace():
    systems = [system(seed) for seed in range(3)]
    h, covariance = (np.stack(part) for part in zip(*systems))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(3))
    sent = blocks()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def all_at_once(sent, h, attack, keys):
        send = functools.partial(link.transmit, cancellation="decisions")
        return jax.vmap(send, (None, 0, 0, None, 0))(sent, h, attack, FLOOR, keys)

    attack = covariance - FLOOR * np.eye(6)
    batch = jax.device_get(all_at_once(sent, h, attack, keys))
    all_at_once(sent + 1, h, attack, keys)
    for draw in range(3):
        one = transmit(sent, h[draw], covariance[draw], keys[draw], cancellation="decisions")
        chex.assert_trees_all_close(jax.tree.map(lambda x, d=draw: x[d], batch), one, atol=1e-10)


def test_float32_on_the_papers_channels():
    """Filters in float32 against float64 under the jammer of the strongest user, 50 draws."""
    with jax.enable_x64(False):
        draw = compiled(channel.draw_channels, static_argnums=(0, 2))
        h = draw(channel.get_preset("paper"), KEY, 50)
        norm = np.linalg.norm(h, axis=1)
        along = np.stack([user[:, np.argmax(n)] / n.max() for user, n in zip(h, norm)])
        jammed = 232 * along[:, :, None] * along[:, None].conj()
        every = compiled(jax.vmap(lambda h, c: mmse_equaliser(h, c, 1.0, "weakest_first")))
        single = every(h, jammed)
        sent = np.ones((8, 5), np.float32)
        received = jax.eval_shape(link.transmit, sent, h[0], jammed[0], 1.0, KEY)
    assert single.mse.dtype == received.parameters.dtype == jnp.float32
    assert received.symbols.dtype == jnp.complex64
    wide = h.astype(complex), jammed.astype(complex)
    double = every(*wide)
    np.testing.assert_allclose(single.mse, double.mse, rtol=1e-3)


@every_order
def test_a_user_that_nobody_hears(order: str | None):
    h, covariance = system(14)
    h[:, 1] = 0
    received = transmit(blocks(), h, covariance, KEY, receiver=receiver_of(order))
    assert all(np.all(np.isfinite(leaf)) for leaf in received)
    np.testing.assert_array_equal(received.estimates[1], 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cancellation": "geni"}, "Did you mean 'genie'"),
        ({"cancellation": "geni", "receiver": receiver_of(None)}, "Did you mean 'genie'"),
        ({"modulation": 32}, "unknown QAM order 32, expected one of 4, 16, 64, 256"),
    ],
)
def test_unknown_options_are_named(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        transmit(blocks(4), *system(), KEY, **options)
