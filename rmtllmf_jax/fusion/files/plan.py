"""What a merge of checkpoints will do, with everything checked that can be before the long work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.values import described
from rmtllmf_jax.fusion.files.carried import code_files, require_mergeable
from rmtllmf_jax.fusion.files.checkpoint import Checkpoint, labels, open_checkpoint
from rmtllmf_jax.fusion.files.dtypes import KEEP, NAMES
from rmtllmf_jax.fusion.files.matching import Matching, match, require_equal
from rmtllmf_jax.fusion.files.part import require_absent
from rmtllmf_jax.fusion.files.recipe import Recipe, require_method
from rmtllmf_jax.fusion.files.shards import Shard, plan_shards
from rmtllmf_jax.fusion.rules import LayerWeighted, fact
from rmtllmf_jax.fusion.rules.leaves import user_weights


@dataclass(frozen=True)
class Plan:
    """A merge of checkpoints that fit together."""

    recipe: Recipe
    out: Path
    base: Checkpoint
    models: list[Checkpoint]
    reference: Checkpoint | None
    matching: Matching
    shards: list[Shard]
    carry_code: bool = False
    """Whether the base's files of code go into the output."""

    @property
    def others(self) -> list[Checkpoint]:
        """The models, then the reference if there is one."""
        return [*self.models, *([self.reference] if self.reference else [])]

    @property
    def names(self) -> list[str]:
        """Short names of the models."""
        return list(labels(self.models))

    @property
    def code(self) -> str:
        """What becomes of the base's files of code, in one line; empty if it has none."""
        names = ", ".join(f"`{path}`" for path in code_files(self.base.directory))
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
) -> Plan:
    """Return the plan of a merge; reads headers and the few tensors that must be equal.

    **Arguments:**

    - `out`: a folder that does not exist yet.
    - `base`, `models`, `reference`: safetensors files, indexes of shards, or directories.
    - `shard_bytes`: largest size of the tensors of one file of the output.
    - `carry_code`: take the base's files of code along, which `trust_remote_code` runs.

    **Raises:** `InputError` for whatever keeps the checkpoints from being merged.
    """
    require_absent(out)
    require_method(recipe.method)
    if recipe.dtype != KEEP:
        require_known("dtype", recipe.dtype, NAMES)
    if not models:
        raise InputError("there is no model to merge: name at least one.")
    method = recipe.method
    compares = isinstance(method, LayerWeighted) and method.compares
    if reference is not None and not compares:
        raise InputError(f"the method {recipe.name} takes no reference, as lata does.")
    if reference is None and compares and len(models) == 1:
        raise InputError(f"the method {recipe.name} needs a reference, or more than one model.")
    by_user = user_weights(fact(method, "weights"), len(models))
    start, *others = [open_checkpoint(path) for path in (base, *models)]
    guide = open_checkpoint(reference) if reference is not None else None
    compared = [*others, *([guide] if guide else [])]
    for checkpoint in (start, *compared):
        require_mergeable(checkpoint.directory)
    matching = match(start, compared)
    if not matching.merged:
        raise InputError(f"{base}: holds no floating-point tensor to merge.")
    require_equal(start, compared, matching.copied)
    if isinstance(method, LayerWeighted) and not compares:
        method.by_layer(matching.merged, by_user)  # refuses names of layers that are not there
    shards = plan_shards(start, matching, recipe.dtype, shard_bytes)
    return Plan(recipe, out, start, others, guide, matching, shards, carry_code)
