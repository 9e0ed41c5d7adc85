"""Check a checkpoint: does it fit its configuration, and are its values plausible?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.configs import config_file, read_config
from rmtllmf_jax.models.hub import local_directory
from rmtllmf_jax.models.pretrained import Pretrained, abstract_clip, read_pretrained
from rmtllmf_jax.models.siglip import two_towers
from rmtllmf_jax.models.tokens import load_tokenizer, prompt_tokens
from rmtllmf_jax.models.weights import NotFinite, assign

Level = Literal["error", "warning", "note"]

_SHOWN = 3  # leaves named by a fault


@dataclass(frozen=True)
class Fault:
    """What is wrong with leaves of a checkpoint (or worth knowing), and its consequence."""

    level: Level
    check: str
    what: str
    follows: str


@dataclass(frozen=True)
class Checkup:
    """`kind` is Hugging Face's `model_type`; `parameters` is their number in all `tensors`."""

    kind: str
    tensors: int
    parameters: int
    faults: tuple[Fault, ...]


def check_model(model: str | Path) -> Checkup:
    """Check a checkpoint against its configuration, and its tensors one by one.

    **Arguments:**

    - `model`: Hugging Face directory, or hub id.

    **Raises:** `InputError` if configuration or weights cannot be read at all.
    """
    found = read_pretrained(model)
    return Checkup(
        found.config.kind,
        len(found.tensors),
        sum(tensor.size for tensor in found.tensors.values()),
        (*_check_fit(found), *_check_tokenizer(model), *check_tensors(found.tensors)),
    )


def prompt_reader(model: str | Path) -> Callable[[Sequence[str]], np.ndarray] | None:
    """Return a function that tokenises texts for a model's text tower; `None` if it has none.

    **Raises:** `InputError` that names a tokenizer that cannot be read, or is for another model.
    """
    directory = local_directory(model)
    text = read_config(config_file(directory)).text
    if text is None:
        return None
    return partial(prompt_tokens, tokenizer=load_tokenizer(directory, text), text=text)


def _check_tokenizer(model: str | Path) -> list[Fault]:
    try:
        prompt_reader(model)
    except InputError as error:
        follows = "no zero-shot heads can be made with it; its image tower can be used"
        return [Fault("warning", "tokenizer", str(error), follows)]
    return []


def _check_fit(found: Pretrained) -> list[Fault]:
    try:
        load_backbone(found)
    except NotFinite:
        return []  # `check_tensors` says more
    except InputError as error:
        follows = "it cannot be loaded; config.json and weights belong to different models"
        return [Fault("error", "fit", str(error), follows)]
    if found.config.text is not None:
        try:
            shape = found.config.towers(config_file(found.directory))
            assign(found.tensors, abstract_clip(two_towers(shape)), found.origin)
        except InputError as error:
            follows = "its image tower can be used, but no zero-shot heads can be made with it"
            return [Fault("warning", "fit", str(error), follows)]
    return []


def check_tensors(tensors: Mapping[str, np.ndarray]) -> list[Fault]:
    """Report leaves that are not finite, all zero, constant, empty or not float32.

    Constant vectors are common (biases of 0, scales of 1 that were never trained) and only noted.
    """
    broken: list[str] = []
    zero: list[str] = []
    constant: list[str] = []
    untrained: list[str] = []
    kinds: dict[str, list[str]] = {}
    for path, tensor in tensors.items():
        if tensor.dtype != np.float32:
            kinds.setdefault(str(tensor.dtype), []).append(path)
        values = np.asarray(tensor, np.float32)
        wrong = int(values.size - np.isfinite(values).sum())
        if wrong:
            broken.append(f"{path} ({wrong:,} of {values.size:,})")
        elif values.size > 1 and values.min() == values.max():
            if tensor.ndim < 2:
                untrained.append(path)
            else:
                (constant if values.flat[0] else zero).append(path)
    faults: list[Fault] = []

    def report(level: Level, check: str, leaves: list[str], what: str, follows: str) -> None:
        if leaves:
            shown, more = ", ".join(leaves[:_SHOWN]), len(leaves) - _SHOWN
            named = f"{shown} and {more} more" if more > 0 else shown
            what = f"{len(leaves)} of {len(tensors)} tensors {what}: {named}"
            faults.append(Fault(level, check, what, follows))

    again = "every feature becomes NaN; fetch or train the model again"
    report("error", "finite", broken, "hold NaN or infinite values", again)
    failed = "these layers pass nothing on; an interrupted or failed conversion, perhaps"
    report("error", "zero", zero, "are all zero", failed)
    never = "these layers cannot have been trained"
    report("warning", "constant", constant, "have one value throughout", never)
    small = "biases of 0 and scales of 1 are untrained ones; harmless in small numbers"
    report("note", "constant", untrained, "are vectors of one value", small)
    rounded = "read as float32; differences of fine-tuned models have lost digits"
    for kind, leaves in kinds.items():
        report("note", "dtype", leaves, f"are {kind}", rounded)
    return faults
