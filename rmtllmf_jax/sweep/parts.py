"""Finished cells in many small files, to which any number of processes may add."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rmtllmf_jax.common.errors import InputError, require_at_least, require_non_negative
from rmtllmf_jax.sweep.storage import Storage, get_storage

Row = Mapping[str, Any]

FORMAT = 2
"""The version of the files; a change that an older reader would misread makes it another one."""
BOOKKEEPING = {"cell": pa.string(), "row": pa.int64(), "rows": pa.int64()}
"""What comes before a row's own columns: its cell, its place in the cell, the cell's size."""

_VERSION, _PROGRAM = b"rmtllmf_version", b"rmtllmf_program"
_NAME = re.compile(r"part-.*-([0-9a-f]{16})\.parquet")
_TYPES = (pa.bool_(), pa.int64(), pa.float64(), pa.string())
_log = logging.getLogger(__name__)


class _Part(NamedTuple):
    name: str
    program: str
    table: pa.Table


class CellStore:
    """An append-only table of finished cells: a folder of parquet files that are never changed.

    A cell is one piece of work under a hash of all that it depends on; its rows are flat and all
    have the same columns, each of str, int, float or bool. It is done when its whole set of rows is
    in one part. A part is named ``part-<process>-<time>-<hash of its bytes>.parquet``: it appears
    atomically, and its hash reveals damage. Where two parts hold a cell, the first by name counts;
    adding a cell again does nothing.

    `process` is the number of this process among those that write to the folder, `every` the
    seconds for which finished cells may wait in memory, which `kill -9` can lose. `program`
    describes what computes the cells (reported later by `programs`).

    **Raises:** `InputError` for a part of another version or with other columns, for a place that
    cannot be read, and as documented at each method.
    """

    damaged: list[str]
    """Names of parts that are skipped: a crash cut them short, and their cells are not done."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        process: int = 0,
        every: float = 10.0,
        program: Mapping[str, str] | None = None,
    ) -> None:
        self._storage = get_storage(folder)
        self._process = require_at_least("process", process, 0)
        self._every = require_non_negative("every", every)
        self._schema: pa.Schema | None = None
        self._waiting: dict[str, pa.Table] = {}
        self._program = json.dumps(program or {}, sort_keys=True)
        self._parts: list[_Part] = []
        self._where: dict[str, tuple[int, int, int]] = {}  # part, first row, rows
        self._closed, self._flushed = False, monotonic()
        self.damaged = []
        self.refresh()

    def refresh(self) -> None:
        """Read the parts added since the folder was last read, such as those of other processes.

        **Raises:** as opening the folder does.
        """
        known = {*(part.name for part in self._parts), *self.damaged}
        names = [name for name in self._storage.names() or [] if name not in known]
        for name, table in _read(self._storage, names, self.damaged):
            program = (table.schema.metadata or {}).get(_PROGRAM, b"{}").decode()
            in_order = self._in_order(table, f"{self._storage.name}/{name}")
            self._take(_Part(name, program, in_order))

    def _in_order(self, table: pa.Table, name: str) -> pa.Table:
        """Return a table with its columns in the order set by the very first table."""
        table = table.replace_schema_metadata(None)
        self._schema = self._schema or table.schema
        found, expected = (
            dict(zip(each.names, each.types, strict=True)) for each in (table.schema, self._schema)
        )
        wrong = [
            f"{column} is {found.get(column, 'missing')} and not {expected.get(column, 'missing')}"
            for column in expected | found
            if found.get(column) != expected.get(column)
        ]
        if wrong:
            raise InputError(
                f"{name}: column {', '.join(wrong)}, as in what is stored. All cells of a folder "
                "have the same columns: name another folder, or remove what an older program wrote."
            )
        return table.select(self._schema.names)

    def _take(self, part: _Part) -> None:
        for cell, start, rows in _whole_cells(part.table):
            before = self._where.get(cell)
            if before is None or part.name < self._parts[before[0]].name:
                self._where[cell] = len(self._parts), start, rows
        self._parts.append(part)

    def programs(self, cells: Iterable[str]) -> list[dict[str, Any]]:
        """Return what computed some finished cells: each `program`, and how many `cells`.

        **Raises:** `KeyError` for a cell that is not done.
        """
        counts = Counter(
            self._program if cell in self._waiting else self._parts[self._where[cell][0]].program
            for cell in cells
        )
        return [json.loads(found) | {"cells": count} for found, count in sorted(counts.items())]

    def __contains__(self, cell: str) -> bool:
        """Tell whether a cell is done."""
        return cell in self._where or cell in self._waiting

    def __len__(self) -> int:
        """Return the number of cells that are done."""
        return len(self._where) + len(self._waiting)

    def __iter__(self) -> Iterator[str]:
        """Yield the cells that are done."""
        yield from (*self._where, *self._waiting)

    def __getitem__(self, cell: str) -> list[dict[str, Any]]:
        """Return the rows of a cell that is done.

        **Raises:** `KeyError` if it is not.
        """
        if cell in self._waiting:
            table = self._waiting[cell]
        else:
            part, start, rows = self._where[cell]
            table = self._parts[part].table.slice(start, rows)
        found: list[dict[str, Any]] = table.drop_columns(list(BOOKKEEPING)).to_pylist()
        return found

    def table(self) -> pd.DataFrame:
        """Return the rows of all stored cells, sorted by cell, with the column `cell`."""
        first = np.cumsum([0, *(len(part.table) for part in self._parts)])
        rows = [np.arange(0)]
        for _, (part, start, size) in sorted(self._where.items()):
            rows.append(first[part] + start + np.arange(size))
        nothing = (self._schema or pa.schema(BOOKKEEPING)).empty_table()
        everything = pa.concat_tables([nothing, *(part.table for part in self._parts)])
        chosen = (
            everything.drop_columns(["row", "rows"]).combine_chunks().take(np.concatenate(rows))
        )
        return chosen.to_pandas(ignore_metadata=True)

    def add(self, cell: str, rows: Sequence[Row]) -> None:
        """Add all rows of a cell, see `add_all`."""
        self.add_all({cell: rows})

    def add_all(self, cells: Mapping[str, Sequence[Row]]) -> None:
        """Add all rows of cells that were finished together, to be written in one part.

        **Raises:** `InputError` for no rows, for columns other than those of earlier cells, or for
        a value of another type; and as `flush`, if one is due.
        """
        for cell, rows in cells.items():
            if self._closed:
                raise ValueError(f"{self._storage.name}: closed; cell {cell} cannot be added.")
            if cell not in self:
                self._waiting[cell] = self._in_order(_table_of(cell, rows), f"cell {cell}")
        if monotonic() - self._flushed >= self._every:
            self.flush()

    def flush(self) -> None:
        """Write the waiting cells; when this returns they are stored.

        **Raises:** `InputError` if the place cannot be written, for instance because the disk is
        full. No incomplete part is left, and the cells keep waiting.
        """
        self._flushed = monotonic()
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting.values()).combine_chunks()
        sink = pa.BufferOutputStream()
        metadata = {_VERSION: str(FORMAT), _PROGRAM: self._program}
        pq.write_table(table.replace_schema_metadata(metadata), sink)
        data = sink.getvalue().to_pybytes()
        digest = hashlib.sha256(data).hexdigest()[:16]
        name = f"part-{self._process:04d}-{time.time_ns():019d}-{digest}.parquet"
        try:
            self._storage.write(name, data)
        except InputError as error:
            raise InputError(
                f"{error} The {len(self._where):,} cells stored there are kept, the last "
                f"{len(self._waiting):,} are not. Free some space, and run the same command again."
            ) from error
        self._waiting.clear()
        self._take(_Part(name, self._program, table))

    def close(self) -> None:
        """Write the waiting cells, and accept no more."""
        self._closed = True
        self.flush()

    def __enter__(self) -> CellStore:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; finished cells are written whatever ended the block, including Ctrl-C."""
        try:
            self.close()
        except InputError as error:
            if kind is None:
                raise
            _log.warning("%s", error)  # and what ended the block is raised


def read_parts(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Return all finished cells, each once, however they are split into parts.

    Rows are sorted by cell and keep their order in it. The columns are `cell` and the rows' own.

    **Raises:** `InputError` if there is no such folder, and as `CellStore` does.
    """
    if get_storage(folder).names() is None:
        raise InputError(f"{os.fspath(folder)}: no such folder. Expected the parts of a sweep.")
    return CellStore(folder).table()


def _read(
    storage: Storage, names: Sequence[str], damaged: list[str]
) -> Iterator[tuple[str, pa.Table]]:
    """Yield the intact parts; add the names of the others to `damaged`."""
    names = [name for name in names if name.startswith("part-") and name.endswith(".parquet")]
    before = len(damaged)
    for name, data in zip(names, storage.read(names), strict=True):
        fits = _NAME.fullmatch(name)
        if not fits or fits[1] != hashlib.sha256(data).hexdigest()[:16]:
            damaged.append(name)
            continue
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        seen = (table.schema.metadata or {}).get(_VERSION, b"none").decode()
        if seen != str(FORMAT):
            raise InputError(
                f"{storage.name}/{name}: written in version {seen} of the format, expected "
                f"{FORMAT}. Name another folder, or remove the part: its cells are then computed "
                "again."
            )
        yield name, table
    if new := damaged[before:]:
        _log.warning(
            "%s: %d of %d parts are damaged, as by a crash, and skipped; their cells are computed "
            "again. They may be removed: %s",
            *(storage.name, len(new), len(names), ", ".join(new)),
        )


def _whole_cells(table: pa.Table) -> Iterator[tuple[str, int, int]]:
    """Yield cell, first row and number of rows of every complete cell."""
    cells, row, rows = (table[name].to_pylist() for name in BOOKKEEPING)
    start = 0
    while start < len(cells):
        size = max(rows[start], 1)
        run = slice(start, start + size)
        whole = row[run] == list(range(size)) and cells[run] == [cells[start]] * size
        if whole:
            yield cells[start], start, size
        start += size if whole else 1


def _table_of(cell: str, rows: Sequence[Row]) -> pa.Table:
    """Return the rows of a cell as a table, with bookkeeping."""
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise InputError(f"cell {cell}: expected one row or more, all with the same columns.")
    if taken := sorted(BOOKKEEPING.keys() & rows[0].keys()):
        raise InputError(f"cell {cell}: columns of the store's own: {', '.join(taken)}.")
    places = {"cell": [cell] * len(rows), "row": range(len(rows)), "rows": [len(rows)] * len(rows)}
    columns: dict[str, pa.Array] = {k: pa.array(v, BOOKKEEPING[k]) for k, v in places.items()}
    for name in rows[0]:
        try:
            columns[name] = pa.array([row[name] for row in rows])
        except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
            raise InputError(f"cell {cell}: column {name} cannot be stored ({error}).") from error
        if columns[name].type not in _TYPES:
            raise InputError(
                f"cell {cell}: column {name} holds {columns[name].type}, expected str, int, float "
                "or bool."
            )
    return pa.table(columns)
