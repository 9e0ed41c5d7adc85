"""An image tower from a Hugging Face model: uint8 images in, features out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json
from rmtllmf_jax.models.clip import CLIPVision
from rmtllmf_jax.models.configs import ModelConfig
from rmtllmf_jax.models.images import normalise
from rmtllmf_jax.models.layouts import VISION
from rmtllmf_jax.models.positions import interpolate_positions
from rmtllmf_jax.models.pretrained import Pretrained, read_pretrained
from rmtllmf_jax.models.vit import VisionTransformer
from rmtllmf_jax.models.weights import assign

_VIT_HEADS = ("classifier/", "pooler/")
_CLIP_REST = ("text_model/", "text_projection/", "visual_projection/", "logit_scale", "classifier/")
_POSITIONS = ("embeddings/position_embeddings", "embeddings/position_embedding/embedding")


@dataclass(frozen=True)
class Backbone:
    """A model without its parameters: static, hashable, and pure in what it computes.

    `mean` and `std` are the model's own, a channel, for images in 0..1.
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
        return self.module.shape.width

    def features(
        self, params: PyTree, images: UInt8[Array, "batch size size channels"]
    ) -> Float[Array, "batch width"]:
        """Return the features of raw images, which are normalised on the device."""
        normalised = normalise(images, self.mean, self.std)
        features = self.module.apply({"params": params}, normalised)
        assert isinstance(features, jax.Array)  # apply's type allows for mutable collections
        return features


def load_backbone(
    model: str | Path,
    image_size: int | None = None,
    *,
    dtype: str = "float32",
    remat: bool = False,
    normalised: bool = True,
) -> tuple[Backbone, PyTree]:
    """Load the image tower of a Hugging Face model.

    **Arguments:**

    - `model`: a directory or a hub id, of `CLIPModel`, `CLIPVisionModel`, `ViTModel` or
      `ViTForImageClassification`; text tower, projections, classifier and pooler are left out.
    - `image_size`: in pixels, a multiple of the patch size; the position embeddings are
      interpolated to it. `None` keeps the checkpoint's own.
    - `dtype`: what the tower computes in, `float32` or `bfloat16`; `remat`: compute activations
      again in the backward pass.
    - `normalised`: with the model's own mean and standard deviation; otherwise images stay in 0..1.

    **Returns:** the backbone, and its parameters in float32.

    **Raises:** `InputError` that names the file, option or keys that do not fit.
    """
    return backbone_of(
        read_pretrained(model), image_size, dtype=dtype, remat=remat, normalised=normalised
    )


def backbone_of(
    found: Pretrained,
    image_size: int | None = None,
    *,
    dtype: str = "float32",
    remat: bool = False,
    normalised: bool = True,
) -> tuple[Backbone, PyTree]:
    """Return what `load_backbone` does, of a model that has been read."""
    shape = found.config.vision
    size = shape.image_size if image_size is None else image_size
    if size < shape.patch_size or size % shape.patch_size:
        raise InputError(
            f"image size {size} is not a positive multiple of the patch size {shape.patch_size} "
            f"of {found.directory}."
        )
    shape = replace(shape, image_size=size, dtype=dtype, remat=remat)
    is_vit = found.config.kind == "vit"
    tensors = with_positions(tower_tensors(found.tensors, found.config), shape.grid)
    identity = ((0.0,) * shape.channels, (1.0,) * shape.channels)
    mean, std = _image_statistics(found.directory, found.config) if normalised else identity
    backbone = Backbone(VisionTransformer(shape) if is_vit else CLIPVision(shape), mean, std)
    return backbone, assign(tensors, abstract_params(backbone), found.origin)


def tower_tensors(tensors: dict[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """Return the image tower's part of a checkpoint, by the paths of the tower's own tree.

    What belongs to no known part keeps its path, so that it is reported as unexpected.
    """
    others = _VIT_HEADS if config.kind == "vit" else _CLIP_REST
    return {
        path.removeprefix(VISION): tensor
        for path, tensor in tensors.items()
        if not path.startswith(others)
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


def _image_statistics(
    directory: Path, config: ModelConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the directory's preprocessor, or of the model's own kind."""
    from transformers import image_utils

    path = directory / "preprocessor_config.json"
    said: Any = read_json(path) if path.exists() else {}
    kind = "IMAGENET_STANDARD" if config.kind == "vit" else "OPENAI_CLIP"
    try:
        mean, std = (
            tuple(float(x) for x in said.get(key, getattr(image_utils, f"{kind}_{name}")))
            for key, name in (("image_mean", "MEAN"), ("image_std", "STD"))
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: image_mean and image_std must be lists of numbers ({error})."
        ) from error
    return mean, std
