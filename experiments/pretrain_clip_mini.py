"""Pretrain the embedded CLIP on CIFAR-10: `checkpoints/clip-mini`.

    python experiments/pretrain_clip_mini.py --data DATA [--quick]

A small CLIP (vision encoder: 32 x 32 pixels, patches of 8, width 128, 6 layers; text tower: width
64, 2 layers; 1.4 million parameters) learns from pairs of images and captions, contrastively. DATA
holds `cifar10/` as parquet files or image folders. Captions are made of class names, their synonyms
and the transformation of the image (coloured light, upside down), so that one image class has many
texts. The loss is CLIP's, with all pairs of a batch that have the same class and transformation as
positives. Then the vision encoder is frozen, and the text tower learns to distinguish other texts
(clip_mini_texts.py).

It resumes like the other long runs, and keeps an existing tokenizer. Written are config.json,
model.safetensors, the tokenizer's two files, preprocessor_config.json, and README.md, the model
card with the accuracies reached on CIFAR-10's own test images.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from clip_mini_captions import CHANGES, TEMPLATES, WORDS, all_captions, caption
from clip_mini_texts import (
    TEXT_PARTS,
    contrastive_loss,
    known_words,
    random_phrases,
    sharpness_limited,
    text_step,
)
from jaxtyping import Array, Float, Int, PyTree, UInt8
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.common.files import content_hash, replacing, write_bytes, write_json
from rmtllmf_jax.data.sources import get_source
from rmtllmf_jax.data.task_data import TaskData, load_task
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.clip import CLIP
from rmtllmf_jax.models.configs import read_config
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.heads import lda_head, unit_length
from rmtllmf_jax.models.images import normalise
from rmtllmf_jax.models.layouts import to_torch
from rmtllmf_jax.models.pretrained import load_clip
from rmtllmf_jax.models.tokens import load_tokenizer, tokenise
from rmtllmf_jax.models.zero_shot import zero_shot_head
from rmtllmf_jax.runs.environment import default_cache, provenance, use_compilation_cache
from rmtllmf_jax.training.batches import epoch_batch
from rmtllmf_jax.training.finetune import first_state, gradient_step, run_steps
from rmtllmf_jax.training.recipes import Recipe

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)  # of CIFAR-10's train images
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
PADDING = 4  # pixels that a crop may be shifted by

CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": 64,
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    },
}


@dataclass(frozen=True)
class Options:
    """What to train."""

    data: Path
    """Folder that holds `cifar10/`."""
    steps: int = 4000
    """Optimiser steps of both towers."""
    text_steps: int = 1500
    """Steps of only the text tower."""
    batch_size: int = 128
    """Pairs per step."""
    learning_rate: float = 1e-3
    """Peak of AdamW."""
    weight_decay: float = 0.05
    """Decoupled, on all parameters."""
    vocabulary: int = 1024
    """Tokens, of which 514 are bytes, their ends of words, and start and end of a text."""
    seed: int = 0
    """Of weights, order, changes and captions."""
    quick: bool = False
    """50 steps, to see that it runs."""
    cache_dir: Path = field(default_factory=default_cache)
    """Folder of decoded images and compiled programs."""
    work: Path = Path("runs/clip-mini")
    """Folder of the checkpoints that training resumes from."""
    out: Path = Path(__file__).parents[1] / "checkpoints" / "clip-mini"
    """The Hugging Face directory to write."""

    def recipe(self) -> Recipe:
        """Return the recipe of both towers."""
        steps = 50 if self.quick else self.steps
        return Recipe(steps, self.batch_size, self.learning_rate, self.weight_decay)

    def text_recipe(self) -> Recipe:
        """Return the recipe of the text tower alone."""
        return replace(self.recipe(), steps=50 if self.quick else self.text_steps)


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Learn byte pairs from the captions, and write CLIP's two files."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(sorted(set(all_captions())), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    pairs = [tuple(merge) for merge in merges if "".join(merge) not in words]
    words += [*("".join(pair) for pair in pairs), *SPECIAL]
    write_json(folder / "vocab.json", {word: place for place, word in enumerate(words)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs), ""]
    write_bytes(folder / "merges.txt", "\n".join(lines).encode())


def write_config(folder: Path) -> None:
    """Write the configuration for the existing tokenizer."""
    words = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    ends = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    text = CONFIG["text_config"] | {"vocab_size": words, **ends}
    write_json(folder / "config.json", CONFIG | {"text_config": text})
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": MEAN,
        "image_std": STD,
    }
    write_json(folder / "preprocessor_config.json", processor)


def write_weights(folder: Path, params: PyTree) -> None:
    """Write the weights as transformers names them."""
    tensors = {}
    for path, leaf in leaves_by_path(params).items():
        key, tensor = to_torch(path, np.asarray(leaf, np.float32))
        tensors[key] = tensor
    with replacing(folder / "model.safetensors") as path:
        save_file(tensors, path, {"format": "pt"})


def changed(
    images: UInt8[Array, "batch size size channels"],
    factors: Float[Array, "batch channels"],
    turned: Int[Array, " batch"],
    shifts: Int[Array, "batch 2"],
    mirrored: Int[Array, " batch"],
) -> Float[Array, "batch size size channels"]:
    """Return shifted and mirrored images under coloured light, some upside down; normalised."""
    size = images.shape[1]
    wide = jnp.pad(images, ((0, 0), (PADDING,) * 2, (PADDING,) * 2, (0, 0)), mode="reflect")

    def one(image: Array, shift: Array, mirror: Array, turn: Array) -> Array:
        image = jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), (size, size, 3))
        image = jnp.where(mirror, image[:, ::-1], image)
        return jnp.where(turn, image[::-1], image)

    lit = jax.vmap(one)(wide, shifts, mirrored, turned) * factors[:, None, None]
    return normalise(jnp.round(lit).astype(jnp.uint8), MEAN, STD)


@partial(jax.jit, static_argnames=("clip", "recipe"), donate_argnames="state")
def train_step(
    state: PyTree, batch: dict[str, Array], *, clip: CLIP, recipe: Recipe
) -> tuple[PyTree, Float[Array, ""]]:
    """Take one step; returns the state and the loss before it."""
    images = images_of(batch)

    def loss(params: PyTree) -> Float[Array, ""]:
        logits = clip.apply({"params": params}, images, batch["tokens"])
        return contrastive_loss(logits, batch["meaning"])

    return sharpness_limited(*gradient_step(state, loss, recipe))


@dataclass(frozen=True)
class Pairs:
    """Batches of images and captions, a pure function of seed and step."""

    task: TaskData
    images: UInt8[np.ndarray, "n 32 32 3"]
    tokens: dict[str, Int[np.ndarray, " context"]]
    batch_size: int
    seed: int

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the batch of a step."""
        generator = np.random.default_rng([self.seed, 1, step])
        rows = epoch_batch(len(self.task.train), self.batch_size, step, self.seed)
        labels = self.task.train.labels[rows]
        # Half of the images are unchanged.
        kinds = generator.integers(1, len(CHANGES), self.batch_size)
        kinds *= generator.random(self.batch_size) < 0.5
        texts = [
            caption(self.task.classes[label], CHANGES[kind], generator)
            for label, kind in zip(labels, kinds, strict=True)
        ]
        return {
            "images": self.images[rows],
            "tokens": np.stack([self.tokens[text] for text in texts]),
            "meaning": labels.astype(np.int32) * len(CHANGES) + kinds.astype(np.int32),
            "factors": np.array([CHANGES[kind].factors for kind in kinds], np.float32),
            "turned": np.array([CHANGES[kind].turned for kind in kinds], np.int32),
            "shifts": generator.integers(0, 2 * PADDING + 1, (self.batch_size, 2)),
            "mirrored": generator.integers(0, 2, self.batch_size),
        }


def main(options: Options) -> None:
    """Write tokenizer and configuration, train, write weights and the card."""
    started = time.perf_counter()
    use_compilation_cache(options.cache_dir)
    task = load_task(get_source("folder", options.data), "cifar10", 32, options.cache_dir)
    assert set(task.classes) == set(WORDS), f"not CIFAR-10's classes: {task.classes}"
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "merges.txt").is_file():  # two trainings break ties differently
        write_tokenizer(options.out, options.vocabulary)
    write_config(options.out)
    clip = CLIP(read_config(options.out / "config.json").clip(options.out))
    tokenizer = load_tokenizer(options.out, clip.shape.text)
    texts = all_captions()
    context = max(len(row) for row in tokenizer(texts)["input_ids"])
    tokens = dict(zip(texts, tokenise(texts, tokenizer, context), strict=True))
    recipe = options.recipe()
    pairs = Pairs(task, task.train.images, tokens, recipe.batch_size, options.seed)
    first = pairs.batch(0)
    params = clip.init(
        jax.random.key(options.seed), jnp.zeros((1, 32, 32, 3)), jnp.asarray(first["tokens"][:1])
    )["params"]
    state = first_state(params, recipe)

    def take(state: PyTree, step: int) -> tuple[PyTree, Float[Array, ""]]:
        return train_step(state, pairs.batch(step), clip=clip, recipe=recipe)

    meaning = {"recipe": asdict(recipe), "seed": options.seed, "config": CONFIG}
    folder = options.work / content_hash(meaning)
    state = run_steps(state, take, recipe.steps, folder, every=500, description="clip-mini")
    params = with_other_texts(clip, state["params"], pairs, tokenizer, options, folder)
    write_weights(options.out, params)
    seconds = spent(options.work / f"{folder.name}.json", time.perf_counter() - started)
    found = accuracies(options.out, task)
    page = card(options, recipe, len(task.train), seconds, found)
    write_bytes(options.out / "README.md", page.encode())
    print(page)


def with_other_texts(
    clip: CLIP, params: PyTree, pairs: Pairs, tokenizer: Any, options: Options, first: Path
) -> PyTree:
    """Return the parameters after the text tower's own training; `first` is the folder of the
    training before.
    """
    recipe, words = options.text_recipe(), known_words()
    parts = {name: params[name] for name in TEXT_PARTS}
    rest = {name: part for name, part in params.items() if name not in TEXT_PARTS}
    state = first_state(parts, recipe)
    context = clip.shape.text.positions

    def take(state: PyTree, step: int) -> tuple[PyTree, Float[Array, ""]]:
        # Seeds that the first training did not use.
        batch = pairs.batch(options.recipe().steps + step)
        phrases = random_phrases(words, np.random.default_rng([options.seed, 2, step]))
        return text_step(
            state,
            rest,
            directions(params, batch, clip=clip),
            batch["meaning"],
            batch["tokens"],
            tokenise(phrases, tokenizer, context),
            clip=clip,
            recipe=recipe,
        )

    folder = first.with_name(f"{first.name}-{content_hash({'texts': asdict(recipe)})}")
    state = run_steps(state, take, recipe.steps, folder, every=500, description="its texts")
    return {**rest, **state["params"]}


@partial(jax.jit, static_argnames="clip")
def directions(
    params: PyTree, batch: dict[str, Array], *, clip: CLIP
) -> Float[Array, "batch features"]:
    """Return the unit features of a batch's images."""
    found = clip.apply({"params": params}, images_of(batch), method="image_features")
    return unit_length(found)


def images_of(batch: dict[str, Array]) -> Float[Array, "batch size size channels"]:
    """Return a batch's images as its captions describe them."""
    return changed(*(batch[n] for n in ("images", "factors", "turned", "shifts", "mirrored")))


def spent(path: Path, seconds: float) -> float:
    """Return the seconds of this and earlier finished processes (a lower bound)."""
    before = json.loads(path.read_text()) if path.exists() else 0.0
    write_json(path, before + seconds)
    return before + seconds


def accuracies(folder: Path, task: TaskData) -> dict[str, float]:
    """Return the accuracies of the written model on CIFAR-10's test images."""
    backbone, tower = load_backbone(folder)
    clip, params = load_clip(folder)
    test = extract_features(backbone, tower, task.test.images)
    few = task.train.take(np.arange(10_000))
    train = extract_features(backbone, tower, few.images)
    names = [WORDS[name][0] for name in task.classes]
    heads = {
        "zero-shot": zero_shot_head(clip, params, load_tokenizer(folder), names, TEMPLATES),
        "linear head on the frozen features (LDA, 10,000 train images)": lda_head(
            train, few.labels, len(names)
        ),
    }
    labels = task.test.labels
    return {
        name: float(np.mean(np.argmax(head(jnp.asarray(test)), axis=-1) == labels))
        for name, head in heads.items()
    }


def card(
    options: Options, recipe: Recipe, images: int, seconds: float, found: dict[str, float]
) -> str:
    """Return the model card."""
    tensors = load_file(options.out / "model.safetensors").values()
    count = sum(tensor.size for tensor in tensors)
    made, texts = provenance(), options.text_recipe()
    rows = "\n".join(f"| {name} | {100 * value:.1f} % |" for name, value in found.items())
    quick = " --quick" if options.quick else ""
    return f"""---
license: apache-2.0
pipeline_tag: zero-shot-image-classification
tags: [clip, flax, jax]
---
# clip-mini

A small CLIP that comes with rmtllmf-jax, so that everything runs without a download: vision encoder
for 32 x 32 pixels (patches of 8, width 128, 6 layers), text tower (width 64, 2 layers),
{count:,} parameters. Hugging Face layout: `CLIPModel.from_pretrained` of transformers opens it. It
serves to run the pipeline, not to classify images in earnest.

## Data
The {images:,} images of CIFAR-10's train split that are not set aside for validation (Krizhevsky,
"Learning Multiple Layers of Features from Tiny Images", 2009; real photographs; its authors state
no licence and ask to be cited; the images are not in this repository). No image of the embedded
tasks was seen. {len(all_captions()):,} captions are made of class names, synonyms, and the
transformation of the image: coloured light, darkness, upside down.

## Recipe
`python experiments/pretrain_clip_mini.py --data DATA{quick}`: CLIP's contrastive loss, all pairs
of one class and one change being positives; AdamW, {recipe.steps:,} steps of {recipe.batch_size}
pairs, learning rate {recipe.learning_rate:g} with warm-up and cosine, weight decay
{recipe.weight_decay:g}; shifts and mirror images; seed {options.seed}. Then {texts.steps:,} steps
of only the text tower, in which it also learns to distinguish random phrases (words of the class
names of the literature's eight tasks, and random letters), so that words that occur in no caption
still have directions of their own. {seconds / 60:.0f} minutes on {made["machine"]["cpus"]} cores
({made["machine"]["device"]}), jax {made["versions"]["jax"]}.

## Accuracy on CIFAR-10's 10,000 test images
| | |
|---|---|
{rows}

## Licence
The weights: Apache-2.0, as the project.
"""


if __name__ == "__main__":
    main(tyro.cli(Options))
