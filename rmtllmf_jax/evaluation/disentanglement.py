"""Weight disentanglement error: how much merged tasks change each other's predictions.

R-MTLLMF (arXiv 2411.18220), eqs. (7) and (8)::

    xi = sum_i E_{x in task i} [ dist( f(x; base + a_i tau_i), f(x; base + scale sum_j tau_j) ) ]

Every task is evaluated under its own frozen head, and no label is needed. **Under noise** the
single model on the left has the task vector as sent, the merged model on the right the vectors as
received, tau_j + e_j: the increase of xi over the xi without noise is due to the noise.

All functions are pure and differentiable (under `disagreement` the gradient is zero). Compile them
with `jax.jit(..., static_argnames=("features", "distance", "batch_size"))`: one program serves all
tasks, scales, combinations and noises. `features(params, images)` is the model up to its head, such
as `Backbone.features`; the same object is compiled once.

Reference for the heat map of a pair: Ortiz-Jimenez et al., arXiv 2305.12827.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.evaluation.batches import Batch, EvaluationSet
from rmtllmf_jax.models.heads import Head

Features = Callable[..., Array]
"""``(params, images uint8 (batch, size, size, channels)) -> (batch, width)``."""


@dataclass(frozen=True)
class Distance:
    """What to keep of a model's logits, and the distance between the kept outputs of two models."""

    read: Callable[..., Array]
    """Maps logits (*batch, classes) to what is kept, with the same leading axes."""
    between: Callable[..., Array]
    """Maps the kept outputs of the first and the second model to distances (*batch)."""
    unit: str
    """Unit of a distance, for axes and tables."""


def labels(logits: Float[Array, "*batch classes"]) -> Int[Array, "*batch"]:
    """Return the class of the largest logit, never a class of a head's padding."""
    return jnp.argmax(logits, axis=-1)


def disagreement(
    first: Int[Array, "*batch"], second: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Return ``1{first != second}``, the distance of R-MTLLMF, eq. (8). Its gradient is zero."""
    return (first != second).astype(float)


def log_probabilities(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Return the logarithm of the softmax; about -1e9 for a class of a head's padding."""
    return jax.nn.log_softmax(logits, axis=-1)


def kl_divergence(
    first: Float[Array, "*batch classes"], second: Float[Array, "*batch classes"]
) -> Float[Array, "*batch"]:
    """Return ``KL(first || second) = sum_c p_c (log p_c - log q_c)`` in nats, of log probabilities.

    Padded classes have p = 0 and finite logarithms, so they add nothing, not even to gradients.
    Zero for equal models up to rounding, which may leave about -1e-7 in float32.
    """
    return jnp.sum(jnp.exp(first) * (first - second), axis=-1)


DISTANCES: Mapping[str, Distance] = MappingProxyType(
    {
        "disagreement": Distance(labels, disagreement, "share of samples"),
        "kl": Distance(log_probabilities, kl_divergence, "nats"),
    }
)
"""`disagreement` of the predicted classes, or `kl`, KL(single || merged) of the softmax outputs."""


def get_distance(name: str) -> Distance:
    """Return a distance by its name.

    **Raises:** `InputError` that gives the nearest name.
    """
    return DISTANCES[require_known("distance", name, DISTANCES)]


def task_samples(sets: Sequence[EvaluationSet], image_size: int) -> Batch:
    """Return the samples of the tasks as one array of images of `image_size` pixels.

    Tasks with fewer batches than the longest get batches of padding, which cost time: give all
    tasks about equally many samples.

    **Returns:** batches along two leading axes, tasks and batches.

    **Raises:** `InputError` if there is no task, or if the sizes of the batches differ.
    """
    sizes = sorted({len(batch.weight) for one in sets for batch in one.batches})
    if len(sizes) != 1:
        raise InputError(
            "expected at least one task, and evaluation batches of one size; got "
            f"{len(sets)} tasks with batches of {sizes}."
        )
    most = max(len(one.batches) for one in sets)

    def of_task(one: EvaluationSet) -> Batch:
        missing = most - len(one.batches)
        return jax.tree.map(
            lambda leaf: jnp.pad(leaf, ((0, missing), *[(0, 0)] * (leaf.ndim - 1))),
            fusion.stack([batch.at_size(image_size) for batch in one.batches]),
        )

    return fusion.stack([of_task(one) for one in sets])


def pair_wde(
    base: PyTree,
    pair: PyTree[Float[Array, "tasks ..."]],
    heads: Head,
    samples: Batch,
    first: Float[Array, " first"],
    second: Float[Array, " second"],
    *,
    features: Features,
    distance: str = "disagreement",
    noise: PyTree[Float[Array, "tasks ..."]] | None = None,
    batch_size: int | None = None,
) -> Float[Array, "first second"]:
    """Return the heat map of two tasks over their scales a_1 and a_2.

    At (a_1, a_2) the merged model is ``base + a_1 (tau_1 + e_1) + a_2 (tau_2 + e_2)`` and task i's
    single model is ``base + a_i tau_i``. The single models' outputs are computed once per scale,
    the merged ones' once per point of the grid.

    **Arguments:**

    - `pair`, `heads`, `samples`: stacked over the two tasks, in one order; the samples as
      `task_samples` gives them.
    - `first`, `second`: the scales a_1 and a_2, of any sign.
    - `distance`: `disagreement`, or `kl` for KL(single || merged) in nats.
    - `noise`: the reception errors e_1 and e_2, stacked; `None` means no errors.
    - `batch_size`: points of the grid at once (`jax.lax.map`); `None` means one after another, with
      the least memory.

    **Returns:** the *mean* over the two tasks, in [0, 1] for `disagreement`; eq. (7) is the sum,
    twice as large.

    **Raises:** `InputError` if vectors, heads and samples are not for two tasks, or for an unknown
    distance.
    """
    if _require_tasks(pair, heads, samples) != 2:
        raise InputError(f"a heat map needs exactly 2 tasks, got {fusion.stack_size(pair)}.")
    model = _Model(features, get_distance(distance), heads, samples)
    received = _received(pair, noise)
    rows, columns = len(first), len(second)
    owners = jnp.array([0] * rows + [1] * columns)
    singles = model.single_outputs(base, pair, jnp.concatenate([first, second]), owners)

    def point(place: tuple[Int[Array, ""], Int[Array, ""]]) -> Float[Array, ""]:
        row, column = place
        scales = jnp.stack([first[row], second[column]])
        merged = fusion.add_to_base(base, fusion.weighted_sum(received, scales), 1.0)
        alone = jnp.stack([row, rows + column])
        found = jax.lax.map(
            lambda task: model.distance_to(merged, singles[alone[task]], task), jnp.arange(2)
        )
        return found.mean()

    grid = jnp.indices((rows, columns)).reshape(2, -1)
    values = jax.lax.map(point, (grid[0], grid[1]), batch_size=batch_size)
    return values.reshape(rows, columns)


def combination_wde(
    base: PyTree,
    stacked: PyTree[Float[Array, "tasks ..."]],
    heads: Head,
    samples: Batch,
    weights: Float[Array, "combinations members"],
    scales: Float[Array, " levels"],
    *,
    features: Features,
    alone: Float[Array, " levels"] | None = None,
    distance: str = "disagreement",
    noise: PyTree[Float[Array, "tasks ..."]] | None = None,
    batch_size: int | None = None,
) -> Float[Array, "levels combinations"]:
    """Return xi of every combination at every scale, eq. (7).

    **Arguments:**

    - `stacked`, `heads`, `samples`: of all tasks, in one order.
    - `weights`: 1 for the tasks of a combination, 0 for the others.
    - `scales`: the merging coefficients; `alone`: the a_i of the single models for each of them, by
      default the same (1 is the fine-tuned model).
    - `distance`, `noise`: as in `pair_wde`; `batch_size`: combinations at once.

    **Returns:** the *sum* over a combination's tasks, in [0, number of its tasks] for
    `disagreement`. For each task's term, or a scale that depends on the combination, see
    `wde_terms`.

    **Raises:** `InputError` if vectors, heads, samples and weights are not for the same tasks, or
    for an unknown distance.
    """
    outputs = single_outputs(
        base,
        stacked,
        heads,
        samples,
        scales if alone is None else alone,
        features=features,
        distance=distance,
    )
    levels, combinations = jnp.indices((len(scales), len(weights)))
    terms = wde_terms(
        base,
        _received(stacked, noise),
        heads,
        samples,
        weights[combinations.ravel()],
        scales[levels.ravel()],
        outputs,
        levels.ravel(),
        features=features,
        distance=distance,
        batch_size=batch_size,
    )
    return terms.sum(axis=1).reshape(levels.shape)


def single_outputs(
    base: PyTree,
    stacked: PyTree[Float[Array, "tasks ..."]],
    heads: Head,
    samples: Batch,
    scales: Float[Array, " levels"],
    *,
    features: Features,
    distance: str = "disagreement",
) -> Shaped[Array, "levels tasks batches batch ..."]:
    """Return the outputs of ``f(x; base + a tau_i)`` on task i's samples, at every scale a.

    They do not depend on noise or combination: `wde_terms` compares them with every merge. Only the
    distance's input is kept: classes, or log probabilities.

    **Raises:** `InputError` as `combination_wde` does.
    """
    tasks = _require_tasks(stacked, heads, samples)
    model = _Model(features, get_distance(distance), heads, samples)
    owners = jnp.tile(jnp.arange(tasks), len(scales))
    found = model.single_outputs(base, stacked, jnp.repeat(scales, tasks), owners)
    return found.reshape(len(scales), tasks, *found.shape[1:])


def wde_terms(
    base: PyTree,
    received: PyTree[Float[Array, "tasks ..."]],
    heads: Head,
    samples: Batch,
    weights: Float[Array, "combinations members"],
    scales: Float[Array, " combinations"],
    outputs: Shaped[Array, "levels tasks batches batch ..."],
    level: Int[Array, " combinations"],
    *,
    features: Features,
    distance: str = "disagreement",
    batch_size: int | None = None,
) -> Float[Array, "combinations tasks"]:
    """Return every task's term of xi: how often, or how far, the merge departs from its model.

    Combination c is ``base + scales_c sum_j weights_cj received_j``, compared with the single
    outputs at `level`_c. Its row adds up to eq. (7); tasks that are not in it (weight 0) have the
    term 0, and are skipped if combinations run one after another (`batch_size` `None`).

    **Arguments:**

    - `received`: the task vectors as received, including noise.
    - `outputs`: those of `single_outputs` for the same tasks, samples and distance.

    **Raises:** `InputError` as `combination_wde` does.
    """
    tasks = _require_tasks(received, heads, samples)
    if weights.shape[1] != tasks:
        raise InputError(f"expected a weight for each of {tasks} tasks, got {weights.shape[1]}.")
    model = _Model(features, get_distance(distance), heads, samples)

    def terms(one: tuple[Array, Array, Array]) -> Float[Array, " tasks"]:
        row, scale, place = one
        merged = fusion.add_to_base(base, fusion.weighted_sum(received, row), scale)

        def term(task: Int[Array, ""]) -> Float[Array, ""]:
            return jax.lax.cond(
                row[task] != 0,
                lambda: model.distance_to(merged, outputs[place, task], task),
                lambda: jnp.zeros(()),
            )

        return jax.lax.map(term, jnp.arange(tasks))

    return jax.lax.map(terms, (weights, scales, level), batch_size=batch_size)


@dataclass(frozen=True)
class _Model:
    """A model without its parameters, with the samples that it is evaluated on."""

    features: Features
    distance: Distance
    heads: Head
    samples: Batch

    def outputs(self, params: PyTree, task: Int[Array, ""]) -> Shaped[Array, "batches batch ..."]:
        """Return the distance's input from a task's samples under its own head."""
        head = jax.tree.map(lambda leaf: leaf[task], self.heads)
        return jax.lax.map(
            lambda images: self.distance.read(head(self.features(params, images))),
            self.samples.inputs["images"][task],
        )

    def single_outputs(
        self,
        base: PyTree,
        stacked: PyTree[Float[Array, "tasks ..."]],
        scales: Float[Array, " singles"],
        owners: Int[Array, " singles"],
    ) -> Shaped[Array, "singles batches batch ..."]:
        """Return the outputs of ``base + scale tau`` for pairs of a scale and its task."""

        def output(single: tuple[Array, Array]) -> Array:
            scale, task = single
            tau = jax.tree.map(lambda leaf: leaf[task], stacked)
            return self.outputs(fusion.add_to_base(base, tau, scale), task)

        return jax.lax.map(output, (scales, owners))

    def distance_to(
        self, params: PyTree, alone: Shaped[Array, "batches batch ..."], task: Int[Array, ""]
    ) -> Float[Array, ""]:
        """Return the mean distance over a task's valid samples, single model first."""
        valid = self.samples.weight[task] > 0
        found = self.distance.between(alone, self.outputs(params, task))
        return (jnp.sum(jnp.where(valid, found, 0.0)) / jnp.sum(valid)).astype(float)


def _received(stacked: PyTree, noise: PyTree | None) -> PyTree:
    if noise is None:
        return stacked
    fusion.require_same_structure(stacked, noise, ("task vectors", "noise"))
    return jax.tree.map(lambda sent, error: sent + error, stacked, noise)


def _require_tasks(stacked: PyTree, heads: Head, samples: Batch) -> int:
    counts = fusion.stack_size(stacked), len(heads.bias), len(samples.weight)
    if len(set(counts)) != 1:
        raise InputError(
            f"expected vectors, heads and samples of the same tasks, got {counts[0]} vectors, "
            f"{counts[1]} heads and samples of {counts[2]} tasks."
        )
    return counts[0]
