"""Captions of CIFAR-10, and the image transformations that they describe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORDS = {
    "airplane": ("airplane", "plane", "jet", "aircraft"),
    "automobile": ("automobile", "car", "sedan", "motor car"),
    "bird": ("bird", "small bird", "flying bird", "songbird"),
    "cat": ("cat", "kitten", "house cat", "pet cat"),
    "deer": ("deer", "stag", "doe", "wild deer"),
    "dog": ("dog", "puppy", "hound", "pet dog"),
    "frog": ("frog", "toad", "green frog", "tree frog"),
    "horse": ("horse", "pony", "mare", "brown horse"),
    "ship": ("ship", "boat", "vessel", "sailing ship"),
    "truck": ("truck", "lorry", "pickup truck", "fire truck"),
}
"""Names of a class in captions; the first one is CIFAR-10's own."""

TINTS = {
    "red": (1.0, 0.35, 0.35),
    "green": (0.35, 1.0, 0.35),
    "blue": (0.35, 0.35, 1.0),
    "yellow": (1.0, 1.0, 0.35),
    "purple": (0.8, 0.35, 1.0),
    "orange": (1.0, 0.65, 0.3),
    "dark": (0.35, 0.35, 0.35),
}
"""Colour of the light, as factors of red, green and blue."""

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a small photo of a {}", "an image of a {}")


@dataclass(frozen=True)
class Change:
    """A transformation of an image, and its name in captions."""

    word: str
    factors: tuple[float, float, float]
    turned: bool = False

    def of(self, thing: str) -> str:
        """Return the name of a transformed thing."""
        return f"{self.word} {thing}" if self.word else thing


CHANGES = (
    Change("", (1.0, 1.0, 1.0)),
    *(Change(word, factors) for word, factors in TINTS.items()),
    Change("upside down", (1.0, 1.0, 1.0), turned=True),
)


def caption(name: str, change: Change, generator: np.random.Generator) -> str:
    """Return a random caption of a class and a change."""
    words = WORDS[name]
    called = change.of(words[generator.integers(len(words))])
    return TEMPLATES[generator.integers(len(TEMPLATES))].format(called)


def all_captions() -> list[str]:
    """Return all captions."""
    return [
        template.format(change.of(word))
        for template in TEMPLATES
        for change in CHANGES
        for words in WORDS.values()
        for word in words
    ]
