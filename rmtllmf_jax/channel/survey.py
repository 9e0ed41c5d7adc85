"""Effect of attacks on a preset over many drops: errors, eigenvalues, symbols behind the equaliser.

For tables and figures; users are in order of received power, weakest first.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Key

from rmtllmf_jax.channel.attacks import attack_covariance
from rmtllmf_jax.channel.chain import Link
from rmtllmf_jax.channel.link import send
from rmtllmf_jax.channel.quantise import normalise
from rmtllmf_jax.channel.rates import unbiased_sinr
from rmtllmf_jax.channel.realisation import (
    draw_channel,
    draw_channels,
    draw_keys,
    gram,
    received_power,
)

CHUNK = 4000
"""Drops that are computed at once: memory and speed alone."""

# What a drop's key is folded with for the symbols sent over it (0 and 1 are the channel's own).
_SENT = 2


def mse_by_power(links: tuple[Link, ...], key: Key[Array, ""]) -> Float[Array, "links users"]:
    """MSE behind each link over the drop that `key` draws from the preset that they share."""
    preset = links[0].preset
    if not preset.has_channel:
        return -jnp.sort(-links[0].mse(key))[None]
    by_power = jnp.argsort(received_power(gram(draw_channel(preset, key))))
    return jnp.stack([link.mse(key) for link in links])[:, by_power]


def mse_over_drops(
    links: tuple[Link, ...], key: Key[Array, ""], draws: int
) -> Iterator[Float[np.ndarray, "drops links users"]]:
    """`mse_by_power` of drops 0 .. draws - 1, `CHUNK` at a time from one compiled program.

    The keys are those of `draw_keys`, so that the result does not depend on the chunks.
    """

    @jax.jit
    def chunk(key: Array, first: Array) -> Array:
        keys = draw_keys(key, CHUNK, first)
        return jax.vmap(lambda key: mse_by_power(links, key))(keys)

    for first in range(0, draws, CHUNK):
        yield np.asarray(chunk(key, np.uint32(first)))[: min(CHUNK, draws - first)]


def spectra(
    links: tuple[Link, ...], key: Key[Array, ""], draws: int
) -> tuple[Float[np.ndarray, "draws users"], list[Float[np.ndarray, "draws users"]]]:
    """Largest eigenvalues of H P H^H and of each attacker's covariance, descending, per drop."""
    preset = links[0].preset

    @jax.jit
    def matrices(key: Array) -> tuple[Array, list[Array]]:
        def attackers(h_tilde: Array, of_draw: Array) -> list[Array]:
            budget = preset.attack_budget
            return [attack_covariance(link.attack, h_tilde, budget, key=of_draw) for link in links]

        h_tilde = draw_channels(preset, key, draws)
        return h_tilde, jax.vmap(attackers)(h_tilde, draw_keys(key, draws))

    h_tilde, covariances = matrices(key)
    singular = np.linalg.svd(np.asarray(h_tilde), compute_uv=False)
    return singular**2, [
        np.linalg.eigvalsh(np.asarray(covariance))[:, ::-1][:, : preset.users]
        for covariance in covariances
    ]


def equalised_symbols(
    link: Link,
    key: Key[Array, ""],
    shown: tuple[int, ...],
    symbols: int,
    modulation: int,
) -> tuple[Complex[Array, "shown symbols"], Float[Array, " shown"], Float[Array, " shown"]]:
    """The receiver's estimates of random QAM symbols on drop 0, for the users ranked `shown`.

    Ranks count from the weakest user. SIC cancels the true symbols.

    **Returns:** unbiased estimates, their SINR, and the share that is sliced wrongly.
    """
    preset = link.preset
    key = jax.random.fold_in(key, 0)

    @jax.jit
    def receive(key: Array) -> tuple[Array, Array, Array]:
        h_tilde = draw_channel(preset, key)
        users = jnp.argsort(received_power(gram(h_tilde)))[jnp.array(shown)]
        sent = jax.random.fold_in(key, _SENT)
        unit, _ = normalise(jax.random.normal(sent, (preset.users, symbols)))
        h_tilde, noise, filters = link.filters(h_tilde, key)
        received = send(unit, h_tilde, noise, filters, sent, modulation=modulation)
        mse = filters.mse[users]
        wrong = jnp.abs(received.decisions - received.symbols)[users] > 1e-3
        estimates = received.estimates[users] / (1 - mse)[:, None]
        return estimates, unbiased_sinr(mse), jnp.mean(wrong, axis=1)

    return receive(key)
