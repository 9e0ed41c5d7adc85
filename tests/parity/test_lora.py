"""Users that fine-tune by LoRA, in PEFT: the same first factors, and the same logits."""

from __future__ import annotations

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY_CONFIG
from test_vit import array, classifier, pixel_values, raw_images

from rmtllmf_jax.cli.fuse import Fuse
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.export import export_model
from rmtllmf_jax.models.pretrained import read_pretrained
from rmtllmf_jax.training.lora import Lora

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install peft")
    import torch

LORA = Lora(rank=2, alpha=3.0)


def test_a_user_is_an_adapter_that_peft_opens_with_the_same_logits(tmp_path: Path):
    model = classifier(TINY_CONFIG)
    model.save_pretrained(tmp_path / "base")
    backbone, params = load_backbone(tmp_path / "base")
    random = np.random.default_rng(0)
    factors = jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(size=leaf.shape), leaf.dtype),
        LORA.first(params, jax.random.key(0)),
    )
    tuned = LORA.applied(params, factors)
    size = backbone.image_size
    export_model(tmp_path / "user", read_pretrained(str(tmp_path / "base")), tuned, size)
    out = tmp_path / "adapter"
    only, models = (".*(query|value).weight",), (tmp_path / "user",)
    Fuse(base=tmp_path / "base", models=models, out=out, only=only, as_adapter=LORA.rank).run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = peft.PeftModel.from_pretrained(classifier(TINY_CONFIG), str(out)).eval()
    assert opened.peft_config["default"].r == LORA.rank
    images = raw_images(size)
    with torch.no_grad():
        expected = array(opened(pixel_values(images)).logits)
    features = np.asarray(backbone.features(tuned, jnp.asarray(images)))
    logits = features @ array(model.classifier.weight).T + array(model.classifier.bias)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    before = np.asarray(backbone.features(params, jnp.asarray(images)))
    assert np.abs(before - features).max() > 0.1


@pytest.mark.parametrize(("init", "theirs"), [("gaussian", "gaussian"), ("kaiming", True)])
def test_first_factors_have_the_law_of_pefts(init: str, theirs: object):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(64, 32))
    settings = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(layer, settings)
    named = dict(wrapped.named_parameters())
    (a,) = (array(leaf) for name, leaf in named.items() if "lora_A" in name)
    base = {"layer": {"kernel": jnp.zeros((64, 32))}}
    ours = leaves_by_path(Lora(4, targets=("layer",), init=init).first(base, jax.random.key(0)))
    found = np.asarray(ours["layer/kernel/a"])
    assert found.shape == a.T.shape
    assert np.std(found) == pytest.approx(np.std(a), rel=0.15)
    if init == "kaiming":
        assert max(np.abs(found).max(), np.abs(a).max()) <= 1 / 8
