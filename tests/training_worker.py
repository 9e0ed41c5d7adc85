"""A process that fine-tunes a random tiny model on so many devices and writes its parameters."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--devices", type=int, required=True)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    assert len(jax.devices()) == options.devices

    from rmtllmf_jax.data.cache import Images
    from rmtllmf_jax.data.task_data import Rows
    from rmtllmf_jax.fusion import leaves_by_path
    from rmtllmf_jax.models.heads import Head
    from rmtllmf_jax.runs import random_inputs
    from rmtllmf_jax.training.augment import Crop, Flip
    from rmtllmf_jax.training.finetune import finetune, validation_score
    from rmtllmf_jax.training.parallel import Split
    from rmtllmf_jax.training.recipes import Recipe
    from rmtllmf_jax.training.watch import Choice, Watch

    inputs = random_inputs(0)
    backbone, size = inputs.model, inputs.model.image_size
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, size, size, 3), np.uint8)
    labels = (np.arange(40) % 3).astype(np.int32)
    rows = Rows(Images(images, labels, ("a", "b", "c"), ""), np.arange(40))
    kernel = random.normal(size=(backbone.width, 3)).astype(np.float32)
    head = Head(jax.numpy.asarray(kernel), jax.numpy.zeros(3))
    recipe = Recipe(steps=4, batch_size=16, learning_rate=1e-3, weight_decay=0.1)
    found = {}
    for parts in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            score = validation_score(backbone, inputs.base, head, rows, 16)
            watch = Watch(place / "c.csv", place / "b.safetensors", score, Choice(keep_best=True))
            params = finetune(
                backbone,
                inputs.base,
                head,
                rows,
                recipe,
                3,
                place / "steps",
                every=2,
                weight_noise=0.01,
                augmentations=(Crop(), Flip()),
                split=Split(options.devices, parts),
                watch=watch,
            )
            assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(params)} == {1}
            leaves = leaves_by_path(params).items()
            found |= {f"{parts}/{path}": np.asarray(leaf) for path, leaf in leaves}
            curve = np.loadtxt(place / "c.csv", delimiter=",", skiprows=1, usecols=(1,))
            found[f"{parts}/losses"] = curve
    np.savez(options.out, **found)


if __name__ == "__main__":
    main()
