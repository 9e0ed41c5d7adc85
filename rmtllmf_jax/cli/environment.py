"""What a run was made with, and where its compiled programs are kept."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("rmtllmf-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def use_compilation_cache(cache_dir: Path) -> None:
    """Keep compiled programs on disk, so that the next run starts at once."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))


def provenance() -> dict[str, Any]:
    """Return command, commit, versions and machine of this process."""
    import jax

    return {
        "command": " ".join([_program(), *sys.argv[1:]]),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "machine": {
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        },
    }


def _program() -> str:
    """Return what a reader types to start this process: the command, or a script of his own."""
    script = Path(sys.argv[0])
    return f"python {script}" if script.suffix == ".py" and script.stem != "__main__" else "rmtllmf"


def _commit() -> str | None:
    """Return the commit of the checkout that the package runs from, `None` outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "rmtllmf_jax")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit
