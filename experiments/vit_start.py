"""The image tower of a CLIP, begun from a ViT: the same function but for one normalisation.

CLIP normalises the embeddings before its first block and ViT does not, so the scale and the bias of
that normalisation are fitted to the embeddings of some images; the rest is a renaming.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.backbone import load_backbone
from rmtllmf_jax.models.clip import CLIPVision
from rmtllmf_jax.models.images import normalise
from rmtllmf_jax.models.pretrained import read_pretrained
from rmtllmf_jax.models.processor import read_processor
from rmtllmf_jax.models.shapes import ViTShape

_BLOCK = {
    "layernorm_before": "layer_norm1",
    "attention/attention/query": "self_attn/q_proj",
    "attention/attention/key": "self_attn/k_proj",
    "attention/attention/value": "self_attn/v_proj",
    "attention/output/dense": "self_attn/out_proj",
    "layernorm_after": "layer_norm2",
    "intermediate/dense": "mlp/fc1",
    "output/dense": "mlp/fc2",
}
"""Where a block of ViT has what a block of CLIP has."""


class ViTStart:
    """A ViT as the beginning of a CLIP's image tower, for images of `size` pixels."""

    def __init__(self, directory: Path, size: int) -> None:
        """Read a ViT from a Hugging Face directory.

        **Raises:** `InputError` if it is not a ViT, or as `load_backbone`.
        """
        found = read_pretrained(directory)
        if found.config.kind != "vit":
            raise InputError(f"{directory}: expected a ViT, found {found.config.kind}.")
        backbone, self._params = load_backbone(found, size)
        self.shape: ViTShape = backbone.module.shape
        processor = read_processor(directory, "vit")
        self.mean, self.std = processor.mean, processor.std

    @property
    def config(self) -> dict[str, Any]:
        """The vision part of a CLIP's configuration."""
        shape = self.shape
        return {
            "hidden_size": shape.width,
            "intermediate_size": shape.mlp_width,
            "num_hidden_layers": shape.depth,
            "num_attention_heads": shape.heads,
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "hidden_act": shape.activation,
            "layer_norm_eps": shape.layer_norm_eps,
        }

    def tower(self, images: UInt8[np.ndarray, "n size size 3"]) -> PyTree:
        """Return the parameters of the tower; `images` are those that the normalisation is fitted
        to.
        """
        given = self._params
        embeddings = given["embeddings"]
        patches = embeddings["patch_embeddings"]["projection"]
        positions = embeddings["position_embeddings"][0]
        # CLIP's patches have no bias: it goes into their positions.
        positions = positions.at[1:].add(patches["bias"])
        embedded = {
            "class_embedding": embeddings["cls_token"][0, 0],
            "patch_embedding": {"kernel": patches["kernel"]},
            "position_embedding": {"embedding": positions},
        }
        blocks = {number: _renamed(each) for number, each in given["encoder"]["layer"].items()}
        ones = jnp.ones(self.shape.width)
        tower = {
            "embeddings": embedded,
            "pre_layrnorm": {"scale": ones, "bias": 0 * ones},
            "encoder": {"layers": blocks},
            "post_layernorm": dict(given["layernorm"]),
        }
        scale, bias = self._unnormalised(tower, images)
        return tower | {"pre_layrnorm": {"scale": scale, "bias": bias}}

    def _unnormalised(self, tower: PyTree, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Return scale and bias, by feature, under which least squares are closest to no
        normalisation at all.
        """
        shown = normalise(jnp.asarray(images), self.mean, self.std)
        vision = CLIPVision(self.shape)
        _, seen = vision.apply({"params": tower}, shown, capture_intermediates=True)
        found = seen["intermediates"]
        (before,), (after,) = (found[name]["__call__"] for name in ("embeddings", "pre_layrnorm"))
        x, y = (each.reshape(-1, self.shape.width) for each in (before, after))
        centred = y - y.mean(0)
        scale = (centred * x).sum(0) / (centred**2).sum(0)
        return scale, x.mean(0) - scale * y.mean(0)


def _renamed(block: PyTree) -> PyTree:
    found = {}
    for path, leaf in flatten_dict(block, sep="/").items():
        module, _, name = path.rpartition("/")
        found[f"{_BLOCK[module]}/{name}"] = leaf
    return unflatten_dict(found, sep="/")
