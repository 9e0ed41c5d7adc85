"""Light augmentation of training images, as values; off unless asked for.

>>> parse_augmentations(("crop(share=0.1)", "flip"), "svhn")
(Crop(share=0.1), Flip())
>>> parse_augmentations(("auto",), "svhn"), parse_augmentations(("auto",), "dtd")
((Crop(share=0.125),), (Crop(share=0.125), Flip()))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import by_name, parse


@runtime_checkable
class Augmentation(Protocol):
    """A random change of images that preserves their classes."""

    def __call__(
        self, images: UInt8[Array, "batch size size channels"], key: Key[Array, ""]
    ) -> UInt8[Array, "batch size size channels"]:
        """Return the images, each changed independently."""
        ...


@dataclass(frozen=True)
class Crop:
    """Each image shifted by up to a share of its side, with its edge pixels repeated.

    Equivalent to padding by the share and cropping at random: He et al., arXiv 1512.03385, section
    4.2, pad 32 pixels by 4.
    """

    share: float = 0.125

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.share < 1:
            raise InputError(f"share of a crop must be above 0 and below 1, got {self.share!r}.")

    def __call__(
        self, images: UInt8[Array, "batch size size channels"], key: Key[Array, ""]
    ) -> UInt8[Array, "batch size size channels"]:
        """Return every image cropped at an independent place."""
        size = images.shape[1]
        margin = max(1, round(self.share * size))
        padded = jnp.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")
        starts = jax.random.randint(key, (len(images), 2), 0, 2 * margin + 1)

        def crop(
            image: UInt8[Array, "padded padded channels"], start: Array
        ) -> UInt8[Array, "size size channels"]:
            sides = (size, size, image.shape[-1])
            return jax.lax.dynamic_slice(image, (start[0], start[1], 0), sides)

        return jax.vmap(crop)(padded, starts)


@dataclass(frozen=True)
class Flip:
    """Left and right swapped in half of the images."""

    def __call__(
        self, images: UInt8[Array, "batch size size channels"], key: Key[Array, ""]
    ) -> UInt8[Array, "batch size size channels"]:
        """Return every image unchanged or mirrored, with equal probability."""
        turned = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
        return jnp.where(turned, images[:, :, ::-1], images)


AUGMENTATIONS = by_name(Crop, Flip)
"""Augmentations by name, for the command line."""

AUTO = "auto"
MIRRORED = (
    *("cars", "cifar10", "cifar100", "dtd", "eurosat", "fashion_mnist"),
    *("fer2013", "oxford_flowers102", "food101", "pcam", "oxford-iiit-pet"),
    *("photographs", "resisc45", "stl10", "sun397", "textures"),
)
"""Tasks whose images may be mirrored; digits, letters and signs may not, and of others one does not
know."""


def parse_augmentations(
    chosen: Sequence[str | Augmentation], task: str
) -> tuple[Augmentation, ...]:
    """Return augmentations for a task, given as values or as texts.

    `auto` is `crop`, plus `flip` for tasks where mirrored images keep their class (`MIRRORED`).

    **Raises:** `InputError` that names what is unknown, and the known ones.
    """
    found: list[Augmentation] = []
    for each in chosen:
        if not isinstance(each, str):
            found.append(each)
        elif each.strip() == AUTO:
            found += [Crop(), Flip()] if task in MIRRORED else [Crop()]
        else:
            found.append(parse(each, AUGMENTATIONS | {AUTO: Crop}, "augmentation"))
    return tuple(found)


@partial(jax.jit, static_argnames="augmentations")
def augmented(
    images: UInt8[Array, "batch size size channels"],
    key: Key[Array, ""],
    *,
    augmentations: tuple[Augmentation, ...],
) -> UInt8[Array, "batch size size channels"]:
    """Return images after all augmentations, one after another, each with its own key."""
    for place, augmentation in enumerate(augmentations):
        images = augmentation(images, jax.random.fold_in(key, place))
    return images
