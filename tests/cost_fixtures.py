"""Shapes whose cost is known: CLIP ViT-B/16, and such as can be counted by hand."""

from __future__ import annotations

from typing import Any

from rmtllmf_jax.models.shapes import CLIPShape, TextShape, ViTShape

CONSTANTS: dict[str, Any] = {"activation": "quick_gelu", "layer_norm_eps": 1e-5}
B16 = CLIPShape(
    ViTShape(
        image_size=224, patch_size=16, width=768, depth=12, heads=12, mlp_width=3072, **CONSTANTS
    ),
    TextShape(
        width=512,
        depth=12,
        heads=8,
        mlp_width=2048,
        vocabulary=49408,
        positions=77,
        end_token=2,
        **CONSTANTS,
    ),
    512,
)
TINY = ViTShape(image_size=4, patch_size=2, width=4, depth=1, heads=2, mlp_width=8, **CONSTANTS)
TINY_TEXT = TextShape(
    width=4, depth=1, heads=2, mlp_width=8, vocabulary=10, positions=3, end_token=9, **CONSTANTS
)
FORWARD = 976
"""Operations of `TINY`, an image."""
TINY_CLIP = CLIPShape(TINY, TINY_TEXT, 3)
SMALL = ViTShape(
    image_size=32, patch_size=4, width=128, depth=2, heads=2, mlp_width=512, **CONSTANTS
)
