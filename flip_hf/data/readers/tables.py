# SPDX-License-Identifier: Apache-2.0
"""Tables of users, files or rows in memory, -> Arrow tables of one schema whose label is 0 or 1."""

import csv
import datetime
import io
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset, DatasetInfo, Features, IterableDataset
from transformers.utils import logging

from ...columns_flip import (
    as_columns,
    as_list,
    canonical_value,
    class_names,
    is_container,
    plain_value,
    read_number,
    with_class_names,
)
from ...fitting.schema import is_split
from ..private_datasets import stream_of_tables
from .files import kind_of, name_of, opened, reading


_DELIMITERS = {"csv": ",", "tsv": "\t", "txt": "\t"}
_BLOCK_BYTES = 1 << 25  # of a csv, read at a time: a row has to fit in
_BLOCK_ROWS = 50_000  # of json and parquet
# where pandas keeps its index, and what becomes of it in a csv that pandas wrote or read again
_INDEX = re.compile(r"|__index_level_\d+__|Unnamed: 0(\.\d+)?")

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class TableOptions:
    """What [`load_ctr_dataset`] was told about a table."""

    label: str | None = None
    threshold: float | None = None
    delimiter: str | None = None
    encoding: str | None = None
    quoting: int | None = None
    escapechar: str | None = None
    column_names: Sequence[str] | None = None
    label_map: Mapping[str, int] | None = None

    @property
    def label_name(self) -> str:
        """Of the label column; `""` where none is looked for."""
        return "label" if self.label is None else self.label


def read_pieces(file: str, options: TableOptions) -> Iterator[pa.Table]:
    """
    The rows of a file, some megabytes at a time. The first piece of a csv or parquet has no rows, only the columns;
    pieces of json may differ in their columns and types.
    """
    kind = kind_of(file)
    if kind in _DELIMITERS:
        yield from _csv_pieces(file, options, options.delimiter or _DELIMITERS[kind])
    elif kind == "parquet":
        with opened(file) as stream:
            parquet = pyarrow.parquet.ParquetFile(stream)
            yield _tidy(parquet.schema_arrow.empty_table(), options)
            for batch in parquet.iter_batches(_BLOCK_ROWS):
                yield _tidy(pa.Table.from_batches([batch]), options)
    else:
        rows = json_objects(file, options.encoding or "utf-8-sig")
        while block := list(itertools.islice(rows, _BLOCK_ROWS)):
            yield as_table(block, f"{name_of(file)}: ")


def _csv_pieces(file: str, options: TableOptions, delimiter: str) -> Iterator[pa.Table]:
    """All columns are strings, so that codes keep their zeros; an empty cell is null."""
    if len(delimiter) != 1:
        raise ValueError(f"delimiter={delimiter!r} is not one character (a tab is \"\\t\", in a shell $'\\t')")
    with opened(file) as stream:
        names = _open_csv(stream, options, delimiter).schema.names
    listed = f"{name_of(file)} has the columns {', '.join(map(repr, names))}"
    others = [other for other in ",;\t|" if other != delimiter and other in names[0]]
    if len(names) == 1 and others:
        raise ValueError(f"{listed} with delimiter {delimiter!r}: it looks like delimiter={others[0]!r}")
    if len(set(names)) < len(names) or any(not name.strip() for name in names[1:]):
        raise ValueError(f"{listed}: each needs a name, and none the name of another")
    yield _tidy(pa.schema(dict.fromkeys(names, pa.string())).empty_table(), options)
    if options.quoting is options.escapechar is None:
        _check_quotes(file, options, delimiter)
    with opened(file) as stream:
        for batch in _open_csv(stream, options, delimiter, names):
            yield _tidy(pa.Table.from_batches([batch]), options)


def _open_csv(stream: IO[bytes], options: TableOptions, delimiter: str, names: Sequence[str] = ()) -> Any:
    is_quoted = options.quoting != csv.QUOTE_NONE
    quotes = {"quote_char": '"' if is_quoted else False, "escape_char": options.escapechar or False}
    header = {"column_names": options.column_names, "encoding": options.encoding or "utf8"}
    types = dict.fromkeys(names, pa.string())
    return pyarrow.csv.open_csv(
        stream,
        pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, **header),
        pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=is_quoted, **quotes),
        pyarrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""]),
    )


def _check_quotes(file: str, options: TableOptions, delimiter: str) -> None:
    """
    Raises ValueError for a quote that is closed in the midst of a cell or never: Arrow would drop it, or make one
    value of many rows, in silence. (`7" single` is fine.) Where quotes that were meant as characters pair up, what is
    between them has as many delimiters as rows have, which is warned about.
    """
    with opened(file) as stream:
        if not any(b'"' in block for block in iter(lambda: stream.read(1 << 20), b"")):
            return
    with opened(file) as stream:
        text = io.TextIOWrapper(stream, options.encoding or "utf-8-sig", newline="")
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        cells = ((cell, len(row) - 1) for row in rows for cell in row if "\n" in cell)
        try:
            lines = [rows.line_num for cell, width in cells if cell.count(delimiter) == cell.count("\n") * width > 0]
        except csv.Error as error:
            raise ValueError(
                f"{name_of(file)}, line {rows.line_num}: {error}: a quote in a quoted value has to be doubled; where "
                "quotes are characters as any other, pass quoting=csv.QUOTE_NONE, where a backslash escapes them, "
                "escapechar='\\\\'; quoting=csv.QUOTE_MINIMAL leaves this check out"
            ) from error
    if lines:
        logger.warning_once(
            f"{name_of(file)}, line {lines[0]}: a value in quotes looks like several rows; if quotes are characters "
            "as any other there, rows are lost: pass quoting=csv.QUOTE_NONE"
        )


def json_objects(file: str, encoding: str = "utf-8", keys: Sequence[str] = ()) -> Iterator[dict]:
    """The objects of a json file, one a line or all in a list; one without all of `keys` is an error."""
    with opened(file) as stream:
        text = io.TextIOWrapper(stream, encoding)
        first = next(filter(str.strip, text), "[]")
        if first.lstrip().startswith("["):
            rows = json.loads(first + text.read())
        else:
            rows = map(json.loads, filter(str.strip, itertools.chain([first], text)))
        for row in rows:
            if not isinstance(row, dict) or any(key not in row for key in keys):
                with_keys = f" with {', '.join(keys)}" if keys else ""
                raise ValueError(f"{name_of(file)} holds {str(row)[:80]}, which is no object{with_keys}")
            yield row


def read_files(files: Sequence[str], options: TableOptions) -> Iterator[pa.Table]:
    """The rows of all files, with the columns and types of all, their labels 0 or 1."""
    # any row of a json may widen a type or add a column: it is read twice
    schema = _common_schema(files, options, num_pieces=None if "json" in kind_of(files[0]) else 1)
    for _, table in _labelled_pieces(files, options, schema):
        yield table


def stream_files(files: Sequence[str], options: TableOptions) -> IterableDataset:
    """The rows of all files, read whenever they are iterated over; a file is a shard, for workers and for resuming."""
    schema = _common_schema(files, options, num_pieces=1)
    features = Features.from_arrow_schema(labelled(schema.empty_table(), options, name_of(files[0])).schema)
    return stream_of_tables(_labelled_pieces, {"files": list(files), "options": options, "schema": schema}, features)


def _common_schema(files: Sequence[str], options: TableOptions, num_pieces: int | None) -> pa.Schema:
    """One schema for all, with the columns in the order of the first: of two types of numbers the wider one."""
    whole: pa.Schema = None
    for file in files:
        for piece in itertools.islice(read_pieces(file, options), num_pieces):
            whole = whole or piece.schema
            differing = sorted(set(whole.names) ^ set(piece.schema.names))
            if differing and "json" not in kind_of(file):
                raise ValueError(
                    f"{name_of(file)} and {name_of(files[0])} differ in the columns {', '.join(differing)}: files of "
                    "one table have the same, in any order, and every text file its header"
                )
            with reading(file):
                whole = pa.unify_schemas([whole, piece.schema], promote_options="permissive")
    return whole or pa.schema([])


def _labelled_pieces(
    files: Sequence[str], options: TableOptions, schema: pa.Schema
) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    """Pieces of the files, with the columns and types of the whole table, and the number of file and piece of each."""
    for shard, file in enumerate(files):
        for number, piece in enumerate(filter(len, read_pieces(file, options))):
            with reading(file):
                whole = pa.concat_tables([schema.empty_table(), piece], promote_options="permissive")
            if whole.schema != schema:
                changed = [str(field) for field in whole.schema if field not in list(schema)]
                raise ValueError(
                    f"{name_of(file)} has {', '.join(changed)} in later rows, and a stream has the columns and types "
                    "of the first ones: load it without streaming once, or write all columns in every row"
                )
            yield (shard, number), labelled(whole, options, name_of(file))


def as_dataset(rows: Any) -> Dataset:
    """A table in any of the forms that `as_columns` takes -> a `Dataset`. Raises TypeError for splits."""
    if isinstance(rows, Dataset):
        return rows
    if is_split(rows):
        raise TypeError(f"this is split already, into {', '.join(rows)}: pass one of them")
    return Dataset(as_table(rows))


def as_table(rows: Any, where: str = "") -> pa.Table:
    """Raises ValueError for a column that holds values of several types."""
    columns = {}
    for name, column in as_columns(rows).items():
        try:
            is_arrow = isinstance(column, pa.Array | pa.ChunkedArray)
            columns[str(name)] = column if is_arrow else _arrow_column(column)
        except (pa.ArrowException, TypeError, OverflowError, UnicodeError) as error:
            problem = f"column {str(name)!r} holds values that have no type in common"
            raise ValueError(f"{where}{problem} ({error}): write strings") from error
    return _tidy(pa.table(columns), TableOptions())


def _arrow_column(column: Any) -> pa.Array:
    """What Arrow has no type for (intervals, periods, UUIDs, sets) is what a field reads in its place."""
    if hasattr(column, "detach"):  # of torch, whose floats of 32 bits Arrow would make 64 of
        column = column.detach().cpu().numpy()
    try:
        found = pa.array(column, from_pandas=True)
        has_sets = pa.types.is_list(found.type) and any(isinstance(value, set | frozenset) for value in column)
        # Arrow makes dates of times after a date as well
        is_cut = pa.types.is_date(found.type) and not {*map(type, as_list(column))} <= {datetime.date, type(None)}
        is_foreign = isinstance(getattr(found.type, "value_type", found.type), pa.BaseExtensionType)
        if not (has_sets or is_cut or is_foreign):
            return found
    except (pa.ArrowException, TypeError, OverflowError, UnicodeError):
        pass
    values = [sorted(value, key=str) if isinstance(value, set | frozenset) else value for value in as_list(column)]
    plain = [value if is_container(value) else plain_value(value) for value in values]
    if any(isinstance(one, datetime.datetime) for one in plain):
        midnight = datetime.time()
        plain = [datetime.datetime.combine(one, midnight) if type(one) is datetime.date else one for one in plain]
    # half a surrogate pair, which Arrow cannot hold, becomes what a field reads in its place
    plain = [one.encode("utf-8", "replace").decode() if isinstance(one, str) else one for one in plain]
    is_natural = all(one is None or (type(one) is int and one >= 0) for one in plain)
    largest: Any = max(filter(None, plain), default=0) if is_natural else 0
    return pa.array(plain, pa.uint64() if largest >= 2**63 else None, from_pandas=True)


def label_rows(dataset: Dataset, options: TableOptions) -> Dataset:
    """A table in memory with its label column checked and made 0 and 1, as that of a file is."""
    table = _tidy(dataset.with_format("arrow")[:], options)
    return Dataset(labelled(table, options, "the table"), DatasetInfo(description=dataset.info.description))


def _tidy(table: pa.Table, options: TableOptions) -> pa.Table:
    """Values in place of categories and classes, but for a label of two classes, and no index of pandas."""
    has_features = b"huggingface" in (table.schema.metadata or {})
    features = Features.from_arrow_schema(table.schema) if has_features else None
    label = options.label_name if options.label_map is None else None
    names = class_names(features).get(label) if label in table.column_names else None
    if names is not None:
        if len(names) != 2:
            raise ValueError(f"label column {label!r} has the classes {names}: say which are clicks with label_map")
        logger.warning_once(f"label column {label!r}: 1 is {names[1]!r}, 0 is {names[0]!r}")
    index = [name for name in table.column_names if _INDEX.fullmatch(name)]
    if any(not name.startswith("__") for name in index):
        logger.warning_once(f"column {index} is the index of a pandas frame and left out; a field needs another name")
    columns = {}
    for name, column in with_class_names(table.drop_columns(index), features, label).items():
        if isinstance(column, list):
            is_list = pa.types.is_nested(table.schema.field(name).type)
            column = pa.array(column, pa.list_(pa.string()) if is_list else pa.string())
        # categories and views are ways to store values, not types
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        columns[name] = column.cast(pa.string() if pa.types.is_string_view(kind) else kind)
    return pa.table(columns)


def labelled(table: pa.Table, options: TableOptions, source: str) -> pa.Table:
    """The label column, if there is one, as `label`, 0 or 1, the last."""
    names, name = table.column_names, options.label_name
    if not name:
        return table
    if name not in names:
        if options.label is options.threshold is options.label_map is None:
            return table
        raise ValueError(f"{source} has no label column {name!r}; it has {', '.join(names)}")
    if name != "label" and "label" in names:
        raise ValueError(f"{source} has a column 'label' beside the label column {name!r}: rename or drop one of them")
    clicks = read_clicks(table.column(name), options, f"{source}: column {name!r}")
    return table.drop_columns([name]).append_column("label", clicks)


def read_clicks(column: pa.ChunkedArray, options: TableOptions, where: str) -> pa.Array:
    """A label column -> int8 0 or 1; each distinct value is read once."""
    if column.type.num_fields:
        raise ValueError(f"{where} has the type {column.type}: one label per row is expected")
    distinct = column.unique()
    clicks = pa.array([_click(value, options, where) for value in distinct.to_pylist()], pa.int8())
    return clicks.take(pc.index_in(column, distinct))


def _click(value: Any, options: TableOptions, where: str) -> int:
    key = label_key(value)
    if not key:
        raise ValueError(f"{where} has a row without a label: drop such rows, or fill them")
    number = read_number(key)
    if options.threshold is None:
        click = (options.label_map or {"0": 0, "1": 1}).get(key)
    else:
        click = None if number is None or math.isnan(number) else int(number > options.threshold)
    if click is None and options.label_map is not None:
        known = ", ".join(map(repr, options.label_map))
        raise ValueError(f"{where} has the label {value!r}, of which label_map says nothing; it has {known}")
    if click is None:
        raise ValueError(
            f"{where} has the label {value!r}, which is neither 0 nor 1: label_threshold=3 makes 1 what is above 3, "
            "label_map={'yes': 1, 'no': 0} says it of each value"
        )
    return click


def label_key(value: Any) -> str:
    """How a value is looked up in `label_map`: -1, -1.0 and "-1" are one, as are True and "true"; "" is missing."""
    text = canonical_value(value) or ""
    number = read_number(text)
    return text.lower() if number is None or math.isnan(number) else canonical_value(number) or text
