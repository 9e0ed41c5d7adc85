"""What experiments/merge_rules.py tries and how: grids of options, merges, what was measured."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from journal import Journal
from merge_rules_statistics import fisher_information, input_grams
from study import Users

from rmtllmf_jax import fusion
from rmtllmf_jax.common.progress import Advance
from rmtllmf_jax.common.values import described
from rmtllmf_jax.data.splits import evaluation_subset
from rmtllmf_jax.fusion.layers import group_by_layer
from rmtllmf_jax.fusion.rules import AdaMerging, fact, merge_by_layer, prediction_entropy
from rmtllmf_jax.models.heads import logits_by_task
from rmtllmf_jax.models.images import resize
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Combination, choose_combinations
from rmtllmf_jax.sweep.layout import one_device
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.training.batches import balanced_batches

SUM = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Scales of rules that add task vectors; below 0.1 a merge is the base model in all but name."""
HALVED = (0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 1.6)
"""Of rules that add about half of every task vector."""
MEAN = (0.2, 0.4, 0.6, 0.8, 1.0, 1.3)
"""Of rules that average."""
LEARNED = (1.0,)
"""Of rules whose weights say all."""
RAMPS = ((0.0, 1.0), (1.0, 0.0), (0.5, 1.0), (1.0, 0.5))
"""Weights of the first and of the last block, linear in between: the simplest layer-wise ones."""


@dataclass(frozen=True)
class Ramp:
    """Weights by layer that change linearly with depth, see `ramp`."""

    first: float
    last: float

    def __call__(self, stacked: Any, key: Any = None, *, weights: Any = None) -> Any:
        """Return the merged task vector."""
        layers = ramp(list(group_by_layer(fusion.leaves_by_path(stacked))), self.first, self.last)
        return fusion.LayerWise(layers)(stacked, weights=weights)


@dataclass(frozen=True)
class Variant:
    """A row of the table: the methods that are tried, and the scales of each."""

    methods: tuple[Any, ...]
    scales: tuple[float, ...] = SUM


def variant(method: Any, scales: tuple[float, ...] = SUM, **options: tuple) -> Variant:
    """Return all combinations of some options' values as a row."""
    return Variant(fusion.one_of(method, **options).methods, scales)


VARIANTS = {
    "task_arithmetic": variant(fusion.TaskArithmetic()),
    "average": variant(fusion.Average(), LEARNED),
    "ties": variant(fusion.Ties(), MEAN, density=(0.1, 0.2, 0.5)),
    "dare": variant(fusion.Dare(), drop=(0.5, 0.9)),
    "dare_ties": variant(fusion.DareTies(), drop=(0.5, 0.9)),
    "layer_wise, ramp": Variant(tuple(Ramp(*ends) for ends in RAMPS), HALVED),
    **{
        f"lata, {kind}": variant(fusion.Lata(kind), HALVED, granularity=("block", "tensor"))
        for kind in ("linear", "logarithmic")
    },
    "lata, threshold": variant(fusion.Lata("threshold"), HALVED, sigma=(0.0, 0.1, 0.2)),
    **{
        f"adamerging, {name}-wise": variant(AdaMerging(kind, learning_rate=1e-2), LEARNED)
        for name, kind in (("task", "task"), ("layer", "tensor"))
    },
    "fisher": variant(fusion.Fisher(), LEARNED, floor=tuple(10.0**n for n in (-10, -8, -6))),
    "regmean": variant(fusion.RegMean(), LEARNED, off_diagonal=(0.1, 0.5, 0.9)),
}
"""LATA without a reference compares a task vector to the mean of the others."""


@dataclass(frozen=True)
class Options(Users):
    """What to run."""

    rules: tuple[str, ...] = tuple(VARIANTS)
    """Rows of the table to compute, of `VARIANTS`."""
    sizes: tuple[int, ...] = (2, 4, 8)
    """Numbers of tasks."""
    combinations: int = 6
    """Combinations of each number of tasks, drawn so that tasks occur about equally often."""
    eval_samples: int = 200
    """Test images a task; 0 is all."""
    validation_samples: int = 100
    """Validation images a task; 0 is all."""
    eval_batch_size: int = 100
    """Images a step of evaluation; changes speed and memory alone."""
    adamerging_steps: int = 100
    """Steps of AdaMerging."""
    adamerging_batch: int = 16
    """Images of each task in a step of AdaMerging."""
    statistics_samples: int = 128
    """Training images a task, without labels, for Fisher and RegMean."""
    seed: int = 0
    """Root of combinations, samples and random rules."""
    out: Path = Path(__file__).parent / "results" / "merge_rules"
    """Where the tables go."""


@dataclass(frozen=True)
class Candidate:
    """A variant as it was used."""

    variant: str
    method: Any
    scale: float

    def name(self, combination: Combination, split: str) -> str:
        """Return what the accuracies of a merge are kept under."""
        return (
            f"{self.variant}/{described(self.method)}/{self.scale}/{'+'.join(combination)}/{split}"
        )


class Study:
    """The models of a run, merged and measured; what was measured is in the journal."""

    def __init__(self, inputs: SweepInputs, options: Options, journal: Journal) -> None:
        self.inputs, self.options, self.journal = inputs, options, journal
        settings = Settings(
            eval_samples=options.eval_samples,
            validation_samples=options.validation_samples,
            eval_batch_size=options.eval_batch_size,
            seed=options.seed,
        )
        self.engine = Engine(inputs, settings, one_device())
        self.combinations = [
            combination
            for combination in choose_combinations(inputs.tasks, options.combinations, options.seed)
            if len(combination) in options.sizes
        ]

    def of_size(self, size: int) -> list[Combination]:
        """Return the combinations of so many tasks."""
        return [chosen for chosen in self.combinations if len(chosen) == size]

    def rows(self, stacked: Any, combination: Combination) -> Any:
        """Return the combination's part of a tree that is stacked over all tasks."""
        users = np.array([self.inputs.tasks.index(task) for task in combination])
        return jax.tree.map(lambda leaf: leaf[users], stacked)

    def key(self, combination: Combination) -> jax.Array:
        """Return a key for the random rules."""
        meaning = zlib.crc32("+".join(combination).encode())
        return jax.random.fold_in(jax.random.key(self.options.seed), meaning)

    def merged(self, one: Candidate, combination: Combination) -> Any:
        """Return the merged task vector of a combination."""
        if isinstance(one.method, AdaMerging):
            return self._learned(one, combination)
        needs = fact(one.method, "needs")  # `fishers` or `grams`
        given = {name: self.rows(getattr(self, name), combination) for name in needs}
        vectors = self.rows(self.inputs.vectors, combination)
        return merge(one.method, vectors, self.key(combination), **given)

    def _learned(self, one: Candidate, combination: Combination) -> Any:
        """Return AdaMerging's task vector; the weights, which take long, are in the journal."""
        method, vectors = one.method, self.rows(self.inputs.vectors, combination)
        name = one.name(combination, "weights")
        if name not in self.journal:
            batches = self.unlabelled_batches(combination)
            found = method.learn(vectors, self.inputs.base, self.entropy, batches)
            rows = {layer: np.asarray(row).tolist() for layer, row in found.weights.items()}
            self.journal.add(name, rows)
        weights = {layer: jnp.asarray(row) for layer, row in self.journal[name].items()}
        granularity = "tensor" if method.granularity == "task" else method.granularity
        return merge_by_layer(vectors, weights, granularity)

    def unlabelled_batches(self, combination: Combination) -> dict[str, jax.Array]:
        """Return a batch a step, test images of all tasks of the combination and whose they are."""
        images, places = self.unlabelled
        users = [self.inputs.tasks.index(task) for task in combination]
        steps, each = self.options.adamerging_steps, self.options.adamerging_batch
        groups = [places[user] for user in users]
        rows = balanced_batches(groups, steps, each * len(users), self.options.seed)
        owner = np.repeat(np.arange(len(places)), [len(place) for place in places])
        return {"images": jnp.asarray(images[rows]), "task": jnp.asarray(owner[rows])}

    @cached_property
    def entropy(self) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
        """The entropy of a model's predictions, each image under its own task's head."""
        backbone, heads = self.inputs.backbone, self.inputs.heads

        def entropy(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
            features = backbone.features(params, batch["images"])
            return prediction_entropy(logits_by_task(heads, features, batch["task"]))

        return entropy

    @cached_property
    def unlabelled(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """The test images that are evaluated, of all tasks, and each task's places among them."""
        size, parts = self.inputs.backbone.image_size, []
        for task in self.inputs.data:
            chosen = evaluation_subset(len(task.test), self.options.eval_samples, self.options.seed)
            parts.append(np.asarray(resize(task.test.take(chosen).images, size)))
        ends = np.cumsum([len(part) for part in parts])
        places = [np.arange(end - len(part), end) for part, end in zip(parts, ends, strict=True)]
        return np.concatenate(parts), places

    @cached_property
    def fishers(self) -> Any:
        """The Fisher information of every task's fine-tuned model, stacked."""
        found = []
        for user, images in enumerate(self.training_images()):
            head = jax.tree.map(lambda leaf, user=user: leaf[user], self.inputs.heads)
            key = jax.random.fold_in(jax.random.key(self.options.seed), user)
            params, backbone = self.inputs.finetuned(user), self.inputs.backbone
            found.append(fisher_information(params, head, images, key, backbone=backbone))
        return fusion.stack(found)

    @cached_property
    def grams(self) -> dict[str, jax.Array]:
        """The Gram matrices of every task's fine-tuned model, stacked."""
        backbone = self.inputs.backbone
        return fusion.stack(
            [
                input_grams(self.inputs.finetuned(user), images, backbone)
                for user, images in enumerate(self.training_images())
            ]
        )

    def training_images(self) -> Iterator[jax.Array]:
        """Yield a few training images of every task."""
        size, samples = self.inputs.backbone.image_size, self.options.statistics_samples
        for task in self.inputs.data:
            chosen = evaluation_subset(len(task.train), samples, self.options.seed)
            yield resize(task.train.take(chosen).images, size)

    def candidates(self, variant: str, size: int) -> list[list[Candidate]]:
        """Return what is tried of a variant; those that differ in the scale alone stand together.

        AdaMerging starts from the scale that task arithmetic was given, as its authors do.
        """
        methods = VARIANTS[variant].methods
        if isinstance(methods[0], AdaMerging):
            initial = choose(self, "task_arithmetic", size)[0].scale
            methods = tuple(replace(method, initial=initial) for method in methods)
        scales = VARIANTS[variant].scales
        return [[Candidate(variant, each, scale) for scale in scales] for each in methods]

    def accuracies(self, name: str, params: Any, combination: Combination, split: str) -> None:
        """Record the accuracy of every task of the combination."""
        values = [self.engine.score(params, task, split) for task in combination]
        self.journal.add(name, values)

    def reference(self, task: str, model: str, split: str) -> float:
        """Return the accuracy of the `base` or of the task's own `finetuned` model."""
        name = f"reference/{task}/{model}/{split}"
        if name not in self.journal:
            user = self.inputs.tasks.index(task)
            params = self.inputs.base if model == "base" else self.inputs.finetuned(user)
            self.journal.add(name, self.engine.score(params, task, split))
        return self.journal[name]

    def normalised(self, name: str, combination: Combination, split: str) -> float:
        """Return the average normalised accuracy that was recorded."""
        alone = [self.reference(task, "finetuned", split) for task in combination]
        return float(np.mean(np.array(self.journal[name]) / alone))


def merge(method: Any, stacked: Any, key: jax.Array, **needs: Any) -> Any:
    """Return the merged task vector.

    Random rules run leaf by leaf: a mask for every leaf and user in one program compiles for
    minutes.
    """
    return (method if fact(method, "random") else _compiled(method))(stacked, key, **needs)


_compiled = cache(jax.jit)


def ramp(layers: list[str], first: float, last: float) -> dict[str, float]:
    """Return weights that change linearly with depth; what is in no block goes with its end."""
    blocks = sorted({int(n) for layer in layers for n in re.findall(r"[./](\d+)$", layer)})
    weights = np.interp(np.linspace(0, 1, len(blocks)), (0, 1), (first, last))
    by_block = dict(zip(blocks, weights.tolist(), strict=True))

    def weight(layer: str) -> float:
        number = re.search(r"[./](\d+)$", layer)
        if number:
            return by_block[int(number.group(1))]
        return first if "embed" in layer or "pre_l" in layer else last

    return {layer: weight(layer) for layer in layers}


add_to_base = jax.jit(fusion.add_to_base)


def measure(
    study: Study, group: list[Candidate], combination: Combination, split: str, advance: Advance
) -> None:
    """Record the accuracies of candidates that differ in the scale alone: one merge serves all."""
    missing = [one for one in group if one.name(combination, split) not in study.journal]
    advance(len(group) - len(missing))
    if not missing:
        return
    vector = study.merged(group[0], combination)
    for one in missing:
        params = add_to_base(study.inputs.base, vector, one.scale)
        study.accuracies(one.name(combination, split), params, combination, split)
        advance(1)


def choose(
    study: Study, variant: str, size: int, advance: Advance = lambda count: None
) -> tuple[Candidate, list[dict[str, Any]]]:
    """Return the candidate with the best mean on validation samples, and all candidates' means."""
    rows, scores = [], {}
    for group in study.candidates(variant, size):
        for combination in study.of_size(size):
            measure(study, group, combination, "validation", advance)
        for one in group:
            values = [
                study.normalised(one.name(combination, "validation"), combination, "validation")
                for combination in study.of_size(size)
            ]
            scores[one] = float(np.mean(values))
            row = {"rule": variant, "size": size, "method": described(one.method)}
            rows.append({**row, "scale": one.scale, "validation_normalised": scores[one]})
    return max(scores, key=lambda one: scores[one]), rows
