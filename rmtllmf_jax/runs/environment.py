"""The environment of a run (versions, devices, commit), and the cache of compiled programs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.credentials import without_credentials
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.extras import EXTRAS

_PACKAGES = (
    *("rmtllmf-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("transformers", "huggingface-hub", "safetensors", "pyarrow", "pandas", "scikit-learn"),
)


def default_cache() -> Path:
    """Return this program's cache folder; it begins with `~` if the user has no home folder."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "rmtllmf"


def use_compilation_cache(cache_dir: Path) -> None:
    """Keep compiled programs on disk, so that the next run does not compile them again.

    **Raises:** `InputError` if the folder is below the home of a user without a home folder.
    """
    if cache_dir.parts[:1] == ("~",):
        raise InputError(
            "there is no home folder: give --cache-dir, or set HOME or XDG_CACHE_HOME."
        )
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the main dependencies, by package."""
    packages = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **packages}


def extras() -> dict[str, dict[str, str | None]]:
    """Return the versions of the packages of every extra; `None` means not installed."""
    return {
        extra: {package: _version(package) for package in packages}
        for extra, packages in EXTRAS.items()
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def settings() -> dict[str, Any]:
    """Return JAX's settings in this process."""
    import jax

    config = jax.config.values
    return {
        "platform": jax.default_backend(),
        "process": jax.process_index(),
        "processes": jax.process_count(),
        "x64": config["jax_enable_x64"],
        "matmul precision": config["jax_default_matmul_precision"] or "default",
        "compilation cache": config["jax_compilation_cache_dir"],
    }


def devices() -> list[dict[str, Any]]:
    """Return the devices of all processes; `memory` in bytes, `None` where it is unknown.

    On a GPU it is the memory that JAX may use, on a CPU that of the machine.
    """
    import jax

    return [
        {
            "id": device.id,
            "kind": device.device_kind,
            "process": device.process_index,
            "memory": memory_of(device),
        }
        for device in jax.devices()
    ]


def memory_of(device: Any) -> int | None:
    """Return the bytes that programs on a device may use, `None` where that is unknown."""
    import jax

    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.process_index != jax.process_index():
        return None  # only a device's own process can ask it
    return (device.memory_stats() or {}).get("bytes_limit")


def provenance() -> dict[str, Any]:
    """Return command, commit, versions and machine of this process."""
    import jax

    return {
        "command": without_credentials(" ".join([_program(), *sys.argv[1:]])),
        "commit": _commit(),
        "versions": versions(),
        "machine": {
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        },
    }


def _program() -> str:
    """Return how this process was started, as typed: the command, or the user's own script."""
    script = Path(sys.argv[0])
    return f"python {script}" if script.suffix == ".py" and script.stem != "__main__" else "rmtllmf"


def _commit() -> str | None:
    """Return the commit of the checkout from which the package runs, `None` without one."""
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
