"""The plan of a run before any of it is done: work, memory, disk, and what is missing offline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.registry import SINGLE_PROMPT
from rmtllmf_jax.defences.repairs import protection_name, repairs_of, split
from rmtllmf_jax.models.shapes import CLIPShape, ViTShape
from rmtllmf_jax.sweep.cost import (
    FLOAT,
    Speed,
    Work,
    forward_flops,
    head_parameters,
    image_tower,
    sweep_memory,
    tower_parameters,
    train_flops,
    training_memory,
)
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.settings import VALIDATION_SCALES, Settings
from rmtllmf_jax.training.presets import Preset

_CHECKPOINTS = 3  # of a training state on disk: two are kept, the next is written before one goes


@runtime_checkable
class TaskSize(Protocol):
    """What a plan has to know of a task: a `registry.TaskFacts`, or an `OwnTask`."""

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def prompts(self) -> tuple[str, ...]: ...
    @property
    def train(self) -> int: ...
    @property
    def test(self) -> int: ...
    @property
    def pixels(self) -> int | None: ...


@dataclass(frozen=True)
class OwnTask:
    """A task by its own data: class names, and numbers of images.

    `pixels` is the side of the images where all of them are squares of one small size.
    """

    name: str
    classes: tuple[str, ...]
    train: int
    test: int
    pixels: int | None = None
    prompts: tuple[str, ...] = (SINGLE_PROMPT,)


@dataclass(frozen=True)
class Needed:
    """Something that comes from outside: `size` in bytes, `None` where it is not known."""

    what: str
    where: str
    size: int | None
    present: bool


@dataclass(frozen=True)
class File:
    """Something that the run writes: `where` is the cache or the run folder, `size` in bytes."""

    what: str
    where: Literal["cache", "run"]
    size: int


@dataclass(frozen=True)
class Plan:
    """What a run will take; memory in bytes by part, on one device."""

    parameters: int
    forward_flops: float
    dtype: str
    remat: bool
    cells: dict[str, dict[str, int]]
    """Cells of the grid by scenario and protection."""
    work: tuple[Work, ...]
    training: dict[str, int] | None
    """Memory of fine-tuning; `None` where nothing is fine-tuned."""
    sweep: dict[str, int]
    files: tuple[File, ...]
    needed: tuple[Needed, ...]

    @property
    def flops(self) -> float:
        """Operations of the whole run, memory traffic left out."""
        return sum((work.amount for work in self.work if work.kind != "memory"), 0.0)

    @property
    def disk(self) -> int:
        """Bytes that the run writes."""
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> tuple[Needed, ...]:
        """What has to be downloaded."""
        return tuple(item for item in self.needed if not item.present)

    def hours(self, speed: Speed) -> float:
        """Return the hours of all parts on one device; downloads and decoding come on top."""
        return sum((work.hours(speed, self.dtype) for work in self.work), 0.0)


def plan(
    model: CLIPShape | ViTShape,
    preset: Preset,
    tasks: Sequence[TaskSize],
    grid: Grid,
    settings: Settings,
    *,
    ready_vectors: bool = False,
    validation_fraction: float = 0.1,
    needed: tuple[Needed, ...] = (),
    cells_at_once: int = 1,
    heads: bool = True,
) -> Plan:
    """Return the plan of fine-tuning, sweep and evaluation on one device; nothing is computed.

    **Arguments:**

    - `model`: CLIP has zero-shot heads from its text tower; a plain ViT closed-form ones, from the
      features of the training images. The image size, type and remat are those of its image tower.
    - `settings`: of the sweep; its `realign` is the recipe of realignment.
    - `ready_vectors`: published models are used, nothing is fine-tuned.
    - `validation_fraction`: share of each training split that is set aside.
    - `needed`: what comes from outside; passed on.
    - `cells_at_once`: cells that a device computes side by side.
    - `heads`: `False` for a sweep alone, whose users are there already.

    **Raises:** `InputError` if the grid has a task that is not among `tasks`.
    """
    _require_tasks(grid, tasks)
    shape = image_tower(model)
    recipe = None if ready_vectors else preset.finetune
    realigned = any(split(repairs_of(protection)).rest for _, protection in grid.counts())
    realign_batch = settings.realign.batch_size if realigned else None
    shots = settings.shots * sum(len(task.classes) for task in tasks) if realigned else 0
    batch = _batch_size(tasks, settings, validation_fraction)
    parts = []
    if heads:
        parts += _users_work(model, preset, tasks, validation_fraction, ready_vectors)
    parts += _sweep_work(model, tasks, grid, settings, validation_fraction, batch)
    return Plan(
        tower_parameters(model),
        forward_flops(shape),
        shape.dtype,
        shape.remat,
        _count_cells(grid),
        tuple(work for work in parts if work.count),
        training_memory(model, recipe.batch_size) if recipe else None,
        sweep_memory(
            model,
            len(tasks),
            eval_batch=batch,
            test_bytes=sum(
                _padded(_subset(settings.eval_samples, task.test), batch) * _pixels(task, shape)
                for task in tasks
            ),
            realign_batch=realign_batch,
            shot_bytes=shots * shape.image_size**2 * shape.channels,
            cells_at_once=cells_at_once,
        ),
        _files(model, tasks, training=recipe is not None) if heads else (),
        needed,
    )


def _count_cells(grid: Grid) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for (scenario, protection), count in grid.counts().items():
        counts.setdefault(scenario, {})[protection_name(protection)] = count * len(
            grid.combinations
        )
    return counts


def _users_work(
    model: CLIPShape | ViTShape,
    preset: Preset,
    tasks: Sequence[TaskSize],
    fraction: float,
    ready: bool,
) -> list[Work]:
    """Return the work of heads, fine-tuning and its validation (before and after)."""
    shape = image_tower(model)
    kept = [task.train - _validation(task, fraction) for task in tasks]
    if isinstance(model, CLIPShape):
        single = preset.prompts == "single"
        texts = sum(len(task.classes) * (1 if single else len(task.prompts)) for task in tasks)
        heads = Work("heads", texts, "texts", texts * forward_flops(model.text), "forward")
    else:
        heads = Work("heads", sum(kept), "images", sum(kept) * forward_flops(shape), "forward")
    work = [heads]
    if not ready:
        images = len(tasks) * preset.finetune.steps * preset.finetune.batch_size
        work.append(Work("fine-tuning", images, "images", images * train_flops(shape), "train"))
    seen = 2 * sum(_validation(task, fraction) for task in tasks)
    return [*work, _evaluation("validation of the users", seen, shape)]


def _sweep_work(
    model: CLIPShape | ViTShape,
    tasks: Sequence[TaskSize],
    grid: Grid,
    settings: Settings,
    fraction: float,
    batch: int,
) -> list[Work]:
    """Return the work of all cells, of the references, and of the scale rule `validation`."""
    shape, counts = image_tower(model), grid.counts()
    test = {task.name: _padded(_subset(settings.eval_samples, task.test), batch) for task in tasks}
    parts = [(split(repairs_of(protection)), n) for (_, protection), n in counts.items()]
    combinations = len(grid.combinations)
    merges = combinations * sum(n for part, n in parts if part.fuse)
    realigned = combinations * sum(n for part, n in parts if part.rest)
    images = realigned * settings.realign.steps * settings.realign.batch_size
    work = [
        Work("realignment", images, "images", images * train_flops(shape), "train"),
        _evaluation(
            "evaluation",
            counts.total() * sum(test[task] for tasks_ in grid.combinations for task in tasks_),
            shape,
        ),
        _evaluation("base and fine-tuned models", 2 * sum(test.values()), shape),
    ]
    if settings.scale == "validation":
        rows = {
            task.name: _padded(
                _subset(settings.validation_samples, _validation(task, fraction)), batch
            )
            for task in tasks
        }
        tried = len(VALIDATION_SCALES) * len(grid.rules)
        seen = tried * sum(rows[task] for tasks_ in grid.combinations for task in tasks_)
        merges += tried * len(grid.combinations)
        work.append(_evaluation("choice of the scale", seen + sum(rows.values()), shape))
    # Base, vectors and noise are read in one pass, and the result is written.
    moved = float(merges * (2 * len(tasks) + 2) * FLOAT * tower_parameters(model))
    return [Work("merging", merges, "models", moved, "memory"), *work]


def _files(
    model: CLIPShape | ViTShape, tasks: Sequence[TaskSize], *, training: bool
) -> tuple[File, ...]:
    shape, vector = image_tower(model), FLOAT * tower_parameters(model)
    files = [
        File(f"images {task.name}", "cache", (task.train + task.test) * _pixels(task, shape))
        for task in tasks
    ]
    heads = sum(head_parameters(model, len(task.classes)) for task in tasks)
    files += [File("heads", "run", FLOAT * heads)]
    files += [File("fine-tuned models", "run", len(tasks) * vector)]
    if training:  # parameters and two moments, of one task at a time
        files.append(File("training state, while it runs", "run", _CHECKPOINTS * 3 * vector))
    return tuple(files)


def _require_tasks(grid: Grid, tasks: Sequence[TaskSize]) -> None:
    wanted = {task for combination in grid.combinations for task in combination}
    unknown = sorted(wanted - {task.name for task in tasks})
    if unknown:
        names = ", ".join(task.name for task in tasks)
        raise InputError(f"the grid has {', '.join(unknown)}, and the plan's tasks are {names}.")


def _evaluation(what: str, images: int, shape: ViTShape) -> Work:
    return Work(what, images, "images", images * forward_flops(shape), "forward")


def _validation(task: TaskSize, fraction: float) -> int:
    return round(fraction * task.train)


def _subset(samples: int, there: int) -> int:
    return min(samples, there) if samples else there


def _batch_size(tasks: Sequence[TaskSize], settings: Settings, fraction: float) -> int:
    tests, validations = [task.test for task in tasks], [_validation(t, fraction) for t in tasks]
    return settings.batch_size(tests, validations)


def _padded(images: int, batch: int) -> int:
    """Return the images that are computed: the last batch is padded."""
    return math.ceil(images / batch) * batch


def _pixels(task: TaskSize, shape: ViTShape) -> int:
    """Return the bytes of an image as cached: its own small size, or the model's."""
    return min(task.pixels or shape.image_size, shape.image_size) ** 2 * 3
