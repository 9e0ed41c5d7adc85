"""Task vectors: fine-tuned minus base parameters, with the algebra of vectors.

>>> import jax.numpy as jnp
>>> base = {"w": jnp.array([1.0, 2.0])}
>>> a = TaskVector.between({"w": jnp.array([2.0, 2.0])}, base)
>>> b = TaskVector.between({"w": jnp.array([1.0, 4.0])}, base)
>>> (base + 0.5 * sum([a, b]))["w"].tolist()
[1.5, 3.0]

Reference: Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023 (arXiv 2212.04089).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.fusion.layers import Granularity, group_by_layer
from rmtllmf_jax.fusion.merge import add_to_base, require_scalar
from rmtllmf_jax.fusion.trees import (
    as_type_of,
    leaf_path,
    leaves_by_path,
    matching_paths,
    require_floats,
    require_same_structure,
    widened,
)


@partial(jax.tree_util.register_dataclass, data_fields=["tree"], meta_fields=[])
@dataclass(frozen=True)
class TaskVector:
    """A direction in parameter space: a pytree of arrays that adds, scales and negates.

    Trees that do not match raise `InputError` with every differing path, as do leaves without
    floating-point numbers. Products and sums over parameters are computed in float32 or wider;
    scaling, and adding to parameters, keep the types of the leaves.
    """

    tree: PyTree

    __array_ufunc__ = None  # numpy's scalars and arrays leave arithmetic to this class

    @classmethod
    def between(cls, finetuned: PyTree, base: PyTree) -> TaskVector:
        """Return ``finetuned - base``, leaf by leaf."""
        require_same_structure(finetuned, base, ("finetuned", "base"))
        require_floats(finetuned, "finetuned")
        require_floats(base, "base")
        return cls(jax.tree.map(lambda after, before: after - before, finetuned, base))

    def __add__(self, other: Any) -> Any:
        """Add a task vector, or a parameter tree (which gives a parameter tree)."""
        if not isinstance(other, TaskVector):
            return add_to_base(other, self.tree, 1)
        self._require_like(other)
        return TaskVector(jax.tree.map(lambda a, b: a + b, self.tree, other.tree))

    def __radd__(self, other: Any) -> Any:
        """Support ``base + vector`` and ``sum(vectors)``, which starts from 0."""
        return self if isinstance(other, int) and other == 0 else self + other

    def __neg__(self) -> TaskVector:
        """Return the vector that forgets the task."""
        return -1 * self

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + (-other)

    def __rsub__(self, other: Any) -> Any:
        """Support ``base - vector``, forgetting."""
        return -self + other

    def __mul__(self, scale: ArrayLike) -> TaskVector:
        return self._scaled(scale, operator.mul)

    __rmul__ = __mul__

    def __truediv__(self, scale: ArrayLike) -> TaskVector:
        return self._scaled(scale, operator.truediv)

    def by_leaf(self) -> dict[str, Array]:
        """Return the leaves by path, such as ``encoder/layers/0/mlp/fc1/kernel``."""
        return leaves_by_path(self.tree)

    def by_layer(self, granularity: Granularity = "block") -> dict[str, TaskVector]:
        """Return each layer's part (`layers.layer_of`) as a task vector of its leaves by path.

        >>> w = jnp.zeros(2)
        >>> list(TaskVector({"embeddings": w, "layers": {"0": {"kernel": w}}}).by_layer())
        ['embeddings', 'layers/0']
        """
        leaves = self.by_leaf()
        return {
            layer: TaskVector({path: leaves[path] for path in paths})
            for layer, paths in group_by_layer(leaves, granularity).items()
        }

    def select(self, *patterns: str) -> TaskVector:
        """Return the vector with only the leaves whose whole path matches a regular expression.

        The others are zero, so that the result adds up with whole vectors:
        ``vector - vector.select("embeddings/.*")`` leaves the embeddings as they were.

        **Raises:** `InputError` for a pattern that is invalid or matches no leaf.

        >>> vector = TaskVector({"a": jnp.array([3.0]), "b": jnp.array([4.0])}).select("a")
        >>> {path: leaf.tolist() for path, leaf in vector.by_leaf().items()}
        {'a': [3.0], 'b': [0.0]}
        """
        require_floats(self.tree, "task vector")
        chosen = matching_paths(self.by_leaf(), patterns)
        return TaskVector(
            jax.tree_util.tree_map_with_path(
                lambda path, leaf: leaf if leaf_path(path) in chosen else jnp.zeros_like(leaf),
                self.tree,
            )
        )

    def dot(self, other: TaskVector) -> Float[Array, ""]:
        """Return the inner product over all parameters."""
        self._require_like(other)
        products = jax.tree.map(
            lambda a, b: jnp.sum(widened(a) * widened(b)), self.tree, other.tree
        )
        return jnp.asarray(jax.tree.reduce(lambda a, b: a + b, products))

    def norm(self) -> Float[Array, ""]:
        """Return the Euclidean norm over all parameters."""
        return jnp.sqrt(self.dot(self))

    def cosine(self, other: TaskVector) -> Float[Array, ""]:
        """Return the cosine of the angle to another task vector.

        >>> a, b = (TaskVector({"w": jnp.array(w)}) for w in ([3.0, 4.0], [4.0, 3.0]))
        >>> float(a.dot(b)), float(a.norm()), round(float(a.cosine(b)), 2)
        (24.0, 5.0, 0.96)
        """
        return self.dot(other) / (self.norm() * other.norm())

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.tree))

    def rms(self) -> Float[Array, ""]:
        """Return the root mean square over all parameters."""
        return self.norm() / self.size**0.5

    def _scaled(self, scale: ArrayLike, by: Callable[[Any, Any], Any]) -> TaskVector:
        require_floats(self.tree, "task vector")
        require_scalar(scale)
        return TaskVector(
            jax.tree.map(lambda leaf: as_type_of(leaf, by(widened(leaf), scale)), self.tree)
        )

    def _require_like(self, other: TaskVector) -> None:
        require_same_structure(self.tree, other.tree, ("task vector", "other"))
        require_floats(self.tree, "task vector")
        require_floats(other.tree, "other")
