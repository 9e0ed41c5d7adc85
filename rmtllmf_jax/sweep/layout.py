"""Where the cells of a sweep are computed: devices, processes, and how many cells at once.

None of it changes the numbers, except for the order in which a device sums (a relative 4e-7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rmtllmf_jax.common.errors import InputError, require_at_least

CELLS, IMAGES = "cells", "images"
"""Axes of the mesh: cells are independent of each other; images of a batch are counted apart."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Layout:
    """How the work is laid out.

    - `devices`: of this process.
    - `cells_at_once`: cells that a device computes side by side (`jax.lax.map(batch_size=...)`).
    - `image_devices`: devices that share the evaluation batches of a cell.
    - `process`, `processes`: which part of the cells belongs to this process.
    - `streams`: chunks that a single device computes at the same time, each in a separate thread.
      A CPU benefits from two: one program leaves its cores idle for part of the time
      (benchmarks/sweep.py). The threads do not see JAX's context managers (`jax.enable_x64`).
    """

    devices: tuple[jax.Device, ...]
    cells_at_once: int = 1
    image_devices: int = 1
    process: int = 0
    processes: int = 1
    streams: int = 1

    def __post_init__(self) -> None:
        """Refuse incompatible values."""
        require_at_least("cells at once", self.cells_at_once, 1, 4096)
        require_at_least("image devices", self.image_devices, 1)
        require_at_least("streams", self.streams, 1)
        require_at_least("processes", self.processes, 1)
        if len(self.devices) % self.image_devices:
            raise InputError(
                f"--image-devices {self.image_devices} must divide the number of devices, "
                f"{len(self.devices)}."
            )
        if self.streams > 1 and len(self.devices) > 1:
            raise InputError(
                f"{self.streams} streams need a single device, got {len(self.devices)}: programs "
                "on several must be started in the same order everywhere."
            )
        if not 0 <= self.process < self.processes:
            raise InputError(
                f"the process must be one of 0 to {self.processes - 1}, got {self.process}."
            )

    @property
    def chunk(self) -> int:
        """Number of cells in one call of a program."""
        return self.cells_at_once * (len(self.devices) // self.image_devices)

    @property
    def cells_in_memory(self) -> int:
        """Number of cells in progress on a device, in all streams."""
        return self.cells_at_once * self.streams

    @cached_property
    def mesh(self) -> Mesh | None:
        """The devices as a mesh over cells and images; `None` for a single device."""
        if len(self.devices) == 1:
            return None
        table = np.array(self.devices).reshape(-1, self.image_devices)
        return Mesh(table, (CELLS, IMAGES), axis_types=(AxisType.Auto,) * 2)

    def shard(
        self,
        program: Callable[..., Any],
        inputs: Sequence[PartitionSpec],
        outputs: PartitionSpec,
    ) -> Callable[..., Any]:
        """Return a program in which every device works on its own part of the arguments."""
        if self.mesh is None:
            return program
        return jax.shard_map(
            program, mesh=self.mesh, in_specs=tuple(inputs), out_specs=outputs, check_vma=False
        )

    def put(self, tree: _T, axis: str | None = None) -> _T:
        """Return arrays on all devices: replicated, or sharded along an axis of the mesh."""
        if self.mesh is None:
            return jax.device_put(tree, self.devices[0])
        spec = PartitionSpec() if axis is None else PartitionSpec(axis)
        return jax.device_put(tree, NamedSharding(self.mesh, spec))

    def mine(self, work: Sequence[_T]) -> list[_T]:
        """Return this process's share of a list that is the same in all processes."""
        return self.share(work, self.process)

    def share(self, work: Sequence[_T], process: int) -> list[_T]:
        """Return the share of a process."""
        bounds = np.linspace(0, len(work), self.processes + 1).round().astype(int)
        return list(work[bounds[process] : bounds[process + 1]])


def one_device() -> Layout:
    """Return the layout of one cell at a time on the first device."""
    return Layout((jax.local_devices()[0],))
