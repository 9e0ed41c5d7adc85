"""`rmtllmf apply-task-vector`: a task vector added to a checkpoint, without a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from rmtllmf_jax.cli.fuse import Fuse


@dataclass(kw_only=True)
class ApplyTaskVector:
    """Write base + scale * task vector as a directory that transformers opens.

    This is what `fuse` does with a single model, which may also be a fine-tuned checkpoint or a
    LoRA adapter. Text tower, projections and classifier stay those of the base.

    Example: rmtllmf apply-task-vector BASE vectors/dtd.safetensors --scale 0.5 --out dtd
    """

    base: tyro.conf.Positional[Path]
    """The model that the vector was made from: a Hugging Face directory or hub id, in
    safetensors."""
    vector: tyro.conf.Positional[Path]
    """A file written by import-task-vector, or a trained tower of a run folder
    (finetuned/<task>-....safetensors)."""
    out: Path
    """The directory to write; it must not exist."""
    scale: float = 1.0
    """Factor of the vector; a negative factor makes the model forget the task."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Type of the tensors that change; keep means the base's type."""

    def run(self) -> None:
        """Run the sub-command."""
        Fuse(
            base=self.base,
            models=(self.vector,),
            scale=str(self.scale),
            dtype=self.dtype,
            out=self.out,
        ).run()
