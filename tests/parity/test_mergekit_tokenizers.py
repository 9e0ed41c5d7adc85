"""Vocabularies with added tokens against mergekit's, token by token."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rmtllmf_jax.cli.fuse import Fuse

pytest.importorskip("torch", reason="mergekit needs torch: pip install 'rmtllmf-jax[parity]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs
    pytest.importorskip("mergekit", reason="mergekit is not installed: pip install mergekit")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
from transformers import AutoTokenizer
from zoo import Zoo, vocabularies


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["union", "base"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_rows_of_tokens(tmp_path: Path, choice: str, method: str):
    case = vocabularies(Zoo(tmp_path), choice, [])
    parameters = {"weight": 0.5} | ({"density": 0.6} if method == "ties" else {})
    config = {
        "merge_method": method,
        "base_model": str(case.base),
        "models": [{"model": str(each), "parameters": parameters} for each in case.models],
        "parameters": {"normalize": False},
        "tokenizer": {"source": choice},
        "dtype": "float32",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = MergeConfiguration.model_validate(config)
        run_merge(parsed, out_path=str(tmp_path / "theirs"), options=MergeOptions())
    own = "ties(density=0.6, normalise=false)" if method == "ties" else method
    options = {"method": own, "scale": "0.5", "tokenizer": choice, "out": tmp_path / "ours"}
    Fuse(base=case.base, models=tuple(case.models), **options).run()
    folders = (tmp_path / "ours", tmp_path / "theirs")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in folders)
    rows = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in folders]
    assert rows[0].keys() == rows[1].keys()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        expected = theirs[key]
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            value, expected = (
                each[[numbers[token] for token in rows[0]]]
                for each, numbers in zip((value, expected), rows, strict=True)
            )
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6, err_msg=key)
