"""An image tower from a Hugging Face model: uint8 images in, features out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.models.clip import CLIPVision
from rmtllmf_jax.models.configs import VITS, ModelConfig, config_file
from rmtllmf_jax.models.heads import Head, logits_by_task
from rmtllmf_jax.models.images import cubic, normalise, resize
from rmtllmf_jax.models.layouts import VISION
from rmtllmf_jax.models.pretrained import Pretrained, read_pretrained
from rmtllmf_jax.models.processor import read_processor
from rmtllmf_jax.models.shapes import ViTShape
from rmtllmf_jax.models.vit import VisionTransformer
from rmtllmf_jax.models.weights import assign

_REST = {
    "vit": ("classifier/", "pooler/"),
    "deit": ("classifier/", "cls_classifier/", "distillation_classifier/", "pooler/"),
    "dinov2": ("classifier/", "embeddings/mask_token"),
    "clip": ("text_model/", "text_projection/", "visual_projection/", "logit_scale", "classifier/"),
    "siglip": ("text_model/", "logit_scale", "logit_bias", "classifier/"),
}
"""What of a model is not of its image tower, by family."""

_LATER = ("class_tokens", "layer_scale", "swiglu", "pool")
"""Flags of a tower that are younger than run folders: fingerprints leave them out at defaults."""

_POSITIONS = ("embeddings/position_embeddings", "embeddings/position_embedding/embedding")


@dataclass(frozen=True)
class Backbone:
    """A model without its parameters: static, hashable, and pure in what it computes.

    `mean` and `std` are those of the model's image processor, per channel, for images in 0..1.
    """

    module: VisionTransformer | CLIPVision
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images that the model takes."""
        return self.module.shape.image_size

    @property
    def width(self) -> int:
        """Length of a feature."""
        return self.module.shape.features

    @property
    def fingerprint(self) -> str:
        """Hash of all that features depend on besides parameters, images and compute type."""
        shape = asdict(self.module.shape)
        del shape["dtype"], shape["remat"]
        for field in fields(self.module.shape):
            if field.name in _LATER and shape[field.name] == field.default:
                del shape[field.name]
        return content_hash({**shape, "mean": self.mean, "std": self.std})

    def features(
        self, params: PyTree, images: UInt8[Array, "batch size size channels"]
    ) -> Float[Array, "batch width"]:
        """Return the features of raw images, which are normalised on the device."""
        normalised = normalise(images, self.mean, self.std)
        features = self.module.apply({"params": params}, normalised)
        assert isinstance(features, jax.Array)  # apply's type allows for mutable collections
        return features

    def prepared(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return inputs with images of the model's size, resized on the device."""
        images = inputs["images"]
        if images.shape[1:3] == (self.image_size, self.image_size):
            return dict(inputs)  # even a call that does nothing costs time, beside a small model
        return {**inputs, "images": resize(images, self.image_size)}

    def outputs(
        self, params: PyTree, head: Head | None, inputs: Mapping[str, Array]
    ) -> Float[Array, "batch classes"]:
        """Return the logits of `inputs["images"]` under the task's head.

        With `inputs["task"]`, under the head of each sample's task among stacked ones.
        """
        assert head is not None
        features = self.features(params, inputs["images"])
        if "task" in inputs:
            return logits_by_task(head, features, inputs["task"])
        return head(features)


def load_backbone(
    model: str | Path | Pretrained,
    image_size: int | None = None,
    *,
    dtype: str = "float32",
    remat: bool = False,
    normalised: bool = True,
) -> tuple[Backbone, PyTree]:
    """Load the image tower of a Hugging Face model.

    **Arguments:**

    - `model`: a directory or a hub id, or the content read from it: a `CLIPModel`,
      `CLIPVisionModel`, `ViTModel` or `ViTForImageClassification`, or those of DeiT, DINOv2 and
      SigLIP; text tower, projections, classifier and pooler are left out.
    - `image_size`: in pixels, a multiple of the patch size; the position embeddings are
      interpolated to it. `None` keeps the checkpoint's own.
    - `dtype`: compute type of the tower, `float32` or `bfloat16`; `remat`: recompute activations
      in the backward pass.
    - `normalised`: rescale and normalise according to the model's image processor; otherwise images
      stay in 0..1.

    **Returns:** the backbone, and its parameters in float32.

    **Raises:** `InputError` that names the file, option or keys that do not fit.
    """
    found = model if isinstance(model, Pretrained) else read_pretrained(model)
    backbone = describe_backbone(
        found.directory, found.config, image_size, dtype=dtype, remat=remat, normalised=normalised
    )
    tensors = tower_tensors(found.tensors, found.config)
    _require_positions(tensors, found)
    tensors = with_positions(tensors, backbone.module.shape.grid)
    return backbone, assign(tensors, abstract_params(backbone), found.origin)


def _require_positions(tensors: dict[str, np.ndarray], found: Pretrained) -> None:
    """Check that the position embeddings are those of the configuration's image size."""
    shape = found.config.vision
    for path in _POSITIONS:
        table = tensors.get(path)
        rows = table.shape[-2] if table is not None and table.ndim in (2, 3) else 0
        patches = rows - shape.class_tokens
        if math.isqrt(max(patches, 0)) ** 2 == patches > 0 and patches != shape.grid**2:
            raise InputError(
                f"{found.origin}: {patches} position embeddings of patches ({path}), "
                f"and {config_file(found.directory).name} says image_size {shape.image_size} and "
                f"patch_size {shape.patch_size}, that is {shape.grid**2}: configuration and "
                "weights belong to different models. To use another image size, give --image-size."
            )


def at_size(shape: ViTShape, image_size: int | None, origin: str | Path) -> ViTShape:
    """Return the shape of a tower for another image size; `None` keeps its own.

    **Raises:** `InputError` that names `origin` if the size is not a multiple of the patch size.
    """
    size = shape.image_size if image_size is None else image_size
    if size < shape.patch_size or size % shape.patch_size:
        raise InputError(
            f"image size {size} is not a positive multiple of the patch size {shape.patch_size} "
            f"of {origin}."
        )
    return replace(shape, image_size=size)


def describe_backbone(
    directory: Path,
    config: ModelConfig,
    image_size: int | None = None,
    *,
    dtype: str = "float32",
    remat: bool = False,
    normalised: bool = True,
) -> Backbone:
    """Return the backbone of `load_backbone` without reading the parameters."""
    shape = replace(at_size(config.vision, image_size, directory), dtype=dtype, remat=remat)
    mean, std = (0.0,) * shape.channels, (1.0,) * shape.channels
    if normalised:
        processor = read_processor(directory, config.kind)
        mean, std = processor.mean, processor.std
        if {len(mean), len(std)} != {shape.channels}:
            raise InputError(
                f"{processor.origin or directory}: image_mean and image_std need a number for "
                f"each of the model's {shape.channels} channels, got {len(mean)} and {len(std)}."
            )
    module = VisionTransformer(shape) if config.kind in VITS else CLIPVision(shape)
    return Backbone(module, mean, std)


def tower_tensors(tensors: dict[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """Return the image tower's part of a checkpoint, by the paths of the tower's own tree.

    Tensors that belong to no known part keep their paths, so that they are reported as unexpected.
    """
    return {
        path.removeprefix(VISION): tensor
        for path, tensor in tensors.items()
        if not path.startswith(_REST[config.family])
    }


def with_positions(tensors: dict[str, np.ndarray], grid: int) -> dict[str, np.ndarray]:
    """Return a tower's tensors with position embeddings for ``grid x grid`` patches."""
    fitted = dict(tensors)
    for path in _POSITIONS:
        table = tensors.get(path)
        if table is not None and table.ndim in (2, 3):
            moved = interpolate_positions(table if table.ndim == 3 else table[None], grid)
            fitted[path] = moved if table.ndim == 3 else moved[0]
    return fitted


def abstract_params(backbone: Backbone) -> PyTree[jax.ShapeDtypeStruct]:
    """Return shapes and dtypes of the backbone's parameters, without making them."""
    shape = backbone.module.shape
    images = jax.ShapeDtypeStruct(
        (1, shape.image_size, shape.image_size, shape.channels), jnp.float32
    )
    return jax.eval_shape(backbone.module.init, jax.random.key(0), images)["params"]


def _bicubic_matrix(new: int, old: int) -> Float[np.ndarray, "new old"]:
    """Return the matrix of one-dimensional bicubic interpolation with repeated edge samples."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centres).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        index = np.clip(first + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(new), index), cubic(centres - (first + tap), -0.75))
    return matrix


def interpolate_positions(
    positions: Float[np.ndarray, "one tokens width"], grid: int
) -> Float[np.ndarray, "one new_tokens width"]:
    """Interpolate position embeddings to ``grid x grid`` patches; rows of class tokens are kept.

    Bicubic with a = -0.75 and without antialiasing, like `interpolate_pos_encoding` of Hugging
    Face's ViT in torch. Embeddings that do not form a square of patches after zero, one or two
    other tokens (at most one of the three is possible) are returned unchanged.
    """
    rows = positions.shape[1]
    for first in range(3):
        old = math.isqrt(max(rows - first, 0))
        if old > 0 and old**2 == rows - first:
            break
    else:
        return positions
    if old == grid:
        return positions
    matrix = _bicubic_matrix(grid, old)
    image = positions[0, first:].astype(np.float64).reshape(old, old, -1)
    image = np.einsum("ai,bj,ijw->abw", matrix, matrix, image)
    image = image.reshape(1, grid * grid, -1).astype(positions.dtype)
    return np.concatenate([positions[:, :first], image], axis=1)
