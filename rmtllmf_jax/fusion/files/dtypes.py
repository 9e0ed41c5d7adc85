"""What safetensors files call their types, and which of these can be merged."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
"""Types that are merged. All others (integers, booleans, 8-bit floats that need scales of their
own) must be equal in all checkpoints."""

NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Types that an output may be asked for, by their name in a configuration."""

KEEP = "keep"
"""Every tensor in the type that it has in the base."""


def output_type(stored: str, dtype: str) -> str:
    """Return the type of a tensor in the output, of `KEEP` or one of `NAMES`, given the base's."""
    return stored if dtype == KEEP or stored not in FLOATS else NAMES[dtype]
