"""How checkpoints are merged: method and scale; and which methods files can be merged by."""

from __future__ import annotations

from dataclasses import dataclass

from rmtllmf_jax.common.errors import InputError, require_seed
from rmtllmf_jax.common.values import name_of
from rmtllmf_jax.fusion.files.dtypes import KEEP
from rmtllmf_jax.fusion.rules import METHODS, LayerWeighted, Method, fact


def file_methods() -> list[str]:
    """Return the methods that need nothing but the checkpoints: no data, no gradients."""
    return [name for name, kind in METHODS.items() if not why_not_files(kind)]


def why_not_files(method: Method) -> str:
    """Return why checkpoints cannot be merged by a method, or nothing."""
    if needs := fact(method, "needs"):
        return f"needs {', '.join(needs)}, computed on data, besides the checkpoints"
    kind = method if isinstance(method, type) else type(method)
    if not (fact(method, "per_leaf") or issubclass(kind, LayerWeighted)):
        return "does not say `per_leaf = True`: it may look at more than a tensor at a time"
    return ""


@dataclass(frozen=True)
class Recipe:
    """How checkpoints are merged: ``base + scale * method(models - base)``."""

    method: Method
    scale: float
    seed: int = 0
    """Of the masks of random methods."""
    dtype: str = KEEP
    """Of the merged tensors in the output: `dtypes.KEEP` or one of `dtypes.NAMES`."""

    def __post_init__(self) -> None:
        """Refuse a seed that a key cannot hold."""
        require_seed("seed", self.seed)

    @property
    def name(self) -> str:
        """The method's."""
        return name_of(self.method)


def require_method(method: Method) -> None:
    """Check that checkpoints can be merged by a method.

    **Raises:** `InputError` that says why not.
    """
    if why := why_not_files(method):
        raise InputError(
            f"the method {name_of(method)} {why}. Call it on stacked task vectors, or take one of "
            f"{', '.join(file_methods())}."
        )
