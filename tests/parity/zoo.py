"""Tiny models that transformers writes, to be merged and compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch", reason="needs torch: pip install 'rmtllmf-jax[parity]'")
import transformers as hf  # noqa: E402

Tensors = dict[str, np.ndarray]
TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
IMAGES = {"image_size": 8, "patch_size": 4}


def llama(**more: Any) -> Any:
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return hf.LlamaConfig(**TINY | {"vocab_size": 12, "num_key_value_heads": 1} | tokens | more)


def gpt2(**more: Any) -> Any:
    shape = {"vocab_size": 12, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2}
    return hf.GPT2Config(**shape | {"bos_token_id": 1, "eos_token_id": 2} | more)


def bert(kind: str = "Bert", **more: Any) -> Any:
    shape = TINY | {"vocab_size": 12, "max_position_embeddings": 16, "pad_token_id": 0}
    return getattr(hf, f"{kind}Config")(**shape | more)


def vit(**more: Any) -> Any:
    return hf.ViTConfig(**TINY | IMAGES | more)


def clip() -> Any:
    text = TINY | {"vocab_size": 12, "max_position_embeddings": 8, "eos_token_id": 2}
    return hf.CLIPConfig(text_config=text, vision_config=TINY | IMAGES, projection_dim=8)


class Zoo:
    """Writes tiny models, and changes what it wrote."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(self, name: str, kind: Any, config: Any, **how: Any) -> Path:
        """Write a model of random weights; other names give other weights."""
        torch.manual_seed(sum(map(ord, name)))
        model = kind(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return self.keep(name, model.to(how.pop("dtype", torch.float32)), **how)

    def keep(self, name: str, model: Any, **how: Any) -> Path:
        model.save_pretrained(self.root / name, **how)
        return self.root / name

    def three(self, kind: Any, config: Any) -> tuple[Path, list[Path]]:
        """Return a base and two models of it."""
        base, *models = (self.save(name, kind, config) for name in ("base", "one", "two"))
        return base, models

    def copy(self, path: Path, change: Callable[[Tensors], Tensors], suffix: str = " old") -> Path:
        """Return a copy of a directory with changed tensors."""
        new = path.with_name(path.name + suffix)
        shutil.copytree(path, new)
        tensors = change(load_file(path / "model.safetensors"))
        whole = {key: np.array(value, order="C") for key, value in tensors.items()}
        save_file(whole, new / "model.safetensors", {"format": "pt"})
        return new


@dataclass
class Case:
    """What is merged, and what is to come of it."""

    base: Path
    models: list[Path]
    kind: Any
    """The class that opens the output."""
    options: dict[str, Any] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    """Of the notes, regular expressions."""
    refused: str = ""
    """What is said without the options."""
    kept: str = "^$"
    """Names of transformers that stay as in the base."""
    like: list[Path] | None = None
    """The models in a form that this transformers reads."""
    start: Path | None = None
    """The base in such a form."""
    never: bool = False
    """Whether no option merges them."""


def tokenizer(folder: Path, *added: str) -> None:
    """Write a tokenizer of twelve words and some that are added."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", *"abcdefghi"]
    plain = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    fast.add_tokens(list(added), special_tokens=True)
    fast.save_pretrained(folder)


ADDED = {"base": (), "one": ("<|user|>", "<|end|>"), "two": ("<|end|>", "<|tool|>")}


def vocabularies(zoo: Zoo, choice: str, kept: list[str]) -> Case:
    """Return a base of 12 tokens and two models that added some, one of them to both.

    `kept` are the added tokens of the output. What transformers is to read for comparison has a row
    for each, written here: a token's own, or else the mean of those that have it.
    """
    kind = hf.LlamaForCausalLM
    paths = {n: zoo.save(n, kind, llama(vocab_size=12 + len(ADDED[n]))) for n in ADDED}
    for name, path in paths.items():
        tokenizer(path, *ADDED[name])
    tensors = {name: load_file(path / "model.safetensors") for name, path in paths.items()}

    def row(name: str, key: str, token: str) -> np.ndarray:
        have = [each for each in ADDED if token in ADDED[each]]
        from_models = [name] if name in have else have
        rows = [tensors[each][key][12 + ADDED[each].index(token)] for each in from_models]
        return np.mean(rows, axis=0)

    like = []
    for name, path in paths.items():
        changed = {
            key: np.stack([*tensors[name][key][:12], *(row(name, key, token) for token in kept)])
            for key in ("model.embed_tokens.weight", "lm_head.weight")
        }
        like.append(zoo.copy(path, lambda there, changed=changed: there | changed))
        config = json.loads((path / "config.json").read_text()) | {"vocab_size": 12 + len(kept)}
        (like[-1] / "config.json").write_text(json.dumps(config))
    refused = r"one: 2 tokens that the base has not \(<\|user\|>, <\|end\|>\), 12 in common"
    what = "are left out" if choice == "base" else "are in the output"
    says = (rf"one: 2 tokens of its own \(<\|user\|>, <\|end\|>\) {what}",)
    options = {"tokenizer": choice}
    models = [paths["one"], paths["two"]]
    return Case(paths["base"], models, kind, options, says, refused, start=like[0], like=like[1:])
