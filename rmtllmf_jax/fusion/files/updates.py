"""What the tensors of an adapter do to one tensor of the base."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.fusion.files.checkpoint import Entry, read_finite, wide


@runtime_checkable
class Update(Protocol):
    """What an adapter's file does to one tensor of the base."""

    @property
    def size(self) -> int:
        """Numbers of the tensor."""
        ...

    @property
    def origin(self) -> str:
        """Its source and layout, for a manifest."""
        ...

    def __call__(self, base: Float[np.ndarray, "..."], into: Float[np.ndarray, "..."]) -> None:
        """Write what is added to the base's tensor into a contiguous array of its shape."""
        ...


@dataclass(frozen=True)
class Product:
    """``scale * B A`` of a layer's factors, (outputs, r) and (r, inputs).

    For a convolution, A is (r, inputs, height, width) and B (outputs, r, 1, 1).
    """

    a: Entry
    b: Entry
    scale: float
    transposed: bool = False
    """Whether the base's weight is (inputs, outputs): GPT-2's layers, and tables of embeddings."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the product of the factors: outputs first."""
        return (self.b.shape[0], *self.a.shape[1:])

    @property
    def size(self) -> int:
        """Numbers of the tensor."""
        return prod(self.shape)

    @property
    def origin(self) -> str:
        """The keys of the factors."""
        return f"{self.a.key} {self.b.key}{' transposed' * self.transposed}"

    def __call__(self, base: Float[np.ndarray, "..."], into: Float[np.ndarray, "..."]) -> None:
        """Write the product, in the shape of the base's tensor."""
        a, b = (read_tensor(entry) for entry in (self.a, self.b))
        a, b = a.reshape(len(a), -1), self.scale * b.reshape(len(b), -1)
        left, right = (a.T, b.T) if self.transposed else (b, a)
        np.matmul(left, right, out=into.reshape(len(left), -1), casting="same_kind")


@dataclass(frozen=True)
class OfTensor:
    """Base of the updates that come from one tensor of a file."""

    entry: Entry

    @property
    def size(self) -> int:
        """Numbers of the tensor."""
        return prod(self.entry.shape)

    @property
    def origin(self) -> str:
        """The tensor's name in the file."""
        return self.entry.key


@dataclass(frozen=True)
class Whole(OfTensor):
    """A tensor that replaces the base's: from a module to save, or a bias."""

    def __call__(self, base: Float[np.ndarray, "..."], into: Float[np.ndarray, "..."]) -> None:
        """Write its difference from the base's."""
        np.subtract(read_tensor(self.entry), base, out=into, casting="same_kind")


@dataclass(frozen=True)
class Shift(OfTensor):
    """A bias of B, added to that of the layer."""

    scale: float

    def __call__(self, base: Float[np.ndarray, "..."], into: Float[np.ndarray, "..."]) -> None:
        """Write the bias, scaled like the layer's update."""
        np.multiply(self.scale, read_tensor(self.entry), out=into, casting="same_kind")


def read_tensor(entry: Entry) -> np.ndarray:
    """Return a tensor of finite numbers, in float32 or wider.

    **Raises:** `InputError` that names file and key if one is NaN or infinite.
    """
    tensor = np.empty(entry.shape, wide(entry))
    read_finite(entry, tensor)
    return tensor
