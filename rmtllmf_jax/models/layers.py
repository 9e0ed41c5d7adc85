"""Layers that the backbones share, where flax's own cost too much."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with flax's parameter names ``scale`` and ``bias``.

    Scale and bias are spread over the rows by a product with a column of ones, so that their
    gradients are matrix products: XLA's column sums on a CPU are so slow that the gradient of a
    ViT-Ti takes 1.6 times as long with `flax.linen.LayerNorm` (benchmarks/model.py).
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        rows = x.reshape(-1, width)
        centred = rows - jnp.mean(rows, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normalised = centred * jax.lax.rsqrt(variance + self.epsilon)
        ones = jnp.ones((rows.shape[0], 1), rows.dtype)
        return (normalised * (ones @ scale[None]) + ones @ bias[None]).reshape(x.shape)
