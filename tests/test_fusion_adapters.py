"""LoRA adapters and task vectors as models of `fuse`, against their products in NumPy."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import jax
import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file
from tiny_clip import write_clip

from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.cli.main import main
from rmtllmf_jax.data.task_data import TaskData
from rmtllmf_jax.fusion.files.adapters import open_adapter
from rmtllmf_jax.fusion.files.checkpoint import open_checkpoint
from rmtllmf_jax.fusion.files.low_rank import truncated
from rmtllmf_jax.fusion.files.merging import Stack
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.checkpoint import weights_hash
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.weights import save_tree
from rmtllmf_jax.training.task_models import Imported, import_vector

Tensors = dict[str, np.ndarray]
PREFIX = "base_model.model."
SHAPES = {
    "model.embed.weight": (30, 8),
    "model.layers.0.q_proj.weight": (8, 8),
    "model.layers.0.up.weight": (12, 8),
    "model.layers.0.norm.weight": (8,),
    "model.layers.1.q_proj.weight": (8, 8),
    "model.layers.1.up.weight": (12, 8),
    "model.layers.1.up.bias": (12,),
}


def normal(seed: int, shapes: dict[str, tuple[int, ...]], dtype: Any = np.float32) -> Tensors:
    random = np.random.default_rng(seed)
    return {key: random.normal(size=shape).astype(dtype) for key, shape in shapes.items()}


def write_adapter(
    folder: Path, seed: int, modules: dict[str, tuple[int, int]], rank: int = 2, **settings: Any
) -> Tensors:
    """Write an adapter to (outputs, inputs) matrices, and return its products times alpha / r."""
    shapes = {}
    for name, (rows, columns) in modules.items():
        shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, columns)
        shapes[f"{PREFIX}{name}.lora_B.weight"] = (rows, rank)
    factors = normal(seed, shapes)
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": 3} | settings
    (folder / "adapter_config.json").write_text(json.dumps(about))
    wide = {key: factor.astype(np.float64) for key, factor in factors.items()}
    return {
        f"{name}.weight": 3
        / rank
        * (wide[f"{PREFIX}{name}.lora_B.weight"] @ wide[f"{PREFIX}{name}.lora_A.weight"])
        for name in modules
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(normal(0, SHAPES), folder / "model.safetensors")
    return folder


ONE = {"model.layers.0.q_proj": (8, 8), "model.layers.0.up": (12, 8)}
TWO = {"model.layers.1.up": (12, 8), "model.layers.0.up": (12, 8)}


def fused(base: Path, models: list[Path], out: Path, **options: Any) -> Tensors:
    Fuse(base=base, models=tuple(models), out=out, **options).run()
    return load_file(next(out.glob("*model.safetensors")))


@pytest.mark.parametrize(
    "method",
    [
        "task_arithmetic(weights=(1, -0.5))",
        "ties(density=0.3)",
        "dare(drop=0.5)",
        "median",
        "lata(weighting=linear)",
    ],
)
def test_adapters_merge_as_the_models_that_they_make(base: Path, tmp_path: Path, method: str):
    before = load_file(base / "model.safetensors")
    for number, modules in enumerate((ONE, TWO)):
        change = write_adapter(tmp_path / f"adapter-{number}", number, modules)
        full = {k: (v + change.get(k, 0)).astype(np.float32) for k, v in before.items()}
        save_file(full, tmp_path / f"full-{number}.safetensors")
    names = ("adapter-{}", "full-{}.safetensors")
    found, expected = (
        fused(
            base,
            [tmp_path / name.format(number) for number in (0, 1)],
            tmp_path / f"out-{name[:4]}",
            method=method,
            scale="0.5",
            only=tuple(f"{module}.weight" for module in ONE | TWO),  # layers that LATA ranks
        )
        for name in names
    )
    for key in SHAPES:
        np.testing.assert_allclose(found[key], expected[key], 1e-5, 2e-6, err_msg=key)
        if f"{key.removesuffix('.weight')}" not in ONE | TWO:
            np.testing.assert_array_equal(found[key], before[key])


def test_bfloat16_is_rounded_once(tmp_path: Path):
    folder = tmp_path / "base"
    folder.mkdir()
    before = normal(0, SHAPES, bfloat16)
    save_file(before, folder / "model.safetensors")
    change = write_adapter(tmp_path / "adapter", 1, ONE)
    found = fused(folder, [tmp_path / "adapter"], tmp_path / "out")
    for key, tensor in before.items():
        exact = (tensor.astype(np.float64) + change.get(key, 0)).astype(np.float32)
        np.testing.assert_array_equal(found[key], exact.astype(bfloat16), err_msg=key)


@pytest.mark.parametrize("by_kernel", [True, False])
def test_memory_is_that_of_the_tensors_that_are_touched(
    tmp_path: Path, by_kernel: bool, monkeypatch: pytest.MonkeyPatch
):
    if not by_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    large = {"embed.weight": (4096, 512), "layer.weight": (64, 32)}
    save_file(normal(0, large), tmp_path / "base.safetensors")
    write_adapter(tmp_path / "adapter", 1, {"layer": (64, 32)})
    start = open_checkpoint(tmp_path / "base.safetensors")
    adapter = open_adapter(tmp_path / "adapter").fitted(start)
    tracemalloc.start()
    with Stack(start, [adapter] * 3, list(adapter.keys)) as stack:
        _, rows = stack.read("layer.weight")
        with open(tmp_path / "copy", "wb") as file:
            start.entries["embed.weight"].copy(file.fileno(), 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.shape == (3, 64, 32)
    # The table alone is 8 MiB; in a process that has run many tests something takes 2 besides.
    assert peak < 2**22
    table = load_file(tmp_path / "base.safetensors")["embed.weight"].tobytes()
    assert (tmp_path / "copy").read_bytes() == b"\0\0\0" + table


def test_the_truncation_is_the_nearest_matrix_of_its_rank():
    for seed, shape in enumerate([(7, 5), (5, 7), (6, 6)]):
        matrix = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        left, sizes, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        for rank in (1, 3, 5):
            b, a, kept, whole = truncated(matrix, rank)
            nearest = (left[:, :rank] * sizes[:rank]) @ right[:rank]
            np.testing.assert_allclose(b @ a, nearest, atol=1e-6)
            np.testing.assert_allclose(kept, np.sum(sizes[:rank] ** 2), rtol=1e-6)
            np.testing.assert_allclose(whole, np.sum(sizes**2), rtol=1e-6)
    b, a, kept, whole = truncated(np.zeros((3, 4), np.float32), 2)
    assert not (b @ a).any()
    assert kept == whole == 0


def test_an_adapter_of_too_low_a_rank_says_what_it_loses(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    change = write_adapter(tmp_path / "adapter", 1, ONE)
    out = tmp_path / "out"
    factors = fused(base, [tmp_path / "adapter"], out, as_adapter=1)
    energy = json.loads((out / "fusion.json").read_text())["energy"]
    sizes = {key: np.linalg.svd(delta)[1] ** 2 for key, delta in change.items()}
    for key, each in sizes.items():
        np.testing.assert_allclose(energy["tensors"][key], each[0] / each.sum(), rtol=1e-5)
    kept = sum(each[0] for each in sizes.values()) / sum(each.sum() for each in sizes.values())
    np.testing.assert_allclose(energy["overall"], kept, rtol=1e-5)
    assert f"the adapter has {kept:.4%} of the merged vector's energy." in capsys.readouterr().out
    assert f"| all | {kept:.6f} |" in (out / "README.md").read_text()
    assert sorted(factors) == sorted(
        f"{PREFIX}{module}.lora_{side}.weight" for module in ONE for side in "AB"
    )
    main(["fuse", str(out / "fusion.json"), "--out", str(tmp_path / "rerun")])
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "rerun" / name).read_bytes() == (out / name).read_bytes()
    # What was written is an adapter to the base again.
    again = fused(base, [out], tmp_path / "again")
    before = load_file(base / "model.safetensors")
    for module in ONE:
        a, b = (factors[f"{PREFIX}{module}.lora_{side}.weight"] for side in "AB")
        key = f"{module}.weight"
        np.testing.assert_allclose(again[key], before[key] + b @ a, atol=1e-6)


def test_an_adapter_and_other_vocabularies(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """An adapter to rows that others renumber is refused, and so is one with new rows."""
    before = load_file(base / "model.safetensors")
    before["model.embed_tokens.weight"] = before.pop("model.embed.weight")
    other = {k: v + 0.5 for k, v in before.items()}
    other["model.embed_tokens.weight"] = np.concatenate(
        [other["model.embed_tokens.weight"], np.ones((1, 8), np.float32)]
    )
    (tmp_path / "other").mkdir()
    for folder, tensors in ((base, before), (tmp_path / "other", other)):
        save_file(tensors, folder / "model.safetensors")
        words = {f"t{n}": n for n in range(len(tensors["model.embed_tokens.weight"]))}
        content = {"model": {"type": "BPE", "vocab": words}, "added_tokens": []}
        if folder != base:
            added = {"id": 30, "content": "t30", "special": False}
            content["model"]["vocab"].pop("t30")  # type: ignore[index]
            content["added_tokens"] = [added]
        (folder / "tokenizer.json").write_text(json.dumps(content))
    write_adapter(tmp_path / "adapter", 1, {"model.embed_tokens": (30, 8)})
    words = ["fuse", "--base", base, "--tokenizer", "union", "--out", tmp_path / "out"]
    both = ["--models", tmp_path / "other", tmp_path / "adapter"]
    assert "changes model.embed_tokens.weight, whose rows are others in the output" in refused(
        capsys, *words, *both
    )
    one = ["--models", tmp_path / "other", "--as-adapter", 2]
    assert "an adapter has the vocabulary of its base" in refused(capsys, *words, *one)
    main([str(word) for word in (*words, *both, "--from-base", "model.embed_tokens.*")])
    assert (tmp_path / "out" / "model.safetensors").is_file()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run the command, which must refuse, and return what it says."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "LOHA"}, "an adapter of the kind LOHA, and only LoRA is read as one; merge"),
        ({"peft_type": "IA3"}, "an adapter of the kind IA3"),
        ({"peft_type": "PREFIX_TUNING"}, "and has no weights that could be merged"),
        ({"use_dora": True}, "not a plain LoRA but DoRA; merge it into its base model (PEFT's"),
        ({"target_parameters": ["experts.w"]}, "LoRA of parameters that are no layer's weight"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights = pissa_niter_4, which changes",
        ),
        ({"trainable_token_indices": [3]}, "not a plain LoRA but trainable tokens"),
        ({"layer_replication": [[0, 2]]}, "a base whose layers are repeated"),
        ({"new_thing": "x"}, "new_thing = x, which is not known here"),
        (
            {"r": 4},
            "has factors of (2, 8) and (8, 2); expected rank 4, as adapter_config",
        ),
        ({"r": "8"}, "adapter_config.json: r must be a whole number from 1, got '8'"),
        ({"lora_alpha": None}, "lora_alpha must be a number, got None"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern['q_proj'] must be a whole number from 1"),
        ({"alpha_pattern": {"(": 1}}, "'(' is not a regular expression"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object, got [1]"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: Any, said: str
):
    write_adapter(tmp_path / "adapter", 1, ONE, **settings)
    words = ["fuse", "--base", base, "--models", tmp_path / "adapter", "--out", tmp_path / "out"]
    assert said in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


Q = f"{PREFIX}model.layers.0.q_proj"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{PREFIX}model.layers.0.w_proj.lora_A.weight": (2, 8)}, "w_proj has lora_A; expected"),
        (
            {f"{PREFIX}model.layers.9.q_proj.lora_{s}.weight": (2, 2) for s in "AB"},
            "1 of 3 tensors that it changes are not in BASE (--from-base leaves them out): "
            "model.layers.9.q_proj.weight (did you mean model.layers.1.q_proj.weight?)",
        ),
        (
            {f"{Q}.lora_magnitude_vector": (8,)},
            "lora_magnitude_vector does not belong to a plain LoRA",
        ),
        (
            {f"{PREFIX}model.layers.0.q_proj.hada_w1_a": (8, 2)},
            "hada_w1_a does not belong to a plain LoRA",
        ),
        (
            {f"{PREFIX}model.embed.weight": (31, 8)},
            "belongs to a model of other sizes than BASE: it",
        ),
    ],
)
def test_tensors_that_fit_no_base_are_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tensors: Any, said: str
):
    write_adapter(tmp_path / "adapter", 1, ONE)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(load_file(path) | normal(2, tensors), path)
    words = ["fuse", "--base", base, "--models", tmp_path / "adapter", "--out", tmp_path / "out"]
    assert said.replace("BASE", str(base)) in refused(capsys, *words)


def test_files_and_bases_that_are_not_there_are_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    adapters = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(adapters):
        write_adapter(folder, seed, ONE, base_model_name_or_path="owner/other")
    words = ["--models", *adapters, "--out", tmp_path / "out"]
    assert "one: an adapter (LoRA or similar: " in refused(
        capsys, "fuse", "--base", adapters[0], *words
    )
    main([str(word) for word in ("fuse", "--base", base, *words)])
    assert "one: says that its base is owner/other; it is put on" in capsys.readouterr().out
    (adapters[0] / "adapter_model.safetensors").rename(adapters[0] / "adapter_model.bin")
    words[-1] = tmp_path / "again"
    said = refused(capsys, "fuse", "--base", base, *words)
    assert "expected adapter_model.safetensors, found adapter_model.bin; load the adapter" in said


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP, a fine-tuned image tower, its task vector, and an adapter to the tower."""
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder / "base")
    write_clip(folder / "mnist", 1, near=folder / "base")
    import_vector(str(folder / "base"), str(folder / "mnist"), "mnist", folder / "vectors")
    shape = load_file(folder / "base" / "model.safetensors")[f"{TOWER}.q_proj.weight"].shape
    write_adapter(folder / "vectors" / "svhn", 2, {f"{TOWER}.q_proj": shape})
    return folder


TOWER = "vision_model.encoder.layers.0.self_attn"


def test_a_task_vector_is_put_on_a_checkpoint(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    vector = clip / "vectors" / "mnist.safetensors"
    words = ["apply-task-vector", clip / "base", vector, "--scale", 0.5, "--out", tmp_path / "out"]
    main([str(word) for word in words])
    before, after, found = (
        load_file(folder / "model.safetensors")
        for folder in (clip / "base", clip / "mnist", tmp_path / "out")
    )
    assert found.keys() == before.keys()
    for key, tensor in before.items():
        change = after[key] - tensor if key.startswith("vision_model.") else 0
        np.testing.assert_allclose(found[key], tensor + 0.5 * change, atol=1e-6, err_msg=key)
    # The same vector, the model that it is of, an adapter and a trained tower in one merge.
    backbone, tower = load_backbone(clip / "mnist")
    save_tree(tmp_path / "tower.safetensors", tower, {"user": "mnist-1"})
    models = [vector, clip / "mnist", clip / "vectors" / "svhn", tmp_path / "tower.safetensors"]
    merged = fused(clip / "base", models, tmp_path / "sum", scale="1", from_base=("text.*",))
    key = f"{TOWER}.q_proj.weight"
    factors = load_file(clip / "vectors" / "svhn" / "adapter_model.safetensors")
    a, b = (factors[f"{PREFIX}{TOWER}.q_proj.lora_{side}.weight"] for side in "AB")
    expected = before[key] + 3 * (after[key] - before[key]) + 1.5 * b @ a
    np.testing.assert_allclose(merged[key], expected, atol=2e-6)
    del backbone
    capsys.readouterr()


def test_a_vector_of_another_base_or_damaged_is_refused(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    vector = clip / "vectors" / "mnist.safetensors"
    words = ["--out", tmp_path / "out"]
    said = refused(capsys, "apply-task-vector", clip / "mnist", vector, *words)
    assert f"{vector}: a task vector of another base model ({clip / 'base'})" in said
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(vector.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    said = refused(capsys, "apply-task-vector", clip / "base", damaged, *words)
    assert f"{damaged}: damaged, its content is not what its checksum says" in said


def test_a_user_may_have_an_adapter_for_a_task_vector(clip: Path):
    """The fine-tuned tower is the base's and the adapter's product."""
    backbone, base = load_backbone(clip / "base")
    base_hash = weights_hash(clip / "base")
    models = Imported(base, str(clip / "base"), base_hash, backbone, clip / "vectors")
    task = create_autospec(TaskData, instance=True)
    task.name, task.train, task.validation, task.test = "svhn", None, None, None
    tower = models.params(task, create_autospec(Head, instance=True), clip)
    factors = load_file(clip / "vectors" / "svhn" / "adapter_model.safetensors")
    a, b = (factors[f"{PREFIX}{TOWER}.q_proj.lora_{side}.weight"] for side in "AB")
    change = jax.tree.map(lambda x, y: np.asarray(x - y), tower, base)
    kernel = change["encoder"]["layers"]["0"]["self_attn"]["q_proj"].pop("kernel")
    np.testing.assert_allclose(kernel, (1.5 * b @ a).T, atol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(change))
    assert models.key("svhn") != models.key("mnist")
