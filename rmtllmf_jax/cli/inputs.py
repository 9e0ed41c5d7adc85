"""Options that name a model and its data. No heavy import: `--help` must be instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rmtllmf_jax.cli.help_text import BothWays, Place

if TYPE_CHECKING:
    from rmtllmf_jax.data.reading import Reading


@dataclass(kw_only=True)
class TextOptions:
    """The texts of a language model."""

    group: ClassVar[str] = "texts"

    texts: Place | None = None
    """Text tasks for a language model, instead of images: a YAML or JSON file, or embedded, four
    small tasks that come with the package. docs/language_models.md describes the file."""
    length: int = 256
    """Tokens per row of texts; longer texts are split over rows."""


@dataclass(kw_only=True)
class ModelOptions:
    """The pretrained model, the tasks, and how the model sees their images."""

    group: ClassVar[str] = "model and images"

    model: Place
    """Pretrained model: a Hugging Face directory (config.json and weights), or a hub id."""
    source: str = "folder"
    """Source of the images: folder (parquet or image folders), hub (Hugging Face datasets),
    tfds (tensorflow-datasets), arrays (<task>.npz) or embedded (eight small tasks that come with
    the package)."""
    data: Place | None = None
    """Folder of the images, of one task or with one folder per task: parquet files, a data set
    written by save_to_disk of datasets, <split>/<class>/<image>, or lists of images; or of arrays;
    with hub any data set of the Hugging Face hub, as owner/name, owner/name@revision:config or
    TASK=owner/name; or with hub and tfds the download folder. Later finetune runs add their data
    sets to those of the run folder."""
    tasks: tuple[str, ...] = ()
    """Tasks; user q of every channel draw sends the q-th in alphabetical order. By default the
    eight of the literature if the source has them all (cars, dtd, eurosat, gtsrb, mnist, resisc45,
    sun397, svhn), otherwise all that it has; with --texts all of them; tall14 and tall20 are the 14
    and 20 tasks of Wang et al. (2024)."""
    task_vectors: Place | None = None
    """Existing task vectors instead of fine-tuning: a folder written by import-task-vector, or one
    of LoRA adapters by task (PEFT's directories), or tanganke (the published models of CLIP
    ViT-B/16, which are then imported)."""
    head: str | None = None
    """Frozen heads: zero-shot (from the text tower of CLIP or SigLIP), lda (closed form, from
    features; lda(shots=5) from five training images per class), probe (a linear probe, probe=5) or
    own (the checkpoint's classifier); by default zero-shot if the model has a text tower, otherwise
    lda."""
    prompts: str = "ensemble"
    """Prompts of zero-shot heads: ensemble (the task's templates) or single (a photo of a ...)."""
    templates: Path | None = None
    """File with other prompts for zero-shot heads, one per line, where {} stands for the class
    name."""
    image_size: int | None = None
    """Height and width in pixels, a multiple of the model's patch size; by default the model's
    own."""
    fit: Literal["crop", "squash"] | None = None
    """How images become square: crop (shorter side to size, centre) or squash (both sides to size);
    by default as the model's image processor does it (crop, if it has none)."""
    normalise: BothWays = True
    """Rescale and normalise images as the model's image processor says (--normalise), or leave
    pixels in [0, 1] (--no-normalise)."""
    validation_fraction: float = 0.1
    """Share of each training class that is set aside for validation if a task has no validation
    split; for texts, the share set aside for each missing part."""
    skip_unreadable: int = 0
    """Leave out up to this many unreadable images per split, and list them."""


@dataclass(kw_only=True)
class SetOptions:
    """The names of a data set's columns and splits."""

    group: ClassVar[str] = "columns and splits"

    image_column: str | None = None
    """Column of the images; by default image, or the only one that holds images."""
    label_column: str | None = None
    """Column of the labels, which may be numbers or names; by default label, or the only one with
    class names, or labels, class, category or target."""
    train_split: str | None = None
    """Name of the split, or parts of several (train[:80%], train+validation); by default train or
    training, in any case."""
    validation_split: str | None = None
    """By default val, valid, validation or dev, if there is one. With the name of the train split,
    a share of it is always set aside."""
    test_split: str | None = None
    """By default test or testing. If the test split has no labels, use validation."""

    @property
    def reading(self) -> Reading:
        """The options as one value."""
        from rmtllmf_jax.data.reading import Reading

        return Reading.of(self)
