"""Carrying out a plan: first pass, merge, configuration, card, and the one rename at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash, sync, write_bytes, write_json
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.common.values import described
from rmtllmf_jax.fusion.files.card import card, input_record
from rmtllmf_jax.fusion.files.carried import copy_carried
from rmtllmf_jax.fusion.files.checkpoint import labels
from rmtllmf_jax.fusion.files.hashes import Hashes
from rmtllmf_jax.fusion.files.layer_gram import layer_grams
from rmtllmf_jax.fusion.files.merging import merge_shards
from rmtllmf_jax.fusion.files.part import Part, cannot_write, require_space
from rmtllmf_jax.fusion.files.plan import Plan
from rmtllmf_jax.fusion.files.programs import LayerWeights, TensorMerge
from rmtllmf_jax.fusion.files.shards import index_of
from rmtllmf_jax.fusion.layers import group_by_layer
from rmtllmf_jax.fusion.rules import LayerWeighted, fact
from rmtllmf_jax.fusion.rules.leaves import user_weights

CARD, RECORD = "README.md", "fusion.json"


class Fusing:
    """A merge under way: `layer_weights`, then `merge`, then `finish`."""

    def __init__(self, plan: Plan, part: Part, hashes: Hashes) -> None:
        self.plan = plan
        self.part = part
        self._hashes = hashes
        self.finished = sum(part.is_finished(shard) for shard in plan.shards)
        """Shards that an earlier start left."""

    @property
    def folder(self) -> Path:
        """The folder that becomes the output; more files may be put there before `finish`."""
        return self.part.folder

    def layer_weights(self) -> LayerWeights | None:
        """Return the weights by layer of methods that have them; comparing reads all inputs."""
        method, keys = self.plan.recipe.method, self.plan.matching.merged
        if not isinstance(method, LayerWeighted):
            return None
        by_user = user_weights(method.weights, len(self.plan.models))
        grams = self._grams(method.granularity) if method.compares else None
        by_layer = method.by_layer(keys, by_user, grams)
        return {layer: np.asarray(weights) for layer, weights in by_layer.items()}

    def _grams(self, granularity: str) -> dict[str, Array]:
        """Return the layers' inner products, each over its largest: cosines stay as they are."""
        keys = self.plan.matching.merged
        grams = self.part.notes()
        if grams is None:
            with progress_bar("comparing layers", len(keys)) as advance:
                found = layer_grams(self.plan.base, self.plan.others, keys, granularity, advance)
            grams = {layer: gram.tolist() for layer, gram in found.items()}
            self.part.keep_notes(grams)
        layers = group_by_layer(keys, granularity)
        tables = {layer: np.asarray(grams[layer], np.float64) for layer in layers}
        # Squares stay within float32.
        return {k: jnp.asarray(gram / (gram.max() or 1.0), float) for k, gram in tables.items()}

    def merge(self, weights: LayerWeights | None) -> None:
        """Write all shards that are not there yet."""
        plan, recipe = self.plan, self.plan.recipe
        left = [shard for shard in plan.shards if not self.part.is_finished(shard)]
        require_space(plan.out, sum(shard.size for shard in left))
        program = TensorMerge(recipe, weights)
        total = sum(len(shard.tensors) for shard in plan.shards)
        done = total - sum(len(shard.tensors) for shard in left)
        with progress_bar("merging", total, done) as advance:
            merge_shards(self.part.folder, left, plan.base, plan.models, program, advance)

    def finish(self, weights: LayerWeights | None, plot: str | None = None) -> None:
        """Add index, configuration and card, and rename the folder to its place.

        `plot` names a figure of the weights that was put into the folder.
        """
        plan, folder = self.plan, self.part.folder
        index = index_of(plan.shards)
        if index:
            write_json(folder / index[0], index[1])
        hashes = self._hashes.result()
        carried = copy_carried(plan.base.directory, folder, plan.recipe.dtype, code=plan.carry_code)
        record = _record(plan, weights, hashes)
        write_json(folder / RECORD, record)
        write_bytes(folder / CARD, card(plan.out.name, record, carried, plan.code, plot).encode())
        for path in carried:
            sync(folder / path)
        self.part.finish()


@contextmanager
def fusing(plan: Plan) -> Iterator[Fusing]:
    """Open what is there of an output, or start it. The caller keeps other processes out of it.

    If the body raises, or the process is killed, finished shards are kept for the next start.

    **Raises:** `InputError` if the output cannot be written, a full disk among the reasons.
    """
    part = None
    try:
        part = Part(plan.out, _manifest(plan))
        with Hashes([plan.base, *plan.others]) as hashes:
            yield Fusing(plan, part, hashes)
    except OSError as error:
        raise InputError(cannot_write(plan.out, error)) from error
    finally:
        if part:
            part.tidy()


def _manifest(plan: Plan) -> dict[str, Any]:
    """Return everything that a finished shard depends on."""
    shards = {shard.name: [tensor.base.key for tensor in shard.tensors] for shard in plan.shards}
    return {
        "version": version("rmtllmf-jax"),
        **_how(plan),
        "shards": content_hash(shards),
        "inputs": [checkpoint.fingerprint() for checkpoint in (plan.base, *plan.others)],
        "with_reference": plan.reference is not None,
    }


def _how(plan: Plan) -> dict[str, Any]:
    recipe = plan.recipe
    how = asdict(recipe) | {"method": described(recipe.method)}
    if not fact(recipe.method, "random"):
        del how["seed"]
    return how


def _record(plan: Plan, weights: LayerWeights | None, hashes: list[list[str]]) -> dict[str, Any]:
    roles = ["base", *["model"] * len(plan.models), *["reference"] * (plan.reference is not None)]
    inputs = [plan.base, *plan.others]
    by_layer = None
    if weights is not None:
        layers = {layer: [float(w) for w in row] for layer, row in weights.items()}
        by_layer = {"models": plan.names, "layers": layers}
    return {
        **_how(plan),
        "formula": plan.formula,
        "reference": fact(plan.recipe.method, "reference"),
        "tensors": {"merged": len(plan.matching.merged), "copied": len(plan.matching.copied)},
        "inputs": [
            input_record(role, label, checkpoint, sums)
            for role, label, checkpoint, sums in zip(
                roles, labels(inputs), inputs, hashes, strict=True
            )
        ],
        "layer_weights": by_layer,
        "versions": {name: version(name) for name in ("rmtllmf-jax", "jax")},
    }
