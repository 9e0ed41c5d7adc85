"""What attacks do to a preset over many drops: errors, eigenvalues, symbols behind the equaliser.

For tables and figures; users stand in the order of their received power, weakest first.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Key

from rmtllmf_jax.channel.covariances import attack_covariance
from rmtllmf_jax.channel.equalise import mmse_equaliser
from rmtllmf_jax.channel.link import transmit
from rmtllmf_jax.channel.presets import ChannelPreset, DirectPreset, Preset
from rmtllmf_jax.channel.realisation import (
    draw_channel,
    draw_channels,
    draw_keys,
    gram,
    received_power,
)
from rmtllmf_jax.channel.receivers import unbiased_sinr
from rmtllmf_jax.channel.scenarios import user_mse_from_channel

CHUNK = 4000
"""Drops that are computed at once: memory and speed alone."""

# What a drop's key is folded with for the symbols sent over it (0 and 1 are the channel's own).
_SENT = 2


def mse_by_power(
    preset: Preset, attacks: tuple[str, ...], key: Key[Array, ""]
) -> Float[Array, "attacks users"]:
    """MSE under each attack of the drop that `key` draws; a direct preset has one row."""
    if isinstance(preset, DirectPreset):
        return -jnp.sort(-jnp.array(preset.user_mse))[None]
    h_tilde = draw_channel(preset, key)
    by_power = jnp.argsort(received_power(gram(h_tilde)))
    budget, order = preset.attack_budget, preset.order
    mse = [user_mse_from_channel(h_tilde, attack, budget, order=order) for attack in attacks]
    return jnp.stack(mse)[:, by_power]


def mse_over_drops(
    preset: Preset, attacks: tuple[str, ...], key: Key[Array, ""], draws: int
) -> Iterator[Float[np.ndarray, "drops attacks users"]]:
    """`mse_by_power` of drops 0 .. draws - 1, `CHUNK` at a time from one compiled program.

    The keys are those of `draw_keys`, so that chunks do not show.
    """

    @jax.jit
    def chunk(key: Array, first: Array) -> Array:
        keys = draw_keys(key, CHUNK, first)
        return jax.vmap(lambda key: mse_by_power(preset, attacks, key))(keys)

    for first in range(0, draws, CHUNK):
        yield np.asarray(chunk(key, np.uint32(first)))[: min(CHUNK, draws - first)]


def spectra(
    preset: ChannelPreset, attacks: tuple[str, ...], key: Key[Array, ""], draws: int
) -> tuple[Float[np.ndarray, "draws users"], dict[str, Float[np.ndarray, "draws users"]]]:
    """Largest eigenvalues of H P H^H and of each attacker's covariance, falling, drop by drop."""

    @jax.jit
    def matrices(key: Array) -> tuple[Array, dict[str, Array]]:
        def attackers(h_tilde: Array) -> dict[str, Array]:
            return {
                name: attack_covariance(name, h_tilde, preset.attack_budget) for name in attacks
            }

        h_tilde = draw_channels(preset, key, draws)
        return h_tilde, jax.vmap(attackers)(h_tilde)

    h_tilde, covariances = matrices(key)
    singular = np.linalg.svd(np.asarray(h_tilde), compute_uv=False)
    return singular**2, {
        attack: np.linalg.eigvalsh(np.asarray(covariance))[:, ::-1][:, : preset.users]
        for attack, covariance in covariances.items()
    }


def equalised_symbols(
    preset: ChannelPreset,
    attack: str,
    key: Key[Array, ""],
    shown: tuple[int, ...],
    symbols: int,
    modulation: int,
) -> tuple[Complex[Array, "shown symbols"], Float[Array, " shown"], Float[Array, " shown"]]:
    """What the receiver makes of random QAM symbols on drop 0, for the users at places `shown`.

    Places count from the weakest user. SIC cancels the true symbols.

    **Returns:** unbiased estimates, their SINR, and the share that is sliced wrongly.
    """
    key = jax.random.fold_in(key, 0)

    @jax.jit
    def receive(key: Array) -> tuple[Array, Array, Array]:
        h_tilde = draw_channel(preset, key)
        users = jnp.argsort(received_power(gram(h_tilde)))[jnp.array(shown)]
        noise = attack_covariance(attack, h_tilde, preset.attack_budget), 1.0
        sent = jax.random.fold_in(key, _SENT)
        received = transmit(
            jax.random.normal(sent, (preset.users, symbols)),
            h_tilde,
            *noise,
            sent,
            order=preset.order,
            modulation=modulation,
        )
        mse = mmse_equaliser(h_tilde, *noise, preset.order).mse[users]
        wrong = jnp.abs(received.decisions - received.symbols)[users] > 1e-3
        estimates = received.estimates[users] / (1 - mse)[:, None]
        return estimates, unbiased_sinr(mse), jnp.mean(wrong, axis=1)

    return receive(key)
