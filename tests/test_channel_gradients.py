"""First derivatives of MSE and rates under every attack, against Richardson finite differences."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KEYLESS, complex_normal

from rmtllmf_jax import channel

ANTENNAS, USERS = 16, 8
WEIGHTS = np.linspace(1, 2, USERS)

pytestmark = pytest.mark.usefixtures("x64")


def rayleigh(rng):
    return 2 * complex_normal(rng, ANTENNAS, USERS)


def scaled_unitary(rng):
    """Orthogonal users of equal power: one eigenvalue, eight times."""
    return 3 * np.linalg.qr(complex_normal(rng, ANTENNAS, USERS))[0]


def clusters(rng):
    """Two eigenvalues, four times each, and users of different power."""
    gains = np.repeat([1.0, 5.0], USERS // 2)
    rotation = np.linalg.qr(complex_normal(rng, USERS, USERS))[0]
    return np.linalg.qr(complex_normal(rng, ANTENNAS, USERS))[0] * gains @ rotation


def near_far(rng):
    """Users at 35 dB from the nearest to the farthest."""
    return complex_normal(rng, ANTENNAS, USERS) * 10 ** (np.linspace(0, 35, USERS) / 20)


KINDS = {
    "rayleigh": rayleigh,
    "unitary": scaled_unitary,
    "clusters": clusters,
    "near_far": near_far,
}
BUDGETS = (1.0, 230.0, 1e4)
# Derivatives are taken in H, p, budget and noise; H has the least room before an eigenvalue is 0.
STEPS = np.array([0.006, 0.05, 0.05, 0.05])
_POWERS = WEIGHTS - 1.4
# Compiling costs most of the time here, running little.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def dear(attack):
    """The attack as a parameter; programs of min_max_rate, a loop of eighs, take long to build.

    So do those of two others for four step sizes; sum_rate stands for them.
    """
    slow = attack in ("min_max_rate", "sum_mse", "sum_rate_floor_aware")
    return pytest.param(attack, marks=pytest.mark.slow) if slow else attack


def step_sizes(attack):
    """Differences of which the best counts: a wrong derivative is wrong in all of them.

    G bends sharply where sum_mse finds a strong direction hardly worth attacking: long steps lose
    to the seventh derivative there, short ones to rounding elsewhere.
    """
    return [STEPS / part for part in ((2, 4, 6, 8) if attack == "sum_mse" else (1,))]


def stencil(steps):
    """Points (1 + 6 axes, axes) of Richardson's sixth-order difference, the middle one first."""
    axes = len(steps)
    moves = [sign * steps / 2**k for k in range(3) for sign in (1, -1)]
    return np.concatenate([np.zeros((1, axes)), *(np.diag(move) for move in moves)])


def richardson(values, steps):
    """Derivatives (cases, axes, ...) of values (cases, points, ...) on the stencil."""
    moved = values[:, 1:].reshape(len(values), 3, 2, len(steps), *values.shape[2:])
    size = steps.reshape(-1, *[1] * (values.ndim - 2))
    d = [(moved[:, k, 0] - moved[:, k, 1]) / (2 * size / 2**k) for k in range(3)]
    e = [(4 * fine - coarse) / 3 for coarse, fine in itertools.pairwise(d)]
    return (16 * e[1] - e[0]) / 15


def losses(attack, h, log_power, log_budget, log_noise):
    """Weighted SIC MSE, LMMSE MSE and SIC rates; the order is fixed, for a swap is a jump."""
    gram = channel.gram(h * jnp.exp(log_power / 2))
    powers = jnp.exp(log_budget), jnp.exp(log_noise)
    effective = channel.ATTACKS[attack]().from_gram(gram, *powers, antennas=ANTENNAS)
    order = jnp.arange(USERS)
    mse = [channel.sic_mse(effective, order), channel.lmmse_mse(effective)]
    return jnp.stack([*mse, channel.sic_rates(effective, order)]) @ jnp.array(WEIGHTS)


@functools.cache
def losses_and_gradients(attack):
    def both(*point):
        return losses(attack, *point), jax.jacrev(functools.partial(losses, attack), range(4))(
            *point
        )

    return jax.jit(jax.vmap(both), compiler_options=FAST_COMPILE)


def regime(attack, h, budget, noise):
    """What jumps at the kinks of an attack: the strongest user, or the directions attacked."""
    gram = h.conj().swapaxes(-1, -2) @ h
    if attack == "strongest_user":
        return np.argmax(np.diagonal(gram, axis1=-2, axis2=-1).real, axis=-1)
    powers = {"sum_mse": channel.sum_mse_powers, "sum_rate_floor_aware": channel.floor_aware_powers}
    if attack not in powers:
        return np.zeros(len(h))
    sigma, _ = jax.jit(jax.vmap(powers[attack]))(np.linalg.eigvalsh(gram), budget, noise)
    return np.sum(np.asarray(sigma) > 0, axis=-1)


def is_smooth(attack, h, log_budget, log_noise):
    """Which cases have no kink between the points (cases, points, ...) of their stencil."""
    flat = h.reshape(-1, *h.shape[-2:]), np.exp(log_budget).ravel(), np.exp(log_noise).ravel()
    found = regime(attack, *flat).reshape(h.shape[:2])
    return np.all(found == found[:, :1], axis=1)


def relative_errors(attack, h, tangent, budget, steps):
    """Errors (cases, axes, losses) of reverse mode, and which cases are smooth.

    `h` (cases, points, ...) has moved along axis 0 already, where `tangent` is its derivative. A
    derivative below a thousandth of the loss is held against that much.
    """
    points = stencil(steps)
    cases = len(h)
    moves = np.broadcast_to(points, (cases, *points.shape))
    log_power, log_noise = moves[..., 1:2] * _POWERS, moves[..., 3]
    log_budget = np.log(budget)[:, None] + moves[..., 2]
    flat = [x.reshape(-1, *x.shape[2:]) for x in (h, log_power, log_budget, log_noise)]
    found = losses_and_gradients(attack)(*map(jnp.asarray, flat))
    values, gradients = jax.tree.map(
        lambda leaf: np.asarray(leaf).reshape(cases, len(points), *leaf.shape[1:]), found
    )
    in_h, in_power, in_budget, in_noise = (leaf[:, 0] for leaf in gradients)
    # jax's convention for a real function: the differential is Re sum(grad * dH).
    along = np.real(np.sum(in_h * tangent[:, None], axis=(2, 3)))
    exact = np.stack([along, in_power @ _POWERS, in_budget, in_noise], axis=1)
    numeric = richardson(values, steps)
    errors = np.abs(exact - numeric) / (np.abs(numeric) + 1e-3 * np.abs(values[:, :1]))
    powered = h * np.exp(log_power / 2)[:, :, None]
    return errors, is_smooth(attack, powered, log_budget, log_noise)


def drawn_cases(draws, seed, steps):
    """Channels of every kind under every budget, moved in a direction on each user's own scale."""
    rng = np.random.default_rng(seed)
    h = np.array([make(rng) for make in KINDS.values() for _ in range(draws * len(BUDGETS))])
    tangent = complex_normal(rng, *h.shape) * np.linalg.norm(h, axis=1, keepdims=True) / 4
    moves = stencil(steps)[:, 0, None, None]
    return h[:, None] + moves * tangent[:, None], tangent, np.tile(BUDGETS, len(KINDS) * draws)


def moved_users(cases, seed, steps):
    """Channels of the preset while the users walk: axis 0 moves the logs of their distances."""
    paper = channel.get_preset("paper")
    rng = np.random.default_rng(seed)
    distances = jnp.array(rng.uniform(150.0, 900.0, (cases, USERS)))
    way = jnp.array(rng.normal(size=(cases, USERS)))

    @jax.jit
    @jax.vmap
    def walk(distances, way, key):
        def at(step):
            return channel.channel_at(paper, distances * jnp.exp(step * way), key)

        return jax.vmap(at)(stencil(steps)[:, 0]), jax.jvp(at, (0.0,), (1.0,))[1]

    h, tangent = walk(distances, way, channel.draw_keys(jax.random.key(seed), cases))
    return np.asarray(h), np.asarray(tangent), np.tile(BUDGETS, cases // len(BUDGETS))


@pytest.mark.parametrize("attack", [dear(attack) for attack in KEYLESS])
def test_gradients_in_channel_distances_powers_budget_and_noise(attack):
    errors, smooth = np.inf, True
    for steps in step_sizes(attack):
        drawn, walking = drawn_cases(6, 17, steps), moved_users(18, 18, steps)
        cases = [np.concatenate(both) for both in zip(drawn, walking)]
        found, kept = relative_errors(attack, *cases, steps)
        errors, smooth = np.minimum(errors, found), smooth & kept
    for kind, found, kept in zip((*KINDS, "distance"), np.split(errors, 5), np.split(smooth, 5)):
        if attack == "strongest_user" and kind == "unitary":
            # Users of equal power tie for the strongest: a kink, where no derivative is right.
            assert not np.any(kept)
            continue
        assert np.mean(kept) > 0.7, kind
        assert np.max(found[kept]) < 1e-8, kind
        assert np.median(found[kept]) < 1e-10, kind


def test_budget_moves_mse_at_zero_budget():
    h = jnp.array(rayleigh(np.random.default_rng(19)))

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def value_and_slope(budget):
        return jax.value_and_grad(
            lambda budget: jnp.sum(channel.user_mse(h, channel.ATTACKS["sum_rate"](), budget))
        )(budget)

    small = 1e-4
    (at_zero, slope), (moved, _) = value_and_slope(0.0), value_and_slope(small)
    np.testing.assert_allclose(slope, (moved - at_zero) / small, rtol=1e-3)


@functools.cache
def total_and_gradients(names):
    """Of the sum over the attacks named: one NaN would show in it."""

    def total(h, budget, noise):
        mse = [channel.user_mse(h, channel.ATTACKS[name](), budget, noise) for name in names]
        return jnp.sum(jnp.stack(mse))

    return jax.jit(jax.vmap(jax.value_and_grad(total, argnums=(0, 1, 2)), (0, None, None)))


draw_paper = jax.jit(
    lambda key, draws: channel.draw_channels(channel.get_preset("paper"), key, draws),
    static_argnums=1,
)


def all_finite(trees):
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(trees))


@pytest.mark.slow
def test_sum_rate_in_float32_is_finite_over_100_000_draws_and_near_float64():
    both = total_and_gradients(("sum_rate",))
    with jax.enable_x64(False):
        for batch in range(20):
            h = draw_paper(jax.random.fold_in(jax.random.key(20), batch), 5000)
            found = both(h, 230.0, 1.0)
            assert found[0].dtype == jnp.float32
            assert all_finite(found)
        h, (value, (in_h, *_)) = jax.tree.map(lambda leaf: np.asarray(leaf[:500]), (h, found))
    exact, (exact_h, *_) = both(jnp.array(h, complex), 230.0, 1.0)
    np.testing.assert_allclose(value, exact, rtol=1e-3)
    error = np.linalg.norm(in_h - exact_h, axis=(1, 2)) / np.linalg.norm(exact_h, axis=(1, 2))
    assert np.median(error) < 1e-5


@pytest.mark.slow
def test_the_other_attacks_in_float32_are_finite_over_2000_draws():
    both = total_and_gradients(tuple(sorted(set(KEYLESS) - {"sum_rate"})))
    with jax.enable_x64(False):
        found = both(draw_paper(jax.random.key(21), 2000), 230.0, 1.0)
        assert found[0].dtype == jnp.float32
        assert all_finite(found)
