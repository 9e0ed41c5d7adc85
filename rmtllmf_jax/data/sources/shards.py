"""Which parquet files hold a split: one file, or the numbered shards of a Hugging Face data set."""

from __future__ import annotations

import re
from pathlib import Path

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.tasks import TASK_NAMES

_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d{5,})-of-(?P<count>\d{5,})(-\w+)?\.parquet")


def split_files(folder: Path, split: str) -> list[Path]:
    """Return the parquet files of a split in the order of their rows.

    They are `<split>.parquet`, or all of `<split>-00000-of-0000N.parquet`, in `folder` or, as in a
    downloaded data set, in `data/` or a sub-folder named after a configuration.

    **Raises:** `InputError` if there is none, if there are several sets of them, or if shards are
    missing (it names their numbers).
    """
    plain = folder / f"{split}.parquet"
    found = {place: shards for place in _places(folder) if (shards := _shards(place, split))}
    choices = ([str(plain)] if plain.is_file() else []) + [
        f"{place}/{split}-*.parquet" for place in found
    ]
    if not choices:
        raise InputError(f"{plain}: no such file, and no {split}-00000-of-*.parquet either.")
    if len(choices) > 1 and not plain.is_file():
        config = folder / (_hub_config(folder.name) or "")
        if config in found and config != folder:
            return _complete(config, split, found[config])
    if len(choices) > 1:
        raise InputError(
            f"{folder}: split {split!r} is there more than once: {', '.join(choices)}. Keep one."
        )
    for place, shards in found.items():
        return _complete(place, split, shards)
    return [plain]


def holds_split(folder: Path, split: str) -> bool:
    """Return whether a folder has any parquet file of a split, complete or not."""
    plain = folder / f"{split}.parquet"
    return plain.exists() or any(_shards(place, split) for place in _places(folder))


def _places(folder: Path) -> list[Path]:
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    return [folder, *inside]


def _shards(place: Path, split: str) -> list[Path]:
    names = sorted(place.glob(f"{split}-*.parquet"))
    return [path for path in names if (m := _SHARD.fullmatch(path.name)) and m["split"] == split]


def _complete(place: Path, split: str, shards: list[Path]) -> list[Path]:
    matches = [_SHARD.fullmatch(path.name) for path in shards]
    counts = sorted({int(match["count"]) for match in matches if match})
    if len(counts) > 1:
        listed = " and ".join(map(str, counts))
        raise InputError(f"{place}: split {split!r} mixes sets of {listed} shards. Keep one.")
    by_index = {int(m["index"]): path for m, path in zip(matches, shards, strict=True) if m}
    (count,) = counts
    missing = [index for index in range(count) if index not in by_index]
    if missing:
        names = ", ".join(f"{split}-{index:05d}-of-{count:05d}.parquet" for index in missing[:8])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise InputError(
            f"{place}: {len(missing)} of {count} shards are missing: {names}{more}. "
            "Download them again."
        )
    if len(shards) > count:
        listed = ", ".join(
            path.name for path in shards if path not in map(by_index.get, range(count))
        )
        raise InputError(
            f"{place}: more than {count} shards of split {split!r}: {listed} too many."
        )
    return [by_index[index] for index in range(count)]


def _hub_config(task: str) -> str | None:
    return task_facts(task).hub.config if task in TASK_NAMES else None
