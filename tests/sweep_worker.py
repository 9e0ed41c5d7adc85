"""A process that runs a grid of `sweep_fixtures`, on so many devices, beside so many processes.

Its table of results, if it writes one, goes to `--out`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--data", "--cache", "--store", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--layout", action="append", default=[])
    parser.add_argument("--merges", action="store_true", help="merges of one rule alone")
    parser.add_argument("--every", type=float, help="seconds between two parts")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)

    from sweep_fixtures import MERGES, MIXED, SETTINGS, TASKS, inputs_of, tables_of

    from rmtllmf_jax.data.sources.folder import DataFolder
    from rmtllmf_jax.data.task_data import load_task
    from rmtllmf_jax.models.backbone import load_backbone
    from rmtllmf_jax.runs.environment import use_compilation_cache
    from rmtllmf_jax.sweep import stage
    from rmtllmf_jax.sweep.engine import Engine
    from rmtllmf_jax.sweep.layout import Layout
    from rmtllmf_jax.sweep.parts import CellStore

    use_compilation_cache(options.cache)
    if options.every is not None:
        stage.CellStore = lambda folder, **how: CellStore(folder, **how | {"every": options.every})
    assert len(jax.devices()) == options.devices
    backbone, base = load_backbone(options.model)
    source = DataFolder(options.data)
    data = tuple(load_task(source, task, 16, options.cache) for task in TASKS)
    inputs = inputs_of(backbone, base, data)
    grid = MERGES if options.merges else MIXED
    for layout in options.layout:
        devices, image_devices, cells_at_once = map(int, layout.split(","))
        engine = Engine(
            inputs,
            SETTINGS,
            Layout(
                tuple(jax.devices()[:devices]),
                cells_at_once,
                image_devices,
                options.process,
                options.processes,
            ),
            jax.jit,
        )
        tables = tables_of(engine, grid, options.store / layout)
        for name, table in tables.items():
            table.to_parquet(options.out / f"{name}-{layout}.parquet")


if __name__ == "__main__":
    main()
