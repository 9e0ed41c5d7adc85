"""Decoders of text against transformers in torch: logits, gradients, every family and layout."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.export import export_decoder
from rmtllmf_jax.models.generation import Sampled, generate
from rmtllmf_jax.models.layouts import to_decoder_paths
from rmtllmf_jax.models.pretrained import load_decoder
from rmtllmf_jax.models.text import end_tokens, read_tokenizer

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama tied, biased": (
        "Llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, rope llama3": ("Llama", {"rope_parameters": LLAMA3, "num_key_value_heads": 4}),
    "llama, rope linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": 24, "head_dim": 16, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {"hidden_act": "gelu"}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


def build(family: str, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """Return a model whose every parameter, biases and scales too, is random."""
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**TINY | options | changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.2 * noise + key.endswith("norm.weight"))
            else:
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
    return model.eval()


def tokens(count: int = 2, length: int = 24) -> np.ndarray:
    return np.random.default_rng(1).integers(0, TINY["vocab_size"], (count, length))


def torch_loss(model: torch.nn.Module, ids: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(input_ids=torch.from_numpy(ids)).logits
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    return logits, torch.nn.functional.cross_entropy(flat, torch.from_numpy(ids[:, 1:]).flatten())


def assert_parity(model: torch.nn.Module, folder: Path, ids: np.ndarray, **options: Any) -> None:
    """Compare logits, and the gradient of the mean cross-entropy in every parameter."""
    theirs, loss = torch_loss(model, ids)
    loss.backward()
    decoder, params = load_decoder(folder, **options)

    def ours(params: dict) -> tuple[jax.Array, jax.Array]:
        logits = decoder.apply({"params": params}, jnp.asarray(ids))
        chosen = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(chosen, ids[:, 1:, None], axis=-1).mean(), logits

    gradient, logits = jax.jit(jax.grad(ours, has_aux=True))(params)
    np.testing.assert_allclose(logits, theirs.detach().numpy(), rtol=0, atol=1e-5)
    expected = {
        key: parameter.grad.numpy()
        for key, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    expected = to_decoder_paths(expected, decoder.shape.tied, True)
    found = leaves_by_path(gradient)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_transformers(family: str, tmp_path: Path):
    model = build(family)
    model.save_pretrained(tmp_path)
    assert_parity(model, tmp_path, tokens(), remat=family == "qwen3")


def test_every_layout_of_weights_is_read(tmp_path: Path):
    """Sharded, the trunk alone under a tied head, with old buffers, and in bfloat16."""
    model = build("llama tied, biased")
    whole = tmp_path / "whole"
    model.save_pretrained(whole)
    _, expected = load_decoder(whole)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model.model.save_pretrained(tmp_path / "trunk")
    tensors = load_file(whole / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    shutil.copytree(whole, tmp_path / "old")
    save_file(tensors, tmp_path / "old" / "model.safetensors")
    for name in ("shards", "trunk", "old"):
        jax.tree.map(np.testing.assert_array_equal, load_decoder(tmp_path / name)[1], expected)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    half = load_decoder(tmp_path / "half")[1]
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), expected)
    jax.tree.map(np.testing.assert_array_equal, half, rounded)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, tmp_path / "old" / "model.safetensors")
    with pytest.raises(InputError, match="unexpected: lm_head/kernel"):
        load_decoder(tmp_path / "old")


def test_transformers_opens_what_is_exported_and_says_the_same(tmp_path: Path):
    """Greedy text too, of prompts of different lengths, from a model that is not the base's."""
    build("qwen3").save_pretrained(tmp_path / "base")
    build("qwen3", seed=1).save_pretrained(tmp_path / "other")
    decoder, params = load_decoder(tmp_path / "other")
    export_decoder(tmp_path / "out", tmp_path / "base", params)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert_parity(theirs, tmp_path / "out", tokens())
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14]]
    ours = generate(decoder, params, prompts, 12)
    for prompt, found in zip(prompts, ours):
        ids = torch.tensor([prompt])
        full = theirs.generate(
            ids, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert found == full[0, len(prompt) :].tolist()
    export_decoder(tmp_path / "half", tmp_path / "base", params, dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    rounded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert rounded.dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.8}])
def test_samples_are_drawn_from_the_tokens_of_transformers(options: dict[str, Any]):
    logits = np.random.default_rng(0).normal(0, 2, (4, 40)).astype(np.float32)
    theirs = torch.from_numpy(logits) / 0.7
    if "top_k" in options:
        theirs = transformers.TopKLogitsWarper(options["top_k"])(None, theirs)
    if "top_p" in options:
        theirs = transformers.TopPLogitsWarper(options["top_p"])(None, theirs)
    ours = Sampled(temperature=0.7, **options).kept(jnp.asarray(logits))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


def needed(variable: str) -> Path:
    """Return the folder that an environment variable names; skip without it."""
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


def nats(decoder: Decoder, params: dict, ids: list[int]) -> float:
    """Return the mean loss of the first 4,096 tokens in windows of 256, the first of each given."""
    rows = np.array(ids[:4096]).reshape(-1, 256)
    logits = jax.jit(decoder.apply)({"params": params}, rows)
    chosen = jax.nn.log_softmax(logits[:, :-1])
    return -float(jnp.take_along_axis(chosen, rows[:, 1:, None], axis=-1).mean())


@pytest.mark.slow
def test_a_real_llama_tells_its_story():
    """The stories260K checkpoint of karpathy's tinyllamas; RMTLLMF_DECODER is its directory."""
    folder = needed("RMTLLMF_DECODER")
    decoder, params = load_decoder(folder)
    tokenizer = read_tokenizer(folder, decoder.shape)
    start = "Once upon a time, there was a little girl named Lily."
    prompt = tokenizer(start)["input_ids"]
    added = generate(decoder, params, [prompt], 60, end=end_tokens(tokenizer))
    told = tokenizer.decode(prompt + added[0], skip_special_tokens=True).strip()
    assert told.startswith(
        start + " She loved to play outside in the park. One day, she saw a big, red ball. She "
        "wanted to play with it, but it was too high."
    )


@pytest.mark.slow
def test_a_real_llama_is_as_surprised_as_in_torch():
    """By WikiText-2, GSM8K and HumanEval, which are in the folder RMTLLMF_TEXTS."""
    folder, texts = needed("RMTLLMF_DECODER"), needed("RMTLLMF_TEXTS")
    decoder, params = load_decoder(folder)
    tokenizer = read_tokenizer(folder, decoder.shape)

    def lines(name: str) -> list[dict]:
        return [json.loads(line) for line in (texts / name).read_text().splitlines()]

    questions = [
        f"Question: {x['question']}\nAnswer: {x['answer']}" for x in lines("gsm8k_test.jsonl")
    ]
    programs = [x["prompt"] + x["canonical_solution"] for x in lines("humaneval.jsonl")]
    for text, expected in (
        ((texts / "wikitext2_test.txt").read_text(), 5.478),
        ("\n\n".join(questions), 5.675),
        ("\n".join(programs), 6.202),
    ):
        ids = tokenizer(text[:40_000], verbose=False)["input_ids"]
        assert nats(decoder, params, ids) == pytest.approx(expected, abs=1e-3)
