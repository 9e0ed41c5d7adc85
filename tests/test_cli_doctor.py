"""`rmtllmf doctor`: what it prints, what it returns and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import write_model

from rmtllmf_jax.cli.doctor import Doctor
from rmtllmf_jax.common.errors import InputError


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the tiny tasks, to be damaged."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def leak(data: Path, task: str) -> None:
    """Put a task's test images into its train split."""
    folder = data / task
    train, test = (pq.read_table(folder / f"{split}.parquet") for split in ("train", "test"))
    pq.write_table(
        pq.ParquetFile(folder / "train.parquet").read().slice(0, train.num_rows - test.num_rows),
        folder / "train.parquet",
    )
    with pq.ParquetWriter(folder / "new", train.schema) as writer:
        writer.write_table(pq.read_table(folder / "train.parquet"))
        writer.write_table(test)
    (folder / "new").rename(folder / "train.parquet")


def test_sound_data_prints_a_table_a_task_and_ends_well(
    data: Path, capsys: pytest.CaptureFixture[str]
):
    Doctor(data=str(data)).run()
    printed = capsys.readouterr()
    assert printed.err == ""
    for task, classes, images in (("dtd", 4, 80), ("mnist", 2, 40), ("svhn", 3, 60)):
        (line,) = [x for x in table_of(printed.out, task) if x.startswith("train")]
        assert line.split()[:3] == ["train", str(classes), str(images)]
    assert printed.out.splitlines()[-1].startswith("0 errors, ")


def table_of(printed: str, task: str) -> list[str]:
    """Return the lines from a task's title on."""
    lines = [line.strip() for line in printed.splitlines()]
    return lines[lines.index(task) :][:6]


def test_a_leak_is_printed_and_ends_with_code_1(data: Path, capsys: pytest.CaptureFixture[str]):
    leak(data, "svhn")
    with pytest.raises(SystemExit) as stopped:
        Doctor(data=str(data), tasks=("mnist", "svhn")).run()
    assert stopped.value.code == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "error overlap: 30 of 30 (100 %) test images are in train too" in printed
    assert "-> the model has seen them in training" in printed
    assert "1 error, " in printed
    assert " dtd " not in printed


def test_a_truncated_file_does_not_hide_the_other_tasks(
    data: Path, capsys: pytest.CaptureFixture[str]
):
    path = data / "dtd" / "train.parquet"
    path.write_bytes(path.read_bytes()[:500])
    leak(data, "svhn")
    with pytest.raises(SystemExit):
        Doctor(data=str(data), json=True).run()
    tasks = {task["task"]: task for task in json.loads(capsys.readouterr().out)["tasks"]}
    graves = {
        name: [x["check"] for x in task["findings"] if x["level"] == "error"]
        for name, task in tasks.items()
    }
    assert graves == {"dtd": ["reading"], "mnist": [], "svhn": ["overlap"]}
    (finding,) = [x for x in tasks["dtd"]["findings"] if x["level"] == "error"]
    assert str(path) in finding["what"]
    assert set(finding) == {"level", "check", "what", "follows"}


def test_json_is_all_that_is_printed(
    data: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    Doctor(data=str(data), tasks=("mnist",), model=str(tiny_model), json=True).run()
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"tasks", "model"}
    (task,) = printed["tasks"]
    assert task["splits"]["train"] == {
        "images": 40,
        "full": 60_000,
        "images_a_class": [20, 20],
        "shorter_side": [16, 16],
        "longer_side": [16, 16],
    }
    assert printed["model"]["kind"] == "vit"
    assert printed["model"]["faults"] == []


def test_near_duplicates_are_looked_for_on_demand(data: Path, capsys: pytest.CaptureFixture[str]):
    checks = {}
    for near in (None, 256):
        Doctor(data=str(data), tasks=("mnist",), near=near, json=True).run()
        (task,) = json.loads(capsys.readouterr().out)["tasks"]
        checks[near] = {finding["check"] for finding in task["findings"]}
    assert checks[256] - checks[None] == {"near-duplicates"}


def test_a_sound_checkpoint_is_described(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    Doctor(model=str(tiny_model)).run()
    printed = " ".join(capsys.readouterr().out.split())
    assert "vit, " in printed
    assert " parameters" in printed
    assert printed.endswith("0 errors, 0 warnings, 0 notes")


def test_a_checkpoint_that_does_not_fit_ends_with_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 24}))
    with pytest.raises(SystemExit) as stopped:
        Doctor(model=str(folder)).run()
    assert stopped.value.code == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "error fit: " in printed
    assert "misshapen: encoder/layer/0/intermediate/dense/bias is (32,), expected (24,)" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "nothing to check; give --data or --source, --model, or both"),
        ({"data": None, "model": "x", "tasks": ("dtd",)}, "--tasks and --near need data"),
        ({"data": None, "model": "x", "near": 3}, "--tasks and --near need data"),
        ({"data": "nowhere"}, "no such folder"),
        ({"tasks": ("mist",)}, r"unknown task 'mist'\. Did you mean 'mnist'"),
        ({"tasks": ("dtd", "dtd")}, "more than once"),
        ({"source": "folders"}, r"'folders'.*Did you mean 'folder'"),
        *(({"near": x}, f"near must be in 0 to 256 bits, got {x}") for x in (-1, 257)),
    ],
)
def test_bad_options_are_refused(options: dict, message: str, tiny_data: Path):
    with pytest.raises(InputError, match=message):
        Doctor(**{"data": str(tiny_data), **options}).run()
