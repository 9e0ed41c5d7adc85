"""What the model benchmarks share: interleaved rounds, the machine's name, peak memory."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax


def interleaved(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    repeats: int = 1,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, float]:
    """Return the median seconds of each call; a round takes all of them in turn.

    Every call should have run once before, so that nothing is compiled here. A round times
    `repeats` calls that are waited for at the end alone, as a training loop does on a GPU. `before`
    is called with a call's name ahead of it, and not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            before(name)
            start = time.perf_counter()
            for _ in range(repeats):
                result = call()
            jax.block_until_ready(result)  # what is not of JAX is ready already
            seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: statistics.median(times) for name, times in seconds.items()}


def machine(*packages: str) -> str:
    """Return device, processor, cores that may be used, and versions of packages."""
    device = jax.devices()[0]
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = named[0] if named else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    accelerator = "" if device.platform == "cpu" else f"{device.device_kind}; "
    return f"{accelerator}{cores} cores of {processor}; {versions}"


def peak_memory() -> float:
    """Return the most memory that this process has held, in GiB.

    Linux's `ru_maxrss` of a child begins with that of the process which started it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (30 if sys.platform == "darwin" else 20)
