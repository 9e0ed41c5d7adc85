"""A tiny SigLIP with its tokenizer as a Hugging Face directory, made without torch."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tiny_clip import write_weights
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

CONTEXT, VOCABULARY = 40, 64
_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
SIGLIP_CONFIG: dict[str, Any] = {
    "model_type": "siglip",
    "architectures": ["SiglipModel"],
    "vision_config": _TOWER | {"image_size": 16, "patch_size": 4},
    "text_config": _TOWER | {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT},
    # As published: of another vocabulary, and read by nobody.
}
SIGLIP_CONFIG["text_config"] |= {"bos_token_id": 49406, "eos_token_id": 49407}
_TEXTS = (
    *("a photo of a cat", "a photo of a dog, a bird and a plane", "satellite photo of forest"),
    *("the quick brown fox jumps over the lazy dog", "a photo of class 0 1 2 3 4 5 6 7 8 9"),
)


def write_pieces(folder: Path) -> Path:
    """Write a model of sentencepiece, with the special tokens of SigLIP's at their places."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXTS),
        model_writer=model,
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(model.getvalue())
    said = {"tokenizer_class": "SiglipTokenizer", "model_max_length": CONTEXT}
    said |= {"model_input_names": ["input_ids"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def write_fast_tokenizer(folder: Path) -> Path:
    """Write a `tokenizer.json` by words and letters, as SigLIP 2 has no other file."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("0123456789.,'-_")
    words = ["<pad>", "<eos>", "<unk>", "▁", "▁a", "▁photo", "▁of", "▁class", *letters]
    plain = Tokenizer(models.Unigram([(w, -float(i)) for i, w in enumerate(words)], unk_id=2))
    plain.normalizer = normalizers.Replace(" ", "▁")
    plain.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    plain.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    plain.save(str(folder / "tokenizer.json"))
    said = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"padding_side": "right"}))
    return folder


def write_siglip(folder: Path, seed: int = 0, *, near: Path | None = None) -> Path:
    """Write a random SigLIP; with `near` its weights are as if fine-tuned from another's."""
    write_pieces(folder)
    (folder / "config.json").write_text(json.dumps(SIGLIP_CONFIG))
    write_weights(folder, seed, near)
    return folder
