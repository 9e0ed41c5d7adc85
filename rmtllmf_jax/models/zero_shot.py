"""Zero-shot heads: a class is the mean direction of its prompts in the towers' shared space."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.fusion import leaves_by_path
from rmtllmf_jax.models.clip import CLIP
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.siglip import Siglip
from rmtllmf_jax.models.tokens import fill_templates, prompt_tokens
from rmtllmf_jax.models.weights import read_metadata, read_safetensors, save_tree, tree_hash

_METADATA = "head"
_FORMAT = 1
"""Part of the cache key: increase it when the same inputs give another head."""


def class_embeddings(
    encode: Callable[[Int[Array, "batch tokens"]], Float[Array, "batch features"]],
    tokens: Int[np.ndarray, "classes templates tokens"],
    *,
    batch_size: int = 64,
) -> Float[np.ndarray, "classes features"]:
    """Return a direction per class: the normalised mean of its prompts' normalised embeddings.

    **Arguments:**

    - `encode`: the text tower, called on batches of equal size (the last one is padded).

    **Raises:** `InputError` if an embedding is zero or not finite.
    """
    classes, templates, length = tokens.shape
    prompts = tokens.reshape(-1, length)
    embeddings: list[np.ndarray] = []
    with progress_bar("class prompts", len(prompts)) as advance:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            padded = np.concatenate([batch, np.repeat(batch[:1], batch_size - len(batch), axis=0)])
            embeddings.append(np.asarray(encode(jnp.asarray(padded)), np.float64)[: len(batch)])
            advance(len(batch))
    directions = _directions(np.concatenate(embeddings))
    mean = directions.reshape(classes, templates, -1).mean(axis=1)
    return _directions(mean).astype(np.float32)


def _directions(vectors: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n features"]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InputError("an embedding of a prompt is zero or not finite: are the weights whole?")
    return vectors / lengths


@partial(jax.jit, static_argnames="clip")
def _text_features(
    params: PyTree, tokens: Int[Array, "batch tokens"], *, clip: CLIP | Siglip
) -> Float[Array, "batch features"]:
    features = clip.apply({"params": params}, tokens, method="text_features")
    assert isinstance(features, jax.Array)  # apply's type allows for mutable collections
    return features


def _prompt_tokens(
    clip: CLIP | Siglip, tokenizer: Any, classes: Sequence[str], templates: Sequence[str]
) -> Int[np.ndarray, "classes templates tokens"]:
    """Tokenise all prompts."""
    tokens = prompt_tokens(fill_templates(classes, templates), tokenizer, clip.shape.text)
    return tokens.reshape(len(classes), len(templates), -1)


def _in_float32(clip: CLIP | Siglip) -> Any:
    """Return the model with a text tower that gives the same results for all speed options."""
    text: Any = replace(clip.shape.text, dtype="float32", remat=False)
    return clip.clone(shape=replace(clip.shape, text=text))


def zero_shot_head(
    clip: CLIP | Siglip,
    params: PyTree,
    tokenizer: Any,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 64,
) -> Head:
    """Return CLIP's or SigLIP's head for classes known only by name.

    Its logits are ``exp(logit_scale)`` times the cosine of the image feature (projected, for CLIP)
    and the class's direction (`class_embeddings`), plus ``logit_bias`` for SigLIP. The text tower
    computes in float32 at full precision, whatever the compute type of `clip`.

    **Arguments:**

    - `params`: those of `clip`: both towers and what connects them.
    - `tokenizer`: that of the model (`tokens.load_tokenizer`).
    - `classes`: names as used in a prompt, in the order of the labels.
    - `templates`: such as ``"a photo of a {}."``; several of them are an ensemble.
    - `batch_size`: prompts per call of the text tower.

    **Returns:** a head with kernel (features, classes), for CLIP with the visual projection (width,
    features).

    **Raises:** `InputError` for templates, texts or weights that cannot be used.
    """
    tokens = _prompt_tokens(clip, tokenizer, classes, templates)
    text = {part: params[part] for part in clip.text_parts}
    encode = partial(_text_features, text, clip=_in_float32(clip))
    with jax.default_matmul_precision("highest"):
        embeddings = class_embeddings(encode, tokens, batch_size=batch_size)
    return clip.zero_shot(params, jnp.asarray(embeddings))


def cached_zero_shot_head(
    folder: Path,
    clip: CLIP | Siglip,
    params: PyTree,
    tokenizer: Any,
    classes: Sequence[str],
    templates: Sequence[str],
) -> tuple[Head, Path]:
    """Return `zero_shot_head` and its file in `folder`, named after the hash of its content.

    The hash covers everything that the head depends on: the weights of the text tower and the
    projections, the tower's constants, the class names and templates, and their tokens.

    **Raises:** as `zero_shot_head`, and `InputError` that names a damaged file.
    """
    tokens = _prompt_tokens(clip, tokenizer, classes, templates)
    parts = {
        part: params[part] for part in (*clip.text_parts, "visual_projection") if part in params
    }
    key = content_hash(
        {
            "format": _FORMAT,
            "tower": repr(_in_float32(clip).shape.text),
            "weights": tree_hash(parts),
            "classes": list(classes),
            "templates": list(templates),
            "tokens": tree_hash({"tokens": tokens}),
        }
    )
    path = folder / f"zero-shot-{key}.safetensors"
    if path.exists():
        return load_head(path, classes), path
    head = zero_shot_head(clip, params, tokenizer, classes, templates)
    save_head(path, head, classes)
    return head, path


def save_head(path: Path, head: Head, classes: Sequence[str]) -> None:
    """Write a head as safetensors, with the names of its classes and a checksum, atomically.

    **Raises:** `InputError` if there are more or fewer names than classes.
    """
    _require_count(head, classes, path)
    names = json.dumps(list(classes))
    tensors = leaves_by_path(head)
    about: dict[str, Any] = {"classes": list(classes), "sha256": tree_hash(tensors, names)}
    about |= {"unit": True} if head.unit else {}
    # A single entry: safetensors writes several in random order, which would change the hash.
    save_tree(path, tensors, {_METADATA: json.dumps(about)})


def _about(path: Path) -> dict[str, Any]:
    return json.loads(read_metadata(path).get(_METADATA, "{}"))


def head_classes(path: Path) -> tuple[str, ...]:
    """Return the names of the classes of a head that `save_head` wrote."""
    return tuple(_about(path).get("classes", ()))


def is_unit_head(path: Path) -> bool:
    """Return whether a head that `save_head` wrote scales features without a projection."""
    return bool(_about(path).get("unit", False))


def load_head(path: Path, classes: Sequence[str]) -> Head:
    """Return a head that `save_head` wrote for these classes, in this order.

    **Raises:** `InputError` that names the file if it is missing or damaged, with the first class
    that differs, or with both numbers of classes.
    """
    again = "Delete it, and it is made again."
    try:
        tensors, about = read_safetensors(path), _about(path)
    except InputError as error:
        raise InputError(f"{error} {again}") from error
    names = about.get("classes", [])
    if about.get("sha256") != tree_hash(tensors, json.dumps(names)):
        raise InputError(
            f"{path}: a damaged head: its content is not what its checksum says. {again}"
        )
    leaves: dict[str, Any] = {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
    head = Head(**leaves, unit=bool(about.get("unit", False)))
    _require_count(head, classes, path)
    for index, (name, expected) in enumerate(zip(names, classes)):
        if name != expected:
            raise InputError(
                f"{path}: the head's class {index} is {name!r}, but {expected!r} is expected."
            )
    return head


def _require_count(head: Head, classes: Sequence[str], origin: Path) -> None:
    count = head.bias.shape[-1]
    if len(classes) != count:
        raise InputError(
            f"{origin}: the head has {count} classes, but {len(classes)} are expected."
        )
