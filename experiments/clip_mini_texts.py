"""Separate training of the text tower: to distinguish texts that belong to no image.

CIFAR-10 has ten classes, so contrastive learning alone maps all other words to one place, and the
zero-shot heads of other tasks would be nearly one direction. Here the vision encoder is frozen, and
the text tower learns two things at once: CLIP's loss on the captions, as before, and to spread
random phrases over the sphere (uniformity: Wang and Isola, "Understanding Contrastive
Representation Learning through Alignment and Uniformity on the Hypersphere", 2020).
"""

from __future__ import annotations

import string
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clip_mini_captions import TEMPLATES
from jaxtyping import Array, Float, Int, PyTree

from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.tasks import TASK_NAMES
from rmtllmf_jax.models.clip import CLIP
from rmtllmf_jax.models.heads import unit_length
from rmtllmf_jax.training.finetune import gradient_step
from rmtllmf_jax.training.recipes import Recipe

GROUPS, SIBLINGS = 16, 8  # groups of phrases that share all words but the last
LONGEST = 10  # letters of a word: two of them fit into the tower's tokens, letter by letter
SHARPNESS = 2.0  # of the uniformity loss, as in its paper
TEXT_PARTS = ("text_model", "text_projection", "logit_scale")


def known_words() -> list[str]:
    """Return the short words of the class names of the eight tasks of the literature."""
    names = [name for task in TASK_NAMES for name in task_facts(task).classes]
    words = {word.lower() for name in names for word in name.split() if word.isalpha()}
    return sorted(word for word in words if len(word) <= LONGEST)


def random_phrases(words: list[str], generator: np.random.Generator) -> list[str]:
    """Return prompts of known words and random letters, in groups that share their beginning."""

    def word() -> str:
        if generator.random() < 0.7:
            return words[generator.integers(len(words))]
        letters = list(string.ascii_lowercase + string.digits)
        return "".join(generator.choice(letters, generator.integers(1, 4)))

    phrases = []
    for _ in range(GROUPS):
        template = TEMPLATES[generator.integers(len(TEMPLATES))]
        first = [word() for _ in range(generator.integers(0, 2))]
        last: set[str] = set()
        while len(last) < SIBLINGS:
            last.add(word())
        phrases += [template.format(" ".join([*first, each])) for each in sorted(last)]
    return phrases


def uniformity(texts: Float[Array, "texts features"]) -> Float[Array, ""]:
    """Return ``log mean exp(-t |u - v|^2)`` over all pairs of unit vectors; low if uniform."""
    apart = 2 - 2 * texts @ texts.T
    pairs = ~jnp.eye(len(texts), dtype=bool)
    return jax.nn.logsumexp(-SHARPNESS * apart, where=pairs) - jnp.log(pairs.sum())


@partial(jax.jit, static_argnames=("clip", "recipe"), donate_argnames="state")
def text_step(
    state: PyTree,
    rest: PyTree,
    images: Float[Array, "batch features"],
    meaning: Int[Array, " batch"],
    captions: Int[Array, "batch tokens"],
    phrases: Int[Array, "texts more_tokens"],
    *,
    clip: CLIP,
    recipe: Recipe,
) -> tuple[PyTree, Float[Array, ""]]:
    """Take one step of the text tower; `rest` and the image features stay fixed."""

    def directions(params: PyTree, tokens: Array) -> Array:
        found = clip.apply({"params": {**rest, **params}}, tokens, method="text_features")
        return unit_length(found)

    def loss(params: PyTree) -> Float[Array, ""]:
        logits = jnp.exp(params["logit_scale"]) * images @ directions(params, captions).T
        alike = contrastive_loss(logits, meaning)
        return alike + uniformity(directions(params, phrases))

    return sharpness_limited(*gradient_step(state, loss, recipe))


def sharpness_limited(state: PyTree, value: Float[Array, ""]) -> tuple[PyTree, Float[Array, ""]]:
    """Return a step's outcome with CLIP's limit on the logits' scale, 100."""
    scale = jnp.minimum(state["params"]["logit_scale"], jnp.log(100.0))
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
