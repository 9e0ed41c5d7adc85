"""The two sides of the sweep benchmark: our engine, and the idioms of public code in torch."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from model_sides import CASES as MODELS
from model_sides import Case, Torch, through_disk

from rmtllmf_jax import fusion
from rmtllmf_jax.data.cache import Images
from rmtllmf_jax.data.task_data import Rows, TaskData
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.vit import VisionTransformer
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.layout import Layout
from rmtllmf_jax.sweep.settings import Settings

TASKS = tuple(f"task {number}" for number in range(8))
CLASSES = 10
RMS = 2e-3  # of a task vector, as fine-tuning leaves it
SCALE = 0.3
BATCH = 50
SETTINGS = Settings(eval_batch_size=BATCH)

CASES = {
    "tiny": Case(
        VisionTransformer,
        replace(
            MODELS["small"].shape,
            image_size=32,
            patch_size=8,
            width=64,
            depth=4,
            heads=2,
            mlp_width=128,
        ),
        forward=BATCH,
        train=BATCH,
        rounds=5,
    ),
    "vit-ti": MODELS["small"],
}

Counts = dict[tuple[str, str], float]
"""Images classified right, by cell and task."""


def inputs_of(backbone: Backbone, base: Any, images: int, vectors: Any = None) -> SweepInputs:
    """Return eight users with random heads and images; their task vectors are random too."""
    random, size = np.random.default_rng(0), backbone.image_size
    if vectors is None:
        vectors = jax.tree.map(
            lambda leaf: RMS * random.normal(size=(len(TASKS), *leaf.shape)).astype(np.float32),
            base,
        )
    kernel = random.normal(size=(len(TASKS), backbone.width, CLASSES)) / np.sqrt(backbone.width)
    heads = Head(jnp.asarray(kernel, jnp.float32), jnp.zeros((len(TASKS), CLASSES)))
    data = tuple(_task(name, images, size, random) for name in TASKS)
    return SweepInputs(TASKS, backbone, base, jax.tree.map(jnp.asarray, vectors), heads, data, {})


def _task(name: str, count: int, size: int, random: np.random.Generator) -> TaskData:
    images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    labels = random.integers(0, CLASSES, count).astype(np.int32)
    classes = tuple(str(number) for number in range(CLASSES))
    split = Images(images, labels, classes, name)
    rows, none = Rows(split, np.arange(count)), Rows(split, np.arange(0))
    return TaskData(name, classes, none, none, rows)


class CountingJit:
    """A `jax.jit` that counts what it traces: every trace is a program that is compiled."""

    def __init__(self) -> None:
        """Start at none."""
        self.programs = 0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, compiled."""

        def noted(*words: Any) -> Any:
            self.programs += 1
            return function(*words)

        return jax.jit(noted)


def engine_of(inputs: SweepInputs, layout: Layout, jit: Callable[..., Any] = jax.jit) -> Engine:
    """Return our engine, evaluating in the batches that torch uses."""
    return Engine(inputs, SETTINGS, layout, jit)


def jobs_of(tasks: tuple[str, ...], *, noisy: bool) -> list[Job]:
    """Return cells of two to eight tasks in turn, noiseless or in two draws of three channels."""
    combinations = [tasks[:size] for size in range(2, len(tasks) + 1)]
    channels = itertools.product(("ideal", "strongest_user", "sum_rate"), range(2))
    places = list(channels) if noisy else [("clean", 0)]
    return [
        Job(Cell(combination, scenario, draw, 0, "none"), SCALE)
        for combination in combinations
        for scenario, draw in places
    ]


def counted(engine: Engine, jobs: list[Job]) -> Counts:
    """Return what our engine counts."""
    return {
        (job.hash, task): count
        for chunk in engine.run(jobs)
        for job, sums in chunk
        for task, (count, _) in sums.items()
    }


class DictIdiom:
    """Public code: task vectors are state dicts, a merge adds them two at a time."""

    def __init__(self, side: Users, inputs: SweepInputs, engine: Engine) -> None:
        """Keep base and vectors in memory."""
        self.side, self.torch, self.inputs, self.engine = side, side.torch, inputs, engine
        self.base = copy.deepcopy(side.model.state_dict())
        self.vectors = [
            {key: tuned[key] - self.base[key] for key in self.base} for tuned in side.tuned
        ]
        heads = inputs.heads
        self.heads = [self.torch.from_numpy(np.array(kernel)) for kernel in heads.kernel]
        self.images = [
            self.torch.from_numpy(np.array(task.test.images).transpose(0, 3, 1, 2).copy())
            for task in inputs.data
        ]
        self.labels = [self.torch.from_numpy(np.array(task.test.labels)) for task in inputs.data]

    def __call__(self, jobs: list[Job]) -> Counts:
        """Return what the merged models count, cell by cell."""
        counts = {}
        with self.torch.inference_mode():
            for job in jobs:
                std = np.diag(self.engine.uplinks.factor(job.cell))
                users = [TASKS.index(task) for task in job.cell.combination]
                self.side.model.load_state_dict(self.merged(users, std, job.scale))
                for user, task in zip(users, job.cell.combination, strict=True):
                    counts[job.hash, task] = self.count(user)
        return counts

    def start(self) -> dict[str, Any]:
        """Return the base."""
        return self.base

    def vector(self, base: dict[str, Any], user: int) -> dict[str, Any]:
        """Return a task vector."""
        return self.vectors[user]

    def merged(self, users: list[int], std: np.ndarray, scale: float) -> dict[str, Any]:
        """Return the merged state: noise on each vector, vectors added two at a time."""
        base, total = self.start(), None
        for user in users:
            vector = self.vector(base, user)
            if std[user] > 0:
                noise = float(std[user])
                vector = {
                    key: value + noise * self.torch.randn_like(value)
                    for key, value in vector.items()
                }
            total = vector if total is None else {key: total[key] + vector[key] for key in total}
        assert total is not None
        return {key: base[key] + scale * total[key] for key in base}

    def count(self, user: int) -> int:
        """Return how many test images of a user the model classifies right."""
        right = 0
        for start in range(0, len(self.labels[user]), BATCH):
            images = self.images[user][start : start + BATCH]
            features = self.side.features(images, self.inputs.model)
            guess = (features @ self.heads[user]).argmax(dim=-1)
            right += int((guess == self.labels[user][start : start + BATCH]).sum())
        return right


class LoadIdiom(DictIdiom):
    """Public code: for each cell the checkpoints are read from disk again."""

    def __init__(self, side: Users, inputs: SweepInputs, engine: Engine, folder: Path) -> None:
        """Write base and fine-tuned models as safetensors."""
        super().__init__(side, inputs, engine)
        from safetensors.torch import load_file, save_file

        self.load, self.folder = load_file, folder
        save_file(self.base, folder / "base.safetensors")
        for user, tuned in enumerate(side.tuned):
            save_file(tuned, folder / f"{user}.safetensors")

    def start(self) -> dict[str, Any]:
        """Read the base."""
        return self.load(self.folder / "base.safetensors")

    def vector(self, base: dict[str, Any], user: int) -> dict[str, Any]:
        """Read a fine-tuned model, and subtract the base."""
        tuned = self.load(self.folder / f"{user}.safetensors")
        return {key: tuned[key] - base[key] for key in base}


class Users(Torch):
    """The torch side with eight fine-tuned models: the base's weights, a little moved."""

    def __init__(self, case: Case) -> None:
        """Draw random weights."""
        super().__init__(case)
        self.model.eval()
        generator = self.torch.Generator().manual_seed(1)

        def moved(value: Any) -> Any:
            noise = self.torch.randn(value.shape, generator=generator)
            return (value + RMS * noise).contiguous()

        state = self.model.state_dict()
        self.tuned = [{key: moved(value) for key, value in state.items()} for _ in TASKS]

    def vectors(self, base: Any) -> Any:
        """Return the task vectors as our stacked tree, by way of the disk."""
        found = []
        for tuned in self.tuned:
            model = copy.deepcopy(self.model)
            model.load_state_dict(tuned)
            found.append(fusion.TaskVector.between(through_disk(model)[1], base).tree)
        return fusion.stack(found)
