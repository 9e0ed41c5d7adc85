"""The keys of a realisation: channel and noise from one root are independent of each other."""

from __future__ import annotations

import jax
from jaxtyping import Array, Key

_CHANNEL, _NOISE = 0, 1


def channel_key(root: Key[Array, ""], draw: int) -> Key[Array, ""]:
    """Return the key of the channel of a draw."""
    return jax.random.fold_in(jax.random.fold_in(root, _CHANNEL), draw)


def noise_key(root: Key[Array, ""], draw: int, repetition: int = 0) -> Key[Array, ""]:
    """Return the key of what is transmitted over the channel of a draw."""
    noise = jax.random.fold_in(root, _NOISE)
    return jax.random.fold_in(jax.random.fold_in(noise, repetition), draw)
