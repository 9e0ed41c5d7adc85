"""A pretrained model from a hub id or a directory: its configuration and its tensors by path."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from rmtllmf_jax.fusion.files.checkpoint import require_no_adapter
from rmtllmf_jax.models.checkpoint import read_checkpoint
from rmtllmf_jax.models.clip import CLIP
from rmtllmf_jax.models.configs import ModelConfig, config_content, config_file, read_config
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.decoder_configs import read_decoder_config
from rmtllmf_jax.models.hub import local_directory
from rmtllmf_jax.models.layouts import to_decoder_paths, to_paths
from rmtllmf_jax.models.siglip import Siglip, two_towers
from rmtllmf_jax.models.weights import assign


@dataclass(frozen=True)
class Pretrained:
    """The content of a Hugging Face directory; `tensors` holds all tensors by path (`layouts`)."""

    directory: Path
    config: ModelConfig
    tensors: dict[str, np.ndarray]
    origin: Path
    """The weights file named in error messages."""

    @property
    def content(self) -> dict[str, Any]:
        """The content of its `config.json` (for open_clip, converted to that of transformers)."""
        return config_content(config_file(self.directory))


def read_pretrained(model: str | Path) -> Pretrained:
    """Read configuration and weights of a model, from a directory or by its hub id.

    **Raises:** `InputError` that names the file or an adapter, or explains the hub's error
    (`local_directory`).
    """
    directory = local_directory(model)
    require_no_adapter(directory, sorted(os.listdir(directory)))
    config = read_config(config_file(directory))
    checkpoint = read_checkpoint(directory)
    require_no_adapter(directory, checkpoint.tensors)
    tensors = to_paths(checkpoint.tensors, config.kind, checkpoint.torch)
    return Pretrained(directory, config, tensors, checkpoint.origin)


def load_clip(model: str | Path, *, dtype: str = "float32") -> tuple[CLIP | Siglip, PyTree]:
    """Load CLIP or SigLIP with both towers from a directory or by its hub id.

    `dtype` is the compute type of the towers; parameters are float32.

    **Raises:** `InputError` that names the file and every key that does not fit, or if the model
    has no text tower.
    """
    found = read_pretrained(model)
    shape = found.config.towers(config_file(found.directory))
    vision, text = replace(shape.vision, dtype=dtype), replace(shape.text, dtype=dtype)
    changes: dict[str, Any] = {"vision": vision, "text": text}
    clip = two_towers(replace(shape, **changes))
    return clip, assign(found.tensors, abstract_clip(clip), found.origin)


def abstract_clip(clip: CLIP | Siglip) -> Any:
    """Return shapes and dtypes of the parameters of both towers, without making them."""
    vision = clip.shape.vision
    images = jax.ShapeDtypeStruct(
        (1, vision.image_size, vision.image_size, vision.channels), jnp.float32
    )
    tokens = jax.ShapeDtypeStruct((1, clip.shape.text.positions), jnp.int32)
    return jax.eval_shape(clip.init, jax.random.key(0), images, tokens)["params"]


def load_decoder(
    model: str | Path, *, dtype: str = "float32", remat: bool = False
) -> tuple[Decoder, PyTree]:
    """Load a text decoder from a directory or by its hub id.

    **Arguments:**

    - `model`: a `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM` or
      `Qwen3ForCausalLM`, in one file or sharded.
    - `dtype`: compute type, `float32` or `bfloat16`; `remat`: recompute activations in the
      backward pass.

    **Returns:** the decoder, and its parameters in float32.

    **Raises:** `InputError` that names the file, the field or every key that does not fit.
    """
    directory = local_directory(model)
    require_no_adapter(directory, sorted(os.listdir(directory)))
    shape = read_decoder_config(directory / "config.json")
    decoder = Decoder(replace(shape, dtype=dtype, remat=remat))
    checkpoint = read_checkpoint(directory)
    require_no_adapter(directory, checkpoint.tensors)
    tensors = to_decoder_paths(checkpoint.tensors, shape.tied, checkpoint.torch)
    return decoder, assign(tensors, abstract_decoder(decoder), checkpoint.origin)


def abstract_decoder(decoder: Decoder) -> Any:
    """Return shapes and dtypes of the parameters of a decoder, without making them."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(decoder.init, jax.random.key(0), tokens)["params"]
