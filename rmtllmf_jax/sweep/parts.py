"""Finished cells in many small files, which any number of processes may add to."""

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
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rmtllmf_jax.common.errors import InputError, require_at_least, require_non_negative
from rmtllmf_jax.sweep.places import Place, get_place

Row = Mapping[str, Any]

FORMAT = 2
"""The version of the files; a change that an older reader would misread makes it another one."""
BOOKKEEPING = {"cell": pa.string(), "row": pa.int64(), "rows": pa.int64()}
"""What comes before a row's own columns: its cell, its place in the cell, the cell's size."""

_VERSION, _PROGRAM = b"rmtllmf_version", b"rmtllmf_program"
_NAME = re.compile(r"part-.*-([0-9a-f]{16})\.parquet")
_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
_log = logging.getLogger(__name__)


class Parts:
    """An append-only table of finished cells: a folder of parquet files that are never changed.

    A cell is one piece of work under a hash of all that it depends on; its rows are flat and all
    have the same columns, each of str, int, float or bool. It is done when its whole set of rows is
    in one part. A part is named ``part-<process>-<time>-<hash of its bytes>.parquet``: it appears
    at once, and one that is damaged is told by its hash. Where two parts hold a cell, the first
    in the order of names counts; adding a cell again does nothing.

    `process` is the number of this process among those that write to the folder, `every` the
    seconds for which finished cells may wait in memory: what `kill -9` can lose. `program` says
    what computes the cells (`programs` tells afterwards).

    **Raises:** `InputError` for a part of another version or with other columns, for a place that
    cannot be read, and where a method says so.
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
        self._place = get_place(folder)
        self._process = require_at_least("process", process, 0)
        self._every = require_non_negative("every", every)
        self._schema: pa.Schema | None = None
        self._waiting: dict[str, pa.Table] = {}
        self._program = json.dumps(program or {}, sort_keys=True)
        self._tables: list[pa.Table] = []
        self._names: list[str] = []
        self._programs: list[str] = []
        self._where: dict[str, tuple[int, int, int]] = {}  # table, first row, rows
        self._closed, self._flushed = False, monotonic()
        self.damaged = []
        self.refresh()

    def refresh(self) -> None:
        """Read the parts that came since the folder was last read, those of other processes say.

        **Raises:** as opening the folder does.
        """
        known = {*self._names, *self.damaged}
        names = [name for name in self._place.names() or [] if name not in known]
        for name, table in _read(self._place, names, self.damaged):
            if self._schema is None:
                self._schema = table.schema.with_metadata(_metadata())
            program = (table.schema.metadata or {}).get(_PROGRAM, b"{}").decode()
            in_order = _in_order(table, self._schema, f"{self._place.name}/{name}")
            self._take(name, in_order, program)

    def _take(self, name: str, table: pa.Table, program: str) -> None:
        for cell, start, rows in _whole_cells(table):
            before = self._where.get(cell)
            if before is None or name < self._names[before[0]]:
                self._where[cell] = len(self._tables), start, rows
        self._tables.append(table)
        self._names.append(name)
        self._programs.append(program)

    def programs(self, cells: Iterable[str]) -> list[dict[str, Any]]:
        """Return what computed some cells that are done: each `program`, and how many `cells`.

        **Raises:** `KeyError` for a cell that is not done.
        """
        mine = self._program
        counts = Counter(
            mine if cell in self._waiting else self._programs[self._where[cell][0]]
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
            part = self._waiting[cell]
        else:
            table, start, rows = self._where[cell]
            part = self._tables[table].slice(start, rows)
        found: list[dict[str, Any]] = part.drop_columns(list(BOOKKEEPING)).to_pylist()
        return found

    def table(self, cells: Iterable[str] | None = None) -> pd.DataFrame:
        """Return the rows of cells that are done, in the order of `cells`; of all, sorted, without.

        The columns are `cell` and the rows' own.

        **Raises:** `KeyError` for a cell that is not done.
        """
        tables = [*self._tables, *self._waiting.values()]
        where = self._where | {
            cell: (number, 0, len(table))
            for number, (cell, table) in enumerate(self._waiting.items(), len(self._tables))
        }
        first = np.cumsum([0, *(len(table) for table in tables)])
        rows = [np.arange(0)]
        for cell in sorted(where) if cells is None else cells:
            table, start, size = where[cell]
            rows.append(first[table] + start + np.arange(size))
        nothing = (self._schema or pa.schema(BOOKKEEPING)).empty_table()
        everything = pa.concat_tables([nothing, *tables]).drop_columns(["row", "rows"])
        return (
            everything.combine_chunks().take(np.concatenate(rows)).to_pandas(ignore_metadata=True)
        )

    def add(self, cell: str, rows: Sequence[Row]) -> None:
        """Take in all rows of a cell, see `add_all`."""
        self.add_all({cell: rows})

    def add_all(self, cells: Mapping[str, Sequence[Row]]) -> None:
        """Take in all rows of cells that were finished together, to be written in one part.

        **Raises:** `InputError` for no rows, for columns other than those of the cells before, or
        for a value of another type; what `flush` raises, if it is time for one.
        """
        for cell, rows in cells.items():
            if self._closed:
                raise ValueError(f"{self._place.name}: closed; cell {cell} cannot be added.")
            if cell in self:
                continue
            if not rows:
                raise InputError(f"cell {cell}: no rows. Expected at least one.")
            schema = self._schema or _schema_of(cell, rows[0])
            self._waiting[cell] = _table_of(cell, rows, schema)
            self._schema = schema
        if monotonic() - self._flushed >= self._every:
            self.flush()

    def flush(self) -> None:
        """Write the cells that wait; when this returns they are stored.

        **Raises:** `InputError` if the place cannot be written, for instance as the disk is full.
        No half part is left, and the cells go on waiting.
        """
        self._flushed = monotonic()
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting.values()).combine_chunks()
        data = _encoded(table.replace_schema_metadata(_metadata(self._program)))
        digest = hashlib.sha256(data).hexdigest()[:16]
        name = f"part-{self._process:04d}-{time.time_ns():019d}-{digest}.parquet"
        try:
            self._place.write(name, data)
        except InputError as error:
            raise InputError(
                f"{error} The {len(self._where):,} cells stored there are kept, the last "
                f"{len(self._waiting):,} are not. Make room, and give the same command again."
            ) from error
        self._waiting.clear()
        self._take(name, table, self._program)

    def close(self) -> None:
        """Write the cells that wait, and take no more."""
        self._closed = True
        self.flush()

    def __enter__(self) -> Parts:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; whatever ended the block, Ctrl-C as well, what is finished is written."""
        try:
            self.close()
        except InputError as error:
            if kind is None:
                raise
            _log.warning("%s", error)  # and what ended the block is raised


def read_parts(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Return all cells that are done, each once, whatever the parts are.

    Rows are sorted by cell and keep their order in it. The columns are `cell` and the rows' own.

    **Raises:** `InputError` if there is no such folder, and as `Parts` does.
    """
    if get_place(folder).names() is None:
        raise InputError(f"{os.fspath(folder)}: no such folder. Expected the parts of a sweep.")
    return Parts(folder).table()


def _read(place: Place, names: Sequence[str], damaged: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the parts that are whole; add the names of the others to `damaged`."""
    names = [name for name in names if name.startswith("part-") and name.endswith(".parquet")]
    before = len(damaged)
    for name, data in zip(names, place.read(names), strict=True):
        fits = _NAME.fullmatch(name)
        if not fits or fits[1] != hashlib.sha256(data).hexdigest()[:16]:
            damaged.append(name)
            continue
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        seen = (table.schema.metadata or {}).get(_VERSION, b"none").decode()
        if seen != str(FORMAT):
            raise InputError(
                f"{place.name}/{name}: written in version {seen} of the format, expected {FORMAT}. "
                "Name another folder, or remove the part: its cells are then computed again."
            )
        yield name, table
    if new := damaged[before:]:
        _log.warning(
            "%s: %d of %d parts are damaged, as by a crash, and skipped; their cells are computed "
            "again. They may be removed: %s",
            *(place.name, len(new), len(names), ", ".join(new)),
        )


def _in_order(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """Return a part with its columns in the order of `schema`."""
    if wrong := _differences(_types(table.schema), _types(schema)):
        raise InputError(
            f"{name}: {wrong}, unlike the parts before it. All parts of a folder have the same "
            "columns: name another folder, or remove what an older program wrote."
        )
    return table.select(schema.names)


def _whole_cells(table: pa.Table) -> Iterator[tuple[str, int, int]]:
    """Yield cell, first row and number of rows of every cell whose set is whole."""
    cells, row, rows = (table[name].to_pylist() for name in BOOKKEEPING)
    start = 0
    while start < len(cells):
        size = max(rows[start], 1)
        run = slice(start, start + size)
        whole = row[run] == list(range(size)) and cells[run] == [cells[start]] * size
        if whole:
            yield cells[start], start, size
        start += size if whole else 1


def _schema_of(cell: str, row: Row) -> pa.Schema:
    """Return the schema of a table that begins with this row."""
    if taken := sorted(BOOKKEEPING.keys() & row.keys()):
        raise InputError(f"cell {cell}: columns of the store's own: {', '.join(taken)}.")
    return pa.schema(BOOKKEEPING | _kinds(cell, row), metadata=_metadata())


def _table_of(cell: str, rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Return the rows of a cell as a table, with bookkeeping."""
    own = {name: kind for name, kind in _types(schema).items() if name not in BOOKKEEPING}
    for row in rows:
        if wrong := _differences(_kinds(cell, row), own):
            raise InputError(f"cell {cell}: {wrong}, unlike the rows before it.")
    columns = [[cell] * len(rows), list(range(len(rows))), [len(rows)] * len(rows)]
    columns += [[row[name] for row in rows] for name in own]
    try:
        arrays = [
            pa.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)
        ]
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise InputError(f"cell {cell}: a value cannot be stored ({error}).") from error
    return pa.Table.from_arrays(arrays, schema=schema)


def _kinds(cell: str, row: Row) -> dict[str, pa.DataType]:
    """Return the types of a row's columns."""
    kinds = {}
    for name, value in row.items():
        kind = next((_TYPES[python] for python in _TYPES if isinstance(value, python)), None)
        if kind is None:
            raise InputError(
                f"cell {cell}: column {name} holds {value!r} ({type(value).__name__}), expected "
                "str, int, float or bool."
            )
        kinds[name] = kind
    return kinds


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return dict(zip(schema.names, schema.types, strict=True))


def _differences(found: Mapping[str, pa.DataType], expected: Mapping[str, pa.DataType]) -> str:
    """Say what columns lack, have in excess or have of another type; nothing if they agree."""
    if found == expected:
        return ""
    wrong = [f"lacks column {name}" for name in expected if name not in found]
    wrong += [f"has column {name}" for name in found if name not in expected]
    wrong += [
        f"has {found[name]} in column {name} and not {kind}"
        for name, kind in expected.items()
        if name in found and found[name] != kind
    ]
    return ", ".join(wrong)


def _metadata(program: str = "{}") -> dict[bytes, str]:
    return {_VERSION: str(FORMAT), _PROGRAM: program}


def _encoded(table: pa.Table) -> bytes:
    """Return a table as the bytes of a parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data
