"""A checkpoint on disk: one safetensors file, or shards with an index, or a directory of either."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from jaxtyping import Float

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import STEP, read_json, write_at
from rmtllmf_jax.fusion.files.places import snapshot

SINGLE = "model.safetensors"
SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
_OTHERS = ("*.bin", "*.msgpack", "*.pt", "*.pth", "*.h5", "*.gguf")

FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
"""Types that are merged, as safetensors spells them. All others (integers, booleans, 8-bit floats
that need scales of their own) must be equal in all checkpoints."""

_METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")
_LFS = b"version https://git-lfs"

# Files of PEFT, and the factors of LoRA and its kin among the keys of tensors (q.lora_A.weight,
# to_q.lora.down.weight). A layer called w_lora is none.
_ADAPTER = re.compile(
    r"adapter_(?:config|model)\."
    r"|(?:.*[./])?(?:lora|hada|lokr|ia3|oft|boft)_"
    r"|.*lora[./](?:down|up)[./]"
)


@dataclass(frozen=True)
class Entry:
    """A tensor in a file."""

    key: str
    dtype: str
    """As safetensors spells it: F32, BF16, I64, BOOL, ..."""
    shape: tuple[int, ...]
    path: Path
    start: int
    """Byte of the file that its data begins at."""
    size: int
    """In bytes."""

    def is_float(self) -> bool:
        """Return whether it can be merged (`FLOATS`)."""
        return self.dtype in FLOATS

    @property
    def origin(self) -> str:
        """Its source, for a manifest."""
        return self.key

    def read(self, into: np.ndarray) -> np.ndarray:
        """Read the bytes into a contiguous array of the same size, and return it.

        **Raises:** `InputError` that names the file if it has become shorter since its header was
        read.
        """
        view = into.reshape(-1).view(np.uint8).data
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.start)
                done = 0
                while done < self.size:  # one call reads 2 GB at most
                    count = file.readinto(view[done:])
                    if not count:
                        raise InputError(f"{self.path}: ends within {self.key}; was it changed?")
                    done += count
        except OSError as error:
            raise InputError(f"{self.path}: {self.key} cannot be read ({error}).") from error
        return into

    def raw(self) -> np.ndarray:
        """Return the bytes.

        **Raises:** as `read`.
        """
        return self.read(np.empty(self.size, np.uint8))

    def copy(self, file: int, place: int) -> None:
        """Write the bytes into an open file at an offset; the kernel copies them where it can.

        **Raises:** as `read`; `OSError` if the file cannot be written.
        """
        done = self._copied_by_kernel(file, place) if hasattr(os, "copy_file_range") else 0
        while done < self.size:  # also where something is wrong, which is named then
            size = min(STEP, self.size - done)
            part = replace(self, start=self.start + done, size=size)
            write_at(file, part.raw().data, place + done)
            done += size

    def _copied_by_kernel(self, file: int, place: int) -> int:
        """Return how many bytes were copied before the end or a failure."""
        done = 0
        with suppress(OSError), open(self.path, "rb", buffering=0) as source:
            while done < self.size:
                where = self.size - done, self.start + done, place + done
                if not (count := os.copy_file_range(source.fileno(), file, *where)):
                    break
                done += count
        return done


@dataclass(frozen=True)
class Checkpoint:
    """The locations of a model's tensors; none of them is in memory."""

    given: Path
    """The path that it was asked for by; messages name it."""
    files: tuple[Path, ...]
    entries: dict[str, Entry]
    """By key, in the order in which they lie in the files."""
    metadata: dict[str, str]
    """Of the first file."""

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for entry in self.entries.values())

    @property
    def directory(self) -> Path | None:
        """The directory with configuration and tokenizer; `None` for a bare file."""
        if self.given.is_dir():
            return self.given
        return self.given.parent if self.given.name.endswith(INDEX) else None

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return the `fingerprint` of each file."""
        return [fingerprint(path) for path in self.files]

    @property
    def keys(self) -> Collection[str]:
        """The keys of all tensors."""
        return self.entries.keys()

    def keeping(self, kept: Callable[[str], bool]) -> Checkpoint:
        """Return it without the tensors that are not to be kept."""
        return replace(self, entries={k: entry for k, entry in self.entries.items() if kept(k)})

    def touches(self, key: str) -> bool:
        """Return whether its task vector may be nonzero in a tensor of the base."""
        return key in self.entries

    def origin(self, key: str) -> str:
        """Return the source of a tensor, for a manifest."""
        return self.entries[key].origin

    def difference(
        self, key: str, base: Float[np.ndarray, "..."], into: Float[np.ndarray, "..."]
    ) -> None:
        """Write its tensor minus the base's into an array of float32.

        **Raises:** as `read_finite`.
        """
        entry = self.entries[key]
        with np.errstate(over="ignore"):  # what overflows is found in the output
            if entry.dtype == "F64" or base.dtype == np.float64:
                model = np.empty(entry.shape, wide(entry))
                read_finite(entry, model)
                np.subtract(model, base, out=into, casting="same_kind")
            else:
                read_finite(entry, into)
                np.subtract(into, base, out=into)


def fingerprint(path: Path) -> dict[str, Any]:
    """Return a fingerprint that shows whether a file is unchanged, without reading it.

    It uses the change time (ctime), which no program can set back.

    **Raises:** `InputError` if the file is gone.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    names = {"name": path.name, "path": str(path.resolve()), "bytes": stat.st_size}
    return names | {"modified": stat.st_mtime_ns, "changed": stat.st_ctime_ns}


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at a safetensors file, at an index, or in a Hugging Face directory.

    **Raises:** `InputError` that names what is missing, unreadable or ambiguous, or an adapter.
    """
    path = snapshot(path.expanduser())
    require_no_adapter(path, sorted(os.listdir(path)) if path.is_dir() else [path.name])
    place = _in_directory(path) if path.is_dir() else path
    files, named = shards_of(place) if place.name.endswith(INDEX) else ((place,), {})
    if not place.exists():
        raise InputError(
            f"{path}: no such file or directory; expected a safetensors file, an index "
            f"(*{INDEX}) or a Hugging Face directory. A model of the hub must be downloaded first "
            "(hf download OWNER/NAME)."
        )
    entries: dict[str, Entry] = {}
    metadata: list[dict[str, str]] = []
    for file in files:
        of_file, about = read_header(file)
        metadata.append(about)
        for entry in of_file:
            if entry.key in entries:
                first = entries[entry.key].path.name
                raise InputError(f"{path}: {entry.key} is in {first} and in {file.name}.")
            entries[entry.key] = entry
    require_no_adapter(path, entries)
    require_all(path, named, entries)
    if not entries:
        raise InputError(f"{path}: holds no tensor.")
    return Checkpoint(path, files, entries, metadata[0])


def _in_directory(folder: Path) -> Path:
    """Return the one weight file, or the one index, of a directory."""
    names = sorted(file.name for file in folder.iterdir())
    if SINGLE in names:
        return folder / SINGLE
    for suffix in (INDEX, SUFFIX):
        found = [name for name in names if name.endswith(suffix)]
        if len(found) == 1:
            return folder / found[0]
        if found:
            raise InputError(
                f"{folder}: cannot tell which of {', '.join(found)} to read; name one of them."
            )
    others = sorted({file.name for pattern in _OTHERS for file in folder.glob(pattern)})
    what = f"only {', '.join(others)}; convert them to safetensors first" if others else ""
    raise InputError(
        f"{folder}: expected {SINGLE} or an index of shards, found {what or 'no weights'}."
    )


def shards_of(index: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Return the files of a sharded checkpoint, and the file of each key, from its index.

    **Raises:** `InputError` that names the index if it is not an index, or if it names files that
    lie elsewhere or are missing.
    """
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index}: expected an object `weight_map` from keys to files.")
    for key, name in names.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{index}: {key} must name a file next to the index, got {name!r}.")
    shards = tuple(index.parent / name for name in sorted(set(names.values())))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise InputError(
            f"{index}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing)}."
        )
    return shards, names


def require_all(path: Path, named: Iterable[str], there: Iterable[str]) -> None:
    """Check that the shards hold every key that their index names.

    **Raises:** `InputError` with the keys that they lack.
    """
    known = set(there)
    absent = [key for key in named if key not in known]
    if absent:
        raise InputError(f"{path}: names keys that no shard holds: {', '.join(absent)}.")


def require_no_adapter(origin: Path | str, names: Iterable[str]) -> None:
    """Check that files or tensors with these names are a model and not an adapter to one.

    Sums and averages of factors are not sums and averages of their products: merging adapters
    factor by factor is not the same as merging the models that they define.

    **Raises:** `InputError` that names the model and what identifies it as an adapter.
    """
    found = next((name for name in names if _ADAPTER.match(name)), None)
    if found is not None:
        raise InputError(
            f"{origin}: an adapter (LoRA or similar: {found}), whose factors cannot be added up; "
            "it is a model only as PEFT saves it (adapter_config.json, adapter_model.safetensors) "
            "and beside a whole base; or merge it into its base (PEFT's merge_and_unload(), then "
            "save_pretrained) and name that."
        )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of reading a safetensors file into an `InputError` that names it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a safetensors file is expected there.") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = "it is a directory" if path.is_dir() else str(error)
        with suppress(OSError), open(path, "rb") as file:
            if file.read(len(_LFS)) == _LFS:
                reason = "it is a Git LFS pointer in place of the weights; fetch them: git lfs pull"
        raise InputError(f"{path}: not a readable safetensors file ({reason}).") from error


def read_header(path: Path) -> tuple[list[Entry], dict[str, str]]:
    """Return all tensors of a file in file order, and its metadata."""
    with reading(path):
        with safetensors.safe_open(path, "np") as checked:  # offsets, sizes, length of the file
            metadata = dict(checked.metadata() or {})
        with open(path, "rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            content = json.loads(file.read(length))
    first = _LENGTH.size + length
    content.pop(_METADATA, None)
    entries = []
    for key, about in content.items():
        start, end = about["data_offsets"]
        place = (path, first + start, end - start)
        entries.append(Entry(key, about["dtype"], tuple(about["shape"]), *place))
    return sorted(entries, key=lambda entry: entry.start), metadata


def wide(entry: Entry) -> np.dtype:
    """Return the type in which to compute with a tensor: float32, or float64 if it is float64."""
    return np.dtype(np.float64 if entry.dtype == "F64" else np.float32)


def read_finite(entry: Entry, into: np.ndarray) -> None:
    """Read a tensor into an array of its type or a wider one.

    **Raises:** `InputError` that names file and key if a number is NaN or infinite.
    """
    fill(entry, into)
    require_finite(entry, into)


def fill(entry: Entry, into: np.ndarray) -> None:
    """Read a tensor into an array of its type or a wider one."""
    if FLOATS[entry.dtype] == into.dtype:
        entry.read(into)
    else:
        into[...] = entry.read(np.empty(entry.shape, FLOATS[entry.dtype]))


def require_finite(entry: Entry, tensor: np.ndarray) -> None:
    """Check that a tensor, as read, holds finite numbers.

    **Raises:** `InputError` that names file and key.
    """
    if not is_finite(tensor):
        what = "NaN" if np.isnan(tensor).any() else "infinite numbers"
        raise InputError(f"{entry.path}: {entry.key} holds {what}; a merge needs finite weights.")


def is_finite(tensor: np.ndarray) -> bool:
    """Return whether all numbers are finite; a sum is finite only if they are."""
    with np.errstate(all="ignore"):
        wide = tensor.dtype if tensor.dtype.itemsize >= 4 else np.float32
        total = tensor.sum(dtype=wide)
    return bool(np.isfinite(total)) or bool(np.isfinite(tensor).all())


def header_bytes(
    entries: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]
) -> bytes:
    """Return the header for a file of tensors with these keys, types, shapes and bytes."""
    content: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    end = 0
    for key, dtype, shape, size in entries:
        content[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    return _LENGTH.pack(len(text)) + text
