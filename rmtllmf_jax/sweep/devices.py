"""The devices of a plan: their number, memory and peaks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from rmtllmf_jax.common.errors import InputError, require_at_least

UTILISATION = {"train": 0.4, "forward": 0.5, "memory": 0.5}
"""Shares of a device's peaks that hours are reckoned with: assumptions, not measurements."""


@dataclass(frozen=True)
class Speed:
    """Peaks of one device, in operations and bytes per second.

    `float32` is for JAX's default matmul precision in float32: TF32 on NVIDIA GPUs from Ampere on,
    one pass in bfloat16 on TPUs.
    """

    bfloat16: float
    float32: float
    bandwidth: float
    source: str = "by its data sheet"

    def peak(self, dtype: str) -> float:
        """Return the operations per second for products in a type."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


@dataclass(frozen=True)
class Devices:
    """Devices of one kind; `memory` in bytes per device, `None` if it is not known."""

    kind: str
    count: int
    memory: int | None
    cpu: bool = False


# JAX's device kinds (whole names: a MIG slice of an H100 or a laptop's GPU of the same number is
# another device), GB of memory and peaks, dense, of the vendors' data sheets.
_KNOWN = {
    "h200": (r"NVIDIA H200", 141, Speed(989e12, 494e12, 4.8e12)),
    "h100": (r"NVIDIA H100 80GB HBM3", 80, Speed(989e12, 494e12, 3.35e12)),
    "h100-pcie": (r"NVIDIA H100 PCIe", 80, Speed(756e12, 378e12, 2.0e12)),
    "a100-40gb": (r"NVIDIA A100-(SXM4|PCIE)-40GB", 40, Speed(312e12, 156e12, 1.555e12)),
    "a100": (r"NVIDIA A100(-SXM4-80GB| 80GB PCIe)", 80, Speed(312e12, 156e12, 1.935e12)),
    # No bfloat16 in hardware: its 125 TFLOP/s are float16's, which nothing here computes in.
    "v100": (r"(NVIDIA )?Tesla V100-SXM2-(16|32)GB", 16, Speed(15.7e12, 15.7e12, 0.9e12)),
    "rtx-4090": (r"NVIDIA GeForce RTX 4090", 24, Speed(165e12, 82.6e12, 1.008e12)),
    "tpu-v4": (r"TPU v4", 32, Speed(275e12, 275e12, 1.228e12)),
    "tpu-v5e": (r"TPU v5( lite|e)", 16, Speed(197e12, 197e12, 0.819e12)),
    "tpu-v5p": (r"TPU v5p?", 95, Speed(459e12, 459e12, 2.765e12)),
    "tpu-v6e": (r"TPU v6( lite|e)", 32, Speed(918e12, 918e12, 1.64e12)),
}
_TWO_CORES = ("tpu-v4", "tpu-v5p")  # a slice's name counts cores, and JAX chips


def known_speed(device_kind: str) -> Speed | None:
    """Return the peaks of a device by `jax.Device.device_kind`, `None` if it is not known."""
    for pattern, _, speed in _KNOWN.values():
        if re.fullmatch(pattern, device_kind):
            return speed
    return None


def named_devices(name: str) -> tuple[Devices, Speed]:
    """Return devices by name: `h100`, or several as `h100-8`; slices as `tpu-v5e-8`, `v5p-8`.

    **Raises:** `InputError` for a device that is not in the table, or a slice that does not exist.
    """
    found = re.fullmatch(rf"(?:tpu-)?({'|'.join(_KNOWN)})(?:-(\d+))?".replace("tpu-v", "v"), name)
    if found is None:
        raise InputError(
            f"unknown device {name!r} of --for. Known: {', '.join(_KNOWN)}, several as h100-8 or "
            "tpu-v5e-8; others are described by --tflops and --memory."
        )
    kind = f"tpu-{found[1]}" if f"tpu-{found[1]}" in _KNOWN else found[1]
    count = require_at_least("the number of devices in --for", int(found[2] or 1), 1)
    if kind in _TWO_CORES and count > 1:
        if count % 2:
            raise InputError(f"--for {name}: a slice of {kind} counts cores, two per chip.")
        count //= 2
    _, memory, speed = _KNOWN[kind]
    return Devices(kind, count, memory * 10**9), speed


def described_devices(tflops: float, memory: float) -> tuple[Devices, Speed]:
    """Return a device by its peak (TFLOP/s) and memory (GB).

    Its bandwidth is assumed to be a byte per 200 operations, as for an A100 or a TPU v5e.

    **Raises:** `InputError` unless both are positive.
    """
    for option, value in (("--tflops", tflops), ("--memory", memory)):
        if not 0 < value < 1e9:
            raise InputError(f"{option} must be a positive number, got {value!r}.")
    peak = 1e12 * tflops
    devices = Devices("device as described", 1, round(memory * 1e9))
    return devices, Speed(peak, peak, peak / 200, "as given")


def found_devices(memory: int | None) -> tuple[Devices, Speed | None]:
    """Return the devices that JAX runs on, with this much memory each, and their peaks.

    The peaks of a CPU are measured, in about a second; those of an unknown device are `None`.
    """
    first = jax.local_devices()[0]
    devices = Devices(first.device_kind, jax.device_count(), memory, first.platform == "cpu")
    return devices, measured_speed() if devices.cpu else known_speed(devices.kind)


def measured_speed(size: int = 1024) -> Speed:
    """Return the speed that the first device currently reaches.

    Products of two `size` x `size` matrices in each type, and a sum of two vectors (two are read
    and one is written).
    """

    def products(dtype: str) -> float:
        matrix = jnp.ones((size, size), dtype)
        return 2 * size**3 / _shortest(lambda: jnp.matmul(matrix, matrix))

    vector = jnp.ones(8 * size**2, jnp.float32)
    other = jax.block_until_ready(vector + 1)
    bandwidth = 3 * vector.nbytes / _shortest(lambda: jnp.add(vector, other))
    speed = Speed(products("bfloat16"), products("float32"), bandwidth)
    return replace(speed, source="measured just now on a matrix product")


def _shortest(run: Callable[[], object], times: int = 5) -> float:
    """Return the seconds of the fastest of a few runs, without the first, which compiles."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)
