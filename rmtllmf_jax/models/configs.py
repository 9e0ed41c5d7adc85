"""From a Hugging Face `config.json` to the shapes of a model's towers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError, require_known, require_non_negative
from rmtllmf_jax.common.files import read_json
from rmtllmf_jax.fusion.files.configuration import CONFIG
from rmtllmf_jax.models import open_clip
from rmtllmf_jax.models.activations import ACTIVATIONS
from rmtllmf_jax.models.shapes import (
    CLIPShape,
    SiglipShape,
    SiglipTextShape,
    TextShape,
    ViTShape,
)
from rmtllmf_jax.models.text import quiet_transformers

VITS = ("vit", "deit", "dinov2")
"""Hugging Face's `model_type` of the models that are flags of `vit.VisionTransformer`."""

KINDS = (*VITS, "clip", "clip_vision_model", "siglip", "siglip_vision_model")
"""Hugging Face's `model_type` of the models that can be loaded."""

_PUBLISHED: dict[str, dict[str, Any]] = {
    "openai/clip-vit-base-patch32": {"vision_config": {"patch_size": 32}},
    "openai/clip-vit-base-patch16": {"vision_config": {"patch_size": 16}},
    "openai/clip-vit-large-patch14": {
        "vision_config": {
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        "text_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
        "projection_dim": 768,
    },
}
"""Where they differ from the defaults of Hugging Face's `CLIPConfig`."""

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_IMAGE_SIZES = ("image_size", "patch_size", "num_channels")
_TEXT_SIZES = ("vocab_size", "max_position_embeddings")


@dataclass(frozen=True)
class ModelConfig:
    """The content of a configuration: its `kind`, one of `KINDS`, and its towers.

    `text` is `None` if the model has no text tower that shares a space with images, and
    `projection` is `None` if there is no projection into such a space.
    """

    kind: str
    vision: ViTShape
    text: TextShape | SiglipTextShape | None = None
    projection: int | None = None

    @property
    def family(self) -> str:
        """The `model_type` of the whole model to which the image tower belongs."""
        return self.kind.removesuffix("_vision_model")

    def towers(self, path: Path) -> CLIPShape | SiglipShape:
        """Return both towers.

        **Raises:** `InputError` that names `path` if there is no usable text tower.
        """
        if isinstance(self.text, SiglipTextShape):
            return SiglipShape(self.vision, self.text)
        if self.text is None or self.projection is None:
            raise InputError(
                f"{path}: model_type is {self.kind!r}, which has no text tower that shares a space "
                "with images; expected 'clip' or 'siglip'."
            )
        if not 0 <= self.text.end_token < self.text.vocabulary:
            raise InputError(
                f"{path}: text_config.eos_token_id must be one of the {self.text.vocabulary} "
                f"tokens, got {self.text.end_token}."
            )
        return CLIPShape(self.vision, self.text, self.projection)


def published_config(model: str) -> ModelConfig | None:
    """Return the configuration of an OpenAI CLIP by hub id, without a download; else `None`."""
    from transformers import CLIPConfig

    if model not in _PUBLISHED:
        return None
    full = CLIPConfig(**_PUBLISHED[model])
    return _both_towers(full, Path(model))


def config_file(directory: Path) -> Path:
    """Return the configuration file in a model's directory: Hugging Face's, or else open_clip's."""
    path = directory / CONFIG
    other = directory / open_clip.CONFIG
    return other if other.is_file() and not path.is_file() else path


def config_content(path: Path) -> dict[str, Any]:
    """Return the content of a `config.json`, or an `open_clip_config.json` in the same form.

    **Raises:** `InputError` that names the file if it is not a JSON object, or is not for a model
    that can be built, or is for quantised weights.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object.")
    if quantised := content.get("quantization_config"):
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise InputError(
            f"{path}: quantised weights (quantization_config{f', {method}' if method else ''}); "
            "dequantise the model and save it in float32, float16 or bfloat16."
        )
    return open_clip.hugging_face_config(content, path) if "model_cfg" in content else content


def read_config(path: Path) -> ModelConfig:
    """Read a `config.json`, or an `open_clip_config.json`.

    **Raises:** `InputError` that names the file and the field if it is not one of `KINDS`, or not
    one that can be built.
    """
    content = config_content(path)
    kind = content.get("model_type")
    if kind not in KINDS:
        raise InputError(
            f"{path}: model_type is {kind!r}; expected one of {', '.join(KINDS)} (a Hugging Face "
            "ViTModel, ViTForImageClassification, CLIPModel, CLIPVisionModel, and those of DeiT, "
            "DINOv2 and SigLIP)."
        )
    from huggingface_hub.errors import StrictDataclassError
    from transformers import (  # a second of import, paid only when a model is loaded
        CLIPConfig,
        CLIPVisionConfig,
        DeiTConfig,
        Dinov2Config,
        SiglipConfig,
        SiglipVisionConfig,
        ViTConfig,
    )

    # Long tables of class names; transformers compares them with a count that may be missing.
    content = {k: v for k, v in content.items() if k not in ("id2label", "label2id")}
    reader = {
        "vit": ViTConfig,
        "deit": DeiTConfig,
        "dinov2": Dinov2Config,
        "clip": CLIPConfig,
        "clip_vision_model": CLIPVisionConfig,
        "siglip": SiglipConfig,
        "siglip_vision_model": SiglipVisionConfig,
    }[kind]
    try:
        with quiet_transformers():  # which warns of tokens that no SigLIP reads
            full = reader.from_dict(content)
    except (StrictDataclassError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    except ZeroDivisionError as error:  # transformers divides before it checks
        raise InputError(
            f"{path}: num_attention_heads of a tower must be a whole number >= 1, got 0."
        ) from error
    if kind == "clip":
        return _both_towers(full, path)
    if kind == "siglip":
        return _siglip_towers(full, path)
    return ModelConfig(kind, _vision(full, path))


def _both_towers(full: Any, path: Path) -> ModelConfig:
    text = full.text_config
    _require_sizes(text, (*_SIZES, *_TEXT_SIZES), path, "text_config.")
    _require_sizes(full, ("projection_dim",), path, "")
    end = text.eos_token_id
    if not isinstance(end, int):
        raise InputError(f"{path}: text_config.eos_token_id must be one token, got {end!r}.")
    return ModelConfig(
        "clip",
        _vision(full.vision_config, path, "vision_config."),
        TextShape(
            **_transformer(text, path, "text_config."),
            vocabulary=text.vocab_size,
            positions=text.max_position_embeddings,
            end_token=end,
        ),
        full.projection_dim,
    )


def _siglip_towers(full: Any, path: Path) -> ModelConfig:
    """Return SigLIP's towers, without a text tower if images have no feature in its space."""
    vision, text = _vision(full.vision_config, path, "vision_config."), full.text_config
    if vision.pool != "attention":
        return ModelConfig("siglip", vision)
    _require_sizes(text, (*_SIZES, *_TEXT_SIZES, "projection_size"), path, "text_config.")
    if text.projection_size != vision.features:
        raise InputError(
            f"{path}: features of texts have {text.projection_size} numbers "
            f"(text_config.projection_size) and those of images {vision.features} "
            "(vision_config.hidden_size); in a SigLIP they share a space."
        )
    return ModelConfig(
        "siglip",
        vision,
        SiglipTextShape(
            **_transformer(text, path, "text_config."),
            vocabulary=text.vocab_size,
            positions=text.max_position_embeddings,
            features=text.projection_size,
        ),
    )


def _vision(config: Any, path: Path, where: str = "") -> ViTShape:
    flags: dict[str, Any] = {}
    if config.model_type == "deit":
        flags = {"class_tokens": 2}
    elif config.model_type == "siglip_vision_model":
        pool = "attention" if config.vision_use_head else "mean"
        flags = {"class_tokens": 0, "pool": pool}
    elif config.model_type == "dinov2":
        hidden = int(config.hidden_size * config.mlp_ratio)
        if config.use_swiglu_ffn:  # two thirds, up to a multiple of 8
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        config.intermediate_size = hidden
        flags = {
            "layer_scale": True,
            "swiglu": config.use_swiglu_ffn,
            "pool": "class_and_mean",
        }
    _require_sizes(config, (*_SIZES, *_IMAGE_SIZES), path, where)
    return ViTShape(
        **_transformer(config, path, where),
        **flags,
        image_size=config.image_size,
        patch_size=config.patch_size,
        channels=config.num_channels,
        qkv_bias=getattr(config, "qkv_bias", True),  # CLIP's always have one
    )


def _transformer(config: Any, path: Path, where: str) -> dict[str, Any]:
    require_known(f"{where}hidden_act of {path}", config.hidden_act, ACTIVATIONS)
    require_non_negative(f"{path}: {where}layer_norm_eps", config.layer_norm_eps)
    return {
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "activation": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
    }


def _require_sizes(config: Any, names: tuple[str, ...], path: Path, where: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{path}: {where}{name} must be a whole number >= 1, got {value!r}.")
    if "num_attention_heads" in names and config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"{path}: {where}hidden_size {config.hidden_size} is not a multiple of "
            f"num_attention_heads {config.num_attention_heads}."
        )
