"""Zero-shot heads against transformers' CLIPModel in torch."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tiny_clip import write_tokenizer

from rmtllmf_jax.models.pretrained import load_clip
from rmtllmf_jax.models.tokens import load_tokenizer
from rmtllmf_jax.models.zero_shot import zero_shot_head

CLASSES = ("annual crop land", "forest", "brushland or shrubland", "sea or lake")
TEMPLATES = (
    "a centered satellite photo of {}.",
    "a centered satellite photo of a {}.",
    "a photo of a {} from above, in which there is much more to see",
)
TOWER = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "quick_gelu",
}
RAGGED_BATCH = 5  # 12 prompts: two batches and a part


def model_directory(folder: Path, end_token: int) -> transformers.CLIPModel:
    """Write a random CLIP, large enough for texts to differ, with its tokenizer; return it."""
    write_tokenizer(folder)
    text = {"vocab_size": 520, "max_position_embeddings": 77}
    text |= {"bos_token_id": 518, "eos_token_id": end_token, "pad_token_id": 519}
    config = transformers.CLIPConfig(
        text_config=TOWER | text | {"hidden_size": 16},
        vision_config=TOWER | {"hidden_size": 12, "image_size": 8, "patch_size": 4},
        projection_dim=10,
    )
    model = transformers.CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter.copy_(0.8 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("end_token", [519, 2], ids=["end token by name", "largest token"])
def test_class_embeddings_and_logits(tmp_path: Path, end_token: int):
    model = model_directory(tmp_path, end_token)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        directions = []
        for name in CLASSES:
            prompts = [template.format(name) for template in TEMPLATES]
            inputs = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")
            text = model.text_projection(model.text_model(**inputs).pooler_output)
            mean = (text / text.norm(dim=-1, keepdim=True)).mean(dim=0)
            directions.append(mean / mean.norm())
        classes = torch.stack(directions)
        features = model.vision_model(torch.from_numpy(images.transpose(0, 3, 1, 2))).pooler_output
        image = model.visual_projection(features)
        image = image / image.norm(dim=-1, keepdim=True)
        logits = (model.logit_scale.exp() * image @ classes.T).numpy()
        scale = model.logit_scale.exp().item()

    clip, params = load_clip(tmp_path)
    head = zero_shot_head(
        clip,
        params,
        load_tokenizer(tmp_path, clip.shape.text),
        CLASSES,
        TEMPLATES,
        batch_size=RAGGED_BATCH,
    )
    assert np.ptp(classes.numpy(), axis=0).max() > 0.1
    np.testing.assert_allclose(head.kernel.T / scale, classes.numpy(), rtol=1e-4, atol=1e-6)
    vision = jax.jit(
        lambda p, x: clip.apply({"params": p}, x, method=lambda m, x: m.vision_model(x))
    )
    ours = head(vision(params, jnp.asarray(images)))
    np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-5)
