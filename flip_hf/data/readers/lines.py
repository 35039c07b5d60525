# SPDX-License-Identifier: Apache-2.0
"""What the readers of published files share: lines, batches of rows and joins."""

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .files import name_of, opened, reading


_BATCH_ROWS = 200_000


def read_lines(file: str, separator: str, columns: int) -> Iterator[list[str]]:
    """Rows of a file in Latin-1 without quoting; a line of another width is an error that names it."""
    with opened(file) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, "latin-1", newline="\n"), 1):
            cells = line.rstrip("\r\n").split(separator)
            if len(cells) == columns:
                yield cells
            elif line.strip():
                raise ValueError(f"{name_of(file)}, line {number}: {len(cells)} columns where {columns} are expected")


def in_batches(file: str, rows: Iterable[Sequence[Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows, one value per column -> tables of some thousand rows each."""
    iterator = iter(rows)
    while block := list(itertools.islice(iterator, _BATCH_ROWS)):
        with reading(file):
            columns = map(pa.array, zip(*block, strict=True), schema.types)
            yield pa.table(list(columns), schema=schema)


def in_one(file: str, rows: Iterable[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """All rows as one table, to be joined to others."""
    return pa.concat_tables([schema.empty_table(), *in_batches(file, rows, schema)]).combine_chunks()


def join(rows: pa.Table, key: str, table: pa.Table) -> pa.Table:
    """The columns of the first row with the same key in another table beside each row; nulls where it has none."""
    places = pc.index_in(rows.column(key), value_set=table.column(key), skip_nulls=True)
    found = table.drop_columns([key]).take(places)
    for name, column in zip(found.column_names, found.columns, strict=True):
        rows = rows.append_column(name, column)
    return rows


def strings(*names: str) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


def name_of_code(code: str, names: dict[str, str]) -> str:
    if code not in names:
        raise ValueError(f"code {code!r} is not one of the published {', '.join(names)}: is the file whole?")
    return names[code]
