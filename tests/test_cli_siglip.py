"""The command with SigLIP: zero-shot heads, imported task vectors, evaluation, export, doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentencepiece")
from safetensors.numpy import load_file, save_file
from tiny_clip import write_users
from tiny_siglip import CONTEXT, VOCABULARY, write_siglip

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.configs import read_config
from rmtllmf_jax.models.siglip_tokens import tokenise_padded
from rmtllmf_jax.models.tokens import load_tokenizer
from rmtllmf_jax.runs import open_run
from rmtllmf_jax.sweep.cost import clip_bytes, text_costs

TASKS = ("mnist", "svhn")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    main([str(word) for word in words])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SigLIP, and two of its image towers that others fine-tuned."""
    return write_users(tmp_path_factory.mktemp("siglip"), write_siglip, TASKS)


def test_vectors_are_imported_evaluated_and_exported(
    models: Path, tiny_data: Path, cache_dir: Path, tmp_path: Path, capsys
):
    for task in TASKS:
        words = ["import-task-vector", models / "base", models / task, "--task", task]
        run(capsys, *words, "--out", tmp_path / "vectors")
    out = tmp_path / "run"
    words = ["finetune", "--model", models / "base", "--data", tiny_data, "--tasks", *TASKS]
    words += ["--task-vectors", tmp_path / "vectors", "--out", out, "--cache-dir", cache_dir]
    run(capsys, *words)
    manifest = json.loads((out / "finetuned.json").read_text())
    assert manifest["setting"]["head"] == "zero-shot"
    heads = {task: load_file(out / manifest["users"][task]["head"]) for task in TASKS}
    assert all(head.keys() == {"kernel", "bias"} for head in heads.values())
    opened = open_run(out, cache_dir=cache_dir)
    assert opened.heads is not None
    assert opened.heads.unit
    words = ["--quiet", "evaluate", out, "--cache-dir", cache_dir, "--json"]
    found = json.loads(run(capsys, *words))["tasks"]
    for task in TASKS:
        reached = opened.accuracies(opened.finetuned(task))[task]
        assert found[task]["score"] == pytest.approx(reached)
    run(capsys, "export", out, "--tasks", *TASKS, "--scale", 0.3, "--to", tmp_path / "m")
    towers = [load_file(models / name / "model.safetensors") for name in ("base", *TASKS)]
    merged = load_file(tmp_path / "m" / "model.safetensors")
    assert merged.keys() == towers[0].keys()
    for key, base in towers[0].items():
        tau = sum(tower[key] - base for tower in towers[1:])
        expected = base + 0.3 * tau if key.startswith("vision_model.") else base
        np.testing.assert_allclose(merged[key], expected, atol=2e-6, err_msg=key)
    pieces = "spiece.model"
    assert (tmp_path / "m" / pieces).read_bytes() == (models / "base" / pieces).read_bytes()
    words = ["--quiet", "evaluate", out, "--directory", tmp_path / "m", "--json"]
    again = json.loads(run(capsys, *words, "--cache-dir", cache_dir))["tasks"]
    assert {task: each["images"] for task, each in again.items()} == {
        task: each["images"] for task, each in found.items()
    }


def test_the_doctor_reads_both_towers(models: Path, tiny_data: Path, tmp_path: Path, capsys):
    model = write_siglip(tmp_path / "siglip")
    words = ["doctor", "--data", tiny_data, "--tasks", "mnist", "--model", model, "--json"]
    main([str(word) for word in words])
    assert "siglip" in capsys.readouterr().out
    tensors = load_file(model / "model.safetensors")
    del tensors["text_model.head.bias"]
    save_file(tensors, model / "model.safetensors")
    main([str(word) for word in words])
    assert "text_model/head/bias" in capsys.readouterr().out


def test_a_plan_counts_the_text_tower(models: Path):
    towers = read_config(models / "base" / "config.json").towers(models / "base")
    block = 4 * (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16) + 4 * 16
    text = (VOCABULARY + CONTEXT) * 16 + block + 2 * 16 + 16 * 16 + 16
    assert text_costs(towers.text).parameters == text
    held = load_file(models / "base" / "model.safetensors")
    assert clip_bytes(towers) == sum(tensor.nbytes for tensor in held.values())


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("missing", "no tokenizer; expected spiece.model or tokenizer.json"),
        ("damaged", "its tokenizer cannot be read"),
        ("package", "needs the package sentencepiece, which is not installed: pip install"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named(
    tmp_path: Path,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    said: str,
):
    model = write_siglip(tmp_path / "siglip")
    if broken == "missing":
        (model / "spiece.model").unlink()
    elif broken == "damaged":
        (model / "spiece.model").write_bytes(b"no model")
    else:
        monkeypatch.setitem(sys.modules, "sentencepiece", None)
    words = ["finetune", "--model", model, "--data", tmp_path, "--tasks", "mnist"]
    words += ["--out", tmp_path / "run"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())  # before images are looked for


def test_texts_that_cannot_be_read_are_named(models: Path):
    towers = read_config(models / "base" / "config.json").towers(models / "base")
    tokenizer = load_tokenizer(models / "base", towers.text)
    with pytest.raises(InputError, match=r"'a photo of a 猫' holds characters that the vocabulary"):
        tokenise_padded(["a cat", "a photo of a 猫"], tokenizer, CONTEXT)
    with pytest.raises(InputError, match=rf"has \d\d tokens; the model takes at most {CONTEXT}"):
        tokenise_padded(["photo cat dog " * 9], tokenizer, CONTEXT)
