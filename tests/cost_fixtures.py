"""Models whose cost is known: CLIP ViT-B/16, and such as can be counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.clip import CLIPVision
from rmtllmf_jax.models.configs import published_config
from rmtllmf_jax.models.shapes import CLIPShape, TextShape, ViTShape
from rmtllmf_jax.models.vit import VisionTransformer

_PAPER = published_config("openai/clip-vit-base-patch16")
assert _PAPER is not None
B16 = _PAPER.towers(Path("config.json"))
CONSTANTS: dict[str, Any] = {"activation": "quick_gelu", "layer_norm_eps": 1e-5}
TINY = ViTShape(image_size=4, patch_size=2, width=4, depth=1, heads=2, mlp_width=8, **CONSTANTS)
TINY_TEXT = TextShape(
    width=4, depth=1, heads=2, mlp_width=8, vocabulary=10, positions=3, end_token=9, **CONSTANTS
)
TINY_CLIP = CLIPShape(TINY, TINY_TEXT, 3)
SMALL = ViTShape(
    image_size=32, patch_size=4, width=128, depth=2, heads=2, mlp_width=512, **CONSTANTS
)


def backbone_of(shape: ViTShape, kind: Any = CLIPVision) -> Backbone:
    """Return a tower without parameters that leaves its images in 0..1."""
    return Backbone(kind(shape), (0.0,) * shape.channels, (1.0,) * shape.channels)


def plain(shape: ViTShape) -> Backbone:
    """Return a plain ViT."""
    return backbone_of(shape, VisionTransformer)
