"""The sources by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rmtllmf_jax
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.source import Source
from rmtllmf_jax.data.sources import SOURCES, get_source
from rmtllmf_jax.data.sources.arrays import ArraySource
from rmtllmf_jax.data.sources.embedded import EmbeddedSource
from rmtllmf_jax.data.sources.folder import DataFolder
from rmtllmf_jax.data.sources.hub import HubSource
from rmtllmf_jax.data.sources.tfds import TfdsSource
from rmtllmf_jax.data.tasks import TASK_NAMES


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


def test_hub_and_tfds_need_no_folder() -> None:
    for name in ("hub", "tfds"):
        assert get_source(name).tasks() == TASK_NAMES


@pytest.mark.parametrize(
    ("name", "holds"), [("folder", "parquet or image files"), ("arrays", r"<task>\.npz files")]
)
def test_the_others_ask_for_one(name: str, holds: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' needs --data: the folder with the {holds}"):
        get_source(name)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown source 'hup'.*'hub'.*hub, tfds.*embedded"):
        get_source("hup")


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
