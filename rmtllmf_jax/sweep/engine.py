"""Makes and evaluates the models of a sweep, a chunk of cells at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import cached_property
from itertools import islice, takewhile
from threading import Lock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int64, Key, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.samples import Samples
from rmtllmf_jax.defences.protection import Protection, Split, protection_name, split
from rmtllmf_jax.defences.repairs import Reload, Repair, frozen_leaves
from rmtllmf_jax.evaluation.batches import Batch, EvaluationSet
from rmtllmf_jax.evaluation.known import get_metric, require_inputs
from rmtllmf_jax.fusion.rules import fact
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.failures import not_finite, out_of_memory
from rmtllmf_jax.sweep.grid import Cell
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.layout import CELLS, IMAGES, Layout
from rmtllmf_jax.sweep.needs import Needs
from rmtllmf_jax.sweep.programs import Merges, build_programs
from rmtllmf_jax.sweep.samples import evaluation_sets, shot_pool
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.sweep.uplinks import Uplinks
from rmtllmf_jax.training.batches import balanced_batches

Evaluated = tuple[Job, dict[str, tuple[float, float]]]
"""A job, and the metric's sum and weight on each of its tasks."""


class Engine:
    """The arrays of a sweep on the devices, and its compiled programs."""

    def __init__(
        self,
        inputs: SweepInputs,
        settings: Settings,
        layout: Layout,
        jit: Callable[..., Any] = jax.jit,
    ) -> None:
        self.inputs, self.settings, self.layout = inputs, settings, layout
        self.uplinks = Uplinks(inputs, settings)
        self.needs = Needs(inputs, settings, layout.put)
        self.metric = get_metric(settings.metric)
        for task in inputs.data[:1]:
            require_inputs(self.metric, task.test.take(np.arange(1)).arrays().inputs)
        self.programs = build_programs(inputs.model, layout, jit)
        self._sources: tuple[tuple, PyTree] | None = None
        self._vectors: tuple[tuple, PyTree] | None = None
        self._merging = Lock()
        self._seed_keys: dict[int, Key[Array, " cells"]] = {}
        self._frozen: dict[tuple[str, ...], PyTree] = {}
        self._pools: dict[tuple[int, int], tuple[Batch, list[Int64[np.ndarray, " shots"]]]] = {}

    def run(
        self, jobs: Sequence[Job], stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Evaluated]]:
        """Compute jobs, and yield those of a chunk when they are done.

        Jobs that share `Uplinks.sources` are grouped, whatever their original order. Once `stopped`
        says so, no further chunk is begun; those that are running are finished and yielded.

        **Raises:** `InputError` if a task to be realigned has too few training images, and if a
        device runs out of memory, with what to do about it.
        """
        self._require_shots(jobs)
        for group in takewhile(lambda _: not stopped(), self._groups(jobs)):
            try:
                yield from self._streamed(_cut(group, self.layout.chunk), stopped)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise InputError(out_of_memory(self.layout.cells_in_memory, error)) from error

    def models(self, jobs: Sequence[Job]) -> PyTree:
        """Return the models of jobs that share rule, seed, noise and repairs, stacked.

        There are as many as a chunk has cells; the last job is repeated to fill the chunk.

        **Raises:** `InputError` if a task to be realigned has too few training images.
        """
        chunk = [*jobs, *[jobs[-1]] * (self.layout.chunk - len(jobs))]
        cell = chunk[0].cell
        repairs = self._split(chunk[0]).rest
        merges, frozen = self._merges(chunk), self.frozen(self._patterns(chunk))
        vectors = self._merged(cell, merges)
        models = self.programs.add(merges, vectors, self.arrays["base"], frozen)
        if not repairs:
            return models
        shots = _shots_wanted(repairs)
        return self.programs.repair(
            repairs,
            models,
            merges.reload,
            tuple(self._rows(repair, chunk) for repair in repairs),
            merges.key,
            frozen,
            self.arrays["base"],
            self.arrays["heads"],
            self._pool(cell.seed, shots)[0] if shots else None,
        )

    def _merged(self, cell: Cell, merges: Merges) -> PyTree[Float[Array, "cells ..."]]:
        """Return the merged vectors of a chunk; the latest that took more than a sum are cached.

        The coefficients that `--scale validation` tries come one after another.
        """
        rule: Any = cell.rule

        def merged() -> PyTree:
            base, needs = self.arrays["base"], self.needs.of(rule)
            return self.programs.merge(rule, merges, base, *self.received(cell), needs)

        if fact(rule, "linear"):
            return merged()
        given = (merges.weights, merges.factor, merges.batches)
        mine = (rule, self.uplinks.noise(cell), *map(_content, given))
        with self._merging:
            if self._vectors is None or self._vectors[0] != mine:
                self._vectors = None  # two at a time may not fit
                self._vectors = (mine, merged())
            return self._vectors[1]

    def score(self, params: PyTree, task: str, split: str) -> float:
        """Return the score on a task of a model that was made elsewhere.

        **Raises:** `InputError` if its outputs are not finite.
        """
        models = jax.tree.map(lambda leaf: jnp.stack([leaf] * self.layout.chunk), params)
        total, weight = self._sums(self.layout.put(models, CELLS), [task], split)[task][0].tolist()
        if not math.isfinite(total):
            raise InputError(f"a model's outputs are not finite on samples of {task}.")
        return self.metric.score(total, weight)

    def samples(self, task: str, split: str) -> EvaluationSet:
        """Return the evaluation batches of one task, see `sets`."""
        return self.sets(split)[self.inputs.tasks.index(task)]

    def sets(self, split: str) -> list[EvaluationSet]:
        """Return the evaluation batches of every task; `split` is `test` or `validation`."""
        return self._test if split == "test" else self._validation

    def sources(self, cell: Cell) -> PyTree:
        """Return `Uplinks.sources` of a cell on all devices; the latest ones are cached."""
        noise = self.uplinks.noise(cell)
        if self._sources is None or self._sources[0] != noise:
            self._sources = None  # two at a time may not fit
            self._sources = (noise, self.layout.put(self.uplinks.sources(cell)))
        return self._sources[1]

    def received(self, cell: Cell) -> tuple[PyTree, PyTree]:
        """Return vectors and sources z: a cell's users deliver ``vectors + F z``."""
        sources = self.sources(cell)
        return self.arrays["vectors"] if self.uplinks.summed(cell) else sources, sources

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The `base` model, task `vectors` and `heads`, on all devices."""
        arrays = {"base": self.inputs.base, "vectors": self.inputs.vectors}
        return self.layout.put(arrays | {"heads": self.inputs.heads})

    def frozen(self, patterns: tuple[str, ...]) -> PyTree:
        """Return on all devices which leaves match the patterns, see `frozen_leaves`."""
        if patterns not in self._frozen:
            base = self.inputs.base
            nothing = jax.tree.map(lambda _: jnp.array(False), base)
            flags = frozen_leaves(base, patterns) if patterns else nothing
            self._frozen[patterns] = self.layout.put(flags)
        return self._frozen[patterns]

    @cached_property
    def _test(self) -> list[EvaluationSet]:
        return self._placed([task.test for task in self.inputs.data], self.settings.eval_samples)

    @cached_property
    def _validation(self) -> list[EvaluationSet]:
        without = [task.name for task in self.inputs.data if not len(task.validation)]
        if without:
            raise InputError(
                f"no validation sample of {', '.join(without)}, and --scale validation needs some: "
                "fine-tune with a --validation-fraction above 0, or choose another --scale."
            )
        rows = [task.validation for task in self.inputs.data]
        return self._placed(rows, self.settings.validation_samples)

    @cached_property
    def _batch_size(self) -> int:
        """Samples per batch in both splits, hence one compiled program."""
        settings, devices = self.settings, self.layout.image_devices
        if settings.eval_batch_size % devices:
            raise InputError(
                f"--eval-batch-size {settings.eval_batch_size} must be a multiple of "
                f"--image-devices, {devices}."
            )
        tests = [len(task.test) for task in self.inputs.data]
        validations = [len(task.validation) for task in self.inputs.data]
        return settings.batch_size(tests, validations, devices)

    def _placed(self, rows: list[Samples], samples: int) -> list[EvaluationSet]:
        sets = evaluation_sets(rows, samples, self.settings, self._batch_size)
        return [
            EvaluationSet(tuple(self.layout.put(b, IMAGES) for b in each.batches), each.count)
            for each in sets
        ]

    def _streamed(
        self, chunks: list[list[Job]], stopped: Callable[[], bool]
    ) -> Iterator[list[Evaluated]]:
        """Yield the results of `_evaluated`, computed in a thread for each stream."""
        left = takewhile(lambda _: not stopped(), chunks)
        streams = min(self.layout.streams, len(chunks))
        if streams == 1:
            yield from map(self._evaluated, left)
            return
        self._make_ready(chunks[0][0])
        pool = ThreadPoolExecutor(streams)
        try:
            running = {pool.submit(self._evaluated, chunk) for chunk in islice(left, streams)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                more = islice(left, len(done))
                running |= {pool.submit(self._evaluated, chunk) for chunk in more}
                for each in sorted(done, key=lambda each: each.exception() is not None):
                    yield each.result()
        finally:
            pool.shutdown(wait=False)

    def _make_ready(self, job: Job) -> None:
        """Create what the threads share before they start, or each would create its own."""
        self.arrays, self.sets(job.split), self._keys(job.cell.seed)
        self.sources(job.cell)
        self.frozen(self._patterns([job])), self.needs.of(job.cell.rule)
        if shots := _shots_wanted(self._split(job).rest):
            self._pool(job.cell.seed, shots)

    def _evaluated(self, chunk: list[Job]) -> list[Evaluated]:
        models = self.models(chunk)
        tasks = sorted({task for job in chunk for task in job.cell.combination})
        sums = self._sums(models, tasks, chunk[0].split)
        found = []
        for place, job in enumerate(chunk):
            own = {task: tuple(sums[task][place].tolist()) for task in job.cell.combination}
            if broken := [task for task, (total, _) in own.items() if not math.isfinite(total)]:
                raise InputError(not_finite(job, broken, self.settings))
            found.append((job, own))
        return found

    def _sums(
        self, models: PyTree, tasks: Sequence[str], split: str
    ) -> dict[str, Float64[np.ndarray, "cells 2"]]:
        """Return the metric's sum and weight of each task and model."""
        heads, model = self.arrays["heads"], self.inputs.model

        def start(task: str) -> list[Float[Array, "cells 2"]]:
            user = np.asarray(self.inputs.tasks.index(task))
            return [
                self.programs.evaluate(self.metric, models, heads, user, batch.prepared(model))
                for batch in self.samples(task, split).batches
            ]

        sums = {task: start(task) for task in tasks}  # nothing waits for the devices yet
        return {
            task: np.asarray(found, np.float64).sum(axis=0)
            for task, found in jax.device_get(sums).items()
        }

    def _merges(self, chunk: list[Job]) -> Merges:
        users, tasks = len(self.inputs.tasks), self.inputs.tasks
        weights = np.zeros((len(chunk), users), np.float32)
        for row, job in enumerate(chunk):
            if job.kind != "base" and self._split(job).fuse:
                weights[row] = [task in job.cell.combination for task in tasks]
        columns: tuple[Any, ...] = (  # NumPy's own: the program puts them on the devices at once
            weights,
            np.stack([self.uplinks.factor(job.cell) for job in chunk]),
            np.asarray([job.scale for job in chunk], np.float32),
            self._keys(chunk[0].cell.seed),  # one seed per chunk
            np.asarray([self._split(job).reload is not None for job in chunk]),
            self.needs.batches(chunk[0].cell.rule, [job.cell.combination for job in chunk]),
        )
        return Merges(*columns)

    def _keys(self, seed: int) -> Key[Array, " cells"]:
        if seed not in self._seed_keys:
            key = jax.random.key(self.settings.root(seed))
            self._seed_keys[seed] = self.layout.put(jnp.stack([key] * self.layout.chunk), CELLS)
        return self._seed_keys[seed]

    def _require_shots(self, jobs: Sequence[Job]) -> None:
        wanted = {
            (job.cell.seed, task, shots)
            for job in jobs
            if (shots := _shots_wanted(self._split(job).rest))
            for task in job.cell.combination
        }
        for seed, name, shots in sorted(wanted):
            task = self.inputs.data[self.inputs.tasks.index(name)]
            task.few(shots, self.settings.root(seed))

    def _pool(self, seed: int, shots: int) -> tuple[Batch, list[Int64[np.ndarray, " shots"]]]:
        if (seed, shots) not in self._pools:
            root = self.settings.root(seed)
            pool, places = shot_pool(self.inputs.data, shots, root, self.inputs.model)
            self._pools[seed, shots] = self.layout.put(pool), places
        return self._pools[seed, shots]

    def _groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Group jobs by what those of a chunk must share, in order of first occurrence."""
        groups: dict[tuple, list[Job]] = {}
        for job in jobs:
            _, reload, repairs = self._split(job)
            reload = reload or Reload(
                self.settings.frozen
            )  # one that does not, beside one that does
            noise = self.uplinks.noise(job.cell)
            groups.setdefault((noise, job.split, job.cell.rule, repairs, reload), []).append(job)
        by_noise = sorted(groups, key=lambda shared: shared[0])  # stable
        return [groups[shared] for shared in by_noise]

    def _split(self, job: Job) -> Split:
        """Return a job's protection, with the reloading separate."""
        return split(self.settings.repairs(job.cell.protection))

    def _patterns(self, chunk: Sequence[Job]) -> tuple[str, ...]:
        """Return the leaves that jobs of a chunk reload, none if no job does."""
        found = [self._split(job).reload for job in chunk]
        return next((reload.patterns for reload in found if reload), ())

    def _rows(
        self, repair: Repair, chunk: list[Job]
    ) -> Int64[np.ndarray, "cells steps batch"] | None:
        """Return the samples that a repair sees step by step in each cell, `None` for none."""
        recipe, shots = getattr(repair, "recipe", None), _shots_wanted((repair,))
        if recipe is None or not shots:
            return None
        seed = chunk[0].cell.seed
        _, places = self._pool(seed, shots)
        rows = []
        for job in chunk:
            groups = [places[self.inputs.tasks.index(task)] for task in job.cell.combination]
            if not all(map(len, groups)):  # a task with too few images has no place in the pool
                self._require_shots([job])
            root = self.settings.root(seed)
            rows.append(balanced_batches(groups, recipe.steps, recipe.batch_size, root))
        return np.stack(rows)


def _shots_wanted(protection: Protection) -> int:
    """Return the samples per class that a protection sees, 0 for none.

    **Raises:** `InputError` for repairs that need different numbers.
    """
    wanted = {int(getattr(repair, "shots", 0)) for repair in protection} - {0}
    if len(wanted) > 1:
        raise InputError(
            f"the repairs {protection_name(protection)} want {sorted(wanted)} samples per class: "
            "give all of a protection the same number."
        )
    return max(wanted, default=0)


def _content(array: Any) -> bytes | None:
    return None if array is None else np.asarray(array).tobytes()


def _cut(jobs: list[Job], size: int) -> list[list[Job]]:
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]
