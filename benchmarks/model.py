"""Forward pass and training step of ViT-B/16 and a small ViT, against torch; memory; a GPU's use.

The same weights in both, one interleaved run after an equality check (features, gradients, losses);
prints medians, images a second and ratios. Needs the `parity` extra, but not for `--accelerator`.

    python benchmarks/model.py [--model vit-b16|small|all]
                               [--what forward|train|layer-norm|memory|all] [--rounds N]
    python benchmarks/model.py --accelerator [--model vit-b16|small] [--batch 128] [--rounds N]

`vit-b16` is CLIP's image tower (transformers' `CLIPVisionModel`), `small` a ViT-Ti/16 at 64 pixels
(`ViTModel`); torch runs eager, with its fused AdamW. A training step is cross-entropy under a
frozen head, clipping and AdamW on all parameters; images enter as uint8 and are normalised in the
time measured. `layer-norm`: the gradient of the small ViT with our LayerNorm and with flax's.
`memory`: peak of a process that fine-tunes ViT-B/16 for five steps on batches of two.

Two CPU cores, float32, medians:

| model, images a call | ours | torch | ours / torch |
| --- | --- | --- | --- |
| vit-b16, forward, 8 | 1561 ms | 1862 ms | 0.84 |
| vit-b16, train, 2 | 1360 ms | 1433 ms | 0.95 |
| small, forward, 32 | 40.7 ms | 72.1 ms | 0.56 |
| small, train, 32 | 153 ms | 236 ms | 0.65 |

Torch computes all tokens of the last block, ours the class token alone. The small model was timed
on another day than ViT-B/16, on which it had 0.94 and 1.03, before GELU by erf; all four before
attention, LayerNorm and GELU had rules of their own for the gradient. With these, flax's LayerNorm
/ ours, gradient of the small ViT: 1.22 (137 and 112 ms; 1.58 and 138 ms before). Peak memory of
fine-tuning ViT-B/16, batch 2: 2.40 GiB.

`--accelerator` is JAX alone in bfloat16, state donated and images on the device, with and without
remat. Utilisation is the model's operations (`sweep.cost`; what remat computes again does not
count) over the data sheet's peak; goal on an H100: 60 % forward, 50 % training. Not
measured yet: no accelerator was to be had.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
from model_sides import CASES, Torch, Training, batch_of, check_moments, random_backbone
from timing import interleaved, machine, peak_memory

from rmtllmf_jax.models import vit
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.layers import LayerNorm
from rmtllmf_jax.sweep.cost import tower_costs
from rmtllmf_jax.sweep.devices import known_speed

MEMORY_STEPS, MEMORY_BATCH = 5, 2
REPEATS = 20  # calls a round on an accelerator

features = jax.jit(Backbone.features, static_argnums=0)


def against_torch(name: str, what: str, rounds: int) -> None:
    """Check and time the forward pass, the training step, or both."""
    case = CASES[name]
    peer = Torch(case)
    backbone, params = peer.loaded()
    if what in ("forward", "all"):
        images = jax.device_put(batch_of(case, case.forward)[0])
        calls = {
            "ours": partial(features, backbone, params, images),
            "torch": peer.forward(case.forward, backbone),
        }
        np.testing.assert_allclose(calls["ours"](), calls["torch"](), rtol=1e-4, atol=1e-5)
        report(f"{name}, forward", case.forward, interleaved(calls, rounds))
    if what in ("train", "all"):
        ours = Training(case, backbone, params, case.train)
        calls = {"ours": ours, "torch": peer.training(case.train, backbone)}
        check_losses(calls)
        check_moments(ours.state["optimiser"], peer.first_moments())
        medians = interleaved(calls, rounds)
        check_losses(calls)
        report(f"{name}, train", case.train, medians)


def check_losses(calls: dict[str, Callable[[], object]]) -> None:
    """Take a step on both sides and compare their losses."""
    (_, ours), theirs = calls["ours"](), calls["torch"]()
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def layer_norm(rounds: int) -> None:
    """Time the gradient of the small ViT with our LayerNorm and with flax's."""
    case = CASES["small"]
    backbone, params = random_backbone(case)
    images = jax.device_put(batch_of(case, case.train)[0])
    flax_norm = partial(nn.LayerNorm, use_fast_variance=False)
    calls = {}
    for name, kind in (("ours", LayerNorm), ("flax LayerNorm", flax_norm)):
        with mock.patch.object(vit, "LayerNorm", kind):
            gradient = jax.grad(lambda p: (backbone.features(p, images) ** 2).mean())
            calls[name] = partial(jax.jit(gradient).lower(params).compile(), params)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5),
        *(call() for call in calls.values()),
    )
    report("small, gradient", case.train, interleaved(calls, rounds))


def memory() -> None:
    """Fine-tune ViT-B/16 for a few steps in this process and print the most that it has held."""
    case = CASES["vit-b16"]
    train = Training(case, *random_backbone(case), MEMORY_BATCH)
    losses = ", ".join(f"{float(train()[1]):.3f}" for _ in range(MEMORY_STEPS))
    print(f"vit-b16, {MEMORY_STEPS} training steps, batch {MEMORY_BATCH}, float32: losses {losses}")
    print(f"  peak memory of the process {peak_memory():.2f} GiB")


def report(title: str, images: int, medians: dict[str, float]) -> None:
    """Print times, images a second and ratios to ours."""
    print(f"{title}, {images} images a call")
    for name, seconds in medians.items():
        ratio = medians["ours"] / seconds
        print(
            f"  {name:16s} {1e3 * seconds:9.1f} ms {images / seconds:8.1f} images/s"
            + ("" if name == "ours" else f"   ours takes {ratio:.2f} x the time")
        )


def accelerator(name: str, batch: int, rounds: int) -> None:
    """Time JAX alone in bfloat16 and print the share of the device's peak that is used."""
    case = CASES[name]
    device = jax.devices()[0]
    speed = known_speed(device.device_kind)
    backbone, params = random_backbone(case, dtype="bfloat16")
    again, _ = random_backbone(case, dtype="bfloat16", remat=True)
    images = jax.device_put(batch_of(case, batch)[0])
    calls = {
        "forward": partial(features, backbone, params, images),
        "train": Training(case, backbone, params, batch),
        "train, remat": Training(case, again, params, batch),
    }
    for call in calls.values():
        jax.block_until_ready(call())
    medians = interleaved(calls, rounds, 1 if device.platform == "cpu" else REPEATS)
    print(f"{name}, bfloat16, batch {batch}")
    for kind, seconds in medians.items():
        flops = batch * tower_costs(backbone).flops(training=kind != "forward") / seconds
        share = f"{flops / speed.peak('bfloat16'):.1%}" if speed else "unknown for this device"
        print(
            f"  {kind:16s} {1e3 * seconds:9.1f} ms {batch / seconds:8.1f} images/s "
            f"{flops / 1e12:8.2f} TFLOP/s   model FLOPs utilisation {share}"
        )


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=(*CASES, "all"), default="all")
    parts = ("forward", "train", "layer-norm", "memory", "all")
    parser.add_argument("--what", choices=parts, default="all")
    parser.add_argument("--rounds", type=int, help="5 for vit-b16, 15 for small")
    parser.add_argument("--accelerator", action="store_true", help="JAX alone, bfloat16")
    parser.add_argument("--batch", type=int, default=128, help="images a call of --accelerator")
    options = parser.parse_args()
    names = list(CASES) if options.model == "all" else [options.model]
    if options.what == "memory":
        memory()
        return
    if options.accelerator:
        print(machine("jax", "jaxlib", "flax"))
        for name in names:
            accelerator(name, options.batch, options.rounds or CASES[name].rounds)
        return
    print(machine("jax", "flax", "torch", "transformers"))
    if options.what != "layer-norm":
        for name in names:
            against_torch(name, options.what, options.rounds or CASES[name].rounds)
    if options.what == "layer-norm" or (options.what == "all" and "small" in names):
        layer_norm(options.rounds or CASES["small"].rounds)
    if options.what == "all" and "vit-b16" in names:
        # In a process of its own: this one holds torch's models as well.
        sys.stdout.flush()
        subprocess.run([sys.executable, __file__, "--what", "memory"], check=True)


if __name__ == "__main__":
    main()
