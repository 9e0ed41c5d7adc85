"""Data-parallel training on the devices of this process: each takes a part of every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least

AXIS = "samples"


@dataclass(frozen=True)
class Split:
    """How a batch is computed: on how many devices at once, and in how many parts in turn.

    It changes no numbers except through the order of summation.
    """

    count: int | None = None
    """Devices of this process; `None` is as many of an accelerator's as divide the batch, and one
    CPU."""
    parts: int = 1
    """Parts whose gradients are added up, so that activations are those of one."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.count is not None:
            require_at_least("--train-devices", self.count, 1)
        require_at_least("--accumulate", self.parts, 1)

    def devices(self, batch_size: int) -> tuple[jax.Device, ...]:
        """Return the devices of this process that share batches of this size.

        **Raises:** as `devices_of`.
        """
        found = jax.local_devices()
        return tuple(found[: self.devices_of(batch_size, len(found), found[0].platform)])

    def devices_of(self, batch_size: int, there: int, kind: str) -> int:
        """Return how many devices share batches of this size when `there` are available.

        `kind` is their platform, of which only ``cpu`` makes a difference.

        **Raises:** `InputError` if there are fewer, or the batch cannot be cut into equal parts.
        """
        count = self.count
        if count is None:
            most = 1 if kind == "cpu" else there
            fit = [n for n in range(1, most + 1) if batch_size % (n * self.parts) == 0]
            count = max(fit, default=1)
        if count > there:
            raise InputError(f"--train-devices {count}: a process sees {there} ({kind}).")
        if batch_size % (count * self.parts):
            raise InputError(
                f"--batch-size {batch_size} is not a multiple of {count} devices (--train-devices) "
                f"times {self.parts} parts (--accumulate)."
            )
        return count


ONE_PART = Split()


class Placement:
    """Placement of a training's arrays: batches over the devices, all else on each of them."""

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self._one = devices[0] if len(devices) == 1 else None
        if self._one is None:
            self._first = devices[0]
            mesh = Mesh(list(devices), (AXIS,), axis_types=(AxisType.Auto,))
            self._cut = NamedSharding(mesh, PartitionSpec(AXIS))
            self._whole = NamedSharding(mesh, PartitionSpec())

    def everywhere(self, tree: PyTree) -> Any:
        """Return a tree replicated on every device."""
        return tree if self._one is not None else jax.device_put(tree, self._whole)

    def together(self, tree: PyTree) -> Any:
        """Return a tree that was on every device on the first one only."""
        return tree if self._one is not None else jax.device_put(tree, self._first)

    def cut(self, tree: PyTree) -> Any:
        """Return a tree with the first axis of its leaves sharded over the devices."""
        return tree if self._one is not None else jax.device_put(tree, self._cut)


def value_and_gradient(
    loss: Callable[[PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    batch: PyTree,
    parts: int = 1,
) -> tuple[Float[Array, ""], Any]:
    """Return a loss and its gradient, summed over `parts` of a batch that are computed in turn.

    So activations are those of one part. `loss(params, part)` must be a sum over samples, divided
    by a quantity of the whole batch. Sample ``i`` is in part ``i % parts``, so that devices with
    consecutive samples have an equal share of each part.
    """
    if parts == 1:
        return jax.value_and_grad(loss)(params, batch)

    def cut(leaf: Array) -> Array:
        return jnp.swapaxes(leaf.reshape(-1, parts, *leaf.shape[1:]), 0, 1)

    def add(so_far: tuple[Array, PyTree], part: PyTree) -> tuple[tuple[Array, PyTree], None]:
        return jax.tree.map(jnp.add, so_far, jax.value_and_grad(loss)(params, part)), None

    zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zero, jax.tree.map(cut, batch))[0]
