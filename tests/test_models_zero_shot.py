"""Prompts, tokens and the zero-shot heads made of them, with a tiny vocabulary and a tiny CLIP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tiny_clip import write_tokenizer
from transformers import CLIPTokenizer

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models import zero_shot
from rmtllmf_jax.models.clip import CLIP
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.shapes import CLIPShape, TextShape, ViTShape
from rmtllmf_jax.models.tokens import fill_templates, load_tokenizer, tokenise
from rmtllmf_jax.models.zero_shot import (
    cached_zero_shot_head,
    class_embeddings,
    load_head,
    save_head,
    zero_shot_head,
)

CLASSES = ("cat", "dog", "photo")
TEMPLATES = ("a photo of a {}.", "a {} in a photo.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def text_shape(**changes: Any) -> TextShape:
    sizes = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 32, "activation": "quick_gelu"}
    own = {"vocabulary": 520, "positions": 40, "end_token": 519, "layer_norm_eps": 1e-5}
    return TextShape(**(sizes | own | changes))


@pytest.fixture(scope="module")
def clip() -> CLIP:
    vision = ViTShape(
        width=12,
        depth=1,
        heads=2,
        mlp_width=16,
        activation="quick_gelu",
        layer_norm_eps=1e-5,
        image_size=8,
        patch_size=4,
    )
    return CLIP(CLIPShape(vision, text_shape(), 10))


@pytest.fixture(scope="module")
def params(clip: CLIP) -> dict:
    """Random parameters, large enough for the text to matter."""
    images, tokens = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 40), jnp.int32)
    shapes = jax.eval_shape(clip.init, jax.random.key(0), images, tokens)["params"]
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.3, x.shape), x.dtype), shapes)


# Prompts


def test_prompts_come_class_by_class():
    prompts = fill_templates(("cat", "dog"), ("a {}.", "the {}"))
    assert prompts == ["a cat.", "the cat", "a dog.", "the dog"]
    # Braces of class names stand for themselves.
    assert fill_templates(("{}", "{0}"), ("a {} {x}",)) == ["a {} {x}", "a {0} {x}"]


@pytest.mark.parametrize(("template", "times"), [("a photo", 0), ("{} or {}", 2), ("a {c}", 0)])
def test_a_template_without_exactly_one_place_is_refused(template: str, times: int):
    with pytest.raises(InputError) as error:
        fill_templates(CLASSES, ("a {}", template))
    assert f"the template {template!r} holds '{{}}' {times} times" in str(error.value)


@pytest.mark.parametrize(("classes", "templates"), [((), TEMPLATES), (CLASSES, ())])
def test_a_head_of_nothing_is_refused(classes: tuple, templates: tuple):
    with pytest.raises(InputError, match="need classes and templates; got"):
        fill_templates(classes, templates)


# Tokens


def test_tokens_are_those_of_clip_s_tokenizer(folder: Path, tokenizer: Any):
    texts = ["a photo of a cat.", "  A   CAT ", "", "naïve café 東京, 12 cats' tails!"]
    reference = CLIPTokenizer.from_pretrained(str(folder))
    expected = reference(texts, padding="max_length", max_length=60)["input_ids"]
    np.testing.assert_array_equal(tokenise(texts, tokenizer, 60), expected)


def test_a_text_that_is_too_long_is_refused(tokenizer: Any):
    with pytest.raises(InputError, match=r"'cat cat cat' has 5 tokens.*takes at most 4"):
        tokenise(["cat", "cat cat cat"], tokenizer, 4)


def test_truncation_inside_the_tokenizer_s_file_is_not_silent(tmp_path: Path, folder: Path):
    reference = CLIPTokenizer.from_pretrained(str(folder))
    reference.backend_tokenizer.enable_truncation(4)
    reference.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has 5 tokens"):
        tokenise(["cat cat cat"], load_tokenizer(tmp_path), 4)


def test_a_text_that_the_vocabulary_cannot_spell_is_refused(tmp_path: Path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, alphabet="photcaf"))
    tokenise(["a photo"], tokenizer, 8)
    with pytest.raises(InputError, match=r"'a dog'.*characters that the vocabulary lacks"):
        tokenise(["a dog"], tokenizer, 8)


def test_one_file_is_as_good_as_two(tmp_path: Path, folder: Path, tokenizer: Any):
    CLIPTokenizer.from_pretrained(str(folder)).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    assert not (tmp_path / "vocab.json").exists()
    texts = ["a photo of a cat.", "dogs"]
    np.testing.assert_array_equal(
        tokenise(texts, load_tokenizer(tmp_path), 20), tokenise(texts, tokenizer, 20)
    )


@pytest.mark.parametrize(
    ("kept", "message"),
    [((), "is vocab.json and merges.txt;"), (("vocab.json",), "is merges.txt;")],
)
def test_missing_tokenizer_files_are_named(tmp_path: Path, kept: tuple[str, ...], message: str):
    write_tokenizer(tmp_path)
    for name in {"vocab.json", "merges.txt"} - set(kept):
        (tmp_path / name).unlink()
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: no tokenizer: tokenizer.json is missing")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{"), ("tokenizer.json", "{}"), ("merges.txt", "q z\n")],
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, name: str, content: str):
    write_tokenizer(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="its tokenizer cannot be read") as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("end_token", [519, 2])
def test_a_tokenizer_that_fits_the_text_tower(folder: Path, end_token: int):
    assert len(load_tokenizer(folder, text_shape(end_token=end_token))) == 520


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": 519}, "has 520 tokens, but text_config.vocab_size of the model is 519"),
        ({"end_token": 7}, "ends texts with token 519 .*reads the text's feature at token 7"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(folder: Path, changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder, text_shape(**changes))


# Class embeddings, with an encoder whose embeddings can be written down


def test_embeddings_are_normalised_averaged_and_normalised():
    table = jnp.asarray([[3.0, 0.0], [0.0, 5.0], [-2.0, 0.0], [6.0, 8.0]])
    tokens = np.array([[[0], [1]], [[2], [2]], [[0], [3]]])
    found = class_embeddings(lambda x: table[x[:, 0]], tokens)
    root = np.sqrt(0.5)
    expected = [[root, root], [-1, 0], [1.6 / np.sqrt(3.2), 0.8 / np.sqrt(3.2)]]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_the_text_tower_sees_one_batch_size():
    sizes = []

    def encode(tokens: jax.Array) -> jax.Array:
        sizes.append(tokens.shape)
        return jnp.stack([tokens[:, 0], jnp.ones(len(tokens))], axis=1)

    tokens = np.arange(7 * 2 * 3).reshape(7, 2, 3)
    found = class_embeddings(encode, tokens, batch_size=4)
    assert sizes == [(4, 3)] * 4
    np.testing.assert_allclose(found, class_embeddings(encode, tokens, batch_size=1), rtol=1e-6)


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_embeddings_without_a_direction_are_refused(bad: float):
    with pytest.raises(InputError, match="zero or not finite"):
        class_embeddings(lambda x: jnp.full((len(x), 3), bad), np.zeros((1, 1, 1), int))


# Heads of a tiny CLIP


def test_logits_of_the_head_are_those_of_clip(clip: CLIP, params: dict, tokenizer: Any):
    head = zero_shot_head(clip, params, tokenizer, CLASSES, TEMPLATES[:1])
    images = jax.random.normal(jax.random.key(1), (5, 8, 8, 3))
    prompts = [TEMPLATES[0].replace("{}", name) for name in CLASSES]
    tokens = tokenise(prompts, tokenizer, clip.shape.text.positions)

    @jax.jit
    def both(params: dict) -> tuple[jax.Array, jax.Array]:
        features = clip.apply({"params": params}, images, method=lambda m, x: m.vision_model(x))
        return features, clip.apply({"params": params}, images, jnp.asarray(tokens))

    features, expected = both(params)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(head(features), expected, rtol=1e-4, atol=1e-5)
    assert (head.kernel.shape, head.bias.shape) == ((10, 3), (3,))


def test_the_head_does_not_depend_on_what_the_model_computes_in(
    clip: CLIP, params: dict, tokenizer: Any
):
    fast = CLIP(replace(clip.shape, text=text_shape(dtype="bfloat16", remat=True)))
    heads = [zero_shot_head(m, params, tokenizer, CLASSES, TEMPLATES) for m in (clip, fast)]
    assert_trees_equal(*heads)


def test_a_tokenizer_of_another_model_makes_no_head(clip: CLIP, params: dict, tmp_path: Path):
    other = load_tokenizer(write_tokenizer(tmp_path, alphabet="photcadg."))
    with pytest.raises(InputError, match=r"has 26 tokens, but .* of the model is 520") as error:
        zero_shot_head(clip, params, other, CLASSES, TEMPLATES)
    assert str(tmp_path) in str(error.value)


def test_a_head_is_made_once(
    clip: CLIP, params: dict, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, path = cached_zero_shot_head(tmp_path, clip, params, tokenizer, CLASSES, TEMPLATES)
    assert_trees_equal(made, zero_shot_head(clip, params, tokenizer, CLASSES, TEMPLATES))
    monkeypatch.setattr(zero_shot, "zero_shot_head", None)
    again, same = cached_zero_shot_head(tmp_path, clip, params, tokenizer, CLASSES, TEMPLATES)
    assert_trees_equal(again, made)
    assert [same, path] == [path, *tmp_path.iterdir()]
    with safe_open(path, "np") as file:
        assert json.loads(file.metadata()["head"])["classes"] == list(CLASSES)


def test_another_content_is_another_file(
    clip: CLIP, params: dict, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    head = Head(jnp.zeros((10, 3)), jnp.zeros(3), jnp.zeros((12, 10)))
    monkeypatch.setattr(zero_shot, "zero_shot_head", lambda *_, **__: head)
    (tmp_path / "tokenizer").mkdir()
    other = load_tokenizer(write_tokenizer(tmp_path / "tokenizer"))
    other.backend_tokenizer.normalizer = None  # capitals are other tokens now
    scaled = params | {"logit_scale": params["logit_scale"] + 1}
    eps = CLIP(replace(clip.shape, text=text_shape(layer_norm_eps=1e-6)))
    fast = CLIP(replace(clip.shape, text=text_shape(dtype="bfloat16")))
    vision = params | {"vision_model": jax.tree.map(jnp.zeros_like, params["vision_model"])}
    capitals = ("a Photo {}",)
    calls = [
        (clip, params, tokenizer, CLASSES, capitals),
        (clip, params, other, CLASSES, capitals),
        (clip, scaled, tokenizer, CLASSES, capitals),
        (eps, params, tokenizer, CLASSES, capitals),
        (clip, params, tokenizer, CLASSES[::-1], capitals),
        (clip, params, tokenizer, CLASSES, TEMPLATES),
        (clip, vision, tokenizer, CLASSES, capitals),  # no part of the head: the first file
        (fast, params, tokenizer, CLASSES, capitals),
    ]
    for call in calls:
        cached_zero_shot_head(tmp_path / "heads", *call)
    assert len(list((tmp_path / "heads").iterdir())) == 6


# Heads on disk


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Head]:
    random = np.random.default_rng(0)
    leaves = (random.normal(size=shape).astype(np.float32) for shape in ((5, 3), (3,), (4, 5)))
    head, path = Head(*map(jnp.asarray, leaves)), tmp_path / "head.safetensors"
    save_head(path, head, CLASSES)
    return path, head


def test_a_head_comes_back_with_its_classes(saved: tuple[Path, Head]):
    path, head = saved
    assert_trees_equal(load_head(path, CLASSES), head)
    plain = Head(jnp.ones((5, 3)), jnp.zeros(3))
    save_head(path, plain, CLASSES)
    assert_trees_equal(load_head(path, CLASSES), plain)


def rename(path: Path) -> None:
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["head"]) | {"classes": CLASSES[::-1]}
    save_file(load_file(path), path, {"head": json.dumps(about)})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "not a readable.*Delete it, and"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "a damaged head"),
        (lambda path: save_file({"kernel": np.zeros((5, 3), np.float32)}, path), "a damaged head"),
        (rename, "a damaged head"),
    ],
)
def test_a_damaged_head_is_named(saved: tuple[Path, Head], damage: Any, says: str):
    path, _ = saved
    damage(path)
    with pytest.raises(InputError, match=f"{path}: .*{says}"):
        load_head(path, CLASSES)


def test_a_head_of_other_classes_is_refused(saved: tuple[Path, Head]):
    path, head = saved
    with pytest.raises(InputError, match=f"{path}: the head has 3 classes, but 2 are expected"):
        load_head(path, CLASSES[:2])
    with pytest.raises(InputError, match="the head's class 1 is 'dog', but 'cow' is expected"):
        load_head(path, ("cat", "cow", "photo"))
    with pytest.raises(InputError, match="the head has 3 classes, but 1 are expected"):
        save_head(path, head, ("cat",))
