"""Layers read from the names of leaves."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.fusion import AdaMerging, Lata, LayerWise, parse_method
from rmtllmf_jax.fusion.layers import Layers, group_by_layer, layer_of, layers_of

UNIT = "down_blocks.0.attentions.1.transformer_blocks.0"
MIDDLE = "mid_block/attentions_0/transformer_blocks_0"


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
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight", UNIT),
        ("down_blocks.0.attentions.1.proj_in.weight", "down_blocks.0.attentions.1"),
        ("unet.up_blocks.1.resnets.2.conv1.weight", "unet.up_blocks.1.resnets.2"),
        ("mid_block/attentions_0/transformer_blocks_0/ff/kernel", MIDDLE),
        ("encoder.down_blocks.3.downsamplers.0.conv.bias", "encoder.down_blocks.3.downsamplers.0"),
        ("conv_in.weight", "conv_in"),
        ("single_transformer_blocks.12.attn.to_q.weight", "single_transformer_blocks.12"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("backbone.layer4.2.downsample.0.weight", "backbone.layer4.2"),
        ("resnet.encoder.stages.0.layers.1.layer.0.weight", "resnet.encoder.stages.0.layers.1"),
        ("features.1.0.attn.qkv.weight", "features.1.0"),
        ("features.28.weight", "features.28"),
        ("features.denseblock1.denselayer12.norm1.weight", "features.denseblock1.denselayer12"),
        ("stages.2.blocks.1.conv_dw.weight", "stages.2.blocks.1"),
        ("embed/embedding/value", "embed"),
        ("embeddings/position/value", "embeddings"),
        ("layers/3/attention/value/kernel/value", "layers/3"),
        ("attention/value/kernel", "attention/value"),
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


PATHS = ["stem/kernel", "stage1/unit0/kernel", "stage1/unit1/kernel", "stage2/unit0/kernel"]


def test_an_expression_of_ones_own():
    """The whole match, or its first group; what is not matched goes by module."""
    for pattern in (r"stage\d+", r"(stage\d+)/unit"):
        groups = group_by_layer(PATHS, Layers(pattern))
        assert groups == {"stage1": PATHS[1:3], "stage2": PATHS[3:], "stem": PATHS[:1]}
    with pytest.raises(InputError, match=r"'stufe' matches no leaf from the start .*stem/kernel"):
        layers_of(PATHS, Layers("stufe"))
    with pytest.raises(InputError, match="is not a regular expression"):
        Layers("stage(")


@pytest.mark.parametrize("name", ["lata", "layer_wise", "adamerging"])
def test_an_expression_is_written_and_read_as_an_option(name: str):
    chosen = Layers(r"stage\d+")
    kind = {"lata": Lata, "layer_wise": LayerWise, "adamerging": AdaMerging}[name]
    more = {"default": 1.0} if name == "layer_wise" else {}
    method = kind(granularity=chosen, **more)
    assert parse_method(described(method)) == method
    options = "default=1.0, " if more else ""
    assert parse_method(rf"{name}({options}granularity=layers(pattern='stage\d+'))") == method
    assert parse_method(f"{name}({options}granularity=tensor)").granularity == "tensor"
    several = parse_method(rf"{name}({options}granularity=[block, layers('stage\d+')])")
    assert [each.granularity for each in several.methods] == ["block", chosen]
    with pytest.raises(InputError, match="granularity"):
        parse_method(f"{name}({options}granularity=blok)")


def test_methods_weigh_the_layers_of_an_expression():
    stacked = {path: jnp.array([[1.0], [10.0]]) for path in PATHS}
    method = LayerWise({"stage1": 0.0, "stage2": 2.0}, 1.0, Layers(r"stage\d+"))
    assert [float(method(stacked)[path][0]) for path in PATHS] == [11.0, 0.0, 0.0, 22.0]
    merged = Lata(granularity=Layers(r"stage\d+"))(stacked)  # ties by name: stage1 counts nothing
    assert [float(merged[path][0]) for path in PATHS] == [11.0, 0.0, 0.0, 5.5]
