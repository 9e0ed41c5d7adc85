"""The three compiled programs of a sweep: merge, realign, count. Each compiles once.

What differs between cells is data: a combination is a vector of weights and a table of sample
indices, a scenario is a vector of MSEs and the numbers of the error model, a protection is a flag a
leaf, a task is an index into padded heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Key, PyTree

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.evaluation.accuracy import count_correct
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.resilience import reload_leaves
from rmtllmf_jax.training.realign import realign
from rmtllmf_jax.training.recipes import Recipe


def receive_and_merge(
    base: PyTree,
    stacked: PyTree[Float[Array, "users ..."]],
    weights: Float[Array, " users"],
    mse: Float[Array, " users"],
    kappa: Float[Array, " users"],
    error_model: uplink.ErrorModel,
    scale: Float[Array, ""],
    key: Key[Array, ""],
    frozen: PyTree[Bool[Array, ""]],
) -> PyTree:
    """Return ``base + scale sum_q weights_q (tau_q + e_q)`` with the frozen leaves from the base.

    R-MTLLMF, eq. (6). The errors of the users are one draw (`uplink.noise_of_sum`), whatever the
    error model. A user of weight zero is not in the combination, but still one of the run: the base
    of `uplink.NoisyReference` is sent once, with the mean variance of all users, and serves every
    combination.
    """
    total = fusion.weighted_sum(stacked, weights)
    noise = uplink.noise_of_sum(stacked, weights, mse, kappa, key, error_model)
    received = jax.tree.map(lambda a, b: a + b, total, noise)
    return reload_leaves(fusion.add_to_base(base, received, scale), base, frozen)


@dataclass(frozen=True)
class Programs:
    """Compiled functions; see `receive_and_merge`, `realign` and `count_correct`."""

    merge: Callable[..., Any]
    realign: Callable[..., Any]
    count: Callable[..., Any]


def build_programs(
    backbone: Backbone, recipe: Recipe, jit: Callable[..., Any] = jax.jit
) -> Programs:
    """Compile the programs of a sweep; `jit` can be replaced to count traces."""
    return Programs(
        merge=jit(receive_and_merge),
        realign=jit(partial(realign, backbone=backbone, recipe=recipe)),
        count=jit(partial(count_correct, backbone=backbone)),
    )
