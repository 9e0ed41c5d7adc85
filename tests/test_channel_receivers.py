"""Receivers: one Cholesky factor against the textbook's interference covariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import complex_normal
from hypothesis import given, settings
from hypothesis import strategies as st

from rmtllmf_jax import channel
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described

FAST_COMPILE = {"xla_backend_optimization_level": 0}

pytestmark = pytest.mark.usefixtures("x64")


def random_system(rng, users, antennas):
    """A channel with a 40 dB spread of powers, and a coloured noise covariance."""
    h = complex_normal(rng, antennas, users) * 10 ** rng.uniform(-1, 1, users)
    root = complex_normal(rng, antennas, antennas)
    return h, root @ root.conj().T + 0.1 * np.eye(antennas)


def textbook_rates(h, noise_covariance, order):
    """R_q = log(1 + h_q^H X_q^-1 h_q), X_q = noise plus all users decoded later."""
    rates = np.empty(len(order))
    for position, user in enumerate(order):
        later = h[:, order[position + 1 :]]
        interference = later @ later.conj().T + noise_covariance
        sinr = h[:, user].conj() @ np.linalg.solve(interference, h[:, user])
        rates[user] = np.log1p(sinr.real)
    return rates


def effective_gram(h, noise_covariance):
    return h.conj().T @ np.linalg.solve(noise_covariance, h)


@pytest.mark.parametrize(("users", "antennas"), [(8, 16), (3, 4), (1, 1), (5, 5), (6, 4)])
@pytest.mark.parametrize("order", channel.ORDERS)
def test_sic_is_the_textbook_receiver(users, antennas, order):
    rng = np.random.default_rng(users)
    systems = [random_system(rng, users, antennas) for _ in range(20)]
    grams = jnp.array([effective_gram(*system) for system in systems])
    powers = jnp.array([np.linalg.norm(h, axis=0) ** 2 for h, _ in systems])

    @jax.jit
    @jax.vmap
    def receive(gram, power):
        indices = channel.sic_order(power, order)
        return indices, channel.sic_rates(gram, indices), channel.sic_mse(gram, indices)

    orders, rates, mse = receive(grams, powers)

    sign = 1 if order == "weakest_first" else -1
    np.testing.assert_array_equal(orders, np.argsort(sign * np.asarray(powers), axis=1))
    expected = [textbook_rates(h, c, list(o)) for (h, c), o in zip(systems, np.asarray(orders))]
    np.testing.assert_allclose(rates, expected, rtol=1e-10)
    np.testing.assert_allclose(mse, np.exp(-np.array(expected)), rtol=1e-10)


@pytest.mark.parametrize(("users", "antennas"), [(8, 16), (1, 2), (6, 4)])
def test_lmmse_is_the_textbook_receiver(users, antennas):
    rng = np.random.default_rng(users)
    h, noise_covariance = random_system(rng, users, antennas)
    # E|x - W y|^2 with W = H^H (H H^H + C)^-1, from the receive side.
    filter_ = h.conj().T @ np.linalg.inv(h @ h.conj().T + noise_covariance)
    expected = np.real(np.diagonal(np.eye(users) - filter_ @ h))
    mse = channel.lmmse_mse(jnp.array(effective_gram(h, noise_covariance)))
    np.testing.assert_allclose(mse, expected, rtol=1e-8)


@jax.jit
def all_receivers(gram, order):
    sic = channel.sic_rates(gram, order), channel.sic_mse(gram, order)
    bound = channel.sum_rate_lower_bound(gram)
    return *sic, channel.lmmse_mse(gram), channel.sum_rate(gram), bound


@settings(deadline=None, max_examples=200)
@given(
    users=st.integers(1, 5),
    antennas=st.integers(1, 9),
    power_db=st.floats(-40, 40),
    spread=st.floats(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_rates_share_one_determinant(users, antennas, power_db, spread, seed):
    rng = np.random.default_rng(seed)
    h = complex_normal(rng, antennas, users) * 10 ** (rng.uniform(-spread, spread, users))
    gram = jnp.array(h.conj().T @ h) * 10 ** (power_db / 10)
    order = jnp.array(rng.permutation(users))
    rates, mse, lmmse, total, bound = map(np.asarray, all_receivers(gram, order))

    log_det = np.linalg.slogdet(np.eye(users) + np.asarray(gram))[1]
    # Where channels depend on each other a pivot near 1 is what is left of numbers near tr G.
    rounding = 1e-12 + 8 * np.finfo(float).eps * np.trace(gram).real
    np.testing.assert_allclose(total, log_det, rtol=1e-9, atol=rounding)
    np.testing.assert_allclose(np.sum(rates), total, rtol=1e-12, atol=rounding)
    np.testing.assert_allclose(-np.sum(np.log(mse)), total, rtol=1e-12, atol=rounding)
    assert np.all((mse > 0) & (mse <= 1 + rounding))
    assert bound <= total * (1 + 1e-12) + rounding
    # Cancelling helps everyone but the first decoded user, for whom nothing is cancelled yet.
    assert np.all(mse <= lmmse * (1 + 1e-8) + rounding)
    first = int(order[0])
    np.testing.assert_allclose(mse[first], lmmse[first], rtol=1e-8, atol=rounding)


def test_rates_add_up_to_the_determinant_at_the_presets_powers():
    """To 1e-12 where the channels are independent, in every order of decoding."""
    rng = np.random.default_rng(3)
    h = complex_normal(rng, 200, 16, 8) * 10 ** rng.uniform(0.2, 1.3, (200, 1, 8))
    gram = jnp.array(h.conj().transpose(0, 2, 1) @ h)
    order = jnp.array([rng.permutation(8) for _ in range(200)])
    rates, mse, _, total, _ = map(np.asarray, jax.jit(jax.vmap(all_receivers))(gram, order))
    np.testing.assert_allclose(
        total, np.linalg.slogdet(np.eye(8) + np.asarray(gram))[1], rtol=1e-12
    )
    np.testing.assert_allclose(np.sum(rates, axis=1), total, rtol=1e-12)
    np.testing.assert_allclose(-np.sum(np.log(mse), axis=1), total, rtol=1e-12)


def test_the_printed_sum_rate_is_only_a_bound():
    rng = np.random.default_rng(0)
    h = complex_normal(rng, 16, 8) * 10 ** rng.uniform(-0.5, 0.5, 8)
    gram = jnp.array(h.conj().T @ h)
    assert channel.sum_rate_lower_bound(gram) < 0.5 * channel.sum_rate(gram)
    one = gram[:1, :1]
    np.testing.assert_allclose(channel.sum_rate_lower_bound(one), channel.sum_rate(one))


def test_unbiased_sinr_of_one_user_is_the_matched_filters():
    h = complex_normal(np.random.default_rng(1), 4, 1)
    gram = jnp.array(h.conj().T @ h)
    np.testing.assert_allclose(channel.unbiased_sinr(channel.lmmse_mse(gram))[0], gram[0, 0].real)


def sic_error_covariance(h, noise_covariance, order):
    """E[e e^H] of MMSE-SIC by first principles: each user's own filter on what is left."""
    antennas, users = h.shape
    # An estimate is feedforward Y - feedback X_cancelled; the error, in terms of X and Z.
    of_symbols = np.zeros((users, users), complex)
    of_noise = np.zeros((users, antennas), complex)
    for position, user in enumerate(order):
        later = h[:, order[position:]]
        filter_ = np.linalg.solve(later @ later.conj().T + noise_covariance, h[:, user]).conj()
        of_symbols[user, order[position:]] = filter_ @ later
        of_symbols[user, user] -= 1
        of_noise[user] = filter_
    return of_symbols @ of_symbols.conj().T + of_noise @ noise_covariance @ of_noise.conj().T


@jax.jit
def errors_of_receivers(h, noise_covariance):
    """Error covariances of the filters and from the Gram matrix, a pair for every order."""
    noise = noise_covariance, 1e-30
    gram = channel.effective_gram(h, *noise)
    pairs = []
    for order in (*channel.ORDERS, None):
        equaliser = channel.mmse_equaliser(h, *noise, order)
        sequence = None if order is None else equaliser.sequence
        of_filters = channel.error_covariance_of(equaliser, h, *noise)
        pairs.append((of_filters, channel.error_covariance(gram, sequence)))
    return pairs


def test_sic_errors_are_uncorrelated_by_first_principles():
    rng = np.random.default_rng(21)
    for _ in range(20):
        h, noise_covariance = random_system(rng, 8, 16)
        pairs = errors_of_receivers(jnp.array(h), jnp.array(noise_covariance))
        ascending = np.argsort(np.linalg.norm(h, axis=0))
        for (found, predicted), order in zip(pairs, (ascending, ascending[::-1])):
            expected = sic_error_covariance(h, noise_covariance, order)
            assert np.max(np.abs(expected - np.diag(np.diagonal(expected)))) < 1e-12
            np.testing.assert_allclose(found, expected, atol=1e-12)
            np.testing.assert_allclose(predicted, expected, atol=1e-12)
        joint = np.linalg.inv(np.eye(8) + effective_gram(h, noise_covariance))
        for matrix in pairs[2]:
            np.testing.assert_allclose(matrix, joint, atol=1e-12)


@jax.jit
def matched_and_optimal(gram, order):
    matched = channel.matched_filter_mse(gram), channel.matched_filter_mse(gram, order)
    return (*matched, channel.lmmse_mse(gram), channel.sic_mse(gram, order))


@settings(deadline=None, max_examples=40)
@given(power_db=st.floats(-40, 40), seed=st.integers(0, 2**32 - 1))
def test_matched_filter_is_the_explicit_filter_and_never_better(power_db, seed):
    rng = np.random.default_rng(seed)
    h, noise_covariance = random_system(rng, 4, 6)
    h = h * 10 ** (power_db / 20)
    order = rng.permutation(4)
    found = matched_and_optimal(jnp.array(effective_gram(h, noise_covariance)), jnp.array(order))
    matched, matched_sic, lmmse, sic = map(np.asarray, found)
    filters = np.linalg.solve(noise_covariance, h).conj().T
    for user in range(4):
        later = list(order[list(order).index(user) + 1 :])
        for mse, others in ((matched, [q for q in range(4) if q != user]), (matched_sic, later)):
            signal = abs(filters[user] @ h[:, user]) ** 2
            heard = np.sum(np.abs(filters[user] @ h[:, others]) ** 2)
            noise = (filters[user] @ noise_covariance @ filters[user].conj()).real
            np.testing.assert_allclose(mse[user], 1 / (1 + signal / (heard + noise)), rtol=1e-9)
    assert np.all(matched >= lmmse * (1 - 1e-9))
    assert np.all(matched_sic >= sic * (1 - 1e-9))


@functools.cache
def errors_of(receiver):
    def errors(h, attack, key):
        known = receiver.from_gram if hasattr(receiver, "from_gram") else receiver.of.from_gram
        power = channel.received_power(channel.gram(h))
        by_gram = known(channel.effective_gram(h, attack, 1.0), power)
        filters = receiver.filters(h, attack, 1.0, key)
        by_filters = channel.error_covariance_of(filters, h, attack, 1.0)
        return by_gram, by_filters, receiver(h, attack, 1.0, key), filters.mse

    return jax.jit(jax.vmap(errors, (None, None, 0)), compiler_options=FAST_COMPILE)


def system(seed):
    rng = np.random.default_rng(seed)
    root = complex_normal(rng, 6, 2)
    return complex_normal(rng, 6, 4) * [1, 2, 3, 4], 9 * root @ root.conj().T


@pytest.mark.parametrize("kind", ["sic", "sic(strongest_first)", "lmmse", "matched_filter"])
def test_receivers_are_their_filters(kind):
    keys = jax.random.split(jax.random.key(0), 1)
    by_gram, by_filters, called, mse = errors_of(channel.get_receiver(kind))(*system(2), keys)
    np.testing.assert_allclose(by_filters, by_gram, atol=1e-10)
    np.testing.assert_array_equal(called, by_gram)
    np.testing.assert_allclose(mse[0], np.diagonal(by_gram[0]).real, rtol=1e-10)


@pytest.mark.parametrize("of", ["sic", "lmmse"])
def test_an_estimated_covariance_tends_to_the_true_one(of):
    """Never better than knowing the noise; the loss falls with the snapshots."""
    keys, losses = jax.random.split(jax.random.key(1), 50), []
    for snapshots in (4, 64, 4096):
        receiver = channel.get_receiver(f"estimated({snapshots}, loading=0.01, of={of})")
        known, _, found, _ = errors_of(receiver)(*system(3), keys)
        loss = np.diagonal(found - known, axis1=1, axis2=2).real
        assert np.min(loss) > -1e-9
        losses.append(np.mean(loss))
    assert losses[0] > 4 * losses[1] > 16 * losses[2] > 0


def test_an_estimate_needs_a_key():
    with pytest.raises(InputError, match="snapshots of the noise: give it a key"):
        channel.Estimated()(*map(jnp.asarray, system(3)))
    with pytest.raises(InputError, match="loading must be finite and > 0"):
        channel.Estimated(loading=0.0)


def test_receivers_are_read_as_they_are_written():
    for receiver in (channel.Lmmse(), channel.Estimated(32, of=channel.Lmmse()), channel.SIC):
        assert channel.get_receiver(described(receiver)) == receiver
    assert channel.get_receiver("strongest_first") == channel.Sic("strongest_first")
    with pytest.raises(InputError, match="unknown receiver 'zf'"):
        channel.get_receiver("zf")


def test_unknown_order_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'weakest_first'"):
        channel.sic_order(jnp.ones(3), "weakest")
