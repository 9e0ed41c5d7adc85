"""Functions whose derivative rules hold under every transformation of JAX.

Before JAX 0.12 `jax.custom_jvp` loses its rule where reverse mode goes through `scan` or `lax.map`:
to hoist what does not change out of the loop, JAX evaluates the loop's body in part, and there puts
a function's body in place of a call with a rule. The next derivative is the body's; of constants,
such as eigenvalues, it is zero, without a word. A primitive is left as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


class Ruled:
    """A function of arrays, or pytrees of them, whose derivative is what `defjvp` says.

    As `jax.custom_jvp`, but for the above. The first `static` arguments are hashable values and not
    differentiated; the rule gets them before primals and tangents. Where the rule needs the
    function's value it calls the function, which gives derivatives of every order.
    """

    def __init__(self, function: Callable[..., Any], static: int = 0) -> None:
        self.function, self._static = function, static
        functools.update_wrapper(self, function)

    def defjvp(self, rule: Callable[..., tuple[Any, Any]]) -> None:
        """Set the rule, ``(*static, primals, tangents) -> (value, tangent)``."""
        self.rule = rule

    def __call__(self, *args: Any) -> Any:
        """Return the function's value."""
        static, given = args[: self._static], args[self._static :]
        leaves, tree = jax.tree.flatten(given)
        shape = jax.eval_shape(functools.partial(self.function, *static), *given)
        found = _PRIMITIVE.bind(*leaves, call=_Call(self, static, tree))
        return jax.tree.unflatten(jax.tree.structure(shape), found)


@dataclass(frozen=True)
class _Call:
    """A call of a function on flat arguments, with the axes that `jax.vmap` has added to them."""

    owner: Ruled
    static: tuple
    tree: jax.tree_util.PyTreeDef
    axes: tuple[tuple[int | None, ...], ...] = ()

    def __call__(self, *leaves: Any) -> list[Any]:
        def function(*leaves: Any) -> list[Any]:
            return jax.tree.leaves(self.owner.function(*self.static, *self._args(leaves)))

        for axes in self.axes:
            function = jax.vmap(function, in_axes=axes)
        return function(*leaves)

    def jvp(self, primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        """Values and tangents by the rule."""

        def rule(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
            args = self._args(primals), self._args(tangents)
            value, tangent = self.owner.rule(*self.static, *args)
            return jax.tree.leaves(value), jax.tree.leaves(tangent)

        for axes in self.axes:
            rule = jax.vmap(rule, in_axes=(axes, axes))
        return rule(tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))

    def _args(self, leaves: Any) -> tuple:
        return jax.tree.unflatten(self.tree, leaves)


def _of_batch(leaves: Any, axes: Any, *, call: _Call) -> tuple[list[Any], list[int]]:
    found = _PRIMITIVE.bind(*leaves, call=replace(call, axes=(*call.axes, tuple(axes))))
    return found, [0] * len(found)


_PRIMITIVE = Primitive("ruled")
_PRIMITIVE.multiple_results = True
_PRIMITIVE.def_impl(lambda *leaves, call: jax.jit(call)(*leaves))
_PRIMITIVE.def_abstract_eval(lambda *leaves, call: jax.make_jaxpr(call)(*leaves).out_avals)
ad.primitive_jvps[_PRIMITIVE] = lambda primals, tangents, call: call.jvp(primals, tangents)
batching.primitive_batchers[_PRIMITIVE] = _of_batch
mlir.register_lowering(
    _PRIMITIVE, mlir.lower_fun(lambda *leaves, call: call(*leaves), multiple_results=True)
)
