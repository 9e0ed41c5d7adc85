"""Receivers that know less than the noise: each against NumPy, and Minimax's guarantee."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KEYLESS, complex_normal

from rmtllmf_jax import channel
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described

FAST_COMPILE = {"xla_backend_optimization_level": 0}
KEY = jax.random.key(5)
LMMSE = channel.Lmmse()
ANTENNAS, USERS, BUDGET, NOISE = 6, 3, 40.0, 0.5

pytestmark = pytest.mark.usefixtures("x64")


def near_far(rng, antennas=ANTENNAS, users=USERS):
    return complex_normal(rng, antennas, users) * 10 ** rng.uniform(-0.5, 0.7, users)


def low_rank(rng, rank=2, budget=BUDGET, antennas=ANTENNAS):
    root = complex_normal(rng, antennas, rank)
    attack = root @ root.conj().T
    return budget * attack / np.trace(attack).real


@functools.cache
def compiled(receiver):
    """The filters, with the budget where the receiver plans."""
    planned = {"budget": BUDGET} if receiver.plans else {}

    def filters(h, attack, key):
        return receiver.filters(h, attack, NOISE, key, **planned)

    return jax.jit(filters, compiler_options=FAST_COMPILE)


def lmmse_filters(h, covariance):
    """From the receive side."""
    return h.conj().T @ np.linalg.inv(h @ h.conj().T + covariance)


def errors_of(filters, h, attack, noise=NOISE):
    left = filters @ h - np.eye(h.shape[1])
    total = attack + noise * np.eye(len(h))
    return left @ left.conj().T + filters @ total @ filters.conj().T


def numpy_oas(sample, snapshots):
    """The oracle's weight with the estimate put in, iterated until it stays."""
    size, share = len(sample), 0.5
    trace = np.trace(sample).real
    for _ in range(10_000):
        shrunk = (1 - share) * sample + share * trace / size * np.eye(size)
        squared = np.trace(shrunk @ sample).real
        above = trace**2 - squared / size
        share = above / (above + snapshots * (squared - trace**2 / size))
    return (1 - share) * sample + share * trace / size * np.eye(size)


def believed_by(receiver, h, attack):
    """The covariance that a receiver designs for, by the textbook."""
    antennas, eye = len(h), np.eye(len(h))
    match receiver:
        case channel.Powered():
            return (NOISE + BUDGET / antennas) * eye
        case channel.Sensed():
            sines = np.sin(np.deg2rad(receiver.angles))
            spread = np.sin(np.deg2rad(receiver.taper_deg))
            # The average of a a^H over sines within the spread, by sums.
            offsets = (np.arange(20_000) + 0.5) / 10_000 - 1
            surrogate = np.zeros((antennas, antennas), complex)
            for sine in sines:
                phases = np.arange(antennas)[:, None] * (sine + spread * offsets)
                a = np.exp(1j * np.pi * phases)
                surrogate += a @ a.conj().T / a.shape[1]
            return BUDGET / (antennas * len(sines)) * surrogate + NOISE * eye
        case channel.Minimax():
            values, vectors = np.linalg.eigh(h @ h.conj().T)
            values, low, high = np.maximum(values, 0), 0.0, 1e9
            for _ in range(200):
                y = (low + high) / 2
                powers = np.maximum(y * np.sqrt(values) - values - NOISE, 0)
                low, high = (y, high) if powers.sum() < BUDGET else (low, y)
            return vectors * (powers + NOISE) @ vectors.conj().T
    raise AssertionError(receiver)


FORMULAS = (
    channel.Powered(LMMSE),
    channel.Sensed((20.0, -35.0), of=LMMSE),
    channel.Sensed((20.0, -35.0), taper_deg=3.0, of=LMMSE),
    channel.Minimax(),
)


@pytest.mark.parametrize("receiver", FORMULAS, ids=described)
def test_errors_are_those_of_the_textbook_filters(receiver):
    rng = np.random.default_rng(1)
    h, attack = near_far(rng), low_rank(rng)
    filters = compiled(receiver)(h, attack, None)
    expected = lmmse_filters(h, believed_by(receiver, h, attack))
    np.testing.assert_allclose(filters.feedforward, expected, atol=1e-7)
    believed = errors_of(expected, h, believed_by(receiver, h, attack), 0.0)
    np.testing.assert_allclose(filters.mse, np.diagonal(believed).real, atol=1e-7)


@pytest.mark.parametrize("snapshots", [1, 4, 100])
def test_oas_is_the_limit_of_its_iteration_with_complex_moments(snapshots):
    z = low_rank(np.random.default_rng(2), 6) @ complex_normal(
        np.random.default_rng(snapshots), ANTENNAS, snapshots
    )
    sample = z @ z.conj().T / snapshots
    found = np.asarray(channel.oas(jnp.array(sample), snapshots))
    np.testing.assert_allclose(found, numpy_oas(sample, snapshots), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.trace(found), np.trace(sample))


def test_oas_is_nearer_to_the_covariance_than_the_average():
    rng = np.random.default_rng(3)
    truth = 0.7 ** np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    root, shrink = np.linalg.cholesky(truth), jax.jit(channel.oas, static_argnums=1)
    plain, shrunk, best = [], [], []
    for _ in range(200):
        z = root @ complex_normal(rng, 8, 10)
        sample = z @ z.conj().T / 10
        target = np.trace(sample).real / 8 * np.eye(8)
        plain.append(np.linalg.norm(sample - truth) ** 2)
        shrunk.append(np.linalg.norm(shrink(sample, 10) - truth) ** 2)
        shares = np.linspace(0, 1, 51)
        best.append([np.linalg.norm((1 - s) * sample + s * target - truth) ** 2 for s in shares])
    oracle = np.min(np.mean(best, axis=0))
    assert oracle < np.mean(shrunk) < 1.15 * oracle < 0.8 * np.mean(plain)


def test_an_estimate_shrinks_before_it_is_loaded():
    rng = np.random.default_rng(4)
    h, attack = near_far(rng), low_rank(rng, 6)
    plain = channel.Estimated(8, of=LMMSE)
    assert plain == channel.Estimated(8, of=LMMSE, shrinkage="none")
    oas, sample = channel.Estimated(8, of=LMMSE, shrinkage="oas"), sample_behind(attack, 8)
    for receiver, seen in ((plain, sample), (oas, numpy_oas(sample, 8))):
        expected = lmmse_filters(h, seen + NOISE * np.eye(ANTENNAS))
        found = compiled(receiver)(h, attack, KEY).feedforward
        np.testing.assert_allclose(found, expected, atol=1e-5)


def sample_behind(attack, count):
    """S of the snapshots that KEY draws, in the package's own order of the eigenbasis."""
    white = jax.random.normal(KEY, (ANTENNAS, count), complex)
    noise = channel.equalise.coloured_noise(
        jnp.ones((ANTENNAS, 1), complex), jnp.array(attack), NOISE
    )
    seen = np.asarray(noise.colour(white))
    return seen @ seen.conj().T / count


@pytest.mark.parametrize(
    ("options", "gone"),
    [({}, 2), ({"rank": 1}, 1), ({"rank": 5}, 5), ({"snapshots": 400}, 2)],
    ids=str,
)
def test_projection_is_the_receiver_of_the_antennas_that_are_left(options, gone):
    rng = np.random.default_rng(5)
    h, attack = near_far(rng), low_rank(rng)
    seen = sample_behind(attack, 400) if "snapshots" in options else attack
    left = np.linalg.eigh(seen)[1][:, : ANTENNAS - gone]
    expected = lmmse_filters(left.conj().T @ h, NOISE * np.eye(ANTENNAS - gone)) @ left.conj().T
    filters = compiled(channel.Projected(of=LMMSE, **options))(h, attack, KEY)
    if options.get("rank") == 5:  # of a rank-two attack: three more, any
        assert np.linalg.matrix_rank(filters.feedforward, tol=1e-9) == 1
        return
    np.testing.assert_allclose(filters.feedforward, expected, atol=1e-9)


def test_projection_gives_up_what_the_attacker_has():
    """All, where he spans the users' subspace, and nothing without him."""
    h = jnp.array(near_far(np.random.default_rng(6)))
    find, inside = compiled(channel.Projected(of=LMMSE)), channel.WhiteInRange()(h, BUDGET)
    np.testing.assert_allclose(find(h, inside, None).feedforward, 0, atol=1e-9)
    np.testing.assert_allclose(find(h, inside, None).mse, 1)
    expected = lmmse_filters(np.asarray(h), NOISE * np.eye(ANTENNAS))
    found = find(h, jnp.zeros_like(inside), None).feedforward
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_taper_saves_a_null_that_misses():
    """A jammer at 20 degrees, sensed with an error of 2."""
    rng, keys = np.random.default_rng(8), jax.random.split(KEY, 200)
    h = near_far(rng, 8)
    a = np.exp(1j * np.pi * np.arange(8) * np.sin(np.deg2rad(20.0)))
    attack, mean = BUDGET / 8 * np.outer(a, a.conj()), []
    for taper in (0.0, 3.0):
        receiver = channel.Sensed((20.0,), 2.0, taper, LMMSE)
        filters = jax.vmap(compiled(receiver), (None, None, 0))(h, attack, keys).feedforward
        errors = [np.trace(errors_of(each, h, attack)).real for each in np.asarray(filters)]
        mean.append(np.mean(errors))
    known = np.trace(errors_of(lmmse_filters(h, attack + NOISE * np.eye(8)), h, attack)).real
    assert known < mean[1] < 0.8 * mean[0]


@functools.cache
def guarantee(antennas, users):
    """Filters and the promise, as functions of channel and budget."""

    def find(h, budget):
        filters = channel.Minimax().filters(h, jnp.zeros((antennas,) * 2, h.dtype), budget=budget)
        worst = channel.SumMse().from_gram(channel.gram(h), budget, antennas=antennas)
        return filters.feedforward, jnp.sum(filters.mse), jnp.sum(channel.lmmse_mse(worst))

    return jax.jit(find, compiler_options=FAST_COMPILE)


@pytest.mark.parametrize(("antennas", "users"), [(6, 3), (24, 3)], ids=["one", "four blocks"])
def test_no_attacker_pushes_the_sum_of_errors_above_the_guarantee(antennas, users):
    """Max over A of tr F A F^H is the budget times the largest eigenvalue of F^H F: all of them.

    The bound over all attackers is the promise exactly, not only not above it.
    """
    rng = np.random.default_rng(9)
    for budget in (0.1, 3.0, 40.0, 1e3):
        for _ in range(5):
            h = near_far(rng, antennas, users)
            filters, believed, promise = map(np.asarray, guarantee(antennas, users)(h, budget))
            nobody = np.trace(errors_of(filters, h, np.zeros((antennas,) * 2), 1.0)).real
            worst = nobody + budget * np.linalg.norm(filters, 2) ** 2
            np.testing.assert_allclose([believed, worst], promise, rtol=1e-9)
            for rank in (1, 3, antennas):
                attack = low_rank(rng, rank, budget, antennas)
                assert np.trace(errors_of(filters, h, attack, 1.0)).real <= promise * (1 + 1e-9)


def test_the_guarantee_holds_against_all_attacks_and_those_that_climb():
    rng = np.random.default_rng(10)
    attacks = [channel.ATTACKS[name]() for name in KEYLESS]
    attacks += [channel.Jammer(2, covariance="worst"), channel.Guessed(channel.SumMse(), 0.5)]

    def errors(h, attack):
        return jnp.sum(channel.mse_of(channel.Minimax()(h, attack, budget=BUDGET)))

    def climbed(h, root):
        """Normalised gradient ascent on A = R R^H of the budget."""

        def of_root(root):
            attack = root @ root.conj().T
            return errors(h, BUDGET * attack / jnp.real(jnp.trace(attack)))

        def step(root, _):
            slope = jax.grad(of_root)(root).conj()
            size = jnp.linalg.norm(root) / (jnp.linalg.norm(slope) + 1e-30)
            return root + 0.1 * size * slope, None

        return of_root(jax.lax.scan(step, root, length=200)[0])

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def all_errors(h, root):
        covariances = [
            attack(h, BUDGET, **({"key": KEY} if getattr(attack, "random", False) else {}))
            for attack in attacks
        ]
        found = jax.vmap(lambda attack: errors(h, attack))(jnp.stack(covariances))
        return found, climbed(h, root)

    for _ in range(5):
        h, root = near_far(rng), complex_normal(rng, ANTENNAS, ANTENNAS)
        found, ascent = all_errors(h, root)
        promise = float(guarantee(ANTENNAS, USERS)(h, BUDGET)[2])
        assert np.max(found) <= promise * (1 + 1e-9)
        np.testing.assert_allclose(found[KEYLESS.index("sum_mse")], promise, rtol=1e-9)
        # Any direction of the largest eigenvalue is a best answer: the ascent comes close.
        assert 0.98 * promise < ascent <= promise * (1 + 1e-9)


def test_a_budget_in_decibels_is_one_over_the_noise():
    rng = np.random.default_rng(11)
    h, attack = jnp.array(near_far(rng)), jnp.array(low_rank(rng))
    expected = np.asarray(compiled(channel.Minimax())(h, attack, None).feedforward)
    planned = channel.Minimax(10 * np.log10(BUDGET / NOISE))
    for budget in (None, 1.0):  # which it does not plan with
        found = jax.jit(planned)(h, attack, NOISE, budget=budget)
        np.testing.assert_allclose(found, errors_of(expected, h, attack), atol=1e-10)


@pytest.mark.parametrize(
    "receiver",
    [channel.Minimax(), channel.Estimated(8, shrinkage="oas"), channel.Projected(snapshots=8)],
    ids=described,
)
def test_symbols_behind_the_filters_have_the_mse(receiver):
    """200,000 QPSK symbols under the true noise; SIC cancels the true ones."""
    rng = np.random.default_rng(12)
    h, attack = near_far(rng), low_rank(rng, 3)
    filters = compiled(receiver)(h, attack, KEY)
    errors = channel.error_covariance_of(filters, jnp.array(h), jnp.array(attack), NOISE)
    sent = rng.choice([1, 1j, -1, -1j], (USERS, 200_000))
    root = np.linalg.cholesky(attack + NOISE * np.eye(ANTENNAS))
    heard = h @ sent + root @ complex_normal(rng, ANTENNAS, 200_000)
    off = filters.feedforward @ heard - filters.feedback @ sent - sent
    np.testing.assert_allclose(off @ off.conj().T / 200_000, errors, atol=0.01)
    np.testing.assert_allclose(np.mean(np.abs(off) ** 2, 1), np.diagonal(errors).real, rtol=0.02)


@pytest.mark.parametrize(
    "receiver",
    [
        channel.Minimax(),
        channel.Estimated(8, shrinkage="oas"),
        channel.Projected(rank=2),
        channel.Projected(snapshots=50),
        channel.Sensed((20.0,), 1.0, 2.0),
    ],
    ids=described,
)
def test_gradients_are_those_of_finite_differences(receiver):
    """Through the attack as well: one of weak power everywhere and two strong directions.

    Snapshots are coloured in the eigenbasis of the attack, which derivatives hold: turned, it gives
    other noise of the same distribution, and no derivative of one draw is defined by that.
    """
    rng = np.random.default_rng(13)
    h, direction = near_far(rng), complex_normal(rng, ANTENNAS, USERS)
    body = low_rank(rng)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    @jax.value_and_grad
    def find(x):
        moved, noise = h + x[0] * direction, NOISE * jnp.exp(x[1])
        budget = BUDGET * jnp.exp(x[2])
        attack = budget / BUDGET * (body + 0.01 * moved @ moved.conj().T)
        planned = {"budget": budget} if receiver.plans else {}
        mse = channel.mse_of(receiver(moved, attack, noise, KEY, **planned))
        return mse @ jnp.arange(1.0, USERS + 1)

    gradient, step = find(jnp.zeros(3))[1], 1e-5
    ends = [[find(sign * step * x)[0] for x in jnp.eye(3)] for sign in (1, -1)]
    numeric = (np.array(ends[0]) - np.array(ends[1])) / (2 * step)
    first = 1 if getattr(receiver, "snapshots", None) else 0
    np.testing.assert_allclose(gradient[first:], numeric[first:], rtol=1e-5, atol=1e-7)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("receiver", [channel.Minimax(60.0), channel.Projected()], ids=described)
def test_float32_does_under_a_strong_jammer(receiver):
    """60 dB over the floor, of low rank."""
    rng = np.random.default_rng(14)
    h, attack = near_far(rng), low_rank(rng, budget=1e6)
    found = []
    for kind in (np.complex64, complex):
        with jax.enable_x64(kind is complex):
            called = jax.jit(receiver, compiler_options=FAST_COMPILE)
            found.append(channel.mse_of(called(h.astype(kind), attack.astype(kind))))
    assert found[0].dtype == np.float32
    np.testing.assert_allclose(*found, rtol=1e-3)


@pytest.fixture(scope="module")
def drops():
    """Mean MSE of the paper's cell and its standard error, over 300 drops."""
    paper = channel.get_preset("paper")
    keys = channel.draw_keys(jax.random.key(0), 300)

    def find(attack, receiver):
        def mse(key):
            h, budget = channel.draw_channel(paper, key), paper.attack_budget
            drawn = {"key": jax.random.fold_in(key, 4)} if hasattr(attack, "random") else {}
            planned = {"budget": budget} if receiver.plans else {}
            covariance = attack(h, budget, **drawn)
            measured = jax.random.fold_in(key, 3)
            return jnp.mean(channel.mse_of(receiver(h, covariance, 1.0, measured, **planned)))

        with jax.enable_x64(False):
            found = np.asarray(jax.jit(jax.vmap(mse))(keys))
        return np.mean(found), np.std(found) / np.sqrt(len(found))

    return find


P1, RANK_TWO = channel.SumRate(), channel.Jammer(2)
WORST = channel.SumMse()
UNAWARE, OAS = channel.Unaware(), channel.Estimated(8, shrinkage="oas")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "receiver", "expected"),
    [
        (P1, channel.SIC, 0.211),
        (P1, UNAWARE, 0.314),
        (P1, channel.Powered(), 0.220),
        (P1, channel.Estimated(8), 0.342),
        (P1, channel.Estimated(64), 0.223),
        (P1, OAS, 0.226),
        (RANK_TWO, channel.SIC, 0.016),
        (RANK_TWO, UNAWARE, 0.199),
        (RANK_TWO, channel.Estimated(8), 0.024),
        (RANK_TWO, channel.Projected(of=LMMSE), 0.020),
        (channel.NO_ATTACK, channel.Minimax(), 0.162),
        (P1, channel.Minimax(), 0.254),
        (WORST, channel.Minimax(), 0.286),
        (WORST, channel.Unaware(LMMSE), 0.682),
        (WORST, channel.Powered(LMMSE), 0.373),
    ],
    ids=described,
)
def test_the_papers_cell_has_the_errors_of_the_prototypes(drops, attack, receiver, expected):
    """Other drops than theirs: within three standard errors of both, and the last digit."""
    mean, error = drops(attack, receiver)
    assert abs(mean - expected) < 3 * np.sqrt(2) * error + 0.0005


def test_receivers_say_what_they_know():
    for name, kind in channel.RECEIVERS.items():
        assert kind.knows, name
        assert kind.stage == "receiver"
        assert kind.plans == (name in ("powered", "sensed", "minimax"))


def test_receivers_are_read_as_they_are_written():
    for receiver in (
        *FORMULAS,
        channel.Minimax(20.0),
        channel.Projected(2, 64),
        channel.Estimated(8, shrinkage="oas"),
    ):
        assert channel.get_receiver(described(receiver)) == receiver
    assert channel.get_receiver("sensed(angles=(20, -35), of=sic)").angles == (20.0, -35.0)


def test_bad_receivers_are_named():
    h, attack = jnp.ones((2, 1), complex), jnp.zeros((2, 2), complex)
    for message, make in {
        "receiver minimax plans with the attacker's total power: give it a budget": (
            lambda: channel.Minimax()(h, attack)
        ),
        "receiver powered plans with": lambda: channel.Powered()(h, attack),
        "receiver sensed plans with": lambda: channel.Sensed((0.0,))(h, attack),
        "receiver sensed draws errors of its angles: give it a key": (
            lambda: channel.Sensed((0.0,), 1.0)(h, attack, budget=1.0)
        ),
        "receiver projected draws snapshots of the noise: give it a key": (
            lambda: channel.Projected(snapshots=9)(h, attack)
        ),
        "budget must be finite and >= 0, got -1": lambda: channel.Minimax()(h, attack, budget=-1.0),
        "rank must be at most 2, got 3": lambda: channel.Projected(3)(h, attack),
        "rank must be at least 0, got -1": lambda: channel.Projected(-1),
        "snapshots must be at least 1, got 0": lambda: channel.Projected(snapshots=0),
        "number of angles must be at least 1, got 0": lambda: channel.Sensed(()),
        "angles must be finite, got nan": lambda: channel.Sensed((float("nan"),)),
        r"taper_deg must be finite and >= 0 and <= 90, got 91\.0": (
            lambda: channel.Sensed((0.0,), taper_deg=91.0)
        ),
        "error_deg must be finite and >= 0": lambda: channel.Sensed((0.0,), -1.0),
        "budget_db must be finite": lambda: channel.Minimax(float("inf")),
        "shrinkage must be none or oas, got lw": (
            lambda: channel.get_receiver("estimated(shrinkage=lw)")
        ),
        "receiver sensed needs angles": lambda: channel.get_receiver("sensed"),
    }.items():
        with pytest.raises(InputError, match=message):
            make()
