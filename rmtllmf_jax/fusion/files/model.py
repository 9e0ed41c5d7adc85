"""What `fuse` accepts as a model beside its base: a checkpoint, an adapter or a task vector."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.fusion.files.adapters import is_adapter, open_adapter
from rmtllmf_jax.fusion.files.checkpoint import open_checkpoint
from rmtllmf_jax.fusion.files.places import snapshot
from rmtllmf_jax.fusion.files.vectors import is_vector, open_vector


@runtime_checkable
class Model(Protocol):
    """A model on disk, seen through its task vector, tensor by tensor."""

    @property
    def given(self) -> Path:
        """The path by which it was requested; messages name it."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that it is read from."""
        ...

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        ...

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return a fingerprint that shows whether the files are unchanged."""
        ...

    @property
    def keys(self) -> Collection[str]:
        """The keys of the tensors that it covers."""
        ...

    def keeping(self, kept: Callable[[str], bool]) -> Model:
        """Return it with only the tensors to be kept."""
        ...

    def touches(self, key: str) -> bool:
        """Return whether the task vector may be nonzero in a tensor of the base."""
        ...

    def origin(self, key: str) -> str:
        """Return the source of a tensor that it touches, for a manifest."""
        ...

    def difference(
        self, key: str, base: Float[np.ndarray, "..."], into: Float[np.ndarray, "..."]
    ) -> None:
        """Write a tensor of the task vector that it touches into an array of float32."""
        ...


def open_model(path: Path) -> Model:
    """Return the model at a path: an adapter, a task vector of this package, or a checkpoint.

    **Raises:** `InputError` as `open_adapter`, `open_vector` and `open_checkpoint`.
    """
    path = snapshot(path.expanduser())
    if is_adapter(path):
        return open_adapter(path)
    return open_vector(path) if is_vector(path) else open_checkpoint(path)
