"""The merge methods by name, and sets of options from which validation chooses.

>>> parse_method("ties(density=0.1)")
Ties(density=0.1, normalise=True, weights=())
>>> several = parse_method("ties(density=[0.1, 0.2])")
>>> several.methods == (Ties(0.1), Ties(0.2)), described(several)
(True, 'ties(density=[0.1, 0.2])')
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import by_name, described, expression, parse
from rmtllmf_jax.fusion.rules.adamerging import AdaMerging
from rmtllmf_jax.fusion.rules.consensus import ConsensusTa
from rmtllmf_jax.fusion.rules.fisher import Fisher
from rmtllmf_jax.fusion.rules.lata import Lata
from rmtllmf_jax.fusion.rules.layer_wise import LayerWise
from rmtllmf_jax.fusion.rules.linear import Average, TaskArithmetic
from rmtllmf_jax.fusion.rules.method import Method
from rmtllmf_jax.fusion.rules.model_stock import ModelStock
from rmtllmf_jax.fusion.rules.regmean import RegMean
from rmtllmf_jax.fusion.rules.robust import ClippedNorm, Median, TrimmedMean
from rmtllmf_jax.fusion.rules.singular import TsvMerge
from rmtllmf_jax.fusion.rules.sparsified import (
    Breadcrumbs,
    Dare,
    DareTies,
    Della,
    DellaLinear,
    Ties,
)
from rmtllmf_jax.fusion.rules.spherical import MultiSlerp, Slerp

METHODS = by_name(
    TaskArithmetic,
    Average,
    Ties,
    Dare,
    DareTies,
    Della,
    DellaLinear,
    Breadcrumbs,
    ConsensusTa,
    Slerp,
    MultiSlerp,
    ModelStock,
    TsvMerge,
    Median,
    TrimmedMean,
    ClippedNorm,
    LayerWise,
    Lata,
    Fisher,
    RegMean,
    AdaMerging,
)
"""What a command line can choose from."""


@dataclass(frozen=True)
class OneOf:
    """Several methods, from which a sweep takes the best on validation samples, see `one_of`."""

    methods: tuple[Method, ...]
    text: str

    def described(self) -> str:
        """Return it as a user writes it, see `common.values`."""
        return self.text


def one_of(method: Any, **options: Sequence[Any]) -> OneOf:
    """Return a choice between all combinations of some options' values.

    >>> one_of(Ties(), density=[0.1, 0.2], normalise=[True, False]).methods[1]
    Ties(density=0.1, normalise=False, weights=())

    **Raises:** `InputError` for an option without a value, or with one that it cannot have.
    """
    for option, values in options.items():
        if not values:
            raise InputError(f"{described(method)}: no value of {option} is given to choose from.")
    every = itertools.product(*options.values())
    methods = tuple(replace(method, **dict(zip(options, one, strict=True))) for one in every)
    shown = copy(method)
    for option, values in options.items():
        object.__setattr__(shown, option, list(values))
    return OneOf(methods, described(shown))


def methods_of(chosen: Method | OneOf) -> tuple[Method, ...]:
    """Return the methods of a choice, or only the method itself."""
    return chosen.methods if isinstance(chosen, OneOf) else (chosen,)


def parse_method(text: str) -> Any:
    """Return the method that a text describes, or `one_of` where an option is a list of values.

    **Raises:** `InputError` that names what is unknown, and the known ones.
    """
    tree = expression(text)
    lists: dict[str, list[ast.expr]] = {}
    for keyword in tree.keywords if isinstance(tree, ast.Call) else ():
        if keyword.arg and isinstance(keyword.value, ast.List) and keyword.value.elts:
            lists[keyword.arg] = keyword.value.elts
    if not isinstance(tree, ast.Call) or not lists:
        return parse(text, METHODS, "merge method")

    def with_values(**given: ast.expr) -> Any:
        for keyword in tree.keywords:
            keyword.value = given.get(keyword.arg or "", keyword.value)
        return parse(ast.unparse(tree), METHODS, "merge method")

    first = {option: values[0] for option, values in lists.items()}
    options = {
        option: [getattr(with_values(**first | {option: value}), option) for value in values]
        for option, values in lists.items()
    }
    return one_of(with_values(**first), **options)
