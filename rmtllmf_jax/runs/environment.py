"""What a run was made with, and where its compiled programs are kept."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.credentials import without_credentials
from rmtllmf_jax.common.errors import InputError

_PACKAGES = (
    *("rmtllmf-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("transformers", "huggingface-hub", "safetensors", "pyarrow", "pandas", "scikit-learn"),
)

EXTRAS = {
    "hub": ("datasets",),
    "tfds": ("tensorflow-datasets", "array-record"),
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
    "gcs": ("gcsfs",),
    "s3": ("s3fs",),
    "cuda12": ("jax-cuda12-plugin",),
    "cuda13": ("jax-cuda13-plugin",),
    "tpu": ("libtpu",),
}
"""What the package can do without, by the extra that installs it: `pip install
rmtllmf-jax[hub]`."""


def default_cache() -> Path:
    """Return the user's cache folder for this program; it begins with `~` if there is no home."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "rmtllmf"


def use_compilation_cache(cache_dir: Path) -> None:
    """Keep compiled programs on disk, so that the next run starts at once.

    **Raises:** `InputError` if the folder is that of a user without a home.
    """
    if cache_dir.parts[:1] == ("~",):
        raise InputError(
            "there is no home folder: give --cache-dir, or set HOME or XDG_CACHE_HOME."
        )
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of what the package is built on, by package."""
    packages = {package: _version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **packages}


def extras() -> dict[str, dict[str, str | None]]:
    """Return the versions of the packages of every extra; `None` is not installed."""
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
    """Return what JAX runs with in this process."""
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
    """Return the devices of all processes; `memory` in bytes, `None` where it is not told.

    On a GPU it is what JAX may take, on a CPU what the machine has.
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
    """Return the bytes that programs on a device may take, `None` where it is not told."""
    import jax

    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.process_index != jax.process_index():
        return None  # a device tells its own process alone
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
