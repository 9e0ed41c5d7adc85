"""Fine-tune a decoder on the texts of a task; resumes after kill -9."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from rmtllmf_jax.data.texts.packing import PackedTexts
from rmtllmf_jax.models.decoder import Decoder
from rmtllmf_jax.training.finetune import finetune
from rmtllmf_jax.training.recipes import Recipe


def finetune_decoder(
    decoder: Decoder,
    base: PyTree,
    texts: PackedTexts,
    recipe: Recipe,
    seed: int,
    checkpoints: Path,
    **options: Any,
) -> PyTree:
    """Fine-tune all parameters of a decoder on texts, or the factors of a LoRA; return them.

    The loss is the mean over the counted tokens of a batch. The batch size of `recipe` counts rows;
    `options` are those of `training.finetune.finetune`, such as `lora`.

    **Raises:** `InputError` if the loss stops being finite, or as `Lora.kernels`.
    """
    return finetune(decoder, base, None, texts, recipe, seed, checkpoints, **options)
