"""Forward pass and training step of small Llamas, against transformers in torch.

The same weights in both, one interleaved run after an equality check (logits, gradients, losses);
prints medians, tokens a second and ratios. Needs the `parity` extra.

    python benchmarks/decoder.py [--model stories260k|ten-million|all] [--rounds N]

`stories260k` has the shape of the stories260K checkpoint (5 layers of width 64, 8 heads of 4 keys,
512 tokens), `ten-million` 11.7 million parameters (8 layers of width 320, 10 heads of 5 keys, 8,192
tokens). Rows are whole: 8 of 256 tokens. A training step is cross-entropy of the next token,
clipping and AdamW on all parameters; torch runs eager with its own scaled-dot-product attention and
its fused AdamW.

Two idle CPU cores, float32, medians of 21 and 9:

| model | ours | torch | speed, ours / torch |
| --- | --- | --- | --- |
| stories260k, forward | 32.7 ms | 38.8 ms | 1.19 |
| stories260k, train | 126 ms | 145 ms | 1.15 |
| ten-million, forward | 348 ms | 366 ms | 1.05 |
| ten-million, train | 1283 ms | 1270 ms | 0.99 |
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from model_sides import RECIPE, check_moments, first_moments, through_disk, torch_steps
from timing import interleaved, machine

from rmtllmf_jax.evaluation import Batch
from rmtllmf_jax.models import load_decoder
from rmtllmf_jax.training.finetune import train_step

ROWS, TOKENS = 8, 256
CASES: dict[str, dict[str, int]] = {
    "stories260k": {
        "hidden_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 172,
        "vocab_size": 512,
    },
    "ten-million": {
        "hidden_size": 320,
        "num_hidden_layers": 8,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "intermediate_size": 864,
        "vocab_size": 8192,
    },
}


def compare(name: str, rounds: int) -> None:
    """Check and time the forward pass and the training step."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.LlamaConfig(
        **CASES[name], max_position_embeddings=512, tie_word_embeddings=True
    )
    peer = transformers.LlamaForCausalLM(config)
    decoder, params = through_disk(peer, load_decoder)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{name}: {size:,} parameters, {ROWS} rows of {TOKENS} tokens")
    random = np.random.default_rng(0)
    text = random.integers(0, config.vocab_size, (ROWS, TOKENS + 1), dtype=np.int32)
    tokens, following = text[:, :-1], text[:, 1:]
    read, target = (torch.from_numpy(part.astype(np.int64)) for part in (tokens, following))

    outputs = jax.jit(partial(decoder.outputs, head=None))
    inputs = jax.device_put({"tokens": tokens})

    @torch.inference_mode()
    def forward() -> Any:
        return peer(read).logits

    calls: dict[str, Any] = {"ours": lambda: outputs(params, inputs=inputs), "torch": forward}
    np.testing.assert_allclose(calls["ours"](), calls["torch"](), rtol=1e-4, atol=1e-5)
    report("forward", interleaved(calls, rounds))

    batch = jax.device_put(Batch({"tokens": tokens}, following, np.ones(text[:, 1:].shape, "f4")))
    state = {"params": jax.tree.map(jnp.copy, params), "optimiser": RECIPE.optimiser().init(params)}

    def ours() -> jax.Array:
        nonlocal state
        state, loss = train_step(state, batch, model=decoder, recipe=RECIPE)
        return loss

    def loss() -> Any:
        return torch.nn.functional.cross_entropy(peer(read).logits.flatten(0, 1), target.flatten())

    optimiser, theirs = torch_steps(peer, loss)
    np.testing.assert_allclose(ours(), theirs(), rtol=1e-4)
    moments = through_disk(first_moments(peer, optimiser), load_decoder)[1]
    check_moments(state["optimiser"], moments)
    report("train", interleaved({"ours": ours, "torch": theirs}, rounds))


def report(what: str, medians: dict[str, float]) -> None:
    """Print times, tokens a second and the ratio of speeds."""
    for name, seconds in medians.items():
        print(
            f"  {what:8s} {name:6s} {1e3 * seconds:8.1f} ms {ROWS * TOKENS / seconds:9.0f} tokens/s"
        )
    print(f"  {what:8s} ours is {medians['torch'] / medians['ours']:.2f} times as fast")


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=(*CASES, "all"), default="all")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(machine("jax", "flax", "torch", "transformers"))
    for name in CASES if options.model == "all" else [options.model]:
        compare(name, options.rounds)


if __name__ == "__main__":
    main()
