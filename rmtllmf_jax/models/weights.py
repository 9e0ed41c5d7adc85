"""Reading and writing safetensors, with errors that name the file and every key."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import replacing
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.fusion.files.checkpoint import reading

_SHOWN = 8  # leaves named by an error


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file by key.

    **Raises:** `InputError` that names the file if it is missing, truncated or not safetensors.
    """
    with reading(path):
        return load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text metadata of a safetensors file.

    **Raises:** `InputError` that names the file if it cannot be read.
    """
    with reading(path), safe_open(path, "np") as file:
        return dict(file.metadata() or {})


def save_tree(path: Path, tree: PyTree, metadata: dict[str, str] | None = None) -> None:
    """Write a tree of arrays as safetensors, atomically; keys are leaf paths."""
    # Safetensors writes memory as it is, ignoring strides.
    tensors = {key: np.asarray(leaf, order="C") for key, leaf in leaves_by_path(tree).items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_tree(path: Path, like: PyTree) -> Any:
    """Read a tree that `save_tree` wrote.

    **Arguments:**

    - `like`: a tree of the same structure (arrays or `jax.ShapeDtypeStruct`).

    **Raises:** `InputError` with all missing, unexpected and misshapen keys.
    """
    return assign(read_safetensors(path), like, path)


def assign(tensors: dict[str, np.ndarray], like: PyTree, origin: Path) -> Any:
    """Return `tensors`, keyed by leaf path, as a tree shaped like `like`, in its dtypes.

    **Raises:** `InputError` with all missing, unexpected and misshapen keys, or with those of NaN
    or infinite values.
    """
    expected = leaves_by_path(like)
    problems = [f"missing: {key} {expected[key].shape}" for key in expected if key not in tensors]
    problems += [f"unexpected: {key}" for key in tensors if key not in expected]
    problems += [
        f"misshapen: {key} is {tensors[key].shape}, expected {leaf.shape}"
        for key, leaf in expected.items()
        if key in tensors and tensors[key].shape != leaf.shape
    ]
    if problems:
        raise InputError(f"{origin}: the weights do not fit:\n  " + "\n  ".join(problems))
    require_finite(tensors, origin)
    leaves = [jnp.asarray(tensors[key], leaf.dtype) for key, leaf in expected.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


class NotFinite(InputError):
    """Raised for weights that hold NaN or infinite values."""


def require_finite(tree: PyTree, origin: Path | str) -> None:
    """Check that all values of a tree are finite.

    **Raises:** `NotFinite` that begins with `origin` and names the offending leaves.
    """
    bad = [key for key, x in leaves_by_path(tree).items() if not np.isfinite(np.asarray(x)).all()]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise NotFinite(f"{origin}: NaN or infinite values in {', '.join(bad[:_SHOWN])}{more}.")


def tree_hash(tree: PyTree, text: str = "") -> str:
    """Return a hash of a text and of the path, type, shape and values of all leaves."""
    digest = hashlib.sha256(text.encode())
    for path, leaf in sorted(leaves_by_path(tree).items()):
        array = np.asarray(leaf, order="C")
        digest.update(f"\n{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
