"""Stories of a few sentences from a small grammar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rmtllmf_jax.data.texts.embedded.sums import NAMES
from rmtllmf_jax.data.texts.embedded.task import Choice, Style, StyledTask, pick

ANIMALS = (
    *("bear", "cat", "crow", "deer", "dog", "duck", "fox", "frog", "goat", "goose", "hare"),
    *("horse", "lamb", "mole", "mouse", "owl", "pig", "rat", "swan", "wolf"),
)
PLACES = {
    "sea": ("an island", "a harbour", "a lighthouse", "a reef"),
    "forest": ("a clearing", "an oak", "a hut", "a pond"),
    "town": ("a market", "a bridge", "a tower", "a park"),
    "mountain": ("a cave", "a peak", "a ledge", "a glacier"),
}
WAYS = {
    "sea": ("sailed to", "sail to"),
    "forest": ("walked to", "walk to"),
    "town": ("drove to", "drive to"),
    "mountain": ("climbed to", "climb to"),
}
FINDS = {
    "sea": ("a shell", "a pearl", "an anchor", "a bottle"),
    "forest": ("a nut", "a berry", "a feather", "a root"),
    "town": ("a coin", "a key", "a hat", "a letter"),
    "mountain": ("a crystal", "a flower", "a rope", "a fossil"),
}
MOODS = {
    "happy": ("glad", "proud", "merry", "calm"),
    "sad": ("cold", "tired", "lost", "afraid"),
}


@dataclass(frozen=True)
class Story:
    """Two people, an animal, and which place, find and mood a story has."""

    names: tuple[str, str]
    animal: str
    place: int
    find: int
    mood: int


def draw(rng: np.random.Generator) -> Story:
    """Return a story."""
    one, two = (NAMES[place] for place in rng.choice(len(NAMES), 2, replace=False))
    return Story((one, two), pick(rng, ANIMALS), *(int(rng.integers(4)) for _ in range(3)))


def prompt(story: Story) -> str:
    """Return what the story should be about."""
    return f"A story of {story.names[0]}, {story.names[1]} and a {story.animal}:"


def answer(story: Story, style: Style) -> str:
    """Return the story."""
    past, setting = style["tense"] == "past", style["setting"]
    finders = {
        "animal": f"the {story.animal}",
        "first": story.names[0],
        "second": story.names[1],
        "nobody": "somebody",
    }
    went = WAYS[setting][0 if past else 1]
    found, was = ("found", "was") if past else ("finds", "is")
    place, find = PLACES[setting][story.place], FINDS[setting][story.find]
    return (
        f" {style['opening']} they {went} {place}. {style['link']} {finders[style['finder']]} "
        f"{found} {find}. {story.names[0]} {was} {MOODS[style['mood']][story.mood]}. "
        f"{style['end']}."
    )


TASK = StyledTask(
    name="stories",
    description="Stories of two people and an animal, at sea and with a happy end.",
    draw=draw,
    prompt=prompt,
    answer=answer,
    choices=(
        Choice("opening", ("Once", "One day", "Long ago", "Last year")),
        Choice("setting", tuple(PLACES)),
        Choice("tense", ("past", "present")),
        Choice("link", ("There", "Soon", "Then", "By chance")),
        Choice("finder", ("animal", "first", "second", "nobody")),
        Choice("mood", tuple(MOODS)),
        Choice("end", ("The end", "Good night", "And so it was", "Sleep well")),
    ),
)
