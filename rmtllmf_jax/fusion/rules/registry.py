"""The merge rules by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from rmtllmf_jax.common.errors import require_known
from rmtllmf_jax.fusion.rules.dare import DareOptions, DareTiesOptions, dare, dare_ties
from rmtllmf_jax.fusion.rules.fisher import FisherOptions, fisher
from rmtllmf_jax.fusion.rules.lata import LataOptions, lata
from rmtllmf_jax.fusion.rules.layer_wise import LayerWiseOptions, layer_wise
from rmtllmf_jax.fusion.rules.linear import (
    AverageOptions,
    TaskArithmeticOptions,
    average,
    task_arithmetic,
)
from rmtllmf_jax.fusion.rules.regmean import RegMeanOptions, regmean
from rmtllmf_jax.fusion.rules.ties import TiesOptions, ties


@dataclasses.dataclass(frozen=True)
class Rule:
    """A merge rule: ``merge(stacked, options, key) -> merged task vector``."""

    merge: Callable[..., PyTree]
    options: type[Any]
    """Frozen dataclass whose fields are documented: a static pytree, `trees` apart."""
    random: bool
    """Needs a key."""
    per_leaf: bool
    """A leaf of the result depends on the same leaf of the inputs alone."""
    reference: str
    mean: bool = False
    """A mean of the task vectors, whatever the options."""

    @property
    def trees(self) -> tuple[str, ...]:
        """The options that are trees of arrays and not numbers or names."""
        fields = dataclasses.fields(self.options)
        return tuple(field.name for field in fields if field.metadata.get("tree"))


def _rule(
    merge: Callable[..., PyTree],
    options: type[Any],
    reference: str,
    *,
    random: bool = False,
    per_leaf: bool = True,
    mean: bool = False,
) -> Rule:
    return Rule(merge, options, random, per_leaf, reference, mean)


RULES = {
    "task_arithmetic": _rule(
        task_arithmetic, TaskArithmeticOptions, "Ilharco et al., arXiv 2212.04089"
    ),
    "average": _rule(average, AverageOptions, "Wortsman et al., arXiv 2203.05482", mean=True),
    "ties": _rule(ties, TiesOptions, "Yadav et al., arXiv 2306.01708"),
    "dare": _rule(dare, DareOptions, "Yu et al., arXiv 2311.03099", random=True),
    "dare_ties": _rule(
        dare_ties, DareTiesOptions, "Yu et al., arXiv 2311.03099; 2306.01708", random=True
    ),
    "layer_wise": _rule(
        layer_wise, LayerWiseOptions, "general form of arXiv 2310.02575", per_leaf=False
    ),
    "lata": _rule(lata, LataOptions, "after Chen et al., arXiv 2502.20186", per_leaf=False),
    "fisher": _rule(fisher, FisherOptions, "Matena and Raffel, arXiv 2111.09832", mean=True),
    "regmean": _rule(regmean, RegMeanOptions, "Jin et al., arXiv 2212.09849", mean=True),
}
"""All rules of the form (stacked, options, key). `adamerging` needs a model and data as well."""


def get_rule(name: str) -> Rule:
    """Return a rule by name.

    **Raises:** `InputError` that lists the rules and the nearest one.

    >>> rule = get_rule("ties")
    >>> rule.merge is ties, rule.random, rule.options(density=0.1).density
    (True, False, 0.1)
    """
    return RULES[require_known("merge rule", name, RULES)]


def averages(name: str, options: Any) -> bool:
    """Return whether a rule gives a mean of the task vectors, whose natural scale is 1, not a sum.

    >>> averages("ties", TiesOptions()), averages("task_arithmetic", TaskArithmeticOptions())
    (True, False)
    """
    return get_rule(name).mean or bool(getattr(options, "normalise", False))
