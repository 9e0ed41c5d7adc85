"""A merged or fine-tuned model as a Hugging Face directory that transformers opens."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors.numpy import save_file

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.files import read_json, replacing, require_absent, sync, write_json
from rmtllmf_jax.fusion import leaves_by_path, require_same_structure
from rmtllmf_jax.fusion.files.carried import tokenizer_files
from rmtllmf_jax.fusion.files.configuration import CONFIG
from rmtllmf_jax.models.checkpoint import SAFETENSORS
from rmtllmf_jax.models.classifier import CODE_FILE, Classifier, code_for
from rmtllmf_jax.models.configs import VITS
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.models.decoder_configs import read_decoder_config
from rmtllmf_jax.models.hub import local_directory
from rmtllmf_jax.models.layouts import VISION, to_torch
from rmtllmf_jax.models.pretrained import Pretrained, abstract_decoder
from rmtllmf_jax.models.processor import NESTED, PLAIN, Fit, read_processor
from rmtllmf_jax.models.shapes import DTYPES

_UNUSED = "embeddings/mask_token"
"""A leaf of DINOv2 that pretraining alone reads, and transformers expects in the file."""

GENERATION = "generation_config.json"
"""How transformers generates text unless it is told otherwise."""


def export_model(
    folder: Path,
    base: Pretrained,
    tower: PyTree,
    image_size: int,
    *,
    fit: Fit | None = None,
    resize_to: int | None = None,
    normalised: bool = True,
    classifier: Classifier | None = None,
) -> None:
    """Write the pretrained model with another image tower as a Hugging Face directory.

    Text tower, projections, classifier and tokenizer are the pretrained model's, and so is the
    image processor, except where the arguments change it: `preprocessor_config.json` describes the
    tower's input in full, even if the pretrained model has none. CLIP keys keep the prefix
    ``vision_model.``, which transformers 4 and 5 read as `CLIPModel` and as `CLIPVisionModel`. The
    folder appears complete, by one rename.

    With a `classifier` the directory holds only the image tower and the classifier, and
    ``transformers.pipeline("image-classification", folder)`` answers with its labels. A ViT is
    opened as `ViTForImageClassification`. No class in transformers reads CLIP's class token (nor
    the output of SigLIP's head), so these come with code beside the weights, which requires
    ``trust_remote_code=True``.

    **Arguments:**

    - `tower`: parameters of the image tower (`backbone.load_backbone`).
    - `image_size`: side in pixels of the tower's input images.
    - `fit`: how images become square; `None` keeps the pretrained model's way. `resize_to` is the
      size to which they are resized before that, if it is not `image_size`.
    - `normalised`: whether they are normalised, or stay in 0..1.
    - `classifier`: a task's head, and the names of its classes.

    **Raises:** `InputError` if `folder` exists already or cannot be written, or if the pretrained
    model makes images square in a way that is not implemented.
    """
    require_absent(folder)
    processor = read_processor(base.directory, base.config.kind)
    if fit is not None:
        sides = None if resize_to is None else (resize_to, image_size)
        processor = replace(processor, fit=fit, before_crop=sides)
    if not normalised:
        ones = (1.0,) * len(processor.std)
        processor = replace(processor, mean=(0.0,) * len(ones), std=ones)
    with _appearing(folder) as part:
        with replacing(part / SAFETENSORS) as temporary:
            save_file(_torch_tensors(base, tower, classifier), temporary, {"format": "pt"})
        config = _with_image_size(base.content, base.config.kind, image_size)
        if classifier is not None:
            config = classifier.config(base.config, config)
            if "auto_map" in config:
                (part / CODE_FILE).write_text(code_for(base.config.family))
        write_json(part / CONFIG, config)
        said = processor.description(base.config.kind, image_size)
        write_json(part / PLAIN, said)
        if (base.directory / NESTED).is_file():  # transformers 5 looks there first
            write_json(
                part / NESTED, read_json(base.directory / NESTED) | {"image_processor": said}
            )
        if classifier is None:
            _copy_tokenizer(base.directory, part)


def export_decoder(
    folder: Path, base: str | Path, params: PyTree, *, dtype: str = "float32"
) -> None:
    """Write a text decoder with other parameters as a Hugging Face directory.

    Configuration, tokenizer and chat template are those of the original model. The folder appears
    complete, by one rename.

    **Arguments:**

    - `base`: directory or hub id of that model.
    - `params`: all parameters (`load_decoder`).
    - `dtype`: of the file, `float32` or `bfloat16` (rounded).

    **Raises:** `InputError` if `folder` exists already or cannot be written, or if the parameters
    are not those of the model's configuration.
    """
    require_absent(folder)
    require_known("dtype", dtype, DTYPES)
    directory = local_directory(base)
    shape = read_decoder_config(directory / CONFIG)
    require_same_structure(abstract_decoder(Decoder(shape)), params, (str(base), "the parameters"))
    tensors = dict(
        to_torch(path, np.asarray(leaf, jnp.dtype(dtype)))
        for path, leaf in leaves_by_path(params).items()
    )
    with _appearing(folder) as part:
        config = {key: x for key, x in read_json(directory / CONFIG).items() if key != "dtype"}
        write_json(part / CONFIG, config | {"torch_dtype": dtype})  # which all versions read
        _copy_tokenizer(directory, part)
        if (directory / GENERATION).is_file():
            shutil.copyfile(directory / GENERATION, part / GENERATION)
        with replacing(part / SAFETENSORS) as temporary:
            save_file(tensors, temporary, {"format": "pt"})


def _copy_tokenizer(directory: Path, folder: Path) -> None:
    for name in tokenizer_files(directory):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(directory / name, folder / name)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which then appears as `folder` by one rename."""
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        yield part
        os.rename(part, folder)
        sync(folder.parent)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}).") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _torch_tensors(
    base: Pretrained, tower: PyTree, classifier: Classifier | None
) -> dict[str, np.ndarray]:
    kind, is_vit = base.config.kind, base.config.kind in VITS
    leaves = {("" if is_vit else VISION) + p: leaf for p, leaf in leaves_by_path(tower).items()}
    others = base.tensors
    if classifier is not None:
        kept = {path: leaf for path, leaf in others.items() if path.startswith(_UNUSED)}
        others = kept | classifier.tensors()
    paths = others | {path: np.asarray(leaf) for path, leaf in leaves.items()}
    classifies = any("classifier/" in path for path in paths)
    tensors = {}
    for path, leaf in paths.items():
        key, tensor = to_torch(path, np.asarray(leaf))
        if is_vit and classifies and "classifier/" not in path:
            key = f"{kind}.{key}"
        tensors[key] = tensor
    return tensors


def _with_image_size(config: dict[str, Any], kind: str, image_size: int) -> dict[str, Any]:
    if kind not in ("clip", "siglip"):
        return config | {"image_size": image_size}
    # Old configurations state it twice, and transformers uses the second one.
    sections = [name for name in ("vision_config", "vision_config_dict") if config.get(name)]
    changed = {name: config[name] | {"image_size": image_size} for name in sections}
    return {"vision_config": {"image_size": image_size}} | config | changed
