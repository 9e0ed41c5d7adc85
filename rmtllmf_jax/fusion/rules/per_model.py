"""Task vectors that are sparsified with separate options, then merged as one."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import name_of
from rmtllmf_jax.fusion.rules.sparsified import Elect, Sparsified, Sum


@dataclass(frozen=True)
class _Each:
    """The sparsifier of each user in turn."""

    methods: tuple[Sparsified, ...]

    def __call__(
        self,
        leaf: Float[Array, "users ..."],
        path: str = "",
        key: Key[Array, ""] | None = None,
        first: int = 0,
    ) -> Float[Array, "users ..."]:
        """Return the leaf sparsified; `first` is the number of its first user."""
        users = range(leaf.shape[0])
        rows = [
            self.methods[first + user].sparsifier(leaf[user : user + 1], path, key, first + user)
            for user in users
        ]
        return jnp.concatenate(rows)


@dataclass(frozen=True)
class PerModel(Sparsified):
    """A method that sparsifies, with separate options for each task vector.

    They may differ in the sparsification, but not in how the results become one vector.

    >>> from rmtllmf_jax.fusion.rules import Ties
    >>> stacked = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])}
    >>> PerModel((Ties(0.25), Ties(0.5)))(stacked)["w"].tolist()
    [4.0, 0.0, 3.0, 4.0]
    """

    methods: tuple[Sparsified, ...]
    """The method of each task vector."""
    weights: tuple[float, ...] = ()
    """One weight per task vector; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check that the methods differ in nothing else."""
        super().__post_init__()
        first = self.methods[0]
        if any(type(m) is not type(first) or m.consensus != first.consensus for m in self.methods):
            raise InputError(
                f"{name_of(first)}: models may differ in what is kept of them, and not in how it "
                "becomes one vector."
            )

    @property
    def sparsifier(self) -> _Each:  # type: ignore[override]
        """That of each."""
        return _Each(self.methods)

    @property
    def consensus(self) -> Sum | Elect:
        """That of all."""
        return self.methods[0].consensus
