"""What checkpoints say beside their weights: compared, carried along, put on the card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from huggingface_hub import constants, metadata_load
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.card import hub_facts
from rmtllmf_jax.fusion.files.carried import tokenizer_files
from rmtllmf_jax.fusion.files.checkpoint import open_checkpoint

LLAMA = {"model_type": "llama", "num_attention_heads": 4, "vocab_size": 8, "hidden_size": 8}


def write(folder: Path, seed: int = 0, config: Any = LLAMA, **files: str) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    shapes = {"model.norm.weight": (8,), "classifier.weight": (2, 8)}
    tensors = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    for name, text in (files | ({"config.json": json.dumps(config)} if config else {})).items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)
    return folder


def fuse(base: Path, model: Path, out: Path, **options: Any) -> list[str]:
    Fuse(base=base, models=(model,), out=out, scale="0.5", **options).run()
    return json.loads((out / "fusion.json").read_text())["notes"]


@pytest.mark.parametrize(
    ("base", "model", "field", "seen"),
    [
        ({}, {"rope_theta": 1e6}, "rope_parameters.rope_theta", "1000000.0, 10000.0 in the base"),
        ({}, {"rms_norm_eps": 1e-5}, "rms_norm_eps", "1e-05, 1e-06 in the base"),
        ({}, {"num_attention_heads": 2}, "num_attention_heads", "2, 4 in the base"),
        ({}, {"hidden_act": "gelu"}, "hidden_act", "gelu, silu in the base"),
        ({}, {"model_type": "mistral"}, "model_type", "mistral, llama in the base"),
        (
            {"model_type": "own", "head_dim": 2},
            {"model_type": "own", "head_dim": 4},
            "head_dim",
            "",
        ),
        (
            {"model_type": "bert", "id2label": {"0": "cat", "1": "dog"}},
            {"model_type": "bert", "id2label": {"0": "dog", "1": "cat"}},
            "id2label",
            "dog, cat, in the base cat, dog",
        ),
    ],
)
def test_what_changes_the_meaning_is_refused_or_accepted_by_name(
    tmp_path: Path, base: dict[str, Any], model: dict[str, Any], field: str, seen: str
):
    paths = write(tmp_path / "base", 0, LLAMA | base), write(tmp_path / "one", 1, LLAMA | model)
    with pytest.raises(InputError) as caught:
        fuse(*paths, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"  one: {field} is {seen}") for line in lines)
    assert f"--accept {field}" in lines[-1] or f" {field}" in lines[-1]
    accepted = tuple(lines[-1].split("--accept ")[1].split())
    notes = fuse(*paths, tmp_path / "out", accept=accepted)
    assert any(f"{field} is {seen}" in note for note in notes)


def test_versions_of_transformers_do_not_differ(tmp_path: Path):
    """Defaults that one version wrote and another did not; names that changed."""
    old = LLAMA | {
        "rope_theta": 10000.0,
        "torch_dtype": "float32",
        "transformers_version": "4.30.0",
    }
    new = LLAMA | {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    new |= {"dtype": "bfloat16", "hidden_act": "silu", "architectures": None}
    assert fuse(write(tmp_path / "a", 0, old), write(tmp_path / "b", 1, new), tmp_path / "c") == []


def test_other_differences_are_noted(tmp_path: Path):
    model = LLAMA | {"attention_dropout": 0.1, "architectures": ["LlamaForCausalLM"]}
    notes = fuse(write(tmp_path / "base"), write(tmp_path / "one", 1, model), tmp_path / "out")
    (note,) = notes
    assert note.startswith("one: config.json differs (attention_dropout is 0.1, not 0.0; archit")
    assert f"- {note}\n" in (tmp_path / "out/README.md").read_text()


def test_a_field_that_does_not_differ_cannot_be_accepted(tmp_path: Path):
    with pytest.raises(InputError, match=r"unknown field to accept 'rope'"):
        fuse(write(tmp_path / "base"), write(tmp_path / "one"), tmp_path / "out", accept=("rope",))


def labelled(names: str) -> dict[str, Any]:
    return {"model_type": "bert", "id2label": dict(enumerate(names))}


def test_labels_of_a_head_that_is_not_merged_do_not_matter(tmp_path: Path):
    paths = write(tmp_path / "base", 0, labelled("ab")), write(tmp_path / "one", 1, labelled("ba"))
    fuse(*paths, tmp_path / "out", from_base=("classifier.*",))
    default = {"model_type": "bert", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    (note,) = fuse(paths[0], write(tmp_path / "default", 1, default), tmp_path / "same")
    assert "id2label is LABEL_0, LABEL_1, not a, b" in note


def tokenizer(lower: bool, **more: Any) -> str:
    content = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "Lowercase"} if lower else None,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"},
    }
    return json.dumps(content | more)


def test_tokenizers_that_cut_text_otherwise_are_refused(tmp_path: Path):
    names = ["base", "one", "two"]
    texts = [tokenizer(True), tokenizer(False), tokenizer(True, truncation=None, decoder=None)]
    folders = [
        write(tmp_path / name, number, **{"tokenizer.json": text, "chat_template.jinja": name})
        for number, (name, text) in enumerate(zip(names, texts, strict=True))
    ]
    with pytest.raises(InputError, match=r"one: tokenizer.normalizer is another one"):
        fuse(folders[0], folders[1], tmp_path / "out")
    assert fuse(folders[0], folders[2], tmp_path / "out") == [
        "two: its chat template is another one; the output has the base's",
        "two: tokenizer.json is another file, which cuts text into words alike",
    ]


CARRIED = {
    "tokenizer.json": tokenizer(True),
    "spiece.model": "",
    "source.spm": "",
    "bpe.codes": "",
    "qwen.tiktoken": "",
    "prophetnet.tokenizer": "",
    "vocab.txt": "",
    "generation_config.json": "{}",
    "modules.json": '[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]',
    "1_Pooling/config.json": '{"pooling_mode_cls_token": true}',
    "2_Dense/model.safetensors": "weights",
    "chat_templates/tool.jinja": "",
}
WRONG = (
    *("pytorch_model.bin.index.json", "eval_results.json", "fusion.json", "README.md"),
    *("training_args.bin", "trainer_state.json", "flax_model.msgpack.index.json", "3_Other/x.json"),
    *("requirements.txt", "model-0.bin", "1_Pooling/run.py"),
)


def test_all_files_of_a_model_are_carried_and_nothing_wrong(tmp_path: Path):
    base = write(tmp_path / "base", 0, **CARRIED, **dict.fromkeys(WRONG, ""))
    fuse(
        base,
        write(tmp_path / "one", 1, **{"tokenizer.json": CARRIED["tokenizer.json"]}),
        tmp_path / "out",
    )
    for name, text in CARRIED.items():
        assert (tmp_path / "out" / name).read_text() == text
    there = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    made = {"config.json", "fusion.json", "README.md", "model.safetensors"}
    assert {name for name in there if "." in name} == {*CARRIED, *made}
    assert "2_Dense/model.safetensors" in (tmp_path / "out/README.md").read_text()


def test_modules_that_lie_elsewhere_are_refused(tmp_path: Path):
    base = write(tmp_path / "base", 0, **{"modules.json": '[{"path": "../secret"}]'})
    with pytest.raises(InputError, match=r"modules.json: ../secret is not a folder next to it"):
        fuse(base, write(tmp_path / "one"), tmp_path / "out")


def test_a_bare_base_says_what_lies_beside_it(tmp_path: Path):
    base = write(tmp_path / "base", 0, **{"tokenizer.json": tokenizer(True)}) / "model.safetensors"
    (note,) = fuse(base, write(tmp_path / "one"), tmp_path / "out")
    assert note == (
        "model.safetensors is a bare file: the output has no config.json and no tokenizer "
        "(config.json, tokenizer.json beside it; name the directory to take them along)"
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with three models, of symbolic links as its client lays it out."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    for seed, (name, licence) in enumerate(
        (("base", "mit"), ("one", "mit"), ("two", "apache-2.0"))
    ):
        root = folder / f"models--owner--{name}"
        readme = f"---\nlicense: {licence}\nlibrary_name: own\n---\n# {name}\n"
        blobs = write(root / "blobs", seed, **{"README.md": readme})
        (root / "refs").mkdir()
        (root / "refs/main").write_text("a" * 40)
        snapshot = root / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        for number, file in enumerate(sorted(blobs.iterdir())):
            blob = file.rename(blobs / f"{number:040}")
            (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    return folder


@pytest.mark.parametrize("how", ["id", "revision", "root", "snapshot", "file"])
def test_models_of_the_hub_are_named_by_it(cache: Path, tmp_path: Path, how: str):
    revision = "a" * 40

    def given(name: str) -> Path:
        root = cache / f"models--owner--{name}"
        snapshot = root / "snapshots" / revision
        ids = {"id": Path(f"owner/{name}"), "revision": Path(f"owner/{name}@{revision}")}
        places = {"root": root, "snapshot": snapshot, "file": snapshot / "model.safetensors"}
        return (ids | places)[how]

    fuse(given("base"), given("one"), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")["model.norm.weight"]
    parts = [
        load_file(cache / f"models--owner--{n}/snapshots/{revision}/model.safetensors")
        for n in ("base", "one")
    ]
    np.testing.assert_allclose(
        found, np.mean([p["model.norm.weight"] for p in parts], axis=0), atol=1e-6
    )
    card = (tmp_path / "out/README.md").read_text()
    assert f"| base | owner/base@{revision} | model.safetensors | " in card
    assert f"task_arithmetic(owner/one@{revision})" in card
    front = metadata_load(tmp_path / "out/README.md")
    assert front["base_model"] == ["owner/base", "owner/one"]
    assert (front["base_model_relation"], front["tags"][0]) == ("merge", "merge")
    if how != "file":
        assert (front["license"], front["library_name"]) == ("mit", "own")


def test_licences_that_differ_are_noted(cache: Path, tmp_path: Path):
    notes = fuse(Path("owner/base"), Path("owner/two"), tmp_path / "out")
    revision = "a" * 40
    assert notes == [
        f"licences differ (owner/base@{revision}: mit, owner/two@{revision}: apache-2.0); the card "
        "names none"
    ]
    assert "license" not in metadata_load(tmp_path / "out/README.md")


def test_a_library_is_named_where_the_configuration_tells(tmp_path: Path):
    checkpoints = [open_checkpoint(write(tmp_path / "a")), open_checkpoint(write(tmp_path / "b"))]
    facts, notes = hub_facts(checkpoints[0], checkpoints[1:])
    assert facts == {"tags": ["merge", "task-vectors"], "library_name": "transformers"}
    assert notes == []


def test_what_is_not_in_the_cache_is_explained_offline(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"owner/none: not in the local hub cache"):
        fuse(Path("owner/base"), Path("owner/none"), tmp_path / "out")
    with pytest.raises(InputError, match=r"owner/one: not in the local hub cache"):
        fuse(Path("owner/base"), Path("owner/one@v2"), tmp_path / "out")


def test_a_cache_of_several_snapshots_must_be_told_apart(cache: Path, tmp_path: Path):
    root = cache / "models--owner--one"
    (root / "snapshots" / ("b" * 40)).mkdir()
    open_checkpoint(root)  # that of main
    (root / "refs/main").unlink()
    with pytest.raises(InputError, match=r"cannot tell which snapshot is meant \(a+, b+\)"):
        open_checkpoint(root)


def test_every_tokenizer_file_of_transformers_is_carried(tmp_path: Path):
    sources = Path(transformers.__file__).parent.glob("models/*/tokenization*.py")
    found = [
        name
        for source in sources
        for table in re.findall(r"^VOCAB_FILES_NAMES = (\{.*?\})", source.read_text(), re.S | re.M)
        for name in re.findall(r":\s*\"([^\"]+)\"", table)
    ]
    assert {"vocab.txt", "spiece.model", "bpe.codes", "source.spm"} < set(found)
    for name in (*found, "chat_template.jinja", "special_tokens_map.json", "added_tokens.json"):
        (tmp_path / name).write_text("")
    assert {path.name for path in tokenizer_files(tmp_path)} == {p.name for p in tmp_path.iterdir()}


def test_what_transformers_refuses_is_compared_as_it_stands(tmp_path: Path):
    """Heads that do not divide the width: made by hand, for a program of one's own."""
    odd = LLAMA | {"num_attention_heads": 3, "rms_norm_eps": 1e-6}
    with pytest.raises(Exception, match="hidden size"):
        transformers.LlamaConfig.from_dict(odd)
    base, model = write(tmp_path / "base", 0, odd), write(tmp_path / "model", 1, odd)
    assert not [line for line in fuse(base, model, tmp_path / "out") if "differs" in line]
    other = write(tmp_path / "other", 1, odd | {"rms_norm_eps": 1e-5})
    with pytest.raises(InputError, match=r"rms_norm_eps is 1e-05"):
        fuse(base, other, tmp_path / "none")
