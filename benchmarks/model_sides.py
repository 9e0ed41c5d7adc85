"""The two sides of the model benchmark: models, batches, heads and training steps of both."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmtllmf_jax.evaluation import Batch
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.backbone import Backbone, load_backbone
from rmtllmf_jax.models.clip import CLIPVision
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.shapes import ViTShape
from rmtllmf_jax.models.vit import VisionTransformer
from rmtllmf_jax.training.finetune import train_step
from rmtllmf_jax.training.recipes import Recipe

CLASSES, PROJECTION, LOGIT_SCALE = 10, 512, 100
# So many steps that the cosine does not move: torch's side has a constant learning rate.
RECIPE = Recipe(10**6, 1, learning_rate=1e-6, weight_decay=0.1, warmup=0.0, clip_norm=1.0)


@dataclass(frozen=True)
class Case:
    """A model, the images of a call, and how many rounds are enough."""

    module: type[nn.Module]
    shape: ViTShape
    forward: int
    train: int
    rounds: int


CASES = {
    "vit-b16": Case(
        CLIPVision,
        ViTShape(
            image_size=224,
            patch_size=16,
            width=768,
            depth=12,
            heads=12,
            mlp_width=3072,
            activation="quick_gelu",
            layer_norm_eps=1e-5,
        ),
        forward=8,
        train=2,
        rounds=5,
    ),
    "small": Case(
        VisionTransformer,
        ViTShape(
            image_size=64,
            patch_size=16,
            width=192,
            depth=12,
            heads=3,
            mlp_width=768,
            activation="gelu",
            layer_norm_eps=1e-6,
        ),
        forward=32,
        train=32,
        rounds=15,
    ),
}


def batch_of(case: Case, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images, whose labels go round the classes."""
    random, size = np.random.default_rng(0), case.shape.image_size
    images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return images, np.arange(count) % CLASSES


def head_of(case: Case) -> Head:
    """Return a random head: CLIP's with projection and scaled cosines, a linear one else."""
    random, width = np.random.default_rng(1), case.shape.width
    if case.module is not CLIPVision:
        kernel = random.normal(size=(width, CLASSES)) / np.sqrt(width)
        return Head(jnp.asarray(kernel, jnp.float32), jnp.zeros(CLASSES))
    kernel = random.normal(size=(PROJECTION, CLASSES))
    kernel *= LOGIT_SCALE / np.linalg.norm(kernel, axis=0)
    projection = random.normal(size=(width, PROJECTION)) / np.sqrt(width)
    return Head(
        jnp.asarray(kernel, jnp.float32), jnp.zeros(CLASSES), jnp.asarray(projection, jnp.float32)
    )


def random_backbone(case: Case, **changes: Any) -> tuple[Backbone, Any]:
    """Return a backbone with random weights, without torch."""
    shape = replace(case.shape, **changes)
    half = (0.5,) * shape.channels
    backbone = Backbone(case.module(shape), half, half)
    images = jnp.zeros((1, shape.image_size, shape.image_size, shape.channels))
    return backbone, jax.jit(backbone.module.init)(jax.random.key(0), images)["params"]


class Training:
    """Our training step on one batch, again and again; a call returns state and loss."""

    def __init__(self, case: Case, backbone: Backbone, params: Any, count: int) -> None:
        """Put everything on the device; `params` are copied, as steps donate their state."""
        params = jax.tree.map(jnp.copy, params)
        self.state = {"params": params, "optimiser": RECIPE.optimiser().init(params)}
        images, labels = batch_of(case, count)
        batch = Batch({"images": images}, labels, np.ones(count, np.float32))
        self.batch = jax.device_put((batch, head_of(case)))
        self.step = partial(train_step, model=backbone, recipe=RECIPE)

    def __call__(self) -> tuple[Any, jax.Array]:
        """Take a step."""
        self.state, loss = self.step(self.state, *self.batch)
        return self.state, loss


class Torch:
    """The peer: transformers in torch, with the same weights, head and optimiser."""

    def __init__(self, case: Case) -> None:
        """Draw random weights."""
        import torch
        import transformers

        torch.manual_seed(0)
        transformers.utils.logging.disable_progress_bar()
        shape = case.shape
        sizes = {
            "hidden_size": shape.width,
            "num_hidden_layers": shape.depth,
            "num_attention_heads": shape.heads,
            "intermediate_size": shape.mlp_width,
            "hidden_act": shape.activation,
            "layer_norm_eps": shape.layer_norm_eps,
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
        }
        if case.module is CLIPVision:
            config = transformers.CLIPVisionConfig(**sizes)
            self.kind, self.model = "clip", transformers.CLIPVisionModel(config)
        else:
            config = transformers.ViTConfig(**sizes)
            self.kind = "vit"
            self.model = transformers.ViTModel(config, add_pooling_layer=False)
        self.torch, self.case = torch, case

    def loaded(self) -> tuple[Backbone, Any]:
        """Return our tower with the same weights, by way of the disk."""
        backbone, params = through_disk(self.model, load_backbone)
        assert backbone.module == self.case.module(self.case.shape)
        return backbone, params

    def features(self, images: Any, backbone: Backbone) -> Any:
        """Return what `Backbone.features` does."""
        mean, std = (self.torch.tensor(x).view(3, 1, 1) for x in (backbone.mean, backbone.std))
        out = self.model(pixel_values=(images.float() / 255 - mean) / std)
        return out.pooler_output if self.kind == "clip" else out.last_hidden_state[:, 0]

    def forward(self, count: int, backbone: Backbone) -> Callable[[], Any]:
        """Return a call that computes features."""
        images = self.torch.from_numpy(batch_of(self.case, count)[0].transpose(0, 3, 1, 2).copy())
        return self.torch.inference_mode()(partial(self.features, images, backbone))

    def training(self, count: int, backbone: Backbone) -> Callable[[], Any]:
        """Return a call that takes a training step and returns the loss before it."""
        torch = self.torch
        pixels, classes = batch_of(self.case, count)
        images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        labels, head = torch.from_numpy(classes), head_of(self.case)
        kernel, bias, projection = (
            None if x is None else torch.from_numpy(np.array(x))
            for x in (head.kernel, head.bias, head.projection)
        )

        def loss() -> Any:
            features = self.features(images, backbone)
            if projection is not None:
                features = torch.nn.functional.normalize(features @ projection, dim=-1)
            return torch.nn.functional.cross_entropy(features @ kernel + bias, labels)

        self.optimiser, step = torch_steps(self.model, loss)
        return step

    def first_moments(self) -> Any:
        """Return Adam's first moments as a tree of our tower."""
        return through_disk(first_moments(self.model, self.optimiser), load_backbone)[1]


def torch_steps(model: Any, loss: Callable[[], Any]) -> tuple[Any, Callable[[], Any]]:
    """Return torch's optimiser, and a call that takes a step and returns the loss before it."""
    import torch

    params = list(model.parameters())
    optimiser = torch.optim.AdamW(
        params, lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay, fused=True
    )

    def step() -> Any:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(params, RECIPE.clip_norm)
        optimiser.step()
        return value.detach()

    return optimiser, step


def first_moments(model: Any, optimiser: Any) -> Any:
    """Return a copy of a torch model with Adam's first moments in place of its parameters."""
    import torch

    copied = copy.deepcopy(model)
    with torch.no_grad():
        for into, parameter in zip(copied.parameters(), model.parameters(), strict=True):
            into.copy_(optimiser.state[parameter]["exp_avg"])
    return copied


def check_moments(optimiser: Any, expected: Any) -> None:
    """Compare Adam's first moments after one step, which are a tenth of the clipped gradients."""
    moments, theirs = leaves_by_path(optax.tree.get(optimiser, "mu")), leaves_by_path(expected)
    assert moments.keys() == theirs.keys()
    largest = max(np.abs(moment).max() for moment in theirs.values())
    for path, moment in moments.items():
        # Exactly zero are the gradients of the keys' biases, up to rounding.
        scale = max(np.abs(theirs[path]).max(), 1e-3 * largest)
        np.testing.assert_allclose(
            moment / scale, theirs[path] / scale, rtol=0, atol=1e-3, err_msg=path
        )


def through_disk(model: Any, load: Callable[[Any], Any]) -> Any:
    """Return a torch model as ours: transformers knows its parameters by other names."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load(folder)
