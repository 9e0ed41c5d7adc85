"""Leaf paths, and the errors of trees that do not match, path by path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rmtllmf_jax.common.errors import InputError


def leaf_path(path: tuple[Any, ...]) -> str:
    """Return a key path as text, for example ``encoder/layer/0/output/dense/kernel``."""
    return "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by their paths, in the tree's own order.

    >>> leaves_by_path({"layers": {"0": {"bias": 1, "kernel": 2}}})
    {'layers/0/bias': 1, 'layers/0/kernel': 2}
    """
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def require_same_structure(a: PyTree, b: PyTree, names: tuple[str, str] = ("a", "b")) -> None:
    """Check that two trees have the same leaf paths and shapes.

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
        shapes = jnp.shape(left[path]), jnp.shape(right[path])
        if shapes[0] != shapes[1]:
            problems.append(f"{path}: {shapes[0]} in {names[0]}, {shapes[1]} in {names[1]}")
    if problems:
        raise InputError(
            f"the trees {names[0]} and {names[1]} do not match:\n  " + "\n  ".join(sorted(problems))
        )


def matching_paths(paths: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """Return the paths that match one of the regular expressions as a whole.

    **Raises:** `InputError` for a pattern that is no regular expression, or that matches no path;
    it gives the nearest ones.

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

    **Raises:** `InputError` if the list is empty or a tree differs from the first.

    >>> stack([{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}])["w"].tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if not trees:
        raise InputError("there is no tree to stack: the list is empty.")
    for index, tree in enumerate(trees[1:], start=1):
        require_same_structure(trees[0], tree, ("tree 0", f"tree {index}"))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: PyTree) -> list[PyTree]:
    """Undo `stack`: one tree with a leading axis Q becomes Q trees.

    >>> [tree["w"].tolist() for tree in unstack({"w": jnp.array([[0.0], [1.0]])})]
    [[0.0], [1.0]]
    """
    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, row) for row in zip(*leaves, strict=True)]


def stack_size(tree: PyTree[Array]) -> int:
    """Return the length Q of the leading axis that all leaves of a stacked tree share.

    **Raises:** `InputError` if there is no leaf, or if the leaves disagree.

    >>> stack_size({"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(3)})
    3
    """
    sizes = {path: jnp.shape(leaf)[:1] for path, leaf in leaves_by_path(tree).items()}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise InputError(f"expected stacked leaves with one common leading axis, got {sizes}.")
    return next(iter(sizes.values()))[0]
