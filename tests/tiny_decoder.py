"""A tiny decoder of text with its tokenizer as a Hugging Face directory, made without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.decoder_configs import read_decoder_config
from rmtllmf_jax.models.layouts import to_torch
from rmtllmf_jax.models.pretrained import abstract_decoder

MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("an", "d")]
SPECIAL = ["<s>", "</s>"]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def write_tokenizer(folder: Path) -> int:
    """Write a byte-level BPE of a few merges that begins texts with <s>; return its size."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *letters, *("".join(pair) for pair in MERGES)]
    inner = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, MERGES))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    inner.add_special_tokens(SPECIAL)
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return len(words)


def write_decoder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a model with random parameters, its configuration and its tokenizer."""
    size = write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": size} | changes))
    decoder = Decoder(read_decoder_config(folder / "config.json"))
    random = np.random.default_rng(seed)
    tensors = {}
    for path, leaf in leaves_by_path(abstract_decoder(decoder)).items():
        values = random.normal(0, 0.3, leaf.shape).astype(np.float32) + path.endswith("scale")
        key, tensor = to_torch(path, values)
        tensors[key] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
