"""A small sweep that several test modules look at, and the numbers that it must give."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from rmtllmf_jax import fusion, uplink
from rmtllmf_jax.common.values import described
from rmtllmf_jax.data.sources.folder import DataFolder
from rmtllmf_jax.data.task_data import Rows, load_task
from rmtllmf_jax.defences.protection import PAPER
from rmtllmf_jax.fusion import Average, Dare, DareTies, Lata, TaskArithmetic, Ties
from rmtllmf_jax.models.backbone import Backbone, load_backbone
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.heads import lda_head, stack_heads
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.axis import Axis
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.layout import Layout, one_device
from rmtllmf_jax.sweep.run import run_grid
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.recipes import Recipe

TASKS = ("dtd", "mnist", "svhn")
PAIR = ("dtd", "mnist")
OTHER = ("mnist", "svhn")
# As in the fixture `finished`, whose compiled programs are then found in the cache.
RECIPE = Recipe(steps=5, batch_size=8, learning_rate=3e-3, weight_decay=0.0)
SETTINGS = Settings(realign=RECIPE, shots=3, eval_batch_size=16, validation_samples=0, seed=4)
GRID = Grid((PAIR, OTHER, TASKS), ("clean", "ideal", "sum_rate"), PAPER, 2, 2)
RULED = Grid(
    (PAIR, TASKS),
    ("clean", "ideal"),
    ("none", "r-mtllmf", "control"),
    1,
    2,
    (Ties(), Dare(), TaskArithmetic()),
    Axis("snr_db", (0.0, 12.0)),
)
"""With merge rules, of which one is random, and levels."""
MIXED = Grid(
    (PAIR, OTHER, TASKS),
    ("clean", "ideal"),
    ("none", "r-mtllmf", "control"),
    1,
    2,
    (TaskArithmetic(), Ties()),
    Axis("snr_db", (0.0, 12.0)),
)
"""Smaller, with a chunk of every kind."""
MERGES = replace(MIXED, protections=("none",), rules=(TaskArithmetic(),))
"""The part of it that needs two programs alone."""
RULES = (TaskArithmetic(), Average(), Ties(), Dare(), DareTies(), Lata())
CELL = ["combination", "scenario", "axis", "level", "draw", "seed", "protection", "rule"]

Tables = dict[str, pd.DataFrame]
Worker = Callable[..., "subprocess.Popen[str]"]


def at_most_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A `jit` whose programs refuse to be traced a second time."""
    named = getattr(function, "func", function)  # chex wants the name behind a partial

    @wraps(named)
    def program(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    # chex tells programs by their names: those of two rules are two.
    program.__name__ = "_".join((named.__name__, *map(described, getattr(function, "args", ()))))
    return jax.jit(chex.assert_max_traces(program, n=1))


@pytest.fixture(scope="session")
def sweep_inputs(shallow_model: Path, tiny_data: Path, cache_dir: Path) -> SweepInputs:
    """Three users whose task vectors are noise, which hurts differently on every task."""
    backbone, base = load_backbone(shallow_model)
    source = DataFolder(tiny_data)
    data = tuple(load_task(source, task, 16, cache_dir) for task in TASKS)
    return inputs_of(backbone, base, data)


def inputs_of(backbone: Backbone, base: Any, data: tuple[Any, ...]) -> SweepInputs:
    """Return inputs whose task vectors are noise."""
    random = np.random.default_rng(0)
    vectors = [
        jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.03, leaf.shape), leaf.dtype), base)
        for _ in TASKS
    ]
    heads = [
        lda_head(extract_features(backbone, base, t.train.images), t.train.labels, len(t.classes))
        for t in data
    ]
    return SweepInputs(TASKS, backbone, base, fusion.stack(vectors), stack_heads(heads), data, {})


@pytest.fixture(scope="session")
def sweep_engine(sweep_inputs: SweepInputs) -> Engine:
    """An engine on one device."""
    return Engine(sweep_inputs, SETTINGS, one_device(), jax.jit)


@pytest.fixture(scope="session")
def sweep_folder(sweep_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep over `GRID`, to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("sweep") / "store"
    run_grid(sweep_engine, GRID, folder)
    return folder


@pytest.fixture(scope="session")
def sweep_tables(sweep_engine: Engine, sweep_folder: Path) -> Tables:
    """The tables of `GRID`."""
    return tables_of(sweep_engine, GRID, sweep_folder)


@pytest.fixture(scope="session")
def mixed_tables(sweep_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of `MIXED`, one cell after the other on one device in one process."""
    return tables_of(sweep_engine, MIXED, tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="session")
def worker(shallow_model: Path, tiny_data: Path, cache_dir: Path) -> Worker:
    """Starts a process that runs `MIXED`."""

    def start(*options: object) -> subprocess.Popen[str]:
        words = ["--model", shallow_model, "--data", tiny_data, "--cache", cache_dir, *options]
        script = Path(__file__).with_name("sweep_worker.py")
        return subprocess.Popen(
            [sys.executable, str(script), *map(str, words)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def ruled_tables(sweep_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The tables of `RULED`."""
    return tables_of(sweep_engine, RULED, tmp_path_factory.mktemp("ruled"))


def tables_of(engine: Engine, grid: Grid, folder: Path) -> Tables:
    """Run a grid; what computed it is left out."""
    tables = run_grid(engine, grid, folder)
    tables.pop("programs", None)
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


def engine_like(
    engine: Engine,
    settings: Settings = SETTINGS,
    inputs: SweepInputs | None = None,
    kind: Callable[..., Engine] = Engine,
) -> Engine:
    """Return an engine with other settings or inputs and the same compiled programs."""
    made = kind(inputs or engine.inputs, settings, engine.layout)
    made.programs = engine.programs
    return made


def laid_out(engine: Engine, cells_at_once: int = 1, **options: Any) -> Engine:
    """Return an engine of another layout."""
    layout = Layout((jax.local_devices()[0],), cells_at_once, **options)
    return Engine(engine.inputs, engine.settings, layout, jax.jit)


def model(engine: Engine, cell: Cell, scale: float) -> Any:
    """Return the model of one cell."""
    return jax.tree.map(lambda leaf: leaf[0], engine.models([Job(cell, scale)]))


_features = jax.jit(Backbone.features, static_argnums=0)
_transmit = jax.jit(uplink.transmit)


def accuracy(inputs: SweepInputs, params: Any, task: str, split: str = "test") -> float:
    """Accuracy with numpy from the features on, one batch, under the task's own head."""
    user = inputs.tasks.index(task)
    data = inputs.data[user]
    rows: Rows = getattr(data, split)
    images = np.zeros((40, 16, 16, 3), np.uint8)
    images[: len(rows)] = rows.images
    features = np.asarray(_features(inputs.model, params, images))[: len(rows)]
    classes = len(data.classes)
    kernel, bias = np.asarray(inputs.heads.kernel)[user], np.asarray(inputs.heads.bias)[user]
    guess = np.argmax(features @ kernel[:, :classes] + bias[:classes], axis=1)
    return float(np.mean(guess == rows.labels))


def received(engine: Engine, cell: Cell) -> Any:
    """Return all users' task vectors as the library's `transmit` sends them in a cell's draw."""
    root = jax.random.fold_in(jax.random.key(engine.settings.seed), 1)
    key = jax.random.fold_in(jax.random.fold_in(root, cell.seed), cell.draw)
    uplinks = engine.uplinks
    mse = jnp.asarray(uplinks.mse(cell))
    return _transmit(engine.inputs.vectors, mse, uplinks.kappa, key, uplinks.error_model(cell))


def merged(inputs: SweepInputs, combination: Iterable[str], scale: float, sent: Any = None) -> Any:
    """Return base + scale * sum of the users' vectors, with numpy; of the clean ones by default."""
    users = [inputs.tasks.index(task) for task in combination]
    return jax.tree.map(
        lambda base, stacked: (
            np.asarray(base) + np.float32(scale) * np.asarray(stacked)[users].sum(axis=0)
        ),
        inputs.base,
        inputs.vectors if sent is None else sent,
    )


_quick = cache(jax.jit)


def merged_by_rule(engine: Engine, cell: Cell, scale: float) -> Any:
    """Return base + scale * rule(received vectors of the combination's users and no others)."""
    inputs = engine.inputs
    users = np.array([inputs.tasks.index(task) for task in cell.combination])
    some = jax.tree.map(lambda leaf: leaf[users], received(engine, cell))
    key = jax.random.key(engine.settings.seed + cell.seed)
    total = _quick(cell.rule)(some, key=key)
    return jax.tree.map(lambda base, leaf: np.asarray(base + scale * leaf), inputs.base, total)


def embeddings(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves that freeze takes from the base."""
    leaves = fusion.leaves_by_path(tree)
    return {path: np.asarray(leaf) for path, leaf in leaves.items() if "embeddings" in path}


def others(tree: Any) -> dict[str, np.ndarray]:
    """Return the other leaves."""
    leaves = fusion.leaves_by_path(tree)
    return {path: np.asarray(leaf) for path, leaf in leaves.items() if "embeddings" not in path}
