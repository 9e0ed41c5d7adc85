"""R-MTLLMF: reload the sensitive embeddings from the base model, then realign on a few shots.

Reference: R-MTLLMF (arXiv 2411.18220), section III.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import leaf_path, leaves_by_path


@dataclass(frozen=True)
class Protection:
    """Which halves of R-MTLLMF are applied to a merged model."""

    reload: bool
    """Reload the frozen leaves from the base model and keep them."""
    realign: bool
    """Train the other leaves on a few shots per class."""
    fuse: bool = True
    """Start from the merged model; `False` starts from the base model."""


PROTECTIONS = {
    "none": Protection(reload=False, realign=False),
    "freeze": Protection(reload=True, realign=False),
    "realign": Protection(reload=False, realign=True),
    "r-mtllmf": Protection(reload=True, realign=True),
    # The same shots without any task vector: what realignment alone is worth.
    "control": Protection(reload=True, realign=True, fuse=False),
}

EMBEDDINGS = ("embeddings/.*", "pre_layrnorm/.*")
"""Class, position and patch embeddings, and the pre-LayerNorm that belongs to CLIP's."""


def frozen_patterns(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    """Return regular expressions, compiled.

    **Raises:** `InputError` that names an invalid one.
    """
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"frozen pattern {pattern!r}: not a regular expression ({error})."
            ) from error
    return compiled


def frozen_leaves(
    params: PyTree, patterns: tuple[str, ...] = EMBEDDINGS
) -> PyTree[Bool[Array, ""]]:
    """Return a flag per leaf: whether its whole path matches one of the regular expressions.

    **Raises:** `InputError` if no leaf matches, listing the existing paths, or if a regular
    expression is invalid.
    """
    compiled = frozen_patterns(patterns)
    flags = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.array(any(p.fullmatch(leaf_path(path)) for p in compiled)), params
    )
    if not any(jax.tree.leaves(flags)):
        paths = list(leaves_by_path(params))
        raise InputError(
            f"no leaf matches the frozen patterns {list(patterns)}; "
            f"the leaves are {', '.join(paths[:8])}{', ...' if len(paths) > 8 else ''}."
        )
    return flags


def reload_leaves(params: PyTree, base: PyTree, frozen: PyTree[Bool[Array, ""]]) -> PyTree:
    """Return `params` with the flagged leaves taken from `base`, bitwise."""
    return jax.tree.map(jnp.where, frozen, base, params)
