"""A merged task vector as a LoRA adapter: each matrix by its largest singular values.

Linear layers, embeddings and convolutions become factors; the other tensors of modules with weights
(norms, biases) are kept whole. Eckart and Young: no other matrix of that rank is nearer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.fusion.files.adapters import LORA_WEIGHTS, PREFIX
from rmtllmf_jax.fusion.files.checkpoint import FLOATS, Checkpoint, Entry, header_bytes
from rmtllmf_jax.fusion.files.configuration import config_of, is_tied
from rmtllmf_jax.fusion.files.names import as_in_memory
from rmtllmf_jax.fusion.files.outputs import Facts, Field, Shard, Tensor, bytes_as, stored
from rmtllmf_jax.fusion.files.places import hub_name

_BLOCK = 2**22  # numbers that are widened at a time
_TABLE = re.compile(
    r"(?:.*\.)?(?:embed_(?:tokens|positions|in)|\w*embeddings?|wte|wpe|shared"
    r"|relative_attention_bias)"
)
_CONV1D = re.compile(r"(?:.*\.)?(?:c_attn|c_proj|c_fc|q_attn)")
_GENERATES = ("ForCausalLM", "LMHeadModel")


def truncated(
    matrix: Float[np.ndarray, "rows columns"], rank: int
) -> tuple[Float[np.ndarray, "rows r"], Float[np.ndarray, "r columns"], float, float]:
    """Return B and A of the nearest matrix ``B A`` of a rank, its energy and that of the whole.

    Energies are squared Frobenius norms. The singular vectors are those of the smaller Gram matrix,
    in float64: singular values below 1e-8 of the largest, which float32 cannot hold, are lost.

    >>> b, a, kept, whole = truncated(np.diag([2.0, 1.0]), 1)
    >>> (b @ a).round(6).tolist(), round(kept / whole, 6)
    ([[2.0, 0.0], [0.0, 0.0]], 0.8)
    """
    from scipy.linalg import eigh  # a quarter of a second, for the few merges that come here

    if matrix.shape[0] > matrix.shape[1]:
        a, b, kept, whole = truncated(matrix.T, rank)
        return b.T, a.T, kept, whole
    side = len(matrix)
    gram = np.zeros((side, side))
    for block in _blocks(matrix):
        gram += block @ block.T
    whole = float(np.trace(gram))
    chosen = [side - rank, side - 1]
    _, vectors = eigh(gram, subset_by_index=chosen, overwrite_a=True)
    left = np.asarray(vectors)[:, ::-1]
    right = np.concatenate([left.T @ block for block in _blocks(matrix)], axis=1)
    sizes = np.linalg.norm(right, axis=1)
    roots = np.sqrt(np.where(sizes > 1e-12 * sizes.max(initial=0), sizes, np.inf))
    shares = np.where(np.isfinite(roots), roots, 0)
    return left * shares, right / roots[:, None], float(np.sum(sizes**2)), whole


def _blocks(matrix: np.ndarray) -> Iterable[np.ndarray]:
    step = max(1, _BLOCK // len(matrix))
    for start in range(0, matrix.shape[1], step):
        yield matrix[:, start : start + step].astype(np.float64)


@dataclass(frozen=True)
class Factors(Tensor):
    """The weight of a layer as factors; its merged task vector is B A, or transposed."""

    module: str = ""
    """The layer's name in the model that PEFT has."""
    rank: int = 1
    lies: str = "linear"
    """How the base's weight lies: `linear` (outputs, inputs), `conv1d` of GPT-2 (inputs, outputs),
    `table` of embeddings (tokens, width), or `convolution` (outputs, inputs, ...)."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """The two factors: A, then B."""
        rows, columns = _flat(self.base.shape, self.lies)
        ones = (1,) * (len(self.base.shape) - 2)
        kernel = self.base.shape[2:]
        inside = self.base.shape[1] if kernel else columns
        letters = ("embedding_A", "embedding_B") if self.lies == "table" else ("A", "B")
        last = "" if self.lies == "table" else ".weight"
        shapes = ((self.rank, inside, *kernel), (rows, self.rank, *ones))
        width = FLOATS[self.dtype].itemsize
        return tuple(
            (f"{PREFIX}{self.module}.lora_{letter}{last}", self.dtype, shape, prod(shape) * width)
            for letter, shape in zip(letters, shapes, strict=True)
        )

    def made(self, base: np.ndarray, delta: np.ndarray, facts: Facts) -> Iterable[np.ndarray]:
        """Return A and B."""
        flat = delta.T if self.lies in ("conv1d", "table") else delta.reshape(len(delta), -1)
        b, a, kept, whole = truncated(flat, self.rank)
        facts["energy"][self.base.key] = [kept, whole]
        return [stored(a, self.dtype, self.base.key), stored(b, self.dtype, self.base.key)]


def _flat(shape: tuple[int, ...], lies: str) -> tuple[int, int]:
    """Return outputs and inputs of a layer."""
    if lies in ("conv1d", "table"):
        return shape[1], shape[0]
    return shape[0], prod(shape[1:])


@dataclass(frozen=True)
class Kept(Tensor):
    """A merged tensor that the adapter holds whole, in place of the base's."""

    name: str = ""
    """Its key in the adapter."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """The tensor under its name in the adapter."""
        return ((PREFIX + self.name, self.dtype, self.base.shape, bytes_as(self.base, self.dtype)),)

    def made(self, base: np.ndarray, delta: np.ndarray, facts: Facts) -> Iterable[np.ndarray]:
        """Return the merged tensor."""
        energy = _energy(delta)
        facts["energy"][self.base.key] = [energy, energy]
        return Tensor.made(self, base, delta, facts)


@dataclass(frozen=True)
class Lost(Tensor):
    """A merged tensor that no adapter can hold: it is not the weight or bias of a module."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """None."""
        return ()

    def made(self, base: np.ndarray, delta: np.ndarray, facts: Facts) -> Iterable[np.ndarray]:
        """Return nothing, and report what is lost."""
        facts["energy"][self.base.key] = [0.0, _energy(delta)]
        return ()


def _energy(delta: np.ndarray) -> float:
    return float(np.sum(np.square(delta, dtype=np.float64)))


def adapter_shard(base: Checkpoint, merged: Sequence[str], rank: int, dtype: str | None) -> Shard:
    """Return the file of an adapter with the merged tensors.

    `dtype` is that of all its tensors; by default factors are F32 and others as in the base.

    **Raises:** `InputError` if no tensor is the weight of a layer.
    """
    require_at_least("--as-adapter", rank, 1)
    turned = _has_conv1d(base)
    taken = set(merged)
    found = [_tensor(base, taken, key, rank, dtype, turned) for key in base.entries]
    tensors = [tensor for tensor in found if tensor is not None]
    if not any(isinstance(tensor, Factors) for tensor in tensors):
        raise InputError(
            f"--as-adapter: none of the {len(merged)} merged tensors is a layer's weight of two "
            "or more axes; leave --as-adapter out, and a whole model is written."
        )
    tensors.sort(key=lambda tensor: FLOATS[tensor.dtype].itemsize, reverse=True)
    fields = [field for tensor in tensors for field in tensor.fields]
    return Shard(LORA_WEIGHTS, tuple(tensors), header_bytes(fields, {"format": "pt"}))


def _tensor(
    base: Checkpoint, merged: AbstractSet[str], key: str, rank: int, dtype: str | None, turned: bool
) -> Tensor | None:
    """Return an adapter's entry for a tensor; None if it neither has nor needs one."""
    entry = base.entries[key]
    module, _, last = key.rpartition(".")
    name = as_in_memory(module) if _is_vit(base) else module
    weight = base.entries.get(f"{module}.weight")
    is_matrix = weight is not None and len(weight.shape) >= 2
    if key in merged and last == "weight" and is_matrix:
        lies = _lies(entry, module, turned)
        fits = min(rank, *_flat(entry.shape, lies))
        return Factors(entry, dtype or "F32", True, name, fits, lies)
    if weight is not None and not is_matrix and entry.is_float():  # modules are saved as a whole
        if merged.isdisjoint((f"{module}.weight", f"{module}.bias")):
            return None
        return Kept(entry, dtype or entry.dtype, key in merged, f"{name}.{last}")
    if key not in merged:
        return None
    if weight is None or last != "bias":
        return Lost(entry, entry.dtype, True)
    wrapped = ".base_layer" * (weight.key in merged)
    return Kept(entry, dtype or entry.dtype, True, f"{name}{wrapped}.bias")


def _lies(entry: Entry, module: str, turned: bool) -> str:
    if len(entry.shape) > 2:
        return "convolution"
    if _TABLE.fullmatch(module):
        return "table"
    return "conv1d" if turned and _CONV1D.fullmatch(module) else "linear"


def _has_conv1d(base: Checkpoint) -> bool:
    """Return whether layers are (inputs, outputs), as queries, keys and values of GPT-2 show."""
    shapes = (entry.shape for key, entry in base.entries.items() if key.endswith("c_attn.weight"))
    return any(len(shape) == 2 and shape[1] == 3 * shape[0] for shape in shapes)


def _is_vit(base: Checkpoint) -> bool:
    return any(key.endswith(".attention.attention.query.weight") for key in base.entries)


def adapter_notes(base: Checkpoint, shard: Shard) -> tuple[str, ...]:
    """Return what a whole model can do and an adapter cannot, one per line."""
    lost = [tensor.base.key for tensor in shard.tensors if isinstance(tensor, Lost)]
    tables = [each.base.key for each in shard.tensors if getattr(each, "lies", "") == "table"]
    notes = []
    if lost:
        notes.append(
            f"an adapter cannot hold parameters that are no module's weight or bias: "
            f"{', '.join(lost)} {'is' if len(lost) == 1 else 'are'} the base's"
        )
    if tables and is_tied(base):
        notes.append(
            f"the head is tied to {tables[0]}: PEFT changes it only once the adapter is merged "
            "(merge_and_unload)"
        )
    return tuple(notes)


def adapter_facts(base: Checkpoint) -> dict[str, Any]:
    """Return the fields of an adapter's card that the hub reads."""
    name = hub_name(base.given)
    of_base = {"base_model": name.partition("@")[0]} if name else {}
    return {"library_name": "peft", "base_model_relation": "adapter"} | of_base


def adapter_config(base: Checkpoint, shard: Shard, rank: int) -> dict[str, Any]:
    """Return PEFT's configuration of an adapter whose scales are all 1."""
    factors = [tensor for tensor in shard.tensors if isinstance(tensor, Factors)]
    kept = [tensor.name for tensor in shard.tensors if isinstance(tensor, Kept)]
    saved = {name.rpartition(".")[0] for name in kept if name.endswith(".weight")}
    biases = [name for name in kept if name.rpartition(".")[0] not in saved]
    wrapped = all(name.endswith(".base_layer.bias") for name in biases)
    smaller = {re.escape(each.module): each.rank for each in factors if each.rank < rank}
    name = hub_name(base.given)
    architectures = config_of(base).get("architectures") or [""]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if architectures[0].endswith(_GENERATES) else None,
        "base_model_name_or_path": name.partition("@")[0] if name else os.path.abspath(base.given),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "target_modules": sorted(each.module for each in factors),
        "modules_to_save": sorted(saved) or None,
        "bias": "none" if not biases else "lora_only" if wrapped else "all",
        "fan_in_fan_out": any(each.lies == "conv1d" for each in factors),
        "init_lora_weights": True,
        "use_rslora": False,
    }
