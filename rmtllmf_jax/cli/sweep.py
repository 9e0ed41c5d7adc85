"""`rmtllmf sweep`: transmit, merge, protect and evaluate every cell of a grid."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, ClassVar

from rmtllmf_jax.cli.options import DryRunOptions, Relocated, SweepOptions, suggest, taken
from rmtllmf_jax.common.errors import InputError, first_line
from rmtllmf_jax.common.progress import note
from rmtllmf_jax.runs.environment import provenance, use_compilation_cache
from rmtllmf_jax.runs.folder import UNDER_WAY, set_aside, working_in

if TYPE_CHECKING:
    from rmtllmf_jax.runs import Run
    from rmtllmf_jax.runs.inputs import SweepInputs
    from rmtllmf_jax.sweep.grid import Grid
    from rmtllmf_jax.sweep.layout import Layout
    from rmtllmf_jax.sweep.settings import Settings


@dataclass(kw_only=True)
class ProcessOptions:
    """Which of several processes this is."""

    group: ClassVar[str] = "processes"

    process: int | None = None
    """Number of this process, from 0, with --processes: each takes a share of the cells, and the
    first one writes the tables. They share only the run folder and --store, so each may be stopped
    and restarted on its own."""
    processes: int | None = None
    """Total number of processes, with --process."""
    distributed: bool = False
    """Let JAX determine the number of this process and the total: on a TPU slice, or a cluster that
    jax.distributed supports. All processes must be started, and connect once."""


@dataclass(kw_only=True)
class Sweep(SweepOptions, ProcessOptions, DryRunOptions, Relocated):
    """Send the task vectors of a run folder over the channel, merge, protect and evaluate them.

    Example: rmtllmf sweep --out runs/a --combinations 3 --draws 2 --scale validation
    """

    tasks: tuple[str, ...] = ()
    """Tasks; by default all that were fine-tuned in the run folder."""

    def run(self) -> None:
        """Run the sub-command."""
        self.require_dry_run()
        if self.dry_run:
            self._dry_run()
            return
        use_compilation_cache(self.cache_dir)
        place = join(self)
        with working_in(self.out) if place[0] == 0 else nullcontext():
            sweep(self, self._run(), place)
        if place[0] == 0:
            suggest(f"figures and a page: rmtllmf report {quote(str(self.out))}")

    def _run(self) -> Run:
        return self.opened(self.out, self.tasks, remat=self.remat)

    def _dry_run(self) -> None:
        from rmtllmf_jax.cli.plan import devices_of, sweep_dry_run
        from rmtllmf_jax.sweep.memory import cells_that_fit

        machine, run = devices_of(self), self._run()
        settings, grid = check(self, run.names, run.config.metric)
        inputs = run.inputs()
        if self.elsewhere:
            at_once = self.cells_at_once or cells_that_fit(inputs, settings, machine[0].memory)
        else:
            at_once = _layout(self, inputs, settings).cells_in_memory
        sweep_dry_run(run, inputs, settings, grid, at_once, machine, as_json=self.json)


def join(options: Sweep) -> tuple[int, int]:
    """Return which process this is of how many, once those of `--distributed` have met.

    **Raises:** `InputError` if it is not said who they are, or they cannot be reached.
    """
    process, processes = options.process, options.processes
    if (process is None) != (processes is None):
        raise InputError("--process and --processes go together: give both.")
    if process is not None and processes is not None and not 0 <= process < processes:
        raise InputError(
            f"--process must be one of 0 to {processes - 1} with --processes {processes}, got "
            f"{process}."
        )
    if not options.distributed:
        return process or 0, processes or 1
    if process is not None:
        raise InputError(
            "--distributed finds out which process this is; leave it out to give --process and "
            "--processes."
        )
    import jax
    from jax._src.distributed import global_state  # jax.process_index() would start the devices

    # Its notifier would take SIGTERM away from us, and go on.
    jax.config.update("jax_enable_preemption_service", False)
    note("waiting until all processes of --distributed are here, for five minutes at most")
    try:
        jax.distributed.initialize()
        # No program spans processes: connected, the end of one would be that of all.
        jax.distributed.shutdown()
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the other processes cannot be found ({first_line(error)}). Leave --distributed out "
            "and give each --process I and --processes N, with I from 0 to N - 1."
        ) from error
    return global_state.process_id, global_state.num_processes


def check(
    options: SweepOptions, tasks: tuple[str, ...], metric: str = "accuracy"
) -> tuple[Settings, Grid]:
    """Return settings and grid; bad options are refused before any long work begins.

    **Arguments:** `metric`: what models are scored by, unless the options say it.

    **Raises:** `InputError` for an unknown name or number, for what the preset cannot have, or for
    an empty grid.
    """
    from rmtllmf_jax.defences.protection import parse_protection
    from rmtllmf_jax.defences.repairs import EMBEDDINGS
    from rmtllmf_jax.fusion.rules import parse_method
    from rmtllmf_jax.sweep.axis import parse_axis
    from rmtllmf_jax.sweep.grid import Grid, choose_combinations
    from rmtllmf_jax.sweep.scales import require_chosen
    from rmtllmf_jax.sweep.settings import Settings
    from rmtllmf_jax.training.recipes import REALIGN, Recipe

    realign = Recipe(
        options.realign_steps,
        options.realign_batch_size,
        options.realign_learning_rate,
        REALIGN.weight_decay,
    )
    others = {"c0_db": options.c0, "frozen": options.frozen or EMBEDDINGS, "realign": realign}
    others["metric"] = options.metric or metric
    settings = Settings(**{**taken(options, Settings), **others})
    grid = Grid(
        choose_combinations(tasks, _per_size(options.combinations), options.seed, options.sizes),
        tuple(dict.fromkeys(options.scenarios)),
        tuple(dict.fromkeys(map(parse_protection, options.protections))),
        options.draws,
        options.seeds,
        tuple(dict.fromkeys(map(parse_method, options.rules))),
        parse_axis(options.axis),
        options.repaired_draws,
    )
    grid.require_fitting(settings, len(tasks))
    require_chosen(grid, settings.scale)
    settings.root(grid.seeds - 1)
    return settings, grid


def _per_size(combinations: str) -> int | None:
    if combinations == "all":
        return None
    if not combinations.isdecimal() or int(combinations) < 1:
        raise InputError(
            f"--combinations must be `all` or a whole number >= 1, got {combinations!r}."
        )
    return int(combinations)


def _layout(
    options: SweepOptions,
    inputs: SweepInputs,
    settings: Settings,
    place: tuple[int, int] = (0, 1),
) -> Layout:
    """Return the devices of this process of `place`, and how many cells they compute at once."""
    import jax

    from rmtllmf_jax.sweep.layout import Layout
    from rmtllmf_jax.sweep.memory import filled

    devices, at_once = tuple(jax.local_devices()), options.cells_at_once
    if at_once is not None:
        return Layout(devices, at_once, options.image_devices, *place)
    return filled(Layout(devices, 1, options.image_devices, *place), inputs, settings)


def sweep(options: SweepOptions, run: Run, place: tuple[int, int] = (0, 1)) -> None:
    """Run the grid on a run folder's users and write its tables, as one process of `place`."""
    from rmtllmf_jax.common.credentials import without_credentials
    from rmtllmf_jax.common.files import write_json
    from rmtllmf_jax.models.decoder import Decoder
    from rmtllmf_jax.models.hub import local_directory
    from rmtllmf_jax.models.text import read_tokenizer
    from rmtllmf_jax.sweep.engine import Engine
    from rmtllmf_jax.sweep.run import run_grid, store_key
    from rmtllmf_jax.sweep.said import said_rows
    from rmtllmf_jax.sweep.tables import write_table
    from rmtllmf_jax.sweep.trackers import get_tracker

    started = time.time()
    out = run.path
    settings, grid = check(options, run.names, run.config.metric)
    inputs = run.inputs()
    root = options.store or str(out / "sweep")
    key = store_key(inputs, settings)
    store = f"{root if '://' in root else Path(root).absolute()}/{key}"
    layout = _layout(options, inputs, settings, place)
    configuration: dict[str, Any] = {
        **provenance(),
        "tasks": run.names,
        "users": run.summary(),
        "settings": asdict(settings),
        "grid": grid.record(),
        "layout": {
            "devices": len(layout.devices),
            "cells_at_once": layout.cells_at_once,
            "image_devices": layout.image_devices,
            "processes": layout.processes,
            "streams": layout.streams,
        },
        "store": without_credentials(store) if options.store else f"sweep/{key}",
        "cells": len(grid.cells()),
    }
    if layout.process == 0:
        write_json(out / UNDER_WAY, configuration)  # for `rmtllmf report --so-far`
    trackers = options.trackers if layout.process == 0 else ()
    engine = Engine(inputs, settings, layout)
    with get_tracker(trackers, out, configuration) as tracker:
        tables = run_grid(engine, grid, store, tracker)
    if layout.process:
        return  # the first process writes the tables of all
    if isinstance(inputs.model, Decoder):
        tokenizer = read_tokenizer(local_directory(run.config.model))
        tables["said"] = said_rows(engine, tokenizer, tables["results"])
    configuration["computed_by"] = tables.pop("programs")
    if (before := set_aside(out, configuration)) is not None:
        print(f"{before}: tables and report of the sweep before, which had another configuration")
    for name, rows in tables.items():
        write_table(path := out / f"{name}.parquet", rows)
        print(f"{path}: {len(rows):,} rows")
    used = {(row["rule"], row["size"]): row["scale"] for row in tables["results"] if row["scale"]}
    configuration["scales"] = {
        rule: {size: scale for (name, size), scale in used.items() if name == rule}
        for rule in configuration["grid"]["rules"]
    }
    configuration["seconds"] = round(time.time() - started, 1)
    write_json(out / "run.json", configuration)
    (out / UNDER_WAY).unlink(missing_ok=True)
    print(f"{out / 'run.json'}: how they came about")
