"""Repairs of a merged model: reload the sensitive embeddings, realign on a few shots.

R-MTLLMF is ``(Reload(), Realign())``. Your own repair is a frozen dataclass with the same call; it
needs no registration.

Reference: R-MTLLMF (arXiv 2411.18220), section III.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.common.values import by_name
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.fusion import leaf_path, leaves_by_path
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.shared import SharedModel
from rmtllmf_jax.training.realign import realign
from rmtllmf_jax.training.recipes import REALIGN, Recipe

EMBEDDINGS = ("embeddings/.*", "pre_layrnorm/.*", "model/embed_tokens/.*")
"""Class, position and patch embeddings, and the pre-LayerNorm that belongs to CLIP's; of a language
model the table of tokens, which is also the last layer where the two are tied."""


def frozen_patterns(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    """Return regular expressions, compiled.

    **Raises:** `InputError` that names one that is invalid.
    """
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"frozen pattern {pattern!r}: not a regular expression ({error})."
            ) from error
    return compiled


def frozen_leaves(
    params: PyTree, patterns: tuple[str, ...] = EMBEDDINGS
) -> PyTree[Bool[Array, ""]]:
    """Return a flag per leaf: whether its whole path matches one of the regular expressions.

    **Raises:** `InputError` if no leaf matches, with the available paths, or if one is not a
    regular expression.
    """
    compiled = frozen_patterns(patterns)
    flags = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.array(any(p.fullmatch(leaf_path(path)) for p in compiled)), params
    )
    if not any(pattern.fullmatch(path) for path in leaves_by_path(params) for pattern in compiled):
        paths = list(leaves_by_path(params))
        raise InputError(
            f"no leaf matches the frozen patterns {list(patterns)}; "
            f"the leaves are {', '.join(paths[:8])}{', ...' if len(paths) > 8 else ''}."
        )
    return flags


def reload_leaves(params: PyTree, base: PyTree, frozen: PyTree[Bool[Array, ""]]) -> PyTree:
    """Return `params` with the flagged leaves taken from `base`, bitwise."""
    return jax.tree.map(jnp.where, frozen, base, params)


class Model(NamedTuple):
    """A model under repair."""

    params: PyTree[Array]
    kept: PyTree[Bool[Array, ""]]
    """Per leaf, whether it is reloaded and stays as it is."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "heads", "shots", "rows", "key"],
    meta_fields=["model"],
)
@dataclass(frozen=True)
class Context:
    """What a repair may look at."""

    base: PyTree[Array]
    """The pretrained parameters."""
    heads: Head | None
    """Frozen heads, stacked over the tasks; `None` of texts."""
    shots: Batch | None
    """The few-shot pool of all tasks; `None` for repairs that ask for no shots."""
    rows: Int[Array, "steps batch"] | None
    """Per step, the places of its samples in the pool: tasks of the combination take turns."""
    key: Key[Array, ""]
    """Of the configuration's seed."""
    model: SharedModel


@runtime_checkable
class Repair(Protocol):
    """`(model, context) -> model`: pure, hashable, and the same program for equal values.

    A repair that needs shots has a field or attribute `shots`, the samples per class, and a
    `recipe`; its steps and batch size determine how many rows of them it takes.
    """

    def __call__(self, model: Model, context: Context) -> Model:
        """Return the repaired model."""
        ...


@dataclass(frozen=True)
class FromBase:
    """Start from the base model instead of the merged one, to measure the other repairs alone.

    The first repair of the control.
    """

    def __call__(self, model: Model, context: Context) -> Model:
        """Return the base model."""
        return model._replace(params=context.base)


@dataclass(frozen=True)
class Reload:
    """Take the leaves with paths that fully match a regular expression from the base model.

    The repairs that follow leave them unchanged.
    """

    patterns: tuple[str, ...] = EMBEDDINGS

    def __post_init__(self) -> None:
        """Refuse invalid regular expressions."""
        frozen_patterns(self.patterns)

    def __call__(self, model: Model, context: Context) -> Model:
        """Return the model with these leaves reloaded.

        **Raises:** `InputError` if no leaf matches.
        """
        flags = frozen_leaves(context.base, self.patterns)
        kept = jax.tree.map(jnp.logical_or, model.kept, flags)
        return Model(reload_leaves(model.params, context.base, flags), kept)


@dataclass(frozen=True)
class Realign:
    """Train the leaves that are not kept on a few samples per class, each task under its own head.

    Language models are trained on a few texts per task.

    AdamW with a `Recipe` (`training.recipes.REALIGN`); tasks take turns sample by sample.
    """

    shots: int = 10
    """Samples per class, or texts per task."""
    steps: int = REALIGN.steps
    batch_size: int = REALIGN.batch_size
    learning_rate: float = REALIGN.learning_rate
    weight_decay: float = REALIGN.weight_decay
    warmup: float = REALIGN.warmup
    clip_norm: float | None = REALIGN.clip_norm
    average: float = 0.0
    """Share of the steps, the last ones, over which the weights are averaged; 0: the last weights
    (stochastic weight averaging, Izmailov et al., arXiv 1803.05407)."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot train a model."""
        require_at_least("shots", self.shots, 1)
        if not 0 <= self.average <= 1:
            raise InputError(f"average is a share of the steps, 0 to 1, got {self.average!r}.")
        _ = self.recipe

    @property
    def recipe(self) -> Recipe:
        """The optimiser."""
        return Recipe(
            self.steps,
            self.batch_size,
            self.learning_rate,
            self.weight_decay,
            self.warmup,
            self.clip_norm,
        )

    @classmethod
    def by(cls, recipe: Recipe, shots: int = 10) -> Realign:
        """Return the realignment that follows a recipe."""
        return cls(
            shots,
            recipe.steps,
            recipe.batch_size,
            recipe.learning_rate,
            recipe.weight_decay,
            recipe.warmup,
            recipe.clip_norm,
        )

    def __call__(self, model: Model, context: Context) -> Model:
        """Return the realigned model."""
        trainable = jax.tree.map(jnp.logical_not, model.kept)
        assert context.shots is not None
        assert context.rows is not None
        params, _ = realign(
            model.params,
            trainable,
            context.heads,
            context.shots,
            context.rows,
            model=context.model,
            recipe=self.recipe,
            average=self.average,
        )
        return model._replace(params=params)


REPAIRS = by_name(FromBase, Reload, Realign)
"""Repairs by the names that the command line knows."""
