"""Features of many images, batch by batch."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.images import resize


@partial(jax.jit, static_argnames="backbone")
def _features(
    params: PyTree, images: UInt8[Array, "batch size size channels"], *, backbone: Backbone
) -> Float[Array, "batch width"]:
    return backbone.features(params, images)


def extract_features(
    backbone: Backbone,
    params: PyTree,
    images: UInt8[np.ndarray, "n size size channels"],
    *,
    batch_size: int = 256,
    description: str = "features",
) -> Float[np.ndarray, "n width"]:
    """Return the features of all images, which may be a memory map; one batch size is compiled.

    Images of a size other than the backbone's are resized on the device.
    """
    features = np.empty((len(images), backbone.width), np.float32)
    with progress_bar(description, len(images)) as advance:
        for start in range(0, len(images), batch_size):
            batch = np.asarray(images[start : start + batch_size])
            padded = np.zeros((batch_size, *batch.shape[1:]), batch.dtype)
            padded[: len(batch)] = batch
            square = resize(padded, backbone.image_size)
            result = np.asarray(_features(params, square, backbone=backbone))
            features[start : start + len(batch)] = result[: len(batch)]
            advance(len(batch))
    return features
