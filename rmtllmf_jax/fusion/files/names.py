"""Names of layers that transformers 5 has in memory, and PEFT thus in adapters, as in files."""

from __future__ import annotations

import re

VIT_MODULES = {
    "attention/q_proj": "attention/attention/query",
    "attention/k_proj": "attention/attention/key",
    "attention/v_proj": "attention/attention/value",
    "attention/o_proj": "attention/output/dense",
    "mlp/fc1": "intermediate/dense",
    "mlp/fc2": "output/dense",
}
"""A ViT's modules of a block: their names in a state dict of transformers 5, and in files."""

_BLOCK = re.compile(r"((?:.*\.)?)(?:layers|encoder\.layer)\.(\d+)\.(.*)\.(\w+)")


def as_in_files(key: str) -> str:
    """Return a key of a ViT's or DINOv2's state dict in transformers 5 as files have it.

    >>> as_in_files("vit.layers.0.attention.q_proj.weight")
    'vit.encoder.layer.0.attention.attention.query.weight'
    """
    found = _BLOCK.fullmatch(key)
    if not found:
        return key
    before, number, module, last = found.groups()
    module = VIT_MODULES.get(module.replace(".", "/"), module).replace("/", ".")
    return f"{before}encoder.layer.{number}.{module}.{last}"


def as_in_memory(module: str) -> str:
    """Return the name of a ViT's layer in files as transformers 5 has it in memory.

    >>> as_in_memory("vit.encoder.layer.0.attention.attention.query")
    'vit.layers.0.attention.q_proj'
    """
    found = re.fullmatch(r"((?:.*\.)?)encoder\.layer\.(\d+)\.(.*)", module)
    if not found:
        return module
    before, number, rest = found.groups()
    known = {new.replace("/", "."): old.replace("/", ".") for old, new in VIT_MODULES.items()}
    return f"{before}layers.{number}.{known.get(rest, rest)}"
