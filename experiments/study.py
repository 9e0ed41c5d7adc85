"""What the experiments share: a run folder's users, sweeps of them, figures, who made a page."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from rmtllmf_jax.cli.environment import provenance
from rmtllmf_jax.cli.finetune import load_tasks, load_tower, require_same_weights
from rmtllmf_jax.common.errors import require_known
from rmtllmf_jax.common.files import content_hash, write_bytes
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.inputs import SweepInputs, load_inputs
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.run import run_grid
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.users import load_manifest


class Users(Protocol):
    """Where the users of an experiment are."""

    run: Path
    """Run folder of `rmtllmf finetune`."""
    model: str | None
    """Pretrained model; `None`: where it was when the run was fine-tuned."""
    data: Path | None
    """Folder of the images; `None`: where they were."""
    tasks: tuple[str, ...]
    """Tasks; none named is all of the run."""
    cache_dir: Path
    """Folder of decoded images and compiled programs."""


def load(users: Users) -> SweepInputs:
    """Return base model, task vectors, heads and samples of a run folder."""
    setting, records = load_manifest(users.run)
    if users.model is not None:
        setting = replace(setting, model=users.model)
    if users.data is not None:
        setting = replace(setting, data=str(users.data))
    names = tuple(sorted(users.tasks or records))
    for name in names:
        require_known("--tasks", name, records)
    require_same_weights(setting)
    backbone, base = load_tower(setting)
    data = load_tasks(setting, names, users.cache_dir)
    return load_inputs(users.run, backbone, base, data, records, setting.key())


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
    for kind, dateless in (("png", {}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "rmtllmf"}):
            figure.savefig(buffer, format=kind, dpi=150, metadata=dateless)
        write_bytes(path.with_suffix(f".{kind}"), buffer.getvalue())
