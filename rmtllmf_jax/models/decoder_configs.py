"""From a Hugging Face `config.json` to the shape of a text decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError, require_known, require_non_negative
from rmtllmf_jax.common.files import read_json
from rmtllmf_jax.models.activations import ACTIVATIONS
from rmtllmf_jax.models.rotary import LinearRotary, Llama3Rotary, Rotary
from rmtllmf_jax.models.shapes import DecoderShape

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
"""Hugging Face's `model_type` of the decoders that can be loaded."""

_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("num_key_value_heads", "vocab_size", "max_position_embeddings"),
)
_SCALINGS = ("default", "linear", "llama3")


def is_decoder(path: Path) -> bool:
    """Whether a `config.json` is for one of `DECODERS`.

    **Raises:** `InputError` if it cannot be read.
    """
    content = read_json(path)
    return isinstance(content, dict) and content.get("model_type") in DECODERS


def read_decoder_config(path: Path) -> DecoderShape:
    """Read the `config.json` of a decoder.

    **Raises:** `InputError` that names the file and the field if it is not one of `DECODERS`, or
    not one that can be built.
    """
    content = read_json(path)
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind not in DECODERS:
        raise InputError(
            f"{path}: model_type is {kind!r}; expected one of {', '.join(DECODERS)} (a Hugging "
            "Face LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM)."
        )
    if content.get("quantization_config"):
        raise InputError(
            f"{path}: the weights are quantised (quantization_config), which is not implemented; "
            "take the model's original weights."
        )
    _require_scaling(content, path)
    return _shape(_full(kind, content, path), kind, path)


def _full(kind: str, content: dict[str, Any], path: Path) -> Any:
    """Return the configuration with the defaults of its family."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import (  # a second of import, paid only when a model is loaded
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
    )

    reader = dict(zip(DECODERS, (LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)))[kind]
    try:
        return reader.from_dict(content)
    except (StrictDataclassError, TypeError, AttributeError, ValueError, KeyError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    except ZeroDivisionError as error:  # transformers divides before it checks
        text = f"{path}: num_attention_heads must be a whole number >= 1, got 0."
        raise InputError(text) from error


def _shape(config: Any, kind: str, path: Path) -> DecoderShape:
    for name in _SIZES:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{path}: {name} must be a whole number >= 1, got {value!r}.")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise InputError(
            f"{path}: num_attention_heads {heads} is not a multiple of num_key_value_heads "
            f"{kv_heads}."
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if head_dim % 2:
        raise InputError(f"{path}: head_dim must be even, got {head_dim}.")
    require_known(f"hidden_act of {path}", config.hidden_act, ACTIVATIONS)
    require_non_negative(f"{path}: rms_norm_eps", config.rms_norm_eps)
    biased = kind in ("llama", "qwen3") and config.attention_bias
    return DecoderShape(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_width=config.intermediate_size,
        activation=config.hidden_act,
        layer_norm_eps=config.rms_norm_eps,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        rotary=_rotary(config.rope_parameters, config.max_position_embeddings, path),
        tied=config.tie_word_embeddings,
        qkv_bias=biased or kind == "qwen2",
        out_bias=biased,
        mlp_bias=kind == "llama" and config.mlp_bias,
        qk_norm=kind == "qwen3",
        window=_window(config),
    )


def _window(config: Any) -> int | None:
    layers = getattr(config, "layer_types", None)
    if layers is not None and "sliding_attention" not in layers:
        return None
    return getattr(config, "sliding_window", None)


def _require_scaling(content: dict[str, Any], path: Path) -> None:
    """Check the kind of rotary embedding, before transformers reports it."""
    for section in ("rope_parameters", "rope_scaling"):  # of transformers 5, and before
        rope = content.get(section)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise InputError(f"{path}: {section} must be an object, got {rope!r}.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in _SCALINGS:
            raise InputError(
                f"{path}: the rotary embedding is of type {kind!r} ({section}); implemented are "
                f"{', '.join(_SCALINGS)}."
            )


def _rotary(rope: dict[str, Any], positions: int, path: Path) -> Rotary:
    kind, theta = rope["rope_type"], rope["rope_theta"]
    share = rope.get("partial_rotary_factor", 1.0)
    if share != 1.0:
        raise InputError(
            f"{path}: partial_rotary_factor is {share}; only whole heads are rotated (1)."
        )
    try:
        if kind == "linear":
            return LinearRotary(theta=theta, factor=rope["factor"])
        if kind == "llama3":
            return Llama3Rotary(
                theta=theta,
                factor=rope["factor"],
                low=rope["low_freq_factor"],
                high=rope["high_freq_factor"],
                positions=rope.get("original_max_position_embeddings", positions),
            )
        return Rotary(theta=theta)
    except KeyError as error:
        raise InputError(f"{path}: the rotary embedding {kind!r} lacks {error}.") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
