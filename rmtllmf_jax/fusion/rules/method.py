"""What a merge method is: a frozen dataclass that is called on stacked task vectors.

Your own class needs no more than that, and no registration:

>>> from dataclasses import dataclass
>>> import jax, jax.numpy as jnp
>>> @dataclass(frozen=True)
... class Largest:
...     "The entry of largest magnitude."
...     per_leaf = True
...     def __call__(self, stacked, key=None, *, weights=None):
...         def pick(leaf):
...             return jnp.take_along_axis(leaf, jnp.abs(leaf).argmax(0)[None], 0)[0]
...         return jax.tree.map(pick, stacked)
>>> Largest()({"w": jnp.array([[1.0, -5.0], [-3.0, 2.0]])})["w"].tolist()
[-3.0, -5.0]
>>> fact(Largest(), "per_leaf"), fact(Largest(), "random")
(True, False)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from jaxtyping import Array, Key, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import name_of
from rmtllmf_jax.fusion.rules.leaves import PerUser, check_weights

Method = Callable[..., PyTree]
"""A merge method: a `MergeMethod`, or any frozen dataclass that is called as one."""


class MergeMethod:
    """Base of the merge methods: ``method(stacked, key=None, *, weights=None) -> merged``.

    Hyperparameters are the fields of a frozen dataclass; arrays are arguments of the call. The
    class variables hold what programs have to know; a class that does not set them has the values
    below.
    """

    title: ClassVar[str] = ""
    """As it is written in print; the class's docstring says more."""
    reference: ClassVar[str] = ""
    """Authors and number of the paper."""
    random: ClassVar[bool] = False
    """Needs a key."""
    per_leaf: ClassVar[bool] = False
    """A leaf of the result depends on the same leaf of the task vectors (and of what it `needs`)
    alone, whatever its name: files are then merged tensor by tensor."""
    linear: ClassVar[bool] = False
    """Is `fusion.weighted_sum` of the task vectors by `weights`, so that noise may be summed before
    it is drawn."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Arguments of the call besides these that must be given: `base`, statistics of data."""
    most: ClassVar[int | None] = None
    """Most task vectors that it merges; none: any number."""
    takes: ClassVar[tuple[str, ...]] = ()
    """Arguments of the call that may be given."""
    scales: ClassVar[tuple[float, ...]] = ()
    """Coefficients to try on validation samples; none: those of `fusion.candidate_scales`."""

    weights: tuple[float, ...] = ()
    """One weight per task vector where the call gives none; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the weights."""
        check_weights(self.weights)

    @property
    def is_mean(self) -> bool:
        """A mean of the task vectors, whose natural coefficient is 1, rather than a sum."""
        return False

    def __call__(
        self,
        stacked: PyTree[Array],
        key: Key[Array, ""] | None = None,
        *,
        weights: PerUser | None = None,
    ) -> PyTree[Array]:
        """Return the merged task vector.

        **Arguments:**

        - `stacked`: leaves with a leading axis of Q users (`fusion.stack`), real floating-point.
        - `key`: for methods that draw random numbers (`random`).
        - `weights`: one per user, in place of the method's own; an array to map over or to
          differentiate with respect to. A user with weight 0 is effectively left out.

        **Returns:** leaves without the leading axis, of the same types; sums are in float32 or
        wider.

        **Raises:** `InputError` if the leaves have no common leading axis, or hold integers, or if
        the number of weights is not Q.
        """
        raise NotImplementedError(name_of(self))


_PLAIN = MergeMethod()


def fact(method: Method, name: str) -> Any:
    """Return the class variable of a method that `MergeMethod` has by this name, or the default."""
    return getattr(method, name, getattr(_PLAIN, name))


def require_few_enough(method: Method, tasks: int) -> None:
    """Check that a method merges this many task vectors.

    **Raises:** `InputError` that says how many it takes.
    """
    most = fact(method, "most")
    if most is not None and tasks > most:
        raise InputError(
            f"the merge method {name_of(method)} takes {most} task vectors at most, got {tasks}."
        )
