"""The plan of a merge of checkpoints, with every possible check done before the long work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError, require_known, require_seed
from rmtllmf_jax.common.files import require_absent
from rmtllmf_jax.common.values import described, name_of
from rmtllmf_jax.fusion.files.adjustments import is_derived
from rmtllmf_jax.fusion.files.card import hub_facts
from rmtllmf_jax.fusion.files.carried import KEEP, code_files, tokenizer_files
from rmtllmf_jax.fusion.files.checkpoint import (
    SINGLE,
    Checkpoint,
    header_bytes,
    open_checkpoint,
)
from rmtllmf_jax.fusion.files.configuration import CONFIG, compare, config_of
from rmtllmf_jax.fusion.files.low_rank import adapter_facts, adapter_notes, adapter_shard
from rmtllmf_jax.fusion.files.matching import Matching, Parts, match
from rmtllmf_jax.fusion.files.model import Model, open_model
from rmtllmf_jax.fusion.files.outputs import Shard, Tensor
from rmtllmf_jax.fusion.files.places import labels
from rmtllmf_jax.fusion.files.statistics import KINDS, Statistics, find_statistics
from rmtllmf_jax.fusion.files.transfer import Transfer
from rmtllmf_jax.fusion.files.variation import (
    Blocks,
    Variation,
    blocks_of,
    require_variable,
    varied,
)
from rmtllmf_jax.fusion.rules import METHODS, LayerWeighted, Method, fact
from rmtllmf_jax.fusion.rules.leaves import user_weights
from rmtllmf_jax.fusion.rules.method import require_few_enough

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Types that an output may be asked for, by their name in a configuration."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Recipe:
    """How checkpoints are merged: ``base + scale * method(models - base)``."""

    method: Method
    scale: float
    seed: int = 0
    """Of the masks of random methods."""
    dtype: str = KEEP
    """Of the merged tensors in the output: `KEEP` (the base's) or one of `DTYPES`."""
    parts: Parts = field(default_factory=Parts)
    """Which tensors are merged."""
    tokenizer: str | None = None
    """Whose tokens the output has, where tokenizers differ: `base`, `union` or a model's name."""
    accept: tuple[str, ...] = ()
    """Fields of the configuration that may differ although they change what weights mean."""
    as_adapter: int | None = None
    """Rank of the LoRA adapter that is written in place of a whole model."""
    variations: tuple[Variation, ...] = ()
    """Options of the method that vary by model and by the name of the tensor."""
    blocks: Blocks = ()
    """Of the base, for options that vary with the depth; `plan_fusion` fills them in."""

    def __post_init__(self) -> None:
        """Refuse a seed that a key cannot hold, an unknown type, and options that cannot vary."""
        require_seed("seed", self.seed)
        require_known("dtype", self.dtype, (KEEP, *DTYPES))
        require_variable(self.method, self.variations)

    def at(self, key: str, models: int) -> tuple[Method, float]:
        """Return method and coefficient for the tensor with this name.

        **Raises:** `InputError` for an option that the method cannot have, or without a value.
        """
        if not self.variations:
            return self.method, self.scale
        options = tuple((each.option, each(key, models, self.blocks)) for each in self.variations)
        method, scale = varied(self.method, options)
        return method, self.scale if scale is None else scale

    @property
    def name(self) -> str:
        """The name of the method."""
        return name_of(self.method)


def file_methods() -> list[str]:
    """Return the methods that need nothing but the checkpoints: no data, no gradients."""
    return [name for name, kind in METHODS.items() if not _why_not(kind)]


def require_method(method: Method, statistics: bool = False) -> None:
    """Check that a method can merge checkpoints, with or without statistics of the models.

    **Raises:** `InputError` that says why not.
    """
    if why := _why_not(method, KINDS if statistics else ()):
        raise InputError(
            f"the method {name_of(method)} {why}. Call it on stacked task vectors, or take one of "
            f"{', '.join(file_methods())}."
        )


def _why_not(method: Method, has: Sequence[str] = ()) -> str:
    needs = [name for name in fact(method, "needs") if name not in ("base", *has)]
    if needs:
        told = f"needs {', '.join(needs)}, computed on data, besides the checkpoints"
        if set(needs) <= set(KINDS):
            told += ": `rmtllmf statistics` makes them, and --statistics names them"
        return told
    kind = method if isinstance(method, type) else type(method)
    if not (fact(method, "per_leaf") or issubclass(kind, LayerWeighted)):
        return "does not say `per_leaf = True`: it may look at more than a tensor at a time"
    return ""


@dataclass(frozen=True)
class Plan:
    """A merge of checkpoints that fit together."""

    recipe: Recipe
    out: Path
    base: Checkpoint
    models: list[Model]
    reference: Model | None
    matching: Matching
    shards: list[Shard]
    notes: tuple[str, ...] = ()
    """What was seen in the checkpoints that is not plain, and done, a line each."""
    hub: dict[str, Any] = field(default_factory=dict)
    """Front matter of the card."""
    carry_code: bool = False
    """Whether the base's files of code go into the output."""
    transfer: Transfer | None = None
    """What the task vectors go through before they are merged."""
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    """Of the models, by kind."""

    @property
    def others(self) -> list[Model]:
        """The models, then the reference if there is one."""
        return [*self.models, *([self.reference] if self.reference else [])]

    @property
    def names(self) -> list[str]:
        """Short names of the models."""
        return labels(self.models)

    @property
    def held(self) -> int:
        """Bytes in memory at a time: the largest tensor, for base, task vectors and sum."""
        merged = (self.base.entries[key] for key in self.matching.merged)
        return 4 * (len(self.models) + 2) * max((prod(entry.shape) for entry in merged), default=0)

    @property
    def code(self) -> str:
        """What happens to the base's code files, in one line; empty if it has none."""
        whole = self.recipe.as_adapter is None
        files = code_files(self.base.directory) if whole else []  # an adapter has none
        names = ", ".join(f"`{path}`" for path in files)
        if not names or self.carry_code:
            return names and f"Code of the base is taken along: {names}."
        return f"Code of the base is left out: {names} (--carry-code takes it along)."

    @property
    def formula(self) -> str:
        """What is done, in one line."""
        method, models = described(self.recipe.method), ", ".join(self.names)
        return f"base + {self.recipe.scale:.4g} * {method}({models})"


def plan_fusion(
    out: Path,
    base: Path,
    models: Sequence[Path],
    recipe: Recipe,
    *,
    reference: Path | None = None,
    shard_bytes: int = 5 * 10**9,
    carry_code: bool = False,
    transfer: Transfer | None = None,
    statistics: Sequence[Path] = (),
) -> Plan:
    """Return the plan of a merge; reads headers and the few tensors that must be equal.

    **Arguments:**

    - `out`: a folder that does not exist yet.
    - `base`, `models`, `reference`: safetensors files, indexes of shards, or directories; models
      and reference may be adapters to the base.
    - `shard_bytes`: largest size of the tensors of one file of the output.
    - `carry_code`: also copy the base's code files, which `trust_remote_code` runs.
    - `transfer`: what the task vectors go through, such as `uplink.StreamedUplink`.
    - `statistics`: files from `rmtllmf statistics`, one per model and kind that the method needs.

    **Raises:** `InputError` for anything that prevents the merge.
    """
    require_absent(out)
    require_method(recipe.method, bool(statistics))
    if not models:
        raise InputError("there are no models to merge: name at least one.")
    method = recipe.method
    compares = isinstance(method, LayerWeighted) and method.compares
    if reference is not None and not compares:
        raise InputError(f"the method {recipe.name} takes no reference, as lata does.")
    if reference is None and compares and len(models) == 1:
        raise InputError(f"the method {recipe.name} needs a reference, or more than one model.")
    require_few_enough(method, len(models))
    by_user = user_weights(fact(method, "weights"), len(models))
    start = open_checkpoint(base)
    others = [open_model(path) for path in models]
    guide = open_model(reference) if reference is not None else None
    compared = [*others, *([guide] if guide else [])]
    whole = [model for model in compared if isinstance(model, Checkpoint)]
    for checkpoint in (start, *whole):
        _require_not_quantised(checkpoint)
    matching = match(start, compared, recipe.parts, recipe.tokenizer)
    fitting = list(matching.others)
    differ = compare(start, whole, matching.merged, recipe.accept, recipe.tokenizer)
    hub, licences = hub_facts(start, others)
    if recipe.variations:
        recipe = replace(recipe, blocks=blocks_of(matching.base.entries))
    for key in matching.merged:
        recipe.at(key, len(models))  # refuses what a method cannot have
    idle = [note for each in recipe.variations for note in each.idle(matching.merged)]
    notes = (*matching.notes, *differ, *_lacking(start), *licences, *idle)
    if isinstance(method, LayerWeighted) and not compares:
        method.by_layer(matching.merged, by_user)  # refuses names of layers that are not there
    if carry_code and recipe.as_adapter is not None:
        raise InputError("--carry-code: an adapter contains no code; leave it out.")
    if recipe.as_adapter is None:
        shards = _plan_shards(matching, recipe.dtype, shard_bytes)
    else:
        shards = [_plan_adapter(start, matching, recipe)]
        notes = (*notes, *adapter_notes(matching.base, shards[0]))
        hub |= adapter_facts(start)
    others, guide = fitting[: len(others)], fitting[-1] if guide else None
    kinds = [need for need in fact(method, "needs") if need in KINDS]
    keys = matching.base.entries, set(matching.merged)
    known = find_statistics(kinds, statistics, others, *keys)
    fixed = (matching, shards, notes, hub, carry_code, transfer, known)
    return Plan(recipe, out, matching.base, others, guide, *fixed)


def bytes_of(text: str) -> int:
    """Return the bytes in a size such as 5GB, 512MB or 2GiB.

    **Raises:** `InputError` for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    size = float(found[1]) * _UNITS.get(found[2].upper(), 0) if found else 0
    if size < 1:
        raise InputError(
            f"a size must be a number with a unit such as 5GB or 500MiB, got {text!r}."
        )
    return int(size)


def _require_not_quantised(checkpoint: Checkpoint) -> None:
    """Refuse quantised weights, which cannot be summed meaningfully."""
    if how := config_of(checkpoint).get("quantization_config"):
        raise InputError(
            f"{checkpoint.given / CONFIG}: the weights are quantised ({str(how)[:100]}); merge the "
            "unquantised ones."
        )


def _lacking(base: Checkpoint) -> list[str]:
    """Return what transformers needs to open an output that it lacks."""
    if base.directory is not None:
        there = (base.directory / CONFIG).is_file()
        return [] if there else [f"{labels([base])[0]} has no {CONFIG}, nor has the output"]
    beside = sorted({CONFIG, *map(str, tokenizer_files(base.given.parent))})
    found = [name for name in beside if (base.given.parent / name).is_file()]
    lacks = f"{labels([base])[0]} is a bare file: the output has no {CONFIG} and no tokenizer"
    more = f" ({', '.join(found)} beside it; name the directory to take them along)"
    return [lacks + (more if found else "")]


def _plan_adapter(start: Checkpoint, matching: Matching, recipe: Recipe) -> Shard:
    """Return the file of an adapter, which has neither a tokenizer nor its own vocabulary."""
    chosen = matching.tokenizer
    if chosen.size or chosen.new or chosen.source.given != start.given:
        raise InputError(
            "--as-adapter: an adapter has the vocabulary of its base; take --tokenizer base, or "
            "leave --as-adapter out."
        )
    assert recipe.as_adapter is not None
    dtype = DTYPES.get(recipe.dtype)
    return adapter_shard(matching.base, matching.merged, recipe.as_adapter, dtype)


def _plan_shards(matching: Matching, dtype: str, limit: int) -> list[Shard]:
    """Return the files of the output, each of at most `limit` bytes of tensors.

    A larger tensor gets a separate file. Tensors keep the order of the base's files; within a file
    those of wider types come first, so that all are aligned to their size.
    """
    base, merged = matching.base, set(matching.merged)
    groups: list[list[Tensor]] = [[]]
    filled = 0
    for key, entry in base.entries.items():
        keeps = dtype == KEEP or not entry.is_float() or is_derived(entry)
        kind = entry.dtype if keeps else DTYPES[dtype]
        tensor = Tensor(entry, kind, key in merged)
        if groups[-1] and filled + tensor.size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.size
    shards = []
    metadata = {"format": "pt"} | base.metadata
    for number, group in enumerate(groups, start=1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        tensors = tuple(sorted(group, key=_bytes_per_number, reverse=True))
        fields = [field for each in tensors for field in each.fields]
        shards.append(Shard(name, tensors, header_bytes(fields, metadata)))
    return shards


def _bytes_per_number(tensor: Tensor) -> int:
    count = prod(tensor.base.shape)
    return tensor.size // count if count else 0
