"""What task vectors go through before files are merged: a link, or anything of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

Rows = Float[np.ndarray, "users ..."]
"""A tensor of all task vectors, float32."""


@runtime_checkable
class Transfer(Protocol):
    """A value that says how task vectors reach the place where they are merged.

    `rmtllmf_jax.uplink.StreamedUplink` is one.
    """

    def key(self) -> dict[str, Any]:
        """Return everything that what arrives depends on besides the task vectors, as JSON."""

    def opened(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        users: int,
        leaves: Callable[[str], Iterator[tuple[str, Rows]]],
    ) -> Opened:
        """Return what lets tensors through, after as many passes over all of them as it needs.

        **Arguments:** the shape of each tensor by name, the number of task vectors, and what reads
        the tensors that are merged, sorted by name; it takes a few words that say what for. They
        may be overwritten.
        """


@runtime_checkable
class Opened(Protocol):
    """Called with name and rows of a tensor, it overwrites the rows by what arrives.

    The same whenever it is called, in whatever order.
    """

    @property
    def facts(self) -> list[dict[str, float]]:
        """What the card says of each task vector."""

    def __call__(self, name: str, rows: Rows) -> None:
        """Let a tensor through; rows after those of the task vectors stay as they are."""
