"""Checkpoints that do not hold the same tensors: what is adjusted, left out, refused, offered."""

from __future__ import annotations

import json
from collections import ChainMap
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.matching import Parts

Tensors = dict[str, np.ndarray]


def tensors(seed: int, prefix: str = "bert.", labels: int = 0) -> Tensors:
    """Return an encoder of two layers, with a classifier if there are labels."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embeddings.word_embeddings.weight": (7, 4)}
    for layer in range(2):
        shapes[f"{prefix}encoder.layer.{layer}.query.weight"] = (4, 4)
        shapes[f"{prefix}encoder.layer.{layer}.LayerNorm.weight"] = (4,)
    if labels:
        shapes |= {"classifier.weight": (labels, 4), "classifier.bias": (labels,)}
    return {k: random.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def write(folder: Path, content: Tensors, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file(content, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "own"}))
    return folder


def fuse(root: Path, base: Tensors, model: Tensors, **options: Any) -> tuple[Tensors, list[str]]:
    """Return the merge of one model at scale 0.5, and the notes of its card."""
    config = options.pop("config", None)
    paths = [write(root / n, c, config) for n, c in (("base", base), ("one", model))]
    Fuse(base=paths[0], models=(paths[1],), out=root / "out", scale="0.5", **options).run()
    record = json.loads((root / "out/fusion.json").read_text())
    card = (root / "out/README.md").read_text()
    assert all(f"- {note}\n" in card for note in record["notes"])
    found = [load_file(path) for path in (root / "out").glob("*.safetensors")]
    return dict(ChainMap(*found)), record["notes"]


def assert_half(found: Tensors, base: Tensors, model: Tensors, but: tuple[str, ...] = ()) -> None:
    """Check that each tensor is half-way between the two, and the base's where it is not merged."""
    assert sorted(found) == sorted(base)
    for key, value in base.items():
        expected = value if key in but else (value + model[key]) / 2
        np.testing.assert_allclose(found[key], expected, atol=1e-6, err_msg=key)


HEAD = ("classifier.weight", "classifier.bias")


@pytest.mark.parametrize(
    "options",
    [{"from_base": ("classifier.*",)}, {"only": ("bert.*",)}, {"from_base": (".*fier.*",)}],
)
def test_a_head_of_other_width_is_the_bases(tmp_path: Path, options: dict[str, Any]):
    base, model = tensors(0, labels=3), tensors(1, labels=5)
    found, notes = fuse(tmp_path, base, model, **options)
    assert_half(found, base, model, HEAD)
    assert notes == ["not merged but the base's: classifier.* (2 tensors)"]
    record = json.loads((tmp_path / "out/fusion.json").read_text())
    assert sorted(record["not_merged"]) == sorted(HEAD)
    assert {name: tuple(record[name]) for name in options} == options


def test_a_head_of_other_width_is_named_with_the_way_out(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        fuse(tmp_path, tensors(0, labels=3), tensors(1, labels=5))
    lines = str(caught.value).splitlines()
    one, base = tmp_path / "one", tmp_path / "base"
    assert f"  classifier.weight: (5, 4) in {one}, (3, 4) in {base}" in lines
    assert lines[-1] == "  To merge the rest and keep the base's: --from-base 'classifier.*'"


def test_a_head_that_the_base_has_not_is_left_out(tmp_path: Path):
    base, model = tensors(0), tensors(1, labels=5)
    with pytest.raises(InputError, match=r"2 unexpected(.|\n)*--from-base 'classifier.\*'$"):
        fuse(tmp_path / "refused", base, model)
    found, notes = fuse(tmp_path, base, model, from_base=("classifier.*",))
    assert_half(found, base, model)
    assert notes == ["one: classifier.* left out"]


def test_two_heads_are_offered_at_once(tmp_path: Path):
    base = tensors(0) | {"cls.predictions.bias": np.ones(7, np.float32)}
    with pytest.raises(InputError, match=r"--from-base 'classifier.\*' 'cls.\*'$"):
        fuse(tmp_path, base, tensors(1, labels=5))


@pytest.mark.parametrize("option", ["only", "from_base"])
def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path, option: str):
    with pytest.raises(InputError, match=r"--\S+ 'clasifier.\*' matches no tensor.*: classifier"):
        fuse(tmp_path, tensors(0, labels=3), tensors(1, labels=3), **{option: ("clasifier.*",)})
    with pytest.raises(InputError, match=r"--\S+: '\(' is not a regular expression"):
        Parts(**{option: ("(",)})


PREFIXES = ["bert.", "transformer.", "vision_model.", "model.", "base_model.model.", "own."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("of_base", [True, False])
def test_a_prefix_that_one_side_lacks_is_mapped(tmp_path: Path, prefix: str, of_base: bool):
    base, model = (tensors(seed, "", labels=3) for seed in (0, 1))
    with_prefix = {
        f"{prefix}{k}" if k not in HEAD else k: v for k, v in (model, base)[of_base].items()
    }
    pair = (with_prefix, model) if of_base else (base, with_prefix)
    found, notes = fuse(tmp_path, *pair)
    plain = {key.removeprefix(prefix): value for key, value in found.items()}
    assert sorted(found) == sorted(pair[0])
    assert_half(plain, base, model)
    done = "put before" if of_base else "taken off"
    assert notes == [f"one: {prefix} {done} 5 names, as the base has them"]


def test_a_tower_that_fits_twice_is_refused(tmp_path: Path):
    base = tensors(0, "text_model.") | tensors(1, "vision_model.")
    with pytest.raises(InputError, match=r"fit text_model. as well as vision_model. of"):
        fuse(tmp_path, base, tensors(1, ""))


def test_one_tower_is_merged_and_the_other_is_the_bases(tmp_path: Path):
    vision, model = tensors(1, "vision_model."), tensors(2, "vision_model.")
    text = tensors(0, "text_model.")
    with pytest.raises(InputError, match=r"missing(.|\n)*--from-base 'text_model.\*'|--only"):
        fuse(tmp_path / "refused", text | vision, model)
    found, _ = fuse(tmp_path, text | vision, model, only=("vision_model.*",))
    assert_half(found, text | vision, model, tuple(text))


def test_hints_name_the_tower_and_layer_that_are_meant(tmp_path: Path):
    base = tensors(0, "text_model.") | tensors(1, "vision_model.")
    model = {k.replace("1.query", "1.qeury"): v for k, v in base.items()}
    with pytest.raises(InputError) as caught:
        fuse(tmp_path, base, model)
    hints = [line.split() for line in str(caught.value).splitlines() if "did you mean" in line]
    assert len(hints) == 4
    for key, *_, meant in hints:
        assert meant.rstrip("?)").replace("qeury", "query") == key.replace("qeury", "query")


def test_old_names_are_mapped(tmp_path: Path):
    base, model = tensors(0), tensors(1)
    old = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): v for key, v in model.items()}
    found, notes = fuse(tmp_path, base, old)
    assert_half(found, base, model)
    (note,) = notes
    assert note.startswith(
        "one: 2 names as other classes or versions have them: bert.encoder.layer.0"
    )


BUFFERS: Tensors = {
    "bert.embeddings.position_ids": np.arange(5)[None],
    "h.0.attn.bias": np.tril(np.ones((1, 1, 4, 4), np.float32)),
    "h.0.attn.masked_bias": np.array(-1e4, np.float32),
    "rotary_emb.inv_freq": np.ones(3, np.float32),
    "norm.num_batches_tracked": np.array(3),
}


@pytest.mark.parametrize("holder", ["base", "model"])
def test_buffers_may_be_on_one_side(tmp_path: Path, holder: str):
    base, model = tensors(0), tensors(1)
    sides = {"base": base | BUFFERS, "model": base}, {"base": model, "model": model | BUFFERS}
    found, notes = fuse(tmp_path, sides[0][holder], sides[1][holder], dtype="float16")
    (note,) = notes
    if holder == "base":
        assert note.endswith("and 2 more are the base's; they follow from the configuration")
        for key, value in BUFFERS.items():
            np.testing.assert_array_equal(found.pop(key), value, strict=True)
    else:
        assert note.endswith("and 2 more left out, which follow from the configuration")
    assert sorted(found) == sorted(base)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float16)}


def test_buffers_that_differ_are_the_bases(tmp_path: Path):
    base = tensors(0) | BUFFERS
    model = tensors(1) | BUFFERS | {"norm.num_batches_tracked": np.array(9)}
    found, notes = fuse(tmp_path, base, model)
    assert found["norm.num_batches_tracked"] == 3
    assert notes == ["one: norm.num_batches_tracked differ, and are the base's"]


def test_masks_of_infinite_numbers_are_copied(tmp_path: Path):
    mask = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(np.float32)
    base, model = tensors(0) | {"causal": mask}, tensors(1) | {"causal": mask}
    found, _ = fuse(tmp_path / "lata", base, model)
    np.testing.assert_array_equal(found["causal"], mask)
    half, _ = fuse(tmp_path / "half", base, model, dtype="float16")
    np.testing.assert_array_equal(half["causal"], mask.astype(np.float16))
    other = model | {"causal": mask.T.copy()}
    with pytest.raises(InputError, match="causal holds infinite numbers"):
        fuse(tmp_path / "other", base, other)
    nan = base | {"causal": mask * np.nan}
    with pytest.raises(InputError, match="causal holds NaN"):
        fuse(tmp_path / "nan", nan, nan)


WORDS = "bert.embeddings.word_embeddings.weight"
TIED = {"model_type": "own", "tie_word_embeddings": True}


@pytest.mark.parametrize("holder", ["base", "model", "both"])
def test_a_tied_head_may_be_on_one_side(tmp_path: Path, holder: str):
    base, model = tensors(0), tensors(1)
    sides = [
        content | ({"lm_head.weight": content[WORDS].copy()} if holder in (name, "both") else {})
        for name, content in (("base", base), ("model", model))
    ]
    found, notes = fuse(tmp_path, *sides, config=TIED)
    assert_half(found, base, model)
    names = {"base": ["base"], "model": ["one"], "both": ["base", "one"]}[holder]
    said = f"lm_head.weight left out, which is {WORDS} (tied)"
    assert notes == [f"{name}: {said}" for name in names]


def test_a_tied_model_gives_its_embeddings_to_a_free_head(tmp_path: Path):
    base = tensors(0) | {"lm_head.weight": np.ones((7, 4), np.float32)}
    model = tensors(1)
    paths = [write(tmp_path / "base", base, {"tie_word_embeddings": False})]
    paths.append(write(tmp_path / "one", model, TIED))
    Fuse(base=paths[0], models=(paths[1],), out=tmp_path / "out", scale="0.5").run()
    found = load_file(tmp_path / "out/model.safetensors")
    assert_half(found, base, model | {"lm_head.weight": model[WORDS]})


def test_a_head_that_is_free_on_one_side_is_refused(tmp_path: Path):
    free = tensors(1) | {"lm_head.weight": np.ones((7, 4), np.float32)}
    with pytest.raises(InputError, match=r"lm_head.weight(.|\n)*--from-base 'lm_head.\*'"):
        fuse(tmp_path, tensors(0), free, config=TIED)


def test_the_share_that_is_kept_is_told(tmp_path: Path):
    """Few steps of bfloat16 tie: five hundredths asked for, what was kept is counted here."""
    random = np.random.default_rng(0)
    kind = jnp.bfloat16
    base = {name: np.ones((40, 50), kind) for name in ("a.weight", "b.weight")}
    steps = {name: random.integers(-2, 3, (40, 50)) for name in base}
    model = {name: (1 + 2.0**-7 * steps[name]).astype(kind) for name in base}
    found, _ = fuse(tmp_path, base, model, method="ties(density=0.05)", shard_size="4KB")
    kept = np.mean([found[name] != 1 for name in sorted(found)])
    record = json.loads((tmp_path / "out/fusion.json").read_text())
    assert record["kept"] == {"one": pytest.approx(kept)}
    assert kept > 0.3
    card = (tmp_path / "out/README.md").read_text()
    assert f"| share of the task vector of one that is kept | {kept:.4f} |" in card


@pytest.mark.parametrize("variance", [1.0, 0.1])
def test_a_variance_never_becomes_negative(tmp_path: Path, variance: float):
    names = ("norm.running_mean", "norm.running_var")
    base = dict.fromkeys(names, np.full(3, 1.0, np.float32))
    model = dict.fromkeys(names, np.full(3, variance, np.float32))
    if variance < 1:
        with pytest.raises(InputError, match=r"norm.running_var: .* negative .*--from-base '.*run"):
            fuse(tmp_path, base, model, method="task_arithmetic(weights=(4,))")
    else:
        _, (note,) = fuse(tmp_path, base, model)
        assert note.startswith("running statistics are merged as weights are (1 running_var)")


def test_copies_that_are_always_tied_need_no_configuration(tmp_path: Path):
    """T5 1.1 has a free head, but its encoder's embeddings are the shared ones."""
    shared = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    model = {"shared.weight": shared, "lm_head.weight": 2 * shared}
    base = model | {"encoder.embed_tokens.weight": shared}
    config = {"model_type": "own", "tie_word_embeddings": False}
    found, notes = fuse(tmp_path, base, model, config=config)
    assert sorted(found) == ["lm_head.weight", "shared.weight"]
    assert notes == ["base: encoder.embed_tokens.weight left out, which is shared.weight (tied)"]


def test_a_pattern_matches_the_whole_of_a_name():
    parts = Parts(from_base=("head",), only=("h.*",))
    keys = ("head", "head.weight", "body")
    assert [parts.merges(key) for key in keys] == [False, True, False]
