"""Layers read from the names of leaves."""

from __future__ import annotations

import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.layers import group_by_layer, layer_of, layers_of


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("encoder/layer/3/output/dense/kernel", "encoder/layer/3"),
        ("vision_model/encoder/layers/11/mlp/fc1/kernel", "vision_model/encoder/layers/11"),
        ("model.layers.10.self_attn.q_proj.weight", "model.layers.10"),
        ("transformer.h.0.attn.weight", "transformer.h.0"),
        ("visual.transformer.resblocks.1.ln_1.weight", "visual.transformer.resblocks.1"),
        ("layers_3/fc/kernel", "layers_3"),
        ("Transformer/encoderblock_10/MlpBlock_3/Dense_0/kernel", "Transformer/encoderblock_10"),
        ("transformer/h_3/attn/kernel", "transformer/h_3"),
        ("decoder.block.1.layer.0.SelfAttention.q.weight", "decoder.block.1"),
        ("block.1.layer.0.SelfAttention.q.weight", "block.1"),
        ("encoder.layers.encoder_layer_7.ln_1.weight", "encoder.layers.encoder_layer_7"),
        ("layer_norm_1/scale", "layer_norm_1"),
        ("layernorm_2/scale", "layernorm_2"),
        ("vision_model/embeddings/class_embedding", "vision_model/embeddings"),
        ("vision_model/embeddings/patch_embedding/kernel", "vision_model/embeddings"),
        ("embeddings/cls_token", "embeddings"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("model.norm.weight", "model.norm"),
        ("lm_head.weight", "lm_head"),
        ("layernorm/scale", "layernorm"),
        ("logit_scale", "logit_scale"),
    ],
)
def test_a_leaf_belongs_to_its_block_or_module(path: str, layer: str):
    assert layer_of(path) == layer
    assert layer_of(path, "tensor") == path


def test_layers_come_by_number_whatever_the_order_of_the_leaves():
    paths = ["a/layers/10/x", "norm/scale", "a/layers/2/x", "a/layers/10/y"]
    assert layers_of(paths)["a/layers/10/y"] == "a/layers/10"
    groups = group_by_layer(paths)
    assert groups == {
        "a/layers/2": ["a/layers/2/x"],
        "a/layers/10": ["a/layers/10/x", "a/layers/10/y"],
        "norm": ["norm/scale"],
    }
    assert list(groups) == list(group_by_layer(paths[::-1]))
    assert list(groups) == ["a/layers/2", "a/layers/10", "norm"]
    assert next(iter(group_by_layer(paths, "tensor"))) == "a/layers/2/x"


def test_unknown_granularities_are_refused():
    with pytest.raises(InputError, match=r"unknown granularity 'blok'\. Did you mean 'block'"):
        layer_of("a", "blok")
