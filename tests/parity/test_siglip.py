"""SigLIP's text tower, its tokens and its zero-shot heads against transformers in torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tiny_siglip import CONTEXT, VOCABULARY, write_fast_tokenizer, write_pieces

from rmtllmf_jax.models.pretrained import load_clip
from rmtllmf_jax.models.siglip_tokens import tokenise_padded
from rmtllmf_jax.models.tokens import load_tokenizer
from rmtllmf_jax.models.zero_shot import zero_shot_head

CLASSES = ("cat", "Forest", "brown fox", "lazy dog", "plane")
TEMPLATES = ("a photo of a {}.", "satellite photo of {}", "a PHOTO of a lazy {}")
TOWER = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
RAGGED_BATCH = 4  # 15 prompts: three batches and a part


def siglip(folder: Path, width: int = 16, **text: Any) -> transformers.SiglipModel:
    """Write a random SigLIP, large enough for texts to differ, with its tokenizer; return it."""
    write_pieces(folder)
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "hidden_size": 16}
    sizes |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.SiglipConfig(
        text_config=TOWER | sizes | text,
        vision_config=TOWER | {"hidden_size": width, "image_size": 8, "patch_size": 4},
    )
    model = transformers.SiglipModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("logit"):
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator))
        model.text_model.embeddings.token_embedding.weight.mul_(5)
        model.logit_scale.fill_(1.2)
        model.logit_bias.fill_(-2.5)
    model.save_pretrained(folder)
    return model


def close(ours: object, theirs: torch.Tensor) -> None:
    expected = theirs.detach().numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(ours) / scale, expected / scale, rtol=0, atol=1e-5)


def pictures() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (16, {}),
        (24, {"projection_size": 24}),  # of SigLIP 2's giant: another width than the text's
        (16, {"hidden_act": "gelu", "layer_norm_eps": 1e-3}),
    ],
)
def test_text_features_and_logits(tmp_path: Path, width: int, text: dict[str, Any]):
    model = siglip(tmp_path, width, **text)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (4, CONTEXT))
    images = pictures()
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(tokens),
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2)),
        )
        features = model.text_model(torch.from_numpy(tokens)).pooler_output
    ours, params = load_clip(tmp_path)
    read = jnp.asarray(tokens)
    close(ours.apply({"params": params}, read, method="text_features"), features)
    logits = jax.jit(ours.apply)({"params": params}, jnp.asarray(images), read)
    assert np.ptp(found.logits_per_image.numpy()) > 0.3
    close(logits, found.logits_per_image)


def test_gradients_of_the_text_tower(tmp_path: Path):
    model = siglip(tmp_path)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (4, CONTEXT))
    model.text_model(torch.from_numpy(tokens)).pooler_output.square().sum().backward()
    ours, params = load_clip(tmp_path)

    def loss(params: Any) -> jax.Array:
        found = ours.apply({"params": params}, jnp.asarray(tokens), method="text_features")
        return jnp.sum(found**2)

    found = jax.grad(loss)(params)["text_model"]
    close(found["head"]["kernel"].T, model.text_model.head.weight.grad)
    table = model.text_model.embeddings.token_embedding.weight.grad
    close(found["embeddings"]["token_embedding"]["embedding"], table)


def test_tokens_are_those_of_the_processor(tmp_path: Path):
    siglip(tmp_path)
    processor = transformers.SiglipProcessor(
        transformers.SiglipImageProcessorPil(), transformers.AutoTokenizer.from_pretrained(tmp_path)
    )
    texts = ["A photo of a CAT!", "the  quick, brown fox.", "", "a-photo of_the lazy dog's (plane)"]
    expected = processor(text=texts, padding="max_length", max_length=CONTEXT, return_tensors="np")
    clip, _ = load_clip(tmp_path)
    found = tokenise_padded(texts, load_tokenizer(tmp_path, clip.shape.text), CONTEXT)
    assert len(np.unique(found)) > 15
    np.testing.assert_array_equal(found, expected["input_ids"])


@pytest.mark.parametrize("saved_by", ["tokenizers", "Siglip2Tokenizer"])
def test_tokens_of_a_tokenizer_json_are_those_of_lowered_texts(tmp_path: Path, saved_by: str):
    """As SigLIP 2 was trained; its own class lowers them, which its file then says, too."""
    siglip(tmp_path)
    (tmp_path / "spiece.model").unlink()
    write_fast_tokenizer(tmp_path)
    if saved_by != "tokenizers":
        vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "▁": 5, "ph": 6}
        for letter in "abcdefghijklmnopqrstuvwxyz":
            vocabulary[letter] = len(vocabulary)
        made = transformers.Siglip2Tokenizer(vocabulary, [("p", "h")], padding_side="right")
        (tmp_path / "tokenizer_config.json").unlink()
        made.save_pretrained(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    clip, _ = load_clip(tmp_path)
    tokenizer = load_tokenizer(tmp_path, clip.shape.text)
    texts, lowered = ["A Photo of A CAT", "dogs"], ["a photo of a cat", "dogs"]
    found = tokenise_padded(texts, tokenizer, CONTEXT)
    expected = theirs(lowered, padding="max_length", max_length=CONTEXT)["input_ids"]
    np.testing.assert_array_equal(found, expected)
    assert (found != 0).sum(axis=1).max() > 5


def test_class_embeddings_and_logits(tmp_path: Path):
    model = siglip(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    images = pictures()
    with torch.no_grad():
        directions = []
        for name in CLASSES:
            prompts = [template.format(name) for template in TEMPLATES]
            inputs = tokenizer(
                prompts, padding="max_length", max_length=CONTEXT, return_tensors="pt"
            )
            text = model.text_model(inputs["input_ids"]).pooler_output
            mean = (text / text.norm(dim=-1, keepdim=True)).mean(dim=0)
            directions.append(mean / mean.norm())
        classes = torch.stack(directions)
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2))
        image = model.vision_model(pixels).pooler_output
        image = image / image.norm(dim=-1, keepdim=True)
        logits = image @ classes.T * model.logit_scale.exp() + model.logit_bias
    clip, params = load_clip(tmp_path)
    tokenizer = load_tokenizer(tmp_path, clip.shape.text)
    head = zero_shot_head(clip, params, tokenizer, CLASSES, TEMPLATES, batch_size=RAGGED_BATCH)
    assert np.ptp(classes.numpy(), axis=0).max() > 0.1
    close(head.kernel.T / np.exp(1.2), classes)
    features = clip.apply({"params": params}, jnp.asarray(images), method="image_features")
    close(head(features), logits)
    # One prompt a class: what SiglipModel itself answers.
    one = zero_shot_head(clip, params, tokenizer, CLASSES, TEMPLATES[:1])
    texts = [TEMPLATES[0].format(name) for name in CLASSES]
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        texts, padding="max_length", max_length=CONTEXT, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(input_ids=inputs["input_ids"], pixel_values=pixels).logits_per_image
    close(one(features), expected)


def test_towers_without_a_common_space_are_refused(tmp_path: Path):
    siglip(tmp_path, 24)
    with pytest.raises(ValueError, match=r"texts have 16 numbers .* and those of images 24"):
        load_clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"no text tower that shares a space with images"):
        load_clip(tmp_path)
