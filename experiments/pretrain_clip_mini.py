"""Pretrain the embedded CLIP: `checkpoints/clip-mini`, or a study model of the same kind.

    python experiments/pretrain_clip_mini.py --data DATA [--study --out MODEL] [--quick]

A small CLIP (vision encoder: 32 x 32 pixels, patches of 8, width 192, 4 layers; text tower: width
96, 2 layers) learns from pairs of images and captions from scratch, contrastively, with all pairs
of a batch that have the same meaning as positives. DATA holds `cifar10/`, `eurosat/` and `mnist/`
as parquet files or image folders. What it sees, and how often a caption names it, is in
clip_mini_mix.py; `--naming` is the one number that decides how much of fine-tuning's accuracy the
model reaches without it. With `--study` it sees the training images of seven of the literature's
eight tasks in place of the embedded tasks; some of them may not stand behind weights that ship.
With `--start VIT` the image tower begins as that ViT, at `--size` pixels, and not from scratch.

The text tower also learns to spread class names and random phrases over the sphere (uniformity:
Wang and Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity
on the Hypersphere", 2020): names that occur in no or few captions would otherwise lie in one place
("slippery road" on "uneven road"), and no task with such names could be fine-tuned.

It resumes like the other long runs. Written are config.json, model.safetensors, the tokenizer's two
files, preprocessor_config.json, and README.md, the model card.
"""

from __future__ import annotations

import json
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from clip_mini_mix import SEEDS, SIZE, TEMPLATES, Part, draw, load_mix
from clip_mini_mix import __file__ as mix_file
from jaxtyping import Array, Float, Int, PyTree, UInt8
from safetensors.numpy import load_file, save_file
from vit_start import ViTStart
from vit_start import __file__ as start_file

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash, replacing, write_bytes, write_json
from rmtllmf_jax.data.registry import SINGLE_PROMPT, task_facts
from rmtllmf_jax.data.tasks import TASK_NAMES
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.checkpoint import weights_hash
from rmtllmf_jax.models.clip import CLIP
from rmtllmf_jax.models.configs import read_config
from rmtllmf_jax.models.heads import unit_length
from rmtllmf_jax.models.images import normalise
from rmtllmf_jax.models.layouts import to_torch
from rmtllmf_jax.models.tokens import load_tokenizer, tokenise
from rmtllmf_jax.models.zero_shot import zero_shot_head
from rmtllmf_jax.runs.environment import default_cache, provenance, use_compilation_cache
from rmtllmf_jax.training.finetune import first_state, gradient_step, run_steps
from rmtllmf_jax.training.recipes import Recipe

Pixels = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation that images are normalised by."""
OF_CIFAR10: Pixels = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)  # its train images
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
GROUPS, SIBLINGS = 8, 8  # groups of phrases that the text tower learns to tell apart
WORDS, LETTERS = 4, 20  # of a random phrase, at most: in letters it fits into the tower's tokens
CODE = (__file__, mix_file, start_file)  # decides what a training computes
SHOWN = 16  # images of a set that a ViT is fitted to
ALIKE = 0.99  # cosine of two heads above which they are called alike
SHARPNESS = 2.0  # of the uniformity loss, as in its paper

CONFIG: dict[str, Any] = {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": 128,
    "vision_config": {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "image_size": SIZE,
        "patch_size": 8,
    },
    "text_config": {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 32,
    },
}


@dataclass(frozen=True)
class Options:
    """What to train."""

    data: Path
    """Folder that holds `cifar10/`, `eurosat/` and `mnist/`."""
    study: bool = False
    """See the real tasks' training images in place of the embedded tasks'."""
    start: Path | None = None
    """A ViT that the image tower of a study model begins as (a Hugging Face directory)."""
    size: int = SIZE
    """Pixels of the images of a study model."""
    steps: int = 4000
    """Optimiser steps."""
    batch_size: int = 128
    """Pairs per step."""
    learning_rate: float = 1e-3
    """Peak of AdamW."""
    weight_decay: float = 0.05
    """Decoupled, on all parameters."""
    naming: float = 11.0
    """Decay of how often a class's name is used, see clip_mini_mix.py."""
    vocabulary: int = 1536
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

    def __post_init__(self) -> None:
        if not self.study and (self.start or self.size != SIZE):
            raise InputError(
                f"--start and --size are for a --study model; the one that ships has {SIZE} pixels."
            )

    def recipe(self) -> Recipe:
        """Return the recipe of both towers."""
        steps = 50 if self.quick else self.steps
        return Recipe(steps, self.batch_size, self.learning_rate, self.weight_decay, warmup=0.05)


def write_tokenizer(folder: Path, captions: Sequence[str], vocabulary: int) -> None:
    """Learn byte pairs from the captions, and write CLIP's two files."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(sorted(set(captions)), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    pairs = [tuple(merge) for merge in merges if "".join(merge) not in words]
    words += [*("".join(pair) for pair in pairs), *SPECIAL]
    write_json(folder / "vocab.json", {word: place for place, word in enumerate(words)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs), ""]
    write_bytes(folder / "merges.txt", "\n".join(lines).encode())


def write_config(folder: Path, vision: dict[str, Any], pixels: Pixels) -> None:
    """Write the configuration for the existing tokenizer."""
    words = len(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    ends = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    text = CONFIG["text_config"] | {"vocab_size": words, **ends}
    write_json(folder / "config.json", CONFIG | {"vision_config": vision, "text_config": text})
    size = vision["image_size"]
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": pixels[0],
        "image_std": pixels[1],
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


@partial(jax.jit, static_argnames=("clip", "recipe", "pixels"), donate_argnames="state")
def train_step(
    state: PyTree,
    images: UInt8[Array, "batch size size channels"],
    captions: Int[Array, "batch tokens"],
    meaning: Int[Array, " batch"],
    phrases: Int[Array, "texts more_tokens"],
    *,
    clip: CLIP,
    recipe: Recipe,
    pixels: Pixels,
) -> tuple[PyTree, Float[Array, ""]]:
    """Take one step; returns the state and the loss before it."""

    def loss(params: PyTree) -> Float[Array, ""]:
        logits = clip.apply({"params": params}, normalise(images, *pixels), captions)
        texts = clip.apply({"params": params}, phrases, method="text_features")
        return contrastive_loss(logits, meaning) + uniformity(unit_length(texts))

    state, value = gradient_step(state, loss, recipe)
    scale = jnp.minimum(state["params"]["logit_scale"], jnp.log(100.0))  # CLIP's limit
    return {**state, "params": {**state["params"], "logit_scale": scale}}, value


def contrastive_loss(
    logits: Float[Array, "batch batch"], meaning: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Return CLIP's symmetric loss, with all pairs of equal meaning as positives."""
    same = (meaning[:, None] == meaning).astype(logits.dtype)
    target = same / same.sum(axis=1, keepdims=True)
    rows = optax.softmax_cross_entropy(logits, target)
    columns = optax.softmax_cross_entropy(logits.T, target)
    return (rows.mean() + columns.mean()) / 2


def uniformity(texts: Float[Array, "texts features"]) -> Float[Array, ""]:
    """Return ``log mean exp(-t |u - v|^2)`` over all pairs of unit vectors; low if uniform."""
    apart = 2 - 2 * texts @ texts.T
    pairs = ~jnp.eye(len(texts), dtype=bool)
    return jax.nn.logsumexp(-SHARPNESS * apart, where=pairs) - jnp.log(pairs.sum())


def known_names(parts: Sequence[Part], fits: Callable[[str], bool]) -> list[list[str]]:
    """Return the class names of every set of the mix and of the literature's tasks that the tower's
    tokens can hold.
    """
    sets = [task_facts(task).classes for task in TASK_NAMES] + [part.classes for part in parts]
    known = [[name for name in each if fits(max(TEMPLATES, key=len).format(name))] for each in sets]
    return [names for names in known if len(names) >= SIBLINGS]


def known_words(names: list[list[str]]) -> list[str]:
    """Return the words and numbers of class names, each once."""
    words = {word.lower() for each in names for name in each for word in name.split()}
    return sorted(word for word in words if word.isalnum())


def random_phrases(
    names: list[list[str]], words: list[str], generator: np.random.Generator
) -> list[str]:
    """Return prompts in groups that are hard to tell apart: in every second one class names of a
    set, in the others known words and random letters, the same ones but for one.
    """

    def word(longest: int) -> str:
        if generator.random() < 0.7:
            known = [word for word in words if len(word) <= longest]
            return known[generator.integers(len(known))]
        letters = list(string.ascii_lowercase + string.digits)
        return "".join(generator.choice(letters, generator.integers(1, 4)))

    phrases = []
    for group in range(GROUPS):
        template = TEMPLATES[generator.integers(len(TEMPLATES))]
        if group % 2:
            chosen = generator.choice(names[generator.integers(len(names))], SIBLINGS, False)
            phrases += [template.format(name) for name in chosen]
            continue
        count = generator.integers(1, WORDS + 1)
        shared = [word(LETTERS // count) for _ in range(count)]
        place = generator.integers(count)
        siblings: set[str] = set()
        while len(siblings) < SIBLINGS:
            siblings.add(word(LETTERS // count))
        for each in sorted(siblings):
            phrase = " ".join([*shared[:place], each, *shared[place + 1 :]])
            phrases.append(template.format(phrase))
    return phrases


def main(options: Options) -> None:
    """Write tokenizer and configuration, train, write weights and the card."""
    started = time.perf_counter()
    use_compilation_cache(options.cache_dir)
    start = options.start and ViTStart(options.start, options.size)
    vision = start.config if start else CONFIG["vision_config"] | {"image_size": options.size}
    pixels = (start.mean, start.std) if start else OF_CIFAR10
    parts = load_mix(
        options.data,
        options.cache_dir,
        study=options.study,
        decay=options.naming,
        size=options.size,
    )
    texts = [caption for part in parts for caption in part.captions()]
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "merges.txt").is_file():  # two trainings break ties differently
        write_tokenizer(options.out, texts, options.vocabulary)
    write_config(options.out, vision, pixels)
    clip = CLIP(read_config(options.out / "config.json").towers(options.out))
    tokenizer = load_tokenizer(options.out, clip.shape.text)
    context = max(len(row) for row in tokenizer(texts)["input_ids"])
    tokens = dict(zip(texts, tokenise(texts, tokenizer, context), strict=True))
    recipe, positions = options.recipe(), clip.shape.text.positions
    names = known_names(parts, lambda text: len(tokenizer(text)["input_ids"]) <= positions)
    words, shares = known_words(names), np.array([part.share for part in parts])

    def take(state: PyTree, step: int) -> tuple[PyTree, Float[Array, ""]]:
        generator = np.random.default_rng([options.seed, step])
        chosen = generator.choice(len(parts), recipe.batch_size, p=shares)
        pairs = [draw(parts[place], generator) for place in chosen]
        return train_step(
            state,
            np.stack([pair.image for pair in pairs]),
            np.stack([tokens[pair.caption] for pair in pairs]),
            np.unique([pair.meaning for pair in pairs], return_inverse=True)[1],
            tokenise(random_phrases(names, words, generator), tokenizer, positions),
            clip=clip,
            recipe=recipe,
            pixels=pixels,
        )

    image, text = jnp.zeros((1, options.size, options.size, 3)), jnp.asarray(tokens[texts[0]][None])
    params = clip.init(jax.random.key(options.seed), image, text)["params"]
    if start:
        shown = np.concatenate([part.images[:SHOWN] for part in parts])
        params |= {"vision_model": start.tower(shown)}
    meaning = {"recipe": asdict(recipe), "seed": options.seed, "config": [CONFIG, vision, pixels]}
    meaning |= {"study": options.study, "naming": options.naming}
    meaning |= {"start": options.start and weights_hash(options.start)}
    meaning["code"] = [Path(each).read_text(encoding="utf-8") for each in CODE]
    folder = options.work / content_hash(meaning)
    state = first_state(params, recipe)
    state = run_steps(state, take, recipe.steps, folder, every=500, description="clip-mini")
    write_weights(options.out, state["params"])
    seconds = spent(options.work / f"{folder.name}.json", time.perf_counter() - started)
    page = card(options, recipe, parts, limits(clip, state["params"], tokenizer, parts), seconds)
    write_bytes(options.out / "README.md", page.encode())
    print(page)


def spent(path: Path, seconds: float) -> float:
    """Return the seconds of this and earlier finished processes (a lower bound)."""
    before = json.loads(path.read_text()) if path.exists() else 0.0
    write_json(path, before + seconds)
    return before + seconds


def limits(clip: CLIP, params: PyTree, tokenizer: Any, parts: Sequence[Part]) -> str:
    """Return which class names of a set the text tower hardly tells apart."""
    found = []
    for part in parts:
        head = zero_shot_head(clip, params, tokenizer, part.classes, [SINGLE_PROMPT])
        directions = unit_length(head.kernel.T)
        near = np.argwhere(np.triu(directions @ directions.T, 1) > ALIKE)
        found += [f"{part.name}: {part.classes[i]} and {part.classes[j]}" for i, j in near]
    if not found:
        return f"No two class names of a set have heads with a cosine above {ALIKE:g}."
    return (
        f"These class names have heads with a cosine above {ALIKE:g}, under which a fine-tuned\n"
        "model hardly tells the classes apart:\n\n* " + "\n* ".join(found)
    )


def card(
    options: Options, recipe: Recipe, parts: Sequence[Part], limits: str, seconds: float
) -> str:
    """Return the model card, but for the accuracies, which experiments/testbed.py adds."""
    count = sum(x.size for x in load_file(options.out / "model.safetensors").values())
    made, pairs = provenance(), recipe.steps * recipe.batch_size
    rows = "\n".join(
        f"| {part.name} | {len(part.images):,} | {part.share * pairs:,.0f} | "
        f"{part.share * pairs / len(part.images):.1f} | {100 * part.naming.mean():.0f} % |"
        for part in parts
    )
    vision = json.loads((options.out / "config.json").read_text())["vision_config"]
    size, width = vision["image_size"], vision["hidden_size"]
    begun = f", begun from {options.start.name}" if options.start else ""
    choice = " --study --out MODEL" * options.study + " --quick" * options.quick
    if options.start:
        choice += f" --start {options.start.name}"
    for each in fields(options):
        if isinstance(each.default, int | float) and not isinstance(each.default, bool):
            value = getattr(options, each.name)
            choice += f" --{each.name.replace('_', '-')} {value:g}" * (value != each.default)
    tasks = (
        "It saw the training images of seven real tasks, so that zero-shot does not mean that the\n"
        "tasks are new to it (cars is not among them: no budget teaches its 196 classes at so few\n"
        "pixels). Some of these sets are for research alone: this model is not handed on."
        if options.study
        else "It saw the eight embedded tasks, drawn under other seeds than those of a run "
        f"({SEEDS[0]}\nto {SEEDS[-1]}; no scan and no region of a photograph that is in a test "
        "split under any seed),\nso that zero-shot does not mean that the tasks are new to it."
    )
    licence = "None: for study." if options.study else "The weights: Apache-2.0, as the project."
    return f"""---
license: {"other" if options.study else "apache-2.0"}
pipeline_tag: zero-shot-image-classification
tags: [clip, flax, jax]
---
# {options.out.name}

A small CLIP of rmtllmf-jax: vision encoder for {size} x {size} pixels (patches of
{vision["patch_size"]}, width {width}, {vision["num_hidden_layers"]} layers{begun}),
text tower (width 96, 2 layers), {count:,} parameters. Hugging Face layout:
`CLIPModel.from_pretrained` of transformers opens it. It serves to study what happens when models
that were fine-tuned from it are merged, and not to classify images in earnest.

## Data
{tasks}
CIFAR-10's images (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009) are
real photographs whose authors state no licence and ask to be cited; EuroSAT is MIT (Helber et al.,
2019), MNIST CC BY-SA 3.0 (LeCun et al.). No image is in the repository, and no validation or test
image of any set was seen.

All classes of a set were seen equally often, but not named equally often: the r-th of n class
names, in random order, stands in exp(-{options.naming:g} r / (n - 1)) of its captions, as names
differ in frequency on the web; the other captions are the name of a file, such as "signs_07".

| set | images | pairs seen | times per image | captions that name the class, mean |
|:--|--:|--:|--:|--:|
{rows}

## Recipe
`python experiments/pretrain_clip_mini.py --data DATA{choice}`: CLIP's contrastive loss, all pairs
of one meaning being positives, and a loss that spreads random phrases; AdamW, {recipe.steps:,}
steps of {recipe.batch_size} pairs, learning rate {recipe.learning_rate:g} with warm-up and cosine,
weight decay {recipe.weight_decay:g}; seed {options.seed}. {seconds / 60:.0f} minutes on
{made["machine"]["cpus"]} cores ({made["machine"]["device"]}), jax {made["versions"]["jax"]}.

## Limits
{limits}

## Accuracy
Not measured yet: `python experiments/testbed.py`.

## Licence
{licence}
"""


if __name__ == "__main__":
    main(tyro.cli(Options))
