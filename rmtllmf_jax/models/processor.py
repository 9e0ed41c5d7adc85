"""What a model's image processor does to images; steps not implemented are refused by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.common.files import read_json
from rmtllmf_jax.models import open_clip

NESTED, PLAIN = "processor_config.json", "preprocessor_config.json"
"""Files that describe an image processor: of transformers 5, which prefers the first one, and of
earlier versions and many models on the hub."""

Fit = Literal["crop", "squash"]
"""How an image becomes square: `crop` keeps its proportions, `squash` all of its content."""

FITS: tuple[Fit, ...] = get_args(Fit)
"""`crop`: shorter side to the size, then the centre; `squash`: both sides to the size."""

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""The resampling filter, one of Pillow's."""

RESAMPLES: tuple[Resample, ...] = get_args(Resample)
"""In the order of their numbers."""

_TYPES: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "resample": RESAMPLES.index("bicubic"),
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    },
    "ViTImageProcessor": {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "resample": RESAMPLES.index("bilinear"),
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    },
    "SiglipImageProcessor": {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "resample": RESAMPLES.index("bicubic"),
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    },
    "DeiTImageProcessor": {
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "resample": RESAMPLES.index("bicubic"),
        "image_mean": (0.485, 0.456, 0.406),
        "image_std": (0.229, 0.224, 0.225),
    },
    "BitImageProcessor": {  # DINOv2's
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "resample": RESAMPLES.index("bicubic"),
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    },
}
"""The known types and their defaults, for fields that a file leaves out."""

_COMMON: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_HARMLESS = ("do_convert_rgb",)  # all images are RGB here


@dataclass(frozen=True)
class ImageProcessor:
    """How a model wants its images.

    `mean` and `std`, per channel, are for images in 0..1: ``(images / 255 - mean) / std`` covers
    rescaling and normalising together, either alone, and neither. `fit` is `None` if images become
    square in a way that is not implemented, which `unfit` names. `before_crop` holds the side to
    which images are resized and the side that is then cut out, (256, 224), if they differ.
    `origin` is the file, `None` if the model has none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit | None = "crop"
    resample: Resample = "bicubic"
    unfit: str = ""
    origin: Path | None = None
    before_crop: tuple[int, int] | None = None

    def own_fit(self) -> Fit:
        """Return how images become square.

        **Raises:** `InputError` that names what is not implemented.
        """
        if self.fit is None:
            raise InputError(
                f"{self.origin}: {self.unfit} is not implemented; choose --fit crop (the shorter "
                "side to size, then the centre) or --fit squash (both sides to size) in its place."
            )
        return self.fit

    def resize_to(self, image_size: int) -> int | None:
        """Return the size to which images are resized before `image_size` pixels are cut out.

        `None` is `image_size`; at sizes other than the model's own, the same share is cut off.
        """
        if self.before_crop is None:
            return None
        resized, cut = self.before_crop
        found = round(image_size * resized / cut)
        return None if found == image_size else found

    def description(self, kind: str, image_size: int) -> dict[str, Any]:
        """Return its `preprocessor_config.json` for squares of `image_size` pixels.

        **Raises:** as `own_fit`.
        """
        square = {"height": image_size, "width": image_size}
        resized = self.resize_to(image_size)
        shorter = self.own_fit() == "crop"
        crops, side = shorter or resized is not None, resized or image_size
        return {
            "image_processor_type": _default_type(kind),
            **_COMMON,
            "size": {"shortest_edge": side} if shorter else {"height": side, "width": side},
            "do_center_crop": crops,
            **({"crop_size": square} if crops else {}),
            "do_convert_rgb": True,
            "resample": RESAMPLES.index(self.resample),
            "image_mean": self.mean,
            "image_std": self.std,
        }


def _default_type(kind: str) -> str:
    """Return the type of image processor that describes a kind's images."""
    return "ViTImageProcessor" if kind == "vit" else "CLIPImageProcessor"


_DEFAULTS = {
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "DeiTImageProcessor",  # whose mean and std, of ImageNet, are those of DINOv2
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
}
"""Whose mean and std a kind has that has no file; others have CLIP's."""


def default_processor(kind: str) -> ImageProcessor:
    """Return the defaults of a kind: mean, std (OpenAI's or, for a ViT, 0.5), `crop`, `bicubic`."""
    preset = _TYPES[_DEFAULTS.get(kind, "CLIPImageProcessor")]
    return ImageProcessor(preset["image_mean"], preset["image_std"])


def read_processor(directory: Path, kind: str) -> ImageProcessor:
    """Return the image processor of a model directory.

    `kind` is Hugging Face's `model_type`. A directory without a processor file gets
    `default_processor`.

    **Raises:** `InputError` that names the file and an invalid field, an unknown type of processor,
    or a step that is not implemented.
    """
    found = _find_processor(directory)
    if found is None:
        return default_processor(kind)
    path, said = found
    default = _DEFAULTS.get(kind, "CLIPImageProcessor")
    # None stands for the default of the type, as in transformers.
    said = {name: value for name, value in said.items() if value is not None}
    name = str(said.get("image_processor_type", said.get("feature_extractor_type", default)))
    name = (
        name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    )
    full = _COMMON | _TYPES[require_known(f"image_processor_type of {path}", name, _TYPES)] | said
    for field, value in full.items():
        if field in _STEPS and not isinstance(value, bool):
            raise InputError(f"{path}: {field} must be true or false, got {value!r}.")
        if field.startswith("do_") and value and field not in (*_STEPS, *_HARMLESS):
            raise InputError(f"{path}: {field} is not implemented; it must be false, or left out.")
    number = full["resample"]
    if type(number) is not int or number not in range(len(RESAMPLES)):
        raise InputError(
            f"{path}: resample must be the number of one of Pillow's filters, 0 to "
            f"{len(RESAMPLES) - 1}, got {number!r}."
        )
    shorter = ("CLIPImageProcessor", "BitImageProcessor")
    fit, unfit, before_crop = _fit(full, both_sides=name not in shorter)
    mean, std = _statistics(full, path)
    return ImageProcessor(mean, std, fit, RESAMPLES[number], unfit, path, before_crop)


def _find_processor(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the file that describes a directory's image processor, and the description.

    **Raises:** `InputError` that names a file with other content.
    """
    for name in (NESTED, PLAIN):
        path = directory / name
        if not path.exists():
            continue
        said = read_json(path)
        if name == NESTED and isinstance(said, dict):
            if "image_processor" not in said:
                continue  # as transformers 4 wrote it: the image processor is in the other file
            said = said["image_processor"]
        if not isinstance(said, dict):
            raise InputError(f"{path}: an image processor must be an object, got {said!r}.")
        return path, said
    path = directory / open_clip.CONFIG
    return (path, open_clip.processor(read_json(path), path)) if path.is_file() else None


def _statistics(full: dict[str, Any], path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for images in 0..1, with the rescaling factor folded in."""
    try:
        mean, std = (tuple(map(float, full[name])) for name in ("image_mean", "image_std"))
        factor = float(full["rescale_factor"]) if full["do_rescale"] else 1.0
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: image_mean and image_std must be lists of numbers, rescale_factor a number "
            f"({error})."
        ) from error
    if not full["do_normalize"]:
        mean, std = (0.0,) * len(mean), (1.0,) * len(mean)
    if not all(map(math.isfinite, (*mean, *std, factor))) or 0 in (*std, factor):
        raise InputError(
            f"{path}: image_mean must be finite, image_std and rescale_factor also not 0, got "
            f"{mean}, {std}, {factor}."
        )
    # 255 * (1 / 255) is 1 exactly, so that the usual factor changes no digit.
    return tuple(x / (255 * factor) for x in mean), tuple(x / (255 * factor) for x in std)


def _fit(
    full: dict[str, Any], *, both_sides: bool
) -> tuple[Fit | None, str, tuple[int, int] | None]:
    """Return how images become square, or which step is not implemented, and `before_crop`."""
    for step, wanted in (("do_resize", True), ("use_square_size", False)):
        if full.get(step, wanted) != wanted:
            return None, f"{step}: {str(full[step]).lower()}", None
    size, crop = full["size"], full.get("crop_size")
    if isinstance(size, int):
        size = dict.fromkeys(("height", "width") if both_sides else ("shortest_edge",), size)
    if isinstance(crop, int):
        crop = dict.fromkeys(("height", "width"), crop)
    said = size if isinstance(size, dict) else {}
    side, centre = said.get("height", said.get("shortest_edge")), full["do_center_crop"]
    cut = crop.get("height") if isinstance(crop, dict) else None
    square = {"height": cut, "width": cut}
    fits: dict[Fit, dict[str, Any]] = {
        "squash": {"height": side, "width": side},
        "crop": {"shortest_edge": side},
    }
    for fit, wanted_size in fits.items():
        if size == wanted_size and isinstance(side, int):
            if not centre and fit == "squash":
                return fit, "", None
            if centre and isinstance(cut, int) and crop == square and cut <= side:
                return fit, "", None if cut == side else (side, cut)
    return (
        None,
        f"size {size} with " + (f"crop_size {crop}" if centre else "no do_center_crop"),
        None,
    )
