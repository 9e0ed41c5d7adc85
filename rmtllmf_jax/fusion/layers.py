"""Layers: which leaves of a model belong together, read from their names.

>>> layer_of("encoder/layers/11/mlp/fc1/kernel")
'encoder/layers/11'
>>> layer_of("model.layers.3.self_attn.q_proj.weight")
'model.layers.3'
>>> layer_of("Transformer/encoderblock_3/MlpBlock_0/Dense_1/kernel")
'Transformer/encoderblock_3'
>>> layer_of("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight")
'down_blocks.0.attentions.1.transformer_blocks.0'
>>> layer_of("embeddings/patch_embedding/kernel"), layer_of("lm_head.weight")
('embeddings', 'lm_head')
>>> layer_of("stage2.unit3.conv.weight", Layers(r"stage\\d+"))
'stage2'
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rmtllmf_jax.common.errors import InputError, require_known

GRANULARITIES = ("block", "tensor")
"""All leaves of a transformer block as one layer, or every leaf as its own; or `Layers`."""


@dataclass(frozen=True)
class Layers:
    """Custom layers: the part of a leaf's name that a regular expression matches from its start.

    A leaf that it does not match belongs to its module, like a leaf outside of any block.
    """

    pattern: str
    """The expression, such as `.*?stage\\d+`; of one with a group, what the first group matches."""

    def __post_init__(self) -> None:
        """Check the expression."""
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise InputError(
                f"pattern: {self.pattern!r} is not a regular expression ({error})."
            ) from None

    def __call__(self, path: str) -> str | None:
        """Return the layer of a leaf, `None` where nothing is matched."""
        found = re.match(self.pattern, path)
        return (found[1] if found.re.groups else found[0]) or None if found else None


Granularity = str | Layers
"""What a layer is: one of `GRANULARITIES`, or `Layers`."""

# A number at the end of a name or as a name of its own.
_NUMBERED = r"[./_]\d+"
_PREFIX = r"(?:.*?[./])??"
# Of nested ones the outermost, but for the stages of diffusers' U-Nets and autoencoders.
_STAGE = rf"(?:(?:down|up)_blocks{_NUMBERED}|mid_block)[./]\w+?{_NUMBERED}"
_BLOCKS = tuple(
    re.compile(rf"{_PREFIX}(?:{names})(?=[./]|$)")
    for names in (
        rf"{_STAGE}(?:[./]transformer_blocks{_NUMBERED})?",
        # Of torchvision: Swin, ConvNeXt, EfficientNet; DenseNet; ResNet.
        r"features[./]\d+(?:[./]\d+)?|denseblock\d+[./]denselayer\d+|layer\d+[./]\d+",
        # encoder/layer/3, model.layers.3, transformer.h.3, blocks.3, resblocks.3; as Linen has it,
        # layers_3, encoderblock_3, h_3, TransformerBlock_3.
        rf"(?:\w*(?i:layers?|blocks?)|h){_NUMBERED}",
    )
)
# In which flax.nnx keeps the array of a variable, where it is part of a flat name.
_NNX = re.compile(r"(?<=[./])(kernel|bias|scale|embedding)[./]value$")


def require_granularity(granularity: Granularity, known: Iterable[str] = GRANULARITIES) -> None:
    """Check the definition of a layer.

    **Raises:** `InputError` for an unknown name.
    """
    if not isinstance(granularity, Layers):
        require_known("granularity", granularity, known)


def layer_of(path: str, granularity: Granularity = "block") -> str:
    """Return the name of the layer that a leaf belongs to.

    Names may be separated by ``/`` or ``.``. With granularity `block` it is the path up to the
    number of a block, which follows a name that ends in layer(s) or block(s), or an h, as in
    ``layers/3``, ``h.3`` and Linen's ``encoderblock_3``; stages of diffusers' U-Nets and of
    torchvision's convolutional models are divided into their units. A leaf outside of any block
    belongs to its module, so that all leaves of ``embeddings`` are together.

    **Raises:** `InputError` for an unknown granularity.
    """
    require_granularity(granularity)
    if granularity == "tensor":
        return path
    path = _NNX.sub(r"\1", path)
    if isinstance(granularity, Layers):
        layer = granularity(path)
    else:
        matches = (pattern.match(path) for pattern in _BLOCKS)
        layer = next((found.group() for found in matches if found), None)
    if layer:
        return layer
    separator = "/" if "/" in path else "."
    module = path.split(separator)[:-1] or [path]
    if "embeddings" in module:
        module = module[: module.index("embeddings") + 1]
    return separator.join(module)


def block_of(path: str) -> tuple[str, int] | None:
    """Return the stack of transformer blocks that a leaf belongs to, and the number of its block.

    >>> block_of("model.layers.3.self_attn.q_proj.weight"), block_of("lm_head.weight")
    (('model.layers', 3), None)
    """
    block = _BLOCKS[-1].match(path)
    if block is None:
        return None
    stack, number = re.split(r"[./_](?=\d+$)", block.group())
    return stack, int(number)


def layers_of(paths: Iterable[str], granularity: Granularity = "block") -> dict[str, str]:
    """Return the layer of each leaf, in the order of the leaves.

    **Raises:** `InputError` for an unknown granularity, or an expression that matches no leaf.
    """
    paths = list(paths)
    if isinstance(granularity, Layers) and paths and not any(map(granularity, paths)):
        raise InputError(
            f"layers: {granularity.pattern!r} matches no leaf from the start of its name, such as "
            f"{paths[0]}."
        )
    return {path: layer_of(path, granularity) for path in paths}


def group_by_layer(
    paths: Iterable[str], granularity: Granularity = "block"
) -> dict[str, list[str]]:
    """Return the leaves of each layer; layers by name, numbers by size (block 2 before block 10).

    The order does not depend on that of the leaves, so neither do the ranks of layers.

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
