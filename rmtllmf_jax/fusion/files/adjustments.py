"""Differences between a base and a model that have one right answer: names, buffers, tied heads.

An adjustment takes both and returns the model with its tensors under the base's names, and a line
that says what was seen and done; nothing if there was nothing to do. Adjustments use only names,
and read a tensor only to check that it is a copy of another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.files.checkpoint import Checkpoint, Entry
from rmtllmf_jax.fusion.files.configuration import is_tied

Adjustment = Callable[[Checkpoint, Checkpoint], tuple[Checkpoint, str]]
"""``adjust(base, model)`` returns the model as the base has it, and a line of what was done."""

_SHOWN = 3
_BLOCK = 2**24  # bytes that are compared at a time

_DERIVED = re.compile(
    r"(?:.*\.)?(?:position_ids|token_type_ids|num_batches_tracked|masked_bias|causal_mask|attn_mask"
    r"|\w*inv_freq|(?:cos|sin)_cached|relative_position_index|relative_coords_table)"
)
_CAUSAL = re.compile(r"(?:.*\.)?(?:attn|attention|self_attn)\.(?:attn_)?bias")

_OLD = (
    (re.compile(r"(.*LayerNorm)\.gamma"), r"\1.weight"),
    (re.compile(r"(.*LayerNorm)\.beta"), r"\1.bias"),
    (re.compile(r"(.*)\.weight_g"), r"\1.parametrizations.weight.original0"),
    (re.compile(r"(.*)\.weight_v"), r"\1.parametrizations.weight.original1"),
    (re.compile(r"(.*)\.parametrizations\.weight\.original0"), r"\1.weight_g"),
    (re.compile(r"(.*)\.parametrizations\.weight\.original1"), r"\1.weight_v"),
    (re.compile(r"language_model\.model\.(.*)"), r"model.language_model.\1"),
    (re.compile(r"model\.language_model\.(.*)"), r"language_model.model.\1"),
    (re.compile(r"model\.language_model\.(.*)"), r"model.\1"),
    (re.compile(r"model\.(.*)"), r"model.language_model.\1"),
    (re.compile(r"language_model\.lm_head\.(.*)"), r"lm_head.\1"),
    (re.compile(r"lm_head\.(.*)"), r"language_model.lm_head.\1"),
    (re.compile(r"(vision_tower|multi_modal_projector|visual)\.(.*)"), r"model.\1.\2"),
    (re.compile(r"model\.(vision_tower|multi_modal_projector|visual)\.(.*)"), r"\1.\2"),
)

_WORDS = r"(?:embed_tokens|wte|word_embeddings|shared|embed_in|tok_embeddings)\.weight"
_HEAD = r"(?:lm_head|embed_out|cls\.predictions\.decoder|lm_head\.decoder)\.weight"
_COPIES = (
    (_HEAD, _WORDS),
    (r"(?:encoder|decoder)\.embed_tokens\.weight", r"shared\.weight"),
    (r"cls\.predictions\.decoder\.bias", r"cls\.predictions\.bias"),
    (r"lm_head\.decoder\.bias", r"lm_head\.bias"),
)


def is_derived(entry: Entry) -> bool:
    """Return whether a tensor follows from the configuration, or counts training steps.

    Some versions of transformers write such buffers and others do not: position_ids, inv_freq, the
    causal mask of GPT-2 (attn.bias), num_batches_tracked.
    """
    mask = len(entry.shape) == 4 and _CAUSAL.fullmatch(entry.key)
    return bool(mask or _DERIVED.fullmatch(entry.key))


def old_names(base: Checkpoint, model: Checkpoint) -> tuple[Checkpoint, str]:
    """Rename tensors that other classes and versions of transformers name differently.

    LayerNorm.gamma; weight_g; the language model within a vision-language model.
    """
    renamed = {}
    for key in model.entries:
        if key in base.entries:
            continue
        names = (rule.sub(new, key) for rule, new in _OLD if rule.fullmatch(key))
        name = next((name for name in names if name in base.entries), None)
        if name is not None and name not in model.entries:
            renamed[key] = name
    if not renamed:
        return model, ""
    pairs = [f"{old} is {new}" for old, new in list(renamed.items())[:1]]
    what = f"{len(renamed)} names as other classes or versions have them: {pairs[0]}"
    return _renamed(model, renamed), what + (" and so on" if len(renamed) > 1 else "")


def wrapper(base: Checkpoint, model: Checkpoint) -> tuple[Checkpoint, str]:
    """Remove a prefix that the base does not have (bert., base_model.model.), or add one.

    **Raises:** `InputError` if two prefixes fit equally well, as with two identical towers.
    """
    if model.entries.keys() <= base.entries.keys():
        return model, ""
    off, before = _votes(base, model)
    votes = (off + before).most_common(2)
    if not votes or votes[0][1] < min(len(model.entries), len(base.entries)) / 2:
        return model, ""
    if len(votes) == 2 and votes[1][1] == votes[0][1]:
        raise InputError(
            f"{model.given}: its tensors fit {votes[0][0]} as well as {votes[1][0]} of "
            f"{base.given}; write them with the names that are meant."
        )
    prefix = votes[0][0]
    renamed = {}
    for key in model.entries:
        name = key.removeprefix(prefix) if prefix in off else prefix + key
        fits = name in base.entries or (prefix in off and key.startswith(prefix))
        if key not in base.entries and fits and name not in model.entries:
            renamed[key] = name
    done = "taken off" if prefix in off else "put before"
    return _renamed(model, renamed), f"{prefix} {done} {len(renamed)} names, as the base has them"


def _votes(base: Checkpoint, model: Checkpoint) -> tuple[Counter[str], Counter[str]]:
    """Return how many tensors each prefix matches, removed or added."""
    inner: dict[str, list[str]] = {}
    for key in base.entries:
        for prefix, rest in _cuts(key):
            inner.setdefault(rest, []).append(prefix)
    off: Counter[str] = Counter()
    before: Counter[str] = Counter()
    for key, entry in model.entries.items():
        if key in base.entries:
            continue
        for prefix, rest in _cuts(key):
            if rest in base.entries and base.entries[rest].shape == entry.shape:
                off[prefix] += 1
        for prefix in inner.get(key, ()):
            if base.entries[prefix + key].shape == entry.shape:
                before[prefix] += 1
    return off, before


def _cuts(key: str) -> Iterable[tuple[str, str]]:
    parts = key.split(".")
    for count in range(1, len(parts)):
        yield ".".join(parts[:count]) + ".", ".".join(parts[count:])


def _renamed(model: Checkpoint, names: dict[str, str]) -> Checkpoint:
    entries = {names.get(key, key): entry for key, entry in model.entries.items()}
    return replace(model, entries=entries)


def derived(base: Checkpoint, model: Checkpoint) -> tuple[Checkpoint, str]:
    """Leave buffers out of the model, see `is_derived`: the output has the base's, if any."""
    found = {key for key, entry in model.entries.items() if is_derived(entry)}
    extra = sorted(found - base.entries.keys())
    lacks = [k for k, entry in base.entries.items() if is_derived(entry) and k not in found]
    said = []
    if extra:
        said.append(f"{_some(extra)} left out, which follow from the configuration")
    if lacks:
        said.append(f"{_some(lacks)} are the base's; they follow from the configuration")
    differ = [k for k in sorted(found - set(extra)) if not _same(model.entries[k], base.entries[k])]
    if differ:
        said.append(f"{_some(differ)} differ, and are the base's")
    kept = {key: entry for key, entry in model.entries.items() if key not in found}
    return replace(model, entries=kept), "; ".join(said)


def tied(base: Checkpoint, model: Checkpoint) -> tuple[Checkpoint, str]:
    """Handle copies of another tensor (lm_head of the embeddings) that one of the two lacks."""
    entries, said = dict(model.entries), []
    for copy, original in _copies({**base.entries, **entries}):
        if original not in base.entries:
            continue
        if copy not in base.entries:
            if copy in entries and original in entries and _same(entries[copy], entries[original]):
                del entries[copy]
                said.append(f"{copy} left out, which is {original} (tied)")
        elif copy not in entries and original in entries and is_tied(model):
            entries[copy] = replace(entries[original])
            said.append(f"{copy} is its {original} (tied)")
    return replace(model, entries=entries), "; ".join(said)


def without_copies(base: Checkpoint) -> tuple[Checkpoint, str]:
    """Leave copies of other tensors out of a base: heads, if the configuration ties them.

    Whatever is done to both is done once: random masks would make them differ.
    """
    entries, said = dict(base.entries), []
    for copy, original in _copies(entries):
        if copy not in entries or original not in entries:
            continue
        free = re.fullmatch(rf"(?:.*\.)?{_HEAD}", copy) and not is_tied(base)
        if not free and _same(entries[copy], entries[original]):
            del entries[copy]
            said.append(f"{copy} left out, which is {original} (tied)")
    return replace(base, entries=entries), "; ".join(said)


def _copies(entries: dict[str, Entry]) -> list[tuple[str, str]]:
    """Return pairs of names in which the first tensor may be a copy of the second."""
    found = []
    for one, other in _COPIES:
        copies = [key for key in entries if re.fullmatch(rf"(?:.*\.)?{one}", key)]
        originals = [key for key in entries if re.fullmatch(rf"(?:.*\.)?{other}", key)]
        found += [(c, o) for c in copies for o in originals if c != o]
    return [(c, o) for c, o in found if entries[c].shape == entries[o].shape]


def _same(one: Entry, other: Entry) -> bool:
    """Return whether two tensors are equal byte by byte."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    views = [np.memmap(each.path, np.uint8, "r", each.start, each.size) for each in (one, other)]
    ends = [(at, at + _BLOCK) for at in range(0, one.size, _BLOCK)]
    return all(np.array_equal(views[0][start:end], views[1][start:end]) for start, end in ends)


def _some(keys: list[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


ADJUSTMENTS: tuple[Adjustment, ...] = (old_names, wrapper, derived, tied)
"""In the order in which they are made."""
