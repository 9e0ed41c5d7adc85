"""LoRA: fine-tuning by low-rank updates of some kernels, with the base frozen.

>>> import jax, jax.numpy as jnp
>>> base = {"attention": {"q_proj": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}}
>>> lora = Lora(rank=2, targets=("q_proj",))
>>> factors = lora.first(base, jax.random.key(0))
>>> {name: leaf.shape for name, leaf in factors["attention/q_proj/kernel"].items()}
{'a': (4, 2), 'b': (2, 3)}
>>> bool((lora.applied(base, factors)["attention"]["q_proj"]["kernel"] == 1).all())
True
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from rmtllmf_jax.channel.checks import require_positive
from rmtllmf_jax.common.errors import InputError, require_at_least, require_known
from rmtllmf_jax.fusion import leaf_path, leaves_by_path
from rmtllmf_jax.fusion.trees import as_type_of, widened
from rmtllmf_jax.uplink.adapter import TARGETS

Factors = dict[str, dict[str, Float[Array, "..."]]]
"""By the path of a kernel: `a` (inputs, rank) and `b` (rank, outputs)."""


def _gaussian(key: Key[Array, ""], inputs: int, rank: int) -> Float[Array, "inputs rank"]:
    return jax.random.normal(key, (inputs, rank)) / rank


def _kaiming(key: Key[Array, ""], inputs: int, rank: int) -> Float[Array, "inputs rank"]:
    return jax.random.uniform(key, (inputs, rank), minval=-1, maxval=1) / jnp.sqrt(inputs)


INITS: Mapping[str, Callable[[Key[Array, ""], int, int], Array]] = MappingProxyType(
    {"gaussian": _gaussian, "kaiming": _kaiming}
)
"""How A begins: normal numbers over the rank, or uniform ones over the root of the inputs; both as
PEFT has them under `init_lora_weights` "gaussian" and True. B begins at zero, so that the first
model is the base."""


@dataclass(frozen=True)
class Lora:
    """Kernels ``W + alpha / rank a b`` in place of W, with `a` and `b` trained.

    Reference: Hu et al., arXiv 2106.09685.
    """

    rank: int
    alpha: float | None = None
    """By default the rank: the update is ``a b``."""
    targets: tuple[str, ...] = TARGETS
    """Regular expressions of modules: each must match the last names of the paths of some."""
    init: str = "gaussian"
    """How `a` begins, one of `INITS`."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        require_at_least("the rank of a LoRA", self.rank, 1)
        require_known("init of a LoRA", self.init, INITS)
        if self.alpha is not None:
            require_positive("alpha of a LoRA", self.alpha)
        if not self.targets:
            raise InputError("a LoRA needs at least one target: a module such as q_proj.")

    @property
    def scale(self) -> float:
        """The number by which the product of the factors is scaled."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def kernels(self, base: PyTree) -> dict[str, Any]:
        """Return the kernels to update, by their paths.

        **Raises:** `InputError` for a target that matches none, or that matches one that is not a
        matrix or has a side below the rank.
        """
        found: dict[str, Any] = {}
        for target in self.targets:
            own = _of_module(target, base)
            if not own:
                modules = {path.split("/")[-2] for path in _of_module(".*", base)}
                raise InputError(
                    f"the LoRA target {target!r} matches no module with a kernel; this model has "
                    f"{', '.join(sorted(modules))}."
                )
            found |= own
        for path, leaf in found.items():
            if len(leaf.shape) != 2 or min(leaf.shape) < self.rank:
                raise InputError(
                    f"LoRA of rank {self.rank}: {path} has the shape {tuple(leaf.shape)}; expected "
                    "a matrix with no side below the rank: take a smaller rank, or other targets."
                )
        return found

    def shapes(self, base: PyTree) -> Any:
        """Return the factors as `jax.ShapeDtypeStruct`, in float32 or wider."""
        return jax.eval_shape(self.first, base, jax.random.key(0))

    def first(self, base: PyTree, key: Key[Array, ""]) -> Factors:
        """Return the initial factors; those of a kernel follow from the key and its path.

        **Raises:** `InputError` as `kernels`.
        """

        def begin(path: str, kernel: Array) -> dict[str, Array]:
            of_kernel = jax.random.fold_in(key, zlib.crc32(path.encode()))
            dtype = widened(kernel).dtype
            a = INITS[self.init](of_kernel, kernel.shape[0], self.rank).astype(dtype)
            return {"a": a, "b": jnp.zeros((self.rank, kernel.shape[1]), dtype)}

        return {path: begin(path, kernel) for path, kernel in self.kernels(base).items()}

    def applied(self, base: PyTree, factors: Factors) -> PyTree:
        """Return the parameters with the updates; pure."""

        def updated(path: tuple, leaf: Array) -> Array:
            pair = factors.get(leaf_path(path))
            if pair is None:
                return leaf
            return as_type_of(leaf, widened(leaf) + self.scale * (pair["a"] @ pair["b"]))

        return jax.tree_util.tree_map_with_path(updated, base)


def _of_module(target: str, base: PyTree) -> dict[str, Any]:
    """Return the kernels of the modules whose last names match a regular expression.

    **Raises:** `InputError` if it is not a regular expression.
    """
    try:
        pattern = re.compile(f"(?:.*/)?(?:{target})/kernel")
    except re.error as error:
        raise InputError(
            f"the LoRA target {target!r} is not a regular expression ({error})."
        ) from error
    return {path: leaf for path, leaf in leaves_by_path(base).items() if pattern.fullmatch(path)}


def lora_of(recipe: Mapping[str, Any]) -> Lora | None:
    """Return the LoRA that the recipe of a user's model names, if it was trained with one."""
    about = recipe.get("lora")
    return None if about is None else Lora(**about | {"targets": tuple(about["targets"])})
