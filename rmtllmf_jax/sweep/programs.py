"""The compiled programs of a sweep: merge, add, repair, evaluate, each over a chunk of cells.

What differs between cells is data: a combination is a vector of weights and a table of sample
indices, a channel is the factor of the users' errors, reloading is a flag, a task is an index into
padded heads (of images; texts have none). Each program compiles once per merge method (`merge`),
set of repairs (`repair`) or metric (`evaluate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.defences.protection import Protection
from rmtllmf_jax.defences.repairs import Context, Model, reload_leaves
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.evaluation.metrics import Metric
from rmtllmf_jax.fusion.merge import one_per_user
from rmtllmf_jax.fusion.rules import Method, fact
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.shared import SharedModel
from rmtllmf_jax.sweep.layout import CELLS, IMAGES, Layout


class Merges(NamedTuple):
    """What is merged in each cell of a chunk."""

    weights: Float[Array, "cells users"]
    """1 for the tasks of the combination, 0 for the others."""
    factor: Float[Array, "cells users sources"]
    """F: the users' errors are F z."""
    scale: Float[Array, " cells"]
    key: Key[Array, " cells"]
    """For random rules."""
    reload: Bool[Array, " cells"]
    """Whether the frozen leaves are taken from the base."""
    batches: Int[Array, "cells steps batch"] | None = None
    """For methods that learn, see `needs.batches`."""


def receive_and_merge(
    merge: Merges,
    base: PyTree,
    stacked: PyTree[Float[Array, "users ..."]],
    sources: PyTree[Float[Array, "sources ..."]],
    given: dict[str, PyTree] | None = None,
    *,
    rule: Method,
) -> PyTree:
    """Return ``rule(tau_1 + e_1, ..., tau_Q + e_Q)`` of one cell (no `cells` axis).

    The errors are ``e = F z`` with the `sources` z. A user with weight zero is not in the
    combination, but is still part of the run: the base of `uplink.NoisyReference` is sent once,
    with the mean variance of all users, and serves every combination. The rule's own weights, one
    per user of the run, multiply these. Anything else that the rule `needs` is in `given`
    (`sweep.needs`), or in the cell.
    """
    weights = merge.weights
    if own := fact(rule, "weights"):
        weights = weights * one_per_user("weights", own, len(weights))
    if fact(rule, "linear"):
        # The errors' weighted sum is one sum over the sources, in one pass over memory.
        total = fusion.weighted_sum(stacked, weights)
        by_source = jnp.matmul(weights, merge.factor, precision="highest")
        return jax.tree.map(jnp.add, total, fusion.weighted_sum(sources, by_source))
    received = jax.tree.map(jnp.add, stacked, uplink.errors(sources, merge.factor))
    key = merge.key if fact(rule, "random") else None
    have = {"base": base, "batches": merge.batches, **(given or {})}
    needs = {name: have[name] for name in fact(rule, "needs")}
    return rule(received, key, weights=weights, **needs)


def add_and_reload(
    merge: Merges, vector: PyTree, base: PyTree, frozen: PyTree[Bool[Array, ""]]
) -> PyTree:
    """Return ``base + scale vector`` of one cell (R-MTLLMF, eq. (6)).

    Frozen leaves are those of the base if the cell requests it.
    """
    kept = jax.tree.map(lambda flag: flag & merge.reload, frozen)
    return reload_leaves(fusion.add_to_base(base, vector, merge.scale), base, kept)


@dataclass(frozen=True)
class Programs:
    """Compiled functions; models have a leading axis of the cells of a chunk."""

    merge: Callable[..., PyTree]
    """(rule, Merges, base, stacked, sources, given) -> merged vectors; `rule` is static. They do
    not depend on `Merges.scale` and `Merges.reload`."""
    add: Callable[..., PyTree]
    """(Merges, vectors, base, frozen) -> models."""
    repair: Callable[..., PyTree]
    """(repairs, models, reload, rows, keys, frozen, base, heads, shots) -> models; the repairs are
    static, and there are rows for each of them."""
    evaluate: Callable[..., Float[Array, "cells 2"]]
    """(metric, models, heads, task, batch) -> sum and weight of each model; the metric is
    static."""


@cache
def build_programs(model: SharedModel, layout: Layout, jit: Callable[..., Any]) -> Programs:
    """Return the programs of a sweep, compiled by `jit`, which may also count traces.

    Sweeps with the same model and layout share compiled programs.
    """
    cells, images, every = PartitionSpec(CELLS), PartitionSpec(IMAGES), PartitionSpec()
    at_once = layout.cells_at_once

    def merge(
        rule: Method,
        merges: Merges,
        base: PyTree,
        stacked: PyTree,
        sources: PyTree,
        given: dict[str, PyTree],
    ) -> PyTree:
        def one(each: Merges) -> PyTree:
            return receive_and_merge(each, base, stacked, sources, given, rule=rule)

        return over_cells(one, merges, 1)  # bound by memory: side by side would gain nothing

    def add(merges: Merges, vectors: PyTree, base: PyTree, frozen: PyTree) -> PyTree:
        def one(each: tuple[Merges, PyTree]) -> PyTree:
            return add_and_reload(*each, base, frozen)

        return over_cells(one, (merges, vectors), 1)

    def repair(
        repairs: Protection,
        models: PyTree,
        reload: Bool[Array, " cells"],
        rows: tuple[Int[Array, "cells steps batch"] | None, ...],
        keys: Key[Array, " cells"],
        frozen: PyTree,
        base: PyTree,
        heads: Head | None,
        shots: Batch | None,
    ) -> PyTree:
        def one(each: tuple[PyTree, Array, tuple[Array | None, ...], Array]) -> PyTree:
            params, keep, rows, key = each
            repaired = Model(params, jax.tree.map(lambda flag: flag & keep, frozen))
            for act, mine in zip(repairs, rows, strict=True):
                repaired = act(repaired, Context(base, heads, shots, mine, key, model))
            return repaired.params

        return over_cells(one, (models, reload, rows, keys), at_once)

    def evaluate(
        metric: Metric, models: PyTree, heads: Head | None, task: Int[Array, ""], batch: Batch
    ) -> Float[Array, "cells 2"]:
        head = jax.tree.map(lambda leaf: leaf[task], heads)

        def one(params: PyTree) -> Float[Array, " 2"]:
            return jnp.stack(metric(lambda b: model.outputs(params, head, b.inputs), batch))

        found = over_cells(one, models, at_once)
        return found if layout.mesh is None else jax.lax.psum(found, IMAGES)

    def by_value(program: Callable[..., PyTree], *specs: PartitionSpec) -> Callable[..., PyTree]:
        """Return a program with a static first argument."""
        compiled: dict[Any, Callable[..., PyTree]] = {}

        def call(value: Any, *arrays: Any) -> PyTree:
            if value not in compiled:
                sharded = layout.shard(partial(program, value), specs, cells)
                compiled.setdefault(value, jit(sharded))  # another thread may have come first
            return compiled[value](*arrays)

        return call

    return Programs(
        merge=by_value(merge, cells, *[every] * 4),
        add=jit(layout.shard(add, (cells, cells, every, every), cells)),
        repair=by_value(repair, *[cells] * 4, *[every] * 4),
        evaluate=by_value(evaluate, cells, every, every, images),
    )


def over_cells(one: Callable[[Any], Any], cells: Any, at_once: int) -> Any:
    """Map over the leading axis, `at_once` cells side by side; a single cell is not batched."""
    number = jax.tree.leaves(cells)[0].shape[0]
    if number == 1:
        found = one(jax.tree.map(lambda leaf: leaf[0], cells))
        return jax.tree.map(lambda leaf: leaf[None], found)
    if at_once == 1:
        return jax.lax.map(one, cells)
    return jax.lax.map(one, cells, batch_size=min(at_once, number))
