"""Which tensors of several checkpoints are merged, and everything that keeps them from it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.checkpoint import Checkpoint
from rmtllmf_jax.fusion.files.header import Entry, read_raw

BUFFERS = ("position_ids",)
"""Last names of tensors that follow from the configuration: some versions of transformers write
them and others do not, so a checkpoint may lack them."""

_SHOWN = 20


@dataclass(frozen=True)
class Matching:
    """The keys of the output, in the order of the base's files."""

    merged: tuple[str, ...]
    copied: tuple[str, ...]
    """Not floating point and the same everywhere: taken from the base as they are."""


def match(base: Checkpoint, others: list[Checkpoint]) -> Matching:
    """Return which tensors are merged and which are copied.

    **Raises:** `InputError` with all missing and unexpected keys (and the nearest names), all
    shapes that differ, all types that cannot be merged, and all tensors that would have to be equal
    and are not.
    """
    problems: list[str] = []
    for other in others:
        problems += _keys(base, other)
    for key, entry in base.entries.items():
        for other in others:
            if key in other.entries:
                problems += _entry(entry, other, base)
    if problems:
        raise InputError(
            "the checkpoints do not match; all must hold the same tensors:\n  "
            + "\n  ".join(problems)
        )
    merged = tuple(key for key, entry in base.entries.items() if entry.is_float())
    copied = tuple(key for key, entry in base.entries.items() if not entry.is_float())
    return Matching(merged, copied)


def require_equal(base: Checkpoint, others: list[Checkpoint], keys: tuple[str, ...]) -> None:
    """Check that tensors which cannot be merged hold the same everywhere.

    **Raises:** `InputError` with every tensor that does not.
    """
    problems = []
    for key in keys:
        entry = base.entries[key]
        there = [other for other in others if key in other.entries]
        if not there:
            continue
        expected = _raw(entry)
        differ = [
            str(other.given)
            for other in there
            if not np.array_equal(_raw(other.entries[key]), expected)
        ]
        if differ:
            problems.append(f"{key} ({entry.dtype}): not as in {base.given}: {', '.join(differ)}")
    if problems:
        raise InputError(
            "only floating-point tensors (F64, F32, F16, BF16) are merged; these must be equal in "
            "all checkpoints, and are not:\n  " + "\n  ".join(problems)
        )


def _keys(base: Checkpoint, other: Checkpoint) -> list[str]:
    missing = [key for key in base.entries if key not in other.entries and not _is_buffer(key)]
    extra = [key for key in other.entries if key not in base.entries and not _is_buffer(key)]
    return [
        *_listed(f"{other.given}: {len(missing)} missing", missing, extra),
        *_listed(f"{other.given}: {len(extra)} unexpected (not in {base.given})", extra, missing),
    ]


def _listed(what: str, keys: list[str], candidates: list[str]) -> list[str]:
    lines = []
    for key in keys[:_SHOWN]:
        nearest = difflib.get_close_matches(key, candidates, n=1, cutoff=0.6)
        lines.append(f"  {key}{f' (did you mean {nearest[0]}?)' if nearest else ''}")
    if len(keys) > _SHOWN:
        lines.append(f"  and {len(keys) - _SHOWN} more")
    return [f"{what}:", *(f"  {line}" for line in lines)] if lines else []


def _entry(entry: Entry, other: Checkpoint, base: Checkpoint) -> list[str]:
    found = other.entries[entry.key]
    where = f"in {other.given}"
    if found.shape != entry.shape:
        return [f"{entry.key}: {found.shape} {where}, {entry.shape} in {base.given}"]
    if found.dtype != entry.dtype and not (found.is_float() and entry.is_float()):
        return [f"{entry.key}: {found.dtype} {where}, {entry.dtype} in {base.given}"]
    return []


def _is_buffer(key: str) -> bool:
    return key.rpartition(".")[2] in BUFFERS


def _raw(entry: Entry) -> np.ndarray:
    data = np.empty(entry.size, np.uint8)
    read_raw(entry, data)
    return data
