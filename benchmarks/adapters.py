"""Three LoRA adapters merged into a language model, disk to disk, against PEFT and a plain copy.

One interleaved run of whole processes after an equality check; prints medians, ratios and peak
memory (VmHWM, mapped files included). Needs the `parity` extra.

    python benchmarks/adapters.py [--shape 1.1b|tiny] [--rank 16] [--adapters 3]
                                  [--targets q_proj v_proj] [--rounds 3] [--folder TMP]

The model has TinyLlama's shape (1.1 B parameters, 2.2 GB in bfloat16, shards of 500 MB) and random
weights; with the outputs the folder takes 11 GB. Ours is `rmtllmf fuse`, as it is by default, where
it also hashes its inputs for the card, and with `--no-hash-inputs`, as nobody else hashes. PEFT's
side is a script: `from_pretrained`, `load_adapter`, `merge_and_unload(adapter_names=...)`,
`save_pretrained`. The copy writes the base's files again. All outputs are fsynced. PEFT rounds each
product and each sum to bfloat16, ours rounds once: they may differ by as many roundings.

Two CPU cores, medians of 3 (files in the page cache; memory cold, see `processes.cleared`):

| side | time | peak memory | ours takes |
| --- | --- | --- | --- |
| ours | 3.95 s | 0.30 GiB | |
| ours, hashed | 3.91 s | 0.30 GiB | 1.01 x |
| PEFT | 12.96 s | 2.57 GiB | 0.30 x |
| plain copy | 3.92 s | 0.01 GiB | 1.01 x (goal 1.3 x at most) |

A second after other output was removed, so that its memory is warm, the copy takes 1.7 s and ours
3.6 s to 4.3 s (2.1 to 2.5 x): 0.9 s start JAX, and the copy is no longer the slowest part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from fusion import HASHED, UNHASHED, report, tensors_of
from processes import cleared, process
from safetensors.numpy import save_file
from timing import interleaved, machine

SHAPES = {
    "1.1b": {"hidden": 2048, "inner": 5632, "layers": 22, "heads": 32, "kv": 4, "tokens": 32000},
    "tiny": {"hidden": 64, "inner": 96, "layers": 2, "heads": 4, "kv": 2, "tokens": 100},
}
SHARD = 500_000_000
SPREAD = 0.02

PEFT_PROCESS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, *adapters, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
model = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
for number, adapter in enumerate(adapters[1:], start=1):
    model.load_adapter(adapter, adapter_name=str(number))
names = [str(number) for number in range(len(adapters))]
model.merge_and_unload(adapter_names=names).save_pretrained(out)
"""

COPY_PROCESS = """
import shutil, sys
shutil.copytree(sys.argv[1], sys.argv[2])
"""


def linear_layers(shape: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return the (outputs, inputs) of a block's layers by name."""
    hidden, inner = shape["hidden"], shape["inner"]
    narrow = hidden * shape["kv"] // shape["heads"]
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def tensors(shape: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield key and shape of all tensors of the model."""
    hidden = shape["hidden"]
    yield "model.embed_tokens.weight", (shape["tokens"], hidden)
    for layer in range(shape["layers"]):
        for name, sizes in linear_layers(shape).items():
            yield f"model.layers.{layer}.{name}.weight", sizes
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape["tokens"], hidden)


def write_base(folder: Path, shape: dict[str, int]) -> int:
    """Write configuration and shards with random weights; return the number of parameters."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for key, sizes in tensors(shape):
        size = 2 * int(np.prod(sizes))
        if shards[-1] and filled + size > SHARD:
            shards.append({})
            filled = 0
        shards[-1][key] = sizes
        filled += size
    where = {}
    for number, keys in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        content = {
            key: (SPREAD * random.standard_normal(sizes, np.float32)).astype(ml_dtypes.bfloat16)
            for key, sizes in keys.items()
        }
        save_file(content, folder / name, {"format": "pt"})
        where |= dict.fromkeys(keys, name)
    count = sum(int(np.prod(sizes)) for _, sizes in tensors(shape))
    index = {"metadata": {"total_size": 2 * count}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["inner"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv"],
        "vocab_size": shape["tokens"],
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return count


def write_adapter(
    folder: Path, shape: dict[str, int], seed: int, rank: int, targets: list[str]
) -> Path:
    """Write an adapter with random factors to the layers of these names."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    factors = {}
    for layer in range(shape["layers"]):
        for name, (outputs, inputs) in linear_layers(shape).items():
            if name.rpartition(".")[2] in targets:
                module = f"base_model.model.model.layers.{layer}.{name}"
                for side, sizes in (("A", (rank, inputs)), ("B", (outputs, rank))):
                    factor = SPREAD * random.standard_normal(sizes, np.float32)
                    factors[f"{module}.lora_{side}.weight"] = factor
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": targets}))
    return folder


def check(outs: dict[str, Path], adapters: int) -> None:
    """Check that ours and PEFT's are the same model but for PEFT's roundings on the way."""
    ours, theirs = tensors_of(outs["ours"]), tensors_of(outs["peft"])
    assert ours.keys() == theirs.keys()
    for key in ours:
        found, expected = (np.asarray(each[key](), np.float32) for each in (ours, theirs))
        step = 2.0**-8 * np.maximum(np.abs(expected), SPREAD)
        assert np.all(np.abs(found - expected) <= 2 * (adapters + 1) * step), key


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=3)
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where models are written; default: tmp")
    options = parser.parse_args()
    print(machine("jax", "torch", "peft", "transformers", "safetensors"))
    shape = SHAPES[options.shape]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        count = write_base(folder / "base", shape)
        adapters = [
            write_adapter(folder / f"adapter-{seed}", shape, seed, options.rank, options.targets)
            for seed in range(1, options.adapters + 1)
        ]
        outs = {each: folder / f"out-{each}" for each in ("ours", HASHED, "peft", "copy")}
        paths = [str(path) for path in adapters]
        fuse = str(Path(sys.executable).with_name("rmtllmf"))
        base = str(folder / "base")
        words = ["fuse", "--base", base, "--models", *paths, "--scale", "1"]
        words += ["--shard-size", "500MB", "--out"]
        commands = {
            "ours": [fuse, *words, str(outs["ours"]), *UNHASHED],
            HASHED: [fuse, *words, str(outs[HASHED])],
            "peft": [sys.executable, "-c", PEFT_PROCESS, base, *paths, str(outs["peft"])],
            "copy": [sys.executable, "-c", COPY_PROCESS, base, str(outs["copy"])],
        }
        peaks: dict[str, float] = {}

        def call(side: str) -> None:
            process(commands[side], outs[side], peaks, side)

        calls = {side: partial(call, side) for side in commands}
        for run in calls.values():
            run()
        check(outs, options.adapters)
        os.sync()
        report(
            f"{options.adapters} adapters of rank {options.rank} to {', '.join(options.targets)} "
            f"of {count / 1e6:.1f} M parameters in bfloat16, disk to disk",
            interleaved(calls, options.rounds, before=lambda side: cleared(outs[side])),
            peaks,
        )
        for out in outs.values():
            shutil.rmtree(out)


if __name__ == "__main__":
    main()
