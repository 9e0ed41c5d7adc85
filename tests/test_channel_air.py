"""What users do on the air, against stacked channels, mixtures and smaller channels in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from conftest import complex_normal

from rmtllmf_jax import channel
from rmtllmf_jax.channel import (
    AIR,
    ChannelPreset,
    Estimated,
    Harq,
    Hop,
    Link,
    Lmmse,
    Minimax,
    NoAttack,
    Once,
    Powered,
    Projected,
    Repeat,
    Schedule,
    Sensed,
    Sic,
    StrongestUser,
    SumMse,
    SumRate,
    Towards,
    Unaware,
    White,
)
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described, parse

pytestmark = pytest.mark.usefixtures("x64")

USERS, ANTENNAS, BUDGET = 4, 6, 20.0
PRESET = ChannelPreset(users=USERS, antennas=ANTENNAS, attack_budget_db=13.0)
RECEIVERS = (Sic(), Lmmse(), Unaware(of=Lmmse()), Unaware())
PLANNING = (Minimax(), Powered(), Projected(rank=1))
ATTACKS = (NoAttack(), White(), SumRate(), StrongestUser(), SumMse())
KEY = jax.random.key(3)


def drawn(blocks=1):
    h = complex_normal(np.random.default_rng(blocks), blocks, ANTENNAS, USERS) * 3
    return jnp.asarray(h[0] if blocks == 1 else h)


def mse(air, h, attack, receiver=Sic(), budget=BUDGET, **given):  # noqa: B008
    found = air(h, attack, budget, 1.0, receiver, **given)
    return np.real(np.diagonal(found.errors)), np.asarray(found.uses)


def stacked(h, attack, receiver, budget):
    """All antennas of all blocks together, the attacker solving each block by itself."""
    whole = np.concatenate(list(h))
    noise = scipy.linalg.block_diag(*[attack(block, budget) for block in h])
    return np.real(np.diagonal(receiver(jnp.asarray(whole), jnp.asarray(noise), 1.0)))


@pytest.mark.parametrize("receiver", RECEIVERS, ids=described)
@pytest.mark.parametrize("attack", ATTACKS, ids=described)
def test_independent_blocks_are_more_antennas(attack, receiver):
    h = drawn(3)
    found, uses = mse(Repeat(3, "independent"), h, attack, receiver)
    np.testing.assert_allclose(found, stacked(h, attack, receiver, BUDGET), rtol=1e-9)
    np.testing.assert_array_equal(uses, 3.0)


@pytest.mark.parametrize("receiver", RECEIVERS, ids=described)
def test_repeating_over_one_channel_is_stacking_it_under_the_attack_on_what_is_combined(receiver):
    """Against the attack solved for the combined channel, put into each block as it is."""
    h, times = drawn(), 3
    found, _ = mse(Repeat(times), h, SumRate(), receiver)
    answer = np.asarray(SumRate()(np.sqrt(times) * h, BUDGET))
    whole = jnp.concatenate([h] * times)
    noise = jnp.asarray(scipy.linalg.block_diag(*[answer] * times))
    expected = np.real(np.diagonal(receiver(whole, noise, 1.0)))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_answer_to_repetition_is_worse_than_the_attack_on_one_block():
    h, times = drawn(), 4
    naive = SumRate()(h, BUDGET)
    rate = [
        channel.sum_rate(channel.effective_gram(np.sqrt(times) * h, attack, 1e-9))
        for attack in (SumRate()(np.sqrt(times) * h, BUDGET), naive)
    ]
    assert rate[0] <= rate[1] + 1e-9


@pytest.mark.parametrize("receiver", PLANNING, ids=described)
def test_receivers_that_plan_do_so_for_all_blocks(receiver):
    h = drawn(2)
    whole = jnp.concatenate(list(h))
    noise = jnp.asarray(scipy.linalg.block_diag(*[SumRate()(block, BUDGET) for block in h]))
    expected = receiver(whole, noise, 1.0, budget=2 * BUDGET)
    found, _ = mse(Repeat(2, "independent"), h, SumRate(), receiver)
    np.testing.assert_allclose(found, np.real(np.diagonal(expected)), rtol=1e-9)


def test_the_minimax_receiver_keeps_its_promise_over_blocks():
    """No attack in each block by itself brings more than the worst on all of them together."""
    h = drawn(2)
    worst = Lmmse()(jnp.concatenate(list(h)), SumMse()(jnp.concatenate(list(h)), 2 * BUDGET), 1.0)
    promise = float(jnp.trace(worst).real)
    for attack in (SumRate(), SumMse(), White(), StrongestUser()):
        found, _ = mse(Repeat(2, "independent"), h, attack, Minimax())
        assert found.sum() <= promise * (1 + 1e-9)


def test_symbols_sent_twice_have_the_errors_that_repetition_says():
    """Transmissions one by one: filters on both receptions, averaged over symbols."""
    h, times, symbols = drawn(), 2, 40_000
    attack = np.asarray(SumRate()(np.sqrt(times) * h, BUDGET))
    rng = np.random.default_rng(0)
    x = complex_normal(rng, USERS, symbols)
    root = scipy.linalg.sqrtm(attack + np.eye(ANTENNAS))
    y = np.concatenate([h @ x + root @ complex_normal(rng, ANTENNAS, symbols) for _ in range(2)])
    whole = np.concatenate([h] * 2)
    noise = scipy.linalg.block_diag(*[attack + np.eye(ANTENNAS)] * 2)
    filters = whole.conj().T @ np.linalg.inv(whole @ whole.conj().T + noise)
    error = np.mean(np.abs(filters @ y - x) ** 2, axis=1)
    found, _ = mse(Repeat(times), h, SumRate(), Lmmse())
    np.testing.assert_allclose(found, error, rtol=0.05)


def test_a_shared_budget_is_divided():
    h = drawn()
    np.testing.assert_allclose(
        mse(Repeat(4, budget="shared"), h, SumRate())[0],
        mse(Repeat(4), h, SumRate(), budget=BUDGET / 4)[0],
    )


@pytest.mark.parametrize("fading", ["same", "independent"])
def test_harq_stops_each_user_at_its_own_round(fading):
    h = drawn(4) if fading == "independent" else drawn()
    after = [
        mse(Repeat(t, fading), h[:t] if t > 1 and h.ndim == 3 else h, SumRate())[0]
        for t in (2, 3, 4)
    ]
    after.insert(0, mse(Once(), h[0] if h.ndim == 3 else h, SumRate())[0])
    target = float(np.median(after[1]))
    found, uses = mse(Harq(4, target, fading), h, SumRate())
    for user in range(USERS):
        rounds = next((r for r in range(4) if after[r][user] <= target), 3)
        assert uses[user] == rounds + 1
        np.testing.assert_allclose(found[user], after[rounds][user], rtol=1e-9)
    assert len(set(uses)) > 1


@pytest.mark.parametrize("jammed", [None, 1, 3])
def test_hopping_is_a_mixture_and_the_attacker_takes_the_best_number_of_bands(jammed):
    h, bands = drawn(), 5
    quiet = mse(Once(), h, NoAttack())[0]
    mixed = {
        j: j / bands * mse(Once(), h, SumRate(), budget=BUDGET / j)[0] + (1 - j / bands) * quiet
        for j in range(1, bands + 1)
    }
    expected = max(mixed.values(), key=np.sum) if jammed is None else mixed[jammed]
    found, uses = mse(Hop(bands, jammed), h, SumRate())
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_array_equal(uses, bands)
    np.testing.assert_array_equal(mse(Hop(bands, jammed, shared=True), h, SumRate())[1], 1.0)


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_a_schedule_is_smaller_channels(groups):
    h = drawn()
    found, uses = mse(Schedule(groups), h, StrongestUser())
    for slot in range(groups):
        members = list(range(slot, USERS, groups))
        alone = mse(Once(), h[:, jnp.array(members)], StrongestUser())[0]
        np.testing.assert_allclose(found[members], alone, rtol=1e-9)
    np.testing.assert_array_equal(uses, groups)


@pytest.mark.parametrize("kind", AIR.values())
def test_nothing_done_is_sending_once(kind):
    least = {"Repeat": {"times": 1}, "Harq": {"rounds": 1}, "Hop": {"bands": 1}}
    air = kind(**least.get(kind.__name__, {"groups": 1} if kind is Schedule else {}))
    link = Link(PRESET, SumRate())
    np.testing.assert_allclose(Link(PRESET, SumRate(), air=air).mse(KEY), link.mse(KEY), rtol=1e-12)


@pytest.mark.parametrize(
    "air", [Repeat(3), Repeat(3, "independent"), Harq(3, 0.2), Hop(4), Schedule(2)], ids=described
)
def test_derivatives_by_gain_and_budget_are_those_of_finite_differences(air):
    link = Link(PRESET, SumRate(), air=air)

    def total(gain, budget):
        return jnp.sum(channel.mse_of(link.over(gain * link.draw(KEY), KEY, budget=budget).errors))

    at = (1.1, 15.0)
    found = jax.jit(jax.grad(total, argnums=(0, 1)))(*at)
    for place, step in enumerate((1e-5, 1e-4)):
        ends = [list(at), list(at)]
        ends[0][place] += step
        ends[1][place] -= step
        slope = (total(*ends[0]) - total(*ends[1])) / (2 * step)
        np.testing.assert_allclose(found[place], slope, rtol=1e-6)
    keys = jax.random.split(KEY, 3)
    many = jax.jit(jax.vmap(link.mse))(keys)
    np.testing.assert_allclose(many[1], link.mse(keys[1]), rtol=1e-9)
    np.testing.assert_allclose(jax.lax.map(link.mse, keys), many, rtol=1e-9)


def test_blocks_fade_anew_and_users_keep_their_places():
    link = Link(PRESET, SumRate(), air=Repeat(400, "independent"))
    h = np.asarray(link.draw(KEY))
    np.testing.assert_array_equal(h[0], channel.draw_channel(PRESET, KEY))
    power = np.mean(np.abs(h) ** 2, axis=1)
    distances = channel.draw_distances(PRESET, KEY)
    gain = PRESET.path_loss(distances) / PRESET.path_loss(1000.0) * PRESET.edge_snr
    np.testing.assert_allclose(power.mean(axis=0), gain, rtol=0.1)
    centred = power - power.mean(axis=0)
    assert abs(np.mean(centred[1:] * centred[:-1], axis=0) / power.var(axis=0)).max() < 0.2


def test_estimating_receivers_measure_over_all_blocks():
    key = jax.random.key(1)
    link = Link(PRESET, SumRate(), Estimated(100_000, 1e-6), Repeat(2, "independent"))
    known = Link(PRESET, SumRate(), Sic(), Repeat(2, "independent"))
    np.testing.assert_allclose(link.mse(key), known.mse(key), rtol=0.01)


def test_symbols_go_through_the_combined_channel():
    link = Link(PRESET, SumRate(), air=Repeat(3))
    h, noise, filters = link.filters(link.draw(KEY), KEY)
    np.testing.assert_allclose(filters.mse, link.mse(KEY), rtol=1e-9)
    assert h.shape == (ANTENNAS, USERS)
    assert noise.vectors.shape == (ANTENNAS, ANTENNAS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("repeat(times=0)", "times"),
        ("repeat(fading=slow)", "fading"),
        ("harq(rounds=0)", "rounds"),
        ("harq(target=0)", "target"),
        ("harq(target=1.5)", "target"),
        ("hop(bands=0)", "bands"),
        ("hop(bands=4, jammed=5)", "jammed"),
        ("schedule(groups=0)", "groups"),
    ],
)
def test_values_that_nothing_can_have_are_refused(text, said):
    with pytest.raises(InputError, match=said):
        parse(text, AIR, "defence")


def test_what_cannot_go_together_is_refused():
    h = drawn()
    with pytest.raises(InputError, match="5 groups for 4 users"):
        Schedule(5)(h, SumRate(), BUDGET)
    with pytest.raises(InputError, match="on one user by its number"):
        Schedule(2)(h, Towards(1), BUDGET)
    with pytest.raises(InputError, match="2 blocks, so an array of 3 axes"):
        Repeat(2, "independent")(h, SumRate(), BUDGET)
    with pytest.raises(InputError, match="is for one array"):
        Repeat(2, "independent")(drawn(2), SumRate(), BUDGET, 1.0, Sensed((0.0,)))
    with pytest.raises(InputError, match="are given: use fading=same"):
        Link(channel.Matrices(np.asarray(h)[None]), air=Repeat(2, "independent"))
    with pytest.raises(InputError, match="the air repeat needs a channel"):
        Link(channel.DirectPreset(mse=(0.1,)), air=Repeat())
    for air in (Hop(), Harq(), Schedule()):
        with pytest.raises(InputError, match="symbols cannot be sent"):
            Link(PRESET, air=air).filters(h, KEY)
    with pytest.raises(InputError, match="fading=same"):
        Link(PRESET, air=Repeat(2, "independent")).filters(h, KEY)
