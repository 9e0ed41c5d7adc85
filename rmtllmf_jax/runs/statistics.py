"""Statistics of the users' models for merges that look at data, kept in the run folder."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least, require_known, require_seed
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.data.splits import evaluation_subset
from rmtllmf_jax.evaluation.statistics import fisher_information, input_grams
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.fusion.files.statistics import KINDS, open_statistic, write_statistic
from rmtllmf_jax.models.clip import CLIPVision
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.images import resize
from rmtllmf_jax.models.layouts import VISION, to_paths, to_torch
from rmtllmf_jax.models.shared import SharedModel, images_only
from rmtllmf_jax.models.weights import assign
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.runs.run import Run

_VERSION = 1  # of how they are measured, part of their names
_LABELS = 2  # folded into the root key, beside those of `sweep.uplinks`


def measure(
    kind: str,
    task: Any,
    model: SharedModel,
    params: PyTree,
    head: Head | None,
    samples: int,
    seed: int,
) -> PyTree:
    """Return statistics of a fine-tuned model on some training images of its task.

    **Arguments:**

    - `kind`: `fishers` (`evaluation.statistics.fisher_information`) or `grams` (`input_grams`).
    - `samples`: images; 0 is all.
    - `seed`: for the choice of images, and for the labels that `fishers` draw.

    **Raises:** `InputError` for an unknown kind, or for a language model.
    """
    require_known("statistic", kind, KINDS)
    backbone = images_only(model, f"{kind} (the merge methods fisher and regmean)")
    assert head is not None
    rows = evaluation_subset(len(task.train), samples, seed)
    images = resize(task.train.take(rows).images, backbone.image_size)
    if kind == "grams":
        return input_grams(params, images, backbone)
    key = jax.random.fold_in(jax.random.key(seed), _LABELS)
    key = jax.random.fold_in(key, zlib.crc32(task.name.encode()))
    return fisher_information(params, head, images, key, backbone=backbone)


@dataclass(frozen=True)
class Kept:
    """Statistics of a user's model in a run folder."""

    kind: str
    task: str
    path: Path
    facts: dict[str, Any]
    """What they depend on."""


def place_of(kind: str, inputs: SweepInputs, task: str, samples: int, seed: int) -> Kept | None:
    """Return where statistics are kept; `None` for inputs that are not from a run folder."""
    if inputs.statistics is None:
        return None
    user: Any = inputs.fingerprint["tasks"]
    user = user[task]
    facts = {
        "task": task,
        "samples": samples,
        "seed": seed,
        "model": user["finetuned"],
        "data": user["train"],
        "setting": content_hash(inputs.fingerprint["setting"]),
        "measured": _VERSION,
    }
    facts |= {"head": user["head"]} if kind == "fishers" else {}
    name = f"{task}-{kind}-{content_hash(facts)}.safetensors"
    return Kept(kind, task, inputs.statistics / name, facts)


def stored(kind: str, inputs: SweepInputs, task: str, samples: int, seed: int) -> PyTree | None:
    """Return a model's statistics stored in a run folder, like `measure`, or `None`.

    **Raises:** `InputError` that names a file that is damaged or holds something else.
    """
    place = place_of(kind, inputs, task, samples, seed)
    if place is None or not place.path.is_file():
        return None
    found = open_statistic(place.path)
    if (found.kind, dict(found.facts)) != (kind, place.facts):
        raise InputError(
            f"{place.path}: statistics of another model, of other images or of another kind; "
            "delete it, and `rmtllmf statistics` makes it again."
        )
    tower = "clip" if _is_clip(inputs.model) else "vit"
    paths = to_paths(found.tensors(), tower, torch=True)
    tensors = {path.removeprefix(VISION): tensor for path, tensor in paths.items()}
    if kind == "fishers":
        return assign(tensors, inputs.base, place.path)
    return {path: jax.numpy.asarray(tensor) for path, tensor in tensors.items()}


def collect(run: Run, kinds: Sequence[str], samples: int, seed: int) -> Iterator[tuple[Kept, bool]]:
    """Measure the missing statistics of all users of a run, and keep them.

    **Returns:** where each is, and whether it existed before.

    **Raises:** `InputError` for an unknown kind, an invalid number of samples or seed, or a
    language model, and as `Run`'s attributes do.
    """
    for kind in kinds:
        require_known("statistic", kind, KINDS)
    require_at_least("samples", samples, 0)
    require_seed("seed", seed)
    images_only(run.model, "statistics for the merge methods fisher and regmean")
    inputs = run.inputs()
    total = len(kinds) * len(inputs.tasks)
    with progress_bar("statistics", total, unit="models") as advance:
        for user, task in enumerate(inputs.data):
            params = run.finetuned(task.name)
            head = jax.tree.map(lambda leaf, user=user: leaf[user], inputs.heads)
            for kind in kinds:
                place = place_of(kind, inputs, task.name, samples, seed)
                assert place is not None
                known = stored(kind, inputs, task.name, samples, seed) is not None
                if not known:
                    found = measure(kind, task, run.model, params, head, samples, seed)
                    _keep(place, found, params, _is_clip(run.model))
                advance(1)
                yield place, known


def _keep(place: Kept, found: PyTree, params: PyTree, clip: bool) -> None:
    prefix = VISION if clip else ""
    leaves = leaves_by_path(params)
    model, numbers = {}, {}
    for path, number in leaves_by_path(found).items() if place.kind == "fishers" else found.items():
        name, model_tensor = to_torch(prefix + path, np.asarray(leaves[path]))
        model[name] = model_tensor
        of_gram = place.kind == "grams"
        numbers[name] = np.asarray(number) if of_gram else to_torch(path, np.asarray(number))[1]
    write_statistic(place.path, place.kind, numbers, model, place.facts)


def _is_clip(model: SharedModel) -> bool:
    return isinstance(getattr(model, "module", None), CLIPVision)
