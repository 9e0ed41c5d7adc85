"""Cosines between task vectors as the base station receives them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.runner import Runner


def cosine_rows(runner: Runner, grid: Grid) -> list[dict[str, Any]]:
    """Return one row a (scenario, draw, seed, protection, pair of tasks).

    `protection` is `none`, or `freeze` for vectors whose sensitive embeddings were reloaded from
    the base model. The clean scenario draws nothing and has draw 0 and seed 0 alone. The errors
    of different users hang together as the settings' error model says.
    """
    rows = []
    tasks = runner.inputs.tasks
    for scenario in grid.scenarios:
        clean = scenario == "clean"
        mse = runner.mse(scenario, grid.draws)
        for draw in range(1 if clean else grid.draws):
            for seed in range(1 if clean else grid.seeds):
                name = f"cosines/{scenario}/{draw}/{seed}"
                if name not in runner.journal:
                    runner.journal.add(name, _matrices(runner, scenario, mse[draw], seed, draw))
                for protection, matrix in runner.journal[name].items():
                    rows += [
                        {
                            "scenario": scenario,
                            "draw": draw,
                            "seed": seed,
                            "protection": protection,
                            "task_a": task_a,
                            "task_b": task_b,
                            "error_model": runner.settings.error_model,
                            "cosine": matrix[a][b],
                        }
                        for a, task_a in enumerate(tasks)
                        for b, task_b in enumerate(tasks)
                    ]
    return rows


def _matrices(
    runner: Runner, scenario: str, mse: Float[np.ndarray, " users"], seed: int, draw: int
) -> dict[str, list[list[float]]]:
    key = runner.noise_key(seed, draw, "cosines")
    received = _receive(
        runner.inputs.vectors,
        jnp.asarray(mse, jnp.float32),
        runner.kappa,
        key,
        runner.error_model(scenario, draw),
    )
    reloaded = jax.tree.map(
        lambda frozen, leaf: jnp.where(frozen, jnp.zeros_like(leaf), leaf), runner.frozen, received
    )
    return {"none": _cosines(received).tolist(), "freeze": _cosines(reloaded).tolist()}


_receive = jax.jit(uplink.transmit)
_cosines = jax.jit(fusion.cosine_matrix)
