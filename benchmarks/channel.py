"""The sum-rate attack and the users' LMMSE errors, a channel: this package against its peers.

One interleaved run, after an equality check against float64; prints medians and ratios. Needs the
`parity` extra for the torch peers, `sionna-no-rt` for Sionna's and the `sdp` extra for cvxpy; a
peer that is not installed is named and left out.

    python benchmarks/channel.py [--draws 100000] [--rounds 5] [--million]

Two CPU cores (AMD EPYC, no GPU), float32, preset `paper`, medians of 5 in microseconds a channel,
and their ratio to LAPACK's batched 8 x 8 eigh: that eigh 6.7; our Jacobi eigh 5.1 (0.76 x); attack
and LMMSE MSE 8.5 (1.27 x), with gradient 14.2 (1.67 x the value); with SIC 9.0, 13.8 (1.53 x);
NumPy batched 11.5; textbook JAX 31 and 53; torch bisection with Sionna's LMMSE 27; cvxpy 1.6 s.
10^6 draws took 9.4 s at the peak memory of 10^5. Largest float32 error of an MSE 1.6e-6 (textbook
2e-3), of an eigenvalue 1.4e-6 (LAPACK 5.2e-5). On one core alone the Jacobi eigh took 3.5, LAPACK's
9.1: XLA splits small loops over the cores, which costs more than it gains.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rmtllmf_jax import channel
from rmtllmf_jax.channel.linalg import eigh

PAPER = channel.get_preset("paper")
BUDGET = PAPER.attack_budget
BISECTIONS = 50
SLOW_CHANNELS = 2000  # of the peers that take long; times are a channel's all the same
SDP_CHANNELS = 3


def loss(h: jax.Array, order: str | None = None) -> jax.Array:
    """Sum of the users' MSEs: what is differentiated."""
    return jnp.sum(ours(h, order))


def ours(h: jax.Array, order: str | None = None) -> jax.Array:
    """The package, joint LMMSE or SIC."""
    receiver = channel.Lmmse() if order is None else channel.Sic(order)
    return channel.user_mse(h, channel.SumRate(), BUDGET, receiver=receiver)


def textbook(h: jax.Array) -> jax.Array:
    """What one writes down first: eigh over the antennas, bisection, explicit inverses."""
    users = h.shape[1]
    values, vectors = jnp.linalg.eigh(h @ h.conj().T)
    values = jnp.maximum(values, 0)

    def sigma(nu: jax.Array) -> jax.Array:
        return (-values + jnp.sqrt(values**2 + 4 * values / nu)) / 2

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = jnp.sqrt(low * high)
        above = jnp.sum(sigma(middle)) > BUDGET
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.array(1e-8), jnp.array(1e3)))
    noise = (vectors * (sigma(jnp.sqrt(low * high)) + 1)) @ vectors.conj().T
    inner = jnp.eye(users) + h.conj().T @ jnp.linalg.solve(noise, h)
    return jnp.real(jnp.diagonal(jnp.linalg.inv(inner)))


def numpy_batched(h: np.ndarray) -> np.ndarray:
    """The same algorithm as the package's, in batched NumPy calls, real type of `h`."""
    real = h.real.dtype
    gram = h.conj().transpose(0, 2, 1) @ h
    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(values, np.finfo(real).tiny))
    power = real.type(BUDGET)
    nu = np.minimum((root.sum(1) / power) ** 2, root.shape[1] / power)[:, None]
    for _ in range(5):
        half = np.sqrt(nu) * root / 2
        hypot = np.sqrt(1 + half**2)
        sigma = root / (np.sqrt(nu) * (half + hypot))
        slope = -(sigma * (1 + half / hypot)).sum(1) / (2 * sigma.sum(1))
        nu = nu * np.exp(-np.log(sigma.sum(1) / power) / slope)[:, None]
    half = np.sqrt(nu) * root / 2
    sigma = root / (np.sqrt(nu) * (half + np.sqrt(1 + half**2)))
    # diag (I + G)^-1 in the eigenbasis
    return (np.abs(vectors) ** 2 / (1 + values / (sigma + 1))[:, None, :]).sum(2)


def torch_attack(h: object, torch: object) -> tuple[object, object]:
    """The attacker's covariance plus floor by bisection, as one writes it in torch."""
    values, vectors = torch.linalg.eigh(h @ h.mH)
    values = values.clamp(min=0)
    low = torch.full((len(h), 1), 1e-8)
    high = torch.full((len(h), 1), 1e3)
    for _ in range(BISECTIONS):
        middle = torch.sqrt(low * high)
        sigma = (-values + torch.sqrt(values**2 + 4 * values / middle)) / 2
        above = sigma.sum(1, keepdim=True) > BUDGET
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    sigma = (-values + torch.sqrt(values**2 + 4 * values / torch.sqrt(low * high))) / 2
    return (vectors * (sigma + 1)[:, None, :]) @ vectors.mH


def sionna(h: object, torch: object, equalizer: Callable[..., tuple[object, object]]) -> object:
    """Sionna's LMMSE equaliser behind `torch_attack`; the variance is the unbiased symbol's."""
    covariance = torch_attack(h, torch)
    _, variance = equalizer(torch.zeros(h.shape[:2], dtype=h.dtype), h, covariance)
    return variance / (1 + variance)


def sdp(h: np.ndarray) -> float:
    """The attacked sum rate without floor, by cvxpy: -log det W, W <= I - H^H (C + H H^H)^-1 H."""
    import cvxpy as cp

    antennas, users = h.shape
    w = cp.Variable((users, users), hermitian=True)
    c = cp.Variable((antennas, antennas), hermitian=True)
    scale = np.linalg.norm(h, 2)
    h = h / scale
    block = cp.bmat([[np.eye(users) - w, h.conj().T], [h, c + h @ h.conj().T]])
    limits = [block >> 0, cp.real(cp.trace(c)) == BUDGET / scale**2]
    problem = cp.Problem(cp.Maximize(cp.log_det(w)), limits)
    return -float(problem.solve())


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--million", action="store_true", help="10^6 draws in chunks, and memory")
    options = parser.parse_args()

    draw = jax.jit(channel.draw_channels, static_argnums=(0, 2))
    h = jax.block_until_ready(draw(PAPER, jax.random.key(0), options.draws))
    gram = jax.block_until_ready(jax.jit(jax.vmap(channel.gram))(h))
    h_numpy = np.asarray(h)

    def compiled(function: Callable[..., object], argument: jax.Array) -> Callable[[], object]:
        program = jax.jit(jax.vmap(function)).lower(argument).compile()
        return lambda: jax.block_until_ready(program(argument))

    sic = partial(ours, order="weakest_first")
    sic_loss = partial(loss, order="weakest_first")
    calls: dict[str, Callable[[], object]] = {
        "LAPACK eigh 8 x 8, batched": compiled(jnp.linalg.eigh, gram),
        "Jacobi eigh 8 x 8 (ours)": compiled(eigh, gram),
        "ours, LMMSE": compiled(ours, h),
        "ours, LMMSE, value + gradient": compiled(jax.value_and_grad(loss), h),
        "ours, SIC": compiled(sic, h),
        "ours, SIC, value + gradient": compiled(jax.value_and_grad(sic_loss), h),
        "NumPy batched": lambda: numpy_batched(h_numpy),
    }
    channels = dict.fromkeys(calls, options.draws)
    few = h[:SLOW_CHANNELS]
    calls["textbook JAX"] = compiled(textbook, few)
    calls["textbook JAX, value + gradient"] = compiled(
        jax.value_and_grad(lambda h: jnp.sum(textbook(h))), few
    )
    channels |= {name: len(few) for name in calls if name.startswith("textbook")}
    values = {"ours, LMMSE", "NumPy batched", "textbook JAX"}
    if importlib.util.find_spec("sionna") and importlib.util.find_spec("torch"):
        import torch
        from sionna.phy.mimo import lmmse_equalizer

        h_torch = torch.from_numpy(h_numpy[:SLOW_CHANNELS].copy())
        channels["torch bisection + Sionna LMMSE"] = len(h_torch)
        calls["torch bisection + Sionna LMMSE"] = lambda: sionna(h_torch, torch, lmmse_equalizer)
        values.add("torch bisection + Sionna LMMSE")
    else:
        print("sionna: not installed, left out")

    check(h_numpy, {name: np.asarray(calls[name]()) for name in values})
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(options.rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    report(seconds, channels)
    if importlib.util.find_spec("cvxpy"):
        time_sdp(h_numpy[:SDP_CHANNELS])
    else:
        print("cvxpy: not installed, left out")
    if options.million:
        million()


def check(h: np.ndarray, found: dict[str, np.ndarray]) -> None:
    """All values against NumPy in float64, and the eigenvalues' accuracy."""
    exact = numpy_batched(h.astype(complex))
    print("relative error of the MSEs, float32 against float64: median, largest")
    for name, mse in found.items():
        error = np.abs(mse / exact[: len(mse)] - 1)
        print(f"  {name:32s} {np.median(error):.1e} {error.max():.1e}")
        assert np.median(error) < 1e-2, name  # the peers subtract and lose digits
    part = h[:2000].astype(complex)
    gram = (part.conj().transpose(0, 2, 1) @ part).astype(np.complex64)
    reference = np.linalg.eigvalsh(gram.astype(complex))
    print("relative error of the eigenvalues, float32: largest")
    for name, function in (("LAPACK", jnp.linalg.eigh), ("Jacobi (ours)", eigh)):
        found_values = np.sort(jax.jit(jax.vmap(function))(gram)[0], axis=1)
        print(f"  {name:32s} {np.abs(found_values / reference - 1).max():.1e}")


def report(seconds: dict[str, list[float]], channels: dict[str, int]) -> None:
    """Median time a channel, and the ratios that the project promises."""
    median = {
        name: statistics.median(times) / channels[name] * 1e6 for name, times in seconds.items()
    }
    base = median["LAPACK eigh 8 x 8, batched"]
    print(f"microseconds a channel, medians of {len(next(iter(seconds.values())))} interleaved")
    for name, value in median.items():
        print(f"  {name:32s} {value:8.2f}  ({value / base:.2f} x the LAPACK eigh)")
    for receiver in ("LMMSE", "SIC"):
        value, both = median[f"ours, {receiver}"], median[f"ours, {receiver}, value + gradient"]
        print(f"  {receiver}: value + gradient = {both / value:.2f} x value")


def time_sdp(h: np.ndarray) -> None:
    """A handful of SDPs by cvxpy, against the closed form without floor."""
    start = time.perf_counter()
    rates = [sdp(channel_.astype(complex)) for channel_ in h]
    each = (time.perf_counter() - start) / len(h)
    with jax.enable_x64(True):
        exact = []
        for channel_ in h:
            values = jnp.linalg.eigvalsh(channel.gram(jnp.asarray(channel_, complex)))
            _, nu = channel.sum_rate_powers(values, BUDGET)
            exact.append(float(2 * jnp.sum(jnp.arcsinh(jnp.sqrt(nu * values) / 2))))
    gap = np.abs(np.array(rates) / exact - 1).max()
    print(f"cvxpy: {each:.2f} s a channel ({len(h)} channels), sum rates apart by {gap:.1e}")


def million() -> None:
    """10^6 draws, drawn and attacked in chunks within one program."""

    @partial(jax.jit, static_argnums=1)
    def mean_mse(key: jax.Array, draws: int) -> jax.Array:
        keys = channel.draw_keys(key, draws)
        one = partial(channel.user_mse, "sum_rate", PAPER)
        return jnp.mean(jax.lax.map(lambda k: jnp.mean(one(k)), keys, batch_size=10_000))

    for draws in (100_000, 1_000_000):
        program = mean_mse.lower(jax.random.key(1), draws).compile()
        start = time.perf_counter()
        mean = float(program(jax.random.key(1)))
        took = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{draws:8d} draws: mean MSE {mean:.4f}, {took:.2f} s, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
