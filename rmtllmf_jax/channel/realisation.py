"""From a preset and a key to a channel, and from a channel to its Gram matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Complex, Float, Integer, Key

from rmtllmf_jax.channel.checks import require_channel
from rmtllmf_jax.channel.linalg import product
from rmtllmf_jax.channel.matrices import Matrices
from rmtllmf_jax.channel.path_loss import PLACEMENTS, REFERENCE_DISTANCE_M
from rmtllmf_jax.channel.power_control import POWER_CONTROLS
from rmtllmf_jax.channel.presets import Preset, get_preset, require_channel_preset
from rmtllmf_jax.common.errors import InputError, require_at_least

# What a draw's key is folded with, so that neither part depends on how the other is drawn.
_DISTANCES, _FADING = 0, 1


def draw_distances(preset: Preset | str, key: Key[Array, ""]) -> Float[Array, " users"]:
    """The users' distances in metres: those of the preset, or drawn according to it.

    **Raises:** `InputError` for a preset without a channel.

    >>> from rmtllmf_jax.channel import ChannelPreset
    >>> preset = ChannelPreset(users=2, distances_m=(100.0, 250.0))
    >>> draw_distances(preset, jax.random.key(0)).tolist()
    [100.0, 250.0]
    """
    preset = require_channel_preset(preset)
    if preset.distances_m is not None:
        return jnp.array(preset.distances_m)
    place = PLACEMENTS[preset.placement]
    key = jax.random.fold_in(key, _DISTANCES)
    return place(key, preset.users, preset.min_distance_m, preset.max_distance_m)


def channel_at(
    preset: Preset | str,
    distances: Float[Array, " users"],
    key: Key[Array, ""],
    angles: Float[Array, " users"] | None = None,
    block: int = 0,
) -> Complex[Array, "antennas users"]:
    """H~ = H diag(sqrt p) of users at given `distances` in metres, with the fading of `key`.

    Differentiable in the distances wherever path loss and power control are. Placement and the
    preset's own distances only give power control the farthest place of the cell. `angles` are in
    radians from broadside, for a fading that has angles; by default they are the fading's own.
    `block`: the number of a block of fading, independent from block to block.

    **Raises:** `InputError` unless there is one distance per user, and for distances outside the
    range of the path loss.

    >>> from rmtllmf_jax.channel import ChannelPreset, PowerLaw
    >>> preset, key = ChannelPreset(path_loss=PowerLaw(2.0)), jax.random.key(0)
    >>> near, far = (channel_at(preset, jnp.full(8, d), key) for d in (200.0, 400.0))
    >>> round(float(jnp.abs(near / far).mean()), 3)
    2.0
    """
    preset = require_channel_preset(preset)
    if distances.shape != (preset.users,):
        raise InputError(
            f"distances must be one per user, {preset.users}, got shape {distances.shape}."
        )
    gain, at_reference, weakest = (
        preset.path_loss(jnp.asarray(d, distances.dtype))
        for d in (distances, REFERENCE_DISTANCE_M, preset.farthest_m)
    )
    control = POWER_CONTROLS[preset.power_control]
    share = control(gain, weakest, preset.power_control_alpha)
    amplitude = jnp.sqrt(preset.edge_snr) * jnp.sqrt(gain / at_reference * share)
    dtype = jnp.result_type(distances.dtype, jnp.complex64)
    fading_key = jax.random.fold_in(key, _FADING)
    if block:
        fading_key = jax.random.fold_in(fading_key, block)
    fading: Callable[..., Array] = preset.fading
    if angles is not None and getattr(fading, "has_angles", False):
        fading = partial(fading, angles=angles)
    return fading(fading_key, preset.antennas, preset.users, dtype) * amplitude


def draw_channel(
    preset: Preset | str, key: Key[Array, ""], block: int = 0
) -> Complex[Array, "antennas users"]:
    """One realisation of H~ = H diag(sqrt p): path loss, fading and transmit powers in one matrix.

    `channel_at` the distances that `draw_distances` draws from the same key, or the result of the
    preset's own `draw`, as for `Matrices`. In units of the noise: E|h~_q|^2 per antenna is the SNR
    of user q. Users keep their places from block to block, and fade independently.

    **Raises:** `InputError` for a preset without a channel.

    >>> draw_channel("paper", jax.random.key(0)).shape
    (16, 8)
    """
    preset = get_preset(preset)
    if isinstance(preset, Matrices):
        return preset.draw(key)
    return channel_at(preset, draw_distances(preset, key), key, block=block)


def draw_keys(
    key: Key[Array, ""], draws: int, first: Integer[ArrayLike, ""] = 0
) -> Key[Array, " draws"]:
    """Keys of draws first .. first + draws - 1: `fold_in(key, k)`, the same in every batch.

    **Raises:** `InputError` if `draws` is not positive.

    >>> key = jax.random.key(0)
    >>> bool(draw_keys(key, 3)[2] == draw_keys(key, 1, first=2)[0])
    True
    """
    require_at_least("draws", draws, 1)
    numbers = jnp.asarray(first, jnp.uint32) + jnp.arange(draws, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def draw_channels(
    preset: Preset | str, key: Key[Array, ""], draws: int
) -> Complex[Array, "draws antennas users"]:
    """`draws` independent channels; number k is `draw_channel(preset, fold_in(key, k))`.

    >>> draw_channels("paper", jax.random.key(0), draws=5).shape
    (5, 16, 8)
    """
    return jax.vmap(lambda k: draw_channel(preset, k))(draw_keys(key, draws))


def gram(h_tilde: Complex[Array, "antennas users"]) -> Complex[Array, "users users"]:
    """K = H~^H H~, on which alone rates, errors and attacks depend.

    **Raises:** `InputError` for anything but one complex matrix, and outside jit if it is not
    finite.

    >>> gram(jnp.array([[1.0, 1.0], [1.0j, 0.0]])).tolist()
    [[(2+0j), (1+0j)], [(1+0j), (1+0j)]]
    """
    require_channel(h_tilde)
    # In a reduced precision the near-far spread would not survive.
    return product(h_tilde.conj().T, h_tilde)


def received_power(gram_matrix: Complex[Array, "users users"]) -> Float[Array, " users"]:
    """p_q ||h_q||^2 of every user over all antennas: the diagonal of K.

    >>> received_power(gram(jnp.array([[3.0, 1.0], [4.0j, 0.0]]))).tolist()
    [25.0, 1.0]
    """
    return jnp.real(jnp.diagonal(gram_matrix))
