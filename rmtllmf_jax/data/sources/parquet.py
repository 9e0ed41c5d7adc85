"""Layouts of a task's folder: parquet files, and the output of `save_to_disk` in `datasets`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json
from rmtllmf_jax.data.reading import AS_USUAL, Reading
from rmtllmf_jax.data.registry import task_facts
from rmtllmf_jax.data.sources.tables import TableTask
from rmtllmf_jax.data.tasks import REGISTERED

_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d{5,})-of-(?P<count>\d{5,})(-\w+)?\.parquet")
_NUMBER = re.compile(r"\d{4,}\.parquet")
_FIRST = ("0000.parquet", "0001.parquet")
_STATE = "state.json"


@dataclass(frozen=True)
class ParquetTask(TableTask):
    """One task of a `DataFolder`, stored as parquet files.

    A split is `<split>.parquet`; the shards `<split>-00000-of-0000N.parquet` of a data set
    downloaded from the Hugging Face hub (also below `data/` or the name of a configuration); or
    `<split>/0000.parquet`, ... of its branch `refs/convert/parquet` (in the same places).
    """

    folder: Path
    reading: Reading = AS_USUAL

    def splits(self) -> tuple[str, ...]:
        """Return the names of the stored splits, sorted."""
        return tuple(sorted(_sets(self.folder)))

    def directly(self) -> bool:
        """Return whether the folder has such files itself, or below `data` or a split's name."""
        places = {place for each in _sets(self.folder).values() for place in each}
        own = (self.folder, self.folder / "data")
        return any(place in own or (place.parent in own and place.is_file()) for place in places)

    def files(self, split: str) -> list[Path]:
        """Return the files of a split in the order of their rows; refuse incomplete shards."""
        sets, name = _sets(self.folder).get(split, {}), self.folder.name
        if not sets:
            plain = self.folder / f"{split}.parquet"
            raise InputError(f"{plain}: no such file, and no {split}-00000-of-*.parquet either.")
        if len(sets) > 1 and not any(map(Path.is_file, sets)) and name in REGISTERED:
            config = self.folder / (task_facts(name).hub.config or "")
            sets = {config: sets[config]} if config in sets and config != self.folder else sets
        if len(sets) > 1:
            places = [str(x) if x.is_file() else f"{x}/{split}-*.parquet" for x in sets]
            raise InputError(
                f"{self.folder}: split {split!r} is there more than once: {', '.join(places)}. "
                "Keep one."
            )
        ((place, files),) = sets.items()
        if files[0].parent.name == split and _NUMBER.fullmatch(files[0].name):
            return _counted(files)
        return files if place == files[0] else _complete(place, split, files)


@dataclass(frozen=True)
class SavedTask(TableTask):
    """One task of a `DataFolder`, stored by `save_to_disk` of a `DatasetDict`, or per split."""

    folder: Path
    reading: Reading = AS_USUAL

    def splits(self) -> tuple[str, ...]:
        """Return the names of the stored splits, sorted."""
        if (self.folder / _STATE).is_file():
            return (str(self._state(self.folder).get("_split") or "train"),)
        return tuple(sorted(path.parent.name for path in self.folder.glob(f"*/{_STATE}")))

    def directly(self) -> bool:
        """Return whether the folder is a set, rather than a folder of sets."""
        return True

    def files(self, split: str) -> list[Path]:
        """Return the files of a split, as its `state.json` lists them."""
        alone = (self.folder / _STATE).is_file()
        folder = self.folder if alone else self.folder / split
        try:
            return [folder / file["filename"] for file in self._state(folder)["_data_files"]]
        except (LookupError, TypeError) as error:
            raise InputError(f"{folder / _STATE}: not as save_to_disk writes it.") from error

    def _state(self, folder: Path) -> dict[str, Any]:
        state = read_json(folder / _STATE)
        if not isinstance(state, dict):
            raise InputError(f"{folder / _STATE}: not as save_to_disk writes it.")
        return state


def _sets(folder: Path) -> dict[str, dict[Path, list[Path]]]:
    """Return the files of each split by place: the plain file itself, or their folder."""
    found: dict[str, dict[Path, list[Path]]] = {}

    def add(split: str, place: Path, path: Path) -> None:
        found.setdefault(split, {}).setdefault(place, []).append(path)

    for parent in (folder, *_folders(folder)):
        for path in sorted(parent.glob("*.parquet")):
            if shard := _SHARD.fullmatch(path.name):
                add(shard["split"], parent, path)
            elif not _NUMBER.fullmatch(path.name) and parent in (folder, folder / "data"):
                add(path.stem, path, path)
        for place in (parent, *(_folders(parent) if parent != folder else ())):
            if place == folder or not any((place / name).is_file() for name in _FIRST):
                continue  # looked for by name, as a folder may hold a hundred thousand images
            for path in sorted(place.glob("*.parquet")):
                if _NUMBER.fullmatch(path.name):
                    add(place.name, place.parent, path)
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _counted(files: list[Path]) -> list[Path]:
    """Return files that are numbered from 0; missing last ones cannot be seen from the names."""
    by_number = {int(path.stem): path for path in files}
    missing = [number for number in range(max(by_number)) if number not in by_number]
    if missing:
        names = ", ".join(f"{number:04d}.parquet" for number in missing[:8])
        raise InputError(f"{files[0].parent}: files are missing: {names}. Download them again.")
    return [by_number[number] for number in sorted(by_number)]


def _complete(place: Path, split: str, shards: list[Path]) -> list[Path]:
    by_index: dict[int, Path] = {}
    counts: set[int] = set()
    for path in shards:
        if match := _SHARD.fullmatch(path.name):
            by_index[int(match["index"])] = path
            counts.add(int(match["count"]))
    if len(counts) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise InputError(f"{place}: split {split!r} mixes sets of {listed} shards. Keep one.")
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
        raise InputError(
            f"{place}: {len(shards)} shards of split {split!r}, {count} by their names. Keep one "
            "file of each number."
        )
    return [by_index[index] for index in range(count)]
