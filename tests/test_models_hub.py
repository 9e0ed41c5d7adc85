"""Models by hub id: the local cache first, and every refusal of the hub explained."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from conftest import write_model
from huggingface_hub import constants, errors
from huggingface_hub.utils import httpx

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models import hub

ID = "owner/model"


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "http://localhost"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, model: str = ID) -> Path:
    """Put a model into the hub cache, as its client lays it out."""
    root = cache / f"models--{model.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    return write_model(root / "snapshots" / ("a" * 40))


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let the hub's client fail with an error of its own."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fail)


def test_a_directory_is_taken_as_it_is(tmp_path: Path):
    assert hub.local_directory(tmp_path) == tmp_path
    assert hub.local_directory(str(tmp_path)) == tmp_path


def test_a_cached_model_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = put(cache)
    refuse(monkeypatch, AssertionError("the network was asked"))
    assert hub.local_directory(ID) == folder
    assert hub.in_cache(ID)
    assert not hub.in_cache("owner/another")


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_half_a_cached_model_is_fetched_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, lost: str
):
    (put(cache) / lost).unlink()
    assert not hub.in_cache(ID)
    refuse(monkeypatch, errors.OfflineModeIsEnabled("offline"))
    with pytest.raises(InputError, match="owner/model: not in the local hub cache"):
        hub.local_directory(ID)


def test_one_format_of_the_weights_is_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []
    local = huggingface_hub.snapshot_download

    def download(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            return local(name, **options)
        asked.append(options["allow_patterns"])
        return str(put(cache))

    files = ["config.json", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "README.md"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert (hub.local_directory(ID) / "config.json").is_file()
    assert "flax_model.msgpack" in asked[0]
    assert "*.json" in asked[0]
    assert not {"pytorch_model.bin", "tf_model.h5", "*.bin"} & set(asked[0])


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (["open_clip_model.safetensors", "open_clip_pytorch_model.bin"], 1),
        (["open_clip_model.safetensors", "pytorch_model.bin"], 1),  # needs no torch
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"], 2),
    ],
)
def test_weights_of_open_clip_and_shards_are_downloaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch, weights: list[str], wanted: int
):
    """What is then in the cache is complete, with open_clip's configuration alone."""
    files = [*weights, "open_clip_config.json", "merges.txt", "vocab.json", "README.md"]
    local = huggingface_hub.snapshot_download

    def download(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            return local(name, **options)
        folder = put(cache)
        for path in folder.iterdir():
            path.unlink()
        for file in files:
            if any(fnmatch(file, pattern) for pattern in options["allow_patterns"]):
                (folder / file).write_text(json.dumps({"weight_map": {"a": weights[-1]}}))
        return str(folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    names = {path.name for path in hub.local_directory(ID).iterdir()}
    assert names == {*weights[:wanted], "open_clip_config.json", "merges.txt", "vocab.json"}
    assert hub.in_cache(ID)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.RepositoryNotFoundError("404", response=response(404)), "no such repository on"),
        (errors.GatedRepoError("403", response=response(403)), "is gated; accept its terms"),
        (errors.HfHubHTTPError("503", response=response(503)), "the Hugging Face hub refused"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set; download it where"),
        (httpx.ConnectError("no route to host"), r"cannot be reached \(no route to host\)"),
        (httpx.ConnectTimeout(""), r"cannot be reached \(ConnectTimeout\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_says_is_explained(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
):
    refuse(monkeypatch, error)
    with pytest.raises(InputError, match=rf"owner/model: .*{says}"):
        hub.local_directory(ID)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("README.md", r"no weights that can be read.*found README\.md"),
        ("adapter_config.json", r"an adapter \(LoRA or similar: adapter_config"),
    ],
)
def test_a_repository_without_weights_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch, file: str, says: str
):
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: [file])
    with pytest.raises(InputError, match=f"owner/model: .*{says}"):
        hub.local_directory(ID)


@pytest.mark.parametrize("name", ["a/b/c", "two words", ""])
def test_what_is_neither_directory_nor_id_is_refused(name: str):
    with pytest.raises(InputError, match="no such directory, and not a Hugging Face hub id"):
        hub.local_directory(name)


def test_a_path_is_never_taken_for_an_id(tmp_path: Path):
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        hub.local_directory(tmp_path)


@pytest.mark.parametrize("layout", ["one", "shards", "other name"])
def test_safetensors_of_any_layout_are_downloaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch, layout: str
):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weights = {
        "one": ["model.safetensors"],
        "shards": ["model.safetensors.index.json", *shards],
        "other name": ["weights.safetensors"],
    }[layout]
    asked: list[tuple[object, list[str]]] = []
    local = huggingface_hub.snapshot_download

    def download(name: str, **options: object) -> str:
        if options.get("local_files_only"):
            return local(name, **options)
        asked.append((options["revision"], options["allow_patterns"]))
        return str(cache)

    files = [*weights, "config.json", "tokenizer.model", "pytorch_model.bin", "onnx/a.safetensors"]
    files += ["consolidated.safetensors"] * (layout == "one")
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.safetensors_place(Path("owner/model@v1")) == cache
    ((revision, patterns),) = asked
    assert revision == "v1"
    wanted = {file for file in files if any(fnmatch(file, pattern) for pattern in patterns)}
    assert wanted == {*weights, "config.json", "tokenizer.model"}


def test_a_repository_without_safetensors_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch):
    files = ["pytorch_model.bin"]
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: files)
    with pytest.raises(InputError, match=r"holds no safetensors; found pytorch_model.bin"):
        hub.safetensors_place(Path("owner/model"))


@pytest.mark.parametrize("given", ["nowhere", "a/b/c", "/owner/model", "owner/x.safetensors"])
def test_what_is_no_id_stays_a_path(cache: Path, given: str):
    assert hub.safetensors_place(Path(given)) == Path(given)
