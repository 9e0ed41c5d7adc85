"""A model given by its changes to a base, tensor by tensor: an adapter, or a task vector."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.checkpoint import Checkpoint, fingerprint
from rmtllmf_jax.fusion.files.names import as_in_files
from rmtllmf_jax.fusion.files.updates import Update

_SHOWN = 20
_PROBES = 4  # names whose places among the base's keys tell of common prefixes


@dataclass(frozen=True)
class Changes:
    """What a model does to tensors of its base, by their names; all others are the base's."""

    given: Path
    """The path that it was asked for by; messages name it."""
    files: tuple[Path, ...]
    """All files that it is read from."""
    updates: dict[str, tuple[Update, ...]]
    """By the names of tensors; what several add, adds up."""
    size: int
    """Bytes of all its tensors."""

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return the `fingerprint` of each file."""
        return [fingerprint(path) for path in self.files]

    @property
    def keys(self) -> Collection[str]:
        """The names of the tensors that it changes."""
        return self.updates.keys()

    def keeping(self, kept: Callable[[str], bool]) -> Changes:
        """Return it without the changes to tensors that are not to be kept."""
        return replace(self, updates={k: each for k, each in self.updates.items() if kept(k)})

    def seen(self, base: Checkpoint) -> list[str]:
        """Return remarks on it next to a base, one per line.

        **Raises:** `InputError` if it belongs to another base.
        """
        return []

    def laid(self, base: Checkpoint) -> Changes:
        """Return it laid out like the base's tensors, which all exist in these sizes."""
        return self

    def placed(self, base: Checkpoint) -> tuple[Changes, list[str]]:
        """Return it by the keys of the base, and lines with remarks.

        The base's keys may have an extra or a missing prefix (``layers.0.q_proj`` and
        ``model.layers.0.q_proj``), or the spelling of files (`names.as_in_files`).

        **Raises:** `InputError` if it fits several parts of the base equally well, or none.
        """
        lines = self.seen(base)
        names = tuple(self.updates)
        chosen = _places({name: each[0].size for name, each in self.updates.items()}, base)
        if names in chosen:
            return self, lines
        if len(chosen) > 1:
            raise InputError(
                f"{self.given}: fits several parts of {base.given}: {names[0]} may be "
                f"{chosen[0][0]} and {chosen[1][0]}; save it with the model that the base is."
            )
        old, new = next(pair for pair in zip(names, chosen[0], strict=True) if pair[0] != pair[1])
        updates = dict(zip(chosen[0], self.updates.values(), strict=True))
        return replace(self, updates=updates), [*lines, f"{old} is {new}, and so on"]

    def fitted(self, base: Checkpoint) -> Changes:
        """Return it ready to be added to the base's tensors.

        **Raises:** `InputError` with all tensors that the base lacks or has in other sizes, or that
        do not hold floating-point numbers.
        """
        missing = [key for key in self.updates if key not in base.entries]
        if missing:
            more = [f"and {len(missing) - _SHOWN} more"] if len(missing) > _SHOWN else []
            raise InputError(
                f"{self.given}: {len(missing)} of {len(self.updates)} tensors that it changes are "
                f"not in {base.given} (--from-base leaves them out):\n  "
                + "\n  ".join([*(_near(key, base.entries) for key in missing[:_SHOWN]), *more])
            )
        misfit = [
            f"{key} {base.entries[key].shape}"
            for key, updates in self.updates.items()
            for update in updates
            if prod(base.entries[key].shape) != update.size or not base.entries[key].is_float()
        ]
        if misfit:
            raise InputError(
                f"{self.given}: belongs to a model of other sizes than {base.given}: it does not "
                f"fit {', '.join(misfit[:_SHOWN])}."
            )
        return self.laid(base)

    def touches(self, key: str) -> bool:
        """Return whether its task vector may be nonzero in a tensor of the base."""
        return key in self.updates

    def origin(self, key: str) -> str:
        """Return the source of a tensor that it touches, for a manifest."""
        return " ".join(update.origin for update in self.updates[key])

    def difference(
        self, key: str, base: Float[np.ndarray, "..."], into: Float[np.ndarray, "..."]
    ) -> None:
        """Write a tensor of its task vector into an array of float32.

        **Raises:** `InputError` that names file and key if a number is NaN or infinite.
        """
        first, *more = self.updates[key]
        with np.errstate(over="ignore"):  # what overflows is found in the output
            first(base, into)
            for update in more:
                other = np.empty_like(into)
                update(base, other)
                into += other


def _places(sizes: Mapping[str, int], base: Checkpoint) -> list[tuple[str, ...]]:
    """Return the best-fitting ways to map names to the base's keys: spellings and prefixes."""
    counts = {key: prod(entry.shape) for key, entry in base.entries.items()}
    fits: dict[tuple[str, ...], int] = {}
    for spell in (str, as_in_files):
        spelt = [spell(name) for name in sizes]
        for off, on in _prefixes(spelt, counts):
            keys = tuple(on + name.removeprefix(off) for name in spelt)
            number = sum(
                counts.get(key) == size for key, size in zip(keys, sizes.values(), strict=True)
            )
            fits.setdefault(keys, number)
    best = max(fits.values())
    return [keys for keys, number in fits.items() if number == best]


def _prefixes(names: Sequence[str], keys: Collection[str]) -> list[tuple[str, str]]:
    """Return all ways in which a name becomes a key: the prefix removed, and the prefix added."""
    found = [("", "")]
    for name in names[:_PROBES]:
        found += [("", key.removesuffix(name)) for key in keys if key.endswith(f".{name}")]
        parts = name.split(".")
        cuts = [
            (".".join(parts[:cut]) + ".", ".".join(parts[cut:])) for cut in range(1, len(parts))
        ]
        found += [(off, "") for off, rest in cuts if rest in keys]
    return list(dict.fromkeys(found))


def _near(key: str, keys: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return f"{key} (did you mean {near[0]}?)" if near else key
