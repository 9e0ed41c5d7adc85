"""A text decoder as a Flax linen module: Llama, Mistral, Qwen2 and Qwen3, by flags.

A leaf's path is the checkpoint's key with ``/`` for ``.`` and flax's names for ``weight``
(``kernel``, ``scale``, ``embedding``), for example ``model/layers/0/self_attn/q_proj/kernel``.

References: Touvron et al., "LLaMA", arXiv 2302.13971; Ainslie et al., "GQA", arXiv 2305.13245;
Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.models.activations import ACTIVATIONS
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.layers import Embedding, dense, grouped_attention, in_dtype, in_full
from rmtllmf_jax.models.rotary import rotate
from rmtllmf_jax.models.shapes import DecoderShape

_dense = partial(dense, kernel_init=nn.initializers.normal(0.02))


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, one pair per layer."""

    layers: tuple[tuple[Float[Array, "batch capacity kv_heads head_dim"], ...], ...]


class Place(NamedTuple):
    """Where tokens are in their texts, and which keys they see."""

    positions: Int[Array, "batch tokens"]
    seen: Bool[Array, "batch tokens keys"]


class RMSNorm(nn.Module):
    """``x / rms(x) * scale`` over the last axis, in at least float32, returned in the type of `x`.

    Reference: Zhang and Sennrich, arXiv 1910.07467.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        full = in_full(x)
        square = jnp.mean(jnp.square(full), axis=-1, keepdims=True)
        return (full * jax.lax.rsqrt(square + self.epsilon) * scale).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, and its four projections."""

    shape: DecoderShape

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        place: Place,
        cached: tuple[Float[Array, "batch capacity kv_heads head_dim"], ...] | None,
    ) -> tuple[Float[Array, "batch tokens width"], tuple[Array, ...]]:
        shape = self.shape

        def heads(name: str, count: int) -> Float[Array, "batch tokens heads head_dim"]:
            features = count * shape.head_dim
            projected = _dense(shape, features, use_bias=shape.qkv_bias, name=name)(x)
            return projected.reshape(*x.shape[:2], count, shape.head_dim)

        query = heads("q_proj", shape.heads)
        key, value = heads("k_proj", shape.kv_heads), heads("v_proj", shape.kv_heads)
        if shape.qk_norm:
            query = RMSNorm(shape.layer_norm_eps, name="q_norm")(query)
            key = RMSNorm(shape.layer_norm_eps, name="k_norm")(key)
        query, key = (rotate(each, place.positions, shape.rotary) for each in (query, key))
        if cached is not None:
            rows = jnp.arange(len(x))[:, None]
            key, value = (
                old.at[rows, place.positions].set(new, mode="drop")
                for old, new in zip(cached, (key, value))
            )
        attended = grouped_attention(query, key, value, place.seen, causal=cached is None)
        joined = attended.reshape(*x.shape[:2], -1)
        out = _dense(shape, shape.width, use_bias=shape.out_bias, name="o_proj")(joined)
        return out, (key, value)


class MLP(nn.Module):
    """``down(act(gate x) * up x)``: SwiGLU, with the activation that the configuration names."""

    shape: DecoderShape

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        shape = self.shape
        layer = partial(_dense, shape, use_bias=shape.mlp_bias)
        gate = ACTIVATIONS[shape.activation](layer(shape.mlp_width, name="gate_proj")(x))
        return layer(shape.width, name="down_proj")(
            gate * layer(shape.mlp_width, name="up_proj")(x)
        )


class Layer(nn.Module):
    """One pre-norm transformer block; also returns its keys and values."""

    shape: DecoderShape

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        place: Place,
        cached: tuple[Array, ...] | None,
    ) -> tuple[Float[Array, "batch tokens width"], tuple[Array, ...]]:
        norm = partial(RMSNorm, self.shape.layer_norm_eps)
        y = norm(name="input_layernorm")(x)
        y, kept = Attention(self.shape, name="self_attn")(y, place, cached)
        x = x + y
        return x + MLP(self.shape, name="mlp")(norm(name="post_attention_layernorm")(x)), kept


class Layers(nn.Module):
    """The blocks, unrolled so that every layer keeps its own named leaves."""

    shape: DecoderShape

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens width"], place: Place, cache: Cache | None
    ) -> tuple[Float[Array, "batch tokens width"], Cache]:
        block = nn.remat(Layer) if self.shape.remat else Layer
        kept = []
        for index in range(self.shape.depth):
            cached = None if cache is None else cache.layers[index]
            x, pair = block(self.shape, name=str(index))(x, place, cached)
            kept.append(pair)
        return x, Cache(tuple(kept))


class Trunk(nn.Module):
    """Tokens in; their features after the last RMSNorm, the table of tokens and the cache out."""

    shape: DecoderShape

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "batch tokens"], place: Place, cache: Cache | None = None
    ) -> tuple[Float[Array, "batch tokens width"], Float[Array, "vocabulary width"], Cache]:
        shape = self.shape
        table = Embedding(shape.vocabulary, shape.width, name="embed_tokens")()
        x = in_dtype(table[tokens], shape.dtype)
        x, kept = Layers(shape, name="layers")(x, place, cache)
        return RMSNorm(shape.layer_norm_eps, name="norm")(x), table, kept


class Decoder(nn.Module):
    """Tokens in, logits of the next tokens out, like `...ForCausalLM` in transformers."""

    shape: DecoderShape

    def setup(self) -> None:
        """Name the parts as checkpoints do."""
        self.model = Trunk(self.shape)
        if not self.shape.tied:
            self.lm_head = _dense(self.shape, self.shape.vocabulary, use_bias=False)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        segments: Int[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch tokens vocabulary"]:
        """Return the logits of the token after each, in float32 at least.

        **Arguments:**

        - `segments`: if rows hold several texts, the text number of each token: a token sees those
          of its own text, and positions restart. Texts are contiguous. `None` is one per row.

        **Raises:** `InputError` if rows are longer than the checkpoint's attention window.
        """
        self.require_length(tokens.shape[1])
        features, table, _ = self.model(tokens, _within(tokens, segments))
        return self._logits(features, table)

    def step(
        self,
        tokens: Int[Array, "batch tokens"],
        positions: Int[Array, "batch tokens"],
        cache: Cache,
    ) -> tuple[Float[Array, "batch tokens vocabulary"], Cache]:
        """Return the logits of tokens that follow those in the cache, and the updated cache.

        A token sees the cache up to its own position.

        **Raises:** `InputError` if the cache is longer than the checkpoint's attention window.
        """
        capacity = cache.layers[0][0].shape[1]
        self.require_length(capacity)
        seen = jnp.arange(capacity) <= positions[:, :, None]
        features, table, cache = self.model(tokens, Place(positions, seen), cache)
        return self._logits(features, table), cache

    @property
    def width(self) -> int:
        """Length of a feature."""
        return self.shape.width

    @property
    def fingerprint(self) -> str:
        """Hash of everything that logits depend on besides parameters, tokens and compute type."""
        shape = asdict(self.shape)
        del shape["dtype"], shape["remat"]
        return content_hash({**shape, "rotary": repr(self.shape.rotary)})

    def prepared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs: rows of tokens are used unchanged."""
        return dict(inputs)

    def outputs(
        self, params: PyTree, head: Head | None, inputs: Mapping[str, Array]
    ) -> Float[Array, "*rows tokens vocabulary"]:
        """Return the logits of the tokens after `inputs["tokens"]`; tasks have no `head`.

        Axes before the last one are rows; `inputs["segments"]` gives the text of each token.
        """
        tokens, segments = inputs["tokens"], inputs.get("segments")
        flat = tokens.reshape(-1, tokens.shape[-1])
        apart = None if segments is None else segments.reshape(flat.shape)
        logits = self.apply({"params": params}, flat, apart)
        assert isinstance(logits, jax.Array)  # apply's type allows for mutable collections
        return logits.reshape(*tokens.shape, -1)

    def require_length(self, tokens: int) -> None:
        """Check that attention covers texts of a length in full.

        **Raises:** `InputError` that names the window.
        """
        window = self.shape.window
        if window is not None and tokens > window:
            raise InputError(
                f"the model's sliding window is {window} tokens, and rows have {tokens}: sliding "
                f"attention is not implemented; take at most {window}."
            )

    def empty_cache(self, params: PyTree, batch: int, capacity: int) -> Cache:
        """Return a cache of zeros for texts of up to `capacity` tokens."""
        half = self.shape.dtype == "bfloat16"
        dtype = jnp.bfloat16 if half else jnp.result_type(*jax.tree.leaves(params))
        shape = (batch, capacity, self.shape.kv_heads, self.shape.head_dim)
        return Cache(((jnp.zeros(shape, dtype),) * 2,) * self.shape.depth)

    def _logits(
        self, features: Float[Array, "batch tokens width"], table: Float[Array, "vocabulary width"]
    ) -> Float[Array, "batch tokens vocabulary"]:
        if not self.shape.tied:
            return in_full(self.lm_head(features))
        return in_full(features @ in_dtype(table, self.shape.dtype).T)


def _within(
    tokens: Int[Array, "batch tokens"], segments: Int[Array, "batch tokens"] | None
) -> Place:
    """Return the places of whole texts."""
    index = jnp.arange(tokens.shape[1])
    causal = index <= index[:, None]
    if segments is None:
        shape = tokens.shape
        return Place(jnp.broadcast_to(index, shape), jnp.broadcast_to(causal, (*shape, shape[1])))
    same = segments[:, :, None] == segments[:, None, :]
    first = jnp.argmax(same, axis=-1)  # of each token's text
    return Place(index - first, causal & same)
