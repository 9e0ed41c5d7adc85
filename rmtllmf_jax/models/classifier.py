"""A head as the last layer of a checkpoint: the model's own, and one written along with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.configs import VITS, ModelConfig
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.pretrained import Pretrained
from rmtllmf_jax.models.weights import require_finite

KERNEL, BIAS, PROJECTION = "classifier/kernel", "classifier/bias", "visual_projection/kernel"
CODE_FILE = "modeling_classifier.py"
"""File of the class below, beside the weights of a CLIP's classifier."""

_PROJECTED, _UNIT = "projects_features", "normalises_features"
"""Fields of a `config.json` for the class below: `Head.projection` and `Head.unit`."""

_PREFIXES = {"clip": "CLIP", "siglip": "Siglip"}
"""Of the names of transformers' classes, by family."""

_NATIVE = {
    "vit": "ViTForImageClassification",
    "deit": "DeiTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "siglip": "SiglipForImageClassification",
}
"""Classes of transformers that read the features that are read here, by family."""

_CODE = '''"""An image classifier on the pooled feature of a vision encoder.

That is the class token's, or its head's, and FAMILYForImageClassification of transformers averages
the patches in place of it. Open it by
AutoModelForImageClassification.from_pretrained(DIRECTORY, trust_remote_code=True).
"""

from torch import nn
from transformers import FAMILYVisionConfig, FAMILYVisionModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.MODULE.modeling_MODULE import FAMILYPreTrainedModel


class FAMILYVisionClassifier(FAMILYPreTrainedModel):
    """The encoder, its projection and scaling to unit length (of zero-shot heads), and a linear
    layer."""

    config_class = FAMILYVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        encoder = FAMILYVisionModel(config)
        self.vision_model = getattr(encoder, "vision_model", encoder)  # transformers 4, and 5
        width = config.hidden_size
        self.visual_projection = None
        if config.projects_features:
            self.visual_projection = nn.Linear(width, config.projection_dim, bias=False)
            width = config.projection_dim
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def forward(self, pixel_values=None, labels=None, **options):
        features = self.vision_model(pixel_values=pixel_values).pooler_output
        if self.visual_projection is not None:
            features = self.visual_projection(features)
        if self.config.normalises_features:
            features = features / features.norm(dim=-1, keepdim=True)
        logits = self.classifier(features)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
'''


def code_for(family: str) -> str:
    """Return what transformers needs to open a classifier for which it has no class."""
    return _CODE.replace("FAMILY", _PREFIXES[family]).replace("MODULE", family)


@dataclass(frozen=True)
class Classifier:
    """A head and the names of its classes."""

    head: Head
    labels: tuple[str, ...]

    def tensors(self) -> dict[str, np.ndarray]:
        """Return its tensors by path (`layouts`)."""
        found = {KERNEL: self.head.kernel, BIAS: self.head.bias, PROJECTION: self.head.projection}
        return {path: np.asarray(leaf) for path, leaf in found.items() if leaf is not None}

    def config(self, model: ModelConfig, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a model's `config.json` with the classifier in it.

        For a CLIP it becomes that of its vision encoder: from the whole one, transformers would
        silently make a classifier on other features.
        """
        about: dict[str, Any] = {
            "id2label": {str(number): name for number, name in enumerate(self.labels)},
            "label2id": {name: number for number, name in enumerate(self.labels)},
        }
        family, vision = model.family, {**config}
        if model.kind == family and family not in VITS:
            vision = {**(config.get("vision_config_dict") or config.get("vision_config") or {})}
        if family in VITS or model.vision.pool == "mean":
            if model.kind != family:
                config = {"vision_config": vision}
            return {**config, **about, "model_type": family, "architectures": [_NATIVE[family]]}
        if self.head.projection is not None:
            about["projection_dim"] = int(self.head.projection.shape[-1])
        name = f"{_PREFIXES[family]}VisionClassifier"
        return {
            **vision,
            **about,
            "model_type": f"{family}_vision_model",
            "architectures": [name],
            "auto_map": {
                "AutoModelForImageClassification": f"{CODE_FILE.removesuffix('.py')}.{name}"
            },
            _PROJECTED: self.head.projection is not None,
            _UNIT: self.head.projection is not None or self.head.unit,
        }


def read_classifier(found: Pretrained) -> Classifier:
    """Return the classifier of a checkpoint, on the features of its image tower.

    The classifier is that of `ViTForImageClassification` and those of DeiT, DINOv2 and SigLIP
    (without its head), or of a directory that `rmtllmf export` wrote.

    **Raises:** `InputError` that names the file if there is none, if it uses features other than
    ours, or if names and weights disagree.
    """
    config = found.content
    if KERNEL not in found.tensors:
        raise InputError(
            f"{found.origin}: no classifier (classifier.weight); expected a Hugging Face "
            "ViTForImageClassification, or a directory that `rmtllmf export` wrote for one task."
        )
    native = found.config.family in VITS or found.config.vision.pool == "mean"
    if not native and _PROJECTED not in config:
        raise InputError(
            f"{found.origin}: its classifier reads the mean of the patches "
            f"({_PREFIXES[found.config.family]}ForImageClassification), and the features here are "
            "those of the class token, or of the head that attends to the patches."
        )
    projected = config.get(_PROJECTED, False)
    wanted = [KERNEL, *([PROJECTION] if projected else [])]
    if missing := [path for path in wanted if path not in found.tensors]:
        raise InputError(f"{found.origin}: its classifier lacks {', '.join(missing)}.")
    kernel = found.tensors[KERNEL]
    classes = kernel.shape[-1]
    tensors = {path: found.tensors[path] for path in wanted}
    tensors[BIAS] = found.tensors.get(BIAS, np.zeros(classes, np.float32))
    inputs = tensors[PROJECTION].shape[-1] if projected else found.config.vision.features
    if kernel.shape != (inputs, classes) or tensors[BIAS].shape != (classes,):
        raise InputError(
            f"{found.origin}: a classifier of {inputs} features needs weights ({inputs}, classes) "
            f"and a bias per class, got {kernel.shape} and {tensors[BIAS].shape}."
        )
    require_finite(tensors, found.origin)
    leaves = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in tensors.items()}
    unit = not projected and bool(config.get(_UNIT, False))
    return Classifier(
        Head(leaves[KERNEL], leaves[BIAS], leaves.get(PROJECTION), unit),
        _labels(config, classes, found),
    )


def _labels(config: Mapping[str, Any], classes: int, found: Pretrained) -> tuple[str, ...]:
    """Return the names of a classifier's outputs; empty if they have none."""
    names = config.get("id2label") or {}
    try:
        by_number = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise InputError(
            f"{found.directory / 'config.json'}: id2label must be names by number ({error})."
        ) from error
    if not by_number or all(name == f"LABEL_{i}" for i, name in by_number.items()):
        return ()
    if sorted(by_number) != list(range(classes)):
        raise InputError(
            f"{found.directory / 'config.json'}: id2label has {len(by_number)} names, and the "
            f"classifier of {found.origin.name} {classes} outputs."
        )
    return tuple(by_number[i] for i in range(classes))
