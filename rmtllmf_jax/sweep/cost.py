"""What a model costs (parameters, operations, memory) and how fast known devices are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rmtllmf_jax.models.shapes import CLIPShape, TextShape, TransformerShape, ViTShape

FLOAT = 4
"""Bytes of a parameter, a gradient or a moment."""

UTILISATION = {"train": 0.4, "forward": 0.5, "memory": 0.5}
"""Shares of a device's peaks that hours are reckoned with: assumptions, not measurements."""

_NUMBERS = {"float32": 4, "bfloat16": 2}


def image_tower(model: CLIPShape | ViTShape) -> ViTShape:
    """Return the tower that is fine-tuned and merged: all of a plain ViT."""
    return model.vision if isinstance(model, CLIPShape) else model


def tower_parameters(model: CLIPShape | ViTShape) -> int:
    """Return the parameters of the image tower: one task vector.

    ``p^2 c w + w + t w + d (4 w^2 + 2 w m + 9 w + m) + 2 w`` for patches of p x p x c, width w,
    depth d, MLP width m and t = grid^2 + 1 tokens; CLIP's has another LayerNorm (2 w) before the
    blocks, a plain ViT's a bias (w) of the patch embedding.
    """
    shape = image_tower(model)
    width = shape.width
    patches = shape.patch_size**2 * shape.channels * width
    own = 2 * width if isinstance(model, CLIPShape) else width
    qkv_biases = 0 if shape.qkv_bias else -3 * width * shape.depth
    positions = tokens(shape) * width
    return patches + width + positions + own + _blocks(shape) + qkv_biases + 2 * width


def all_parameters(model: CLIPShape | ViTShape) -> int:
    """Return the parameters of a whole checkpoint, which is what a download holds."""
    if not isinstance(model, CLIPShape):
        return tower_parameters(model)
    text = model.text
    tables = (text.vocabulary + text.positions) * text.width
    projections = (model.vision.width + text.width) * model.projection
    tower = tables + _blocks(text) + 2 * text.width
    return tower_parameters(model) + tower + projections + 1  # the scale of the logits


def head_parameters(model: CLIPShape | ViTShape, classes: int) -> int:
    """Return the numbers of one frozen head; CLIP's holds the projection of its image tower."""
    if isinstance(model, CLIPShape):
        return model.vision.width * model.projection + (model.projection + 1) * classes
    return (model.width + 1) * classes


def _blocks(shape: TransformerShape) -> int:
    width, mlp = shape.width, shape.mlp_width
    return shape.depth * (4 * width**2 + 2 * width * mlp + 9 * width + mlp)


def tokens(shape: ViTShape | TextShape) -> int:
    """Return the tokens of an image (patches and the class token), or of a text, padded."""
    return shape.grid**2 + 1 if isinstance(shape, ViTShape) else shape.positions


def forward_flops(shape: ViTShape | TextShape) -> float:
    """Return the floating-point operations of the matrix products for one image or text.

    Two a multiply-add. A block with t tokens, width w and MLP width m takes ``4 t w^2`` for keys
    and values, and for each of r tokens that are read ``4 w^2`` for query and output, ``4 t w`` for
    scores and values, ``4 w m`` for the MLP. All t are read, but of an image tower's last block the
    class token alone, which saves 7 % of a ViT-B/16. The patch embedding takes ``2 (t - 1) p^2 c
    w``. What is left out (LayerNorm, softmax, activation) is below 1 % of a ViT-B/16. A causal mask
    saves nothing: masked scores are computed.
    """
    length = tokens(shape)
    if isinstance(shape, TextShape):
        return float(shape.depth * _block_flops(shape, length, length))
    embedding = 2 * (length - 1) * shape.patch_size**2 * shape.channels * shape.width
    return float(embedding + _image_blocks_flops(shape))


def train_flops(shape: ViTShape) -> float:
    """Return the operations that training takes an image.

    Three forward passes: the backward pass forms a product for the inputs and one for the weights
    of every product. With `remat` the blocks are computed once more, all but their last product
    (``2 r w m``), which no gradient needs.
    """
    flops = 3 * forward_flops(shape)
    if shape.remat:
        read = (shape.depth - 1) * tokens(shape) + 1
        flops += _image_blocks_flops(shape) - 2 * read * shape.width * shape.mlp_width
    return flops


def _image_blocks_flops(shape: ViTShape) -> int:
    length = tokens(shape)
    whole, last = (_block_flops(shape, length, read) for read in (length, 1))
    return (shape.depth - 1) * whole + last


def _block_flops(shape: TransformerShape, length: int, read: int) -> int:
    width = shape.width
    each = 4 * width**2 + 4 * length * width + 4 * width * shape.mlp_width
    return 4 * length * width**2 + read * each


def layer_bytes(shape: ViTShape) -> int:
    """Return the bytes that the backward pass of one block keeps an image, about.

    ``t (10 w + 3 m) b + h t^2 (8 + b)`` with b bytes a number: what enters and leaves LayerNorms
    and products, three versions of the hidden layer, and three attention maps a head, two of them
    in float32. The factors are XLA's without a fused attention kernel.
    """
    number, length = _NUMBERS[shape.dtype], tokens(shape)
    rows = length * (10 * shape.width + 3 * shape.mlp_width) * number
    return rows + shape.heads * length**2 * (8 + number)


def activation_bytes(shape: ViTShape, batch: int, *, training: bool) -> int:
    """Return the bytes of a batch's activations, an estimate within a factor of two.

    Training keeps `layer_bytes` of every block but the last one, which reads the class token alone
    and keeps ``10 t w b``, or with `remat` each block's input and `layer_bytes` of one; inference
    one block's. Images are held as uint8, as float32 and as patches. XLA on a CPU
    keeps everything in spite of `remat`, and computes bfloat16 in float32.
    """
    number = _NUMBERS[shape.dtype]
    residual = tokens(shape) * shape.width * number
    if training and not shape.remat:
        blocks = (shape.depth - 1) * layer_bytes(shape) + 10 * residual
    elif training:
        blocks = shape.depth * residual + layer_bytes(shape)
    else:
        blocks = residual + layer_bytes(shape)
    pixels = shape.image_size**2 * shape.channels * (1 + FLOAT + number)
    return batch * (blocks + pixels)


def training_memory(model: CLIPShape | ViTShape, batch: int) -> dict[str, int]:
    """Return the bytes on a device while one task is fine-tuned, part by part; their sum counts.

    With P parameters in float32: ``4 P`` the base model, ``16 P`` the trained parameters, their
    gradients and AdamW's two moments, ``2 P`` their copy in bfloat16 if the tower computes in it.
    """
    shape, parameters = image_tower(model), tower_parameters(model)
    return {
        "base model": FLOAT * parameters,
        **_trained(shape, parameters),
        f"activations, batch {batch}": activation_bytes(shape, batch, training=True),
    }


def sweep_memory(
    model: CLIPShape | ViTShape,
    users: int,
    *,
    eval_batch: int,
    test_bytes: int,
    realign_batch: int | None,
    shot_bytes: int,
    cells_at_once: int = 1,
) -> dict[str, int]:
    """Return the bytes on a device during a sweep, part by part; their sum counts.

    With P parameters in float32: ``4 P`` the base model, ``4 P Q`` the stacked vectors of Q users
    and as much the noise of a draw, ``4 P`` the merged model of each cell; test images and few-shot
    pool stay on the device. On top the busiest of three steps: realigning (``16 P`` and the
    activations a cell, `training_memory`), evaluating (activations a cell), and the cosines (``4 P
    Q``: vectors as received). Merging needs nothing besides: it is one pass. Heads are left out.

    `realign_batch` is `None` where no cell is realigned.
    """
    shape, parameters = image_tower(model), tower_parameters(model)
    evaluating = activation_bytes(shape, eval_batch, training=False)
    steps = {"evaluating": cells_at_once * evaluating, "the cosines": FLOAT * parameters * users}
    if realign_batch is not None:
        state = sum(_trained(shape, parameters).values())
        activations = activation_bytes(shape, realign_batch, training=True)
        steps["realigning"] = cells_at_once * (state + activations)
    busiest = max(steps, key=lambda name: steps[name])
    merged = "merged model" if cells_at_once == 1 else f"{cells_at_once} merged models"
    return {
        "base model": FLOAT * parameters,
        f"{users} task vectors": FLOAT * parameters * users,
        "noise of a draw": FLOAT * parameters * users,
        merged: FLOAT * parameters * cells_at_once,
        "test images": test_bytes,
        "few-shot pool": shot_bytes,
        f"busiest step: {busiest}": steps[busiest],
    }


def _trained(shape: ViTShape, parameters: int) -> Mapping[str, int]:
    parts = {"parameters, gradients, moments": 4 * FLOAT * parameters}
    if shape.dtype == "bfloat16":
        parts["parameters in bfloat16"] = 2 * parameters
    return parts


@dataclass(frozen=True)
class Speed:
    """Peaks of one device, in operations and bytes a second.

    `float32` is what JAX's default matmul precision makes of float32: TF32 on NVIDIA GPUs from
    Ampere on, one pass in bfloat16 on TPUs.
    """

    bfloat16: float
    float32: float
    bandwidth: float
    measured: bool = False

    def peak(self, dtype: str) -> float:
        """Return the operations a second of products in a type."""
        return self.bfloat16 if dtype == "bfloat16" else self.float32


# Dense, without sparsity; of the vendors' data sheets. Whole names: a MIG slice of an H100 or a
# laptop's GPU of the same number is another device.
_TABLE = {
    r"NVIDIA H200": Speed(989e12, 494e12, 4.8e12),
    r"NVIDIA H100 80GB HBM3": Speed(989e12, 494e12, 3.35e12),
    r"NVIDIA H100 PCIe": Speed(756e12, 378e12, 2.0e12),
    r"NVIDIA A100-(SXM4|PCIE)-40GB": Speed(312e12, 156e12, 1.555e12),
    r"NVIDIA A100(-SXM4-80GB| 80GB PCIe)": Speed(312e12, 156e12, 1.935e12),
    # No bfloat16 in hardware: its 125 TFLOP/s are float16's, which nothing here computes in.
    r"(NVIDIA )?Tesla V100-SXM2-(16|32)GB": Speed(15.7e12, 15.7e12, 0.9e12),
    r"NVIDIA GeForce RTX 4090": Speed(165e12, 82.6e12, 1.008e12),
    r"TPU v4": Speed(275e12, 275e12, 1.228e12),
    r"TPU v5( lite|e)": Speed(197e12, 197e12, 0.819e12),
    r"TPU v5p?": Speed(459e12, 459e12, 2.765e12),
    r"TPU v6( lite|e)": Speed(918e12, 918e12, 1.64e12),
}


def known_speed(device_kind: str) -> Speed | None:
    """Return the peaks of a device by `jax.Device.device_kind`, `None` if it is not known."""
    for pattern, speed in _TABLE.items():
        if re.fullmatch(pattern, device_kind):
            return speed
    return None


@dataclass(frozen=True)
class Work:
    """A part of the run: so many `units`, `amount` operations (or bytes moved) in all."""

    what: str
    count: int
    units: str
    amount: float
    kind: Literal["train", "forward", "memory"]

    def hours(self, speed: Speed, dtype: str) -> float:
        """Return the hours that one device takes, at the assumed share of its peak."""
        peak = speed.bandwidth if self.kind == "memory" else speed.peak(dtype)
        return self.amount / (peak * UTILISATION[self.kind]) / 3600
