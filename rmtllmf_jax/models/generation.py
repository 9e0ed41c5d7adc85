"""Text from a decoder, token by token, with the keys and values of earlier tokens kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from rmtllmf_jax.common.errors import InputError, require_at_least
from rmtllmf_jax.models.decoder import Decoder

_ROOM = 64  # capacities are multiples of this, so that prompts share compiled programs


@dataclass(frozen=True)
class Greedy:
    """The most probable token.

    >>> Greedy()(jnp.array([[0.0, 2.0, 1.0]]), jax.random.key(0)).tolist()
    [1]
    """

    def __call__(
        self, logits: Float[Array, "batch vocabulary"], key: Key[Array, ""]
    ) -> Int[Array, " batch"]:
        """Return the tokens."""
        return jnp.argmax(logits, axis=-1)


@dataclass(frozen=True)
class Sampled:
    """A token drawn from the softmax, among the most probable ones.

    As in transformers: the temperature comes first, then `top_k`, then `top_p` of what is left.
    Reference for `top_p`: Holtzman et al., arXiv 1904.09751.

    >>> draw = Sampled(temperature=0.5, top_k=1)
    >>> draw(jnp.array([[0.0, 2.0, 1.0]]), jax.random.key(0)).tolist()
    [1]
    """

    temperature: float = 1.0
    """Divides the logits."""
    top_k: int | None = None
    """How many tokens to draw from; `None` is all."""
    top_p: float = 1.0
    """Probability to draw from: the fewest tokens that together have it."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature must be a finite number > 0, got {self.temperature!r}.")
        if self.top_k is not None:
            require_at_least("top_k", self.top_k, 1)
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be > 0 and <= 1, got {self.top_p!r}.")

    def __call__(
        self, logits: Float[Array, "batch vocabulary"], key: Key[Array, ""]
    ) -> Int[Array, " batch"]:
        """Return the tokens."""
        return jax.random.categorical(key, self.kept(logits))

    def kept(self, logits: Float[Array, "batch vocabulary"]) -> Float[Array, "batch vocabulary"]:
        """Return the logits over the temperature; minus infinity where no token is drawn."""
        logits = logits / self.temperature
        if self.top_k is not None:
            last = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][:, -1:]
            logits = jnp.where(logits < last, -jnp.inf, logits)
        if self.top_p < 1:
            ranked = jnp.argsort(logits, axis=-1, descending=True)
            shares = jax.nn.softmax(jnp.take_along_axis(logits, ranked, axis=-1), axis=-1)
            before = jnp.cumsum(shares, axis=-1) - shares
            places = jnp.argsort(ranked, axis=-1)
            left_out = jnp.take_along_axis(before >= self.top_p, places, axis=-1)
            logits = jnp.where(left_out, -jnp.inf, logits)
        return logits


def generate(
    decoder: Decoder,
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    count: int,
    *,
    sampler: Greedy | Sampled | Any = Greedy(),
    key: Key[Array, ""] | None = None,
    end: int | Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the tokens that continue each prompt.

    **Arguments:**

    - `prompts`: tokens; their lengths may differ. A row's text is independent of the others, unless
      it is drawn.
    - `count`: maximum number of tokens to add.
    - `sampler`: `Greedy()`, `Sampled(...)`, or your own: `(logits, key) -> tokens`.
    - `key`: that of the draws; greedy text needs none.
    - `end`: tokens that end a text; they are left out.

    **Raises:** `InputError` for an empty prompt, one with tokens outside the vocabulary, or one
    that together with `count` exceeds the model's positions or its sliding window.
    """
    require_at_least("count", count, 1)
    lengths = [len(prompt) for prompt in prompts]
    if not prompts or not min(lengths):
        raise InputError("every prompt needs a token at least; a model's first one is often <s>.")
    longest, shape = max(lengths), decoder.shape
    limit = min(shape.positions, shape.window or shape.positions)
    if longest + count > limit:
        raise InputError(
            f"a prompt of {longest} tokens and {count} more are {longest + count}; the model takes "
            f"at most {limit}."
        )
    rows = np.zeros((len(prompts), min(_up(longest), limit)), np.int32)
    for row, prompt in zip(rows, prompts):
        row[: len(prompt)] = prompt
    if rows.min() < 0 or rows.max() >= shape.vocabulary:
        raise InputError(
            f"prompts must hold tokens from 0 to {shape.vocabulary - 1}, got {rows.min()} to "
            f"{rows.max()}; is it the model's own tokenizer?"
        )
    ends = () if end is None else (end,) if isinstance(end, int) else tuple(end)
    added = _generate(
        params,
        jnp.asarray(rows),
        jnp.asarray(lengths),
        jax.random.key(0) if key is None else key,
        jnp.asarray(ends, jnp.int32),
        decoder=decoder,
        sampler=sampler,
        count=count,
        capacity=min(_up(longest + count), limit),
    )
    return [_until(row.tolist(), ends) for row in np.asarray(added)]


def _up(length: int) -> int:
    return -(-length // _ROOM) * _ROOM


def _until(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    return tokens[: next((at for at, token in enumerate(tokens) if token in ends), None)]


@partial(jax.jit, static_argnames=("decoder", "sampler", "count", "capacity"))
def _generate(
    params: PyTree,
    prompts: Int[Array, "batch longest"],
    lengths: Int[Array, " batch"],
    key: Key[Array, ""],
    ends: Int[Array, " ends"],
    *,
    decoder: Decoder,
    sampler: Greedy | Sampled | Any,
    count: int,
    capacity: int,
) -> Int[Array, "batch count"]:
    """Return `count` more tokens; those after an end token are meaningless."""
    step = partial(decoder.apply, {"params": params}, method="step")
    batch = len(prompts)
    positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
    # Keys of padding lie behind a row's own tokens: unseen, and written over as it grows.
    logits, cache = step(prompts, positions, decoder.empty_cache(params, batch, capacity))
    last = jnp.take_along_axis(logits, (lengths - 1)[:, None, None], axis=1)[:, 0]

    def unfinished(state: Any) -> Array:
        done, _, ended, *_ = state
        return (done < count) & ~jnp.all(ended)

    def add(state: Any) -> Any:
        done, added, ended, logits, cache = state
        token = sampler(logits, jax.random.fold_in(key, done)).astype(jnp.int32)
        added = added.at[:, done].set(token)
        ended |= jnp.any(token[:, None] == ends, axis=1)
        logits, cache = step(token[:, None], (lengths + done)[:, None], cache)
        return done + 1, added, ended, logits[:, 0], cache

    first = (0, jnp.zeros((batch, count), jnp.int32), jnp.zeros(batch, bool), last, cache)
    return jax.lax.while_loop(unfinished, add, first)[1]
