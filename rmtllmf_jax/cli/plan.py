"""`--dry-run`: what a run needs and takes on the devices found, as tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from rmtllmf_jax.cli.reproduce import Reproduce
    from rmtllmf_jax.models.shapes import CLIPShape, ViTShape
    from rmtllmf_jax.report.sheets import Sheet
    from rmtllmf_jax.runs import Run, SweepInputs
    from rmtllmf_jax.sweep.cost import Speed
    from rmtllmf_jax.sweep.grid import Grid
    from rmtllmf_jax.sweep.plan import Plan
    from rmtllmf_jax.sweep.settings import Settings


@dataclass(frozen=True)
class Devices:
    """The devices that JAX found, of one kind; `memory` in bytes of one, `None` if not told."""

    kind: str
    count: int
    memory: int | None
    cpu: bool = False


def dry_run(options: Reproduce, settings: Settings, grid: Grid, *, as_json: bool = False) -> None:
    """Print the plan of `rmtllmf reproduce`: at full size, if the images are not here to count.

    **Raises:** `InputError` if the model's sizes cannot be known without downloading it, or for a
    task that neither the registry nor the source knows.
    """
    from rmtllmf_jax.cli.finetune import recipe_of
    from rmtllmf_jax.cli.import_task_vector import PUBLISHED
    from rmtllmf_jax.cli.needed import images_needed, size_of_task, what_is_needed
    from rmtllmf_jax.models.hub import in_cache
    from rmtllmf_jax.models.shapes import CLIPShape
    from rmtllmf_jax.sweep.plan import plan
    from rmtllmf_jax.training.presets import Preset

    model = _model_shape(options)
    vision = model.vision if isinstance(model, CLIPShape) else model
    preset = Preset(
        recipe_of(options), settings.realign, model=options.model, image_size=vision.image_size
    )
    tasks = tuple(size_of_task(options, name) for name in options.tasks)
    ready = options.task_vectors is not None
    needed = what_is_needed(
        model,
        preset,
        tasks,
        model_there=in_cache,
        images=lambda task: images_needed(options, task),
        ready_vectors=options.task_vectors == PUBLISHED,
    )
    numbers = plan(
        model,
        preset,
        tasks,
        grid,
        settings,
        ready_vectors=ready,
        validation_fraction=options.validation_fraction,
        needed=needed,
    )
    _show(numbers, as_json)
    if options.source not in ("hub", "embedded") and not as_json:
        print("Images are counted as in the full sets of the registry; smaller sets take less.")


def sweep_dry_run(
    run: Run,
    inputs: SweepInputs,
    settings: Settings,
    grid: Grid,
    cells_at_once: int,
    *,
    as_json: bool = False,
) -> None:
    """Print the plan of `rmtllmf sweep`, on the models and images of its run folder."""
    from rmtllmf_jax.sweep.plan import OwnTask, plan
    from rmtllmf_jax.training.presets import Preset
    from rmtllmf_jax.training.recipes import Recipe

    tasks = tuple(
        OwnTask(
            task.name,
            task.classes,
            len(task.train) + len(task.validation),
            len(task.test),
            task.test.split.images.shape[1],
        )
        for task in inputs.data
    )
    config = run.config
    recipe = Recipe(**run.users[run.names[0]].recipe)
    numbers = plan(
        _with_vision(config.model, inputs.backbone.module.shape),
        Preset(recipe, settings.realign, model=config.model, image_size=config.image_size),
        tasks,
        grid,
        settings,
        ready_vectors=True,
        validation_fraction=config.validation_fraction,
        cells_at_once=cells_at_once,
        heads=False,
    )
    _show(numbers, as_json)


def _show(plan: Plan, as_json: bool) -> None:
    devices = find_devices()
    speed = find_speed(devices)
    (print_json if as_json else print_plan)(plan, devices, speed)


def _with_vision(model: str, vision: ViTShape) -> CLIPShape | ViTShape:
    """Return the sizes of a model on this machine, with those of its image tower as it is run."""
    from rmtllmf_jax.models.configs import read_config
    from rmtllmf_jax.models.hub import local_directory
    from rmtllmf_jax.models.shapes import CLIPShape

    config = read_config(local_directory(model) / "config.json")
    if config.text is None or config.projection is None:
        return vision
    return CLIPShape(vision, config.text, config.projection)


def _model_shape(options: Reproduce) -> CLIPShape | ViTShape:
    from dataclasses import replace

    from rmtllmf_jax.common.errors import InputError
    from rmtllmf_jax.models.backbone import at_size
    from rmtllmf_jax.models.configs import published_config, read_config
    from rmtllmf_jax.models.hub import in_cache, local_directory
    from rmtllmf_jax.models.shapes import CLIPShape
    from rmtllmf_jax.runs.config import compute_dtype

    if in_cache(options.model):
        config = read_config(local_directory(options.model) / "config.json")
    elif (known := published_config(options.model)) is not None:
        config = known
    else:
        raise InputError(
            f"{options.model}: not on this machine, and its sizes are not known; download it "
            "first, or name a directory."
        )
    vision = replace(
        at_size(config.vision, options.image_size, options.model),
        dtype=compute_dtype(options.dtype),
        remat=options.remat,
    )
    if config.text is None or config.projection is None:
        return vision
    return CLIPShape(vision, config.text, config.projection)


def find_devices() -> Devices:
    """Return what JAX runs on. On a GPU the memory is what JAX may take, not all there is."""
    import jax

    from rmtllmf_jax.runs.environment import memory_of

    first = jax.local_devices()[0]
    cpu = first.platform == "cpu"
    return Devices(first.device_kind, jax.device_count(), memory_of(first), cpu)


def find_speed(devices: Devices) -> Speed | None:
    """Return the peaks of one device: from its data sheet, on a CPU measured, else `None`."""
    from rmtllmf_jax.sweep.cost import known_speed

    return measured_speed() if devices.cpu else known_speed(devices.kind)


def measured_speed(size: int = 1024) -> Speed:
    """Return what the first device reaches right now, in about a second.

    Products of two `size` x `size` matrices in each type, and a sum of two vectors (two are read
    and one is written).
    """
    import jax
    import jax.numpy as jnp

    from rmtllmf_jax.sweep.cost import Speed

    def products(dtype: str) -> float:
        matrix = jnp.ones((size, size), dtype)
        return 2 * size**3 / _shortest(lambda: jnp.matmul(matrix, matrix))

    vector = jnp.ones(8 * size**2, jnp.float32)
    other = jax.block_until_ready(vector + 1)
    bandwidth = 3 * vector.nbytes / _shortest(lambda: jnp.add(vector, other))
    return Speed(products("bfloat16"), products("float32"), bandwidth, measured=True)


def _shortest(run: Callable[[], object], times: int = 5) -> float:
    """Return the seconds of the fastest of a few runs; the first, which compiles, is left out."""
    import jax

    jax.block_until_ready(run())
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def print_plan(
    plan: Plan, devices: Devices, speed: Speed | None, console: Console | None = None
) -> None:
    """Print a plan: what it needs and writes, memory, work and hours on the devices found.

    `console` is standard output unless given; `speed` is of one device, `None` if not known.
    """
    from rich.console import Console

    from rmtllmf_jax.report.terminal import print_sheet

    console = console or Console()
    for sheet in plan_sheets(plan, speed):
        print_sheet(sheet, console)
    for sentence in plan_sentences(plan, devices, speed):
        console.print(sentence, markup=False, highlight=False)


def print_json(plan: Plan, devices: Devices, speed: Speed | None) -> None:
    """Print a plan as JSON: bytes, operations (FLOP) and hours; null is not known."""
    found = asdict(plan) | {"flops": plan.flops, "disk": plan.disk, "devices": asdict(devices)}
    found["speed"] = None if speed is None else asdict(speed)
    found["hours"] = None if speed is None else plan.hours(speed)
    for part, work in zip(found["work"], plan.work, strict=True):
        part["hours"] = None if speed is None else work.hours(speed, plan.dtype)
    print(json.dumps(found, indent=2, allow_nan=False))


def plan_sheets(plan: Plan, speed: Speed | None) -> list[Sheet]:
    """Return the tables of a plan; hours are `-` where the speed is not known."""
    from rmtllmf_jax.report.sheets import Sheet

    def hours(value: float) -> str:
        return f"{value:,.2f}" if value >= 0.01 else "< 0.01"

    protections = list(dict.fromkeys(name for found in plan.cells.values() for name in found))
    cells = [
        [scenario, *(f"{found.get(name, 0):,}" for name in protections)]
        for scenario, found in plan.cells.items()
    ]
    needed = [
        [item.what, item.where, size_text(item.size), "yes" if item.present else "no"]
        for item in plan.needed
    ]
    files = [[file.what, file.where, size_text(file.size)] for file in plan.files]
    written = [*files, _total(plan.disk)]
    phases = {"fine-tuning": plan.training, "sweep": plan.sweep}
    memory = [
        [phase, part, size_text(size)]
        for phase, parts in phases.items()
        if parts is not None
        for part, size in {**parts, "together": sum(parts.values())}.items()
    ]
    work = [
        [
            part.what,
            part.units,
            f"{part.count:,}",
            "-" if part.kind == "memory" else f"{part.amount / 1e12:,.0f}",
            "-" if speed is None else hours(part.hours(speed, plan.dtype)),
        ]
        for part in plan.work
    ]
    total = "-" if speed is None else hours(plan.hours(speed))
    work.append(["together", "", "", f"{plan.flops / 1e12:,.0f}", total])
    sheets = [
        Sheet("Cells", ["scenario", *protections], cells),
        *([Sheet("Written to disk", ["what", "where", "size"], written)] if files else []),
        Sheet("Memory on a device, estimated", ["while", "what", "size"], memory),
        Sheet("Work", ["part", "of", "number", "TFLOP", "hours"], work),
    ]
    if needed:
        sheets.insert(0, Sheet("Needed", ["what", "where", "download", "here"], needed))
    return sheets


def _total(size: int) -> list[str]:
    return ["together", "", size_text(size)]


def plan_sentences(plan: Plan, devices: Devices, speed: Speed | None) -> Iterator[str]:
    """Yield what the tables rest on, and what stands in the way."""
    counts = [count for found in plan.cells.values() for count in found.values()]
    yield f"Grid: {sum(counts):,} cells."
    yield (
        f"Image tower: {plan.parameters:,} parameters, {plan.forward_flops / 1e9:.1f} GFLOP an "
        f"image, computed in {plan.dtype}{', blocks rematerialised' if plan.remat else ''}."
    )
    yield _device_sentence(plan, devices, speed)
    for phase, parts in (("Fine-tuning", plan.training), ("The sweep", plan.sweep)):
        wanted = sum((parts or {}).values())
        if devices.memory is not None and wanted > devices.memory:
            yield (
                f"{phase} may not fit: about {size_text(wanted)}, and a device has "
                f"{size_text(devices.memory)}. Smaller batches, bfloat16 or fewer test images "
                "take less."
            )
    if plan.missing:
        names = ", ".join(item.where for item in plan.missing)
        yield f"Missing offline ({len(plan.missing)} of {len(plan.needed)}): {names}."
    elif plan.needed:
        yield "Nothing is missing offline."


def _device_sentence(plan: Plan, devices: Devices, speed: Speed | None) -> str:
    from rmtllmf_jax.sweep.cost import UTILISATION

    found = f"Devices: {devices.count} x {devices.kind}"
    if devices.memory is not None:
        found += f" with {size_text(devices.memory)}"
    if speed is None:
        return f"{found}, whose speed is not known here: no hours. The operations are above."
    peak = speed.peak(plan.dtype) / 1e12
    source = "measured just now on a matrix product" if speed.measured else "by its data sheet"
    train, forward = (f"{100 * UTILISATION[kind]:.0f} %" for kind in ("train", "forward"))
    return (
        f"{found}. Hours are of one device at {peak:.3g} TFLOP/s ({source}), of which training is "
        f"assumed to reach {train} and evaluation {forward}; downloads and decoding come on top."
    )


def size_text(size: int | None) -> str:
    """Return bytes as a reader takes them in: three digits, decimal units."""
    if size is None:
        return "unknown"
    value, unit = float(size), 0
    while value >= 999.5 and unit < 4:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 else max(0, 3 - len(str(round(value))))
    return f"{value:.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
