"""How checkpoints are merged: rule, options, scale; and which rules files can be merged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rmtllmf_jax.common.errors import InputError, require_known, require_seed
from rmtllmf_jax.fusion.files.dtypes import KEEP
from rmtllmf_jax.fusion.rules import RULES, Rule, get_rule

LATA, LAYER_WISE = "lata", "layer_wise"


def file_methods() -> list[str]:
    """Return the rules that need nothing but the checkpoints: no data, no gradients."""
    by_leaf = [name for name, rule in RULES.items() if rule.per_leaf and not rule.trees]
    return [*by_leaf, LAYER_WISE, LATA]


@dataclass(frozen=True)
class Recipe:
    """How checkpoints are merged: ``base + scale * method(models - base)``."""

    method: str
    options: Any
    """Of the rule's own dataclass."""
    scale: float
    seed: int = 0
    """Of the masks of random rules."""
    dtype: str = KEEP
    """Of the merged tensors in the output: `dtypes.KEEP` or one of `dtypes.NAMES`."""

    def __post_init__(self) -> None:
        """Refuse a seed that a key cannot hold."""
        require_seed("seed", self.seed)

    @property
    def rule(self) -> Rule:
        """The merge rule."""
        return get_rule(self.method)


def require_method(method: str) -> str:
    """Return the name of a rule that checkpoints can be merged by.

    **Raises:** `InputError` with the nearest name, or why a rule cannot be used on files.
    """
    if method in RULES and method not in file_methods():
        trees, others = ", ".join(RULES[method].trees), ", ".join(file_methods())
        raise InputError(
            f"the method {method} needs {trees}, computed on data, besides the checkpoints: use "
            f"rmtllmf_jax.fusion.rules.{method}, or take one of {others}."
        )
    return require_known("method", method, file_methods())
