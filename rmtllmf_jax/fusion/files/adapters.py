"""Adapters as PEFT saves them (LoRA): the task vector ``scale * B A``, made tensor by tensor.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.checkpoint import (
    Checkpoint,
    Entry,
    fingerprint,
    read_header,
)
from rmtllmf_jax.fusion.files.lora import (
    LORA_CONFIG,
    MERGE_FIRST,
    LoraSettings,
    read_lora_settings,
)
from rmtllmf_jax.fusion.files.names import as_in_files
from rmtllmf_jax.fusion.files.places import hub_name
from rmtllmf_jax.fusion.files.updates import Product, Shift, Update, Whole

LORA_WEIGHTS = "adapter_model.safetensors"

PREFIX = "base_model.model."
"""Of all keys, before the names that the model has without PEFT."""
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)")
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<side>embedding_A|embedding_B|A|B)(?:\.default)?"
    r"(?:\.(?P<last>weight|bias))?"
)
_FOREIGN = re.compile(r"(?:.*\.)?(lora_|hada_|lokr_|ia3_|oft_|boft_|vera_|trainable_tokens_)\w*")
_SHOWN = 20
_PROBES = 4  # names whose places among the base's keys tell of common prefixes


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter to a base; in memory are the places of its factors."""

    given: Path
    """The path that it was asked for by; messages name it."""
    files: tuple[Path, ...]
    """Configuration and weights."""
    settings: LoraSettings
    updates: dict[str, tuple[Update, ...]]
    """By the keys of tensors; all other tensors are the base's."""
    size: int
    """Bytes of all its tensors."""

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return the `fingerprint` of each file."""
        return [fingerprint(path) for path in self.files]

    @property
    def keys(self) -> Collection[str]:
        """The names of the tensors that it changes."""
        return self.updates.keys()

    def keeping(self, kept: Callable[[str], bool]) -> Adapter:
        """Return it without the changes of tensors that are not to be kept."""
        return replace(self, updates={k: each for k, each in self.updates.items() if kept(k)})

    def other_base(self, base: Checkpoint) -> str:
        """Return a line if it says that it was trained on a model of another name than the base."""
        said = Path(self.settings.base).name.partition("@")[0]
        hub = (hub_name(base.given) or "").partition("@")[0]
        names = {Path(os.path.abspath(base.given)).name, base.given.resolve().name}
        if not said or said in {*names, Path(hub).name}:
            return ""
        return f"says that its base is {self.settings.base}; it is put on {hub or base.given}"

    def placed(self, base: Checkpoint) -> tuple[Adapter, str]:
        """Return it by the keys of the base, and a line of what was done about names.

        The base's keys may have a prefix more or less (``layers.0.q_proj`` and
        ``model.layers.0.q_proj``), or the spelling of files (`names.as_in_files`).

        **Raises:** `InputError` if it fits several parts of the base alike.
        """
        names = tuple(self.updates)
        chosen = _places({name: each[0].size for name, each in self.updates.items()}, base)
        if names in chosen:
            return self, ""
        if len(chosen) > 1:
            raise InputError(
                f"{self.given}: fits several parts of {base.given}: {names[0]} may be "
                f"{chosen[0][0]} and {chosen[1][0]}; save it with the model that the base is."
            )
        old, new = next(pair for pair in zip(names, chosen[0], strict=True) if pair[0] != pair[1])
        updates = dict(zip(chosen[0], self.updates.values(), strict=True))
        return replace(self, updates=updates), f"{old} is {new}, and so on"

    def fitted(self, base: Checkpoint) -> Adapter:
        """Return it with its products as the base's weights lie: (outputs, inputs) or transposed.

        **Raises:** `InputError` with all tensors that the base does not have, or in other sizes, or
        that are not of floating-point numbers.
        """
        missing = [key for key in self.updates if key not in base.entries]
        if missing:
            more = [f"and {len(missing) - _SHOWN} more"] if len(missing) > _SHOWN else []
            raise InputError(
                f"{self.given}: {len(missing)} of {len(self.updates)} tensors that the adapter "
                f"changes are not in {base.given} (--from-base leaves them out):\n  "
                + "\n  ".join([*(_near(key, base.entries) for key in missing[:_SHOWN]), *more])
            )
        misfit = [
            f"{key} {base.entries[key].shape}"
            for key, updates in self.updates.items()
            for update in updates
            if prod(base.entries[key].shape) != update.size or not base.entries[key].is_float()
        ]
        if misfit:
            raise InputError(
                f"{self.given}: an adapter to a model of other sizes than {base.given}, where it "
                f"does not fit {', '.join(misfit[:_SHOWN])}."
            )
        products = {
            key: update
            for key, updates in self.updates.items()
            for update in updates
            if isinstance(update, Product) and len(update.a.shape) == 2 and not update.transposed
        }
        lying = _oriented(self, products, base)
        return replace(
            self,
            updates={
                key: tuple(lying[key] if each is products.get(key) else each for each in updates)
                for key, updates in self.updates.items()
            },
        )

    def touches(self, key: str) -> bool:
        """Return whether its task vector may be other than zero in a tensor of the base."""
        return key in self.updates

    def origin(self, key: str) -> str:
        """Return what a tensor that it touches is read from, for a manifest."""
        return " ".join(update.origin for update in self.updates[key])

    def difference(
        self, key: str, base: Float[np.ndarray, "..."], into: Float[np.ndarray, "..."]
    ) -> None:
        """Write a tensor of its task vector into an array of float32.

        **Raises:** `InputError` that names file and key if a number is NaN or infinite.
        """
        first, *more = self.updates[key]
        with np.errstate(over="ignore"):  # what overflows is found in the output
            into[...] = first(base)
            for update in more:
                into += update(base)


def _near(key: str, keys: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return f"{key} (did you mean {near[0]}?)" if near else key


def is_adapter(path: Path) -> bool:
    """Return whether a path is the directory of an adapter, or its file of weights."""
    path = path.expanduser()
    return (path / LORA_CONFIG).is_file() or (
        path.name == LORA_WEIGHTS and path.with_name(LORA_CONFIG).is_file()
    )


def open_adapter(path: Path) -> Adapter:
    """Return the adapter in a directory that PEFT saved, by the names of layers that PEFT knew.

    **Raises:** `InputError` that names what makes it another adapter than a plain LoRA, or what is
    missing.
    """
    path = path.expanduser()
    folder = path if path.is_dir() else path.parent
    weights = folder / LORA_WEIGHTS
    whole = sorted(file.name for file in folder.glob("*.safetensors") if file != weights)
    if path.is_dir() and whole:
        raise InputError(
            f"{folder}: an adapter (LoRA or the like: {LORA_CONFIG}) beside {', '.join(whole)}; "
            "name the file that is meant."
        )
    settings = read_lora_settings(folder / LORA_CONFIG)
    if not weights.is_file():
        others = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "no weights"
        raise InputError(
            f"{folder}: expected {LORA_WEIGHTS}, found {others}; load the adapter with PEFT and "
            "save_pretrained, which writes it."
        )
    entries, _ = read_header(weights)
    if not entries:
        raise InputError(f"{weights}: holds no tensor.")
    size = sum(entry.size for entry in entries)
    return Adapter(
        path, (folder / LORA_CONFIG, weights), settings, _updates(weights, entries, settings), size
    )


def _updates(
    path: Path, entries: Iterable[Entry], settings: LoraSettings
) -> dict[str, tuple[Update, ...]]:
    """Return what a file's tensors do, by the names of tensors in the model that PEFT had."""
    found: dict[str, tuple[Update, ...]] = {}
    factors: dict[str, dict[str, Entry]] = {}

    def add(name: str, update: Update) -> None:
        found[name] = (*found.get(name, ()), update)

    for entry in entries:
        name = _WRAPPED.sub("", entry.key.removeprefix(PREFIX))
        match = _FACTOR.fullmatch(name)
        if match and match["last"] == "bias" and match["side"] == "B":
            add(f"{match['module']}.bias", Shift(entry, settings.scale(match["module"])))
        elif match and match["last"] != "bias":
            factors.setdefault(match["module"], {})[match["side"]] = entry
        elif _FOREIGN.match(name):
            raise InputError(
                f"{path}: {entry.key} is of no plain LoRA (lora_A and lora_B of each layer); "
                f"{MERGE_FIRST} and name that."
            )
        else:
            add(name, Whole(entry))
    for module, sides in factors.items():
        add(f"{module}.weight", _product(path, module, sides, settings))
    return found


def _product(
    path: Path, module: str, sides: Mapping[str, Entry], settings: LoraSettings
) -> Product:
    """Return the product of a layer's two factors, whose ranks are as the configuration says."""
    pairs = [("A", "B"), ("embedding_A", "embedding_B")]
    pair = next((pair for pair in pairs if set(pair) == sides.keys()), None)
    if pair is None:
        there = ", ".join(f"lora_{side}" for side in sides)
        raise InputError(f"{path}: {module} has {there}; expected one lora_A and one lora_B.")
    a, b = (sides[side] for side in pair)
    rank = settings.rank(module)
    if len(a.shape) < 2 or len(b.shape) < 2 or (a.shape[0], b.shape[1]) != (rank, rank):
        grouped = len(b.shape) > 2 and b.shape[1] < a.shape[0] == rank
        raise InputError(
            f"{path}: {module} has factors of {a.shape} and {b.shape}; expected rank {rank}, as "
            f"{settings.path.name} says."
            + (" LoRA of convolutions in groups cannot be merged." if grouped else "")
        )
    if not a.is_float() or not b.is_float():
        raise InputError(f"{path}: {module} has factors of {a.dtype} and {b.dtype}, not of floats.")
    return Product(a, b, settings.scale(module), transposed=pair[0] != "A")


def _places(sizes: Mapping[str, int], base: Checkpoint) -> list[tuple[str, ...]]:
    """Return the ways to put names to the base's keys that fit best: spellings and prefixes."""
    counts = {key: prod(entry.shape) for key, entry in base.entries.items()}
    fits: dict[tuple[str, ...], int] = {}
    for spell in (str, as_in_files):
        spelt = [spell(name) for name in sizes]
        for off, on in _prefixes(spelt, counts):
            keys = tuple(on + name.removeprefix(off) for name in spelt)
            number = sum(
                counts.get(key) == size for key, size in zip(keys, sizes.values(), strict=True)
            )
            fits.setdefault(keys, number)
    best = max(fits.values())
    return [keys for keys, number in fits.items() if number == best]


def _prefixes(names: Sequence[str], keys: Collection[str]) -> list[tuple[str, str]]:
    """Return all ways in which a name becomes a key: what is taken off, and what put on."""
    found = [("", "")]
    for name in names[:_PROBES]:
        found += [("", key.removesuffix(name)) for key in keys if key.endswith(f".{name}")]
        parts = name.split(".")
        cuts = [
            (".".join(parts[:cut]) + ".", ".".join(parts[cut:])) for cut in range(1, len(parts))
        ]
        found += [(off, "") for off, rest in cuts if rest in keys]
    return list(dict.fromkeys(found))


def _oriented(
    adapter: Adapter, products: Mapping[str, Product], base: Checkpoint
) -> dict[str, Product]:
    """Return the products of linear layers as the base's weights lie.

    PEFT goes by the kind of layer, whatever `fan_in_fan_out` says. Here shapes tell; a square
    weight lies as the others do, and only if there are no others as the configuration says.
    """
    told = {
        key: base.entries[key].shape != product.shape
        for key, product in products.items()
        if len(set(product.shape)) > 1
    }
    square = next((key for key in products if key not in told), None)
    if square and len(set(told.values())) > 1:
        raise InputError(
            f"{adapter.given}: some weights are (outputs, inputs) and others (inputs, outputs), "
            f"and {square} is square: which of the two it is cannot be told; {MERGE_FIRST} and "
            "name that."
        )
    others = next(iter(told.values()), adapter.settings.fan_in_fan_out)
    return {
        key: replace(product, transposed=told.get(key, others)) for key, product in products.items()
    }
