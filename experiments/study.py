"""What the experiments share: a run folder's users, sweeps of them, figures, who made a page."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from rmtllmf_jax.cli.environment import provenance
from rmtllmf_jax.cli.options import default_cache
from rmtllmf_jax.cli.run_inputs import load_run, read_users
from rmtllmf_jax.common.files import content_hash, write_bytes
from rmtllmf_jax.report.images import image_bytes
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.inputs import SweepInputs
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.run import run_grid
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.users import Setting, UserRecord


@dataclass(frozen=True)
class Users:
    """Where the users of an experiment are; its own options come after these."""

    run: Path
    """Run folder of `rmtllmf finetune`."""
    model: str | None = None
    """Pretrained model; by default where it was when the run was fine-tuned."""
    data: Path | None = None
    """Folder of the images; by default where they were."""
    tasks: tuple[str, ...] = ()
    """Tasks; none named is all of the run."""
    cache_dir: Path = field(default_factory=default_cache)
    """Folder of decoded images and compiled programs."""


def load(users: Users) -> SweepInputs:
    """Return base model, task vectors, heads and samples of a run folder.

    **Raises:** `InputError` as `read_users` and `load_run` do.
    """
    setting, records, names = found(users)
    return load_run(users.run, setting, records, names, users.cache_dir)


def found(users: Users) -> tuple[Setting, dict[str, UserRecord], tuple[str, ...]]:
    """Return how the users were fine-tuned, with model and data where they are now; and names.

    **Raises:** `InputError` as `read_users` does.
    """
    setting, records, names = read_users(users.run, users.tasks)
    if users.model is not None:
        setting = replace(setting, model=users.model)
    if users.data is not None:
        setting = replace(setting, data=str(users.data))
    return setting, records, names


def sweep(
    run: Path, inputs: SweepInputs, settings: Settings, grid: Grid
) -> dict[str, pd.DataFrame]:
    """Return the tables of a grid; what the run folder's store holds already is not done again."""
    key = content_hash({"inputs": inputs.fingerprint, "settings": settings.key()})
    engine = Engine(inputs, settings, one_device())
    tables = run_grid(engine, grid, run / "sweep" / key)
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def made_by(script: str, seed: int, seconds: float, *, resumed: bool = False) -> str:
    """Return the sentences that say how a page was made."""
    made = provenance()
    command = " ".join(["python", f"experiments/{script}", *sys.argv[1:]])
    return (
        f"`{command}`: seed {seed}, {seconds:.0f} s{' (went on)' if resumed else ''}, "
        f"{made['machine']['cpus']} cores ({made['machine']['device']}), jax "
        f"{made['versions']['jax']}, commit {made['commit']}. What it shows: the docstring of the "
        "script."
    )


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG and SVG beside each other; same figure, same bytes."""
    for kind in ("png", "svg"):
        write_bytes(path.with_suffix(f".{kind}"), image_bytes(figure, kind, dpi=150))
