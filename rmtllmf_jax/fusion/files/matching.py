"""Which tensors of checkpoints belong together, which are merged, and the remarks to print."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.adjustments import ADJUSTMENTS, is_derived, without_copies
from rmtllmf_jax.fusion.files.changes import Changes
from rmtllmf_jax.fusion.files.checkpoint import FLOATS, Checkpoint, Entry
from rmtllmf_jax.fusion.files.model import Model
from rmtllmf_jax.fusion.files.outputs import VARIANCE
from rmtllmf_jax.fusion.files.places import labels
from rmtllmf_jax.fusion.files.vocabulary import Tokenizer, fit_vocabularies

_SHOWN = 20
_OFFERED = 4
_TOWERS = re.compile(r"(?:vision|visual|image|text|language|audio|encoder|decoder)")


@dataclass(frozen=True)
class Parts:
    """Which tensors are merged, by regular expressions that match a whole name."""

    only: tuple[str, ...] = ()
    """Nothing but these; all by default."""
    from_base: tuple[str, ...] = ()
    """Not these: they are the base's."""

    def __post_init__(self) -> None:
        """Refuse invalid regular expressions."""
        for option, patterns in (("only", self.only), ("from-base", self.from_base)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise InputError(
                        f"--{option}: {pattern!r} is not a regular expression ({error})."
                    ) from None

    def merges(self, key: str) -> bool:
        """Return whether a tensor takes part.

        >>> parts = Parts(from_base=("classifier.*",))
        >>> parts.merges("classifier.weight"), parts.merges("bert.classifier.weight")
        (False, True)
        """
        asked = not self.only or any(re.fullmatch(each, key) for each in self.only)
        return asked and not any(re.fullmatch(each, key) for each in self.from_base)

    def require_matches(self, keys: Iterable[str]) -> None:
        """Check that each pattern matches a name.

        **Raises:** `InputError` with the names nearest to a pattern that matches none.
        """
        names = list(keys)
        for option, patterns in (("only", self.only), ("from-base", self.from_base)):
            for pattern in patterns:
                if any(re.fullmatch(pattern, name) for name in names):
                    continue
                raise InputError(
                    f"--{option} {pattern!r} matches no tensor; it must match the whole of a name "
                    f"(NAME.* for all below NAME). Nearest: {', '.join(_near(pattern, names))}."
                )


@dataclass(frozen=True)
class Matching:
    """Checkpoints with their tensors under the base's names, and what happens to each."""

    base: Checkpoint
    others: tuple[Model, ...]
    """The models and the reference. They may lack what is not merged."""
    merged: tuple[str, ...]
    """In the order of the base's files."""
    copied: tuple[str, ...]
    """Taken from the base as they are: no model differs there, or it was asked for."""
    not_merged: tuple[str, ...]
    """Those of them that would have been merged, had it not been asked otherwise."""
    tokenizer: Tokenizer
    """The output's."""
    notes: tuple[str, ...]
    """What was seen and done, a line each."""


def match(
    base: Checkpoint, others: Sequence[Model], parts: Parts, tokenizer: str | None = None
) -> Matching:
    """Return which tensors are merged and which copied; `tokenizer` as for `fit_vocabularies`.

    **Raises:** `InputError` that lists all missing and unexpected keys (and the nearest names), all
    shapes that differ, all types that cannot be merged, and the options that leave them out; then
    all tensors that would have to be equal and are not.
    """
    names = labels([base, *others])
    base, line = without_copies(base)
    notes = [f"{names[0]}: {line}"] if line else []
    adjusted: list[Model] = []
    for name, other in zip(names[1:], others, strict=True):
        other, lines = _adjusted(base, other)
        notes += [f"{name}: {line}" for line in lines]
        adjusted.append(other)
    parts.require_matches({key for each in (base, *adjusted) for key in each.keys})
    for number, (name, other) in enumerate(zip(names[1:], adjusted, strict=True)):
        left = [key for key in other.keys if not parts.merges(key) and key not in base.entries]
        if left:
            notes.append(f"{name}: {', '.join(modules_of(left, base.entries))} left out")
        adjusted[number] = other.keeping(parts.merges)
    adjusted = [each.fitted(base) if isinstance(each, Changes) else each for each in adjusted]
    base, adjusted, chosen, lines = _with_vocabulary(base, adjusted, tokenizer)
    notes += lines
    taken = {key for key, entry in base.entries.items() if not is_derived(entry)}
    full = [other for other in adjusted if isinstance(other, Checkpoint)]
    _require_fit(base, full, {key for key in taken if parts.merges(key)})
    merged = tuple(
        key
        for key, entry in base.entries.items()
        if key in taken
        and parts.merges(key)
        and entry.is_float()
        and any(model.touches(key) for model in adjusted)
    )
    if not merged:
        raise InputError(f"{base.given}: holds no floating-point tensor to merge.")
    copied = tuple(key for key in base.entries if key not in set(merged))
    not_merged = tuple(key for key in copied if key in taken and not parts.merges(key))
    if not_merged:
        modules = ", ".join(modules_of(not_merged, merged))
        notes.append(f"not merged but the base's: {modules} ({len(not_merged)} tensors)")
    if statistics := [key for key in merged if key.endswith(VARIANCE)]:
        notes.append(
            f"running statistics are merged as weights are ({len(statistics)} running_var); "
            "compute them anew on data"
        )
    return Matching(base, tuple(adjusted), merged, copied, not_merged, chosen, tuple(notes))


def _adjusted(base: Checkpoint, other: Model) -> tuple[Model, list[str]]:
    """Return a model with its tensors under the base's names, and lines on what was done."""
    if isinstance(other, Changes):
        return other.placed(base)
    assert isinstance(other, Checkpoint)
    lines = []
    for adjust in ADJUSTMENTS:
        other, line = adjust(base, other)
        lines += [line] if line else []
    return other, lines


def _with_vocabulary(
    base: Checkpoint, models: Sequence[Model], choice: str | None
) -> tuple[Checkpoint, list[Model], Tokenizer, list[str]]:
    """Return the result of `fit_vocabularies`; adapters use the base's vocabulary."""
    full = [model for model in models if isinstance(model, Checkpoint)]
    after, fitted, chosen, lines = fit_vocabularies(base, full, choice)
    moved = {key for key, entry in after.entries.items() if entry is not base.entries[key]}
    for adapter in models:
        if isinstance(adapter, Changes) and (changed := sorted(moved & adapter.updates.keys())):
            raise InputError(
                f"{adapter.given}: changes {', '.join(changed)}, whose rows are others in the "
                "output, as the vocabularies of the other models differ; --from-base leaves it out."
            )
    rest = iter(fitted)
    models = [next(rest) if isinstance(model, Checkpoint) else model for model in models]
    return after, models, chosen, lines


def _require_fit(base: Checkpoint, others: Sequence[Checkpoint], taken: set[str]) -> None:
    problems: list[str] = []
    bad: set[str] = set()
    for other in others:
        missing = [key for key in base.entries if key in taken and key not in other.entries]
        extra = [key for key in other.entries if key not in base.entries]
        what = f"{other.given}: {len(extra)} unexpected (not in {base.given})"
        problems += _listed(f"{other.given}: {len(missing)} missing", missing, extra)
        problems += _listed(what, extra, missing)
        bad |= {*missing, *extra}
    pairs = [
        (key, base.entries[key], other.entries[key], other.given)
        for key in base.entries
        if key in taken
        for other in others
        if key in other.entries
    ]
    for key, entry, found, where in pairs:
        kinds = {entry.dtype, found.dtype}
        if found.shape != entry.shape:
            differ = f"{found.shape} in {where}, {entry.shape}"
        elif len(kinds) > 1 and not kinds <= FLOATS.keys():
            differ = f"{found.dtype} in {where}, {entry.dtype}"
        else:
            continue
        problems.append(f"{key}: {differ} in {base.given}")
        bad.add(key)
    if problems:
        raise InputError(
            "the checkpoints do not match; all must hold the same tensors:\n  "
            + "\n  ".join([*problems, *_ways_out(bad, taken - bad)])
        )
    _require_equal([pair for pair in pairs if not pair[1].is_float()], base)


def _require_equal(pairs: list[tuple[str, Entry, Entry, object]], base: Checkpoint) -> None:
    problems = [
        f"{key} ({entry.dtype}): not as in {base.given}: {where}"
        for key, entry, found, where in pairs
        if not np.array_equal(entry.raw(), found.raw())
    ]
    if problems:
        raise InputError(
            "only floating-point tensors (F64, F32, F16, BF16) are merged; these must be equal in "
            "all checkpoints, and are not (--from-base takes the base's):\n  "
            + "\n  ".join(problems)
        )


def _ways_out(bad: set[str], good: set[str]) -> list[str]:
    """Return the option that merges the tensors that fit, if many do."""
    if 4 * len(good) < len(bad):
        return []
    modules = modules_of(sorted(bad), good)
    if len(modules) <= _OFFERED:
        words = " ".join(f"'{module}'" for module in modules)
        return [f"To merge the rest and keep the base's: --from-base {words}"]
    modules = modules_of(sorted(good), bad)
    if len(modules) <= _OFFERED:
        words = " ".join(f"'{module}'" for module in modules)
        return [f"To merge what all have and keep the rest of the base: --only {words}"]
    return []


def modules_of(keys: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return patterns that match all given keys and none of the others, one per module.

    >>> modules_of(["bert.pooler.weight", "score.weight", "score.bias"], ["bert.embed.weight"])
    ['bert.pooler.*', 'score.*']
    """
    names = list(others)
    taken = {name[: match.end()] for name in names for match in re.finditer(r"\.", name)}
    found: dict[str, None] = {}
    for key in keys:
        ends = [match.end() for match in re.finditer(r"\.", key)]
        free = next((key[:end] for end in ends if key[:end] not in taken), None)
        found[free or key] = None
    patterns = {module: f"{module}*" if module.endswith(".") else module for module in found}
    for module, pattern in patterns.items():  # a dot stands for any letter
        if any(re.fullmatch(pattern, name) for name in names):
            patterns[module] = re.escape(module) + ".*" * module.endswith(".")
    return list(patterns.values())


def _listed(what: str, keys: list[str], candidates: list[str]) -> list[str]:
    lines = []
    for key in keys[:_SHOWN]:
        alike = [each for each in candidates if _place(each) == _place(key)]
        nearest = difflib.get_close_matches(key, alike, n=1, cutoff=0.6)
        lines.append(f"    {key}{f' (did you mean {nearest[0]}?)' if nearest else ''}")
    if len(keys) > _SHOWN:
        lines.append(f"    and {len(keys) - _SHOWN} more")
    return [f"{what}:", *lines] if lines else []


def _place(key: str) -> tuple[list[str], list[str]]:
    """Return tower and layer numbers: names from another tower or layer are not suggested."""
    return _TOWERS.findall(key), re.findall(r"\d+", key)


def _near(pattern: str, names: list[str]) -> list[str]:
    plain = re.sub(r"\\(.)|\.\*|[\^$()?+]", r"\1", pattern)
    modules = sorted({*names, *(name.rpartition(".")[0] for name in names)} - {""})
    return difflib.get_close_matches(plain, modules, n=3, cutoff=0) or modules[:3]
