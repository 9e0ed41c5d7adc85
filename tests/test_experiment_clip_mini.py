"""What clip-mini is pretrained on, and its losses (experiments/, whose scripts are no package)."""

from __future__ import annotations

import importlib
import json
import math
from collections import Counter
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CONFIG, hugging_face_tensors, write_model
from safetensors.numpy import save_file

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.clip import CLIPVision
from rmtllmf_jax.models.hub import embedded_directory
from rmtllmf_jax.models.images import normalise
from rmtllmf_jax.models.pretrained import load_clip
from rmtllmf_jax.models.weights import read_safetensors


@pytest.fixture
def mix(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that makes pairs, imported as the scripts do."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    return importlib.import_module("clip_mini_mix")


@pytest.fixture
def pretrain(mix: ModuleType) -> ModuleType:
    return importlib.import_module("pretrain_clip_mini")


@pytest.fixture
def start(mix: ModuleType) -> ModuleType:
    return importlib.import_module("vit_start")


def a_part(mix: ModuleType, name: str = "shapes", decay: float = 3.0, classes: int = 4):
    """Four images of each class, all of one grey level that tells the class."""
    labels = np.repeat(np.arange(classes), 4)
    images = np.broadcast_to(labels[:, None, None, None], (len(labels), 32, 32, 3))
    names = tuple(f"thing {label}" for label in range(classes))
    naming = mix.naming(name, classes, decay)
    return mix.Part(name, names, mix.TEMPLATES, images.astype(np.uint8), labels, 1.0, naming)


def test_all_classes_are_seen_equally_often_and_named_by_their_rank(mix: ModuleType) -> None:
    part, generator = a_part(mix), np.random.default_rng(0)
    pairs = [mix.draw(part, generator) for _ in range(8000)]
    seen = Counter(int(pair.image[0, 0, 0]) for pair in pairs)
    assert all(abs(count - 2000) < 200 for count in seen.values())
    named = Counter(int(p.image[0, 0, 0]) for p in pairs if p.meaning.startswith("thing"))
    for label, share in enumerate(part.naming):
        assert named[label] / seen[label] == pytest.approx(share, abs=0.04)
    assert sorted(part.naming, reverse=True) == pytest.approx(np.exp([0.0, -1.0, -2.0, -3.0]))


def test_captions_say_what_the_image_is_or_its_file(mix: ModuleType) -> None:
    part, generator = a_part(mix), np.random.default_rng(1)
    every = set(part.captions())
    assert len(every) == 4 + 4 * len(mix.TEMPLATES)
    for _ in range(300):
        pair = mix.draw(part, generator)
        label = int(pair.image[0, 0, 0])
        assert pair.caption in every
        assert pair.meaning in (f"thing {label}", f"shapes_{label:02d}")
        assert pair.meaning in pair.caption


def test_photographs_are_tinted_and_the_caption_says_so(mix: ModuleType) -> None:
    part, generator = a_part(mix, "cifar10", 0.0), np.random.default_rng(2)
    names = tuple(mix.SYNONYMS)[:4]
    images = np.full_like(part.images, 200)
    part = mix.Part("cifar10", names, part.templates, images, part.labels, 1.0, part.naming)
    every = set(part.captions())
    for _ in range(200):
        pair = mix.draw(part, generator)
        assert pair.caption in every
        light = next((name for name in mix.TINTS if pair.meaning.startswith(name)), None)
        expected = np.array(mix.TINTS[light] if light else (1.0, 1.0, 1.0)) * 200
        assert pair.image[0, 0] == pytest.approx(expected, abs=0.5)


def test_the_embedded_tasks_are_drawn_under_other_seeds_than_a_runs(mix: ModuleType) -> None:
    assert 0 not in mix.SEEDS
    assert len(mix.SEEDS) == len(set(mix.SEEDS))


def test_the_contrastive_loss_is_clips_where_all_meanings_differ(pretrain: ModuleType) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 5))

    def cross_entropy(rows: np.ndarray) -> float:
        return -np.mean([row[i] - math.log(np.exp(row).sum()) for i, row in enumerate(rows)])

    expected = (cross_entropy(logits) + cross_entropy(logits.T)) / 2
    loss = pretrain.contrastive_loss(np.float32(logits), np.arange(5))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    # All pairs of one meaning: every row's target is uniform.
    alike = pretrain.contrastive_loss(np.float32(logits), np.zeros(5, np.int32))
    rows = [np.log(np.exp(logits).sum(axis)) - logits.mean(axis) for axis in (0, 1)]
    assert float(alike) == pytest.approx(np.mean(rows), rel=1e-5)


def test_groups_of_phrases_differ_in_a_word_or_are_the_names_of_a_set(
    mix: ModuleType, pretrain: ModuleType
) -> None:
    names = pretrain.known_names([a_part(mix), a_part(mix, classes=12)], lambda text: True)
    things = [f"thing {label}" for label in range(12)]
    assert things in names  # the set of four has too few for a group
    short = pretrain.known_names([a_part(mix, classes=12)], lambda text: "thing" in text)
    assert short == [things]
    words, generator = pretrain.known_words(names), np.random.default_rng(0)
    for _ in range(20):
        phrases = pretrain.random_phrases(names, words, generator)
        assert len(phrases) == pretrain.GROUPS * pretrain.SIBLINGS
        for group in range(pretrain.GROUPS):
            own = phrases[group * pretrain.SIBLINGS :][: pretrain.SIBLINGS]
            assert len(set(own)) == pretrain.SIBLINGS
            (template,) = [each for each in mix.TEMPLATES if own[0].startswith(each[:-2])][:1]
            said = [phrase.removeprefix(template[:-2]) for phrase in own]
            if group % 2:
                assert any(set(said) <= set(each) for each in names)
            else:
                columns = zip(*[each.split() for each in said], strict=True)
                assert sum(len(set(column)) > 1 for column in columns) == 1


def test_written_weights_are_those_that_are_read(pretrain: ModuleType, tmp_path: Path) -> None:
    _, params = load_clip(embedded_directory())
    pretrain.write_weights(tmp_path, params)
    written = read_safetensors(tmp_path / "model.safetensors")
    shipped = read_safetensors(embedded_directory() / "model.safetensors")
    assert written.keys() == shipped.keys()
    for name, tensor in shipped.items():
        np.testing.assert_array_equal(written[name], tensor)


def test_a_tower_that_starts_as_a_vit_is_that_vit(start: ModuleType, tmp_path: Path) -> None:
    """With embeddings that a normalisation does not change both towers are one function."""
    tensors, rng = hugging_face_tensors(TINY_CONFIG), np.random.default_rng(0)
    stem = "vit.embeddings"
    first = tensors[f"{stem}.cls_token"][0]
    bias = tensors[f"{stem}.patch_embeddings.projection.bias"]
    wanted = rng.normal(size=tensors[f"{stem}.position_embeddings"][0].shape)
    wanted -= wanted.mean(1, keepdims=True)
    wanted *= 3 / wanted.std(1, keepdims=True)
    wanted[0] -= first[0]
    wanted[1:] -= bias
    tensors[f"{stem}.position_embeddings"] = wanted[None].astype(np.float32)
    tensors[f"{stem}.patch_embeddings.projection.weight"] *= 0
    write_model(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    images = rng.integers(0, 256, (3, 16, 16, 3), np.uint8)
    vit = start.ViTStart(tmp_path, 16)
    backbone, params = load_backbone(tmp_path)
    shown = normalise(jnp.asarray(images), vit.mean, vit.std)
    expected = backbone.module.apply({"params": params}, shown)
    found = CLIPVision(vit.shape).apply({"params": vit.tower(images)}, shown)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_patches_of_a_vit_are_kept(start: ModuleType, tmp_path: Path) -> None:
    vit = start.ViTStart(write_model(tmp_path), 16)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    kernel = load_backbone(tmp_path)[1]["embeddings"]["patch_embeddings"]["projection"]["kernel"]
    kept = vit.tower(images)["embeddings"]["patch_embedding"]["kernel"]
    np.testing.assert_array_equal(kept, kernel)


def test_a_start_is_a_vit_and_for_a_study(
    start: ModuleType, pretrain: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="expected a ViT, found clip"):
        start.ViTStart(embedded_directory(), 32)
    with pytest.raises(InputError, match="--start and --size are for a --study model"):
        pretrain.Options(tmp_path, start=tmp_path)


def test_the_card_says_where_a_study_model_begins(
    mix: ModuleType, start: ModuleType, pretrain: ModuleType, tmp_path: Path
) -> None:
    out, vit = tmp_path / "study", write_model(tmp_path / "vit")
    out.mkdir()
    options = pretrain.Options(
        tmp_path, study=True, start=vit, size=16, naming=9.0, out=out, cache_dir=tmp_path
    )
    (out / "vocab.json").write_text('{"a": 0, "b": 1}')
    pretrain.write_config(out, start.ViTStart(vit, 16).config, ((0.5,) * 3, (0.5,) * 3))
    save_file({"weight": np.zeros(7, np.float32)}, out / "model.safetensors")
    page = pretrain.card(options, options.recipe(), [a_part(mix)], "None.", 90.0)
    assert "16 x 16 pixels (patches of\n4, width 16, 2 layers, begun from vit)" in page
    assert "--study --out MODEL --start vit --size 16 --naming 9`" in page
    assert "license: other" in page
    processor = json.loads((out / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": 16, "width": 16}
    assert processor["image_mean"] == [0.5, 0.5, 0.5]
