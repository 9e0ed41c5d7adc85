"""PEFT's `adapter_config.json` of a LoRA: ranks and scales, and what is not a plain LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json

LORA_CONFIG = "adapter_config.json"

MERGE_FIRST = "merge it into its base model (PEFT's merge_and_unload(), then save_pretrained)"
"""The way out for whatever is not a plain LoRA."""

_KEEPS_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")
"""Initialisations that leave the base's weights as they are. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA
take the factors out of them: their adapters are to be added to what is left, not to the base."""

_OF_INPUTS = ("PROMPT", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
"""Parts of the names of kinds that are no change of weights."""

# What says nothing of the weights, or is read below.
_KNOWN = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("fan_in_fan_out", "init_lora_weights", "base_model_name_or_path"),
    *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("modules_to_save", "bias", "lora_bias", "megatron_core", "qalora_group_size"),
    *("runtime_config", "eva_config", "loftq_config", "corda_config", "lora_ga_config"),
    *("ensure_weight_tying", "target_modules_to_tie"),
}
_NAMES = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA, of a quantised base",
    "alora_invocation_tokens": "an activated LoRA, which works on some tokens alone",
    "target_parameters": "LoRA of parameters that are no layer's weight, as of experts",
    "trainable_token_indices": "trainable tokens",
    "layer_replication": "a LoRA of a base whose layers are repeated",
    "use_bdlora": "block-diagonal LoRA",
}


@dataclass(frozen=True)
class LoraSettings:
    """Ranks and scales of a LoRA: the update of a layer is ``scale * B A``."""

    path: Path
    """The configuration, which errors name."""
    base: str
    """The model that it was trained on, as it says; empty if it does not."""
    r: int
    alpha: float
    rslora: bool
    fan_in_fan_out: bool
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    """Regular expressions of layers that have another rank or alpha, the first that matches."""

    def rank(self, module: str) -> int:
        """Return the rank of a layer."""
        return self._of(module, self.rank_pattern, self.r)

    def scale(self, module: str) -> float:
        """Return alpha over the rank of a layer, or over its root with rank-stabilised LoRA.

        Kalajdzievski, arXiv 2312.03732.
        """
        rank = self.rank(module)
        return self._of(module, self.alpha_pattern, self.alpha) / (
            rank**0.5 if self.rslora else rank
        )

    def _of(self, module: str, patterns: Iterable[tuple[str, Any]], default: Any) -> Any:
        """Return PEFT's value for a layer: patterns match whole trailing parts of its name."""
        for pattern, value in patterns:
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            except re.error as error:
                raise InputError(
                    f"{self.path}: {pattern!r} is not a regular expression ({error})."
                ) from error
        return default


def read_lora_settings(path: Path) -> LoraSettings:
    """Read the configuration of an adapter.

    **Raises:** `InputError` that names what makes it anything but a plain LoRA, or a setting that
    cannot be used.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, got {type(content).__name__}.")
    _require_plain(path, content)
    numbers = {
        "r": content.get("r", 8),
        "lora_alpha": content.get("lora_alpha", 8),
        **_pattern(path, content, "rank_pattern"),
        **_pattern(path, content, "alpha_pattern"),
    }
    for name, value in numbers.items():
        whole = name == "r" or name.startswith("rank_pattern")
        kinds = (int,) if whole else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or (whole and value < 1):
            what = "a whole number from 1" if whole else "a number"
            raise InputError(f"{path}: {name} must be {what}, got {value!r}.")
    return LoraSettings(
        path,
        str(content.get("base_model_name_or_path") or ""),
        numbers["r"],
        float(numbers["lora_alpha"]),
        bool(content.get("use_rslora")),
        bool(content.get("fan_in_fan_out")),
        tuple((content.get("rank_pattern") or {}).items()),
        tuple((k, float(v)) for k, v in (content.get("alpha_pattern") or {}).items()),
    )


def _pattern(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name) or {}
    if not isinstance(found, dict):
        raise InputError(f"{path}: {name} must be an object, got {found!r}.")
    return {f"{name}[{key!r}]": value for key, value in found.items()}


def _require_plain(path: Path, content: Mapping[str, Any]) -> None:
    """Check that an adapter is a LoRA with products added to the weights of the base."""
    kind = content.get("peft_type")
    if any(word in str(kind) for word in _OF_INPUTS):
        raise InputError(
            f"{path.parent}: an adapter of the kind {kind}, which adds to what a model reads and "
            "has no weights that could be merged."
        )
    if kind != "LORA":
        raise InputError(
            f"{path.parent}: an adapter of the kind {kind}, and only LoRA is read as one; "
            f"{MERGE_FIRST} and name that."
        )
    found = [
        _NAMES.get(name, f"{name} = {str(value)[:80]}, which is not known here")
        for name, value in content.items()
        if value and name not in _KNOWN
    ]
    init = content.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _KEEPS_THE_BASE:
        found.append(f"init_lora_weights = {init}, which changes the weights of the base")
    if found:
        raise InputError(
            f"{path.parent}: not a plain LoRA but {'; '.join(found)}; {MERGE_FIRST} and name that."
        )
