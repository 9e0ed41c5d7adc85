"""The command with CLIP: zero-shot heads, imported task vectors, export, presets, dry run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import command
from safetensors.numpy import load_file, save_file
from tiny_clip import write_clip, write_users

from rmtllmf_jax.cli.main import main, parse
from rmtllmf_jax.cli.options import taken
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.runs.config import configure
from rmtllmf_jax.training.recipes import DEMO, RUN_RECIPES

TASKS = ("mnist", "svhn")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run the command in this process and return what it printed."""
    main([str(word) for word in words])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, and two of its image towers that others fine-tuned."""
    return write_users(tmp_path_factory.mktemp("clip"), write_clip, TASKS)


@pytest.fixture(scope="module")
def vectors(models: Path) -> Path:
    for task in TASKS:
        words = ["import-task-vector", models / "base", models / task, "--task", task]
        main([str(word) for word in (*words, "--out", models / "vectors")])
    return models / "vectors"


@pytest.fixture(scope="module")
def finished_run(
    models: Path, vectors: Path, tiny_data: Path, cache_dir: Path, tmp_path_factory
) -> Path:
    """The whole job on imported task vectors, through the installed command."""
    out = tmp_path_factory.mktemp("clip-run") / "run"
    words = ["reproduce", "paper", "--model", models / "base", "--source", "folder"]
    words += ["--data", tiny_data, "--task-vectors", vectors, "--tasks", *TASKS, "--image-size", 16]
    words += ["--realign-steps", 3, "--realign-batch-size", 4, "--shots", 2, "--out", out]
    words += ["--cache-dir", cache_dir, "--eval-batch-size", 16, "--validation-fraction", 0.2]
    words += ["--scenarios", "clean", "sum_rate", "--protections", "none", "r-mtllmf"]
    done = subprocess.run(command(*words), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_an_imported_vector_is_the_difference_of_the_towers(models: Path, vectors: Path):
    tensors = load_file(vectors / "mnist.safetensors")
    before, after = (load_file(models / name / "model.safetensors") for name in ("base", "mnist"))
    key = "encoder/layers/0/self_attn/q_proj/kernel"
    name = f"vision_model.{key.replace('/', '.').replace('kernel', 'weight')}"
    np.testing.assert_allclose(tensors[key], (after[name] - before[name]).T, atol=1e-7)
    assert len(tensors) == len([key for key in before if key.startswith("vision_model.")])
    assert not any("text" in key or "projection" in key for key in tensors)


@pytest.mark.slow
def test_the_whole_job_runs_on_imported_vectors(finished_run: Path, models: Path):
    results = pd.read_parquet(finished_run / "results.parquet")
    assert set(results["task"]) == set(TASKS)
    assert set(results["scenario"]) == {"clean", "sum_rate"}
    manifest = json.loads((finished_run / "finetuned.json").read_text())
    assert manifest["setting"]["head"] == "zero-shot"
    for task in TASKS:
        record = manifest["users"][task]
        assert record["recipe"]["imported"] == str(models / task)
        assert "zero-shot" in record["head"]
        tower = load_file(finished_run / record["finetuned"])
        _, expected = load_backbone(models / task)
        np.testing.assert_allclose(
            tower["encoder/layers/0/mlp/fc1/kernel"],
            expected["encoder"]["layers"]["0"]["mlp"]["fc1"]["kernel"],
            atol=1e-6,
        )


@pytest.mark.slow
def test_an_exported_merge_is_base_plus_scaled_sum(
    finished_run: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    printed = run(
        capsys, "export", finished_run, "--tasks", *TASKS, "--scale", 0.3, "--to", tmp_path / "m"
    )
    assert "base + 0.3 * (mnist + svhn)" in printed
    towers = [load_file(models / name / "model.safetensors") for name in ("base", *TASKS)]
    merged = load_file(tmp_path / "m" / "model.safetensors")
    for key, base in towers[0].items():
        tau = sum(tower[key] - base for tower in towers[1:])
        expected = base + 0.3 * tau if key.startswith("vision_model.") else base
        np.testing.assert_allclose(merged[key], expected, atol=2e-6, err_msg=key)
    assert (tmp_path / "m" / "merges.txt").is_file()
    run(capsys, "export", finished_run, "--tasks", "svhn", "--to", tmp_path / "one")
    key = "vision_model.post_layernorm.bias"
    np.testing.assert_allclose(
        load_file(tmp_path / "one" / "model.safetensors")[key], towers[2][key], atol=1e-6
    )
    error = refused(capsys, "export", finished_run, "--tasks", "svhn", "--to", tmp_path / "one")
    assert "exists already" in error


def test_fine_tuning_under_zero_shot_heads(
    models: Path, tiny_data: Path, cache_dir: Path, tmp_path: Path, capsys
):
    words = ["finetune", "--model", models / "base", "--data", tiny_data, "--tasks", "mnist"]
    words += ["--image-size", 16, "--steps", 3, "--batch-size", 4, "--out", tmp_path / "run"]
    printed = run(capsys, *words, "--cache-dir", cache_dir, "--prompts", "single", "--remat")
    assert "mnist: validation accuracy" in printed
    (head,) = (tmp_path / "run" / "heads").iterdir()
    tensors = load_file(head)
    assert tensors["projection"].shape == (16, 12)
    assert tensors["kernel"].shape == (12, 2)


# What is refused


def test_another_architecture_is_refused_leaf_by_leaf(
    models: Path, tiny_model: Path, tmp_path: Path, capsys
):
    write_clip(tmp_path / "wide", intermediate_size=24)
    error = refused(
        capsys, "import-task-vector", models / "base", tmp_path / "wide", "--task", "dtd"
    )
    assert "is not of the architecture of" in error
    assert "misshapen: encoder/layers/0/mlp/fc1/kernel is (16, 24), expected (16, 32)" in error
    deep = write_clip(tmp_path / "deep", num_hidden_layers=2)
    error = refused(capsys, "import-task-vector", models / "base", deep, "--task", "dtd")
    assert "unexpected: encoder/layers/1/layer_norm1/bias" in error
    error = refused(capsys, "import-task-vector", models / "base", tiny_model, "--task", "dtd")
    assert "a vit model, and" in error
    words = ["import-task-vector", models / "base", "tanganke", "--task", "flowers"]
    assert "unknown task 'flowers'" in refused(capsys, *words, "--out", tmp_path)


@pytest.mark.parametrize("config", [True, False])
def test_an_adapter_is_no_model(models: Path, tmp_path: Path, capsys, config: bool):
    """With its configuration, or with factors among whole weights, as trainers save both."""
    adapter = write_clip(tmp_path / "adapter")
    if config:
        (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    else:
        tensors = load_file(adapter / "model.safetensors")
        key = next(key for key in tensors if key.endswith("q_proj.weight"))
        factor = {key.replace("weight", "lora_A.weight"): tensors[key][:2]}
        save_file(tensors | factor, adapter / "model.safetensors")
    words = ["--task", "dtd", "--out", tmp_path / "out"]
    for pair in ([models / "base", adapter], [adapter, models / "base"]):
        error = refused(capsys, "import-task-vector", *pair, *words)
        assert f"{adapter}: an adapter (LoRA or similar: " in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        ("of another base", "mnist.safetensors: a task vector of another base model"),
        ("damaged", "mnist.safetensors: damaged, its content is not what its checksum says"),
        ("missing", "dtd.safetensors: no such file; make it with `rmtllmf import-task-vector"),
        ("a model", "not a task vector that `rmtllmf import-task-vector` wrote"),
    ],
)
def test_vectors_that_cannot_be_used(
    models: Path,
    vectors: Path,
    tiny_data: Path,
    cache_dir: Path,
    tmp_path: Path,
    capsys,
    vector: str,
    said: str,
):
    """Before any image is looked for, but for a checksum: there is none."""
    folder = Path(shutil.copytree(vectors, tmp_path / "vectors"))
    path, base = folder / "mnist.safetensors", models / "base"
    if vector == "of another base":
        base = write_clip(tmp_path / "other", seed=9)
    elif vector == "damaged":
        content = bytearray(path.read_bytes())
        content[-4] ^= 1
        path.write_bytes(content)
    elif vector == "a model":
        shutil.copy(base / "model.safetensors", path)
    data = tiny_data if vector == "damaged" else tmp_path / "nowhere"
    tasks = ["mnist", "dtd"] if vector == "missing" else ["mnist"]
    words = ["finetune", "--model", base, "--data", data, "--out", tmp_path / "run"]
    words += ["--tasks", *tasks, "--task-vectors", folder, "--cache-dir", cache_dir]
    assert said in refused(capsys, *words)


def test_zero_shot_heads_need_a_text_tower(tiny_model: Path, tiny_data: Path, tmp_path, capsys):
    words = ["finetune", "--model", tiny_model, "--data", tiny_data, "--out", tmp_path / "run"]
    error = refused(capsys, *words, "--head", "zero-shot")
    assert "--head zero-shot needs a text tower" in error
    error = refused(capsys, *words, "--head-shots", "1")
    assert "shots of an lda head must be at least 2, got 1" in error
    error = refused(capsys, *words, "--head", "zero-shot", "--head-shots", "5")
    assert (
        "--head-shots belongs to --head lda: leave it out, or write --head 'lda(shots=5)'" in error
    )
    error = refused(capsys, *words, "--head", "prob")
    assert "unknown --head 'prob'. Did you mean 'probe'?" in error
    error = refused(capsys, *words, "--head", "lda=1")
    assert "shots of an lda head must be at least 2, got 1" in error
    assert not list((tmp_path / "run").glob("heads/*"))


def test_the_earlier_spelling_of_a_head_of_few_shots(capsys):
    words = ["finetune", "--model", "clip-mini", "--data", "d", "--out", "o"]
    for given in (["--head-shots", "5"], ["--head", "lda", "--head-shots=5"]):
        assert parse([*words, *given]).head == "lda(shots=5)"
        assert "--head-shots is now --head 'lda(shots=5)'" in capsys.readouterr().out
    assert parse([*words, "--head", "lda"]).head == "lda"


def test_a_clip_without_its_tokenizer_is_refused(
    tiny_data: Path, cache_dir: Path, tmp_path: Path, capsys
):
    model = write_clip(tmp_path / "clip")
    (model / "merges.txt").unlink()
    words = ["finetune", "--model", model, "--data", tiny_data, "--tasks", "mnist"]
    words += ["--image-size", 16, "--out", tmp_path / "run", "--cache-dir", cache_dir]
    assert "merges.txt" in refused(capsys, *words)


# Presets and the plan


def test_images_are_the_models_own_where_no_option_says_more(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(models)
    words = ["finetune", "--model", "base", "--data", "~/images", "--out", "o"]

    def config_of(*changes: str):
        return configure(**taken(parse([*words, *changes]), configure))

    setting = config_of()
    assert (setting.image_size, setting.fit, setting.resample) == (16, "crop", "bicubic")
    assert setting.model == str(models / "base")
    assert setting.data == str(Path.home() / "images")
    model = Path(shutil.copytree(models / "base", tmp_path / "model"))
    said = {"size": {"height": 16, "width": 16}, "do_center_crop": False, "resample": 2}
    (model / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    own = config_of("--model", str(model))
    assert (own.fit, own.resample, own.tower) == ("squash", "bilinear", setting.tower)
    chosen = config_of("--image-size", "24", "--fit", "crop")
    assert (chosen.image_size, chosen.fit) == (24, "crop")
    bare = config_of("--no-normalise")
    assert len({each.tower for each in (setting, chosen, bare)}) == 3


@pytest.mark.parametrize("name", [*RUN_RECIPES, "demo"])
def test_a_preset_sets_the_defaults_and_options_win(name: str):
    options = parse(["reproduce", name, "--out", "o", "--steps", "7"])
    preset = DEMO if name == "demo" else RUN_RECIPES[name]
    assert (options.model, options.source, options.steps) == (preset.model, preset.source, 7)
    assert (options.tasks, options.image_size) == (preset.tasks, preset.image_size)
    assert options.batch_size == preset.finetune.batch_size
    assert options.clip_norm == preset.finetune.clip_norm
    assert options.warmup == preset.finetune.warmup
    assert (options.fit, options.normalise) == (preset.fit, preset.normalise)
    assert options.prompts == preset.prompts
    assert options.realign_steps == preset.realign.steps


def test_the_channel_preset_of_that_name_is_none():
    words = ["reproduce", "vit-tiny", "--preset", "paper", "--model", "m", "--out", "o"]
    assert (parse(words).source, parse(words).image_size) == ("folder", 64)
    assert parse(["reproduce", "--out", "paper", "peta"]).fit == "squash"
    assert parse(["reproduce", "--quick", "paper", "--out", "o"]).steps == 100


def offline(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `reproduce paper` with an empty hub cache and no network."""
    variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "COLUMNS": "120"}
    line = command("reproduce", "paper", "--out", tmp_path / "run", *words)
    return subprocess.run(
        line, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120
    )


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path):
    done = offline(tmp_path, "--dry-run")
    assert done.returncode == 1, done.stderr  # nothing of it is here
    for expected in (
        "openai/clip-vit-base-patch16",
        "tanganke/sun397",
        "85,799,424 parameters",
        "4,199 cells",
        "fine-tuned models",
        "Missing offline (9 of 9)",
    ):
        assert expected in done.stdout, expected
    assert not (tmp_path / "run").exists()


def test_without_a_network_the_paper_says_what_is_missing(tmp_path: Path):
    done = offline(tmp_path)
    assert done.returncode == 2
    assert "openai/clip-vit-base-patch16: not in the local hub cache" in done.stderr
    assert "Traceback" not in done.stderr
