"""Carrying out a plan: first pass, merge, configuration, card, and the one rename at the end.

An output is written in a folder beside its final place. The manifest there says what the finished
shards were made from; if that differs from the current request, they are made again. One process at
a time.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import (
    content_hash,
    file_hash,
    read_json,
    require_absent,
    sync,
    write_bytes,
    write_json,
)
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.common.values import described
from rmtllmf_jax.fusion.files.card import card
from rmtllmf_jax.fusion.files.carried import copy_carried
from rmtllmf_jax.fusion.files.checkpoint import INDEX
from rmtllmf_jax.fusion.files.lora import LORA_CONFIG
from rmtllmf_jax.fusion.files.low_rank import adapter_config
from rmtllmf_jax.fusion.files.merging import (
    LayerWeights,
    Stack,
    TensorMerge,
    layer_grams,
    merge_shards,
)
from rmtllmf_jax.fusion.files.outputs import Facts, Shard
from rmtllmf_jax.fusion.files.places import labels
from rmtllmf_jax.fusion.files.plan import Plan
from rmtllmf_jax.fusion.files.transfer import Opened
from rmtllmf_jax.fusion.layers import Granularity, group_by_layer
from rmtllmf_jax.fusion.rules import LayerWeighted, fact
from rmtllmf_jax.fusion.rules.leaves import user_weights

CARD, RECORD = "README.md", "fusion.json"
_MANIFEST = "manifest.json"
_GRAMS = "notes.json"
_FACTS = "facts"
_HASHED = 4  # files at a time, at most


def part_folder(out: Path) -> Path:
    """Return the folder in which `out` is made."""
    return out.with_name(f".{out.name}.part")


class Fusing:
    """A merge under way: `layer_weights`, then `merge`, then `finish`."""

    def __init__(self, plan: Plan, hashes: Mapping[Path, Future[str]]) -> None:
        self.plan = plan
        self._hashes = hashes
        self._manifest = _manifest(plan)
        self.root = part_folder(plan.out)
        self.folder = self.root / "model"
        """The folder that becomes the output; more files may be put there before `finish`."""
        known = self.root / _MANIFEST
        if self.folder.exists() and not known.is_file():
            raise InputError(f"{self.root}: is not of rmtllmf (no {_MANIFEST}); remove it.")
        self.restarted = known.is_file() and read_json(known) != self._manifest
        """Whether work on other inputs or options was thrown away."""
        if self.restarted:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.root / _FACTS, ignore_errors=True)
            (self.root / _GRAMS).unlink(missing_ok=True)
        if not known.is_file() or self.restarted:
            write_json(known, self._manifest)
        self.folder.mkdir(exist_ok=True)
        for unfinished in self.folder.glob(".*.part"):
            unfinished.unlink()
        self.finished = len(plan.shards) - len(self._left())
        """Shards that an earlier start left."""

    def _left(self) -> list[Shard]:
        """Return the unfinished shards; a shard gets its name only when it is complete."""
        sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
        return [shard for shard in self.plan.shards if sizes.get(shard.name) != shard.size]

    def layer_weights(self) -> LayerWeights | None:
        """Return the weights by layer of methods that have them; comparisons read all inputs."""
        method, keys = self.plan.recipe.method, self.plan.matching.merged
        if not isinstance(method, LayerWeighted):
            return None
        by_user = user_weights(method.weights, len(self.plan.models))
        grams = self._grams(method.granularity) if method.compares else None
        by_layer = method.by_layer(keys, by_user, grams)
        return {layer: np.asarray(weights) for layer, weights in by_layer.items()}

    def _grams(self, granularity: Granularity) -> dict[str, Array]:
        """Return the layers' inner products, each divided by its largest; cosines do not change."""
        keys = self.plan.matching.merged
        path = self.root / _GRAMS
        if not path.is_file():
            with progress_bar("comparing layers", len(keys)) as advance:
                found = layer_grams(
                    self.plan.base, self.plan.others, keys, granularity, advance, self._transfer
                )
            write_json(path, {layer: gram.tolist() for layer, gram in found.items()})
        grams = read_json(path)
        layers = group_by_layer(keys, granularity)
        tables = {layer: np.asarray(grams[layer], np.float64) for layer in layers}
        # Squares stay within float32.
        return {k: jnp.asarray(gram / (gram.max() or 1.0), float) for k, gram in tables.items()}

    @cached_property
    def _transfer(self) -> Opened | None:
        """The opened transfer of the task vectors; what it needs from all tensors is read here."""
        plan = self.plan
        if plan.transfer is None:
            return None
        keys = plan.matching.merged
        shapes = {key: plan.base.entries[key].shape for key in keys}

        def leaves(what: str) -> Iterator[tuple[str, np.ndarray]]:
            inputs = plan.base, plan.models, keys
            with progress_bar(what, len(keys)) as advance, Stack(*inputs) as stack:
                for key in sorted(keys):
                    base, rows = stack.read(key)
                    if np.isfinite(base).all():  # a mask is not sent
                        yield key, rows
                    advance(1)

        return plan.transfer.opened(shapes, len(plan.models), leaves)

    @property
    def arrived(self) -> list[dict[str, Any]]:
        """The effect of the transfer on each model's task vector; nothing without a transfer."""
        facts = self._transfer.facts if self._transfer is not None else []
        return [{"model": name, **each} for name, each in zip(self.plan.names, facts, strict=False)]

    def merge(self, weights: LayerWeights | None) -> None:
        """Write all shards that do not exist yet.

        **Raises:** `InputError` if the disk has no space for them.
        """
        plan, left = self.plan, self._left()
        needed = sum(shard.size for shard in left)
        there = next(folder for folder in plan.out.resolve().parents if folder.is_dir())
        free = shutil.disk_usage(there).free
        if free < needed:
            raise InputError(
                f"{plan.out}: {needed / 1e9:.4g} GB are to be written, and the disk of {there} has "
                f"{free / 1e9:.4g} GB free; make room, or name another --out."
            )
        program = TensorMerge(plan.recipe, weights, plan.statistics)
        _ = self._transfer  # its passes come first
        total = sum(len(shard.tensors) for shard in plan.shards)
        done = total - sum(len(shard.tensors) for shard in left)
        with progress_bar("merging", total, done) as advance:
            inputs = (plan.base, plan.models)
            merge_shards(self.folder, left, *inputs, program, advance, self._tell, self._transfer)

    def _tell(self, shard: str, facts: Facts) -> None:
        write_json(self.root / _FACTS / f"{shard}.json", facts)

    def facts(self) -> Facts:
        """Return the facts recorded for all shards, whichever process wrote them."""
        found: Facts = {"masks": [], "kept": {}, "energy": {}}
        for shard in self.plan.shards:
            of_shard = read_json(self.root / _FACTS / f"{shard.name}.json")
            found["masks"] += of_shard["masks"]
            found["kept"] |= of_shard["kept"]
            found["energy"] |= of_shard["energy"]
        return found

    def finish(
        self,
        weights: LayerWeights | None,
        plot: str | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        """Add index, configuration and card, and rename the folder to its final place.

        `plot` names a figure of the weights that was put into the folder; `recipe` reproduces the
        output.

        **Raises:** `InputError` if an input has changed since the start, as the output is then not
        a merge of any single state of the inputs; or if something is now at the output's place.
        """
        plan, folder = self.plan, self.folder
        if len(plan.shards) > 1:
            write_json(folder / f"model{INDEX}", _index_of(plan.shards))
        record = _record(plan, weights, self._input_hashes(), self.facts())
        if recipe is not None:
            record = {"recipe": recipe, **record}
        if self._transfer is not None:
            record["uplink"]["users"] = self.arrived
        tokenizer = plan.matching.tokenizer
        if plan.recipe.as_adapter is None:
            carried = copy_carried(
                plan.base, folder, plan.recipe.dtype, tokenizer, code=plan.carry_code
            )
        else:
            carried = []
            config = adapter_config(plan.base, plan.shards[0], plan.recipe.as_adapter)
            write_json(folder / LORA_CONFIG, config)
        write_json(folder / RECORD, record)
        write_bytes(folder / CARD, card(plan.out.name, record, carried, plan.code, plot).encode())
        for path in carried:
            sync(folder / path)
        require_absent(plan.out)
        sync(folder)
        os.rename(folder, plan.out)
        sync(plan.out.parent)
        shutil.rmtree(self.root, ignore_errors=True)

    def _input_hashes(self) -> dict[Path, str]:
        """Return the SHA-256 of the inputs' files, once all that are asked for are known."""
        try:
            found = {path: future.result() for path, future in self._hashes.items()}
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror}).") from error
        inputs = (self.plan.base, *self.plan.others)
        for checkpoint, before in zip(inputs, self._manifest["inputs"], strict=True):
            if checkpoint.fingerprint() != before:
                raise InputError(
                    f"{checkpoint.given}: was changed while it was being merged; nothing was "
                    "written. Start again when its files no longer change."
                )
        return found


@contextmanager
def fusing(plan: Plan, hash_inputs: bool = True) -> Iterator[Fusing]:
    """Open an unfinished output, or start a new one. The caller keeps other processes out of it.

    The inputs are hashed while they are merged; without `hash_inputs` they are not, and the card
    lacks their SHA-256.

    If the body raises, or the process is killed, finished shards are kept for the next start.

    **Raises:** `InputError` if the output cannot be written, for example because the disk is full.
    """
    root = part_folder(plan.out)
    ours = False
    # On one core hashing takes longer than merging.
    pool = ThreadPoolExecutor(min(_HASHED, os.cpu_count() or 1))
    try:
        inputs = (plan.base, *plan.others)
        files = {path for each in inputs for path in each.files} if hash_inputs else ()
        under_way = Fusing(plan, {path: pool.submit(file_hash, path) for path in sorted(files)})
        ours = True
        yield under_way
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "make room, then the same command resumes" if full else "the same command resumes"
        raise InputError(
            f"{plan.out}: cannot be written ({error.strerror or error}); nothing is there. "
            f"Finished shards are kept in {root}: {what}; or remove that folder."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        saves_work = any(root.glob("model/*.safetensors")) or (root / _GRAMS).is_file()
        if ours and not saves_work:
            shutil.rmtree(root, ignore_errors=True)


def _index_of(shards: list[Shard]) -> dict[str, Any]:
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    total = {
        "total_parameters": sum(prod(tensor.base.shape) for tensor in tensors),
        "total_size": sum(tensor.size for tensor in tensors),
    }
    names = {tensor.base.key: shard.name for shard in shards for tensor in shard.tensors}
    return {"metadata": total, "weight_map": names}


def _manifest(plan: Plan) -> dict[str, Any]:
    """Return everything that a finished shard depends on."""
    shards = {
        shard.name: [[tensor.base.key, tensor.dtype, tensor.merged] for tensor in shard.tensors]
        for shard in plan.shards
    }
    sources = [
        {key: each.origin(key) for key in plan.matching.merged if each.touches(key)}
        for each in (plan.base, *plan.others)
    ]
    return {
        "version": version("rmtllmf-jax"),
        **_how(plan),
        "shards": content_hash([shards, sources]),
        "inputs": [checkpoint.fingerprint() for checkpoint in (plan.base, *plan.others)],
        "with_reference": plan.reference is not None,
    }


def _how(plan: Plan) -> dict[str, Any]:
    recipe = plan.recipe
    how = asdict(recipe) | {"method": described(recipe.method)}
    how |= {option: list(patterns) for option, patterns in how.pop("parts").items()}
    how["accept"] = list(recipe.accept)
    how["variations"] = [described(each) for each in recipe.variations]
    how["blocks"] = [list(each) for each in recipe.blocks]
    if not fact(recipe.method, "random"):
        del how["seed"]
    if plan.statistics:
        how["statistics"] = [each for of in plan.statistics.values() for each in of.record]
    if plan.transfer is not None:
        how["uplink"] = plan.transfer.key()
    return how


def _kept(plan: Plan, kept: dict[str, list[int]]) -> dict[str, float]:
    """Return the share of each task vector that was kept, by model; nothing if nothing was cut.

    Values that tie with the last one kept are all kept: in bfloat16, which is coarse, more than
    requested.
    """
    total = sum(prod(plan.base.entries[key].shape) for key in kept)
    counts = [sum(column) for column in zip(*kept.values(), strict=True)]
    return {name: n / max(total, 1) for name, n in zip(plan.names, counts, strict=False)}


def energy_kept(energies: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """Return the shares of the merged vector's energy in an adapter, overall and by tensor.

    None for an output that is not an adapter.
    """
    if not energies:
        return None
    kept, whole = (sum(column) for column in zip(*energies.values(), strict=True))
    shares = {key: has / of if of else 1.0 for key, (has, of) in energies.items()}
    return {"overall": kept / whole if whole else 1.0, "tensors": shares}


def _record(
    plan: Plan, weights: LayerWeights | None, hashes: Mapping[Path, str], facts: Facts
) -> dict[str, Any]:
    """Return the content of the card in machine-readable form."""

    def about(path: Path) -> dict[str, Any]:
        known = {"sha256": hashes[path]} if path in hashes else {}
        return {"name": path.name, "bytes": path.stat().st_size, **known}

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
        "hub": plan.hub,
        "not_merged": list(plan.matching.not_merged),
        "notes": [
            *plan.notes,
            *(f"{key}: infinite numbers, equal everywhere: copied" for key in facts["masks"]),
        ],
        "kept": _kept(plan, facts["kept"]),
        "energy": energy_kept(facts["energy"]),
        "inputs": [
            {"role": role, "name": label, "files": [about(path) for path in checkpoint.files]}
            for role, label, checkpoint in zip(roles, labels(inputs), inputs, strict=True)
        ],
        "layer_weights": by_layer,
        "versions": {name: version(name) for name in ("rmtllmf-jax", "jax")},
    }
