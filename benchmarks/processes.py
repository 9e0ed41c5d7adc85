"""What benchmarks of whole commands share: a process run to its end, and the memory it held."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from rmtllmf_jax.common.files import sync

POLL = 0.01  # seconds
SETTLE = 5.0  # seconds


def process(command: list[str], out: Path, peaks: dict[str, float], name: str) -> None:
    """Run a command until its output is on the disk; note the most memory that it has held."""
    with tempfile.TemporaryFile() as errors:
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        peak = 0.0
        while running.poll() is None:
            peak = max(peak, high_water(running.pid))
            time.sleep(POLL)
        if running.returncode:
            errors.seek(0)
            raise SystemExit(f"{name} failed:\n{errors.read().decode()}")
    for file in [out] if out.is_file() else out.rglob("*.safetensors"):
        sync(file)
    peaks[name] = max(peaks.get(name, 0.0), peak)


def cleared(out: Path) -> None:
    """Remove an earlier output, and wait until its memory is nobody's.

    A virtual machine hands pages that were freed back to its host after a second or two. Who writes
    before that has them for nothing, and who writes later pays nearly a microsecond per kilobyte: a
    plain copy of 2.2 GB took 1.4 s or 3.3 s.
    """
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)
    time.sleep(SETTLE)


def high_water(pid: int) -> float:
    """Return the most memory that a process has held in GiB, 0 if it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line[:6] == "VmHWM:"), 0.0)
