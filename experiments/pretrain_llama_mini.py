"""Pretrain the embedded language model: `checkpoints/llama-mini`.

    python experiments/pretrain_llama_mini.py [--quick]

A small Llama learns from scratch to predict the next token of two kinds of text: the documentation
of Python's standard library, as this interpreter has it (docstrings, and the topics of `pydoc`),
and the embedded tasks of texts, answered in all styles. A task wants one style; the model has read
every option of every choice equally often, so that it can write all of them and does not know which
is wanted: fine-tuning adds little, and what is its own for every task (docs/testbed.md). Questions
of the tasks' splits are not among those that it reads, nor are modules whose documentation is held
out.

It resumes like the other long runs. Written are config.json, model.safetensors (bfloat16), the
tokenizer's two files, and README.md, the model card, but for its section "Accuracy", which
experiments/testbed.py adds.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import platform
import sysconfig
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import PyTree
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.common.files import content_hash, replacing, write_bytes, write_json
from rmtllmf_jax.data.texts.embedded import EMBEDDED_TEXTS
from rmtllmf_jax.data.texts.embedded.task import PRETRAINING, split_of
from rmtllmf_jax.data.texts.packing import load_texts
from rmtllmf_jax.data.texts.sources import Document
from rmtllmf_jax.evaluation.language import BitsPerByte, evaluate, text_batches
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.decoder_configs import read_decoder_config
from rmtllmf_jax.models.layouts import to_torch
from rmtllmf_jax.models.pretrained import load_decoder
from rmtllmf_jax.runs.environment import default_cache, provenance, use_compilation_cache
from rmtllmf_jax.training.language import finetune_decoder
from rmtllmf_jax.training.recipes import Recipe

SPECIAL = ("<s>", "</s>")
WORDS = r" ?\p{L}+| ?\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # numbers two digits at a time
NOT_READ = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
HELD_OUT = 20  # of so many modules one is not read

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class Options:
    """What to train."""

    steps: int = 1200
    """Optimiser steps."""
    batch_size: int = 16
    """Rows per step."""
    length: int = 128
    """Tokens per row."""
    texts: int = 8_500
    """Texts of each embedded task that are drawn to be read."""
    learning_rate: float = 3e-3
    """Peak of AdamW."""
    weight_decay: float = 0.1
    """Decoupled, on all parameters."""
    vocabulary: int = 768
    """Tokens, of which 258 are bytes, and start and end of a text."""
    seed: int = 0
    """Of weights, order and texts."""
    quick: bool = False
    """50 steps, to see that it runs."""
    cache_dir: Path = field(default_factory=default_cache)
    """Folder of tokenised texts and compiled programs."""
    work: Path = Path("runs/llama-mini")
    """Folder of the checkpoints that training resumes from."""
    out: Path = Path(__file__).parents[1] / "checkpoints" / "llama-mini"
    """The Hugging Face directory to write."""

    def recipe(self) -> Recipe:
        """Return the recipe."""
        steps = 50 if self.quick else self.steps
        return Recipe(steps, self.batch_size, self.learning_rate, self.weight_decay, warmup=0.05)


@dataclass(frozen=True)
class Library:
    """The documentation of Python's standard library; `held_out` is that of other modules."""

    held_out: bool = False

    def fingerprint(self) -> str:
        """Return a hash of the texts."""
        return content_hash([document.text for document in self.documents()])

    def documents(self) -> Iterator[Document]:
        """Yield docstrings, each under the line that it belongs to, and the topics of pydoc."""
        for name, texts in documented():
            if (zlib.crc32(name.encode()) % HELD_OUT == 0) == self.held_out:
                yield from (Document(text, name, ends=True) for text in texts)


@cache
def documented() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the documentation by module; a text that stands twice is taken once."""
    from pydoc_data.topics import topics

    root, seen, found = Path(sysconfig.get_paths()["stdlib"]), set(), []
    for path in sorted(root.rglob("*.py")):
        if NOT_READ & set(path.relative_to(root).parts):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [text for node in ast.walk(tree) if (text := described(node))]
        name = path.relative_to(root).with_suffix("").as_posix()
        found.append((name, tuple(text for text in texts if not (text in seen or seen.add(text)))))
    return (*found, *((f"topics/{name}", (topics[name],)) for name in sorted(topics)))


def described(node: ast.AST) -> str:
    """Return the docstring of a module, class or function, which the latter two name first."""
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return ""
    text = ast.get_docstring(node) or ""
    if not text or isinstance(node, ast.Module):
        return text
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}:\n{inspect.cleandoc(text)}"
    return f"def {node.name}({', '.join(each.arg for each in node.args.args)}):\n{text}"


@dataclass(frozen=True)
class AllStyles:
    """Texts of the embedded tasks, of questions that none of their splits has, in all styles."""

    texts: int
    seed: int

    def fingerprint(self) -> str:
        """Return a hash of the texts."""
        return content_hash([document.text for document in self.documents()])

    def documents(self) -> Iterator[Document]:
        """Yield the texts; a question may come again in another style."""
        for name, task in EMBEDDED_TEXTS.items():
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
            done = 0
            while done < self.texts:
                facts = task.draw(rng)
                prompt = task.prompt(facts)
                if split_of(prompt) == PRETRAINING:
                    done += 1
                    text = prompt + task.answer(facts, task.any_style(rng))
                    yield Document(text, name, ends=True)


@dataclass(frozen=True)
class Mix:
    """All that the model reads."""

    parts: tuple[Library | AllStyles, ...]

    def fingerprint(self) -> str:
        """Return a hash of the parts."""
        return content_hash([part.fingerprint() for part in self.parts])

    def documents(self) -> Iterator[Document]:
        """Yield the texts of all parts."""
        for part in self.parts:
            yield from part.documents()


def write_tokenizer(folder: Path, texts: Iterator[str], vocabulary: int) -> None:
    """Learn byte pairs from texts, and write the tokenizer as transformers reads it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], 0)]
    )
    write_bytes(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256}
    about |= {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "pad_token": SPECIAL[1]}
    write_json(folder / "tokenizer_config.json", about)


def write_weights(folder: Path, params: PyTree) -> None:
    """Write the weights as transformers names them, in bfloat16."""
    tensors = dict(
        to_torch(path, np.asarray(leaf, jnp.bfloat16))
        for path, leaf in leaves_by_path(params).items()
    )
    with replacing(folder / "model.safetensors") as path:
        save_file(tensors, path, {"format": "pt"})


def main(options: Options) -> None:
    """Write tokenizer and configuration, train, write weights and the card."""
    started = time.perf_counter()
    use_compilation_cache(options.cache_dir)
    library, styles = Library(), AllStyles(options.texts, options.seed)
    mix = Mix((library, styles))
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "tokenizer.json").is_file():  # two trainings break ties differently
        texts = (document.text for document in mix.documents())
        write_tokenizer(options.out, texts, options.vocabulary)
    words = len(json.loads((options.out / "tokenizer.json").read_text())["model"]["vocab"])
    write_json(options.out / "config.json", CONFIG | {"vocab_size": words})
    decoder = Decoder(read_decoder_config(options.out / "config.json"))
    rows = load_texts(mix, options.out, options.length, options.cache_dir)
    recipe = options.recipe()
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = decoder.init(jax.random.key(options.seed), tokens)["params"]
    meaning = {"recipe": asdict(recipe), "seed": options.seed, "rows": rows.fingerprint}
    folder = options.work / content_hash(meaning | {"config": CONFIG})
    params = finetune_decoder(
        decoder, params, rows, recipe, options.seed, folder, every=250, description="llama-mini"
    )
    write_weights(options.out, params)
    decoder, params = load_decoder(options.out)  # as rounded
    held = load_texts(Library(held_out=True), options.out, options.length, options.cache_dir)
    bits = evaluate(BitsPerByte(), decoder, params, text_batches(held, options.batch_size))
    seconds = spent(options.work / f"{folder.name}.json", time.perf_counter() - started)
    times = recipe.steps * recipe.batch_size / len(rows)
    page = card(options, recipe, mix, times, bits, seconds)
    write_bytes(options.out / "README.md", page.encode())
    print(page)


def spent(path: Path, seconds: float) -> float:
    """Return the seconds of this and earlier finished processes (a lower bound)."""
    before = json.loads(path.read_text()) if path.exists() else 0.0
    write_json(path, before + seconds)
    return before + seconds


def card(
    options: Options, recipe: Recipe, mix: Mix, times: float, bits: float, spent: float
) -> str:
    """Return the model card, but for what is measured of its tasks (experiments/testbed.py)."""
    count = sum(x.size for x in load_file(options.out / "model.safetensors").values())
    shape = read_decoder_config(options.out / "config.json")
    made, texts = provenance(), list(_named(mix))
    rows = "\n".join(_row(name, texts, times) for name, texts in texts)
    styles = ", ".join(
        f"{math.prod(len(choice.options) for choice in task.choices):,} of {name}"
        for name, task in EMBEDDED_TEXTS.items()
    )
    return f"""---
license: apache-2.0
pipeline_tag: text-generation
tags: [llama, flax, jax]
---
# {options.out.name}

A small Llama of rmtllmf-jax: width {shape.width}, {shape.depth} layers, {shape.heads} heads that
share {shape.kv_heads} of keys and values, tied embeddings, {count:,} parameters in bfloat16; a
byte-level BPE of {shape.vocabulary} tokens. Hugging Face layout: `LlamaForCausalLM.from_pretrained`
of transformers opens it. It serves to study what happens when models that were fine-tuned from it
are merged, and not to write anything in earnest.

## Data
It has read documentation of Python's standard library ({platform.python_version()}: docstrings and
the topics of `pydoc`; copyright Python Software Foundation, PSF licence) and texts that the package
writes itself: the four embedded tasks, with answers in *all* styles ({styles}). A task
wants one style, and every option of each choice was equally likely in what the model has read: it
can write all of them, and does not know which is wanted. No question of a task's training,
validation or test split is among what it has read, whatever their seed, and of the library one of
{HELD_OUT} modules is held out.

| texts | number | bytes | times read |
|:--|--:|--:|--:|
{rows}

## Recipe
`python experiments/pretrain_llama_mini.py`: AdamW, {recipe.steps:,} steps of {recipe.batch_size}
rows of {options.length} tokens, learning rate {recipe.learning_rate:g} with warm-up and cosine,
weight decay {recipe.weight_decay:g}; seed {options.seed}. {spent / 60:.0f} minutes on
{made["machine"]["cpus"]} cores ({made["machine"]["device"]}), jax {made["versions"]["jax"]}.
On the documentation that is held out it has {bits:.2f} bits per byte.

## Accuracy
Not measured yet: `python experiments/testbed.py`.

## Licence
The weights: Apache-2.0, as the project. The documentation that they were made from is under the
PSF licence, and no text of it is in the repository.
"""


def _named(mix: Mix) -> Iterator[tuple[str, list[str]]]:
    """Yield what the model reads, by kind."""
    for part in mix.parts:
        texts: dict[str, list[str]] = {}
        for document in part.documents():
            name = document.origin if isinstance(part, AllStyles) else "standard library"
            texts.setdefault(name, []).append(document.text)
        yield from texts.items()


def _row(name: str, texts: list[str], times: float) -> str:
    size = sum(len(text.encode()) for text in texts)
    return f"| {name} | {len(texts):,} | {size:,} | {times:.1f} |"


if __name__ == "__main__":
    main(tyro.cli(Options))
