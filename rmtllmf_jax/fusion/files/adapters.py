"""Adapters as PEFT saves them (LoRA): the task vector ``scale * B A``, computed tensor by tensor.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.changes import Changes
from rmtllmf_jax.fusion.files.checkpoint import (
    Checkpoint,
    Entry,
    read_header,
)
from rmtllmf_jax.fusion.files.lora import (
    LORA_CONFIG,
    MERGE_FIRST,
    LoraSettings,
    read_lora_settings,
)
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


@dataclass(frozen=True)
class Adapter(Changes):
    """A LoRA adapter to a base; only the locations of its factors are in memory."""

    settings: LoraSettings

    def seen(self, base: Checkpoint) -> list[str]:
        """Return a line if the adapter names another model than the base as its own base."""
        said = Path(self.settings.base).name.partition("@")[0]
        hub = (hub_name(base.given) or "").partition("@")[0]
        names = {Path(os.path.abspath(base.given)).name, base.given.resolve().name}
        if not said or said in {*names, Path(hub).name}:
            return []
        return [f"says that its base is {self.settings.base}; it is put on {hub or base.given}"]

    def laid(self, base: Checkpoint) -> Adapter:
        """Return it with its products in the base's layout: (outputs, inputs) or transposed.

        **Raises:** `InputError` if the layout cannot be determined.
        """
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


def is_adapter(path: Path) -> bool:
    """Return whether a path is the directory of an adapter, or its file of weights."""
    path = path.expanduser()
    return (path / LORA_CONFIG).is_file() or (
        path.name == LORA_WEIGHTS and path.with_name(LORA_CONFIG).is_file()
    )


def open_adapter(path: Path) -> Adapter:
    """Return the adapter in a directory that PEFT saved, by PEFT's names of the layers.

    **Raises:** `InputError` that names what makes it anything but a plain LoRA, or what is missing.
    """
    path = path.expanduser()
    folder = path if path.is_dir() else path.parent
    weights = folder / LORA_WEIGHTS
    whole = sorted(file.name for file in folder.glob("*.safetensors") if file != weights)
    if path.is_dir() and whole:
        raise InputError(
            f"{folder}: an adapter (LoRA or similar: {LORA_CONFIG}) next to {', '.join(whole)}; "
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
    files = (folder / LORA_CONFIG, weights)
    return Adapter(path, files, _updates(weights, entries, settings), size, settings)


def _updates(
    path: Path, entries: Iterable[Entry], settings: LoraSettings
) -> dict[str, tuple[Update, ...]]:
    """Return the updates in a file, by the names of the tensors in PEFT's model."""
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
                f"{path}: {entry.key} does not belong to a plain LoRA (lora_A and lora_B of each "
                f"layer); {MERGE_FIRST} and name that."
            )
        else:
            add(name, Whole(entry))
    for module, sides in factors.items():
        add(f"{module}.weight", _product(path, module, sides, settings))
    return found


def _product(
    path: Path, module: str, sides: Mapping[str, Entry], settings: LoraSettings
) -> Product:
    """Return the product of a layer's two factors, with the ranks that the configuration gives."""
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


def _oriented(
    adapter: Adapter, products: Mapping[str, Product], base: Checkpoint
) -> dict[str, Product]:
    """Return the products of linear layers in the layout of the base's weights.

    PEFT goes by the kind of layer, whatever `fan_in_fan_out` says. Here the shapes decide. A square
    weight has the layout of the others and, only if there are no others, that of the configuration.
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
