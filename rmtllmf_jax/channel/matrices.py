"""Given channels: arrays or files of them, in place of a cell."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Key

from rmtllmf_jax.channel.checks import require_decibels, require_finite
from rmtllmf_jax.common.errors import InputError

# What a draw's key is folded with.
_PICKED = 0


@dataclass(frozen=True)
class _Content:
    """An array that is hashed and compared by its content, as fields of presets must be."""

    array: Complex[np.ndarray, "matrices antennas users"] = field(compare=False, repr=False)
    sha256: str

    def described(self) -> str:
        return f"'sha256:{self.sha256[:16]}'"


@dataclass(frozen=True)
class Matrices:
    """Given channels H~ = H diag(sqrt p), of which every draw takes one.

    **Fields:**

    - `h`: one matrix (antennas, users), or a batch (matrices, antennas, users), real or complex; or
      the path of a `.npy` file with such an array. In units of the thermal noise: |h~_q|^2 of one
      antenna is the SNR of user q there. Divide a measured channel by the standard deviation of its
      noise, and include the transmit powers.
    - `attack_budget_db`: P_N / n, the attacker's total power over the noise of one antenna.

    A draw picks its matrix uniformly by its key, `jax.random.randint(fold_in(key, 0), ...)`: equal
    keys give equal channels, whatever the attack, and many draws take a matrix more than once.

    Hashable, and equal where the arrays are; the name in results is a checksum of the array. The
    array is read once and compiled into every program that draws from it.

    **Raises:** `InputError` for a file that holds no array, another shape, and entries that are not
    finite numbers.

    >>> preset = Matrices([[2.0, 0.0], [0.0, 1.0]], attack_budget_db=10.0)
    >>> preset.antennas, preset.users, preset == Matrices(np.diag([2.0, 1.0]), 10.0)
    (2, 2, True)
    """

    h: Any
    attack_budget_db: float = 23.66

    has_channel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.h, _Content):
            object.__setattr__(self, "h", _content(self.h))
        if self.attack_budget_db != -math.inf:  # a budget of zero
            require_decibels("attack_budget_db", self.attack_budget_db)

    @property
    def matrices(self) -> Complex[np.ndarray, "matrices antennas users"]:
        """The channels, read-only."""
        content: _Content = self.h
        return content.array

    @property
    def antennas(self) -> int:
        """Receive antennas."""
        return self.matrices.shape[1]

    @property
    def users(self) -> int:
        """Single-antenna users."""
        return self.matrices.shape[2]

    @property
    def attack_budget(self) -> float:
        """P_N / n as a ratio."""
        return 10.0 ** (self.attack_budget_db / 10)

    def draw(self, key: Key[Array, ""]) -> Complex[Array, "antennas users"]:
        """The matrix that a draw's key picks."""
        matrices = jnp.asarray(self.matrices)
        number = jax.random.randint(jax.random.fold_in(key, _PICKED), (), 0, len(matrices))
        return matrices[number]


def _content(h: Any) -> _Content:
    where = "the matrices"
    if isinstance(h, str | Path):
        where, h = f"the matrices of {h}", _read(Path(h).expanduser())
    try:
        array = np.array(h, complex, order="C")
    except (ValueError, TypeError):
        raise InputError(f"{where} must be numbers, got {type(h).__name__}.") from None
    if array.ndim not in (2, 3) or not array.size:
        raise InputError(
            f"{where} must be one channel (antennas, users), or a batch of them (matrices, "
            f"antennas, users), got shape {array.shape}."
        )
    require_finite(where, array)
    array = array[None] if array.ndim == 2 else array
    array.setflags(write=False)
    digest = hashlib.sha256(f"{array.shape}".encode() + array.tobytes()).hexdigest()
    return _Content(array, digest)


def _read(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"the channels {path} cannot be read ({error}): give a .npy file that numpy.save wrote."
        ) from None
    if not isinstance(found, np.ndarray):
        raise InputError(f"the channels {path} are an archive: save one array by numpy.save.")
    return found
