"""Sparse and coded transports: against brute force, against a coder, and their outages."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal
from scipy import stats

from rmtllmf_jax import channel, uplink
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.uplink import GAUSSIAN, Chosen, Coded, Sparse, entropy, get_transport
from rmtllmf_jax.uplink import outage_probability as outage
from rmtllmf_jax.uplink.magnitudes import BINS, are_largest, largest, lloyd_max, magnitudes

KEY = jax.random.key(3)
SIZE = 1_500
MSE = jnp.array([0.05, 0.3, 0.7])
ONES = jnp.ones(3)
NORMALS = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)


def stacked(size: int = SIZE, users: int = 3, law: str = "laplace") -> dict:
    """Two leaves of unlike size; the users' vectors differ in scale."""
    random = np.random.default_rng(1)
    values = getattr(random, law)(size=(users, size)) * 10.0 ** -np.arange(users)[:, None]
    values = jnp.asarray(values, jnp.float32)
    return {"w": values[:, : size - 60].reshape(users, -1, 10), "b": values[:, size - 60 :]}


def rows_of(tree: dict) -> np.ndarray:
    users = len(tree["w"])
    rows = [np.asarray(tree[name], np.float64).reshape(users, -1) for name in ("b", "w")]
    return np.concatenate(rows, axis=1)


def power(rows: np.ndarray) -> np.ndarray:
    return np.mean(np.square(rows), axis=-1)


def bits_of(share: float, bits: int, size: int) -> float:
    """Bits of a share of entries: with positions, a float32 per level, and 40 bits."""
    positions = -sum(p * math.log2(p) for p in (share, 1 - share) if p)
    return size * (share * bits + positions) + 40 + 32 * 2 ** (bits - 1)


@functools.cache
def deliver(coded: Coded) -> Any:
    return jax.jit(coded.deliver)


# What are the largest, and how they are quantised


def test_the_largest_are_as_many_as_asked_for_and_the_largest():
    vector = stacked(20_000)["w"][0].ravel()
    bins = magnitudes(vector)
    size = np.abs(np.asarray(vector))
    order = np.sort(size)[::-1]
    for count in (0, 1, 777, 12_345, size.size):
        kept = np.asarray(are_largest(bins, largest(bins, jnp.asarray(count))))
        assert kept.sum() == count
        assert np.all(size[kept] > (1 - 1e-3) * order[max(count - 1, 0)])
        np.testing.assert_allclose(np.sum(size[kept] ** 2), np.sum(order[:count] ** 2), rtol=1e-5)


@pytest.mark.parametrize("vector", [np.ones(500), np.zeros(500), np.repeat([0.0, -2.0], 250)])
def test_equal_magnitudes_are_taken_in_their_order(vector: np.ndarray):
    bins = magnitudes(jnp.asarray(vector, jnp.float32))
    kept = np.asarray(are_largest(bins, largest(bins, jnp.asarray(120))))
    assert np.flatnonzero(kept).tolist() == np.argsort(-abs(vector), kind="stable")[:120].tolist()


@pytest.mark.parametrize(
    ("bits", "error"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)]
)
def test_levels_for_a_gaussian_are_those_of_max(bits: int, error: float):
    found = float(quantised_error(NORMALS, 2 ** (bits - 1)))
    np.testing.assert_allclose(found, error, rtol=0.015)


def test_many_levels_for_a_gaussian_are_those_of_panter_and_dite():
    found = float(quantised_error(NORMALS, 128))
    np.testing.assert_allclose(found, math.sqrt(3) * math.pi / 2 / 4**8, rtol=0.04)


@functools.cache
def _fit() -> Any:
    def fit(vector: jax.Array, levels: jax.Array) -> jax.Array:
        bins = magnitudes(vector)
        return lloyd_max(bins, bins.number, levels, jnp.asarray(False), most=128)[bins.of]

    return jax.jit(fit)


def quantised_error(vector: np.ndarray, levels: int) -> float:
    level = _fit()(jnp.asarray(vector, jnp.float32), jnp.asarray(levels))
    assert len(np.unique(level)) == levels
    return power(np.abs(vector) - np.asarray(level))


# The choice of what is sent


def least_errors(vector: np.ndarray, levels: int) -> np.ndarray:
    """Least squared error of the k largest in so many levels, the others as 0, for all k."""
    size = np.sort(np.abs(vector))[::-1]
    first, second = (np.concatenate([[0], np.cumsum(size**p)]) for p in (1, 2))
    start, end = np.indices((size.size + 1, size.size + 1))
    number = np.maximum(end - start, 1)
    cell = second[end] - second[start] - (first[end] - first[start]) ** 2 / number
    cell = np.where(end >= start, cell, np.inf)
    best = cell[0]
    for _ in range(levels - 1):
        best = np.min(best[:, None] + cell, axis=0)
    return best + second[-1] - second


@functools.cache
def by_brute_force(user: int, bits: int) -> np.ndarray:
    return least_errors(rows_of(stacked())[user], 2 ** (bits - 1))


@pytest.mark.parametrize("mse", [0.9, 0.5, 0.25, 0.12, 0.05])
@pytest.mark.parametrize("user", [0, 2])
def test_the_choice_is_that_of_brute_force(mse: float, user: int):
    """Over all numbers of bits and entries that the rate pays for, with the best levels."""
    budget, best = -math.log2(mse) * SIZE, math.inf
    for bits in (1, 2, 3):
        errors = by_brute_force(user, bits)
        paid = [k for k in range(SIZE) if bits_of(k / SIZE, bits, SIZE) <= budget]
        if SIZE * bits + bits_of(0, bits, SIZE) <= budget:
            paid.append(SIZE)
        best = min(best, *(errors[k] for k in paid), math.inf)
    found = chosen(Coded(gap_db=0.0, bits=(1, 2, 3)), jnp.full(3, mse))
    assert (1 - 1e-3) * best < float(found.error[user]) * SIZE < 1.01 * best


@functools.cache
def _chosen(coded: Coded) -> Any:
    return jax.jit(coded.chosen)


def chosen(coded: Coded, mse: jax.Array) -> Chosen:
    return _chosen(coded)(stacked(), mse)


def test_the_error_is_the_one_that_was_foreseen_and_uncorrelated_with_what_arrives():
    sent, coded = stacked(), Coded()
    arrived = rows_of(deliver(coded)(sent, MSE, ONES, KEY))
    error = arrived - rows_of(sent)
    np.testing.assert_allclose(power(error), chosen(coded, MSE).error, rtol=1e-4)
    assert np.all(np.abs(np.sum(error * arrived, axis=1)) < 1e-4 * np.sum(arrived**2, axis=1))
    assert np.all(np.diff(power(error) / power(rows_of(sent))) > 0)  # a worse link, a worse vector


def test_what_its_level_would_bring_further_off_is_left_out():
    sent = {"w": jnp.asarray([[0.0] * 700 + [1.0, -1.0] * 150], jnp.float32)}
    coded = Coded(gap_db=0.0, bits=(1,))
    mse = jnp.array([0.2])
    assert coded.chosen(sent, mse).sent.tolist() == [300]
    assert_trees_equal(coded.deliver(sent, mse, jnp.ones(1), KEY), sent)


def test_the_rate_is_that_of_the_sinr_less_gap_and_margin():
    coded = Coded(uses=2.0, gap_db=2.0, margin_db=1.0)
    mse = np.array([0.03, 0.4, 1.0])
    rate = -np.log2(np.asarray(coded._needed(jnp.asarray(mse))))
    np.testing.assert_allclose(rate, np.log2(1 + (1 / mse - 1) / 10**0.3), rtol=1e-5, atol=1e-6)
    assert coded.uses_of(MSE, {}).tolist() == [2.0] * 3


@pytest.mark.parametrize("mse", [0.0, 1.0, 1.7])
def test_a_perfect_link_and_one_of_no_use(mse: float):
    sent = stacked(20_000)
    arrived = rows_of(deliver(Coded())(sent, jnp.full(3, mse), ONES, KEY))
    if mse:
        assert np.all(arrived == 0)
    else:
        assert np.all(power(arrived - rows_of(sent)) < 1e-4 * power(rows_of(sent)))


def test_vectors_of_zeros_and_narrow_leaves():
    sent = jax.tree.map(lambda leaf: leaf.at[1].set(0).astype(jnp.bfloat16), stacked())
    arrived = deliver(Coded())(sent, MSE, ONES, KEY)
    assert arrived["w"].dtype == jnp.bfloat16
    assert np.all(rows_of(arrived)[1] == 0)
    assert np.all(np.isfinite(rows_of(arrived)))


# Bits, counted


def written(vector: np.ndarray, bits: int) -> str:
    """A vector of few levels in bits: header, levels, positions by number, and the entries."""
    places = np.flatnonzero(vector)
    levels = np.zeros(2 ** (bits - 1), np.float32)
    known = np.unique(np.abs(vector[places]))
    levels[: known.size] = known
    total = math.comb(vector.size, places.size)
    number = sum(math.comb(int(place), i) for i, place in enumerate(places, start=1))
    text = f"{places.size:032b}{bits:08b}"
    text += "".join(f"{int(level):032b}" for level in levels.view(np.uint32))
    text += f"{number:0{(total - 1).bit_length()}b}"
    for place in places:
        text += "01"[int(vector[place] < 0)]
        if bits > 1:
            text += f"{int(np.searchsorted(known, abs(vector[place]))):0{bits - 1}b}"
    return text


def read(text: str, size: int) -> np.ndarray:
    """Undo `written`."""
    taken = 0

    def take(count: int) -> int:
        nonlocal taken
        taken += count
        return int(text[taken - count : taken] or "0", 2)

    count, bits = take(32), take(8)
    levels = np.array([take(32) for _ in range(2 ** (bits - 1))], np.uint32).view(np.float32)
    number, place, places = take((math.comb(size, count) - 1).bit_length()), size - 1, []
    for i in range(count, 0, -1):
        while math.comb(place, i) > number:
            place -= 1
        number -= math.comb(place, i)
        places.append(place)
    vector = np.zeros(size, np.float32)
    for place in reversed(places):
        sign = -1 if take(1) else 1
        vector[place] = sign * levels[take(bits - 1)]
    assert taken == len(text)
    return vector


@pytest.mark.parametrize("user", [0, 1, 2])
def test_the_bits_are_those_of_a_coder(user: int):
    coded, mse = Coded(gap_db=0.0), jnp.array([0.1, 0.3, 0.7])
    arrived = rows_of(deliver(coded)(stacked(), mse, ONES, KEY))[user].astype(np.float32)
    found = chosen(coded, mse)
    text = written(arrived, int(found.bits[user]))
    np.testing.assert_array_equal(read(text, SIZE), arrived)
    assert int(found.sent[user]) == np.count_nonzero(arrived)
    foreseen = bits_of(int(found.sent[user]) / SIZE, int(found.bits[user]), SIZE)
    assert 0.98 * foreseen < len(text) <= foreseen
    budget = -math.log2(float(mse[user])) * SIZE
    assert 0.97 * budget < foreseen <= budget * (1 + 1e-5)


# Outages


def test_less_than_was_planned_for_is_an_erasure():
    sent, coded = stacked(), Coded()
    planned = jnp.array([0.05, 0.2, 0.71])
    arrived = deliver(coded)(sent, MSE, ONES, KEY, planned=planned)
    assert (np.abs(rows_of(arrived)).max(axis=1) > 0).tolist() == [True, False, True]
    assert coded.outage(MSE, planned).tolist() == [0, 1, 0]
    wary = Coded(margin_db=3.0)
    assert wary.outage(MSE, planned).tolist() == [0, 0, 0]
    same = deliver(wary)(sent, jnp.array([0.08, 0.28, 0.7]), ONES, KEY, planned=planned)
    assert_trees_equal(same, deliver(wary)(sent, planned, ONES, KEY))  # the plan's rate, not more


def test_no_more_than_the_bits_need_is_asked_for():
    assert Coded().outage(jnp.array([1e-5]), jnp.array([1e-6])).tolist() == [0]
    assert Coded().outage(jnp.array([0.1]), jnp.array([0.0])).tolist() == [1]


def test_the_outage_of_a_block_by_its_formula():
    mse, rate, block = 0.2, 2.0, 200
    dispersion = 1 - mse**2
    argument = math.sqrt(block / dispersion) * (-math.log(mse) - rate * math.log(2))
    expected = math.erfc(argument / math.sqrt(2)) / 2
    np.testing.assert_allclose(float(outage(mse, rate, block)), expected, rtol=1e-5)
    steep = outage(jnp.array([0.24, 0.26]), 2.0, 10**6)
    np.testing.assert_allclose(steep, [0, 1], atol=1e-6)
    assert outage(jnp.array([0.0, 1.0]), 2.0, 100).tolist() == [0, 1]
    slopes = jax.vmap(jax.grad(lambda mse: outage(mse, 2.0, 100)))(jnp.array([0.0, 1.0, 1.5]))
    assert np.all(np.isfinite(slopes))


def test_outages_are_drawn_with_their_probability():
    coded = Coded(block=100, bits=(1,))
    mse, planned = jnp.array([0.33, 0.36, 0.3]), jnp.full(3, 0.35)
    keys = jax.random.split(KEY, 400)
    sent = {"w": jnp.ones((3, 100)), "b": jnp.ones((3, 100))}
    arrived = jax.jit(
        jax.vmap(
            lambda key: jnp.any(coded.deliver(sent, mse, ONES, key, planned=planned)["b"], axis=1)
        )
    )(keys)
    found, expected = 1 - np.mean(arrived, axis=0), np.asarray(coded.outage(mse, planned))
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 400))
    assert 0.05 < expected.min() < expected.max() < 0.95


def test_a_user_more_leaves_the_outages_of_the_others_alone():
    coded, sent = Coded(block=100), stacked()
    two = jax.tree.map(lambda leaf: leaf[:2], sent)
    for seed in range(4):
        key = jax.random.key(seed)
        all_users = deliver(coded)(sent, MSE, ONES, key)
        assert_trees_equal(
            deliver(coded)(two, MSE[:2], ONES[:2], key), jax.tree.map(lambda x: x[:2], all_users)
        )


@pytest.mark.usefixtures("x64")
def test_the_derivative_of_the_expected_delivery():
    coded = Coded(block=100, expected=True)
    sent = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), stacked(300))
    weights = np.random.default_rng(0).normal(size=(3, 300))
    mse, planned = jnp.array([0.05, 0.31, 0.68]), jnp.array([0.055, 0.3, 0.7])

    @jax.jit
    def score(mse: jax.Array) -> jax.Array:
        arrived = coded.deliver(sent, mse, jnp.ones(3), KEY, planned=planned)
        flat = jnp.concatenate([arrived[name].reshape(3, -1) for name in "bw"], axis=1)
        return jnp.sum(weights * flat / 10.0 ** -jnp.arange(3)[:, None])

    slope = jax.grad(score)(mse)
    step = 1e-5
    for user in range(3):
        move = step * jnp.eye(3)[user] * mse
        ahead = [score(mse + k * move) - score(mse - k * move) for k in (1, 2)]
        expected = (8 * ahead[0] - ahead[1]) / (12 * step * mse[user])
        np.testing.assert_allclose(slope[user], expected, rtol=1e-6)
    outage = coded.outage(mse, planned)
    assert np.all((outage > 0.01) & (outage < 0.99))


def test_what_is_sent_is_held_constant():
    def score(sent: dict, mse: jax.Array) -> jax.Array:
        arrived = Coded().deliver(sent, mse, ONES, KEY)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(arrived))

    for slope in jax.tree.leaves(jax.jit(jax.grad(score, (0, 1)))(stacked(), MSE)):
        assert np.all(slope == 0)


# Sparse


def test_all_of_a_vector_is_the_surrogate():
    sent, kappa = stacked(), jnp.array([2.0, 0.1, 0.03])
    gaussian = GAUSSIAN.deliver(sent, MSE, kappa, KEY)
    assert_trees_equal(gaussian, uplink.transmit(sent, MSE, kappa, KEY))
    assert_trees_equal(Sparse(1.0).deliver(sent, MSE, kappa, KEY), gaussian)
    assert_trees_equal(Sparse(1.0).variance(sent, MSE, kappa), GAUSSIAN.variance(sent, MSE, kappa))
    assert Sparse(1.0).uses_of(MSE, {}).tolist() == GAUSSIAN.uses_of(MSE, {}).tolist() == [1, 1, 1]


def test_the_error_of_what_is_sent_and_of_what_is_not():
    """Its noise is kappa'^2 mu, with symbols of unit power; the rest is lost."""
    sent, kappa = stacked(40_000), jnp.array([2.0, 0.1, 0.03])
    sparse = Sparse(0.2)
    rows = rows_of(sent)
    arrived = rows_of(jax.jit(sparse.deliver)(sent, MSE, kappa, KEY))
    for user in range(3):
        kept = arrived[user] != 0
        assert kept.sum() == 0.2 * kept.size
        order = np.sort(np.abs(rows[user]))[::-1][: kept.sum()]
        np.testing.assert_allclose(power(rows[user][kept]), power(order), rtol=1e-5)
        scale = float(kappa[user]) * np.sqrt(power(rows[user][kept]) / power(rows[user]))
        noise = power((arrived - rows)[user][kept])
        expected = scale**2 * float(MSE[user])
        np.testing.assert_allclose(noise, expected, rtol=5 * np.sqrt(2 / kept.sum()))
        # The energy of a symbol is the same as if all were sent.
        unit = power(rows[user][kept]) / scale**2
        np.testing.assert_allclose(unit, power(rows[user]) / float(kappa[user]) ** 2, rtol=1e-9)
        known, energy = sparse.variance(sent, MSE, kappa), sparse.energy(sent)
        total = {name: np.mean(kept[:60] if name == "b" else kept[60:]) * expected for name in "bw"}
        for name, value in total.items():
            np.testing.assert_allclose(known[name][user], value, rtol=1e-4)
        both = (60 * energy["b"][user] + 39_940 * energy["w"][user]) / 40_000
        np.testing.assert_allclose(both, 0.2 * power(order), rtol=1e-4)


def test_positions_cost_channel_uses():
    uses = Sparse(0.1).uses_of(jnp.array([0.5, 0.25, 1.0, 0.0]), {})
    bits = float(entropy(0.1))
    np.testing.assert_allclose(uses, [0.1 + bits, 0.1 + bits / 2, np.inf, 0.1], rtol=1e-6)
    np.testing.assert_allclose(bits, 0.468996, rtol=1e-5)


def test_sparse_takes_an_mse_for_every_leaf_and_coded_does_not():
    sent = stacked()
    by_leaf = {"w": 0 * MSE, "b": MSE}
    arrived = Sparse(0.5).deliver(sent, by_leaf, ONES, KEY)
    kept = arrived["w"] != 0
    assert np.array_equal(np.asarray(arrived["w"])[kept], np.asarray(sent["w"])[kept])
    assert np.all(Sparse(0.5).variance(sent, by_leaf, ONES)["w"] == 0)
    with pytest.raises(InputError, match="got a tree"):
        Coded().deliver(sent, by_leaf, ONES, KEY)


def test_derivatives_of_sparse():
    sent = stacked(200)

    def score(sent: dict, mse: jax.Array, kappa: jax.Array) -> jax.Array:
        arrived = Sparse(0.3).deliver(sent, mse, kappa, KEY)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(arrived))

    slopes = jax.jit(jax.grad(score, (0, 1, 2)))(sent, MSE, ONES)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))
    empty = jax.tree.map(jnp.zeros_like, sent)
    slopes = jax.jit(jax.grad(score, (0, 1, 2)))(empty, 0 * MSE, ONES)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))


# As values


@pytest.mark.parametrize("transport", [GAUSSIAN, Sparse(0.2), Coded(), Coded(block=50)])
def test_compiled_and_over_a_batch_of_links(transport: Any):
    sent = stacked(300)
    mses = jnp.stack([MSE, MSE / 2])
    batch = jax.jit(jax.vmap(lambda mse: transport.deliver(sent, mse, ONES, KEY)))(mses)
    for point, mse in enumerate(mses):
        alone = transport.deliver(sent, mse, ONES, KEY)
        for name in sent:
            np.testing.assert_allclose(batch[name][point], alone[name], rtol=1e-4, atol=1e-6)
    assert isinstance(transport, uplink.MseTransport)
    assert uplink.is_of_mse(transport)
    assert transport.stage == "transport"


def test_symbols_are_not_of_the_mse():
    assert not uplink.is_of_mse(uplink.Qam())
    assert uplink.Qam().stage == "transport"


@pytest.mark.parametrize(
    "text",
    [
        "sparse(share=0.1)",
        "coded",
        "coded(uses=2.0, bits=(1, 2), plan=sum_rate, margin_db=1.0, block=100, expected=true)",
    ],
)
def test_written_and_read(text: str):
    transport = get_transport(text)
    assert described(transport) == text
    assert hash(transport) == hash(get_transport(text))


def test_the_attack_that_is_planned_for():
    assert get_transport("coded(plan=sum_rate)").plan == channel.SumRate()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparse(share=0)", "share must be > 0 and <= 1, got 0.0"),
        ("sparse(share=1.5)", "share must be > 0 and <= 1, got 1.5"),
        ("sparse", "sparse needs share"),
        ("coded(gap_db=-1)", "gap_db must be a finite number >= 0, got -1.0"),
        ("coded(margin_db=-1)", "margin_db must be a finite number >= 0"),
        ("coded(uses=0)", "uses must be finite and > 0, got 0.0"),
        ("coded(bits=(0, 1))", "bits must be at least 1, got 0"),
        ("coded(bits=(2, 12))", "bits must be at most 10, got 12"),
        ("coded(bits=())", "at least one"),
        ("coded(block=0)", "block must be at least 1, got 0"),
        ("coded(expected=true)", "needs the length of a block"),
        ("coded(plan=sum_rat)", "sum_rate"),
    ],
)
def test_bad_values_are_refused_by_name(text: str, message: str):
    with pytest.raises(InputError, match=message):
        get_transport(text)


@pytest.mark.parametrize("transport", [GAUSSIAN, Sparse(0.2), Coded()])
@pytest.mark.parametrize("mse", [jnp.ones(2), -jnp.ones(3), jnp.full(3, jnp.nan)])
def test_bad_mses_are_refused_by_name(transport: Any, mse: jax.Array):
    with pytest.raises(InputError, match="mse"):
        transport.deliver(stacked(300), mse, ONES, KEY)


def test_bins_reach_far_enough():
    """A magnitude 2^-31 of the largest has a bin of its own kind."""
    bins = magnitudes(jnp.array([1.0, 2.0**-31, 0.0]))
    assert 0 == bins.of[0] < bins.of[1] < bins.of[2] == BINS - 1
