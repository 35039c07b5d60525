# SPDX-License-Identifier: Apache-2.0
"""What the readers of published files share: lines, json and csv in batches, joins, and the account of a reading.

Letters: B rows of a batch, R rows of a lookup table.
"""

import html
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from .files import PublishedFile


# small enough that a batch of long texts stays in the processor's cache, large enough that Arrow's own work dominates
BATCH_ROWS = 20_000
_CSV_BLOCK_BYTES = 4 << 20
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]*);")


class ReadingAccount:
    """What became of the lines of the files: rows that were left out, and values that were repaired or are unknown.

    Both map a reason, in words, to how often it happened; rows of the files = rows of the table + all of `left_out`.
    """

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()

    def sentence(self, num_rows: int) -> str:
        """`"1,000 rows of 1,002; left out: 2 ratings of 0; noted: 3 ages outside 5-100 (unknown)"`."""
        total = num_rows + sum(self.left_out.values())
        parts = [f"{num_rows:,} rows of {total:,}"]
        for name, counts in (("left out", self.left_out), ("noted", self.noted)):
            listed = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()) if count)
            parts += [f"{name}: {listed}"] if listed else []
        return "; ".join(parts)


def read_lines(file: PublishedFile, encoding: str, separator: str, columns: int) -> Iterator[list[str]]:
    """Rows of a file without quoting; a line of another width is an error that names it."""
    with file.open_text(encoding) as lines:
        for number, line in enumerate(lines, 1):
            parts = line.rstrip("\r\n").split(separator)
            if len(parts) != columns:
                if not line.strip():
                    continue
                raise ValueError(f"{file.name}, line {number}: {len(parts)} columns where {columns} are expected")
            yield parts


def read_json_lines(file: PublishedFile, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """
    Objects, one a line.

    Raises:
        ValueError: if a line is no JSON object, or has none of `keys`; it names the line.
    """
    with file.open() as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # a UnicodeDecodeError is one too
                raise ValueError(f"{file.name}, line {number} is no JSON ({error}): download it again") from error
            absent = [key for key in keys if key not in row] if isinstance(row, dict) else list(keys)
            if absent:
                raise ValueError(
                    f"{file.name}, line {number} has no {', '.join(absent)}: is it the file that is published under "
                    "this name?"
                )
            yield row


def read_csv_batches(
    file: PublishedFile,
    types: Mapping[str, pa.DataType],
    delimiter: str = ",",
    header: bool = True,
    nullable: bool = False,
) -> Iterator[pa.Table]:
    """
    The columns `types` of a csv, a few MB at a time.

    Args:
        types (`dict`): column -> type; without a `header` these are all columns in their order, and nothing is quoted.
        nullable (`bool`): an empty cell is null; otherwise it is an error.

    Raises:
        ValueError: if a column is not there, a line has another number of columns, or a value is not of its type.
    """
    try:
        with file.open() as stream:
            reader = pyarrow.csv.open_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(
                    block_size=_CSV_BLOCK_BYTES, column_names=None if header else list(types)
                ),
                parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char='"' if header else False),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict(types),
                    include_columns=list(types),
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            )
            for batch in reader:
                for name, column in zip(types, batch.columns, strict=True):
                    if column.null_count and not nullable:
                        raise ValueError(f"{file.name} has a line without {name}: download it again")
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])
    except pa.ArrowException as error:
        raise ValueError(f"{file.name} cannot be parsed: {error}") from error


def in_batches(name: str, rows: Iterable[Sequence[Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows, one value per column -> tables of at most `BATCH_ROWS` rows; `name` is the file, for errors."""
    iterator = iter(rows)
    while chunk := tuple(itertools.islice(iterator, BATCH_ROWS)):
        try:
            columns = [
                pa.array(values, field.type) for values, field in zip(zip(*chunk, strict=True), schema, strict=True)
            ]
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(f"{name} has a value of another type than published: {error}") from error
        yield pa.table(columns, schema=schema)


class LookupTable:
    """
    R rows under a key of text, held as Arrow columns: a tenth of the memory of a dict of tuples.

    Args:
        tables: batches of the rows. Where a key repeats, its first row counts.
        key: the column of the key.
        schema: of the batches, for when there are none.
    """

    def __init__(self, tables: Iterable[pa.Table], key: str, schema: pa.Schema) -> None:
        table = pa.concat_tables([schema.empty_table(), *tables])
        keys = _as_bytes(table.column(key))
        self.order = np.argsort(keys, kind="stable")  # (R,)
        self.keys = keys[self.order]
        self.table = table.drop_columns([key]).combine_chunks()  # take joins many chunks anew each time

    def positions(self, keys: pa.ChunkedArray) -> np.ndarray:
        """int64 (B,): the row of each key, -1 where there is none."""
        if len(self.keys) == 0:
            return np.full(len(keys), -1)
        wanted = _as_bytes(keys)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((self.keys[places] == wanted) & (wanted != b""), self.order[places], -1)

    def take(self, positions: np.ndarray) -> pa.Table:
        """The rows at `positions`, nulls where that is -1."""
        return self.table.take(pa.array(positions, pa.int64(), mask=positions < 0))


def _as_bytes(keys: pa.ChunkedArray) -> np.ndarray:
    """Text -> fixed-width bytes, which numpy sorts and searches without a Python object for each; null is `b""`."""
    chunks = [np.array(chunk.cast(pa.binary()).fill_null(b"").to_pylist(), dtype=bytes) for chunk in keys.chunks]
    return np.concatenate(chunks) if chunks else np.zeros(0, dtype="S1")


def beside(table: pa.Table, *others: pa.Table) -> pa.Table:
    """Tables of the same rows, side by side."""
    for other in others:
        for name, column in zip(other.column_names, other.columns, strict=True):
            table = table.append_column(name, column)
    return table


def unescape_entities(value: str) -> str:
    """`"Simon &amp; Schuster"` -> `"Simon & Schuster"`; an ampersand that starts no entity stays."""
    return _ENTITY.sub(lambda match: html.unescape(match[0]), value) if "&" in value else value


def count_absent(account: ReadingAccount, column: pa.ChunkedArray, reason: str) -> None:
    account.noted[reason] += pc.sum(pc.is_null(column)).as_py() or 0


def name_of(code: str, names: Mapping[str, str], column: str) -> str:
    if code not in names:
        raise ValueError(f"{column} code {code!r} is not one of the published {', '.join(names)}: is the file whole?")
    return names[code]
