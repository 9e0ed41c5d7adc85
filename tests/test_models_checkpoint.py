"""Weight files of a Hugging Face directory, their formats and what can be wrong with them."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_CONFIG, hugging_face_tensors, write_model
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import file_hash
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.checkpoint import weight_files, weights_hash
from rmtllmf_jax.models.layouts import to_paths, to_torch


def shard(model: Path) -> Path:
    """Split a model's weights into three shards, as transformers does."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    places = {key: names[index % 3] for index, key in enumerate(tensors)}
    for name in names:
        save_file({k: v for k, v in tensors.items() if places[k] == name}, model / name)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def test_keys_that_no_shard_holds_are_named(tmp_path: Path):
    model = shard(write_model(tmp_path))
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["vit.ghost"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"index\.json: names keys that no shard holds: vit\.ghost"
    ):
        load_backbone(model)


@pytest.mark.parametrize("content", ["[]", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str):
    model = shard(write_model(tmp_path))
    (model / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json: "):
        load_backbone(model)


@pytest.mark.parametrize("content", [b"", b"no msgpack at all", b"\x93\x01\x02"])
def test_a_damaged_flax_checkpoint_is_named(tmp_path: Path, content: bytes):
    model = write_model(tmp_path)
    (model / "model.safetensors").unlink()
    (model / "flax_model.msgpack").write_bytes(content)
    with pytest.raises(InputError, match=r"flax_model\.msgpack: not a readable flax checkpoint"):
        load_backbone(model)


def test_a_pickle_needs_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = write_model(tmp_path)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    real = builtins.__import__

    def without_torch(name: str, *rest: object) -> object:
        if name == "torch":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(InputError, match=r"pytorch_model\.bin: reading it needs torch.*convert"):
        load_backbone(model)


def test_the_hash_is_that_of_the_content(tmp_path: Path):
    model = write_model(tmp_path / "a")
    other = Path(shutil.copytree(model, tmp_path / "b"))
    assert weights_hash(model) == weights_hash(other) == file_hash(model / "model.safetensors")
    write_model(other, seed=1)
    assert weights_hash(other) != weights_hash(model)
    before = weights_hash(shard(other))
    path = other / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert weights_hash(other) != before
    assert len(weight_files(other)) == 3


def test_names_and_layouts_go_there_and_back():
    tensors = hugging_face_tensors(TINY_CONFIG)
    for path, leaf in to_paths(tensors, "vit", torch=True).items():
        key, tensor = to_torch(path, leaf)
        original = key if key in tensors else f"vit.{key}"
        np.testing.assert_array_equal(tensor, tensors[original])
