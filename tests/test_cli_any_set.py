"""Fine-tuning on sets that no registry knows, through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, noise
from tiny_clip import write_clip

from rmtllmf_jax.cli.main import main
from rmtllmf_jax.data.sources import hub
from rmtllmf_jax.models.pretrained import load_clip
from rmtllmf_jax.models.tokens import load_tokenizer
from rmtllmf_jax.models.zero_shot import zero_shot_head
from rmtllmf_jax.runs import open_run

NAMES = ("lynx", "owl")


def write(folder: Path, first: int, splits: dict[str, int], column: str = "labels") -> Path:
    """Write a set with names for labels, as the hub's branch `refs/convert/parquet` has it."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"img": datasets.Image(), column: datasets.Value("string")})
    for number, (split, count) in enumerate(splits.items()):
        seeds = [first + 100 * number + row for row in range(count)]
        images = [{"bytes": encoded(noise(seed, 16, 16, 3)), "path": None} for seed in seeds]
        labels = [NAMES[seed % 2] for seed in seeds]
        rows = datasets.Dataset.from_dict({"img": images, column: labels}, features=features)
        (folder / "default" / split).mkdir(parents=True)
        rows.to_parquet(folder / "default" / split / "0000.parquet")
    return folder


@pytest.fixture
def words(shallow_model: Path, cache_dir: Path) -> list[str]:
    options = ["--model", shallow_model, "--image-size", 16, "--cache-dir", cache_dir]
    return [str(x) for x in (*options, "--steps", 2, "--batch-size", 4)]


def test_sets_of_the_hub_and_of_a_folder_share_a_run(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = write(tmp_path / "zoo", 0, {"train": 8, "validation": 4, "test": 4})
    folder = write(tmp_path / "parquet" / "pond", 7, {"train": 10, "eval": 6}, "animal")
    load_rows, asked = hub.load_rows, []

    def stand_in(name: str, *options: Any) -> Any:
        asked.append((name, *options[:3]))
        return load_rows(str(zoo), "default", options[1], None, tmp_path / "datasets")

    monkeypatch.setattr(hub, "load_rows", stand_in)
    out = tmp_path / "run"
    on_hub = ["--source", "hub", "--data", "someone/zoo@v1:default"]
    main(["finetune", "--out", str(out), *words, *on_hub])
    told = ["--label-column", "animal", "--test-split", "eval"]
    main(["finetune", "--out", str(out), *words, "--data", str(folder), *told])
    assert set(asked) == {("someone/zoo", "default", None, "v1")}
    run = open_run(out, cache_dir=tmp_path / "other")
    assert run.names == ("pond", "zoo")
    parts = ("train", "validation", "test")
    sizes = {task.name: tuple(len(getattr(task, part)) for part in parts) for task in run.tasks}
    assert sizes == {"pond": (8, 2, 6), "zoo": (8, 4, 4)}  # a tenth is one of each class
    assert all(task.classes == NAMES for task in run.tasks)
    moved = folder.rename(tmp_path / "pond")
    with pytest.raises(ValueError, match=rf"{folder}: no such folder; .*--data"):
        open_run(out, cache_dir=tmp_path / "other").inputs()
    found = open_run(out, data=moved, cache_dir=tmp_path / "other").inputs()
    assert found.tasks == ("pond", "zoo")
    prints = {str(each["train"]) for each in found.fingerprint["tasks"].values()}  # type: ignore[attr-defined]
    assert len(prints) == 2


def test_another_validation_split_makes_another_model(tmp_path: Path, words: list[str]) -> None:
    zoo = write(tmp_path / "zoo", 0, {"train": 8, "val": 4, "test": 4})
    out = tmp_path / "run"
    made = set()
    for told in ([], ["--validation-split", "train"], ["--train-split", "train+val"]):
        share = ["--validation-fraction", "0.3"]  # of four images per class, one
        main(["finetune", "--out", str(out), *words, "--data", str(zoo), *share, *told])
        made.add(json.loads((out / "finetuned.json").read_text())["users"]["zoo"]["finetuned"])
    assert len(made) == 3


def test_prompts_of_a_file_and_images_that_cannot_be_read(
    tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image folder of which one file is damaged, under heads of prompts of one's own."""
    for seed in range(16):
        place = tmp_path / "zoo" / ("test" if seed < 4 else "train") / NAMES[seed % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed:02d}.png").write_bytes(encoded(noise(seed, 16, 16, 3)))
    (tmp_path / "zoo" / "train" / "owl" / "07.png").write_bytes(b"no image")
    model = write_clip(tmp_path / "clip")
    (tmp_path / "prompts.txt").write_text("a photo of a wild {}\n{} at night\n")
    words = ["finetune", "--model", model, "--data", tmp_path / "zoo", "--steps", 1]
    words += ["--batch-size", 4, "--validation-fraction", 0, "--cache-dir", cache_dir]
    words += ["--out", tmp_path / "run", "--templates", tmp_path / "prompts.txt"]
    with pytest.raises(SystemExit):
        main([str(word) for word in words])
    assert "train/owl/07.png: not an image file" in capsys.readouterr().err
    main([str(word) for word in (*words, "--skip-unreadable", 1)])
    assert re.search(r"zoo train: 1 images left out: \S*owl/07.png", capsys.readouterr().out)
    opened = open_run(tmp_path / "run", cache_dir=cache_dir)
    assert len(opened.tasks[0].train) == 11
    clip, params = load_clip(model)
    templates = ("a photo of a wild {}", "{} at night")
    head = zero_shot_head(clip, params, load_tokenizer(model), NAMES, templates)
    assert opened.heads is not None
    np.testing.assert_array_equal(opened.heads.kernel[0], head.kernel)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-column", "x"], r"0000.parquet: no column 'x'; it has img, labels"),
        (["--test-split", "x"], r"zoo: no split 'x', .*to be test .*it has test, train"),
        (["--skip-unreadable", "-1"], "--skip-unreadable must be at least 0"),
        (["--templates", "x"], "--templates are prompts of zero-shot heads"),
        (["--source", "arrays", "--test-split", "x"], "columns and splits are told of a data set"),
    ],
)
def test_what_is_told_and_not_there(
    tmp_path: Path,
    words: list[str],
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    zoo = write(tmp_path / "zoo", 0, {"train": 4, "test": 2})
    with pytest.raises(SystemExit):
        main(["finetune", "--out", str(tmp_path / "run"), *words, "--data", str(zoo), *options])
    error = capsys.readouterr().err
    assert re.search(message, error), error
