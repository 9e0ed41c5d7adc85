"""Attacks on content: what a malicious user sends in place of its task vector.

Your own poison is a frozen dataclass with the same call; it needs no registration. For merge
methods that withstand them, see `fusion.rules.robust`.

>>> import jax.numpy as jnp
>>> stacked = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
>>> SignFlip(user=1)(stacked)["w"].tolist(), Scaled(user=0)(stacked)["w"].tolist()
([[1.0, 2.0], [-3.0, -4.0]], [[10.0, 20.0], [3.0, 4.0]])
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.values import by_name, name_of
from rmtllmf_jax.fusion.trees import as_type_of, check_stacked, widened


@runtime_checkable
class Poison(Protocol):
    """`poison(stacked) -> stacked`: what is sent in place of the vectors given. Pure."""

    def __call__(self, stacked: PyTree[Array]) -> PyTree[Array]:
        """Return the task vectors as they are sent, of the same shapes and types."""
        ...


@dataclass(frozen=True)
class _OneUser:
    """Base of attacks in which one user multiplies its task vector."""

    stage: ClassVar[str] = "content"
    """Where it acts: on what is sent, not on the channel."""
    by_leaf: ClassVar[bool] = True
    """A leaf of the result depends on the same leaf alone: files are then sent leaf by leaf."""

    user: int = 0
    """The malicious user, by number from 0 in the stack."""

    def __post_init__(self) -> None:
        """Check the number."""
        require_at_least("user", self.user, 0)

    @property
    def times(self) -> float:
        """What the user's task vector is multiplied by."""
        raise NotImplementedError

    def __call__(self, stacked: PyTree[Array]) -> PyTree[Array]:
        """Return the task vectors as sent; those of the other users stay bitwise identical.

        **Arguments:** `stacked`: leaves with a leading axis of users, real floating-point.

        **Raises:** `InputError` for a user that does not exist, or for leaves that are not stacked
        task vectors.
        """
        users = check_stacked(stacked)
        if self.user >= users:
            raise InputError(
                f"{name_of(self)} needs a user of 0 to {users - 1}, as there are {users} task "
                f"vectors, got {self.user}."
            )
        factors = jnp.where(jnp.arange(users) == self.user, self.times, 1.0)

        def send(leaf: Array) -> Array:
            return as_type_of(leaf, widened(leaf) * factors.reshape(-1, *[1] * (leaf.ndim - 1)))

        return jax.tree.map(send, stacked)


@dataclass(frozen=True)
class SignFlip(_OneUser):
    """The user's task vector negated: it removes from the merged model what the task needs.

    Its norm and its distribution are those of an honest one. Reference: the sign-flipping attack
    of Li et al., arXiv 1811.03761 (RSA).
    """

    title: ClassVar[str] = "Sign flip"

    @property
    def times(self) -> float:
        """-1."""
        return -1.0


@dataclass(frozen=True)
class Scaled(_OneUser):
    """The user's task vector times a factor: its task drowns the others.

    Reference: model replacement by boosting, Bagdasaryan et al., arXiv 1807.00459.
    """

    title: ClassVar[str] = "Scaled vector"

    factor: float = 10.0
    """What the task vector is multiplied by; below 0 its sign is flipped, too."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        if not math.isfinite(self.factor):
            raise InputError(f"factor must be a finite number, got {self.factor!r}.")

    @property
    def times(self) -> float:
        """The factor."""
        return self.factor


POISONS = by_name(SignFlip, Scaled)
"""Attacks on content by the names that a command line knows."""
