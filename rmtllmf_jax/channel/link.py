"""The uplink symbol by symbol: parameters -> QAM -> Y = H~ X + Z -> receiver -> parameters.

This is what the Gaussian surrogate of the uplink (error variance kappa^2 mu_q) stands for. Digital:
each user's block is normalised to unit power, quantised to log2 M bits per parameter, scrambled,
and sent as one Gray-mapped M-QAM symbol per parameter. Scrambling (exclusive or with a sequence
that both ends know, as in cellular standards) makes the symbols equally likely, of unit power and
uncorrelated between users whatever the parameters, which mu_q assumes. Analogue
(`modulation=None`): two parameters per symbol on the two axes, neither quantised nor sliced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Key, Real

from rmtllmf_jax.channel import modem
from rmtllmf_jax.channel.equalise import ColouredNoise, Equaliser, coloured_noise
from rmtllmf_jax.channel.linalg import product
from rmtllmf_jax.channel.quantise import dequantise, normalise, quantise
from rmtllmf_jax.channel.receivers import SIC, Filtering
from rmtllmf_jax.common.errors import require_known

CANCELLATIONS = ("genie", "decisions")
"""What SIC subtracts: the true symbols, or the receiver's decisions (errors propagate)."""

# What a transmission's key is folded with, so that neither part depends on how the other is drawn.
_NOISE, _SCRAMBLING, _MEASURED = 0, 1, 2


class Received(NamedTuple):
    """One transmission of all users.

    **Fields:**

    - `parameters`: as received, in the unit in which they were sent.
    - `symbols`: as sent, of unit power.
    - `estimates`: equalised, before slicing: the biased MMSE estimates of `symbols`.
    - `decisions`: the sliced estimates / (1 - mu_q), or the estimates themselves if analogue.
    - `symbol_mse`: mean of |estimates - symbols|^2, which estimates mu_q.
    """

    parameters: Float[Array, "users size"]
    symbols: Complex[Array, "users symbols"]
    estimates: Complex[Array, "users symbols"]
    decisions: Complex[Array, "users symbols"]
    symbol_mse: Float[Array, " users"]


def transmit(
    parameters: Float[Array, "users size"],
    h_tilde: Complex[Array, "antennas users"],
    attack: Complex[Array, "antennas antennas"],
    noise: Real[ArrayLike, ""],
    key: Key[Array, ""],
    *,
    receiver: Filtering = SIC,
    cancellation: str = "genie",
    modulation: int | None = 64,
    clip: Real[ArrayLike, ""] | None = None,
) -> Received:
    """Send every user's block of parameters over one channel at the same time.

    **Arguments:**

    - `parameters`: one block per user, normalised by its own rms, which the receiver knows.
    - `h_tilde`, `attack`, `noise`: H~ = H diag(sqrt p), an attacker's covariance (zeros for none)
      and the thermal floor > 0, in one unit of power; z ~ CN(0, attack + noise I), independent from
      symbol to symbol.
    - `receiver`: one of `channel.receivers`; its filters are applied.
    - `cancellation`: one of `CANCELLATIONS`; without SIC nothing is cancelled.
    - `modulation`: size of the QAM, and so also the bits per parameter; `None` for analogue.
    - `clip`: range of the quantiser in units of the rms (default `quantise.GAUSSIAN_CLIP`).

    `receiver`, `cancellation` and `modulation` are static under `jax.jit`. `estimates` are
    differentiable in the channel. Quantising and slicing have zero gradient, so that digital
    `parameters` depend on the sent ones through their rms alone; an analogue link is differentiable
    throughout. Memory grows as antennas x symbols: send long blocks in parts (each part is then
    normalised separately).

    **Raises:** `InputError` for an unknown cancellation or modulation, and as the receiver does.
    """
    require_known("cancellation", cancellation, CANCELLATIONS)  # also where nothing is cancelled
    equaliser = receiver.filters(h_tilde, attack, noise, jax.random.fold_in(key, _MEASURED))
    unit, rms = normalise(parameters)
    received = send(
        unit,
        h_tilde,
        coloured_noise(h_tilde, attack, noise),
        equaliser,
        key,
        cancellation=cancellation if receiver.chooses else "genie",
        modulation=modulation,
        clip=clip,
    )
    in_their_unit = (received.parameters * rms[:, None]).astype(parameters.dtype)
    return received._replace(parameters=in_their_unit)


def send(
    unit: Float[Array, "users size"],
    h_tilde: Complex[Array, "antennas users"],
    noise: ColouredNoise,
    equaliser: Equaliser,
    key: Key[Array, ""],
    *,
    cancellation: str = "genie",
    modulation: int | None = 64,
    clip: Real[ArrayLike, ""] | None = None,
) -> Received:
    """`transmit` for normalised parameters, with known noise and filters.

    **Arguments:** `noise` with the floor, by `coloured_noise`; `equaliser`, the filters of the
    receiver; the others as for `transmit`.

    **Raises:** `InputError` for an unknown cancellation or modulation.
    """
    require_known("cancellation", cancellation, CANCELLATIONS)
    code = _analogue(unit) if modulation is None else _digital(unit, key, modulation, clip)
    symbols = code.encode(unit).astype(h_tilde.dtype)
    signal = propagate(symbols, h_tilde, noise, jax.random.fold_in(key, _NOISE))

    forward = product(equaliser.feedforward, signal)
    mse = equaliser.mse[:, None]
    if cancellation == "genie":
        estimates = forward - product(equaliser.feedback, symbols)
        decisions = code.decide(estimates, mse)
    else:

        def receive(decisions: Array, user: Array) -> tuple[Array, Array]:
            estimate = forward[user] - product(equaliser.feedback[user], decisions)
            return decisions.at[user].set(code.decide(estimate, mse[user])), estimate

        decisions, in_turn = jax.lax.scan(receive, jnp.zeros_like(symbols), equaliser.sequence)
        estimates = jnp.zeros_like(symbols).at[equaliser.sequence].set(in_turn)

    error = estimates - symbols
    return Received(
        parameters=code.decode(decisions).astype(unit.dtype),
        symbols=symbols,
        estimates=estimates,
        decisions=decisions,
        symbol_mse=jnp.mean(jnp.real(error) ** 2 + jnp.imag(error) ** 2, axis=1),
    )


def propagate(
    symbols: Complex[Array, "users symbols"],
    h_tilde: Complex[Array, "antennas users"],
    noise: ColouredNoise,
    key: Key[Array, ""],
) -> Complex[Array, "antennas symbols"]:
    """What the antennas receive: Y = H~ X + C^(1/2) w with w ~ CN(0, I).

    The root is the Hermitian one, continuous in C: a key gives similar noise to similar attacks.
    """
    white = jax.random.normal(key, (h_tilde.shape[0], symbols.shape[1]), h_tilde.dtype)
    turned = product(noise.vectors.conj().T, white)
    return product(h_tilde, symbols) + noise.colour(turned)


class _Code(NamedTuple):
    """Unit-power parameters to symbols, (estimates, mse) to decisions, decisions to parameters."""

    encode: Callable[[Array], Array]
    decide: Callable[[Array, Array], Array]
    decode: Callable[[Array], Array]


def _digital(unit: Array, key: Array, modulation: int, clip: ArrayLike | None) -> _Code:
    bits = modem.bits_per_symbol(modulation)
    mask = jax.random.randint(jax.random.fold_in(key, _SCRAMBLING), unit.shape, 0, 1 << bits)

    def encode(unit: Array) -> Array:
        levels = quantise(unit, bits, clip) ^ mask
        return modem.modulate(modem.integers_to_bits(levels, bits))

    def decide(estimates: Array, mse: Array) -> Array:
        # Slicing wants the unbiased estimate; a user that nobody hears has 1 - mu = 0.
        gain = jnp.maximum(1 - mse, jnp.finfo(mse).eps)
        return modem.nearest_symbols(estimates / gain, modulation)

    def decode(decisions: Array) -> Array:
        levels = modem.bits_to_integers(modem.demodulate(decisions, modulation))
        return dequantise(levels ^ mask, bits, clip)

    return _Code(encode, decide, decode)


def _analogue(unit: Array) -> _Code:
    size = unit.shape[1]

    def encode(unit: Array) -> Array:
        pairs = jnp.pad(unit, ((0, 0), (0, size % 2))).reshape(unit.shape[0], -1, 2)
        return jax.lax.complex(pairs[..., 0], pairs[..., 1]) / math.sqrt(2)

    def decode(decisions: Array) -> Array:
        pairs = jnp.stack([jnp.real(decisions), jnp.imag(decisions)], axis=-1) * math.sqrt(2)
        return pairs.reshape(unit.shape[0], -1)[:, :size]

    return _Code(encode, lambda estimates, mse: estimates, decode)
