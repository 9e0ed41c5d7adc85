"""The embedded models through transformers in torch: same features, same texts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from rmtllmf_jax.models.generation import generate
from rmtllmf_jax.models.hub import embedded_directory
from rmtllmf_jax.models.pretrained import load_clip, load_decoder
from rmtllmf_jax.models.text import end_tokens, read_tokenizer
from rmtllmf_jax.models.tokens import load_tokenizer, tokenise


def test_transformers_opens_it_and_agrees():
    folder = embedded_directory()
    clip, params = load_clip(folder)
    texts = ["a photo of a cat", "an image of a red fire truck", "a photo of a letter z"]
    tokens = tokenise(texts, load_tokenizer(folder), clip.shape.text.positions)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    ours = clip.apply({"params": params}, jnp.asarray(images), jnp.asarray(tokens))
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model(
            input_ids=torch.from_numpy(tokens.astype(np.int64)),
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        ).logits_per_image
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), rtol=1e-4, atol=1e-4)


def test_transformers_opens_the_language_model_and_says_the_same():
    folder = embedded_directory("llama-mini")
    decoder, params = load_decoder(folder)
    tokenizer = read_tokenizer(folder, decoder.shape)
    prompt = "Lena has 18 apples and buys 13 more. How many now?"
    tokens = tokenizer(prompt)["input_ids"]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == prompt
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert len(tokenizer) == model.config.vocab_size
    ids = torch.tensor([tokens])
    with torch.no_grad():
        theirs = model(ids).logits.numpy()
        said = model.generate(ids, max_new_tokens=40, do_sample=False)[0, len(tokens) :].tolist()
    ours = decoder.apply({"params": params}, jnp.asarray([tokens]))
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-4, atol=1e-4)
    ends = end_tokens(tokenizer)
    (added,) = generate(decoder, params, [tokens], 40, end=ends)
    assert added == [token for token in said if token not in ends]
