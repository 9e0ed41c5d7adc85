"""What task vectors go through before files are merged: a link, or your own transfer."""

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
        """Return everything besides the task vectors that the result depends on, as JSON."""

    def opened(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        users: int,
        leaves: Callable[[str], Iterator[tuple[str, Rows]]],
    ) -> Opened:
        """Return the opened transfer, after as many passes over all tensors as it needs.

        **Arguments:** the shape of each tensor by name, the number of task vectors, and a reader of
        the merged tensors, sorted by name; it takes a few words that describe the purpose. The
        tensors may be overwritten.
        """


@runtime_checkable
class Opened(Protocol):
    """Called with name and rows of a tensor, overwrites the rows with what arrives.

    The result does not depend on when or in which order it is called.
    """

    @property
    def facts(self) -> list[dict[str, float]]:
        """What the card says about each task vector."""

    def __call__(self, name: str, rows: Rows) -> None:
        """Transfer a tensor; rows after those of the task vectors stay unchanged."""
