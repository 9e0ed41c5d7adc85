"""Rotary position embeddings: frequencies as values, and the rotation of queries and keys.

Pairs are halves, as in Hugging Face's checkpoints: entry i of a head turns with entry i + d / 2.

Reference: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv
2104.09864.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from rmtllmf_jax.common.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Frequencies ``theta ** (-2 i / d)``, in radians per token."""

    theta: float = 10_000.0
    """Base of the wavelengths; `rope_theta`."""

    def __post_init__(self) -> None:
        require_positive(self)

    def __call__(self, head_dim: int) -> Float32[np.ndarray, " half"]:
        """Return the frequencies of the pairs of a head, in float32 as models were trained."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        return np.float32(1) / np.float32(self.theta) ** exponents


@dataclass(frozen=True, kw_only=True)
class LinearRotary(Rotary):
    """Positions divided by `factor` (`rope_type` "linear"; arXiv 2306.15595)."""

    factor: float

    def __call__(self, head_dim: int) -> Float32[np.ndarray, " half"]:
        """Return the frequencies of the pairs of a head."""
        return super().__call__(head_dim) / np.float32(self.factor)


@dataclass(frozen=True, kw_only=True)
class Llama3Rotary(Rotary):
    """Long wavelengths divided by `factor`, short ones kept, smooth in between ("llama3").

    Wavelengths of `positions` / `low` tokens or more are long, up to `positions` / `high` short.
    Reference: Llama 3.1, arXiv 2407.21783.
    """

    factor: float
    low: float
    """`low_freq_factor`."""
    high: float
    """`high_freq_factor`."""
    positions: int
    """`original_max_position_embeddings`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high <= self.low:
            raise InputError(
                f"high_freq_factor must be above low_freq_factor {self.low:g}, got {self.high:g}."
            )

    def __call__(self, head_dim: int) -> Float32[np.ndarray, " half"]:
        """Return the frequencies of the pairs of a head."""
        plain = super().__call__(head_dim)
        turns = self.positions * plain / np.float32(2 * math.pi)  # within the first context
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1).astype(np.float32)
        return (1 - kept) * plain / np.float32(self.factor) + kept * plain


def require_positive(rotary: Rotary) -> None:
    """Check that all numbers of a value are finite and positive.

    **Raises:** `InputError` that names one that is not.
    """
    for name, value in vars(rotary).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise InputError(f"{name} of the rotary embedding must be > 0, got {value!r}.")


def rotate(
    x: Float[Array, "batch tokens heads head_dim"],
    positions: Int[Array, "batch tokens"],
    rotary: Rotary,
) -> Float[Array, "batch tokens heads head_dim"]:
    """Rotate the pairs of every head by position times frequency.

    Angles are in float32, and the result in the type of `x`.
    """
    frequencies = jnp.asarray(rotary(x.shape[-1]))
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
