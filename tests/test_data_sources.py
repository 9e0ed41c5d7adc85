"""The sources by name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rmtllmf_jax
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.reading import Reading
from rmtllmf_jax.data.registry import HubSet
from rmtllmf_jax.data.source import Source
from rmtllmf_jax.data.sources import SOURCES, get_source, hub_set
from rmtllmf_jax.data.sources.arrays import ArraySource, TaskArrays
from rmtllmf_jax.data.sources.embedded import EmbeddedSource
from rmtllmf_jax.data.sources.folder import DataFolder
from rmtllmf_jax.data.sources.hub import HubSource
from rmtllmf_jax.data.sources.tfds import TfdsSource
from rmtllmf_jax.data.tasks import REGISTERED


def test_every_name_gives_its_source(tmp_path: Path) -> None:
    np.savez(tmp_path / "owls.npz", a=np.zeros(1))
    sources = {name: get_source(name, tmp_path) for name in SOURCES if name != "embedded"}
    sources["embedded"] = get_source("embedded")
    assert all(isinstance(source, Source) for source in sources.values())
    assert sources["hub"] == HubSource(cache_dir=tmp_path)
    assert sources["tfds"] == TfdsSource(data_dir=tmp_path)
    assert sources["folder"] == DataFolder(tmp_path)
    assert isinstance(sources["arrays"], ArraySource)
    assert sources["arrays"].tasks() == ("owls",)
    assert sources["embedded"] == EmbeddedSource()


@pytest.mark.parametrize(
    ("data", "task", "expected"),
    [
        ("uoft-cs/cifar10", "cifar10", HubSet("uoft-cs/cifar10")),
        ("a/b_c-d.e@v1.2:full size", "b_c-d.e", HubSet("a/b_c-d.e", "full size", "v1.2")),
        ("a/b@refs/convert/parquet", "b", HubSet("a/b", None, "refs/convert/parquet")),
        ("beans=a/b:c", "beans", HubSet("a/b", "c")),
    ],
)
def test_a_set_of_the_hub_by_its_id(data: str, task: str, expected: HubSet) -> None:
    assert get_source("hub", data) == HubSource(sets={task: expected})
    told = Reading(label_column="fine_label")
    source = get_source("hub", data, told)
    assert isinstance(source, HubSource)
    assert source.sets[task] == replace(expected, reading=told)


def test_a_folder_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "down" / "loads").mkdir(parents=True)
    for data in ("down/loads", "./a/b", "~/a", "/a/b", "a"):
        assert hub_set(data) is None
    assert get_source("hub", "down/loads") == HubSource(Path("down/loads"))


def test_columns_and_splits_are_told_of_sets(tmp_path: Path) -> None:
    told = Reading(test_split="dev")
    assert get_source("folder", tmp_path, told) == DataFolder(tmp_path, told)
    assert get_source("tfds", None, told) == TfdsSource(reading=told)
    for name in ("hub", "embedded"):
        with pytest.raises(InputError, match=f"columns and splits are told of .*not of .*'{name}'"):
            get_source(name, None, told)


def test_hub_and_tfds_need_no_folder() -> None:
    for name in ("hub", "tfds"):
        assert get_source(name).tasks() == REGISTERED


@pytest.mark.parametrize("name", SOURCES)
def test_unknown_tasks_and_splits_are_refused(name: str, tmp_path: Path) -> None:
    images, labels = np.zeros((1, 8, 8), np.uint8), np.zeros(1, np.int64)
    arrays = TaskArrays(images, labels, images, labels, ("a",))
    there = {name: value for name, value in vars(arrays).items() if value is not None}
    np.savez(tmp_path / "dtd.npz", **there)
    (tmp_path / "dtd" / "train" / "a").mkdir(parents=True)
    source = get_source(name, None if name == "embedded" else tmp_path)
    task = source.tasks()[1 if name in ("hub", "tfds") else 0]
    for use in (source.classes, lambda task: source.size(task, "train")):
        with pytest.raises(InputError, match=rf"unknown task '{task}s'\. Did you mean '{task}'"):
            use(f"{task}s")
    for use in (source.size, source.fingerprint, lambda *of: next(source.examples(*of))):
        with pytest.raises(InputError, match=r"unknown split 'val'.*train, (validation, )?test"):
            use(task, "val")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("folder", None, "'folder' needs --data: the folder with the parquet or image files"),
        ("arrays", None, r"'arrays' needs --data: the folder with the <task>\.npz files"),
        ("embedded", "x", r"'embedded'.*takes no --data, got .*--source folder"),
        ("hup", None, r"unknown source 'hup'.*'hub'.*hub, tfds.*embedded"),
        ("arrays", "nowhere", "nowhere: no such folder"),
        ("arrays", "", r"holds no task; expected <task>\.npz"),
        ("folder", "nowhere", "nowhere: no such folder"),
        ("folder", "", r"holds no task; .*train\.parquet.*train/<class>"),
    ],
)
def test_sources_and_folders_that_are_not_there(
    name: str, data: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        get_source(name, None if data is None else tmp_path / data).tasks()


def test_importing_them_loads_no_library_of_theirs() -> None:
    script = (
        "import sys, rmtllmf_jax.data.sources\n"
        "heavy = {'jax', 'torch', 'transformers', 'datasets', 'tensorflow_datasets', 'pandas'}\n"
        "heavy |= {'sklearn', 'skimage', 'matplotlib'}\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(rmtllmf_jax.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == ""
