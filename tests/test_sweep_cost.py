"""What models and sweeps take: parameters, operations and memory, by hand and as XLA counts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from cost_fixtures import B16, SMALL, TINY, TINY_CLIP, TINY_TEXT, backbone_of, plain

from rmtllmf_jax import fusion
from rmtllmf_jax.models.shapes import ViTShape
from rmtllmf_jax.sweep.cost import (
    Costs,
    clip_bytes,
    lora_costs,
    peak_bytes,
    text_costs,
    tower_costs,
)
from rmtllmf_jax.sweep.memory import sweep_memory, training_memory
from rmtllmf_jax.sweep.programs import Merges, receive_and_merge
from rmtllmf_jax.training.lora import Lora
from rmtllmf_jax.training.parallel import value_and_gradient
from rmtllmf_jax.training.recipes import Recipe


def lowered(costs: Costs, batch: int, training: bool) -> jax.stages.Lowered:
    function = jax.grad(lambda p, x: costs.function(p, x).sum()) if training else costs.function
    inputs = jax.ShapeDtypeStruct((batch, *costs.example.shape), costs.example.dtype)
    return jax.jit(function).lower(costs.params, inputs)


# Parameters and operations


def test_parameters_of_a_tiny_tower_by_hand():
    block = 4 * (4 * 4 + 4) + (4 * 8 + 8) + (8 * 4 + 4) + 2 * 8
    patches, token, positions, last = 2 * 2 * 3 * 4, 4, 5 * 4, 8
    assert tower_costs(plain(TINY)).parameters == patches + 4 + token + positions + block + last
    clip = tower_costs(backbone_of(TINY))
    assert clip.parameters == patches + token + positions + 8 + block + last
    assert (clip.bytes, clip.width) == (4 * 260, 4)
    assert clip_bytes(TINY_CLIP) == 4 * (260 + (10 + 3) * 4 + block + 8 + 4 * 3 + 4 * 3 + 1)


def test_operations_of_a_tiny_tower_by_hand():
    embedding = 2 * 4 * 12 * 4
    block = 4 * 2 * 5 * 4 * 4 + 2 * 2 * 5 * 5 * 4 + 2 * 2 * 5 * 4 * 8
    # Keys and values of all five tokens, the rest of the class token alone.
    last = 2 * 2 * 5 * 4 * 4 + 2 * 2 * 4 * 4 + 2 * 2 * 5 * 4 + 2 * 2 * 4 * 8
    two = tower_costs(backbone_of(replace(TINY, depth=2)))
    assert two.flops() == embedding + block + last
    # No gradient for the images.
    assert two.flops(training=True) == 2 * embedding + 3 * (block + last)
    text = 4 * 2 * 3 * 4 * 4 + 2 * 2 * 3 * 3 * 4 + 2 * 2 * 3 * 4 * 8
    assert text_costs(TINY_TEXT).flops() == text


def test_clip_vit_b_16_has_the_published_parameters_and_xlas_operations():
    costs = tower_costs(backbone_of(B16.vision))
    assert costs.parameters == 85_799_424
    assert clip_bytes(B16) == 4 * 149_620_737
    for training in (False, True):
        counted = lowered(costs, 1, training).cost_analysis()["flops"]
        assert costs.flops(training=training) == pytest.approx(counted, rel=0.005)
    again = tower_costs(backbone_of(replace(SMALL, remat=True)))
    counted = lowered(again, 1, True).cost_analysis()["flops"]
    assert again.flops(training=True) == pytest.approx(counted, rel=0.05)


def test_loops_and_branches_are_counted():
    def function(matrix: Any, x: Any) -> Any:
        x, _ = jax.lax.scan(lambda x, _: (x @ matrix, None), x, length=3)
        branches = [lambda x: x, lambda x: x @ matrix, lambda x: x @ matrix @ matrix]
        return jax.lax.switch(x[0, 0].astype(int), branches, x)

    matrix, row = jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32)
    assert Costs(function, matrix, row).flops() == (3 + 2) * 2 * 4 * 4


# Memory


def test_an_array_lives_until_it_is_read_last():
    def function(x: Any) -> Any:
        wide = jnp.outer(x, x)  # 64 numbers
        return (wide @ x) * 2

    jaxpr = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((8,), jnp.float32)).jaxpr
    assert 4 * 64 < peak_bytes(jaxpr) <= 4 * (64 + 8 + 8)
    pair = jax.make_jaxpr(lambda x: (x + 1, (x + 2).sum()))(jnp.zeros(100)).jaxpr
    assert peak_bytes(pair) == 800 + 4


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
        pytest.param(B16.vision, 128, id="B16", marks=pytest.mark.slow),
    ],
)
def test_training_memory_is_what_xla_allocates(shape: ViTShape, batch: int):
    costs = tower_costs(backbone_of(shape))
    memory = lowered(costs, batch, True).compile().memory_analysis()
    allocated = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert 0.9 < costs.temporaries(batch, training=True) / allocated < 1.5


def test_memory_of_a_lora_is_what_xla_allocates():
    """Moments and gradients are the factors'; the base is held once."""
    costs, recipe = tower_costs(backbone_of(SMALL)), Recipe(3, 16, 1e-5, 0.1)
    adapted = lora_costs(costs, Lora(4, targets=("q_proj", "v_proj")))
    factors = 4 * 2 * SMALL.depth * 2 * 4 * SMALL.width
    found = training_memory(adapted, recipe)
    assert found["base model"] == costs.bytes
    assert found["factors and moments"] == pytest.approx(3 * factors, rel=0.01)
    assert adapted.flops(training=True) < 0.75 * costs.flops(training=True)

    gradient = jax.grad(lambda *given: adapted.function(*given).sum())
    images = jax.ShapeDtypeStruct((16, *costs.example.shape), costs.example.dtype)
    program = jax.jit(gradient).lower(adapted.params, images, costs.params)
    memory = program.compile().memory_analysis()
    allocated = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert 0.9 < found["gradients and activations, batch 16"] / allocated < 1.5


def test_memory_of_a_batch_in_parts_is_what_xla_allocates():
    """One part's activations, and the sum of the gradients beside them."""
    costs, recipe = tower_costs(backbone_of(SMALL)), Recipe(3, 64, 1e-5, 0.1)

    def program(params: Any, images: Any) -> Any:
        def loss(p: Any, x: Any) -> Any:
            return costs.function(p, x).sum()

        return value_and_gradient(loss, params, images, 8)

    images = jax.ShapeDtypeStruct((64, *costs.example.shape), costs.example.dtype)
    memory = jax.jit(program).lower(costs.params, images).compile().memory_analysis()
    allocated = memory.temp_size_in_bytes + memory.output_size_in_bytes
    parts = training_memory(costs, recipe, parts=8)
    found = parts["sum of gradients"] + parts["gradients and activations, batch 8"]
    assert 0.9 < found / allocated < 1.5
    assert sum(parts.values()) < 0.4 * sum(training_memory(costs, recipe).values())
    # A share of four devices is what a part of four is, but for the sum that parts have.
    over = training_memory(costs, recipe, devices=4, parts=2)
    assert over == parts
    alone = training_memory(costs, recipe, devices=8)
    assert alone == {name: size for name, size in parts.items() if name != "sum of gradients"}


def test_merging_memory_is_what_xla_allocates():
    users = 8
    costs = tower_costs(backbone_of(SMALL))
    params = costs.params
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((users, *x.shape), x.dtype), params)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    weights = jax.ShapeDtypeStruct((users,), jnp.float32)
    factor = jax.ShapeDtypeStruct((users, users), jnp.float32)
    flag = jax.ShapeDtypeStruct((), bool)
    merge = Merges(weights, factor, number, jax.random.key(0), flag)
    program = jax.jit(partial(receive_and_merge, rule=fusion.TaskArithmetic()))
    memory = program.lower(merge, params, stacked, stacked).compile().memory_analysis()
    allocated = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    )
    parts = sweep_memory(costs, users, eval_batch=1, test_bytes=0, realign=None, shot_bytes=0)
    names = ("8 task vectors", "noise of a draw", "merged model")  # which is a vector then
    assert sum(parts[name] for name in names) == pytest.approx(allocated, rel=0.05)


def test_rematerialisation_keeps_one_block_and_the_inputs_of_all():
    deep = replace(SMALL, depth=12)
    whole, kept = (
        tower_costs(backbone_of(each)).temporaries(64, training=True)
        for each in (deep, replace(deep, remat=True))
    )
    assert 64 * 11 * 65 * 128 * 4 < kept < 0.3 * whole
    half = tower_costs(backbone_of(replace(deep, dtype="bfloat16")))
    assert half.temporaries(64, training=True) < 0.75 * whole


def test_sweep_memory_holds_the_busiest_step_alone():
    tiny, realign = tower_costs(plain(TINY)), Recipe(3, 3, 1e-5, 0.1)
    common: dict[str, Any] = {"eval_batch": 16, "test_bytes": 7, "shot_bytes": 5}
    quiet = sweep_memory(tiny, 1, realign=None, **common)
    assert list(quiet.values())[:6] == [1024, 1024, 1024, 1024, 7, 5]
    assert quiet["busiest step: evaluating"] == tiny.temporaries(16, training=False)
    training = training_memory(tiny, realign)
    assert training["base model"] == 1024
    assert training["parameters and moments"] == 3 * 1024 + 2 * 4  # and two counts of steps
    activations = tiny.temporaries(3, training=True)
    assert training["gradients and activations, batch 3"] == activations
    trained = sum(training.values()) - 1024
    many = sweep_memory(tiny, 64, realign=None, **common)
    assert many["busiest step: the cosines"] == 1024 * 64
    three = sweep_memory(tiny, 2, realign=realign, **common, cells_at_once=3)
    assert three["3 merged models"] == 3 * 1024
    assert three["busiest step: realigning"] == 3 * trained
