"""`--dry-run`: what a run needs and takes on these devices or others, as tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console
from rich.filesize import decimal

from rmtllmf_jax.cli.finetune import configured, lora_of, recipe_of
from rmtllmf_jax.cli.import_task_vector import PUBLISHED, published
from rmtllmf_jax.cli.options import DryRunOptions, print_as_json
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.sources import get_source, hub_set
from rmtllmf_jax.data.sources import hub as data_hub
from rmtllmf_jax.data.task_data import TaskData
from rmtllmf_jax.data.tasks import REGISTERED
from rmtllmf_jax.models import hub
from rmtllmf_jax.models.backbone import Backbone, describe_backbone
from rmtllmf_jax.models.configs import ModelConfig, config_file, published_config, read_config
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.decoder_configs import read_decoder_config
from rmtllmf_jax.models.shapes import CLIPShape, SiglipShape
from rmtllmf_jax.report.sheet import Sheet
from rmtllmf_jax.report.terminal import print_sheet
from rmtllmf_jax.runs import Run, SweepInputs, TextRunConfig
from rmtllmf_jax.runs.config import compute_dtype
from rmtllmf_jax.runs.environment import memory_of
from rmtllmf_jax.sweep.cost import clip_bytes, model_costs, row_length, tower_costs
from rmtllmf_jax.sweep.devices import (
    UTILISATION,
    Devices,
    Speed,
    described_devices,
    found_devices,
    named_devices,
)
from rmtllmf_jax.sweep.grid import Grid
from rmtllmf_jax.sweep.plan import Plan, plan
from rmtllmf_jax.sweep.plan_parts import Needed, TaskSize
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.parallel import Split
from rmtllmf_jax.training.recipes import RunRecipe

if TYPE_CHECKING:
    from rmtllmf_jax.cli.reproduce import Reproduce


def dry_run(options: Reproduce, settings: Settings, grid: Grid) -> None:
    """Print the plan of `rmtllmf reproduce`: at full size, if the images are not here to count.

    Exits with 1 if something that the run reads is missing on this machine, unless the plan is for
    another one.

    **Raises:** `InputError` if the model's sizes cannot be known without downloading it, or for a
    task that neither the registry nor the source knows.
    """
    machine = devices_of(options)
    training = _training(options, machine[0])
    if options.texts is not None:
        _show(_plan_of_texts(options, settings, grid, training), machine, options.json)
        return
    config = _config_of(options.model)
    auto = options.dtype == "auto" and options.elsewhere
    backbone = describe_backbone(
        Path(options.model),
        config,
        options.image_size,
        dtype="bfloat16" if auto else compute_dtype(options.dtype),
        remat=options.remat,
        normalised=False,  # the processor need not be here, and costs nothing
    )
    clip = None
    if config.text is not None:
        towers = config.towers(Path(options.model))
        clip = replace(towers, vision=backbone.module.shape)
    tasks = tuple(size_of_task(options, name) for name in options.tasks)
    numbers = plan(
        backbone,
        tasks,
        grid,
        settings,
        RunRecipe(
            recipe_of(options), prompts="single" if options.prompts == "single" else "ensemble"
        ),
        clip=clip,
        **training,
        needed=tuple(what_is_needed(options, backbone, clip, tasks)),
    )
    _show(numbers, machine, options.json)
    if options.source not in ("hub", "embedded") and not options.json:
        print("Images are counted as in the full sets of the registry; smaller sets take less.")
    if numbers.missing and not options.elsewhere:
        sys.exit(1)


def _training(options: Reproduce, devices: Devices) -> dict[str, Any]:
    """Return how the users are made, as `plan` takes it of images and of texts.

    **Raises:** `InputError` if the devices cannot share a batch, as fine-tuning would.
    """
    kind = "cpu" if devices.cpu else devices.kind
    there = devices.count if options.elsewhere else len(jax.local_devices())
    ready, split = (
        options.task_vectors is not None,
        Split(options.train_devices, options.accumulate),
    )
    return {
        "ready_vectors": ready,
        "lora": lora_of(options),
        "train_devices": 1 if ready else split.devices_of(options.batch_size, there, kind),
        "accumulate": options.accumulate,
        "validation_fraction": options.validation_fraction,
    }


def _plan_of_texts(
    options: Reproduce, settings: Settings, grid: Grid, training: dict[str, Any]
) -> Plan:
    """Return the plan of a run of texts, whose rows are tokenised to be counted."""
    config, names = configured(options)
    assert isinstance(config, TextRunConfig)
    directory = hub.local_directory(config.model)
    shape = read_decoder_config(directory / "config.json")
    auto = options.dtype == "auto" and options.elsewhere
    dtype = "bfloat16" if auto else config.dtype
    decoder = Decoder(replace(shape, dtype=dtype, remat=options.remat))
    size = model_costs(decoder, config.length).bytes
    return plan(
        decoder,
        tuple(map(_size_there, config.load_tasks(names, options.cache_dir))),
        grid,
        settings,
        RunRecipe(recipe_of(options)),
        **training,
        needed=(Needed("model", options.model, size, hub.in_cache(options.model)),),
        length=config.length,
    )


def sweep_dry_run(
    run: Run,
    inputs: SweepInputs,
    settings: Settings,
    grid: Grid,
    cells_at_once: int,
    machine: tuple[Devices, Speed | None],
    *,
    as_json: bool = False,
) -> None:
    """Print the plan of `rmtllmf sweep`, on the models and samples of its run folder."""
    numbers = plan(
        inputs.model,
        tuple(map(_size_there, inputs.data)),
        grid,
        settings,
        validation_fraction=run.config.validation_fraction,
        cells_at_once=cells_at_once,
        length=row_length(inputs),
    )
    _show(numbers, machine, as_json)


def _size_there(task: Any) -> TaskSize:
    """Return the size of a task of a run folder."""
    train, test = len(task.train) + len(task.validation), len(task.test)
    if isinstance(task, TaskData):
        return TaskSize(task.name, task.classes, train, test, task.test.split.images.shape[1])
    validation, each = len(task.validation), task.test.bytes_each()
    return TaskSize(task.name, ("",), train, test, validation=validation, bytes_each=each)


def devices_of(options: DryRunOptions) -> tuple[Devices, Speed | None]:
    """Return the devices that a plan is for, and the peaks of one if they are known."""
    if options.target is not None:
        return named_devices(options.target)
    if options.tflops is not None and options.memory is not None:
        return described_devices(options.tflops, options.memory)
    return found_devices(memory_of(jax.local_devices()[0]))


def _show(plan: Plan, machine: tuple[Devices, Speed | None], as_json: bool) -> None:
    (print_json if as_json else print_plan)(plan, *machine)


def _config_of(model: str) -> ModelConfig:
    """Return the configuration of a model that is on this machine, or known.

    **Raises:** `InputError` if it is neither.
    """
    if hub.in_cache(model):
        return read_config(config_file(hub.local_directory(model)))
    if (known := published_config(model)) is not None:
        return known
    raise InputError(
        f"{model}: not on this machine, and its sizes are not known; download it first, or name a "
        "directory."
    )


def size_of_task(options: Reproduce, name: str) -> TaskSize:
    """Return what is known of a task: by the registry, or by the source's own data.

    **Raises:** `InputError` if neither knows it.
    """
    chosen = hub_set(options.data) if options.source == "hub" else None
    if name in REGISTERED and options.source != "embedded" and chosen is None:
        return TaskSize.of(task_facts(name))
    for found in (chosen or {}).values():
        if not data_hub.in_cache(found):
            raise InputError(f"{found.id}: not on this machine, so its size is not known.")
    source = get_source(options.source, options.data, options.reading)
    require_known("task", name, source.tasks())
    return TaskSize(
        name, source.classes(name), source.size(name, "train"), source.size(name, "test")
    )


def images_needed(options: Reproduce, task: TaskSize) -> Needed:
    """Return where the images of a task come from, and whether they are on this machine."""
    what = f"images {task.name}"
    if options.source == "embedded":
        return Needed(what, "comes with the package", None, present=True)
    folder = None if options.data is None else Path(options.data)
    if options.source != "hub" and folder is not None:
        there = any(folder.glob(f"{task.name}*")) or folder.name == task.name
        return Needed(what, str(folder / task.name), None, there)
    chosen = hub_set(options.data) if options.source == "hub" else None
    found = task_facts(task.name).hub if chosen is None else chosen[task.name]
    where = found.id if found.config is None else f"{found.id} ({found.config})"
    here = options.source == "hub" and data_hub.in_cache(found, None if chosen else folder)
    return Needed(what, where, None, here)


def what_is_needed(
    options: Reproduce,
    backbone: Backbone,
    clip: CLIPShape | SiglipShape | None,
    tasks: tuple[TaskSize, ...],
) -> Iterator[Needed]:
    """Yield what a run reads: models (sizes from their parameters) and data sets."""
    tower = tower_costs(backbone).bytes
    whole = clip_bytes(clip) if clip else tower
    yield Needed("model", options.model, whole, hub.in_cache(options.model))
    for task in tasks if options.task_vectors == PUBLISHED else ():
        name = published(task.name)
        yield Needed(f"fine-tuned {task.name}", name, tower, hub.in_cache(name))
    for task in tasks:
        yield images_needed(options, task)


def _size(size: int | None) -> str:
    return "unknown" if size is None else decimal(size)


def print_plan(
    plan: Plan, devices: Devices, speed: Speed | None, console: Console | None = None
) -> None:
    """Print a plan: what it needs and writes, memory, work and hours on the devices found.

    `console` is standard output unless given; `speed` is of one device, `None` if not known.
    """
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
    print_as_json(found)


def plan_sheets(plan: Plan, speed: Speed | None) -> list[Sheet]:
    """Return the tables of a plan; hours are `-` where the speed is not known."""

    def hours(value: float) -> str:
        return f"{value:,.2f}" if value >= 0.01 else "< 0.01"

    protections = list(dict.fromkeys(name for found in plan.cells.values() for name in found))
    cells = [
        [scenario, *(f"{found.get(name, 0):,}" for name in protections)]
        for scenario, found in plan.cells.items()
    ]
    needed = [
        [item.what, item.where, _size(item.size), "yes" if item.present else "no"]
        for item in plan.needed
    ]
    files = [[file.what, file.where, _size(file.size)] for file in plan.files]
    written = [*files, ["together", "", _size(plan.disk)]]
    phases = {"fine-tuning": plan.training, "sweep": plan.sweep}
    memory = [
        [phase, part, _size(size)]
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


def plan_sentences(plan: Plan, devices: Devices, speed: Speed | None) -> Iterator[str]:
    """Yield what the tables rest on, and what stands in the way."""
    counts = [count for found in plan.cells.values() for count in found.values()]
    yield f"Grid: {sum(counts):,} cells."
    what = "Image tower" if plan.samples == "images" else "Language model"
    again = ", blocks rematerialised" if plan.remat else ""
    yield (
        f"{what}: {plan.parameters:,} parameters, {plan.forward_flops / 1e9:.3g} GFLOP per "
        f"{plan.samples.removesuffix('s')}, computed in {plan.dtype}{again}. "
        "Operations and memory are those of the programs' traces, before compilation."
    )
    yield _device_sentence(plan, devices, speed)
    less = f"Smaller batches, bfloat16 or fewer test {plan.samples} take less."
    phases = (
        ("Fine-tuning", plan.training, "--accumulate, --remat or bfloat16 take less."),
        ("The sweep", plan.sweep, less),
    )
    for phase, parts, remedy in phases:
        wanted = sum((parts or {}).values())
        if devices.memory is not None and wanted > devices.memory:
            yield (
                f"{phase} may not fit: about {_size(wanted)}, and a device has "
                f"{_size(devices.memory)}. {remedy}"
            )
    if plan.missing:
        names = ", ".join(item.where for item in plan.missing)
        yield f"Missing offline ({len(plan.missing)} of {len(plan.needed)}): {names}."
    elif plan.needed:
        yield "Nothing is missing offline."


def _device_sentence(plan: Plan, devices: Devices, speed: Speed | None) -> str:
    found = f"Devices: {devices.count} x {devices.kind}"
    if devices.memory is not None:
        found += f" with {_size(devices.memory)}"
    if speed is None:
        return f"{found}, whose speed is not known here: no hours. The operations are above."
    peak = speed.peak(plan.dtype) / 1e12
    train, forward = (f"{100 * UTILISATION[kind]:.0f} %" for kind in ("train", "forward"))
    most = max((work.devices for work in plan.work), default=1)
    shared = f", fine-tuning's of {most} that share every batch" if most > 1 else ""
    return (
        f"{found}. Hours are of one device at {peak:.3g} TFLOP/s ({speed.source}){shared}; "
        f"training is assumed to reach {train} of it and evaluation {forward}. Downloads and "
        "decoding come on top."
    )
