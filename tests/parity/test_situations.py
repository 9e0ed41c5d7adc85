"""Real-life checkpoints as transformers and peft write them: merged, and opened in transformers.

Each situation is a row of docs/checkpoints.md. What is merged is compared to ``base + 0.5 * sum``
of the tensors that transformers itself loads from the same directories.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file

from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.common.errors import InputError

torch = pytest.importorskip("torch", reason="needs torch: pip install 'rmtllmf-jax[parity]'")
import transformers as hf  # noqa: E402
from zoo import (  # noqa: E402
    IMAGES,
    TINY,
    Case,
    Tensors,
    Zoo,
    bert,
    clip,
    gpt2,
    llama,
    tokenizer,
    vit,
    vocabularies,
)

SITUATIONS: dict[tuple[str, str], Callable[[Zoo], Case]] = {}


def situation(architecture: str, what: str) -> Callable[[Callable[[Zoo], Case]], Any]:
    def enter(build: Callable[[Zoo], Case]) -> Callable[[Zoo], Case]:
        assert (architecture, what) not in SITUATIONS
        SITUATIONS[architecture, what] = build
        return build

    return enter


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{prefix}{key}": value for key, value in tensors.items()}


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(old, new, key): value for key, value in tensors.items()}


def more(**tensors: np.ndarray) -> Callable[[Tensors], Tensors]:
    named = {key.replace("__", "."): value for key, value in tensors.items()}
    return lambda there: there | named


def copied(**names: str) -> Callable[[Tensors], Tensors]:
    pairs = {new.replace("__", "."): old for new, old in names.items()}
    return lambda there: there | {new: there[old].copy() for new, old in pairs.items()}


# Layouts


@situation("Llama", "one file each")
def plain(zoo: Zoo) -> Case:
    return Case(*zoo.three(hf.LlamaForCausalLM, llama()), hf.LlamaForCausalLM)


@situation("Llama", "a model in shards")
def shards(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.LlamaForCausalLM, llama())
    three = zoo.save("three", hf.LlamaForCausalLM, llama(), max_shard_size="2KB")
    assert (three / "model.safetensors.index.json").is_file()
    return Case(base, [*models, three], hf.LlamaForCausalLM)


@situation("Llama", "models in bfloat16, base in float32")
def precision(zoo: Zoo) -> Case:
    base, _ = zoo.three(hf.LlamaForCausalLM, llama())
    kind = hf.LlamaForCausalLM
    halves = [zoo.save(name, kind, llama(), dtype=torch.bfloat16) for name in ("a", "b")]
    return Case(base, halves, kind)


@situation("Llama", "hub ids of a cache of symbolic links")
def hub_cache(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.LlamaForCausalLM, llama())
    for folder in (base, *models):
        root = zoo.root / "hub" / f"models--owner--{folder.name}"
        snapshot = root / "snapshots" / ("a" * 40)
        for made in (snapshot, root / "refs", root / "blobs"):
            made.mkdir(parents=True)
        (root / "refs/main").write_text("a" * 40)
        for number, file in enumerate(sorted(folder.iterdir())):
            shutil.copyfile(file, root / "blobs" / str(number))
            (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    ids = [Path(f"owner/{folder.name}") for folder in (base, *models)]
    return Case(ids[0], ids[1:], hf.LlamaForCausalLM, start=base, like=models)


@situation("Llama", "a LoRA adapter beside a full model")
def adapter(zoo: Zoo) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    base, models = zoo.three(hf.LlamaForCausalLM, llama())
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(hf.LlamaForCausalLM.from_pretrained(base), lora)
    model.save_pretrained(zoo.root / "lora")
    merged = zoo.keep("merged", model.merge_and_unload())
    return Case(base, [models[0], zoo.root / "lora"], hf.LlamaForCausalLM, like=[models[0], merged])


# Tied heads


TIED = r"lm_head.weight left out, which is model.embed_tokens.weight \(tied\)"
HEAD = copied(lm_head__weight="model.embed_tokens.weight")


@situation("Llama", "tied, lm_head written by the model alone")
def tied_model(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.LlamaForCausalLM, llama(tie_word_embeddings=True))
    return Case(base, [zoo.copy(models[0], HEAD), models[1]], hf.LlamaForCausalLM, says=(TIED,))


@situation("Llama", "tied, lm_head written by the base alone")
def tied_base(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.LlamaForCausalLM, llama(tie_word_embeddings=True))
    return Case(zoo.copy(base, HEAD), models, hf.LlamaForCausalLM, says=(f"base old: {TIED}",))


@situation("Llama", "a free head in the base, a tied one in the model")
def tied_to_free(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.LlamaForCausalLM, llama())
    tied = zoo.save("tied", hf.LlamaForCausalLM, llama(tie_word_embeddings=True))
    whole = zoo.copy(tied, HEAD, " whole")
    config = json.loads((whole / "config.json").read_text()) | {"tie_word_embeddings": False}
    (whole / "config.json").write_text(json.dumps(config))
    says = ("tied: lm_head.weight is its model.embed_tokens.weight",)
    return Case(base, [models[0], tied], hf.LlamaForCausalLM, says=says, like=[models[0], whole])


@situation("Llama", "a tied base, a free head in the model")
def free_to_tied(zoo: Zoo) -> Case:
    base = zoo.save("base", hf.LlamaForCausalLM, llama(tie_word_embeddings=True))
    free = zoo.save("free", hf.LlamaForCausalLM, llama())
    kind, options = hf.LlamaForCausalLM, {"from_base": ("lm_head.*",)}
    like = [zoo.copy(free, lambda there: {k: v for k, v in there.items() if k != "lm_head.weight"})]
    config = (base / "config.json").read_text()
    (like[0] / "config.json").write_text(config)
    refused, says = r"--from-base 'lm_head.\*'", (r"free: lm_head.\* left out",)
    return Case(base, [free], kind, options, says, refused, like=like)


@situation("RoBERTa", "lm_head.decoder written beside what it is tied to")
def roberta_decoder(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.RobertaForMaskedLM, bert("Roberta"))
    words = "roberta.embeddings.word_embeddings.weight"
    both = copied(lm_head__decoder__weight=words, lm_head__decoder__bias="lm_head.bias")
    says = (rf"lm_head.decoder.weight left out, which is {words}", "lm_head.decoder.bias left out")
    return Case(base, [zoo.copy(models[0], both), models[1]], hf.RobertaForMaskedLM, says=says)


@situation("T5", "embed_tokens written beside shared")
def t5_shared(zoo: Zoo) -> Case:
    shape = {"vocab_size": 12, "d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2}
    kind = hf.T5ForConditionalGeneration
    base, models = zoo.three(kind, hf.T5Config(**shape, decoder_start_token_id=0))
    names = {f"{side}__embed_tokens__weight": "shared.weight" for side in ("encoder", "decoder")}
    old = zoo.copy(models[0], copied(**names, lm_head__weight="shared.weight"))
    says = ("encoder.embed_tokens.weight left out, which is shared.weight", "lm_head.weight left")
    return Case(base, [old, models[1]], kind, says=says)


# Buffers


@situation("Llama", "rotary_emb.inv_freq written by the model alone")
def inv_freq_model(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.LlamaForCausalLM, llama())
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(2) for n in (0, 1)}
    old = zoo.copy(models[0], lambda there: there | buffers)
    says = (r"inv_freq, .*inv_freq left out, which follow from the configuration",)
    return Case(base, [old, models[1]], hf.LlamaForCausalLM, says=says)


@situation("Llama", "rotary_emb.inv_freq written by the base alone")
def inv_freq_base(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.LlamaForCausalLM, llama())
    old = zoo.copy(base, more(model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(2)))
    return Case(old, models, hf.LlamaForCausalLM, says=("inv_freq are the base's",))


MASKS: Tensors = {
    f"transformer.h.{n}.attn.{name}": value
    for n in (0, 1)
    for name, value in (
        ("bias", np.tril(np.ones((1, 1, 16, 16), np.float32))),
        ("masked_bias", np.array(-1e4, np.float32)),
    )
}


@situation("GPT-2", "attn.bias and masked_bias of old versions in the models")
def gpt2_masks(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.GPT2LMHeadModel, gpt2())
    old = [zoo.copy(model, lambda there: there | MASKS) for model in models]
    says = (r"transformer.h.0.attn.bias, .* and 1 more left out, which follow",)
    return Case(base, old, hf.GPT2LMHeadModel, says=says)


@situation("GPT-2", "the base as published: no prefix, masks, no head")
def gpt2_published(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.GPT2LMHeadModel, gpt2())
    old = zoo.copy(base, lambda there: renamed("^transformer.", "")(there | MASKS))
    says = ("one: transformer. taken off 28 names", "h.0.attn.bias, .* are the base's")
    return Case(old, models, hf.GPT2LMHeadModel, says=says, start=base)


@situation("GPT-NeoX", "attention.bias, masked_bias and inv_freq of old versions in the base")
def neox_masks(zoo: Zoo) -> Case:
    config = hf.GPTNeoXConfig(**TINY, vocab_size=12, max_position_embeddings=16, bos_token_id=1)
    base, models = zoo.three(hf.GPTNeoXForCausalLM, config)
    attention = "gpt_neox.layers.0.attention"
    buffers = {
        f"{attention}.bias": np.tril(np.ones((1, 1, 16, 16), bool)),
        f"{attention}.masked_bias": np.array(-1e9, np.float32),
        f"{attention}.rotary_emb.inv_freq": np.ones(1, np.float32),
    }
    old = zoo.copy(base, lambda there: there | buffers)
    says = (r"attention.bias are the base's",)
    return Case(old, models, hf.GPTNeoXForCausalLM, says=says)


@situation("BERT", "position_ids written by the model alone")
def bert_positions(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.BertForMaskedLM, bert())
    old = zoo.copy(models[0], more(bert__embeddings__position_ids=np.arange(16)[None]))
    says = ("bert.embeddings.position_ids left out",)
    return Case(base, [old, models[1]], hf.BertForMaskedLM, says=says)


@situation("Swin", "relative_position_index written by the model alone")
def swin_index(zoo: Zoo) -> Case:
    shape = {"embed_dim": 4, "depths": [1], "num_heads": [1], "window_size": 2}
    kind = hf.SwinForImageClassification
    base, models = zoo.three(kind, hf.SwinConfig(**IMAGES, **shape))
    name = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    old = zoo.copy(models[0], lambda there: there | {name: np.zeros((4, 4), np.int64)})
    return Case(base, [old, models[1]], kind, says=(f"{name} left out",))


@situation("ResNet", "num_batches_tracked that differ, running statistics")
def resnet(zoo: Zoo) -> Case:
    kind, config = (
        hf.ResNetForImageClassification,
        hf.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], num_labels=2),
    )
    base, models = zoo.three(kind, config)

    def trained(there: Tensors) -> Tensors:
        return {k: v + 9 * k.endswith("num_batches_tracked") for k, v in there.items()}

    says = (r"running statistics are merged as weights are \(4 running_var\)",)
    old = [zoo.copy(model, trained) for model in models]
    return Case(base, old, kind, says=says, kept="num_batches_tracked")


# Heads


FROM_BASE = {"from_base": ("classifier.*",)}
WIDTHS = r"classifier.weight: \(5, 8\) in .*--from-base 'classifier.\*'$"
NOT_MERGED = (r"not merged but the base's: classifier.\* \(2 tensors\)",)


@situation("BERT", "classifiers of other widths")
def bert_widths(zoo: Zoo) -> Case:
    kind = hf.BertForSequenceClassification
    base = zoo.save("base", kind, bert(num_labels=3))
    models = [zoo.save(f"m{n}", kind, bert(num_labels=n)) for n in (5, 4)]
    return Case(base, models, kind, FROM_BASE, NOT_MERGED, WIDTHS, "classifier")


@situation("ViT", "classifiers of other widths")
def vit_widths(zoo: Zoo) -> Case:
    kind = hf.ViTForImageClassification
    base = zoo.save("base", kind, vit(num_labels=3))
    models = [zoo.save(f"m{n}", kind, vit(num_labels=n)) for n in (5, 4)]
    return Case(base, models, kind, FROM_BASE, NOT_MERGED, WIDTHS, "classifier")


@situation("Llama", "score heads of other widths")
def llama_scores(zoo: Zoo) -> Case:
    kind = hf.LlamaForSequenceClassification
    base = zoo.save("base", kind, llama(num_labels=3))
    models = [zoo.save("five", kind, llama(num_labels=5))]
    options, refused = {"only": ("model.*",)}, r"--from-base 'score.\*'$"
    says = (r"not merged but the base's: score.\* \(1 tensors\)",)
    return Case(base, models, kind, options, says, refused, "score")


@situation("BERT", "a masked language model as base, classifiers as models")
def bert_mlm(zoo: Zoo) -> Case:
    base = zoo.save("base", hf.BertForMaskedLM, bert())
    models = [zoo.save(n, hf.BertForSequenceClassification, bert()) for n in ("one", "two")]
    options = {"from_base": ("cls.*", "bert.pooler.*", "classifier.*")}
    refused = r"--from-base 'bert.pooler.\*' 'classifier.\*' 'cls.\*'$"
    says = (r"one: bert.pooler.\*, classifier.\* left out", r"not merged but the base's: cls.\*")
    return Case(
        base,
        models,
        hf.BertForMaskedLM,
        options,
        says,
        refused,
        r"^cls.predictions.(?!decoder.weight)",
    )


@situation("BERT", "a base without a head, classifiers as models")
def bert_headless(zoo: Zoo) -> Case:
    base = zoo.save("base", hf.BertModel, bert())
    models = [zoo.save(n, hf.BertForSequenceClassification, bert()) for n in ("one", "two")]
    says = ("one: bert. taken off 39 names", r"one: classifier.\* left out")
    refused = r"2 unexpected(.|\n)*--from-base 'classifier.\*'$"
    return Case(base, models, hf.BertModel, FROM_BASE, says, refused)


@situation("ViT", "a base with a pooler and no prefix, classifiers as models")
def vit_headless(zoo: Zoo) -> Case:
    base = zoo.save("base", hf.ViTModel, vit())
    models = [zoo.save(n, hf.ViTForImageClassification, vit()) for n in ("one", "two")]
    options = {"from_base": ("classifier.*", "pooler.*")}
    says = ("one: vit. taken off", r"not merged but the base's: pooler.\*")
    refused = r"--from-base 'classifier.\*' 'pooler.\*'$"
    return Case(base, models, hf.ViTModel, options, says, refused, "pooler")


@situation("BERT", "the same classes in another order")
def bert_labels(zoo: Zoo) -> Case:
    kind = hf.BertForSequenceClassification
    names = ["bad", "good"]
    configs = [bert(id2label=dict(enumerate(each))) for each in (names, names[::-1])]
    base, model = (zoo.save(n, kind, c) for n, c in zip(("base", "one"), configs, strict=True))
    refused = r"one: id2label is good, bad, in the base bad, good"
    return Case(base, [model], kind, FROM_BASE, NOT_MERGED, refused, "classifier")


# Prefixes, towers and names


@situation("Llama", "base_model.model. left by PEFT")
def peft_prefix(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.LlamaForCausalLM, llama())
    old = [zoo.copy(model, prefixed("base_model.model.")) for model in models]
    says = ("one old: base_model.model. taken off 21 names",)
    return Case(base, old, hf.LlamaForCausalLM, says=says, like=models)


@situation("Llama", "a headless model without its prefix")
def llama_headless(zoo: Zoo) -> Case:
    base = zoo.save("base", hf.LlamaForCausalLM, llama())
    models = [zoo.save(name, hf.LlamaModel, llama()) for name in ("one", "two")]
    says = ("one: model. put before 20 names", r"not merged but the base's: lm_head.\* \(1 ten")
    options, refused = {"from_base": ("lm_head.*",)}, r"--from-base 'lm_head.\*'$"
    return Case(base, models, hf.LlamaForCausalLM, options, says, refused, "lm_head")


@situation("BERT", "LayerNorm.gamma and beta of the first versions")
def bert_gamma(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.BertForMaskedLM, bert())

    def old(there: Tensors) -> Tensors:
        return renamed(r"LayerNorm.bias", "LayerNorm.beta")(
            renamed(r"LayerNorm.weight", "LayerNorm.gamma")(there)
        )

    says = (r"12 names as other classes or versions have them: .*LayerNorm.beta is",)
    return Case(
        base, [zoo.copy(m, old) for m in models], hf.BertForMaskedLM, says=says, like=models
    )


@situation("CLIP", "the vision tower alone, with its projection")
def clip_vision(zoo: Zoo) -> Case:
    base = zoo.save("base", hf.CLIPModel, clip())
    config = hf.CLIPVisionConfig(**TINY, **IMAGES, projection_dim=8)
    model = zoo.save("one", hf.CLIPVisionModelWithProjection, config)
    full = zoo.copy(base, lambda there: there | load_file(model / "model.safetensors"), " full")
    options = {"only": ("vision_model.*", "visual_projection.*"), "accept": ("model_type",)}
    refused = r"--from-base 'logit_scale' 'text_model.\*' 'text_projection.\*'$"
    says = (r"not merged but the base's: .*text_model.\*",)
    kept = "text|logit"
    return Case(base, [model], hf.CLIPModel, options, says, refused, kept, like=[full])


@situation("CLIP", "the vision tower alone, without its prefix")
def clip_tower(zoo: Zoo) -> Case:
    base = zoo.save("base", hf.CLIPModel, clip())
    model = zoo.save("one", hf.CLIPVisionModel, hf.CLIPVisionConfig(**TINY, **IMAGES))
    tensors = prefixed("vision_model.")(load_file(model / "model.safetensors"))
    full = zoo.copy(base, lambda there: there | tensors, " full")
    options = {"only": ("vision_model.*",), "accept": ("model_type",)}
    says = ("one: vision_model. put before 39 names",)
    refused = "text_model.embeddings.token_embedding.weight"
    kept = "text|logit|projection"
    return Case(base, [model], hf.CLIPModel, options, says, refused, kept, like=[full])


@situation("CLIP", "position_ids of old versions in the base")
def clip_positions(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.CLIPModel, clip())
    ids = {
        f"{tower}_model.embeddings.position_ids": np.arange(n)[None]
        for tower, n in (("text", 8), ("vision", 5))
    }
    old = zoo.copy(base, lambda there: there | ids)
    return Case(old, models, hf.CLIPModel, says=("position_ids are the base's",))


@situation("wav2vec 2.0", "weight_g and weight_v of old versions of torch")
def wav2vec(zoo: Zoo) -> Case:
    config = hf.Wav2Vec2Config(
        **TINY, vocab_size=12, conv_dim=[4], conv_kernel=[3], conv_stride=[2],
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    base, models = zoo.three(hf.Wav2Vec2Model, config)

    def old(there: Tensors) -> Tensors:
        return renamed(r"parametrizations.weight.original0", "weight_g")(
            renamed(r"parametrizations.weight.original1", "weight_v")(there)
        )

    says = ("2 names as other classes or versions have them: .*weight_",)
    return Case(base, [zoo.copy(m, old) for m in models], hf.Wav2Vec2Model, says=says)


@situation("LLaVA", "language_model.model. of versions before 4.52")
def llava(zoo: Zoo) -> Case:
    kind = hf.LlavaForConditionalGeneration
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TINY, **IMAGES),
        text_config=llama(),
        image_token_index=3,
    )
    base, models = zoo.three(kind, config)

    def old(there: Tensors) -> Tensors:
        there = renamed(r"^model\.language_model\.", "language_model.model.")(there)
        there = renamed(r"^lm_head", "language_model.lm_head")(there)
        return renamed(r"^model\.(vision_tower|multi_modal_projector)", r"\1")(there)

    first = sorted(load_file(base / "model.safetensors"))
    back = old if any(key.startswith("model.language_model.") for key in first) else None
    if back is None:  # this transformers writes the old names itself

        def back(there: Tensors) -> Tensors:
            there = renamed(r"^language_model\.model\.", "model.language_model.")(there)
            there = renamed(r"^language_model\.lm_head", "lm_head")(there)
            return renamed(r"^(vision_tower|multi_modal_projector)", r"model.\1")(there)

    says = (r"names as other classes or versions have them: .*language_model",)
    return Case(base, [zoo.copy(m, back) for m in models], kind, says=says, like=models)


def llava_and_its_language_model(zoo: Zoo, old: bool) -> tuple[Path, Path, Path]:
    """Return a Llama, a LLaVA, and the Llama within that."""
    vision = hf.CLIPVisionConfig(**TINY, **IMAGES)
    config = hf.LlavaConfig(vision_config=vision, text_config=llama(), image_token_index=3)
    base = zoo.save("base", hf.LlamaForCausalLM, llama())
    whole = zoo.save("llava", hf.LlavaForConditionalGeneration, config)
    tensors = load_file(whole / "model.safetensors")
    inner = {
        re.sub(r"^(model\.language_model|language_model\.model)\.", "model.", key).replace(
            "language_model.lm_head", "lm_head"
        ): value
        for key, value in tensors.items()
        if "language_model" in key or "lm_head" in key
    }
    if old:
        named = {f"language_model.{key}": value for key, value in inner.items()}
    else:
        new = renamed(r"^model\.", "model.language_model.")
        named = new(inner)
    rest = {key: value for key, value in tensors.items() if "vision" in key or "multi_modal" in key}
    whole = zoo.copy(whole, lambda _: named | rest, " whole")
    return base, whole, zoo.copy(base, lambda _: inner, " inner")


def llava_options(model: Path) -> dict[str, Any]:
    names = load_file(model / "model.safetensors")
    rest = tuple({key.split("vision")[0].split("multi")[0] for key in names if "vision" in key})
    patterns = (f"{rest[0]}vision_tower.*", f"{rest[0]}multi_modal_projector.*")
    return {"from_base": patterns, "accept": ("model_type",)}


@situation("Llama, LLaVA", "the text model of a vision-language model, names before 4.52")
def llava_old(zoo: Zoo) -> Case:
    base, model, inner = llava_and_its_language_model(zoo, old=True)
    says = (r"llava whole: language_model. taken off 20 names", r"vision_tower.\*.* left out")
    options, refused = llava_options(model), r"--from-base '\S*multi_modal_projector.\*'"
    return Case(base, [model], hf.LlamaForCausalLM, options, says, refused, like=[inner])


@situation("Llama, LLaVA", "the text model of a vision-language model, names of today")
def llava_new(zoo: Zoo) -> Case:
    base, model, inner = llava_and_its_language_model(zoo, old=False)
    says = ("llava whole: 20 names as other classes or versions have them: .*language_model",)
    options, refused = llava_options(model), r"--from-base '\S*multi_modal_projector.\*'"
    return Case(base, [model], hf.LlamaForCausalLM, options, says, refused, like=[inner])


# Configurations


@situation("Llama", "another rope_theta")
def rope(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.LlamaForCausalLM, llama())
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    long = zoo.save("long", hf.LlamaForCausalLM, llama(rope_parameters=rope))
    options = {"accept": ("rope_parameters.rope_theta",)}
    refused = r"long: rope_parameters.rope_theta is 1000000.0, 10000.0 in the base"
    says = ("long: config.json differs .rope_parameters.rope_theta is 1000000.0",)
    return Case(base, [models[0], long], hf.LlamaForCausalLM, options, says, refused)


@situation("Llama, Mistral", "the same shapes under another model_type")
def other_type(zoo: Zoo) -> Case:
    base = zoo.save("base", hf.LlamaForCausalLM, llama())
    config = hf.MistralConfig(**TINY | {"vocab_size": 12, "num_key_value_heads": 1})
    model = zoo.save("one", hf.MistralForCausalLM, config)
    like = [zoo.copy(model, lambda there: there)]
    shutil.copyfile(base / "config.json", like[0] / "config.json")
    options = {"accept": ("model_type",)}
    refused = "one: model_type is mistral, llama in the base"
    return Case(base, [model], hf.LlamaForCausalLM, options, (), refused, like=like)


@situation("Llama", "a model of other width")
def other_width(zoo: Zoo) -> Case:
    base = zoo.save("base", hf.LlamaForCausalLM, llama())
    model = zoo.save("wide", hf.LlamaForCausalLM, llama(hidden_size=16))
    refused = r"model.embed_tokens.weight: \(12, 16\) in \S*wide, \(12, 8\) in"
    return Case(base, [model], hf.LlamaForCausalLM, refused=refused, never=True)


# Vocabularies


@situation("Llama", "added tokens: all of them (union)")
def union(zoo: Zoo) -> Case:
    return vocabularies(zoo, "union", ["<|user|>", "<|end|>", "<|tool|>"])


@situation("Llama", "added tokens: the base's vocabulary")
def base_tokens(zoo: Zoo) -> Case:
    return vocabularies(zoo, "base", [])


@situation("Llama", "added tokens: a model's vocabulary")
def model_tokens(zoo: Zoo) -> Case:
    return vocabularies(zoo, "one", ["<|user|>", "<|end|>"])


@situation("Llama", "embeddings padded to a multiple of 16")
def padded(zoo: Zoo) -> Case:
    base, models = zoo.three(hf.LlamaForCausalLM, llama())
    wide = zoo.save("wide", hf.LlamaForCausalLM, llama(vocab_size=16))
    for path in (base, *models, wide):
        tokenizer(path)

    def cut(there: Tensors) -> Tensors:
        return {k: v[:12] if v.shape[0] == 16 and "mlp" not in k else v for k, v in there.items()}

    like = zoo.copy(wide, cut)
    shutil.copyfile(base / "config.json", like / "config.json")
    says = ("wide: 4 rows without a token left out",)
    return Case(base, [models[0], wide], hf.LlamaForCausalLM, says=says, like=[models[0], like])


def fuse(case: Case, out: Path, **options: Any) -> list[str]:
    Fuse(base=case.base, models=tuple(case.models), out=out, scale="0.5", **options).run()
    return json.loads((out / "fusion.json").read_text())["notes"]


def state(kind: Any, path: Path) -> dict[str, Any]:
    return kind.from_pretrained(
        path, dtype=torch.float32, ignore_mismatched_sizes=True
    ).state_dict()


FAST = (plain, hub_cache, tied_model, gpt2_published, bert_widths, bert_headless, clip_tower, union)


def marked(name: tuple[str, str]) -> Any:
    label = re.sub(r"[^\w.]+", "-", " ".join(name))
    marks = [] if SITUATIONS[name] in FAST else [pytest.mark.slow]
    return pytest.param(name, id=label, marks=marks)


@pytest.mark.parametrize("name", [marked(name) for name in SITUATIONS])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own
def test_situation(name: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    case = SITUATIONS[name](Zoo(tmp_path))
    if case.refused:
        with pytest.raises(InputError, match=rf"(?s){case.refused}"):
            fuse(case, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
        if case.never:
            return
    out = tmp_path / "out"
    notes = fuse(case, out, **case.options)
    for pattern in case.says:
        assert any(re.search(pattern, note) for note in notes), (pattern, notes)
    if not case.says:
        assert [note for note in notes if "config.json differs" not in note] == []
    card = (out / "README.md").read_text()
    assert all("- {}\n".format(note.replace("<", "\\<")) in card for note in notes)

    model, info = case.kind.from_pretrained(out, output_loading_info=True)
    unexpected = info.pop("unexpected_keys")  # masks of old versions in the base
    assert {what: keys for what, keys in info.items() if keys} == {}
    assert all("masked_bias" in key for key in unexpected)
    start = state(case.kind, case.start or case.base)
    others = [state(case.kind, path) for path in case.like or case.models]
    for key, value in model.state_dict().items():
        expected = start[key].double()
        if not re.search(case.kept, key) and value.is_floating_point():
            expected = expected + sum(0.5 * (each[key].double() - expected) for each in others)
        np.testing.assert_allclose(value.double(), expected, atol=1e-6, err_msg=key)
    works(model.eval())
    if (out / "tokenizer.json").is_file():
        opened = hf.AutoTokenizer.from_pretrained(out)
        rows = opened.get_vocab()
        assert max(rows.values()) < model.config.vocab_size
        text = " ".join(rows)
        assert opened(text, add_special_tokens=False)["input_ids"] == list(rows.values())


@torch.no_grad()
def works(model: Any) -> None:
    """Generate, or run a batch: the outputs are finite."""
    config = model.config
    if model.can_generate():
        ids = torch.tensor([[1, 4, 5]])
        words = model.generate(
            input_ids=ids, attention_mask=ids * 0 + 1, max_new_tokens=3, min_new_tokens=3
        )
        assert words.shape[1] >= 4
        return
    inputs = {"input_ids": torch.tensor([[1, 4, 2]])}
    images = {"pixel_values": torch.ones(1, 3, 32, 32)}
    if hasattr(config, "image_size"):
        images = {"pixel_values": torch.ones(1, 3, config.image_size, config.image_size)}
    if isinstance(model, hf.CLIPModel):
        inputs |= {"pixel_values": torch.ones(1, 3, 8, 8)}
    elif model.main_input_name == "pixel_values":
        inputs = images
    elif model.main_input_name == "input_values":
        inputs = {"input_values": torch.ones(1, 64)}
    first = next(iter(model(**inputs).values()))
    assert bool(torch.isfinite(first).all())


def test_the_docs_have_a_row_per_situation():
    page = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE)
    assert set(SITUATIONS) <= set(rows)
    table = page.split("## Situations")[1].split("\n## ")[0]
    listed = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", table, re.MULTILINE)
    assert set(listed) - {("architecture", "situation"), ("---", "---")} == set(SITUATIONS)
