"""A pretrained backbone from a Hugging Face directory: uint8 images in, features out."""

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
from rmtllmf_jax.models.positions import interpolate_positions
from rmtllmf_jax.models.vit import VisionTransformer, ViTShape
from rmtllmf_jax.models.weights import assign, read_safetensors

WEIGHTS = "model.safetensors"
"""File of the weights inside a Hugging Face directory."""

_NOT_BACKBONE = ("classifier.", "pooler.", "vit.pooler.")
_SIZES = (
    "image_size",
    "patch_size",
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)


@dataclass(frozen=True)
class Backbone:
    """A model without its parameters: static, hashable, and pure in what it computes.

    `mean` and `std` are the model's own, a channel, for images in 0..1.
    """

    module: VisionTransformer
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
        mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
        normalised = (images.astype(jnp.float32) / 255 - mean) / std
        features = self.module.apply({"params": params}, normalised)
        assert isinstance(features, jax.Array)  # apply's type allows for mutable collections
        return features


def _shape(config: Any, path: Path) -> ViTShape:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import ViTConfig  # a second of import, paid only when a model is loaded

    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != "vit":
        raise InputError(
            f"{path}: model_type is {model_type!r}; expected 'vit' "
            "(a Hugging Face ViTModel or ViTForImageClassification directory)."
        )
    try:
        full = ViTConfig.from_dict(
            {k: v for k, v in config.items() if k not in ("id2label", "label2id")}
        )
    except StrictDataclassError as error:
        raise InputError(f"{path}: {error}") from error
    for key in _SIZES:
        value = getattr(full, key)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{path}: {key} must be a whole number >= 1, got {value!r}.")
    if full.hidden_size % full.num_attention_heads:
        raise InputError(
            f"{path}: hidden_size {full.hidden_size} is not a multiple of num_attention_heads "
            f"{full.num_attention_heads}."
        )
    return ViTShape(
        image_size=full.image_size,
        patch_size=full.patch_size,
        channels=full.num_channels,
        width=full.hidden_size,
        depth=full.num_hidden_layers,
        heads=full.num_attention_heads,
        mlp_width=full.intermediate_size,
        activation=full.hidden_act,
        layer_norm_eps=full.layer_norm_eps,
        qkv_bias=full.qkv_bias,
    )


def _image_statistics(directory: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of the directory's preprocessor, or of Hugging Face's ViT processor."""
    from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

    path = directory / "preprocessor_config.json"
    config = read_json(path) if path.exists() else {}
    try:
        mean = tuple(float(x) for x in config.get("image_mean", IMAGENET_STANDARD_MEAN))
        std = tuple(float(x) for x in config.get("image_std", IMAGENET_STANDARD_STD))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: image_mean and image_std must be lists of numbers ({error})."
        ) from error
    return mean, std


def _to_leaf(key: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    """Turn a torch key and layout into a flax path and layout."""
    path = key.removeprefix("vit.").replace(".", "/")
    if not path.endswith("/weight"):
        return path, tensor
    stem = path.removesuffix("/weight")
    if tensor.ndim == 4:
        return f"{stem}/kernel", tensor.transpose(2, 3, 1, 0)
    if tensor.ndim == 2:
        return f"{stem}/kernel", tensor.T
    return f"{stem}/scale", tensor


def load_backbone(directory: Path, image_size: int | None = None) -> tuple[Backbone, PyTree]:
    """Load a ViT from a Hugging Face directory (``config.json``, ``model.safetensors``).

    **Arguments:**

    - `directory`: of `ViTForImageClassification` or `ViTModel`; classifier and pooler are left out.
    - `image_size`: in pixels, a multiple of the patch size; the position embeddings are
      interpolated to it. `None` keeps the checkpoint's own.

    **Returns:** the backbone, and its parameters in float32.

    **Raises:** `InputError` that names the file, option or keys that do not fit.
    """
    if not directory.is_dir():
        raise InputError(
            f"{directory}: no such directory; expected a Hugging Face model directory."
        )
    shape = _shape(read_json(directory / "config.json"), directory / "config.json")
    size = shape.image_size if image_size is None else image_size
    if size < shape.patch_size or size % shape.patch_size:
        raise InputError(
            f"image size {size} is not a positive multiple of the patch size {shape.patch_size} "
            f"of {directory}."
        )
    shape = replace(shape, image_size=size)
    path = directory / WEIGHTS
    tensors = dict(
        _to_leaf(key, tensor)
        for key, tensor in read_safetensors(path).items()
        if not key.startswith(_NOT_BACKBONE)
    )
    positions = tensors.get("embeddings/position_embeddings")
    if positions is not None and positions.ndim == 3:
        tensors["embeddings/position_embeddings"] = interpolate_positions(positions, shape.grid)
    module = VisionTransformer(shape)
    mean, std = _image_statistics(directory)
    backbone = Backbone(module, mean, std)
    params = assign(tensors, abstract_params(backbone), path)
    return backbone, params


def abstract_params(backbone: Backbone) -> PyTree[jax.ShapeDtypeStruct]:
    """Return shapes and dtypes of the backbone's parameters, without making them."""
    shape = backbone.module.shape
    images = jax.ShapeDtypeStruct(
        (1, shape.image_size, shape.image_size, shape.channels), jnp.float32
    )
    return jax.eval_shape(backbone.module.init, jax.random.key(0), images)["params"]
