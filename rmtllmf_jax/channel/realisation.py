"""From a preset and a key to a channel, and from a channel to its Gram matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Key

from rmtllmf_jax.channel.fading import rayleigh
from rmtllmf_jax.channel.geometry import path_amplitude, user_distances
from rmtllmf_jax.channel.presets import ChannelPreset
from rmtllmf_jax.common.errors import require_at_least

# What a draw's key is folded with, so that neither part depends on how the other is drawn.
_DISTANCES, _FADING = 0, 1


def draw_channel(preset: ChannelPreset, key: Key[Array, ""]) -> Complex[Array, "antennas users"]:
    """One realisation of H~ = H diag(sqrt p): path loss, fading and transmit powers in one matrix.

    Every user transmits at the full power P, which is optimal (each rate grows with the user's own
    power). In units of the noise: E|h~_q|^2 per antenna is the SNR of user q.
    """
    distance = user_distances(
        jax.random.fold_in(key, _DISTANCES),
        preset.users,
        preset.min_distance_m,
        preset.max_distance_m,
    )
    amplitude = jnp.sqrt(preset.edge_snr) * path_amplitude(distance, preset.exponent)
    return rayleigh(jax.random.fold_in(key, _FADING), preset.antennas, preset.users) * amplitude


def draw_keys(key: Key[Array, ""], draws: int) -> Key[Array, " draws"]:
    """Keys of draws 0 .. draws - 1: `fold_in(key, k)`, so that draw k is the same in every batch.

    **Raises:** `InputError` if `draws` is not positive.
    """
    require_at_least("draws", draws, 1)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(draws))


def draw_channels(
    preset: ChannelPreset, key: Key[Array, ""], draws: int
) -> Complex[Array, "draws antennas users"]:
    """`draws` independent channels; number k is `draw_channel(preset, fold_in(key, k))`."""
    return jax.vmap(lambda k: draw_channel(preset, k))(draw_keys(key, draws))


def gram(h_tilde: Complex[Array, "antennas users"]) -> Complex[Array, "users users"]:
    """K = H~^H H~, all that rates, errors and attacks depend on."""
    # Accelerators default to a reduced precision that the near-far spread does not survive.
    return jnp.matmul(h_tilde.conj().T, h_tilde, precision="highest")


def received_power(gram_matrix: Complex[Array, "users users"]) -> Float[Array, " users"]:
    """p_q ||h_q||^2 of every user over all antennas: the diagonal of K."""
    return jnp.real(jnp.diagonal(gram_matrix))
