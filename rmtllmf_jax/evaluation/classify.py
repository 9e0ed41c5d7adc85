"""Classification of image files by a classifier on disk, with its processor and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.decode import decode_image
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.classifier import read_classifier
from rmtllmf_jax.models.features import extract_features
from rmtllmf_jax.models.pretrained import read_pretrained
from rmtllmf_jax.models.processor import ImageProcessor, read_processor


@dataclass(frozen=True)
class Predictions:
    """A classifier's predictions for images; labels in the order of its outputs."""

    labels: tuple[str, ...]
    probabilities: Float[np.ndarray, "images labels"]

    def best(self, image: int, count: int) -> list[tuple[str, float]]:
        """Return the most probable labels of an image and their probabilities."""
        row = self.probabilities[image]
        order = np.argsort(-row, kind="stable")[:count]
        return [(self.labels[label], float(row[label])) for label in order]


def classify(model: str | Path, images: Sequence[Path], *, batch_size: int = 64) -> Predictions:
    """Return the probabilities of image files' classes.

    **Arguments:**

    - `model`: directory or hub id of an image classifier (`models.classifier.read_classifier`);
      its own image processor decides how images become squares.
    - `batch_size`: images per step, which affects only speed and memory.

    **Raises:** `InputError` that names a file that cannot be read, or why the model is not a
    classifier.
    """
    found = read_pretrained(model)
    classifier = read_classifier(found)
    backbone, params = load_backbone(found)
    processor = read_processor(found.directory, found.config.kind)
    parts = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        pixels = np.stack([_decoded(path, backbone.image_size, processor) for path in batch])
        size = min(batch_size, len(images))
        features = extract_features(backbone, params, pixels, batch_size=size)
        parts.append(np.asarray(jax.nn.softmax(classifier.head(jnp.asarray(features)))))
    labels = classifier.labels or tuple(map(str, range(len(classifier.head.bias))))
    return Predictions(labels, np.concatenate(parts))


def _decoded(path: Path, size: int, processor: ImageProcessor) -> np.ndarray:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    how = processor.own_fit(), processor.resample
    return decode_image(content, size, str(path), *how, resize_to=processor.resize_to(size))
