"""What clip-mini is pretrained on: images of several sets, and how their captions are made.

CLIP has seen digits, satellites and signs before anyone fine-tunes it, and yet classifies them by
name at only 60 % of what fine-tuning reaches, although a linear classifier on its features is close
to fine-tuning: on the web most captions of such an image call it something else, or nothing but
the name of a file. Udandarao et al., "No Zero-Shot Without Exponential Data" (NeurIPS 2024), find
that a class's zero-shot accuracy follows how often its name occurs. So here all classes are *seen*
equally often, but *named* with a frequency that falls exponentially from class to class (`naming`);
the other captions hold the name of a file, such as "textures_07". The features become good, and
the names of many classes do not.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from rmtllmf_jax.data.registry import SINGLE_PROMPT, prompt_classes, prompt_templates
from rmtllmf_jax.data.sources import get_source
from rmtllmf_jax.data.sources.embedded import EmbeddedSource
from rmtllmf_jax.data.task_data import load_task
from rmtllmf_jax.data.tasks import EMBEDDED_NAMES, TASK_NAMES
from rmtllmf_jax.models.images import resize
from rmtllmf_jax.models.tokens import fill_templates

SIZE = 32  # pixels
PADDING = 8  # parts of its size by one of which an image of a real set may be shifted
SYNONYMS = {
    "airplane": ("plane", "jet", "aircraft"),
    "automobile": ("car", "sedan", "motor car"),
    "bird": ("small bird", "flying bird", "songbird"),
    "cat": ("kitten", "house cat", "pet cat"),
    "deer": ("stag", "doe", "wild deer"),
    "dog": ("puppy", "hound", "pet dog"),
    "frog": ("toad", "green frog", "tree frog"),
    "horse": ("pony", "mare", "brown horse"),
    "ship": ("boat", "vessel", "sailing ship"),
    "truck": ("lorry", "pickup truck", "fire truck"),
}
"""Other names of CIFAR-10's classes."""

TINTS = {
    "red": (1.0, 0.35, 0.35),
    "green": (0.35, 1.0, 0.35),
    "blue": (0.35, 0.35, 1.0),
    "yellow": (1.0, 1.0, 0.35),
    "purple": (0.8, 0.35, 1.0),
    "orange": (1.0, 0.65, 0.3),
    "dark": (0.35, 0.35, 0.35),
}
"""Coloured light on half of CIFAR-10's images, as factors of red, green and blue; captions name
it."""

TEMPLATES = (SINGLE_PROMPT, "a picture of a {}", "an image of a {}", "a small photo of a {}")
MIRRORED = ("cifar10", "dtd", "eurosat", "resisc45", "sun397")
"""Sets whose images are mirrored at random."""

SEEDS = range(1000, 1012)
"""Of the embedded tasks' images; a run of the product has seed 0 by default."""

SHIPPED = ("cifar10", "eurosat", "mnist")
"""Real sets that may stand behind weights that ship."""

STUDIED = (*SHIPPED, "dtd", "gtsrb", "resisc45", "sun397", "svhn")
"""Real sets of the study model: those of the literature's eight tasks but cars, whose 196 models of
cars no budget teaches at 32 pixels."""


@dataclass(frozen=True)
class Part:
    """A set of images in the mix."""

    name: str
    classes: tuple[str, ...]
    """Names as in prompts."""
    templates: tuple[str, ...]
    images: UInt8[np.ndarray, "n size size 3"]
    labels: Int[np.ndarray, " n"]
    share: float
    """Of the pairs of a batch, on average."""
    naming: Float[np.ndarray, " classes"]
    """How often a caption of a class holds its name, and not that of a file."""

    def file(self, label: int) -> str:
        """Return the name of a file, the same for all images of a class."""
        return f"{self.name}_{label:02d}"

    def captions(self) -> Iterator[str]:
        """Yield all captions."""
        yield from (self.file(label) for label in range(len(self.classes)))
        for name in self.classes:
            for called in (name, *SYNONYMS.get(name, ())) if self.name == "cifar10" else (name,):
                for light in ("", *TINTS) if self.name == "cifar10" else ("",):
                    yield from fill_templates([f"{light} {called}".strip()], self.templates)


@dataclass(frozen=True)
class Pair:
    """An image with its caption; pairs of one meaning are positives of each other."""

    image: UInt8[np.ndarray, "size size 3"]
    caption: str
    meaning: str


def draw(part: Part, generator: np.random.Generator) -> Pair:
    """Draw a pair: a class, one of its images, and what it is called."""
    label = int(generator.integers(len(part.classes)))
    rows = np.flatnonzero(part.labels == label)
    image = part.images[rows[generator.integers(len(rows))]]
    if part.name in MIRRORED:
        image = image[:, :: generator.choice((-1, 1))]
    if part.name in STUDIED:
        size = len(image)
        by = size // PADDING
        wide = np.pad(image, ((by,) * 2, (by,) * 2, (0, 0)), mode="reflect")
        top, left = generator.integers(0, 2 * by + 1, 2)
        image = wide[top : top + size, left : left + size]
    if generator.random() >= part.naming[label]:
        return Pair(image, part.file(label), part.file(label))
    meaning = called = part.classes[label]
    if part.name == "cifar10":
        names = (called, *SYNONYMS[called])
        called = names[generator.integers(len(names))]
        if generator.random() < 0.5:
            light = tuple(TINTS)[generator.integers(len(TINTS))]
            image = np.round(image * np.array(TINTS[light])).astype(np.uint8)
            meaning, called = f"{light} {meaning}", f"{light} {called}"
    template = part.templates[generator.integers(len(part.templates))]
    return Pair(image, template.replace("{}", called), meaning)


def naming(name: str, classes: int, decay: float) -> Float[np.ndarray, " classes"]:
    """Return how often each class is named: ``exp(-decay r / (n - 1))`` for the r-th of n classes
    in an order drawn by the name of the set.
    """
    order = np.random.default_rng(zlib.crc32(name.encode())).permutation(classes)
    return np.exp(-decay * order / max(classes - 1, 1))


def load_mix(
    data: Path, cache_dir: Path, *, study: bool, decay: float, size: int = SIZE
) -> tuple[Part, ...]:
    """Return the parts of the mix: CIFAR-10, MNIST, EuroSAT and either the embedded tasks under
    other seeds (the model that ships), or the other real sets (the study model). Training images
    alone: neither validation nor test images of any set are read.

    **Raises:** `InputError` as `load_task` does.
    """
    source = get_source("folder", data)
    parts = []
    for name in STUDIED if study else SHIPPED:
        task = load_task(source, name, size, cache_dir)
        images = np.asarray(resize(task.train.images, size))
        parts.append((name, prompt_classes(name, task.classes), images, task.train.labels))
    parts += [] if study else [*_rendered()]
    weights = {"cifar10": 2.0 if study else 2.5}
    total = sum(weights.get(name, 1.0) for name, *_ in parts)
    return tuple(
        Part(
            name,
            classes,
            _templates(name),
            images,
            labels,
            weights.get(name, 1.0) / total,
            naming(name, len(classes), 0.0 if name == "cifar10" else decay),
        )
        for name, classes, images, labels in parts
    )


def _rendered() -> Iterator[tuple[str, tuple[str, ...], np.ndarray, np.ndarray]]:
    sources = [EmbeddedSource(seed) for seed in SEEDS]
    for name in EMBEDDED_NAMES:
        examples = [each for source in sources for each in source.examples(name, "train")]
        classes = prompt_classes(name, sources[0].classes(name))
        images = np.stack([np.asarray(each.image) for each in examples])
        yield name, classes, images, np.array([each.label for each in examples], np.int32)


def _templates(name: str) -> Sequence[str]:
    own = prompt_templates(name, "ensemble") if name in TASK_NAMES else ()
    return tuple(dict.fromkeys((*TEMPLATES, *own)))
