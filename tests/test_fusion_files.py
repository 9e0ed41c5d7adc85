"""Checkpoints on disk, merged tensor by tensor: the same numbers as a merge in memory."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.checkpoint import open_checkpoint
from rmtllmf_jax.fusion.files.fusing import fusing
from rmtllmf_jax.fusion.files.plan import Recipe, bytes_of, file_methods, plan_fusion
from rmtllmf_jax.fusion.rules import (
    Average,
    Breadcrumbs,
    ConsensusTa,
    Dare,
    DareTies,
    Della,
    DellaLinear,
    Fisher,
    Lata,
    LayerWise,
    Median,
    ModelStock,
    MultiSlerp,
    Slerp,
    TaskArithmetic,
    Ties,
    TrimmedMean,
    TsvMerge,
)

BFLOAT16 = np.dtype(jnp.bfloat16)
Tensors = dict[str, np.ndarray]
ADD = Recipe(TaskArithmetic(), 0.3)


def tensors(seed: int) -> Tensors:
    """Return a small language model: 2 + 3 x 2 floating-point tensors of several shapes."""
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (11, 6), "model.norm.weight": (6,), "logit_scale": ()}
    for layer in range(3):
        shapes[f"model.layers.{layer}.mlp.weight"] = (6, 4)
        shapes[f"model.layers.{layer}.mlp.bias"] = (4,)
    return {k: np.asarray(random.normal(size=s), np.float32) for k, s in shapes.items()}


def write(folder: Path, content: Tensors, files: int = 1, name: str = "model") -> Path:
    """Write a directory with one file, or with several and an index."""
    folder.mkdir(parents=True)
    keys = list(content)
    if files == 1:
        save_file(content, folder / f"{name}.safetensors", {"format": "pt"})
        return folder
    places = {key: f"{name}-{number % files + 1}.safetensors" for number, key in enumerate(keys)}
    for place in set(places.values()):
        part = {key: content[key] for key in keys if places[key] == place}
        save_file(part, folder / place, {"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read(folder: Path) -> Tensors:
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def fuse(out: Path, base: Path, models: list[Path], recipe: Recipe = ADD, **kwargs: Any) -> Tensors:
    with fusing(plan_fusion(out, base, models, recipe, **kwargs)) as under_way:
        weights = under_way.layer_weights()
        under_way.merge(weights)
        under_way.finish(weights)
    return read(out)


def assert_close(found: Tensors, expected: Tensors, atol: float = 1e-6) -> None:
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        assert found[key].shape == value.shape
        np.testing.assert_allclose(
            found[key].astype(np.float64), value.astype(np.float64), atol=atol, err_msg=key
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Base and two models as directories of one file each."""
    root = tmp_path_factory.mktemp("models")
    return [write(root / name, tensors(seed)) for seed, name in enumerate(("base", "a", "b"))]


@pytest.mark.parametrize("layout", ["directory", "other name", "file", "shards", "index"])
def test_every_layout_gives_the_plain_merge(tmp_path: Path, layout: str):
    paths = []
    for seed in range(3):
        files = 3 if layout in ("shards", "index") else 1
        name = "weights" if layout == "other name" else "model"
        path = write(tmp_path / str(seed), tensors(seed), files, name)
        suffix = {"file": "model.safetensors", "index": "model.safetensors.index.json"}
        paths.append(path / suffix[layout] if layout in suffix else path)
    found = fuse(tmp_path / "out", paths[0], paths[1:])
    base, a, b = (tensors(seed) for seed in range(3))
    assert_close(found, {key: base[key] + 0.3 * (a[key] + b[key] - 2 * base[key]) for key in base})


METHODS: dict[str, list[Any]] = {
    "task_arithmetic": [TaskArithmetic(), TaskArithmetic((0.5, -1.0))],
    "average": [Average(), Average((1.0, 3.0))],
    "ties": [Ties(0.3), Ties(0.5, normalise=False, weights=(1.0, 2.0))],
    "dare": [Dare(0.5), Dare(0.0, (1.0, 2.0)), Dare(0.7, (1.0, 2.0))],
    "dare_ties": [DareTies(0.5), DareTies(0.3, True, (1.0, 2.0))],
    "della": [Della(), Della(0.6, 0.2, "l1", False, (1.0, 2.0))],
    "della_linear": [DellaLinear(0.4, 0.3, None)],
    "breadcrumbs": [Breadcrumbs(0.5, 0.1), Breadcrumbs(0.9, 0.3, (1.0, 2.0))],
    "consensus_ta": [ConsensusTa(), ConsensusTa(1.0, 1, (1.0, 2.0))],
    "slerp": [Slerp(), Slerp(0.2, threshold=0.5, weights=(1.0, 2.0))],
    "multi_slerp": [MultiSlerp(), MultiSlerp((1.0, 2.0))],
    "model_stock": [ModelStock(), ModelStock((1.0, 2.0))],
    "tsv_merge": [TsvMerge(), TsvMerge((1.0, 2.0))],
    "median": [Median(), Median((1.0, 0.5))],
    "trimmed_mean": [TrimmedMean(0.25), TrimmedMean(1, (1.0, 0.5))],
    "layer_wise": [
        LayerWise({"model.layers.1": (0.5, 2.0), "model.layers.*": 0.25}, default=1.0),
        LayerWise({r".*bias": 0.0}, 1.0, "tensor", (2.0, 1.0)),
    ],
    "lata": [
        Lata(),
        Lata("logarithmic", granularity="tensor"),
        Lata("threshold", sigma=0.1, weights=(1.0, 0.5)),
    ],
}


def in_memory(method: Any, stacked: dict[str, jax.Array], **more: Any) -> dict[str, jax.Array]:
    return jax.jit(method)(stacked, jax.random.key(5), **more)


def test_every_method_of_files_is_tested():
    assert sorted(METHODS) == sorted(file_methods())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_on_files_gives_what_it_gives_in_memory(
    models: list[Path], tmp_path: Path, name: str
):
    base, *others = (tensors(seed) for seed in range(3))
    stacked = {key: jnp.stack([other[key] - base[key] for other in others]) for key in base}
    for number, method in enumerate(METHODS[name]):
        found = fuse(tmp_path / str(number), models[0], models[1:], Recipe(method, -0.7, seed=5))
        needs = {"base": {k: jnp.asarray(v) for k, v in base.items()}} if name == "slerp" else {}
        merged = in_memory(method, stacked, **needs)
        assert_close(found, {key: base[key] - 0.7 * np.asarray(merged[key]) for key in base})


@dataclass(frozen=True)
class Own:
    """A method that is registered nowhere."""

    power: float = 1.0

    def __call__(self, stacked: Any, key: Any = None, *, weights: Any = None) -> Any:
        return jax.tree.map(lambda leaf: self.power * leaf[0] - leaf[1], stacked)


class OwnByTensor(Own):
    """The same, which says that it looks at one tensor at a time."""

    per_leaf = True
    random = True

    def __call__(self, stacked: Any, key: Any = None, *, weights: Any = None) -> Any:
        sign = jnp.where(jax.random.bernoulli(key), 1, -1)
        return jax.tree.map(lambda leaf: sign * leaf, super().__call__(stacked))


def test_a_method_of_ones_own_merges_files(models: list[Path], tmp_path: Path):
    base, a, b = (tensors(seed) for seed in range(3))
    found = fuse(tmp_path / "out", models[0], models[1:], Recipe(OwnByTensor(2.0), 0.5))
    signs = set()
    for key, value in found.items():
        added = 0.5 * (2 * (a[key] - base[key]) - (b[key] - base[key]))
        sign = np.sign(np.sum((value - base[key]) * added))
        np.testing.assert_allclose(value, base[key] + sign * added, atol=1e-5)
        signs.add(float(sign))
    assert signs == {1.0, -1.0}  # every tensor has a key of its own
    record = json.loads((tmp_path / "out/fusion.json").read_text())
    assert (record["method"], record["seed"]) == ("own_by_tensor(power=2.0)", 0)


@pytest.mark.parametrize("users", [1, 2])
def test_lata_compares_to_the_reference(models: list[Path], tmp_path: Path, users: int):
    base, *others = (tensors(seed) for seed in range(users + 1))
    near, far = tensors(1), tensors(9)
    instruct = {k: np.asarray(0.5 * near[k] + far[k], np.float32) for k in near}
    stacked = {key: jnp.stack([other[key] - base[key] for other in others]) for key in base}
    iota = {key: jnp.asarray(instruct[key] - base[key]) for key in base}
    found = fuse(
        tmp_path / "out",
        models[0],
        models[1 : users + 1],
        Recipe(Lata(), 0.4),
        reference=write(tmp_path / "instruct", instruct),
    )
    merged = in_memory(Lata(), stacked, reference=iota)
    assert_close(found, {key: base[key] + 0.4 * np.asarray(merged[key]) for key in base})
    record = json.loads((tmp_path / "out/fusion.json").read_text())
    assert [each["role"] for each in record["inputs"]] == ["base", *["model"] * users, "reference"]


@pytest.mark.parametrize("dtype", ["keep", "float32", "bfloat16", "float16"])
def test_types_are_kept_or_chosen(tmp_path: Path, dtype: str):
    kinds = {"a": np.float32, "b": np.float16, "c": BFLOAT16, "d": np.float64}
    random = np.random.default_rng(0)
    contents = [{k: random.normal(size=(5, 7)).astype(t) for k, t in kinds.items()}]
    contents += [{k: random.normal(size=(5, 7)).astype(BFLOAT16) for k in kinds}]
    contents += [{k: random.normal(size=(5, 7)) for k in kinds}]
    paths = [write(tmp_path / str(n), content) for n, content in enumerate(contents)]
    found = fuse(tmp_path / "out", paths[0], paths[1:], replace(ADD, dtype=dtype))
    for key, kind in kinds.items():
        wide = [content[key].astype(np.float64) for content in contents]
        expected = wide[0] + 0.3 * (wide[1] + wide[2] - 2 * wide[0])
        chosen = np.dtype(kind) if dtype == "keep" else np.dtype(getattr(jnp, dtype))
        assert found[key].dtype == chosen
        step = float(jnp.finfo(chosen).eps) * np.abs(expected) + 1e-6
        assert (np.abs(found[key].astype(np.float64) - expected) <= step).all()


def test_half_precision_is_rounded_once(tmp_path: Path):
    random = np.random.default_rng(0)
    base = random.normal(size=4000).astype(BFLOAT16)
    model = (base.astype(np.float32) + 0.01 * random.normal(size=4000)).astype(BFLOAT16)
    paths = [write(tmp_path / n, {"w": v}) for n, v in (("base", base), ("a", model))]
    found = fuse(tmp_path / "out", paths[0], paths[1:])["w"]
    tau = model.astype(np.float32) - base.astype(np.float32)
    expected = (base.astype(np.float32) + np.float32(0.3) * tau).astype(BFLOAT16)
    np.testing.assert_array_equal(found, expected)


def test_float64_keeps_differences_that_float32_loses(tmp_path: Path):
    values = {"base": 1.0, "a": 1.0 + 1e-10, "b": 1.0 - 3e-10}
    paths = [write(tmp_path / n, {"w": np.full(3, v)}) for n, v in values.items()]
    found = fuse(tmp_path / "out", paths[0], paths[1:])["w"]
    np.testing.assert_allclose(found - 1, -0.6e-10, rtol=1e-5)


def test_large_numbers_whose_sum_overflows_are_no_infinities(tmp_path: Path):
    big = np.full(8, 3e38, np.float32)
    paths = [write(tmp_path / n, {"w": big}) for n in ("base", "a")]
    assert fuse(tmp_path / "out", paths[0], paths[1:])["w"].tolist() == big.tolist()


@pytest.mark.parametrize(
    ("kind", "base", "model"),
    [(np.float32, 3e38, -3e38), (np.float32, 0.0, 3e38), (np.float16, 0.0, 60000.0)],
)
def test_what_a_type_cannot_hold_is_refused(tmp_path: Path, kind: Any, base: float, model: float):
    values = {"base": base, "a": model}
    paths = [write(tmp_path / n, {"w": np.full(3, v, kind)}) for n, v in values.items()]
    twice = replace(ADD, scale=2.0)
    name = np.dtype(kind).name
    with pytest.raises(InputError, match=rf"w: the merge has numbers that {name} cannot hold"):
        fuse(tmp_path / "out", paths[0], paths[1:], twice)
    if kind is np.float16:
        found = fuse(tmp_path / "out", paths[0], paths[1:], replace(twice, dtype="bfloat16"))
        assert found["w"].astype(float).tolist() == [119808.0] * 3


@pytest.mark.parametrize("method", [TaskArithmetic(), Ties(), DareTies(), Lata()])
def test_empty_tensors_stay_empty(tmp_path: Path, method: Any):
    content = [tensors(seed) | {"none": np.zeros((0, 3), np.float32)} for seed in range(3)]
    paths = [write(tmp_path / str(n), each) for n, each in enumerate(content)]
    recipe = Recipe(method, 1.0)
    assert fuse(tmp_path / "out", paths[0], paths[1:], recipe)["none"].shape == (0, 3)


def test_the_first_pass_of_lata_is_kept(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = Recipe(Lata(granularity="tensor"), 0.5)
    whole = fuse(tmp_path / "whole", models[0], models[1:], recipe)
    with fusing(plan_fusion(tmp_path / "out", models[0], models[1:], recipe)) as under_way:
        under_way.layer_weights()
    assert not (tmp_path / "out").exists()
    monkeypatch.delattr("rmtllmf_jax.fusion.files.fusing.layer_grams")
    assert_close(fuse(tmp_path / "out", models[0], models[1:], recipe), whole, atol=0)
    for name in ("README.md", "fusion.json"):
        first = (tmp_path / "whole" / name).read_text()
        assert (tmp_path / "out" / name).read_text() == first.replace("# whole", "# out")


def with_buffers(seed: int, *, ids: bool = True) -> Tensors:
    found = tensors(seed) | {"mask": np.array([True, False]), "steps": np.array(7, np.int64)}
    return found | ({"text.position_ids": np.arange(5)[None]} if ids else {})


def test_integers_and_buffers_are_the_bases(tmp_path: Path):
    base = write(tmp_path / "base", with_buffers(0))
    a = write(tmp_path / "a", with_buffers(1))
    b = write(tmp_path / "b", with_buffers(2, ids=False))
    found = fuse(tmp_path / "out", base, [a, b])
    for key in ("mask", "steps", "text.position_ids"):
        np.testing.assert_array_equal(found[key], with_buffers(0)[key])
        assert found[key].dtype == with_buffers(0)[key].dtype


def test_integers_that_differ_are_refused(tmp_path: Path):
    base = write(tmp_path / "base", with_buffers(0))
    a = write(tmp_path / "a", with_buffers(1) | {"steps": np.array(8, np.int64)})
    with pytest.raises(InputError, match=r"steps \(I64\): not as in .*base: .*a$"):
        plan_fusion(tmp_path / "out", base, [a], ADD)


def test_all_keys_and_shapes_that_differ_are_listed(models: list[Path], tmp_path: Path):
    other = tensors(1)
    other["model.layers.0.mlp.wieght"] = other.pop("model.layers.0.mlp.weight")
    other["model.norm.weight"] = np.ones(7, np.float32)
    other["model.layers.1.mlp.bias"] = np.ones((2, 2), np.float32)
    other["logit_scale"] = np.array(3)
    with pytest.raises(InputError) as caught:
        plan_fusion(tmp_path / "out", models[0], [write(tmp_path / "a", other), models[1]], ADD)
    error = str(caught.value)
    assert "a: 1 missing:\n" in error
    assert "model.layers.0.mlp.weight (did you mean model.layers.0.mlp.wieght?)" in error
    assert "model.layers.0.mlp.wieght (did you mean model.layers.0.mlp.weight?)" in error
    assert f"a: 1 unexpected (not in {models[0]})" in error
    assert f"model.norm.weight: (7,) in {tmp_path / 'a'}, (6,) in {models[0]}" in error
    assert "model.layers.1.mlp.bias: (2, 2) in" in error
    assert "logit_scale: I64 in" in error
    assert str(models[1]) not in error
    many = {f"other.{number}": np.ones(1, np.float32) for number in range(30)}
    with pytest.raises(InputError, match=r"30 unexpected(.|\n)*and 10 more"):
        plan_fusion(tmp_path / "out", models[0], [write(tmp_path / "b", many)], ADD)


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (-np.inf, "infinite numbers")])
@pytest.mark.parametrize("kind", [np.float32, BFLOAT16, np.float64])
def test_nan_names_tensor_and_file(
    models: list[Path], tmp_path: Path, value: float, name: str, kind: Any
):
    other = tensors(1)
    other["model.layers.2.mlp.weight"][3, 1] = value
    bad = write(tmp_path / "bad", {key: each.astype(kind) for key, each in other.items()})
    with pytest.raises(InputError) as caught:
        fuse(tmp_path / "out", models[0], [models[1], bad])
    start = f"{bad / 'model.safetensors'}: model.layers.2.mlp.weight holds {name};"
    assert str(caught.value).startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_shards_have_an_index_and_no_more_than_their_size(models: list[Path], tmp_path: Path):
    found = fuse(tmp_path / "out", models[0], models[1:], shard_bytes=150)
    assert_close(found, fuse(tmp_path / "whole", models[0], models[1:]), atol=0)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{n + 1:05}-of-{len(files):05}.safetensors" for n in range(len(files))]
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(found)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())
    for file in files:
        with safe_open(tmp_path / "out" / file, "np") as opened:
            keys = list(opened.keys())
            assert opened.metadata() == {"format": "pt"}
        assert {index["weight_map"][key] for key in keys} == {file}
        assert len(keys) == 1 or sum(found[key].nbytes for key in keys) <= 150
    assert_close(read_as_checkpoint(tmp_path / "out"), found, atol=0)


def read_as_checkpoint(folder: Path) -> Tensors:
    checkpoint = open_checkpoint(folder)
    return {key: load_file(entry.path)[key] for key, entry in checkpoint.entries.items()}


def test_tensors_lie_at_multiples_of_their_size(tmp_path: Path):
    content = {"a": np.ones(3, np.float16), "b": np.ones(3, np.float32), "c": np.ones(3, np.int8)}
    content["d"] = np.ones(1, np.float64)
    out = tmp_path / "out"
    fuse(out, write(tmp_path / "base", content), [write(tmp_path / "a", content)])
    data = (out / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    for key, value in content.items():
        assert header[key]["data_offsets"][0] % value.itemsize == 0


def test_metadata_of_the_base_is_kept(tmp_path: Path):
    for name in ("base", "a"):
        write(tmp_path / name, tensors(0))
    tied = {"format": "pt", "lm_head.weight": "model.embed_tokens.weight"}
    save_file(tensors(0), tmp_path / "base/model.safetensors", tied)
    fuse(tmp_path / "out", tmp_path / "base", [tmp_path / "a"])
    with safe_open(tmp_path / "out/model.safetensors", "np") as opened:
        assert opened.metadata() == tied


def test_configuration_and_tokenizer_come_from_the_base(tmp_path: Path):
    base, a = write(tmp_path / "base", tensors(0), 2), write(tmp_path / "a", tensors(1))
    config = {"dtype": "float32", "text_config": {"torch_dtype": "float32", "n": 1}, "act": "gelu"}
    kept = {"config.json": json.dumps(config), "tokenizer.model": "x", "chat_template.jinja": "y"}
    kept |= {"additional_chat_templates/tool.jinja": "z", "LICENSE": "MIT"}
    left = {"README.md": "base", "optimizer.pt": "", "trainer_state.json": "{}", "a.bin": ""}
    left |= {"modeling_x.py": "print()"}
    for name, text in (kept | left).items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    (a / "vocab.txt").write_text("of a model")
    fuse(tmp_path / "same", base, [a])
    for name, text in kept.items():
        assert (tmp_path / "same" / name).read_text() == text
    there = {str(p.relative_to(tmp_path / "same")) for p in (tmp_path / "same").rglob("*.*")}
    assert there == (set(kept) - {"LICENSE"}) | {"README.md", "fusion.json", "model.safetensors"}
    assert "base" not in (tmp_path / "same/README.md").read_text().splitlines()
    said = "Code of the base is left out: `modeling_x.py` (--carry-code takes it along)."
    assert said in (tmp_path / "same/README.md").read_text().splitlines()
    fuse(tmp_path / "half", base, [a], replace(ADD, dtype="bfloat16"), carry_code=True)
    assert (tmp_path / "half/modeling_x.py").read_text() == "print()"
    said = "Code of the base is taken along: `modeling_x.py`."
    assert said in (tmp_path / "half/README.md").read_text().splitlines()
    assert json.loads((tmp_path / "half/config.json").read_text()) == {
        "dtype": "bfloat16",
        "text_config": {"torch_dtype": "bfloat16", "n": 1},
        "act": "gelu",
    }


def test_quantised_weights_are_refused(tmp_path: Path):
    base, a = write(tmp_path / "base", tensors(0)), write(tmp_path / "a", tensors(1))
    (a / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    with pytest.raises(InputError, match=r"a/config.json: the weights are quantised .*gptq"):
        plan_fusion(tmp_path / "out", base, [a], ADD)


def test_the_card_names_inputs_hashes_and_options(models: list[Path], tmp_path: Path):
    recipe = Recipe(Ties(0.3), 0.8)
    fuse(tmp_path / "first", models[0], models[1:], recipe)
    card = (tmp_path / "first/README.md").read_text()
    record = json.loads((tmp_path / "first/fusion.json").read_text())
    for model, each in zip(models, record["inputs"], strict=True):
        sha256 = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
        assert each["files"][0]["sha256"] == sha256
        assert f"| {model.name} | model.safetensors | " in card
        assert f"`{sha256}`" in card
    assert "`base + 0.8 * ties(density=0.3)(a, b)`" in card
    assert "arXiv 2306.01708" in card
    assert (record["method"], record["scale"]) == ("ties(density=0.3)", 0.8)
    fuse(tmp_path / "again/first", models[0], models[1:], recipe)
    for path in (tmp_path / "first").iterdir():
        assert (tmp_path / "again/first" / path.name).read_bytes() == path.read_bytes()


def test_inputs_are_not_hashed_where_nobody_asks(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_hashes = fuse(tmp_path / "first", models[0], models[1:])
    monkeypatch.delattr("rmtllmf_jax.fusion.files.fusing.file_hash")
    Fuse(
        base=models[0],
        models=tuple(models[1:]),
        out=tmp_path / "second",
        scale="0.3",
        hash_inputs=False,
    ).run()
    assert_close(read(tmp_path / "second"), with_hashes, 0.0)
    record = json.loads((tmp_path / "second/fusion.json").read_text())
    assert all(
        set(file) == {"name", "bytes"} for each in record["inputs"] for file in each["files"]
    )
    assert record["recipe"]["hash_inputs"] is False
    card = (tmp_path / "second/README.md").read_text()
    assert card.count("| not computed (--no-hash-inputs) |") == 3


def test_models_of_one_name_are_told_apart_in_the_card(tmp_path: Path):
    base = write(tmp_path / "base", tensors(0))
    twins = [write(tmp_path / each / "final", tensors(1)) for each in ("x", "y")]
    fuse(tmp_path / "out", base, twins)
    card = (tmp_path / "out/README.md").read_text()
    assert all(f"| model | {twin} |" in card for twin in twins)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"a: no such file or directory; expected a safetensors file"),
        ("empty", r"a: expected model.safetensors or an index of shards, found no weights"),
        ("pickle", r"found only pytorch_model.bin; convert them to safetensors first"),
        ("two", r"cannot tell which of x.safetensors, y.safetensors to read"),
        ("cut", r"model.safetensors: not a readable safetensors file \(.*[Ii]ncomplete"),
        ("text", r"model.safetensors: not a readable safetensors file"),
        ("pointer", r"it is a Git LFS pointer in place of the weights"),
        ("shard", r"index.json: 1 of 2 shards are missing: model-2.safetensors"),
        ("index", r"a: names keys that no shard holds: more"),
        ("twice", r"logit_scale is in model-1.safetensors and in model-2.safetensors"),
        ("escape", r"logit_scale must name a file next to the index, got '../x.safetensors'"),
    ],
)
def test_an_unreadable_checkpoint_is_named(
    models: list[Path], tmp_path: Path, damage: str, message: str
):
    folder = tmp_path / "a"
    if damage in ("shard", "index", "twice", "escape"):
        write(folder, tensors(1), 2)
        index = folder / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        if damage == "shard":
            (folder / "model-2.safetensors").unlink()
        elif damage == "twice":
            second = load_file(folder / "model-2.safetensors")
            first = load_file(folder / "model-1.safetensors")
            save_file(first | second, folder / "model-2.safetensors")
            save_file(first | second, folder / "model-1.safetensors")
            keys = sorted(first | second)
            assert keys[0] == "logit_scale"
        else:
            change = {"more": "model-1.safetensors"}
            if damage == "escape":
                change = {"logit_scale": "../x.safetensors"}
            content["weight_map"] |= change
            index.write_text(json.dumps(content))
    elif damage != "missing":
        write(folder, tensors(1))
        file = folder / "model.safetensors"
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-5])
        elif damage == "text":
            file.write_text("no tensors here")
        elif damage == "pointer":
            file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        else:
            file.unlink()
            names = {"pickle": ["pytorch_model.bin"], "two": ["x.safetensors", "y.safetensors"]}
            for name in names.get(damage, []):
                (folder / name).write_text("")
    with pytest.raises(InputError, match=message):
        plan_fusion(tmp_path / "out", models[0], [folder], ADD)


@pytest.mark.parametrize(
    ("method", "models_used", "why"),
    [
        (Fisher(), 2, "the method fisher needs fishers, computed on data"),
        (Own(), 2, "the method own does not say `per_leaf = True`"),
        (Lata(), 1, "the method lata needs a reference, or more than one"),
        (LayerWise({"model.layers.7": 1.0}, 1.0), 2, "matches no layer"),
        (Slerp(), 3, "slerp takes 2 task vectors at most, got 3"),
    ],
)
def test_methods_that_cannot_merge_these_files_are_refused(
    models: list[Path], tmp_path: Path, method: Any, models_used: int, why: str
):
    given = (2 * models[1:])[:models_used]
    with pytest.raises(InputError, match=why):
        plan_fusion(tmp_path / "out", models[0], given, Recipe(method, 1.0))


def test_sizes_are_read():
    sizes = {"5GB": 5 * 10**9, "1.5 MB": 1_500_000, "2GiB": 2**31, "123": 123, "4kb": 4000}
    assert {text: bytes_of(text) for text in sizes} == sizes
    for text in ("", "GB", "5 apples", "-5GB", "0.1"):
        with pytest.raises(InputError, match="a size must be a number with a unit"):
            bytes_of(text)
