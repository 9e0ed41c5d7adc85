"""What computes a sweep: options of JAX that change the numbers, and the program that runs."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import jax

_OPTIONS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
)


def numerics() -> dict[str, Any]:
    """Return the options of JAX that change random draws or the precision of products.

    They are part of the key of a sweep's numbers (`Settings.key`), like the settings.
    """
    return {name: jax.config.values[name] for name in _OPTIONS}


def program(device: jax.Device) -> dict[str, str]:
    """Return where a cell is computed and by which versions, which affect rounding.

    It is stored with the cells but is not part of their key: a sweep may resume elsewhere.
    """
    return {
        "platform": device.platform,
        "device": device.device_kind,
        **{name: version(name) for name in ("rmtllmf-jax", "jax", "jaxlib")},
    }
