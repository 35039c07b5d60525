# SPDX-License-Identifier: Apache-2.0
"""Files as users have them (csv, tsv, parquet, json, jsonl) -> Arrow tables, and what a label column may hold."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet


def read_file(path: Path, label: str | None, threshold: float | None, delimiter: str | None) -> pa.Table:
    readers = {
        ".csv": lambda: _read_csv(path, delimiter or ",", label),
        ".tsv": lambda: _read_csv(path, delimiter or "\t", label),
        ".parquet": lambda: _read_parquet(path),
        ".jsonl": lambda: _read_json(path),
        ".json": lambda: _read_json(path),
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path.name}: {path.suffix or 'no ending'} is not one of {', '.join(readers)}")
    if delimiter is not None and (len(delimiter) != 1 or path.suffix.lower() not in (".csv", ".tsv")):
        raise ValueError(f"{path.name}: delimiter={delimiter!r} has to be one character, and the file a csv or tsv")
    try:
        table = readers[path.suffix.lower()]()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not in UTF-8 ({error}): save it in that encoding") from error
    except (pa.ArrowException, csv.Error, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} cannot be parsed: {error}") from error
    _check_names(path, table.column_names)
    if table.num_rows == 0:
        raise ValueError(f"{path.name} has no rows")
    for position, column in enumerate(table.columns):
        if pa.types.is_dictionary(column.type):  # categories of pandas: an encoding, not a type of its own
            table = table.set_column(position, table.column_names[position], column.cast(column.type.value_type))
    names = table.column_names
    if label is None and "label" not in names:
        if threshold is not None:
            raise ValueError(
                f"label_threshold={threshold:g} needs a label column: name one with label; {path.name} has "
                f"{', '.join(names)}"
            )
        return table
    name = label or "label"
    if name not in names:
        raise ValueError(f"{path.name} has no label column {name!r}; it has {', '.join(names)}")
    if name != "label" and "label" in names:
        raise ValueError(
            f"{path.name} has a column 'label' beside the label column {name!r}: rename or drop one of them"
        )
    return with_label(table.drop_columns([name]), table.column(name), threshold, name)


def _check_names(path: Path, names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path.name}: column names repeat: {', '.join(repeated)}")
    for position, name in enumerate(names):
        if not name.strip():
            raise ValueError(
                f"{path.name}: column {position} (from 0) has no name: name it, or drop it if it is an index (pandas: "
                "index=False)"
            )


def _read_csv(path: Path, delimiter: str, label: str | None) -> pa.Table:
    """Strings in every column but `rating` and `timestamp`; an empty cell is null."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=delimiter), [])
    if not names:
        raise ValueError(f"{path.name} has no rows")
    others = [other for other in ",;\t|" if other != delimiter and other in names[0]]
    if len(names) == 1 and others:
        raise ValueError(
            f"{path.name} has the one column {names[0]!r} with delimiter {delimiter!r}: it looks like "
            f"delimiter={others[0]!r}"
        )
    _check_names(path, names)  # before Arrow merges what column_types cannot tell apart
    table = pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
        ),
    )
    for name in ("rating", "timestamp"):
        if name in names and name != label:
            table = table.set_column(names.index(name), name, as_numbers(table.column(name)))
    return table


def _read_parquet(path: Path) -> pa.Table:
    with pyarrow.parquet.ParquetFile(path) as file:  # read_table would take "day=3/" in the path for a column
        table = file.read()
    return table.drop_columns([name for name in table.column_names if re.fullmatch(r"__index_level_\d+__", name)])


def as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings -> int64, float64 where that cannot be, or the strings themselves where one of them is no number."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            pass
    return column


def _read_json(path: Path) -> pa.Table:
    """A list of objects, or one object per line; a key that an object lacks is null there."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if not start:
        raise ValueError(f"{path.name} has no rows")
    if not start.startswith(b"["):
        return pyarrow.json.read_json(path)
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name} is a list of something else than objects: one object per row is expected")
    # not Table.from_pylist, which looks for columns in the first row alone
    names = dict.fromkeys(key for row in rows for key in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _label_numbers(values: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """A label column as float64, nulls where it has no value; what is no number is an error that names it."""
    kind = values.type
    if pa.types.is_boolean(kind):
        return values.cast(pa.int8()).cast(pa.float64())
    if any(
        is_kind(kind) for is_kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    ):
        return values.cast(pa.float64(), safe=False)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"label column {name!r} has the type {kind}: 0 and 1, or numbers, are expected")
    words = pc.utf8_lower(pc.utf8_trim_whitespace(values.cast(pa.string())))
    words = pc.if_else(pc.equal(words, "true"), "1", pc.if_else(pc.equal(words, "false"), "0", words))
    words = pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)
    wrong = pc.index(pc.match_substring_regex(words, r"^-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$"), False).as_py()
    if wrong >= 0:
        raise ValueError(
            f"label {values[wrong].as_py()!r} in row {wrong} (from 0) of column {name!r} is not a number: 0 and 1 are "
            "expected"
        )
    return words.cast(pa.float64())


def with_label(table: pa.Table, values: pa.ChunkedArray, threshold: float | None, name: str) -> pa.Table:
    """Appends `label` int8, after checking every value of the label column."""
    numbers = _label_numbers(values, name)
    hole = pc.index(pc.is_null(numbers, nan_is_null=True), True).as_py()
    if hole >= 0:
        raise ValueError(f"label column {name!r} has no value in row {hole} (from 0): drop such rows, or fill them")
    if threshold is not None:
        return table.append_column("label", pc.greater(numbers, float(threshold)).cast(pa.int8()))
    wrong = pc.index(pc.or_(pc.equal(numbers, 0.0), pc.equal(numbers, 1.0)), False).as_py()
    if wrong >= 0:
        raise ValueError(
            f"label {values[wrong].as_py()!r} in row {wrong} (from 0) of column {name!r} is neither 0 nor 1: for a "
            "rating, label_threshold=3 makes the label 1 where it is above 3"
        )
    return table.append_column("label", numbers.cast(pa.int8()))
