"""Leaf paths, path-by-path errors for trees that do not match, and the types of leaves."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Sequence
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rmtllmf_jax.common.errors import InputError

_VALUE = jax.tree_util.GetAttrKey("value")
_SHOWN = 8


def leaf_path(path: tuple[Any, ...]) -> str:
    """Return a key path as text, for example ``encoder/layer/0/output/dense/kernel``.

    The attribute ``value`` in which `flax.nnx` keeps a variable's array is not part of the name, so
    that parameters have the same names in an `nnx.State` and in a dict.
    """
    if len(path) > 1 and path[-1] == _VALUE:
        path = path[:-1]
    return "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by their paths, in the tree's own order.

    >>> leaves_by_path({"layers": {"0": {"bias": 1, "kernel": 2}}})
    {'layers/0/bias': 1, 'layers/0/kernel': 2}
    """
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def require_same_structure(a: PyTree, b: PyTree, names: tuple[str, str] = ("a", "b")) -> None:
    """Check that two trees have the same leaf paths, shapes and containers.

    **Raises:** `InputError` with every path that differs.

    >>> require_same_structure({"w": jnp.zeros(2)}, {"v": jnp.zeros(2)}, ("finetuned", "base"))
    Traceback (most recent call last):
    rmtllmf_jax.common.errors.InputError: the trees finetuned and base do not match:
      v: only in base
      w: only in finetuned
    """
    left, right = leaves_by_path(a), leaves_by_path(b)
    problems = [f"{path}: only in {names[0]}" for path in left if path not in right]
    problems += [f"{path}: only in {names[1]}" for path in right if path not in left]
    for path in left.keys() & right.keys():
        shapes = tuple(getattr(leaf, "shape", ()) for leaf in (left[path], right[path]))
        if shapes[0] != shapes[1]:
            problems.append(f"{path}: {shapes[0]} in {names[0]}, {shapes[1]} in {names[1]}")
    structures: tuple[Any, Any] = jax.tree.structure(a), jax.tree.structure(b)
    if not problems and structures[0] != structures[1]:
        ours, theirs = _containers(a), _containers(b)
        for path in ours.keys() | theirs.keys():
            kinds = ours.get(path, "nothing"), theirs.get(path, "nothing")
            if kinds[0] != kinds[1]:
                where = path or "the whole tree"
                problems.append(f"{where}: {kinds[0]} in {names[0]}, {kinds[1]} in {names[1]}")
        problems = problems or ["the whole tree: static fields"]
    if problems:
        raise InputError(
            f"the trees {names[0]} and {names[1]} do not match:\n  " + "\n  ".join(sorted(problems))
        )


def _containers(tree: PyTree, path: tuple[Any, ...] = ()) -> dict[str, str]:
    """Return every node that is not a leaf, by path: its type, keys and static fields."""
    below: list[tuple[Any, Any]]
    structure: Any
    below, structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: node is not tree
    )
    data = structure.node_data()
    if data is None:
        return {}
    kind, static = data
    name = kind.__name__
    found = {leaf_path(path): name if static is None else f"{name} of {reprlib.repr(static)}"}
    for key, node in below:
        found |= _containers(node, path + key)
    return found


def require_floats(tree: PyTree, name: str) -> None:
    """Check that a tree has leaves, and real floating-point numbers in each.

    **Raises:** `InputError` with the path of every leaf that holds something else: integers, keys
    of random numbers, functions.
    """
    kinds = {path: getattr(x, "dtype", type(x)) for path, x in leaves_by_path(tree).items()}
    if not kinds:
        raise InputError(f"{name}: has no leaf; expected a tree of parameters.")
    bad = [
        f"{path}: {kind.__name__ if isinstance(kind, type) else kind}"
        for path, kind in kinds.items()
        if not jnp.issubdtype(kind, jnp.floating)
    ]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InputError(
            f"{name}: every leaf must hold floating-point numbers, got "
            f"{', '.join(bad[:_SHOWN])}{more}; leave such leaves out and take the base's."
        )


def widened(leaf: Any) -> Any:
    """Return a leaf in float32 or its wider type: narrower sums lose precision or overflow."""
    leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def as_type_of(leaf: Any, value: Any) -> Any:
    """Return a value in the type of a leaf, so that scalars never change the type of a tree."""
    dtype = getattr(leaf, "dtype", value.dtype)
    # Arrays of numpy may be wider than jax has them.
    known = jax.dtypes.canonicalize_dtype(dtype) if isinstance(value, jax.Array) else dtype
    return value.astype(known)


def matching_paths(paths: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """Return the paths that fully match one of the regular expressions.

    **Raises:** `InputError` for a pattern that is not a regular expression, or that matches no
    path; it gives the nearest ones.

    >>> sorted(matching_paths(["embeddings/token", "layers/0/kernel"], ["layers/.*"]))
    ['layers/0/kernel']
    """
    known, chosen = list(paths), set()
    for pattern in patterns:
        try:
            matches = [path for path in known if re.fullmatch(pattern, path)]
        except re.error as error:
            raise InputError(f"{pattern!r} is not a regular expression ({error}).") from error
        if not matches:
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.0)
            raise InputError(
                f"no leaf matches {pattern!r} as a whole; of {len(known)} leaves the nearest are "
                f"{', '.join(near)}."
            )
        chosen |= set(matches)
    return chosen


def stack(trees: list[PyTree]) -> PyTree:
    """Stack Q trees of one structure into one tree whose leaves have a leading axis Q.

    **Raises:** `InputError` if the list is empty, a tree differs from the first, or a leaf is not
    an array.

    >>> stack([{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}])["w"].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if not trees:
        raise InputError("there are no trees to stack: the list is empty.")
    for index, tree in enumerate(trees):
        require_same_structure(trees[0], tree, ("tree 0", f"tree {index}"))
        for path, leaf in leaves_by_path(tree).items():
            if not isinstance(leaf, Number) and not hasattr(leaf, "shape"):
                kind = type(leaf).__name__
                raise InputError(f"tree {index}: {path}: expected an array, got a {kind}.")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: PyTree) -> list[PyTree]:
    """Undo `stack`: one tree with a leading axis Q becomes Q trees.

    **Raises:** `InputError` as `stack_size`.

    >>> [tree["w"].tolist() for tree in unstack({"w": jnp.array([[0.0], [1.0]])})]
    [[0.0], [1.0]]
    """
    stack_size(tree)
    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, row) for row in zip(*leaves, strict=True)]


def stack_size(tree: PyTree[Array]) -> int:
    """Return the length Q of the leading axis that all leaves of a stacked tree share.

    **Raises:** `InputError` if there is no leaf, or if the leaves disagree.

    >>> stack_size({"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(3)})
    3
    """
    sizes = {path: tuple(getattr(x, "shape", ()))[:1] for path, x in leaves_by_path(tree).items()}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise InputError(f"expected stacked leaves with one common leading axis, got {sizes}.")
    return next(iter(sizes.values()))[0]


def check_stacked(stacked: PyTree) -> int:
    """Return the number Q of stacked task vectors.

    **Raises:** `InputError` if the leaves have no common leading axis, if there is no task vector,
    or if a leaf does not hold real floating-point numbers.
    """
    require_floats(stacked, "task vectors")
    users = stack_size(stacked)
    if users == 0:
        raise InputError("there are no task vectors to merge: the leading axis has length 0.")
    return users
