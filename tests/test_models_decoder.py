"""The decoder by itself: packed texts, generation with a cache, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.decoder_configs import read_decoder_config
from rmtllmf_jax.models.generation import Greedy, Sampled, generate
from rmtllmf_jax.models.rotary import Llama3Rotary, Rotary
from rmtllmf_jax.models.shapes import DecoderShape

SHAPE = DecoderShape(
    width=16,
    depth=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_width=24,
    activation="silu",
    layer_norm_eps=1e-6,
    vocabulary=29,
    positions=80,
    rotary=Rotary(),
    tied=False,
    qk_norm=True,
)
DECODER = Decoder(SHAPE)
CONFIG = {
    "model_type": "llama",
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 80,
}
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [8]]


@pytest.fixture(scope="module")
def params() -> dict:
    """Random parameters, large enough for logits that differ."""
    tree = DECODER.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(structure, [a + b for a, b in zip(leaves, noise)])


@jax.jit
def logits_of(params: dict, tokens: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    return DECODER.apply({"params": params}, tokens, segments)


def test_texts_packed_into_a_row_do_not_see_each_other(params: dict):
    """Nor does padding change what is before it."""
    texts = [np.arange(5) + 2, np.arange(3) + 11, np.arange(6) * 3 % 29]
    row = np.concatenate([*texts, [0, 0]])
    segments = np.repeat([1, 2, 3, 0], [5, 3, 6, 2])
    packed = logits_of(params, row[None], segments[None])[0]
    apart = [logits_of(params, text[None])[0] for text in texts]
    np.testing.assert_allclose(packed[:14], np.concatenate(apart), atol=2e-6)


def test_a_token_sees_only_those_before(params: dict):
    tokens = np.arange(12) % 29
    other = tokens.copy()
    other[7] = 20
    before, after = (logits_of(params, each[None])[0] for each in (tokens, other))
    np.testing.assert_array_equal(before[:7], after[:7])
    assert (np.abs(before[7:] - after[7:]).max(axis=1) > 1e-3).all()


def test_cached_logits_are_those_of_the_whole_text(params: dict):
    """Token by token, and behind a first part of another length in every row."""
    tokens = np.random.default_rng(0).integers(0, 29, (2, 10))
    whole = logits_of(params, tokens)
    step = jax.jit(lambda *given: DECODER.apply({"params": params}, *given, method="step"))
    cache = DECODER.empty_cache(params, 2, 16)
    starts = np.array([4, 6])
    first, cache = step(tokens[:, :6], np.broadcast_to(np.arange(6), (2, 6)), cache)
    np.testing.assert_allclose(first, whole[:, :6], atol=2e-6)
    for more in range(4):
        places = starts + more
        new = tokens[np.arange(2), places]
        found, cache = step(new[:, None], places[:, None], cache)
        np.testing.assert_allclose(found[:, 0], whole[np.arange(2), places], atol=2e-6)


def test_greedy_text_is_that_of_full_recomputation(params: dict):
    found = generate(DECODER, params, PROMPTS, 10)
    for prompt, added in zip(PROMPTS, found):
        text = [*prompt, *[0] * 20][:20]
        for at in range(len(prompt), len(prompt) + 10):
            text[at] = int(jnp.argmax(logits_of(params, np.array([text]))[0, at - 1]))
        assert added == text[len(prompt) : len(prompt) + 10]
    assert generate(DECODER, params, PROMPTS[:1], 10) == found[:1]


def test_text_ends_before_the_end_token(params: dict):
    full = generate(DECODER, params, PROMPTS, 10)
    end = full[1][4]
    ended = generate(DECODER, params, PROMPTS, 10, end=end)
    assert ended == [row[: row.index(end)] if end in row else row for row in full]
    assert generate(DECODER, params, PROMPTS, 10, end=(end, full[0][2])) != ended


def test_draws_follow_the_key_and_the_distribution(params: dict):
    draw = Sampled(temperature=1.5)
    drawn = [
        generate(DECODER, params, PROMPTS, 8, sampler=draw, key=jax.random.key(k))
        for k in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    certain = generate(DECODER, params, PROMPTS, 10, sampler=Sampled(top_k=1))
    assert certain == generate(DECODER, params, PROMPTS, 10, sampler=Greedy())
    once = generate(DECODER, params, [[7]] * 4000, 1, sampler=draw, key=jax.random.key(3))
    shares = np.bincount(np.ravel(once), minlength=29) / 4000
    expected = jax.nn.softmax(logits_of(params, np.array([[7]]))[0, -1] / 1.5)
    assert np.abs(shares - expected).max() < 5 * (0.25 / 4000) ** 0.5


def test_bfloat16_and_remat_compute_about_the_same(params: dict):
    tokens = jnp.arange(20)[None] % 29
    half = Decoder(replace(SHAPE, dtype="bfloat16")).apply({"params": params}, tokens)
    assert half.dtype == jnp.float32
    exact = logits_of(params, tokens)
    assert np.abs(half - exact).max() < 0.05 * np.abs(exact).max()
    spared = Decoder(replace(SHAPE, remat=True)).apply({"params": params}, tokens)
    np.testing.assert_allclose(spared, exact, atol=1e-5)
    assert generate(Decoder(replace(SHAPE, dtype="bfloat16")), params, PROMPTS, 3)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], {}, "needs a token"),
        ([[1], []], {}, "needs a token"),
        ([[29]], {}, "0 to 28, got 0 to 29"),
        ([[1] * 75], {}, "75 tokens and 6 more are 81; the model takes at most 80"),
        ([[1]], {"count": 0}, "count must be at least 1"),
    ],
)
def test_prompts_that_cannot_be_continued(
    params: dict, prompts: list[list[int]], options: dict[str, Any], words: str
):
    with pytest.raises(InputError, match=words):
        generate(DECODER, params, prompts, **{"count": 6} | options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature must be"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be > 0 and <= 1"),
        ({"top_p": 1.1}, "top_p must be > 0 and <= 1"),
    ],
)
def test_samplers_that_draw_nothing(options: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        Sampled(**options)


def test_texts_beyond_the_sliding_window_are_refused(params: dict):
    narrow = Decoder(replace(SHAPE, window=12))
    tokens = jnp.ones((1, 13), jnp.int32)
    np.testing.assert_array_equal(
        narrow.apply({"params": params}, tokens[:, :12]),
        DECODER.apply({"params": params}, tokens[:, :12]),
    )
    with pytest.raises(InputError, match="sliding window is 12 tokens, and rows have 13"):
        narrow.apply({"params": params}, tokens)
    with pytest.raises(InputError, match="at most 12"):
        generate(narrow, params, [[1] * 8], 5)
    assert len(generate(narrow, params, [[1] * 8], 4)[0]) == 4


def read(folder: Path, **changes: Any) -> DecoderShape:
    path = folder / "config.json"
    path.write_text(json.dumps(CONFIG | changes))
    return read_decoder_config(path)


def test_configurations_of_before_transformers_5_are_read(tmp_path: Path):
    """`rope_theta` and `rope_scaling` beside each other, and defaults left out."""
    old = read(
        tmp_path,
        rope_theta=5e5,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    expected = Llama3Rotary(theta=5e5, factor=8.0, low=1.0, high=4.0, positions=8192)
    assert old.rotary == expected
    assert read(tmp_path).rotary == Rotary(theta=1e4)
    assert read(tmp_path, num_key_value_heads=None).kv_heads == 4
    qwen = read(tmp_path, model_type="qwen2", sliding_window=8, use_sliding_window=False)
    assert (qwen.window, qwen.qkv_bias, qwen.out_bias) == (None, True, False)
    limited = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}
    assert read(tmp_path, model_type="qwen2", **limited).window == 8
    assert read(tmp_path, model_type="mistral", sliding_window=8).window == 8
    assert read(tmp_path, model_type="mistral", sliding_window=None).window is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; expected one of llama, mistral"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "type 'yarn'.*default, linear, llama3"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type 'dynamic'"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": -2.0}}, "factor.*must be > 0"),
        (
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            },
            "partial_rotary_factor is 0.5",
        ),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number >= 1"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"head_dim": 5}, "even"),
        ({"hidden_act": "magic"}, "unknown hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_attention_heads": 0, "head_dim": 4}, "num_attention_heads|multiple|zero"),
    ],
)
def test_configurations_that_cannot_be_built(changes: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(InputError, match=words) as raised:
        read(tmp_path, **changes)
    assert str(tmp_path) in str(raised.value)
