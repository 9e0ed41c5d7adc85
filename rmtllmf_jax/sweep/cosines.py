"""The similarity of the task vectors as the base station receives them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.fusion.rules import TASK_ARITHMETIC
from rmtllmf_jax.fusion.similarity import sign_agreement
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.uplink import Scenario


def cosine_rows(engine: Engine, grid: Grid, parts: CellStore) -> list[dict[str, Any]]:
    """Return one row per (scenario, level, draw, seed, protection, pair of tasks).

    `protection` is `none`, or `freeze` for vectors with frozen leaves reloaded from the base model,
    i.e. left out. The clean scenario draws nothing and has only draw 0 and seed 0. The errors of
    different users are correlated according to the settings' error model; they are the same as in
    the merges. `norm_a` is the norm of the received vector of `task_a`.
    """
    cells = list(_cells(grid))
    names = [
        content_hash({"cosines": [c.scenario, c.axis, c.level, c.draw, c.seed]}) for c in cells
    ]
    done = sum(name in parts for name in names)
    with progress_bar("cosines", len(cells), done, unit="cells") as advance:
        for cell, name in zip(cells, names, strict=True):
            if name not in parts:
                parts.add(name, _rows(engine, cell))
                advance(1)
    parts.flush()
    return [row for name in names for row in parts[name]]


def _cells(grid: Grid) -> Iterator[Cell]:
    """Yield each channel and noise once; those with the same noise are adjacent."""
    for seed in range(grid.seeds):
        for draw in range(grid.draws):
            for scenario in grid.scenarios:
                if Scenario(scenario).attack is None and (seed or draw):
                    continue
                for level in grid.axis.levels_of(scenario):
                    yield Cell((), scenario, draw, seed, "none", TASK_ARITHMETIC, *level)


def _rows(engine: Engine, cell: Cell) -> list[dict[str, Any]]:
    received = _receive(*engine.received(cell), jnp.asarray(engine.uplinks.factor(cell)))
    frozen = fusion.leaves_by_path(engine.frozen(engine.settings.frozen))
    whole = fusion.leaves_by_path(received)
    rest = {path: leaf for path, leaf in whole.items() if not frozen[path]}
    tasks, rows = engine.inputs.tasks, []
    for protection, vectors in (("none", whole), ("freeze", rest)):
        cosines, signs, norms = (np.asarray(found, float) for found in _compare(vectors))
        rows += [
            {
                "scenario": cell.scenario,
                "axis": cell.axis,
                "level": float("nan" if cell.level is None else cell.level),
                "draw": cell.draw,
                "seed": cell.seed,
                "protection": protection,
                "task_a": task_a,
                "task_b": task_b,
                "error_model": engine.settings.error_model,
                "cosine": float(cosines[a, b]),
                "sign_agreement": float(signs[a, b]),
                "norm_a": float(norms[a]),
            }
            for a, task_a in enumerate(tasks)
            for b, task_b in enumerate(tasks)
        ]
    return rows


@jax.jit
def _receive(
    stacked: PyTree[Float[Array, "users ..."]],
    sources: PyTree[Float[Array, "sources ..."]],
    factor: Float[Array, "users sources"],
) -> PyTree[Float[Array, "users ..."]]:
    return jax.tree.map(jnp.add, stacked, uplink.errors(sources, factor))


@jax.jit
def _compare(
    vectors: PyTree[Float[Array, "users ..."]],
) -> tuple[Float[Array, "users users"], Float[Array, "users users"], Float[Array, " users"]]:
    size = float(sum(leaf[0].size for leaf in jax.tree.leaves(vectors)))
    norms = fusion.rms(vectors) * jnp.sqrt(size)
    return fusion.cosine_matrix(vectors), sign_agreement(vectors), norms
