"""Users made on the spot: a small model with random weights and tasks of random images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from rmtllmf_jax import fusion
from rmtllmf_jax.data.cache import Images
from rmtllmf_jax.data.task_data import Rows, TaskData
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head, stack_heads
from rmtllmf_jax.models.shapes import ViTShape
from rmtllmf_jax.models.vit import VisionTransformer
from rmtllmf_jax.runs.inputs import SweepInputs

TASKS = ("first", "second", "third")
_IMAGES, _CLASSES = 64, 4
_SHAPE = ViTShape(
    width=16,
    depth=1,
    heads=2,
    mlp_width=32,
    activation="gelu",
    layer_norm_eps=1e-6,
    image_size=16,
    patch_size=8,
)


def random_inputs(seed: int) -> SweepInputs:
    """Return the three users of `TASKS` with random task vectors, heads and images.

    A sample's label is the prediction of the task's own model, so that noise on the model costs
    accuracy, as it does for a trained model.
    """
    backbone = Backbone(VisionTransformer(_SHAPE), (0.5,) * 3, (0.5,) * 3)
    random = np.random.default_rng(seed)

    def normal(std: float, *size: int) -> Array:
        return jnp.asarray(std * random.normal(size=size), jnp.float32)

    pixels = (_SHAPE.image_size, _SHAPE.image_size, _SHAPE.channels)
    example = jnp.zeros((1, *pixels))
    base = jax.jit(backbone.module.init)(jax.random.key(seed), example)["params"]
    answer = jax.jit(lambda model, head, x: jnp.argmax(head(backbone.features(model, x)), -1))
    classes = tuple(f"class {label}" for label in range(_CLASSES))
    vectors, heads, data = [], [], []
    for name in TASKS:
        vectors.append(jax.tree.map(lambda leaf: normal(0.01, *leaf.shape), base))
        heads.append(Head(normal(0.5, backbone.width, _CLASSES), normal(0.5, _CLASSES)))
        images = random.integers(0, 256, (_IMAGES, *pixels), dtype=np.uint8)
        labels = answer(fusion.add_to_base(base, vectors[-1], 1.0), heads[-1], images)
        split = Images(images, np.asarray(labels, np.int32), classes, "")
        every, none = Rows(split, np.arange(_IMAGES)), Rows(split, np.arange(0))
        data.append(TaskData(name, classes, none, none, test=every))
    stacked = fusion.stack(vectors)
    return SweepInputs(TASKS, backbone, base, stacked, stack_heads(heads), tuple(data), {})
