"""What models and sweeps take: parameters, operations and memory, by hand and as XLA counts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from cost_fixtures import B16, FORWARD, SMALL, TINY, TINY_CLIP, TINY_TEXT

from rmtllmf_jax import fusion
from rmtllmf_jax.models.clip import CLIP, CLIPText, CLIPVision
from rmtllmf_jax.models.shapes import CLIPShape, ViTShape
from rmtllmf_jax.models.vit import VisionTransformer
from rmtllmf_jax.sweep.cost import (
    activation_bytes,
    all_parameters,
    forward_flops,
    head_parameters,
    sweep_memory,
    tower_parameters,
    train_flops,
    training_memory,
)
from rmtllmf_jax.sweep.programs import Merges, receive_and_merge
from rmtllmf_jax.training.recipes import Recipe


def count(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def parameters_of(module: nn.Module, *inputs: jax.ShapeDtypeStruct) -> Any:
    """Return the shapes of a module's parameters."""
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def images(shape: ViTShape, batch: int = 1) -> jax.ShapeDtypeStruct:
    size = shape.image_size
    return jax.ShapeDtypeStruct((batch, size, size, shape.channels), jnp.float32)


def flops(lowered: jax.stages.Lowered) -> float:
    analysis = lowered.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"]


# Parameters


def test_parameters_of_a_tiny_tower_by_hand():
    block = 4 * (4 * 4 + 4) + (4 * 8 + 8) + (8 * 4 + 4) + 2 * 8
    patches, token, positions, last = 2 * 2 * 3 * 4, 4, 5 * 4, 8
    assert tower_parameters(TINY) == patches + 4 + token + positions + block + last == 256
    assert tower_parameters(TINY_CLIP) == patches + token + positions + 8 + block + last == 260
    text = (10 + 3) * 4 + block + 8
    assert all_parameters(TINY_CLIP) == 260 + text + 4 * 3 + 4 * 3 + 1
    assert head_parameters(TINY, 7) == 4 * 7 + 7
    assert head_parameters(TINY_CLIP, 7) == 4 * 3 + 3 * 7 + 7


def test_clip_vit_b_16_has_the_published_parameters():
    assert tower_parameters(B16) == 85_799_424
    assert all_parameters(B16) == 149_620_737


@pytest.mark.parametrize("shape", [TINY, SMALL, replace(SMALL, qkv_bias=False)])
def test_a_plain_vits_parameters_are_the_modules(shape: ViTShape):
    assert tower_parameters(shape) == count(parameters_of(VisionTransformer(shape), images(shape)))
    assert all_parameters(shape) == tower_parameters(shape)


@pytest.mark.parametrize("model", [TINY_CLIP, replace(TINY_CLIP, vision=SMALL), B16])
def test_clips_parameters_are_the_modules(model: CLIPShape):
    tokens = jax.ShapeDtypeStruct((1, model.text.positions), jnp.int32)
    tree = parameters_of(CLIP(model), images(model.vision), tokens)
    assert tower_parameters(model) == count(tree["vision_model"])
    assert all_parameters(model) == count(tree)


# Operations


def test_operations_of_a_tiny_tower_by_hand():
    embedding = 2 * 4 * 12 * 4
    projections, attention, mlp = 4 * 2 * 5 * 4 * 4, 2 * 2 * 5 * 5 * 4, 2 * 2 * 5 * 4 * 8
    # Keys and values of all five tokens, the rest of the class token alone.
    last = 2 * 2 * 5 * 4 * 4 + 2 * 2 * 4 * 4 + 2 * 2 * 5 * 4, 2 * 2 * 4 * 8
    assert forward_flops(TINY) == embedding + sum(last) == FORWARD
    two = replace(TINY, depth=2)
    assert forward_flops(two) == FORWARD + projections + attention + mlp
    text = 4 * 2 * 3 * 4 * 4 + 2 * 2 * 3 * 3 * 4 + 2 * 2 * 3 * 4 * 8
    assert forward_flops(TINY_TEXT) == text
    assert train_flops(TINY) == 3 * FORWARD
    # The last product of a block is not needed.
    again = projections + attention + mlp // 2 + last[0] + last[1] // 2
    assert train_flops(replace(two, remat=True)) == 3 * forward_flops(two) + again


def test_clip_vit_b_16_takes_the_published_operations_but_for_what_nobody_reads():
    # The last block's queries, outputs, attention and MLP of the 196 patches.
    unread = 196 * (2 * 768**2 + 2 * 197 * 768 + 2 * 768 * 3072)
    assert forward_flops(B16.vision) / 2 == pytest.approx(17.56e9 - unread, rel=1e-3)


def test_operations_are_those_that_xla_counts():
    module, batch = CLIPVision(SMALL), 4
    params = parameters_of(module, images(SMALL))

    def features(params: Any, x: jax.Array) -> jax.Array:
        return module.apply({"params": params}, x)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return features(params, x).sum()

    forward = flops(jax.jit(features).lower(params, images(SMALL, batch)))
    assert forward / batch == pytest.approx(forward_flops(SMALL), rel=0.04)
    training = flops(jax.jit(jax.grad(loss)).lower(params, images(SMALL, batch)))
    assert training / batch == pytest.approx(train_flops(SMALL), rel=0.05)


def test_operations_of_a_text_are_those_that_xla_counts():
    shape = replace(TINY_TEXT, width=128, mlp_width=512, positions=32)
    tokens = jax.ShapeDtypeStruct((4, 32), jnp.int32)
    module = CLIPText(shape)
    params = parameters_of(module, tokens)
    lowered = jax.jit(lambda p, x: module.apply({"params": p}, x)).lower(params, tokens)
    assert flops(lowered) / 4 == pytest.approx(forward_flops(shape), rel=0.04)


def test_rematerialised_operations_are_those_that_xla_counts():
    shape = replace(SMALL, remat=True)
    module = CLIPVision(shape)
    params = parameters_of(module, images(shape))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return module.apply({"params": params}, x).sum()

    training = flops(jax.jit(jax.grad(loss)).lower(params, images(shape, 4)))
    assert training / 4 == pytest.approx(train_flops(shape), rel=0.05)


# Memory


@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        pytest.param(replace(SMALL, width=64, mlp_width=512, heads=1), 64, id="mlp"),
        pytest.param(
            replace(SMALL, width=32, mlp_width=32, heads=8),
            32,
            id="attention",
            marks=pytest.mark.slow,
        ),
        pytest.param(replace(SMALL, depth=1), 64, id="last", marks=pytest.mark.slow),
    ],
)
def test_training_memory_is_what_xla_allocates(shape: ViTShape, batch: int):
    module, optimiser = CLIPVision(shape), Recipe(10, batch, 1e-5, 0.1).optimiser()
    params = parameters_of(module, images(shape))
    state = jax.eval_shape(lambda p: (p, optimiser.init(p)), params)

    def step(state: Any, x: jax.Array, labels: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits = module.apply({"params": params}, x.astype(jnp.float32) / 255)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, moments = optimiser.update(jax.grad(loss)(state[0]), state[1], state[0])
        return optax.apply_updates(state[0], updates), moments

    pixels = jax.ShapeDtypeStruct(images(shape, batch).shape, jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    compiled = jax.jit(step, donate_argnums=0).lower(state, pixels, labels).compile()
    memory = compiled.memory_analysis()
    # The donated state comes back in its own place.
    allocated = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    estimate = sum(training_memory(shape, batch).values()) - 4 * tower_parameters(shape)
    assert 0.6 < estimate / allocated < 1.6
    activations = activation_bytes(shape, batch, training=True)
    assert activations > 0.5 * allocated  # what was estimated is what weighs


def test_merging_memory_is_what_xla_allocates():
    users = 8
    params = parameters_of(CLIPVision(SMALL), images(SMALL))
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((users, *x.shape), x.dtype), params)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    flags = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), bool), params)
    weights = jax.ShapeDtypeStruct((users,), jnp.float32)
    factor = jax.ShapeDtypeStruct((users, users), jnp.float32)
    flag = jax.ShapeDtypeStruct((), bool)
    merge = Merges(weights, factor, number, jax.random.key(0), flag)
    program = jax.jit(partial(receive_and_merge, rule=fusion.TaskArithmetic()))
    memory = program.lower(merge, params, stacked, stacked, flags).compile().memory_analysis()
    allocated = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    )
    shape = replace(TINY_CLIP, vision=SMALL)
    parts = sweep_memory(shape, users, eval_batch=1, test_bytes=0, realign_batch=None, shot_bytes=0)
    names = ("base model", "8 task vectors", "noise of a draw", "merged model")
    assert sum(parts[name] for name in names) == pytest.approx(allocated, rel=0.05)


def test_training_memory_of_a_tiny_tower_by_hand():
    assert training_memory(TINY, 3) == {
        "base model": 4 * 256,
        "parameters, gradients, moments": 16 * 256,
        "activations, batch 3": 3 * (5 * 10 * 4 * 4 + 48 * 9),
    }
    two = training_memory(replace(TINY, depth=2), 3)
    block = 5 * (10 * 4 + 3 * 8) * 4 + 2 * 25 * 12
    assert two["activations, batch 3"] == 3 * (block + 5 * 10 * 4 * 4 + 48 * 9)
    half = training_memory(replace(TINY, dtype="bfloat16"), 3)
    assert half["parameters in bfloat16"] == 2 * 256
    assert half["activations, batch 3"] == 3 * (5 * 10 * 4 * 2 + 48 * 7)


def test_rematerialisation_keeps_one_block_and_the_inputs_of_all():
    deep = replace(SMALL, depth=12)
    all_blocks = activation_bytes(deep, 1, training=True)
    kept = activation_bytes(replace(deep, remat=True), 1, training=True)
    one = activation_bytes(deep, 1, training=False)
    assert one < kept < 0.2 * all_blocks
    assert kept - one == 11 * 65 * 128 * 4


def test_sweep_memory_holds_the_busiest_step_alone():
    common = {"eval_batch": 2, "test_bytes": 7, "shot_bytes": 5}
    quiet = sweep_memory(TINY, 2, realign_batch=None, **common)
    assert list(quiet.values())[:6] == [1024, 2048, 2048, 1024, 7, 5]
    evaluating = 2 * (20 * 4 + 5 * 64 * 4 + 2 * 25 * 12 + 48 * 9)
    assert quiet["busiest step: evaluating"] == evaluating
    busy = sweep_memory(TINY, 2, realign_batch=3, **common)
    trained = sum(training_memory(TINY, 3).values()) - 4 * 256
    assert busy["busiest step: realigning"] == trained
    many = sweep_memory(TINY, 8, realign_batch=None, **common)
    assert many["busiest step: the cosines"] == 4 * 256 * 8
    three = sweep_memory(TINY, 2, realign_batch=3, **common, cells_at_once=3)
    assert three["3 merged models"] == 3 * 1024
    assert three["busiest step: realigning"] == 3 * trained
