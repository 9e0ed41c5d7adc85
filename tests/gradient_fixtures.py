"""A tiny differentiable model with three tasks behind a small cell, and differences to hold it to.

All numbers come from NumPy, so that the objective is the same in float32 and in float64 but for the
Gaussians, which `jax.random` draws anew in each precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmtllmf_jax import channel, uplink
from rmtllmf_jax.channel import ChannelPreset, Link, Preset
from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.fusion.rules import TASK_ARITHMETIC
from rmtllmf_jax.gradients import Objective, Parameters, Setting
from rmtllmf_jax.models.heads import PADDED_LOGIT, Head
from rmtllmf_jax.uplink import Scenario

TASKS, LEAVES, LAYERS, CLASSES = 3, 3, 3, 4
BATCHES, BATCH, PIXELS, WIDTH = 6, 16, 12, 6
SCALE = 0.4
PRESET = ChannelPreset(users=4, antennas=6)
KEY = jax.random.key(7)
# Compiling costs most of the time here, running little.
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def features(params: Any, images: jax.Array) -> jax.Array:
    """Two layers of tanh, in the precision of the parameters."""
    layers = params["encoder"]["layers"]
    pixels = images.reshape(len(images), -1).astype(layers["0"]["kernel"].dtype) / 255 - 0.5
    hidden = jnp.tanh(pixels @ layers["0"]["kernel"] + params["embeddings"]["bias"])
    return jnp.tanh(hidden @ layers["1"]["kernel"])


def _tree(rng: np.random.Generator, size: float, *lead: int) -> dict:
    def normal(*shape: int) -> np.ndarray:
        return size * rng.normal(size=(*lead, *shape))

    return {
        "embeddings": {"bias": normal(WIDTH)},
        "encoder": {
            "layers": {
                "0": {"kernel": normal(PIXELS, WIDTH)},
                "1": {"kernel": normal(WIDTH, WIDTH)},
            }
        },
    }


@functools.cache
def _numbers() -> tuple[dict, dict, np.ndarray, np.ndarray, np.ndarray]:
    """Base, task vectors, kernels of the heads, images and labels, as NumPy has them."""
    rng = np.random.default_rng(1)
    base, vectors = _tree(rng, 1.0), _tree(rng, 0.2, TASKS)
    kernels = 2 * rng.normal(size=(TASKS, WIDTH, CLASSES))
    images = rng.integers(0, 256, (BATCHES, BATCH, 2, 2, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES - 1, (BATCHES, BATCH))
    return base, vectors, kernels, images, labels


TASK_OF_BATCH = np.repeat(np.arange(TASKS), BATCHES // TASKS)


def link_of(scenario: str, preset: Preset | Link = PRESET) -> Link:
    """What a scenario's users send through, from a preset or behind a link's receiver."""
    link = preset if isinstance(preset, Link) else Link(preset)
    attack = Scenario(scenario).attack
    assert attack is not None
    return replace(link, attack=attack)


def tiny_objective(
    scenario: str = "ideal",
    dtype: Any = jnp.float32,
    *,
    preset: Preset | Link = PRESET,
    features: Callable[..., jax.Array] = features,
    metric: Any = "soft_accuracy",
    channel_draws: int = 2,
    noise_draws: int = 2,
    method: Any = TASK_ARITHMETIC,
    **fields: Any,
) -> Objective:
    """An objective of three tasks whose labels are what the merged model says without noise.

    One class of the first head and four samples of the last batch are padding.
    """
    base, vectors, kernels, images, labels = _numbers()
    cast = functools.partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, dtype))
    bias = np.zeros((TASKS, CLASSES))
    bias[0, -1] = PADDED_LOGIT
    heads = Head(*cast((kernels, bias)))
    weights = np.full((BATCHES, BATCH), 1 / (BATCHES * BATCH))
    weights[-1, -4:] = 0
    merged = cast(jax.tree.map(lambda b, v: b + SCALE * v.sum(axis=0), base, vectors))
    right = [
        np.argmax(_head(heads, task)(features(merged, jnp.asarray(batch))), axis=-1)
        for task, batch in zip(TASK_OF_BATCH, images, strict=True)
    ]
    # One label in four is left to chance, or a little noise would do no harm.
    chance = np.arange(BATCH) % 4 == 0
    samples = Batch(
        {"images": jnp.asarray(images), "task": jnp.asarray(TASK_OF_BATCH)},
        jnp.asarray(np.where(chance, labels, np.stack(right))),
        cast(weights),
    )
    return Objective(
        setting=Setting(
            features,
            None if scenario == "clean" else link_of(scenario, preset),
            metric,
            channel_draws,
            noise_draws,
            method,
        ),
        base=cast(base),
        vectors=cast(vectors),
        heads=heads,
        samples=samples,
        kappa=uplink.kappa_from_c0(cast(vectors), -15.0).astype(dtype),
        **{"scale": SCALE} | fields,
    )


def _head(heads: Head, task: int) -> Head:
    return jax.tree.map(lambda leaf: leaf[task], heads)


def _attack() -> np.ndarray:
    """Root of a covariance of trace 1, and a number above the triangle that must not be read."""
    rng = np.random.default_rng(3)
    root = np.eye(6) + 0.3 * rng.normal(size=(2, 6, 6))
    return root / np.sqrt(np.sum(np.tril(root[0]) ** 2) + np.sum(np.tril(root[1], -1) ** 2))


_PLACES = np.array([[400.0, 150.0], [-220.0, 310.0], [90.0, -160.0], [520.0, 480.0]])
EXAMPLES = {
    "powers": np.array([0.5, 0.9, 0.7, 0.3]),
    "distances": np.array([420.0, 350.0, 180.0, 700.0]),
    "positions": _PLACES,
    "positions_3d": np.column_stack([_PLACES, [-25.0, 30.0, -20.0, -30.0]]),
    "path_loss_exponent": np.array(2.3),
    "budget": np.array(100.0),
    "attack": _attack(),
    "mse": np.array([0.02, 0.3, 0.1, 0.5]),
    "mse_factor": np.linspace(0.6, 1.4, TASKS * LEAVES).reshape(TASKS, LEAVES),
    "scale": np.array(0.45),
    "scale_per_task": np.array([0.3, 0.5, 0.4]),
    "scale_per_layer": np.linspace(0.3, 0.6, TASKS * LAYERS).reshape(TASKS, LAYERS),
}
_FIELD = {"positions_3d": "positions", "scale_per_task": "scale", "scale_per_layer": "scale"}


def parameters_of(*kinds: str, dtype: Any = jnp.float32) -> Parameters:
    """Return parameters with the examples of these kinds."""
    return Parameters(
        **{_FIELD.get(kind, kind): jnp.asarray(EXAMPLES[kind], dtype) for kind in kinds}
    )


@dataclass(frozen=True)
class Orthogonal:
    """Fading with orthogonal, equally strong users: at one power and place K is c times I."""

    def __call__(self, key: Any, antennas: int, users: int, dtype: Any = None) -> jax.Array:
        drawn = channel.rayleigh(key, antennas, users, dtype)
        return jnp.linalg.qr(drawn)[0] * jnp.sqrt(antennas).astype(jnp.real(drawn).dtype)


# Central difference of sixth order from three steps each way.
_WEIGHTS = np.array([45.0, -9.0, 1.0]) / 60


def slopes(
    function: Callable[..., jax.Array], parameters: Parameters, *rest: Any, step: float = 3e-3
) -> dict[str, tuple[float, float]]:
    """Return by parameter its derivative along a random way: by the gradient, by differences.

    Of ``function(parameters, *rest)``. The way is in proportion to the parameter's entries; `step`
    is relative. One program takes the gradient and the differences: compiling is what takes long.
    """
    names = parameters.given()
    rng = np.random.default_rng(5)
    points, ways = [parameters], {}
    for name in names:
        here = np.asarray(getattr(parameters, name), float)
        ways[name] = rng.choice([-1, 1], here.shape) * rng.uniform(0.5, 1, here.shape) * here
        for count in (1, 2, 3):
            for sign in (1, -1):
                moved = jnp.asarray(here + sign * count * step * ways[name])
                points.append(replace(parameters, **{name: moved}))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    both = jax.vmap(jax.value_and_grad(function), (0, *[None] * len(rest)))
    values, gradients = jax.jit(both, compiler_options=FAST_COMPILE)(stacked, *rest)
    found = {}
    for number, name in enumerate(names):
        pairs = np.asarray(values[1 + 6 * number : 7 + 6 * number]).reshape(3, 2)
        difference = float(_WEIGHTS @ (pairs[:, 0] - pairs[:, 1])) / step
        gradient = np.asarray(getattr(gradients, name)[0])
        found[name] = float(np.sum(gradient * ways[name])), difference
    return found
