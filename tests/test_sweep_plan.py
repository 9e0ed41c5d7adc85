"""The plan of a run: operations, parameters, memory, disk and hours, before anything is done."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import pytest
from cost_fixtures import B16, TINY, TINY_CLIP, TINY_TEXT, backbone_of, plain
from rich.console import Console

from rmtllmf_jax import fusion
from rmtllmf_jax.cli.main import main, parse
from rmtllmf_jax.cli.plan import devices_of, plan_sentences, print_plan, what_is_needed
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.tasks import TASK_NAMES
from rmtllmf_jax.fusion.scale import SUM_SCALES
from rmtllmf_jax.sweep.cost import lora_costs, text_costs, tower_costs
from rmtllmf_jax.sweep.devices import (
    Devices,
    Speed,
    described_devices,
    known_speed,
    named_devices,
)
from rmtllmf_jax.sweep.grid import Grid, choose_combinations
from rmtllmf_jax.sweep.memory import training_memory
from rmtllmf_jax.sweep.plan import Plan, plan
from rmtllmf_jax.sweep.plan_parts import Needed, TaskSize, Work
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.lora import Lora
from rmtllmf_jax.training.recipes import RUN_RECIPES, Recipe, RunRecipe
from rmtllmf_jax.uplink import Analogue, Shrink

# The plan


def tiny_task(name: str, classes: int, train: int, test: int, pixels: int | None) -> TaskSize:
    names = tuple(f"class {index}" for index in range(classes))
    prompts = ("a {}", "the {}")
    return TaskSize(name, names, train, test, pixels, prompts)


TASKS = (tiny_task("dtd", 3, 20, 11, None), tiny_task("mnist", 2, 40, 8, 2))
RECIPE = RunRecipe(Recipe(5, 6, 1e-5, 0.1), image_size=4)
SETTINGS = Settings(eval_batch_size=4, shots=2, realign=Recipe(3, 8, 1e-5, 0.0))
GRID = Grid((("dtd", "mnist"),), ("clean", "ideal"), ("none", "r-mtllmf", "control"), 2, 2)


TOWER = tower_costs(backbone_of(TINY))
FORWARD, TRAIN = TOWER.flops(), TOWER.flops(training=True)


def tiny_plan(**changes: Any) -> Plan:
    arguments = {"model": backbone_of(TINY), "clip": TINY_CLIP, "tasks": TASKS, "grid": GRID}
    return plan(**{**arguments, "settings": SETTINGS, "made_by": RECIPE, **changes})


def amounts(result: Plan) -> dict[str, tuple[int, float]]:
    return {work.what: (work.count, work.amount) for work in result.work}


def test_work_of_a_tiny_plan_by_hand():
    result = tiny_plan()
    # clean: one draw; none once, the others for each of two seeds. ideal: two draws, two seeds.
    assert result.cells == {
        "clean": {"none": 1, "r-mtllmf": 2, "control": 2},
        "ideal": {"none": 4, "r-mtllmf": 4},
    }
    forward, text = FORWARD, text_costs(TINY_TEXT).flops()
    padded = 12 + 8  # test images of both tasks in batches of four
    assert amounts(result) == {
        "heads": (10, 10 * text),
        "fine-tuning": (2 * 5 * 6, 60 * TRAIN),
        "validation of the users": (2 * (2 + 4), 12 * forward),
        "merging": (5 + 6, 11 * (2 * 2 + 2) * 4 * 260),
        "realignment": ((6 + 2) * 3 * 8, 192 * TRAIN),
        "evaluation": (13 * padded, 13 * padded * forward),
        "base and fine-tuned models": (2 * padded, 2 * padded * forward),
    }
    assert result.flops == 10 * text + (12 + 260 + 40) * forward + (60 + 192) * TRAIN
    assert result.parameters == 260


def test_files_of_a_tiny_plan_by_hand():
    result = tiny_plan()
    assert [(file.what, file.where, file.size) for file in result.files] == [
        ("images dtd", "cache", 31 * 4 * 4 * 3),
        ("images mnist", "cache", 48 * 2 * 2 * 3),
        ("heads", "run", 4 * (2 * 4 * 3 + (3 + 1) * 5)),
        ("fine-tuned models", "run", 2 * 4 * 260),
        ("training state, while it runs", "run", 3 * 3 * 4 * 260),
    ]
    assert result.disk == 1488 + 576 + 176 + 2080 + 9360


def test_memory_of_a_tiny_plan_by_hand():
    result = tiny_plan()
    assert result.training == training_memory(TOWER, RECIPE.finetune)
    assert result.sweep["test images"] == 12 * 48 + 8 * 12
    assert result.sweep["few-shot pool"] == 2 * 5 * 48
    assert "busiest step: realigning" in result.sweep


def test_ready_vectors_leave_out_training():
    result = tiny_plan(ready_vectors=True)
    assert result.training is None
    assert "fine-tuning" not in amounts(result)
    assert "training state, while it runs" not in [file.what for file in result.files]
    assert result.flops == tiny_plan().flops - 60 * TRAIN


def test_a_lora_keeps_and_trains_its_factors_alone():
    lora = Lora(2, targets=("q_proj",))
    result, factors = tiny_plan(lora=lora), 4 * 2 * 2 * 4  # a and b of one layer of width 4
    assert result.training == training_memory(lora_costs(TOWER, lora), RECIPE.finetune)
    sizes = {file.what: file.size for file in result.files}
    assert sizes["fine-tuned models"] == 2 * factors
    assert sizes["training state, while it runs"] == 3 * 3 * factors
    assert result.sweep == tiny_plan().sweep  # the sweep is of whole vectors


def test_devices_and_parts_share_the_batch_of_fine_tuning():
    result = tiny_plan(train_devices=2, accumulate=3)
    assert result.training == training_memory(TOWER, RECIPE.finetune, devices=2, parts=3)
    assert "gradients and activations, batch 1" in result.training
    assert amounts(result) == amounts(tiny_plan())  # the work is the same, on more devices
    speed = Speed(4e12, 1e12, 1e11)
    saved = tiny_plan().hours(speed) - result.hours(speed)
    assert saved == pytest.approx(60 * TRAIN / 0.4e12 / 2 / 3600)
    assert "fine-tuning's of 2 that share" in printed(result, H100, known_speed(H100.kind), 999)


def test_the_single_prompt_makes_fewer_texts():
    result = tiny_plan(made_by=replace(RECIPE, prompts="single"))
    assert amounts(result)["heads"][0] == 5


def test_a_plain_vits_heads_come_from_training_images():
    result = tiny_plan(model=plain(TINY), clip=None)
    assert amounts(result)["heads"] == (18 + 36, 54 * FORWARD)


def test_no_realignment_needs_no_shots():
    result = tiny_plan(grid=replace(GRID, protections=("none", "freeze")))
    assert "realignment" not in amounts(result)
    assert result.sweep["few-shot pool"] == 0


def test_the_scale_on_validation_images_is_counted():
    result = amounts(tiny_plan(settings=replace(SETTINGS, scale="validation")))
    padded = 2 + 4  # two and four validation images in batches of two
    assert result["choice of the scale"][0] == len(SUM_SCALES) * padded + padded
    assert result["merging"][0] == 11 + len(SUM_SCALES)


def test_what_merge_methods_look_at_is_counted():
    """18 and 36 training images, 11 merges of each rule, one block of width 4 and 8."""
    rules = (fusion.AdaMerging(steps=3, batch_size=4), fusion.RegMean(), fusion.Fisher())
    settings = replace(SETTINGS, statistics_samples=20)
    result = tiny_plan(grid=replace(GRID, rules=rules), settings=settings)
    seen, learned = 18 + 20, 11 * 3 * 4
    found = amounts(result)
    assert found["inputs of layers"] == (seen, seen * FORWARD)
    assert found["Fisher information"] == (seen, seen * TRAIN)
    assert found["learning to merge"] == (learned, learned * TRAIN)
    grams, information, images = 5 * 4**2 + 8**2, 260, (11 + 8) * 4 * 4 * 3
    vector = 4 * information  # in float32, as merged: it serves every coefficient
    need = 2 * 4 * (grams + information) + images + vector
    assert result.sweep["what merge methods need"] == need
    summed = tiny_plan(grid=replace(GRID, rules=(fusion.Dare(), fusion.TaskArithmetic())))
    assert summed.sweep["what merge methods need"] == vector
    assert "what merge methods need" not in tiny_plan().sweep
    chosen = replace(settings, scale="validation")
    one = amounts(tiny_plan(grid=replace(GRID, rules=rules[:1]), settings=chosen))
    assert one["learning to merge"][0] == learned + 3 * 4


def test_symbols_are_sent_once_per_channel_and_seed():
    result = amounts(tiny_plan(settings=replace(SETTINGS, transport="analogue")))
    assert result["sending"] == (4, 4 * 130 * 8 * (3 * 16 + 4 * 8))  # two parameters a symbol
    assert "sending" not in amounts(tiny_plan())


def test_protections_that_send_by_themselves_do_so_once_per_channel_and_seed():
    protections = ("none", "phy", "holistic", (Shrink(),), (Analogue(), "freeze"))
    result = amounts(tiny_plan(grid=replace(GRID, protections=protections)))
    assert result["sending"] == (4, 4 * 130 * 8 * (3 * 16 + 4 * 8))
    count, moved = result["encoding and estimating"]  # the code of phy and holistic is one
    assert count == 2 * 4
    assert moved % (count * 260 * 4) == 0


def test_a_subset_of_the_test_images_is_counted():
    result = amounts(tiny_plan(settings=replace(SETTINGS, eval_samples=4)))
    assert result["evaluation"][0] == 13 * 8


def test_a_task_of_the_grid_must_be_among_the_tasks():
    with pytest.raises(InputError, match=r"the grid has mnist, and the plan's tasks are dtd\."):
        tiny_plan(tasks=TASKS[:1])


@cache
def paper_plan(dtype: str = "float32") -> Plan:
    tasks = tuple(TaskSize.of(task_facts(name)) for name in TASK_NAMES)
    scenarios = ("clean", "ideal", "strongest_user", "sum_rate")
    protections = ("none", "freeze", "realign", "r-mtllmf", "control")
    grid = Grid(choose_combinations(TASK_NAMES, None, 0), scenarios, protections, 1, 1)
    settings = Settings(realign=RUN_RECIPES["paper"].realign)
    backbone = backbone_of(replace(B16.vision, dtype=dtype))
    return plan(backbone, tasks, grid, settings, RUN_RECIPES["paper"], clip=B16)


def test_the_papers_experiment_in_numbers():
    result = paper_plan()
    counts = [count for found in result.cells.values() for count in found.values()]
    assert sum(counts) == 247 * (5 + 3 * 4)
    work = amounts(result)
    assert work["fine-tuning"][0] == 8 * 2000 * 128
    assert work["heads"][0] == 397 * 2 + 196 * 8 + 45 * 18 + 10 * 3 + 10 + 43 * 3 + 10 + 47 * 8
    # Every task is in 127 of the 247 combinations; 87,433 test images, batches of 128.
    padded = 8064 + 1920 + 2816 + 12672 + 10112 + 6400 + 19968 + 26112
    assert work["evaluation"][0] == 127 * 17 * padded
    sizes = {file.what: file.size for file in result.files}
    assert sizes["images sun397"] == 39_700 * 224 * 224 * 3
    assert sizes["images mnist"] == 70_000 * 28 * 28 * 3
    assert sizes["fine-tuned models"] == 8 * 85_799_424 * 4
    assert result.sweep["few-shot pool"] == 7580 * 224 * 224 * 3


# Devices


def test_hours_by_hand():
    speed = Speed(bfloat16=4e12, float32=1e12, bandwidth=1e11)
    assert Work("x", 1, "images", 0.4 * 3.6e15, "train").hours(speed, "float32") == 1
    assert Work("x", 1, "images", 0.5 * 3.6e15, "forward").hours(speed, "bfloat16") == 0.25
    assert Work("x", 1, "models", 0.5 * 3.6e14, "memory").hours(speed, "bfloat16") == 1
    result = tiny_plan()
    train = (60 + 192) * TRAIN / 0.4e12
    forward = (10 * text_costs(TINY_TEXT).flops() + (12 + 260 + 40) * FORWARD) / 0.5e12
    moved = 11 * 6 * 4 * 260 / 0.5e11
    assert result.hours(speed) == pytest.approx((train + forward + moved) / 3600)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla V100-SXM2-16GB", 15.7e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_known_devices_have_the_peaks_of_their_data_sheets(kind: str, peak: float):
    speed = known_speed(kind)
    assert speed is not None
    assert speed.peak("bfloat16") == peak
    assert speed.source == "by its data sheet"


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "TPU v4 lite",
        "TPU v7",
    ],
)
def test_an_unknown_device_is_not_guessed(kind: str):
    assert known_speed(kind) is None


@pytest.mark.parametrize(
    ("name", "count", "memory"),
    [("h100", 1, 80), ("a100-40gb-2", 2, 40), ("rtx-4090", 1, 24), ("tpu-v5e-8", 8, 16)],
)
def test_machines_by_name(name: str, count: int, memory: int):
    devices, _ = named_devices(name)
    assert (devices.count, devices.memory) == (count, memory * 10**9)


def test_a_slice_counts_cores_where_chips_have_two():
    assert named_devices("v5p-8") == named_devices("tpu-v5p-8")
    assert named_devices("v5p-8")[0].count == 4
    with pytest.raises(InputError, match="--for v4-7: a slice of tpu-v4 counts cores"):
        named_devices("v4-7")


def test_a_machine_as_described():
    devices, speed = described_devices(50.0, 24.0)
    assert (devices.memory, speed.peak("float32")) == (24_000_000_000, 5e13)
    with pytest.raises(InputError, match="--memory must be a positive number, got -1"):
        described_devices(50.0, -1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dry-run", "--for", "h101"], "unknown device 'h101' of --for. Known: h200"),
        (["--dry-run", "--tflops", "5"], "--tflops and --memory go together"),
        (["--dry-run", "--for", "h100", "--tflops", "5", "--memory", "8"], "not both"),
        (["--for", "h100"], "--for needs --dry-run"),
        (["--json"], "--json needs --dry-run"),
    ],
)
@pytest.mark.parametrize("command", [["reproduce", "demo"], ["sweep"]])
def test_options_of_a_dry_run_that_do_not_go_together(
    command: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main([*command, "--out", "nowhere", *words])
    assert message in capsys.readouterr().err


def test_a_cpu_is_found_and_measured():
    devices, speed = devices_of(FROM_HUB)
    assert (devices.kind, devices.cpu) == ("cpu", True)
    assert devices.count == jax.device_count()
    assert devices.memory is not None
    assert devices.memory > 1e9
    assert speed is not None
    assert "measured just now" in speed.source
    assert 1e8 < speed.float32 < 1e14
    assert 1e8 < speed.bandwidth < 1e13


# Printing


def printed(result: Plan, devices: Devices, speed: Speed | None, width: int = 200) -> str:
    stream = io.StringIO()
    print_plan(result, devices, speed, Console(file=stream, width=width))
    return stream.getvalue()


H100 = Devices("NVIDIA H100 80GB HBM3", 2, 60_000_000_000)


FROM_HUB: Any = parse(["reproduce", "paper", "--out", "run"])


def paper_needs(*words: str) -> tuple[Needed, ...]:
    """Return what the paper's run needs where MNIST alone is here."""
    options: Any = parse(["reproduce", "paper", "--out", "run", *words])
    tasks = tuple(TaskSize.of(task_facts(name)) for name in TASK_NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmtllmf_jax.models.hub.in_cache", lambda name: False)
        patch.setattr("rmtllmf_jax.data.sources.hub.in_cache", lambda hub, _: "mnist" in hub.id)
        return tuple(what_is_needed(options, backbone_of(B16.vision), B16, tasks))


def test_what_is_needed_names_models_and_data_sets():
    needed = paper_needs()
    assert needed[0].where == "openai/clip-vit-base-patch16"
    assert needed[0].size == 4 * 149_620_737
    assert {item.what: item.where for item in needed[1:]}["images svhn"] == (
        "ufldl-stanford/svhn (cropped_digits)"
    )
    assert [item.what for item in needed if item.present] == ["images mnist"]
    ready = paper_needs("--task-vectors", "tanganke")
    assert len(ready) == 1 + 8 + 8
    names = {item.what: item for item in ready}
    assert names["fine-tuned cars"].where == "tanganke/clip-vit-base-patch16_stanford-cars"
    assert names["fine-tuned cars"].size == 4 * 85_799_424


def test_a_printed_plan_holds_its_numbers():
    text = printed(
        replace(paper_plan("bfloat16"), needed=paper_needs()), H100, known_speed(H100.kind)
    )
    for number in (
        "85,799,424 parameters",
        "32.7 GFLOP per image",
        "Grid: 4,199 cells.",
        "2,048,000",  # images of fine-tuning
        "598.5 MB",  # the download of CLIP
        "6.0 GB",  # decoded images of SUN397
        "2.7 GB",  # eight models
        "16.6 GB",  # activations of fine-tuning
        "2 x NVIDIA H100 80GB HBM3 with 60.0 GB",
        "989 TFLOP/s (by its data sheet)",
        "training is assumed to reach 40 % of it and evaluation 50 %",
        "Missing offline (8 of 9): openai/clip-vit-base-patch16, tanganke/stanford_cars",
        "computed in bfloat16.",
    ):
        assert number in text, number
    rows = [line.split() for line in text.splitlines()]
    assert ["clean", *["247"] * 5] in rows
    assert ["strongest_user", *["247"] * 4, "0"] in rows
    assert "may not fit" not in text


def test_a_narrow_terminal_loses_no_number():
    text = printed(paper_plan(), H100, known_speed(H100.kind), width=60)
    assert "2,048,000" in text
    assert "6.0 GB" in text


def test_an_unknown_device_gets_operations_and_no_hours():
    result = tiny_plan()
    text = printed(result, Devices("Abacus 9000", 1, None), None)
    assert "Abacus 9000, whose speed is not known here: no hours" in text
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("fine-tuning")]
    assert rows[-1][-1] == "-"


def test_a_measured_speed_is_said_to_be_one():
    speed = Speed(1e11, 1.5e11, 1e10, "measured just now on a matrix product")
    sentences = " ".join(plan_sentences(tiny_plan(), Devices("cpu", 1, None, True), speed))
    assert "0.15 TFLOP/s (measured just now on a matrix product)" in sentences


def test_too_little_memory_is_said():
    small = Devices("NVIDIA H100 80GB HBM3", 1, 16_000_000_000)
    text = " ".join(plan_sentences(paper_plan(), small, known_speed(small.kind)))
    assert "Fine-tuning may not fit: about" in text
    assert "The sweep may not fit: about" in text
    assert "a device has 16.0 GB" in text


def test_nothing_missing_is_said():
    result = replace(
        paper_plan(), needed=tuple(replace(each, present=True) for each in paper_needs())
    )
    assert "Nothing is missing offline." in list(plan_sentences(result, H100, None))


@pytest.mark.parametrize("there", [False, True])
def test_a_dry_run_fails_where_images_are_missing(tmp_path: Path, capsys, there: bool):
    for task in ("mnist", "dtd") if there else ("mnist",):
        (tmp_path / task).mkdir()
    words = ["reproduce", "demo", "--out", "run", "--source", "folder", "--data", str(tmp_path)]
    words += ["--tasks", "mnist", "dtd", "--combinations", "all", "--sizes", "2", "--dry-run"]
    with nullcontext() if there else pytest.raises(SystemExit, match="1"):
        parse(words).run()
    said = "Nothing is missing" if there else f"Missing offline (1 of 3): {tmp_path / 'dtd'}"
    assert "".join(said.split()) in "".join(capsys.readouterr().out.split())
    parse([*words, "--for", "h100"]).run()  # where nobody knows what there is


@pytest.mark.parametrize(
    ("words", "devices", "batch"),
    [
        ((), 1, 64),
        (("--accumulate", "4"), 1, 16),
        (("--for", "h100-8", "--accumulate", "2"), 8, 4),
        (("--for", "h100-8", "--train-devices", "4"), 4, 16),
    ],
)
def test_a_dry_run_shares_batches_as_fine_tuning_does(
    words: tuple[str, ...], devices: int, batch: int, capsys: pytest.CaptureFixture[str]
):
    parse(["reproduce", "demo", "--out", "run", "--dry-run", "--json", *words]).run()
    found = json.loads(capsys.readouterr().out)
    assert f"gradients and activations, batch {batch}" in found["training"]
    shared = {work["what"]: work["devices"] for work in found["work"] if work["devices"] > 1}
    assert shared == ({"fine-tuning": devices} if devices > 1 else {})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--accumulate", "3"), "--batch-size 64 is not a multiple of 1 devices"),
        (
            ("--for", "h100-8", "--train-devices", "9"),
            r"--train-devices 9: a process sees 8 \(h100",
        ),
    ],
)
def test_a_dry_run_refuses_what_fine_tuning_would(words: tuple[str, ...], message: str):
    with pytest.raises(InputError, match=message):
        parse(["reproduce", "demo", "--out", "run", "--dry-run", *words]).run()


def test_a_dry_run_counts_tasks_that_the_registry_does_not_know(capsys):
    words = ["reproduce", "demo", "--out", "run", "--dry-run", "--json"]
    parse([*words, "--tasks", "counts", "digits", "--combinations", "all"]).run()
    found = json.loads(capsys.readouterr().out)
    images = [each for each in found["needed"] if each["what"].startswith("images")]
    assert [each["where"] for each in images] == ["comes with the package"] * 2
    assert all(each["present"] for each in found["needed"])
    kept = next(each["size"] for each in found["files"] if each["what"] == "images digits")
    assert kept == (1000 + 300) * 32 * 32 * 3
