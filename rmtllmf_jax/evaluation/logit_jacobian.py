"""Sensitivity of logits and margins to the parameters: exact norms of their gradients.

J_k is the gradient of the logit z_k of one sample with respect to the backbone's parameters (heads
stay at the receiver and are not disturbed by the uplink). A perturbation with independent entries
of standard deviation sigma_l in the leaf l moves z_k, to first order, by a Gaussian of variance
``sum_l sigma_l^2 ||J_k,l||^2``. So the norms are kept per leaf, and computing them once serves
every noise level: the variance is linear in them.

The Jacobian itself (classes x parameters per sample) is never in memory: each gradient is one
vector-Jacobian product, of which only the sums of squares are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.fusion.trees import widened
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import PADDED_LOGIT, Head


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "squared_norms", "counted"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Sensitivity:
    """Outputs of a model, and their sensitivity to its parameters."""

    values: Float[Array, "*shape"]
    """Those of the undisturbed model."""
    squared_norms: dict[str, Float[Array, "*shape"]]
    """||J||^2 of each number with respect to a leaf, by leaf path; 0 where not counted."""
    counted: Bool[Array, "*shape"]
    """Which numbers statistics cover: no padded samples or classes, and none without a gradient.

    A two-class `lda_head` has one without: its first logit is zero, whatever the parameters.
    """

    def std(self, noise_std: PyTree) -> Float[Array, "*shape"]:
        """Return the standard deviation ``sqrt(sum_l sigma_l^2 ||J_l||^2)``, to first order.

        `noise_std` is sigma, a scalar or one per leaf, see `noise_by_leaf`.
        """
        sigma = noise_by_leaf(noise_std, self.squared_norms)
        parts = [jnp.square(sigma[path]) * norms for path, norms in self.squared_norms.items()]
        return jnp.sqrt(sum(parts[1:], parts[0]))


def noise_by_leaf(noise_std: PyTree, paths: Iterable[str]) -> dict[str, Array]:
    """Return the standard deviation of the parameters' noise by leaf.

    **Arguments:**

    - `noise_std`: one scalar for all leaves, or one per leaf: a tree like the parameters, or a dict
      by path such as ``{"encoder/layer/0/output/dense/kernel": 0.1, ...}``. A leaf that is not
      disturbed needs an explicit standard deviation of 0.
    - `paths`: the leaves' paths.

    **Raises:** `InputError` with every missing or unknown path.
    """
    if jax.tree_util.all_leaves([noise_std]):
        return {path: jnp.asarray(noise_std) for path in paths}
    given, known = leaves_by_path(noise_std), set(paths)
    problems = [f"{path}: no standard deviation" for path in known - given.keys()]
    problems += [f"{path}: no such leaf" for path in given.keys() - known]
    if problems:
        raise InputError(
            "the noise needs one standard deviation per leaf of the parameters (0 where nothing "
            "is disturbed):\n  " + "\n  ".join(sorted(problems))
        )
    return {path: jnp.asarray(given[path]) for path in paths}


@partial(jax.jit, static_argnames=("backbone", "chunk", "samples"))
def logit_jacobian_norms(
    params: PyTree,
    heads: Head,
    task: Int[Array, ""],
    batch: Batch,
    *,
    backbone: Backbone,
    chunk: int = 8,
    samples: int = 1,
) -> Sensitivity:
    """Return every logit z_k of every sample, and ||J_k||^2 by leaf: (batch, classes).

    Exact, by one vector-Jacobian product per sample and logit. Classes that only pad a stacked head
    cost nothing, although one compiled program serves all tasks.

    **Arguments:**

    - `heads`: stacked over tasks and padded; `task`: which of them to use.
    - `chunk`: logits at a time; `samples`: samples at a time. Memory is ``samples * chunk``
      gradients; the results do not depend on either, except for rounding.

    **Raises:** `InputError` if `chunk` or `samples` is below 1.
    """
    require_at_least("chunk", chunk, 1)
    head = jax.tree.map(lambda leaf: leaf[task], heads)
    real = _real_classes(head)
    classes = real.shape[0]
    every = jnp.eye(classes, dtype=head.bias.dtype)
    # Real classes come first; the loop ends after the last of them.
    count = jnp.max(jnp.where(real, jnp.arange(1, classes + 1), 0))

    def one(image: Array) -> tuple[Array, dict[str, Array]]:
        logits, pullback = _logits(params, head, image, backbone)
        return logits, _squared_norms(pullback, every.astype(logits.dtype), count, chunk)

    values, norms = _map_samples(one, batch, samples)
    counted = real & (batch.weight > 0)[:, None]
    return _only_counted(values, norms, counted)


@partial(jax.jit, static_argnames=("backbone", "samples"))
def margin_jacobian_norms(
    params: PyTree,
    heads: Head,
    task: Int[Array, ""],
    batch: Batch,
    *,
    backbone: Backbone,
    samples: int = 1,
) -> Sensitivity:
    """Return every sample's margin ``z_a - z_b`` and ``||J_a - J_b||^2`` by leaf: (batch,).

    a is the model's decision and b the runner-up (`top_two`). Unlike a ratio of logits, a margin is
    invariant to a constant added to a sample's logits, and nothing is divided by a logit that may
    be near zero.

    **Arguments:** those of `logit_jacobian_norms`.

    **Raises:** `InputError` if `samples` is below 1.
    """
    head = jax.tree.map(lambda leaf: leaf[task], heads)
    real = _real_classes(head)

    def one(image: Array) -> tuple[tuple[Array, Array], dict[str, Array]]:
        logits, pullback = _logits(params, head, image, backbone)
        best, rival = top_two(logits)
        direction = jnp.zeros_like(logits).at[best].add(1).at[rival].add(-1)
        norms = _squared_norms(pullback, direction[None], jnp.array(1), 1)
        # A task with a single class has no rival, and so no margin.
        return (logits[best] - logits[rival], real[rival]), jax.tree.map(lambda n: n[0], norms)

    (values, has_rival), norms = _map_samples(one, batch, samples)
    return _only_counted(values, norms, has_rival & (batch.weight > 0))


def top_two(
    logits: Float[Array, "*batch classes"],
) -> tuple[Int[Array, "*batch"], Int[Array, "*batch"]]:
    """Return the classes with the largest and the second largest logit.

    **Raises:** `InputError` if there is only one class.
    """
    if logits.shape[-1] < 2:
        raise InputError("a margin needs two classes or more, and this head has one.")
    _, places = lax.top_k(logits, 2)
    return places[..., 0], places[..., 1]


def _real_classes(head: Head) -> Bool[Array, " classes"]:
    return head.bias > PADDED_LOGIT / 2


def _logits(
    params: PyTree, head: Head, image: Array, backbone: Backbone
) -> tuple[Array, Callable[[Array], tuple[PyTree]]]:
    """Return one sample's logits, and the function from a direction d of them to d^T J."""
    return jax.vjp(lambda moved: head(backbone.features(moved, image[None]))[0], params)


def _squared_norms(
    pullback: Callable[[Array], tuple[PyTree]],
    directions: Float[Array, "n classes"],
    count: Int[Array, ""],
    chunk: int,
) -> dict[str, Float[Array, " n"]]:
    """Return ``||d^T J||^2`` by leaf for the first `count` directions d, `chunk` at once."""
    wanted = len(directions)
    chunk = min(chunk, wanted)
    directions = jnp.pad(directions, ((0, -wanted % chunk), (0, 0)))

    def norms(direction: Array) -> dict[str, Array]:
        (gradient,) = pullback(direction)
        leaves = leaves_by_path(gradient)
        return {path: jnp.sum(jnp.square(widened(leaf))) for path, leaf in leaves.items()}

    def step(number: Array, found: dict[str, Array]) -> dict[str, Array]:
        start = number * chunk
        new = jax.vmap(norms)(lax.dynamic_slice_in_dim(directions, start, chunk))
        return jax.tree.map(
            lambda row, part: lax.dynamic_update_slice_in_dim(row, part, start, 0), found, new
        )

    empty = jax.tree.map(
        lambda norm: jnp.zeros(len(directions), norm.dtype),
        jax.eval_shape(norms, directions[0]),
    )
    # A traced end: heads with few classes run few steps of the shared program.
    found = lax.fori_loop(0, (count + chunk - 1) // chunk, step, empty)
    return jax.tree.map(lambda row: row[:wanted], found)


def _map_samples(one: Callable[[Array], PyTree], batch: Batch, samples: int) -> PyTree:
    require_at_least("samples", samples, 1)
    images = batch.inputs["images"]
    return lax.map(one, images, batch_size=min(samples, len(images)))


def _only_counted(values: Array, norms: dict[str, Array], counted: Array) -> Sensitivity:
    kept = {path: jnp.where(counted, norm, 0) for path, norm in norms.items()}
    moves = jnp.any(jnp.stack(list(kept.values())) > 0, axis=0)
    return Sensitivity(values, kept, counted & moves)
