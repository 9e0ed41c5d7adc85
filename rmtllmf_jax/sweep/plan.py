"""The plan of a run before it starts: work, memory, disk, and what is missing offline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.defences.protection import protection_name, repairs_of, split
from rmtllmf_jax.fusion import candidate_scales
from rmtllmf_jax.fusion.rules import fact, methods_of
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.shapes import CLIPShape, SiglipShape
from rmtllmf_jax.models.shared import SharedModel
from rmtllmf_jax.sweep.cost import Costs, lora_costs, model_costs, text_costs, tree_bytes
from rmtllmf_jax.sweep.devices import Speed
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.memory import needs_bytes, sweep_memory, training_memory
from rmtllmf_jax.sweep.needs import NEEDS, require_looked_at
from rmtllmf_jax.sweep.plan_parts import File, Needed, TaskSize, Work
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.lora import Lora
from rmtllmf_jax.training.recipes import RunRecipe
from rmtllmf_jax.uplink import is_of_mse, is_surrogate

_FLOAT = 4  # bytes of a number of a head
_PASSES = 20  # over the vectors, of a code or an estimator
_CHECKPOINTS = 3  # of a training state on disk: two are kept, the next is written before one goes


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
    samples: str = "images"
    """What is counted: images, or rows of tokens."""

    @property
    def flops(self) -> float:
        """Operations of the whole run, without memory traffic."""
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
        """Return the hours of all parts, without downloads and decoding."""
        return sum((work.hours(speed, self.dtype) for work in self.work), 0.0)


def plan(
    model: SharedModel,
    tasks: Sequence[TaskSize],
    grid: Grid,
    settings: Settings,
    made_by: RunRecipe | None = None,
    *,
    clip: CLIPShape | SiglipShape | None = None,
    ready_vectors: bool = False,
    lora: Lora | None = None,
    train_devices: int = 1,
    accumulate: int = 1,
    validation_fraction: float = 0.1,
    needed: tuple[Needed, ...] = (),
    cells_at_once: int = 1,
    length: int | None = None,
) -> Plan:
    """Return the plan of fine-tuning, sweep and evaluation; nothing is computed.

    Everything runs on one device, except for fine-tuning on `train_devices`.

    **Arguments:**

    - `settings`: of the sweep; its `realign` is the recipe of realignment.
    - `made_by`: how the users are made; `None` for a sweep alone, with existing users.
    - `clip`: with its text tower, heads are zero-shot; otherwise they are closed-form, from the
      features of the training images.
    - `ready_vectors`: published models are used, nothing is fine-tuned.
    - `lora`: its factors are fine-tuned instead of the whole model.
    - `train_devices`, `accumulate`: devices and parts that a fine-tuning batch is split into; its
      size must be divisible by them.
    - `validation_fraction`: share of each training split that is set aside.
    - `needed`: external inputs; passed on.
    - `cells_at_once`: cells that a device computes side by side.
    - `length`: tokens per row, for a decoder of texts; its tasks have a single class.

    **Raises:** `InputError` if the grid has a task that is not among `tasks`, or for texts a merge
    method that looks at images, or as `Lora.kernels`.
    """
    _require_tasks(grid, tasks)
    of_texts = isinstance(model, Decoder)
    shape = model.shape if isinstance(model, Decoder) else cast(Backbone, model).module.shape
    tower = model_costs(model, length)
    trained = tower if lora is None else lora_costs(tower, lora)
    recipe = None if made_by is None or ready_vectors else made_by.finetune
    repaired = any(split(repairs_of(protection)).rest for _, protection in grid.counts())
    realign = settings.realign if repaired else None
    shots = settings.shots * sum(len(task.classes) for task in tasks) if realign else 0
    batch = _batch_size(tasks, settings, validation_fraction)
    forward = tower.flops()
    needs = _needs(grid)
    require_looked_at(_methods(grid), model)
    training = tower.flops(training=True) if realign or needs else 0.0
    parts = []
    if made_by:
        text = text_costs(clip.text).flops() if clip else None
        users = _users_work(
            made_by,
            tasks,
            validation_fraction,
            0 if ready_vectors else train_devices,
            forward,
            trained.flops(training=True) if recipe else 0.0,
            text,
        )
        parts += users[1:] if of_texts else users  # texts have no heads
    parts += _sweep_work(tower, tasks, grid, settings, validation_fraction, batch, training)
    return Plan(
        tower.parameters,
        forward,
        shape.dtype,
        shape.remat,
        _count_cells(grid),
        tuple(_renamed(work, of_texts) for work in parts if work.count),
        training_memory(trained, recipe, devices=train_devices, parts=accumulate)
        if recipe
        else None,
        sweep_memory(
            tower,
            len(tasks),
            eval_batch=batch,
            test_bytes=sum(
                _padded(_subset(settings.eval_samples, task.test), batch) * _pixels(task, tower)
                for task in tasks
            ),
            realign=realign,
            shot_bytes=shots * tree_bytes(tower.example),
            cells_at_once=cells_at_once,
            needs_bytes=_merging_bytes(tower, model, grid, tasks, settings, cells_at_once),
        ),
        _files(tower, clip, tasks, trained.bytes, training=recipe is not None) if made_by else (),
        needed,
        tower.samples,
    )


def _renamed(work: Work, of_texts: bool) -> Work:
    return replace(work, units="rows") if of_texts and work.units == "images" else work


def _count_cells(grid: Grid) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for (scenario, protection), count in grid.counts().items():
        counts.setdefault(scenario, {})[protection_name(protection)] = count * len(
            grid.combinations
        )
    return counts


def _users_work(
    made_by: RunRecipe,
    tasks: Sequence[TaskSize],
    fraction: float,
    devices: int,
    forward: float,
    training: float,
    text: float | None,
) -> list[Work]:
    """Return the work of heads, fine-tuning and its validation (before and after).

    `devices` share the batches of fine-tuning; 0 where nothing is fine-tuned.
    """
    if text is not None:
        single = made_by.prompts == "single"
        texts = sum(len(task.classes) * (1 if single else len(task.prompts)) for task in tasks)
        work = [Work("heads", texts, "texts", texts * text, "forward")]
    else:
        work = [
            _evaluation("heads", sum(t.train - _validation(t, fraction) for t in tasks), forward)
        ]
    if devices:
        images = len(tasks) * made_by.finetune.steps * made_by.finetune.batch_size
        work.append(Work("fine-tuning", images, "images", images * training, "train", devices))
    seen = 2 * sum(_validation(task, fraction) for task in tasks)
    return [*work, _evaluation("validation of the users", seen, forward)]


def _sweep_work(
    tower: Costs,
    tasks: Sequence[TaskSize],
    grid: Grid,
    settings: Settings,
    fraction: float,
    batch: int,
    training: float,
) -> list[Work]:
    """Return the work of all cells, of the references, and of the scale rule `validation`."""
    forward, counts = tower.flops(), grid.counts()
    test = {task.name: _padded(_subset(settings.eval_samples, task.test), batch) for task in tasks}
    parts = [(split(repairs_of(protection)), n) for (_, protection), n in counts.items()]
    combinations = len(grid.combinations)
    merges = combinations * sum(n for part, n in parts if part.fuse)
    realigned = combinations * sum(n for part, n in parts if part.rest)
    images = realigned * settings.realign.steps * settings.realign.batch_size
    work = [
        Work("realignment", images, "images", images * training, "train"),
        _evaluation(
            "evaluation",
            counts.total() * sum(test[task] for tasks_ in grid.combinations for task in tasks_),
            forward,
        ),
        _evaluation("base and fine-tuned models", 2 * sum(test.values()), forward),
    ]
    if settings.scale == "validation":
        rows = {
            task.name: _padded(
                _subset(settings.validation_samples, _validation(task, fraction)), batch
            )
            for task in tasks
        }
        tried = sum(len(candidate_scales(method)) for method in _methods(grid))
        seen = tried * sum(rows[task] for tasks_ in grid.combinations for task in tasks_)
        merges += tried * len(grid.combinations)
        work.append(_evaluation("choice of the scale", seen + sum(rows.values()), forward))
    # Base, vectors and noise are read in one pass, and the result is written.
    moved = float(merges * (2 * len(tasks) + 2) * tower.bytes)
    merging = Work("merging", merges, "models", moved, "memory")
    sending = _sending(tower, grid, settings, len(tasks))
    needed = _needs_work(tasks, grid, settings, fraction, forward, training)
    return [*sending, merging, *needed, *work]


def _needs_work(
    tasks: Sequence[TaskSize],
    grid: Grid,
    settings: Settings,
    fraction: float,
    forward: float,
    training: float,
) -> list[Work]:
    """Return the work for statistics that merge methods use, and of methods that learn."""
    needs = _needs(grid)
    trained = [task.train - _validation(task, fraction) for task in tasks]
    seen = sum(_subset(settings.statistics_samples, images) for images in trained)
    learned = 0
    for rule in grid.rules:
        alone = replace(grid, rules=(rule,))
        steps = [m.steps * m.batch_size for m in _methods(alone) if "batches" in fact(m, "needs")]
        merges = sum(n for (_, each), n in alone.counts().items() if split(repairs_of(each)).fuse)
        learned += merges * max(steps, default=0)
        learned += sum(steps) if settings.scale == "validation" else 0
    learned *= len(grid.combinations)
    return [
        _evaluation("inputs of layers", seen if "grams" in needs else 0, forward),
        Work("Fisher information", seen * ("fishers" in needs), "images", seen * training, "train"),
        Work("learning to merge", learned, "images", learned * training, "train"),
    ]


def _methods(grid: Grid) -> list[Any]:
    return [method for rule in grid.rules for method in methods_of(rule)]


def _needs(grid: Grid) -> set[str]:
    return {need for method in _methods(grid) for need in fact(method, "needs")}


def _merging_bytes(
    tower: Costs,
    model: SharedModel,
    grid: Grid,
    tasks: Sequence[TaskSize],
    settings: Settings,
    cells_at_once: int,
) -> int:
    """Return the bytes of what methods look at, and of the merged vectors that more than sums keep.

    See `Engine._merged`.
    """
    kept = not all(fact(method, "linear") for method in _methods(grid))
    found = cells_at_once * tower.bytes if kept else 0
    if (needs := _needs(grid)) & set(NEEDS):  # of images
        images = sum(_subset(settings.eval_samples, task.test) for task in tasks)
        found += needs_bytes(needs, cast(Backbone, model), len(tasks), images)
    return found


def _sending(tower: Costs, grid: Grid, settings: Settings, tasks: int) -> list[Work]:
    """Return the work of sending symbols, and of what protections do to the vectors.

    Counted once per channel, seed and protection with its own transmission, for all combinations.
    Signals of all antennas and users, or the vectors of all users, are read and written a few
    times; random numbers and quantisation are left out.
    """
    channels = sum(grid.draws * len(grid.axis.levels_of(s)) for s in grid.scenarios if s.attack)
    times, found = grid.seeds * channels, []
    senders = [(settings.carrier(stages), stages.estimators) for stages in grid.sent_by(settings)]
    symbols = [transport for transport, _ in senders if not is_of_mse(transport)]
    if symbols:
        preset: Any = settings.channel(tasks)
        sent = times * sum(transport.uses for transport in symbols) * tower.parameters
        moved = sent * 8 * (3 * preset.antennas + 4 * preset.users)
        count = times * len(symbols)
        found.append(Work("sending", count, "transmissions", moved, "memory"))
    acting = [one for one, acts in senders if is_of_mse(one) and (acts or not is_surrogate(one))]
    if acting:
        moved = float(times * len(acting) * tasks * tower.parameters * _FLOAT * _PASSES)
        count = times * len(acting)
        found.append(Work("encoding and estimating", count, "deliveries", moved, "memory"))
    return found


def _files(
    tower: Costs,
    clip: CLIPShape | SiglipShape | None,
    tasks: Sequence[TaskSize],
    trained: int,
    *,
    training: bool,
) -> tuple[File, ...]:
    projection = clip.projection if clip else None
    width, classes = projection or tower.width, sum(len(task.classes) for task in tasks)
    heads = (width + 1) * classes + (len(tasks) * tower.width * width if projection else 0)
    each = f"{tower.samples} {{}}"
    files = [
        File(each.format(task.name), "cache", (task.train + task.test) * _pixels(task, tower))
        for task in tasks
    ]
    files += [File("heads", "run", _FLOAT * heads)] if tower.samples == "images" else []
    files += [File("fine-tuned models", "run", len(tasks) * trained)]
    if training:  # parameters and two moments, of one task at a time
        files.append(File("training state, while it runs", "run", _CHECKPOINTS * 3 * trained))
    return tuple(files)


def _require_tasks(grid: Grid, tasks: Sequence[TaskSize]) -> None:
    wanted = {task for combination in grid.combinations for task in combination}
    unknown = sorted(wanted - {task.name for task in tasks})
    if unknown:
        names = ", ".join(task.name for task in tasks)
        raise InputError(f"the grid has {', '.join(unknown)}, and the plan's tasks are {names}.")


def _evaluation(what: str, images: int, forward: float) -> Work:
    return Work(what, images, "images", images * forward, "forward")


def _validation(task: TaskSize, fraction: float) -> int:
    return round(fraction * task.train) if task.validation is None else task.validation


def _subset(samples: int, there: int) -> int:
    return min(samples, there) if samples else there


def _batch_size(tasks: Sequence[TaskSize], settings: Settings, fraction: float) -> int:
    tests, validations = [task.test for task in tasks], [_validation(t, fraction) for t in tasks]
    return settings.batch_size(tests, validations)


def _padded(images: int, batch: int) -> int:
    """Return the number of images computed, including padding of the last batch."""
    return math.ceil(images / batch) * batch


def _pixels(task: TaskSize, tower: Costs) -> int:
    """Return the bytes of a cached sample; images have their own small size, or the model's."""
    if task.bytes_each is not None:
        return task.bytes_each
    size, _, channels = tower.example.shape
    return min(task.pixels or size, size) ** 2 * channels
