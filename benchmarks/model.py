"""Gradient of a ViT-Ti/16 at 64 pixels: our LayerNorm against flax's, and against torch.

Interleaved in one run after an equality check; prints medians and ratios. Random weights; needs
the `parity` extra.

    python benchmarks/model.py

Two CPU cores, float32, batch 32, medians of 15: ours 182 ms, with flax's LayerNorm 299 ms (1.64 x),
transformers' ViT in torch 166 ms (0.92 x).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import torch
from transformers import ViTConfig, ViTModel

from rmtllmf_jax.models import vit
from rmtllmf_jax.models.layers import LayerNorm
from rmtllmf_jax.models.shapes import ViTShape

SHAPE = ViTShape(
    image_size=64,
    patch_size=16,
    width=192,
    depth=12,
    heads=3,
    mlp_width=768,
    activation="gelu",
    layer_norm_eps=1e-6,
)
BATCH, ROUNDS = 32, 15


def jax_gradient(layer_norm: Callable[..., nn.Module]) -> Callable[[], object]:
    """Return a call that computes the gradient of a loss, built with one kind of LayerNorm."""
    vit.LayerNorm = layer_norm  # type: ignore[misc, assignment]
    images = jax.random.normal(jax.random.key(0), (BATCH, 64, 64, 3))
    module = vit.VisionTransformer(SHAPE)
    params = module.init(jax.random.key(1), images)["params"]
    gradient = jax.jit(jax.grad(lambda p: (module.apply({"params": p}, images) ** 2).mean()))
    gradient(params)  # traced while this LayerNorm is in place
    return lambda: jax.block_until_ready(gradient(params))


def torch_gradient() -> Callable[[], object]:
    """Return the same with transformers' ViT in torch."""
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=64,
        layer_norm_eps=1e-6,
    )
    model = ViTModel(config, add_pooling_layer=False)
    images = torch.randn(BATCH, 3, 64, 64)

    def gradient() -> None:
        model.zero_grad()
        (model(images).last_hidden_state[:, 0] ** 2).mean().backward()

    return gradient


def main() -> None:
    """Check equality, time the three in turn, print medians and ratios."""
    flax_norm = partial(nn.LayerNorm, use_fast_variance=False)
    calls = {
        "ours": jax_gradient(LayerNorm),
        "flax LayerNorm": jax_gradient(flax_norm),
        "torch": torch_gradient(),
    }
    for ours, theirs in zip(
        jax.tree.leaves(calls["ours"]()), jax.tree.leaves(calls["flax LayerNorm"]()), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    ours = statistics.median(times["ours"])
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"{name:16s} median {1e3 * median:7.1f} ms   {BATCH / median:6.1f} images/s   "
            f"{median / ours:.2f} x ours"
        )


if __name__ == "__main__":
    main()
