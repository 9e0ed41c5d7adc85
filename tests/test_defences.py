"""What R-MTLLMF reloads and freezes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.defences.protection import (
    PROTECTIONS,
    named,
    parse_protection,
    protection_name,
    repairs_of,
    split,
)
from rmtllmf_jax.defences.repairs import FromBase, Realign, Reload, frozen_leaves, reload_leaves
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import Backbone


def flagged(params: dict, *patterns: str) -> set[str]:
    flags = frozen_leaves(params, patterns) if patterns else frozen_leaves(params)
    return {path for path, flag in leaves_by_path(flags).items() if flag}


def test_class_position_and_patch_embeddings_are_frozen(tiny: tuple[Backbone, dict]):
    assert flagged(tiny[1]) == {
        "embeddings/cls_token",
        "embeddings/position_embeddings",
        "embeddings/patch_embeddings/projection/kernel",
        "embeddings/patch_embeddings/projection/bias",
    }


def test_the_pre_layer_norm_of_clip_is_frozen_too():
    tree = {"embeddings": {"a": jnp.zeros(1)}, "pre_layrnorm": {"scale": jnp.zeros(1)}}
    assert flagged(tree | {"encoder": jnp.zeros(1)}) == {"embeddings/a", "pre_layrnorm/scale"}


def test_flags_are_data_of_the_same_structure(tiny: tuple[Backbone, dict]):
    flags = frozen_leaves(tiny[1])
    assert jax.tree.structure(flags) == jax.tree.structure(tiny[1])
    assert {(flag.shape, str(flag.dtype)) for flag in jax.tree.leaves(flags)} == {((), "bool")}


def test_a_pattern_must_match_the_whole_path(tiny: tuple[Backbone, dict]):
    assert flagged(tiny[1], r".*/1/.*query/bias", "layernorm/.*") == {
        "encoder/layer/1/attention/attention/query/bias",
        "layernorm/scale",
        "layernorm/bias",
    }
    assert flagged({"a": {"b": jnp.zeros(1)}, "b": jnp.zeros(1)}, "b") == {"b"}


def test_patterns_that_match_nothing_are_refused_with_the_leaves(tiny: tuple[Backbone, dict]):
    with pytest.raises(InputError) as caught:
        frozen_leaves(tiny[1], ("embedding", "visual/.*"))
    message = str(caught.value)
    assert "['embedding', 'visual/.*']" in message
    assert "embeddings/cls_token, " in message
    assert message.endswith(", ....")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_reload_takes_flagged_leaves_from_the_base_bitwise(wrap: object):
    base = {"embeddings": jnp.array([1.0, np.nan, -0.0]), "rest": jnp.array([0.1, 0.2])}
    merged = {"embeddings": jnp.array([9.0, np.inf, 3.0]), "rest": jnp.array([np.nan, 0.7])}
    frozen = {"embeddings": jnp.array(True), "rest": jnp.array(False)}
    result = wrap(reload_leaves)(merged, base, frozen)
    expected = {"embeddings": base["embeddings"], "rest": merged["rest"]}
    assert_trees_equal(result, expected)
    assert np.signbit(result["embeddings"][2])


def test_the_halves_of_the_method_and_its_control():
    assert split(PROTECTIONS["none"]) == (True, None, ())
    assert split(PROTECTIONS["freeze"]) == (True, Reload(), ())
    assert split(PROTECTIONS["realign"]) == (True, None, (Realign(),))
    assert split(PROTECTIONS["r-mtllmf"]) == (True, Reload(), (Realign(),))
    assert split(PROTECTIONS["control"]) == (False, Reload(), (Realign(),))
    own = named(control=Realign(learning_rate=0.1))
    assert own["control"] == (FromBase(), Reload(), Realign(learning_rate=0.1))
    assert own | {"control": PROTECTIONS["control"]} == PROTECTIONS
    late = (Realign(), Reload())
    assert split(late) == (True, None, late)  # reloading counts where it stands


def test_protections_are_read_and_written():
    assert parse_protection("r-mtllmf") == "r-mtllmf"
    text = "reload(patterns=('a/.*', 'b+'))+realign(shots=5)"
    repairs = parse_protection(text)
    assert repairs == (Reload(("a/.*", "b+")), Realign(5))
    assert protection_name(repairs) == text
    assert protection_name(()) == "none"
    assert protection_name((Realign(average=0.0),)) == "realign"
    assert parse_protection("realign(average=0.5)") == (Realign(average=0.5),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("r-mtlmf", "unknown protection 'r-mtlmf'. Did you mean 'r-mtllmf'?"),
        ("reload+realing", "unknown defence 'realing'. Did you mean 'realign'?"),
        ("realign(shots=0)", "defence realign: shots must be at least 1, got 0."),
        ("realign(average=2)", "defence realign: average is a share of the steps, 0 to 1, got 2.0"),
        ("reload(patterns=('(',))", "frozen pattern '('"),
    ],
)
def test_what_is_no_protection_is_said(text: str, said: str):
    with pytest.raises(InputError) as error:
        parse_protection(text)
    assert said in str(error.value)


def test_what_is_no_repair_is_refused():
    with pytest.raises(InputError, match="unknown protection 'reload'"):
        repairs_of(("reload",))
    with pytest.raises(InputError, match="expected defences such as"):
        repairs_of((Reload,))  # a class, not a value of it
    with pytest.raises(InputError, match="expected defences such as"):
        repairs_of((3.0,))
