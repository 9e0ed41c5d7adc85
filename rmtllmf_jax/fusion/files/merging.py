"""Merging checkpoints with one tensor of the base and of each task vector in memory at a time."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from itertools import accumulate, takewhile
from math import prod
from pathlib import Path
from threading import Event

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Key
from threadpoolctl import ThreadpoolController

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import replacing, write_at
from rmtllmf_jax.fusion.files.checkpoint import (
    FLOATS,
    Checkpoint,
    Entry,
    fill,
    is_finite,
    require_finite,
    wide,
)
from rmtllmf_jax.fusion.files.model import Model
from rmtllmf_jax.fusion.files.outputs import Facts, Shard, Tensor, stored
from rmtllmf_jax.fusion.files.plan import Recipe
from rmtllmf_jax.fusion.files.statistics import Statistics
from rmtllmf_jax.fusion.files.transfer import Opened
from rmtllmf_jax.fusion.layers import Granularity, group_by_layer, layer_of, layers_of
from rmtllmf_jax.fusion.rules import LayerWeighted, Method, Sparsified, TaskArithmetic, fact
from rmtllmf_jax.fusion.rules.leaves import user_weights
from rmtllmf_jax.fusion.similarity import exact_gram

LayerWeights = dict[str, Float[np.ndarray, " users"]]
Piece = np.ndarray | Entry
"""What is written: numbers, or the place of numbers that are copied."""
Write = Callable[[Tensor, Iterable[Piece]], None]

_ALIGNMENT = 64  # jax takes over memory that lies so, and copies other memory


class TensorMerge:
    """A method applied to one tensor of all task vectors after another.

    A program that depended on tensor names would be compiled for each of them; this one is compiled
    once per shape. Whatever depends on the name is passed to it: weights by layer, and sparsified
    tensors. Sparsifying works row by row, which takes the memory of a few tensors and not of 2 Q.
    """

    def __init__(
        self,
        recipe: Recipe,
        weights: LayerWeights | None = None,
        statistics: Mapping[str, Statistics] | None = None,
    ) -> None:
        """Prepare the method of a recipe; `weights` are those of a `LayerWeighted` one."""
        self._recipe = recipe
        self._statistics = statistics or {}
        self._weights = weights or {}
        self.kept: dict[str, list[int]] = {}
        """Entries that are not zero after sparsifying, by tensor: one number per user."""
        self._program = jax.jit(_merge, static_argnums=(0, 1, 2))

    def __call__(
        self,
        key: str,
        rows: Float[np.ndarray, "users ..."],
        base: Float[np.ndarray, "..."] | None = None,
    ) -> Float[np.ndarray, "..."]:
        """Return the scale times the merge of a tensor's rows; the rows may be overwritten.

        `base` is the base's tensor, for methods that need it.
        """
        method, scale = self._recipe.at(key, len(rows))
        weights = None
        masks = jax.random.key(self._recipe.seed)
        if isinstance(method, LayerWeighted):
            layer = layer_of(key, method.granularity)
            weights = jnp.asarray(self._weights[layer], jnp.float32)
        elif isinstance(method, Sparsified):
            sparsify = method.sparsifier
            for user in range(len(rows)):
                row = rows[user : user + 1]
                row[...] = sparsify(jax.device_put(row), key, masks, user)
            self.kept[key] = [int(np.count_nonzero(row)) for row in rows]
        elif fact(method, "random"):
            masks = jax.random.fold_in(masks, zlib.crc32(key.encode()))
        last = re.split(r"[./]", key)[-1]  # says what axes mean, and is one of a few
        needs = {kind: found.stacked(key) for kind, found in self._statistics.items()}
        needs |= {"base": base} if "base" in fact(method, "needs") else {}
        given = jax.device_put((rows, needs))
        return np.asarray(self._program(method, scale, last, *given, weights, masks))


def _merge(
    method: Method,
    scale: float,
    name: str,
    rows: Array,
    needs: dict[str, Array | None],
    weights: Array | None,
    key: Key[Array, ""],
) -> Array:
    if isinstance(method, Sparsified):
        merged = method.consensus(rows, user_weights(method.weights, len(rows)))
    elif isinstance(method, LayerWeighted):
        merged = TaskArithmetic()({"tensor": rows}, weights=weights)["tensor"]
    else:
        given = {
            need: {name: value} if value is not None else _nothing_known(need, name, rows)
            for need, value in needs.items()
        }
        merged = method({name: rows}, key, **given)[name]
    return scale * merged


def _nothing_known(kind: str, name: str, rows: Array) -> dict[str, Array]:
    """Return statistics for a tensor that the files do not cover, so that it is averaged."""
    return {name: jnp.ones_like(rows)} if kind == "fishers" else {}


def merge_shards(
    folder: Path,
    shards: list[Shard],
    base: Checkpoint,
    models: list[Model],
    merge: TensorMerge,
    advance: Callable[[int], None],
    tell: Callable[[str, Facts], None],
    transfer: Opened | None = None,
) -> None:
    """Write shards into a folder; each appears only when it is complete.

    `advance` is called with the number of tensors done, `tell` with name and facts of a shard
    before it appears; task vectors go through `transfer` first. Tensors that are not merged are
    copied concurrently with the merge, and a file reaches the disk while the next one is made.

    **Raises:** `InputError` if an input holds NaN or is truncated, or if a number does not fit the
    type of the output; `OSError`, for example if the disk is full.
    """
    keys = [each.base.key for shard in shards for each in shard.tensors if each.merged]
    with (
        Stack(base, models, keys, transfer) as stack,
        ThreadPoolExecutor(1) as copier,
        ThreadPoolExecutor(1) as finisher,
    ):
        finished = finisher.submit(lambda: None)
        for shard in shards:
            copies = [tensor for tensor in shard.tensors if not tensor.merged]
            merged = [tensor for tensor in shard.tensors if tensor.merged]
            with ExitStack() as file:
                write = file.enter_context(_writing(folder / shard.name, shard))
                facts: Facts = {"masks": [], "kept": {}, "energy": {}}
                with _copying(copier, copies, write):
                    for tensor in merged:
                        write(tensor, _made(tensor, stack, merge, facts))
                        advance(1)
                advance(len(copies))
                keys = [each.base.key for each in merged]
                facts["kept"] = {key: merge.kept[key] for key in keys if key in merge.kept}
                tell(shard.name, facts)
                finished.result()
                finished = finisher.submit(file.pop_all().close)  # waits for the disk
        finished.result()


@contextmanager
def _copying(pool: ThreadPoolExecutor, tensors: Sequence[Tensor], write: Write) -> Iterator[None]:
    """Copy the base's tensors while the body runs; if either fails, the other stops."""
    failed = Event()

    def copy() -> None:
        for tensor in takewhile(lambda _: not failed.is_set(), tensors):
            write(tensor, [_copied(tensor)])

    copied = pool.submit(copy)
    try:
        yield
        copied.result()
    finally:
        failed.set()
        wait([copied])


def _made(tensor: Tensor, stack: Stack, merge: TensorMerge, facts: Facts) -> Iterable[Piece]:
    """Return a merged tensor of the output; for a mask that of the base, as it is not changed."""
    key = tensor.base.key
    base, rows = stack.read(key)
    try:
        return tensor.made(base, merge(key, rows, base), facts)
    except InputError:
        if not stack.is_mask(key):
            raise
        facts["masks"].append(key)
        return [_copied(tensor)]


def _copied(tensor: Tensor) -> Piece:
    """Return the base's tensor, in the type of the output."""
    entry = tensor.base
    if tensor.dtype == entry.dtype:
        return entry
    found = entry.read(np.empty(entry.shape, FLOATS[entry.dtype]))
    if is_finite(found):
        return stored(found, tensor.dtype, entry.key)
    return found.astype(FLOATS[tensor.dtype])


@contextmanager
def _writing(path: Path, shard: Shard) -> Iterator[Write]:
    """Yield a writer for the shard's tensors, in any order; the file appears when it is complete.

    After a failure, such as a full disk, nothing is at `path`.
    """
    ends = list(accumulate([len(shard.header), *(tensor.size for tensor in shard.tensors)]))
    places = {tensor.base.key: at for tensor, at in zip(shard.tensors, ends, strict=False)}
    with replacing(path) as temporary, open(temporary, "wb", buffering=0) as file:

        def write(tensor: Tensor, pieces: Iterable[Piece]) -> None:
            first = place = places[tensor.base.key]
            for piece in pieces:
                if isinstance(piece, Entry):
                    piece.copy(file.fileno(), place)
                    place += piece.size
                else:
                    data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
                    write_at(file.fileno(), data.data, place)
                    place += data.size
            if place - first != tensor.size:
                raise AssertionError(f"{shard.name}: {tensor.base.key} was not written whole")

        write_at(file.fileno(), shard.header, 0)
        yield write


def layer_grams(
    base: Checkpoint,
    models: list[Model],
    keys: tuple[str, ...],
    granularity: Granularity,
    advance: Callable[[int], None],
    transfer: Opened | None = None,
) -> dict[str, Float64[np.ndarray, "users users"]]:
    """Return the matrix of inner products of the task vectors in each layer, summed in float64.

    Its diagonal holds the squared norms. Layers are in the order of `group_by_layer`; `advance` is
    called with 1 after each tensor.

    **Raises:** `InputError` if an input holds NaN or is truncated.
    """
    users = len(models)
    grams = {layer: np.zeros((users, users)) for layer in group_by_layer(keys, granularity)}
    with Stack(base, models, keys, transfer) as stack:
        for key, layer in layers_of(keys, granularity).items():
            grams[layer] += exact_gram(stack.read(key)[1])
            advance(1)
    return grams


class Stack:
    """Reads task vectors, tensor by tensor, into memory for Q + 1 tensors of the largest size.

    The memory is reused each time: jax releases borrowed buffers only some calls later, and the C
    library may keep freed memory.
    """

    def __init__(
        self,
        base: Checkpoint,
        models: list[Model],
        keys: Sequence[str],
        transfer: Opened | None = None,
    ) -> None:
        """Allocate memory for the tensors with these keys."""
        self._transfer = transfer
        self.base = base
        self.models = models
        self._blas = ThreadpoolController()
        self._pool = ThreadPoolExecutor(min(len(models), os.cpu_count() or 1))
        entries = [base.entries[key] for key in keys]
        size = 4 * len(models) * max((prod(entry.shape) for entry in entries), default=0)
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        first = -memory.ctypes.data % _ALIGNMENT
        self._rows = memory[first : first + size].view(np.float32)
        bytes_of_base = max((prod(e.shape) * wide(e).itemsize for e in entries), default=0)
        self._base = np.empty(bytes_of_base, np.uint8)

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def read(self, key: str) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "users ..."]]:
        """Return a tensor of the base and of all task vectors (float32, model minus base).

        The latter as they arrive through the transfer, if there is one. Both are overwritten by the
        next call.

        **Raises:** `InputError` that names file and key if a number is NaN or infinite.
        """
        entry = self.base.entries[key]
        size = prod(entry.shape) * wide(entry).itemsize
        base = self._base[:size].view(wide(entry)).reshape(entry.shape)
        fill(entry, base)
        rows = self._rows[: len(self.models) * base.size].reshape(len(self.models), *base.shape)

        if not is_finite(base):
            if not self.is_mask(key):
                require_finite(entry, base)
            rows[...] = 0
            return base, rows

        def write(number: int) -> None:
            model, row = self.models[number], rows[number, ...]
            if model.touches(key):
                model.difference(key, base, row)
            else:
                row[...] = 0

        with self._blas.limit(limits=1, user_api="blas"):  # its threads would wait for each other
            list(self._pool.map(write, range(len(self.models))))
        if self._transfer is not None:
            self._transfer(key, rows)
        return base, rows

    def is_mask(self, key: str) -> bool:
        """Return whether a tensor has infinite numbers and is the same everywhere, as masks are.

        Its task vectors are then zero.
        """
        touching = [model for model in (self.base, *self.models) if model.touches(key)]
        full = [model.entries[key] for model in touching if isinstance(model, Checkpoint)]
        first, *others = (entry.read(np.empty(entry.shape, FLOATS[entry.dtype])) for entry in full)
        if len(full) < len(touching) or is_finite(first) or np.isnan(first).any():
            return False
        return all(first.dtype == each.dtype and np.array_equal(first, each) for each in others)
