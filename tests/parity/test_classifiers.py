"""Exported classifiers in transformers' pipeline: our labels, probabilities and accuracy."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import transformers
from conftest import TINY_CONFIG, write_model
from PIL import Image
from tiny_clip import write_clip
from tiny_siglip import write_siglip
from transformers.utils import hub as transformers_hub

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.models.classifier import read_classifier
from rmtllmf_jax.models.pretrained import read_pretrained
from rmtllmf_jax.runs import open_run


def run(*words: object) -> None:
    main([str(word) for word in words])


def images_of(task: Path) -> tuple[list[Image.Image], list[int]]:
    table = pq.read_table(task / "test.parquet")
    images = [Image.open(io.BytesIO(each)) for each in table["image"].to_pylist()]
    return images, table["label"].to_pylist()


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A CLIP and a ViT; transformers keeps the code of directories in a folder of this test."""
    for module in (transformers_hub, transformers.dynamic_module_utils):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)
    # Once trusted, a class is known to the process.
    known = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    monkeypatch.setattr(known, "_extra_content", {})
    names = {str(i): name for i, name in enumerate(("class 2", "class 0", "class 1"))}
    return {
        "clip": write_clip(tmp_path / "clip"),
        "vit": write_model(tmp_path / "vit", TINY_CONFIG | {"id2label": names}),
        "siglip": write_siglip(tmp_path / "siglip"),
    }


def answers(folder: Path, images: list[Image.Image], **how: Any) -> list[dict[str, float]]:
    classify = transformers.pipeline("image-classification", str(folder), **how)
    return [
        {each["label"]: each["score"] for each in found} for found in classify(images, top_k=None)
    ]


@pytest.mark.parametrize(
    ("model", "head", "task"),
    [
        ("clip", "zero-shot", "svhn"),
        ("clip", "probe=4", "dtd"),
        ("siglip", "zero-shot", "svhn"),
        ("vit", "own", "svhn"),
        ("vit", "lda", "dtd"),
    ],
)
def test_the_pipeline_answers_as_our_table_does(
    models: dict[str, Path],
    tiny_data: Path,
    cache_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    head: str,
    task: str,
):
    out, folder = tmp_path / "run", tmp_path / "model"
    words = ["--model", models[model], "--data", tiny_data, "--tasks", task, "--head", head]
    words += ["--steps", 40, "--batch-size", 8, "--learning-rate", 0.005]
    run("finetune", *words, "--out", out, "--cache-dir", cache_dir)
    run("export", out, "--to", folder, "--cache-dir", cache_dir)
    images, labels = images_of(tiny_data / task)
    how = {} if model == "vit" else {"trust_remote_code": True}
    found = answers(folder, images, **how)
    names = json.loads((tiny_data / task / "classes.json").read_text())["classes"]
    assert set(found[0]) == set(names)
    right = [max(each, key=each.get) == names[label] for each, label in zip(found, labels)]
    opened = open_run(out, cache_dir=cache_dir)
    assert np.mean(right) == pytest.approx(opened.accuracies(opened.finetuned(task))[task])
    # And as `predict` does, image by image.
    for i, image in enumerate(images):
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / "images" / f"{i:03d}.png")
    capsys.readouterr()
    words = ["--top", 9, "--json", "--cache-dir", cache_dir]
    run("predict", folder, tmp_path / "images", *words)
    ours = list(json.loads(capsys.readouterr().out).values())
    assert len(ours) == len(found)
    for mine, theirs in zip(ours, found):
        assert next(iter(mine)) == max(theirs, key=theirs.get)
        for name, share in theirs.items():
            assert mine[name] == pytest.approx(share, abs=5e-5)  # of logits up to 30
    assert len({next(iter(each)) for each in ours}) > 1  # not one class for all


def test_a_clip_without_its_code_is_refused_not_misread(
    models: dict[str, Path], tiny_data: Path, cache_dir: Path, tmp_path: Path
):
    """Transformers' own class would average other tokens without a word."""
    words = ["--model", models["clip"], "--data", tiny_data, "--tasks", "mnist", "--steps", 1]
    run("finetune", *words, "--batch-size", 4, "--out", tmp_path / "run", "--cache-dir", cache_dir)
    run("export", tmp_path / "run", "--to", tmp_path / "model", "--cache-dir", cache_dir)
    with pytest.raises(ValueError, match="trust_remote_code"):
        answers(tmp_path / "model", [], trust_remote_code=False)
    again = read_classifier(read_pretrained(tmp_path / "model"))
    assert again.labels == ("class 0", "class 1")
    tower = transformers.CLIPVisionModel.from_pretrained(tmp_path / "model")
    assert tower.config.hidden_size == 16
    # The whole model where one asks for it.
    words = ["--to", tmp_path / "whole", "--classifier", "none", "--cache-dir", cache_dir]
    run("export", tmp_path / "run", *words)
    assert transformers.CLIPModel.from_pretrained(tmp_path / "whole").config.projection_dim == 12
