"""Options of a merge that vary by model and by the name of the tensor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.values import converted, name_of, option_names
from rmtllmf_jax.fusion.layers import block_of
from rmtllmf_jax.fusion.rules import LayerWeighted, Method, Sparsified
from rmtllmf_jax.fusion.rules.per_model import PerModel

WEIGHT, SCALE = "weight", "scale"
"""Names for what is no option of a method: one model's weight, and the coefficient."""
ALL = ".*"


@dataclass(frozen=True)
class Gradient:
    """Numbers spread evenly over the blocks of a model; outside of blocks the first one.

    Linear in between, like mergekit's gradients.

    >>> Gradient((0.0, 1.0, 0.5))(0.25)
    0.5
    """

    values: tuple[float, ...]

    def __call__(self, position: float) -> float:
        """Return the number at a position between 0, the first block, and 1, the last."""
        place = position * (len(self.values) - 1)
        first = min(int(place), len(self.values) - 1)
        share = place - first
        return (1 - share) * self.values[first] + share * self.values[
            min(first + 1, len(self.values) - 1)
        ]


Blocks = tuple[tuple[str, int], ...]
"""The number of the last block of each stack of blocks."""


def blocks_of(names: Iterable[str]) -> Blocks:
    """Return the stacks of blocks in a model.

    >>> blocks_of(["h.0.w", "h.1.w", "lm_head.weight"])
    (('h', 1),)
    """
    found: dict[str, int] = {}
    for stack, number in filter(None, map(block_of, names)):
        found[stack] = max(number, found.get(stack, 0))
    return tuple(sorted(found.items()))


def position_of(name: str, blocks: Blocks) -> float:
    """Return the position of a tensor's block in its stack, from 0 to 1; 0 outside of blocks."""
    if (found := block_of(name)) is None:
        return 0.0
    return found[1] / max(dict(blocks).get(found[0], 0), 1)


@dataclass(frozen=True)
class ByName:
    """A value by tensor name: that of the first regular expression that matches all of it.

    >>> ByName(((r".*\\.mlp\\..*", 0.5), (".*", 1.0)))("layers.0.mlp.weight")
    0.5
    """

    cases: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        """Check the expressions."""
        for pattern, _ in self.cases:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"{pattern!r} is not a regular expression ({error}).") from error

    def __call__(self, name: str, blocks: Blocks = ()) -> Any:
        """Return the value; gradients need the `blocks` of the model.

        **Raises:** `LookupError` if no expression matches.
        """
        for pattern, value in self.cases:
            if re.fullmatch(pattern, name):
                spread = isinstance(value, Gradient)
                return value(position_of(name, blocks)) if spread else value
        raise LookupError


@dataclass(frozen=True)
class Variation:
    """An option of a method, `WEIGHT` or `SCALE`, by model and by name."""

    option: str
    by_model: tuple[ByName, ...]
    """One per model, or a single one for all of them."""

    def __call__(self, name: str, models: int, blocks: Blocks = ()) -> tuple[Any, ...]:
        """Return the value for each model.

        **Raises:** `InputError` if none is given for a tensor of this name.
        """
        try:
            found = tuple(each(name, blocks) for each in self.by_model)
        except LookupError:
            raise InputError(
                f"{self.option}: no value is given for {name}; end the list with one without names."
            ) from None
        return found * models if len(found) == 1 else found

    def idle(self, names: Iterable[str]) -> list[str]:
        """Return a note for each expression that none of these names match."""
        patterns = dict.fromkeys(pattern for each in self.by_model for pattern, _ in each.cases)
        return [
            f"{self.option}: no tensor that is merged matches {pattern!r}"
            for pattern in patterns
            if not any(re.fullmatch(pattern, name) for name in names)
        ]


@cache
def varied(
    method: Method, options: tuple[tuple[str, tuple[Any, ...]], ...]
) -> tuple[Method, float | None]:
    """Return a method with other options, and the coefficient if that is one of them.

    **Arguments:** `options`: pairs of a name and one value per model.

    **Raises:** `InputError` for options that the method lacks, or shares among all models.
    """
    scale, weights = None, None
    by_model: list[Any] = [method]
    for option, values in options:
        if option == SCALE:
            scale = converted(values[0], float, SCALE)
        elif option == WEIGHT:
            weights = tuple(converted(value, float, WEIGHT) for value in values)
        else:
            by_model = _with(by_model, option, values)
    made = by_model[0] if len(set(by_model)) == 1 else PerModel(tuple(by_model))
    return (made if weights is None else replace(made, weights=weights)), scale


def _with(methods: list[Any], option: str, values: tuple[Any, ...]) -> list[Any]:
    method = methods[0]
    require_known(f"option of method {name_of(method)}", option, option_names(type(method)))
    if len(set(values)) > 1 and not isinstance(method, Sparsified):
        raise InputError(
            f"{option} of {name_of(method)} is one for all models, got {list(values)}."
        )
    hint = get_type_hints(type(method))[option]
    what = f"{option} of {name_of(method)}"
    return [
        replace(each, **{option: converted(value, hint, what)})
        for each, value in zip(methods * (len(values) // len(methods)), values, strict=True)
    ]


def require_variable(method: Method, variations: tuple[Variation, ...]) -> None:
    """Check that options of a method may vary.

    **Raises:** `InputError` for one that has its own weights by layer.
    """
    names = [each.option for each in variations if each.option != SCALE]
    if names and isinstance(method, LayerWeighted):
        raise InputError(
            f"{', '.join(names)}: {name_of(method)} sets its own weights by layer: leave it out."
        )
