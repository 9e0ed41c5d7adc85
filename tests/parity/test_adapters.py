"""LoRA adapters against PEFT: merge_and_unload, add_weighted_adapter, and what PEFT opens again."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.fusion.rules.sparsifiers import keep_mask
from rmtllmf_jax.training.task_models import import_vector

pytest.importorskip("torch", reason="PEFT needs torch: pip install 'rmtllmf-jax[parity]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs
    pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    import peft
    import torch
    import transformers

TOLERANCE = 1e-6
LOST = {
    "vit.embeddings.cls_token",
    "vit.embeddings.position_embeddings",
    "vision_model.embeddings.class_embedding",
    "logit_scale",
}
"""Parameters that are no module's weight."""
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
IMAGE = {"image_size": 8, "patch_size": 4}


def llama() -> Any:
    config = transformers.LlamaConfig(**SIZES, **TEXT, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


def qwen2() -> Any:
    config = transformers.Qwen2Config(
        **SIZES, **TEXT, num_key_value_heads=1, tie_word_embeddings=True
    )
    return transformers.Qwen2ForCausalLM(config)


def gpt2() -> Any:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**TEXT, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    )


def clip() -> Any:
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**SIZES, **TEXT, "max_position_embeddings": 8},
            vision_config={**SIZES, **IMAGE},
            projection_dim=8,
        )
    )


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **IMAGE))


# Every architecture with two adapters that differ in rank, scale, and what they reach.
CASES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "llama": (
        llama,
        [
            {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8},
            {
                "target_modules": "all-linear",
                "r": 2,
                "lora_alpha": 3,
                "use_rslora": True,
                "rank_pattern": {r"layers\.0\.self_attn\.(q|v)_proj": 3, "q_proj": 5},
                "alpha_pattern": {"1.mlp.up_proj": 7, "up_proj": 1},
            },
        ],
    ),
    "qwen2": (
        qwen2,
        [
            {"target_modules": ["q_proj", "k_proj"], "r": 2, "bias": "lora_only"},
            {"target_modules": ["embed_tokens", "o_proj"], "r": 3, "lora_alpha": 5},
        ],
    ),
    "gpt2": (
        gpt2,
        [
            {"target_modules": ["c_attn"], "r": 2, "fan_in_fan_out": True},
            {
                "target_modules": ["c_attn", "c_proj", "c_fc", "wte"],
                "r": 3,
                "fan_in_fan_out": False,  # PEFT corrects it
                "lora_bias": False,
            },
        ],
    ),
    "clip": (
        clip,
        [
            {"target_modules": ["q_proj", "v_proj"], "r": 2, "lora_bias": True},
            {"target_modules": ["fc1", "patch_embedding"], "modules_to_save": ["text_projection"]},
        ],
    ),
    "vit": (
        vit,
        [
            {"target_modules": ["q_proj", "fc2"], "r": 2, "bias": "all"},
            {"target_modules": ["v_proj", "projection"], "modules_to_save": ["classifier"]},
        ],
    ),
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Their warnings, of embeddings and of orientations that they correct, are no errors here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write(folder: Path, case: str, dtype: Any = torch.float32) -> tuple[Path, list[Path], Any]:
    """Write a base and its adapters, with random factors; return also the base in memory."""
    make, settings = CASES[case]
    torch.manual_seed(0)
    base = make().to(dtype).eval()
    base.save_pretrained(folder / "base")
    paths = []
    for number, options in enumerate(settings):
        config = peft.LoraConfig(init_lora_weights=False, **options)
        model = peft.get_peft_model(copy.deepcopy(base), config)
        for name, weight in model.named_parameters():
            if "bias" in name or "modules_to_save" in name:
                weight.data += 0.1 * torch.randn_like(weight)
        paths.append(folder / f"adapter-{number}")
        model.save_pretrained(paths[-1])
    return folder / "base", paths, base


def merged_by_peft(base: Any, adapter: Path, out: Path) -> dict[str, np.ndarray]:
    """Return the weights of base and adapter merged, as transformers saves them."""
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), adapter)
    model.merge_and_unload().save_pretrained(out)
    return tensors(out)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def fuse(base: Path, models: list[Path], out: Path, **options: Any) -> dict[str, np.ndarray]:
    Fuse(base=base, models=tuple(models), out=out, **options).run()
    return tensors(out)


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for key in found:
        np.testing.assert_allclose(found[key], expected[key], TOLERANCE, TOLERANCE, err_msg=key)


@pytest.mark.parametrize("case", CASES)
def test_adapters_are_what_peft_merges(case: str, tmp_path: Path):
    base, adapters, model = write(tmp_path, case)
    before = tensors(base)
    changes = []
    for number, adapter in enumerate(adapters):
        expected = merged_by_peft(model, adapter, tmp_path / f"peft-{number}")
        found = fuse(base, [adapter], tmp_path / f"ours-{number}")
        assert_close(found, expected)
        assert any(np.abs(expected[key] - before[key]).max() > 0.01 for key in before)
        changes.append({key: expected[key] - before[key] for key in before})
    # An adapter and a full fine-tune of the base.
    found = fuse(base, [tmp_path / "peft-0", adapters[1]], tmp_path / "mixed", scale="0.5")
    sums = {key: before[key] + 0.5 * (changes[0][key] + changes[1][key]) for key in before}
    assert_close(found, sums)


def finetuned(base: Path, model: Any, out: Path) -> Path:
    """Write a full fine-tune of a base: every parameter is another."""
    torch.manual_seed(1)
    model = copy.deepcopy(model)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("case", CASES)
def test_peft_opens_what_is_written_as_an_adapter(case: str, tmp_path: Path):
    """Adapters are whole again at a rank that has them all; so is a fine-tune at full rank."""
    base, adapters, model = write(tmp_path, case)
    before = tensors(base)
    full = finetuned(base, model, tmp_path / "full")
    for name, models, rank in (("adapters", adapters, 16), ("whole-rank", [full], 64)):
        options = {"base": base, "models": tuple(models), "scale": "0.7"}
        whole = fuse(out=tmp_path / f"{name}-whole", **options)
        out = tmp_path / name
        Fuse(**options, out=out, as_adapter=rank).run()
        found = merged_by_peft(model, out, tmp_path / f"{name}-peft")
        energy = json.loads((out / "fusion.json").read_text())["energy"]["tensors"]
        assert energy.keys() == {key for key in whole if (whole[key] != before[key]).any()}
        lost = {key for key, share in energy.items() if share == 0}
        assert lost <= LOST
        np.testing.assert_allclose([energy[key] for key in energy.keys() - lost], 1, 1e-6)
        expected = whole | {key: before[key] for key in lost}
        for key in found:
            np.testing.assert_allclose(found[key], expected[key], 1e-6, 2e-6, err_msg=key)


@pytest.mark.parametrize("case", ["clip", "vit"])
def test_a_vector_is_imported_from_an_adapter(case: str, tmp_path: Path):
    """It is that of the model that PEFT merges, text tower and classifier left out."""
    base, adapters, model = write(tmp_path, case)
    for number, adapter in enumerate(adapters):
        merged_by_peft(model, adapter, tmp_path / f"peft-{number}")
        sources = {"ours": adapter, "theirs": tmp_path / f"peft-{number}"}
        found, expected = (
            import_vector(str(base), str(source), f"task-{number}", tmp_path / name).by_leaf()
            for name, source in sources.items()
        )
        assert found.keys() == expected.keys()
        assert any(np.abs(leaf).max() > 0.01 for leaf in found.values())
        for path in found:
            np.testing.assert_allclose(found[path], expected[path], 0, TOLERANCE, err_msg=path)


PAIR: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "o_proj"], "r": 4, "lora_alpha": 8},
    {"target_modules": ["q_proj", "o_proj"], "r": 4, "lora_alpha": 2, "use_rslora": True},
]
"""Of one rank, which PEFT's `linear` asks for, and to square weights, which its `svd` takes."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path], Any]:
    """A Llama, and two adapters to the same layers."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setitem(CASES, "pair", (llama, PAIR))
        return write(tmp_path_factory.mktemp("pair"), "pair")


def combined(
    pair: tuple[Path, list[Path], Any], out: Path, weights: tuple[float, ...], **options: Any
) -> dict[str, np.ndarray]:
    """Return the weights of the base with what `add_weighted_adapter` makes of the two."""
    _, adapters, base = pair
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), adapters[0], "0")
    model.load_adapter(adapters[1], "1")
    model.add_weighted_adapter(["0", "1"], list(weights), "both", **options)
    model.set_adapter("both")
    model.merge_and_unload().save_pretrained(out)
    return tensors(out)


WEIGHTS = (0.75, -0.5)


def test_products_add_up_as_peft_adds_them(pair: tuple[Path, list[Path], Any], tmp_path: Path):
    """`cat` and `svd` are exact; `linear` adds factors, which is another model."""
    base, adapters, model = pair
    method = {"method": f"task_arithmetic(weights={WEIGHTS})", "scale": "1"}
    found = fuse(base, adapters, tmp_path / "ours", **method)
    before = tensors(base)
    for name, options in (("cat", {}), ("svd", {"svd_rank": 8})):
        theirs = combined(pair, tmp_path / name, WEIGHTS, combination_type=name, **options)
        assert_close(found, theirs)
    theirs = combined(pair, tmp_path / "linear", WEIGHTS, combination_type="linear")
    key = "model.layers.0.self_attn.q_proj.weight"
    changes = [each[key] - before[key] for each in (found, theirs)]
    assert np.linalg.norm(changes[0] - changes[1]) > 0.5 * np.linalg.norm(changes[0])
    # Of a lower rank, both are the nearest matrix: --as-adapter.
    Fuse(base=base, models=tuple(adapters), out=tmp_path / "low", as_adapter=2, **method).run()
    ours = merged_by_peft(model, tmp_path / "low", tmp_path / "low-peft")
    theirs = combined(pair, tmp_path / "svd-2", WEIGHTS, combination_type="svd", svd_rank=2)
    assert_close(ours, theirs)


def test_ties_of_products_as_peft_has_it(pair: tuple[Path, list[Path], Any], tmp_path: Path):
    base, adapters, _ = pair
    method = {"method": "ties(density=0.25)", "scale": "1"}
    options = {"combination_type": "ties_svd", "svd_rank": 16, "density": 0.25}
    expected = combined(pair, tmp_path / "theirs", (1.0, 1.0), **options)
    assert_close(fuse(base, adapters, tmp_path / "ours", **method), expected)


def test_dare_of_products_with_the_same_masks(
    pair: tuple[Path, list[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base, adapters, _ = pair
    before, drop = tensors(base), 0.4
    masks = {}
    for user, adapter in enumerate(adapters):
        after = fuse(base, [adapter], tmp_path / f"alone-{user}")
        for key in after:
            if "q_proj" in key or "o_proj" in key:
                mask = keep_mask(jax.random.key(5), user, key, after[key].shape, drop)
                masks[key, user] = after[key] - before[key], np.array(mask, np.float32)

    def same_masks(tensor: Any, density: float, rescale: bool) -> Any:
        assert density == pytest.approx(1 - drop)
        fits = [
            mask
            for delta, mask in masks.values()
            if delta.shape == tuple(tensor.shape) and np.allclose(delta, tensor, atol=1e-5)
        ]
        return tensor * torch.from_numpy(fits[0]) / (density if rescale else 1)

    monkeypatch.setattr(peft.utils.merge_utils, "random_pruning", same_masks)
    options = {"combination_type": "dare_linear_svd", "svd_rank": 16, "density": 1 - drop}
    expected = combined(pair, tmp_path / "theirs", WEIGHTS, **options)
    method = f"dare(drop={drop}, weights={WEIGHTS})"
    found = fuse(base, adapters, tmp_path / "ours", method=method, scale="1", seed=5)
    assert_close(found, expected)
