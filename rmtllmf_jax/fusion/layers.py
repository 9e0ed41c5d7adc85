"""Layers: which leaves of a model belong together, read from their names.

>>> layer_of("encoder/layers/11/mlp/fc1/kernel")
'encoder/layers/11'
>>> layer_of("model.layers.3.self_attn.q_proj.weight")
'model.layers.3'
>>> layer_of("Transformer/encoderblock_3/MlpBlock_0/Dense_1/kernel")
'Transformer/encoderblock_3'
>>> layer_of("embeddings/patch_embedding/kernel"), layer_of("lm_head.weight")
('embeddings', 'lm_head')
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from rmtllmf_jax.common.errors import require_known

GRANULARITIES = ("block", "tensor")
"""All leaves of a transformer block as one layer, or every leaf as its own."""

# A name, then a number: encoder/layer/3, model.layers.3, transformer.h.3, blocks.3, resblocks.3; as
# Linen has it, layers_3, encoderblock_3, h_3, TransformerBlock_3. Of nested ones the outermost.
_BLOCK = re.compile(r"(?:.*?[./])??(?:\w*(?i:layers?|blocks?)|h)[./_]\d+(?=[./]|$)")


def layer_of(path: str, granularity: str = "block") -> str:
    """Return the name of the layer that a leaf belongs to.

    Names may be separated by ``/`` or ``.``. With granularity `block` it is the path up to the
    number of a block, which follows a name that ends in layer(s) or block(s), or an h, as in
    ``layers/3``, ``h.3`` and Linen's ``encoderblock_3``. A leaf of no block belongs to its module,
    all leaves of ``embeddings`` together.

    **Raises:** `InputError` for an unknown granularity.
    """
    if require_known("granularity", granularity, GRANULARITIES) == "tensor":
        return path
    block = _BLOCK.match(path)
    if block:
        return block.group()
    separator = "/" if "/" in path else "."
    module = path.split(separator)[:-1] or [path]
    if "embeddings" in module:
        module = module[: module.index("embeddings") + 1]
    return separator.join(module)


def layers_of(paths: Iterable[str], granularity: str = "block") -> dict[str, str]:
    """Return the layer of each leaf, in the order of the leaves."""
    return {path: layer_of(path, granularity) for path in paths}


def group_by_layer(paths: Iterable[str], granularity: str = "block") -> dict[str, list[str]]:
    """Return the leaves of each layer; layers by name, numbers by size (block 2 before block 10).

    The order does not depend on that of the leaves, so that ranks of layers do not either.

    >>> group_by_layer(["layers/10/w", "layers/2/w", "layers/2/b"])
    {'layers/2': ['layers/2/w', 'layers/2/b'], 'layers/10': ['layers/10/w']}
    """
    groups: dict[str, list[str]] = {}
    for path, layer in layers_of(paths, granularity).items():
        groups.setdefault(layer, []).append(path)
    return dict(sorted(groups.items(), key=lambda item: _by_number(item[0])))


def _by_number(layer: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", layer)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
