# SPDX-License-Identifier: Apache-2.0
"""Files as users have them, one or many (shards) -> one Arrow table in mapped memory, or a stream; and what a label
column may hold.
"""

import glob
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetInfo, Features, IterableDataset
from datasets.iterable_dataset import ArrowExamplesIterable

from ...columns_flip import as_columns
from ...values_flip import canonical_value, read_number
from .formats import FileOptions, check_names, file_kind, read_pieces, read_schema, spell_classes, without_index


def find_files(source: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """
    The files of a table: one file, a list of them (in its order), or what a glob or a folder holds, sorted by name.

    Names that begin with "." or "_" are no data (`_SUCCESS`, `.part-0.crc`). A source that is not there gives none.

    Raises:
        FileNotFoundError: if a file of a list is not there.
        ValueError: if files are of several kinds, a file is listed twice, an ending is not read, or a folder has
            folders in it or lacks some of the shards that the names of the others count (`data-00000-of-00003`).
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        if path.is_file():
            files = [path]
        elif path.is_dir():
            entries = sorted(entry for entry in path.iterdir() if entry.name[0] not in "._")
            folders = [entry.name for entry in entries if entry.is_dir()]
            if folders:
                raise ValueError(
                    f"{path} has folders in it ({', '.join(folders[:3])}), which are not read, nor are their names as "
                    f"values of a column: pass a glob, such as {path.name}/*/*.parquet"
                )
            _check_numbers(path, [entry.name for entry in entries])
            files = entries
        else:
            files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    else:
        files = [Path(name).expanduser() for name in source]
        absent = [str(file) for file in files if not file.is_file()]
        if absent:
            raise FileNotFoundError(f"{', '.join(absent[:3])} of the {len(files)} files listed: no such file")
        twice = [str(file) for file in files if files.count(file) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is listed twice: its rows would be there twice")
    kinds = {file_kind(file): file.name for file in files}
    if len(kinds) > 1:
        raise ValueError(
            f"files of several kinds ({', '.join(kinds.values())}) are no one table: name those of one kind, such as "
            f"*.{next(iter(kinds))}"
        )
    return files


def _check_numbers(folder: Path, names: Sequence[str]) -> None:
    present: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        numbered = re.fullmatch(r"(.*?)(\d+)-of-(\d+)(.*)", name)
        if numbered:
            before, number, total, after = numbered.groups()
            present.setdefault((before, total, after), set()).add(int(number))
    for (before, total, after), numbers in present.items():
        if len(numbers) < int(total):
            absent = next(k for k in itertools.count(0 if 0 in numbers else 1) if k not in numbers)
            raise ValueError(
                f"{folder} lacks {int(total) - len(numbers)} of {int(total)} shards, such as "
                f"{before}{absent:0{len(total)}}-of-{total}{after}: copy or download them, or list the files to read"
            )


# --- the shards of a table have one schema ---------------------------------------------------------------------------


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Categories of pandas and views are ways to store values, not types of their own."""
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both as they are; `None` where there is none, or only text would be one."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    families = [
        lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind),
        lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
        lambda kind: pa.types.is_timestamp(kind) and kind.tz == one.tz,
        pa.types.is_decimal,
    ]
    if any(family(one) and family(other) for family in families):
        schemas = [pa.schema([("", one)]), pa.schema([("", other)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    lists = [kind for kind in (one, other) if pa.types.is_list(kind) or pa.types.is_large_list(kind)]
    if len(lists) == 2:
        values = _common_type(one.value_type, other.value_type)
        large = any(map(pa.types.is_large_list, lists))
        return values and (pa.large_list if large else pa.list_)(values)
    return None


def _common_schema(shards: Sequence[tuple[Path, pa.Schema]], fill: bool) -> pa.Schema:
    """
    One schema for all shards, with the columns in the order of the first; `fill`: a column may be absent (json).

    Raises:
        ValueError: for a shard that lacks a column, has one more, or has another type, naming shard, column and types.
    """
    first, schema = shards[0]
    types = {field.name: (_plain_type(field.type), first) for field in schema}
    for path, schema in shards:
        check_names(path, schema.names)
        lacking = [name for name in types if name not in schema.names]
        added = [name for name in schema.names if name not in types]
        if (lacking or added) and not fill:
            one, other, names = (path, first, lacking) if lacking else (first, path, added)
            raise ValueError(
                f"{one.name} lacks the column {', '.join(map(repr, names[:5]))}, which {other.name} has: shards of a "
                "table have the same columns (in any order), and every text file its header"
            )
        for field in schema:
            kind = _plain_type(field.type)
            before, where = types.get(field.name, (kind, path))
            common = _common_type(before, kind)
            if common is None:
                raise ValueError(
                    f"column {field.name!r} is of type {before} in {where.name} and {kind} in {path.name}: write it "
                    "with one type (whole numbers beside fractions, and columns without values, are no clash)"
                )
            types[field.name] = (common, path if common != before else where)
    return pa.schema([(name, kind) for name, (kind, _) in types.items()])


def _conform(table: pa.Table, schema: pa.Schema, path: Path) -> pa.Table:
    """A piece of a shard, with the columns and types of the whole table."""
    added = [name for name in table.column_names if name not in schema.names]
    if added:
        raise ValueError(
            f"{path.name} has the column {added[0]!r} in later rows, and a stream has those of the first rows: "
            f"{', '.join(schema.names)}; load it without streaming once, or write {added[0]!r} in every row"
        )
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(field.name)
        if _common_type(field.type, _plain_type(column.type)) != field.type:
            raise ValueError(
                f"column {field.name!r} is of type {column.type} in later rows of {path.name} and {field.type} in the "
                "first ones: load it without streaming once, or write it with one type"
            )
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"column {field.name!r} is of type {column.type} in {path.name} and {field.type} in all: {error}: "
                f"write it as {field.type}, or as strings everywhere"
            ) from error
    return pa.table(columns, schema=schema)


def on_disk(pieces: Iterable[pa.Table], folder: Path) -> list[pa.Table]:
    """
    Writes pieces one by one and maps them into memory, one table for each run of pieces of one schema: what does not
    fit into memory is still a table. The files are gone when the tables are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables: list[pa.Table] = []
    schemas: list[pa.Schema] = []
    # where a mapped file cannot be deleted, the clean-up leaves it
    with tempfile.TemporaryDirectory(prefix=".mapped-", dir=folder, ignore_cleanup_errors=True) as temporary:
        writer = None
        for piece in pieces:
            if not schemas or piece.schema != schemas[-1]:
                if writer is not None:
                    writer.close()
                writer = pa.ipc.new_file(str(Path(temporary) / str(len(schemas))), piece.schema)
                schemas.append(piece.schema)
            writer.write_table(piece)
        if writer is not None:
            writer.close()
        for number in range(len(schemas)):
            with pa.memory_map(str(Path(temporary) / str(number))) as file:
                tables.append(pa.ipc.open_file(file).read_all())
    return tables


# --- a table, or a stream --------------------------------------------------------------------------------------------


def read_files(files: Sequence[Path], options: FileOptions, folder: Path) -> pa.Table:
    """
    All rows of all files as one table that is mapped into memory from a file in `folder`. Of a csv, `rating` and
    `timestamp` become numbers where all their values are.

    Raises:
        ValueError: for what cannot be read, shards that do not go together, labels that are none, or no rows.
    """
    is_json = file_kind(files[0]).startswith("json")
    schema = None if is_json else _common_schema([(path, read_schema(path, options)) for path in files], fill=False)
    seen: list[tuple[Path, pa.Schema]] = []
    bounds = [0]

    def pieces() -> Iterator[pa.Table]:
        for path in files:
            bounds.append(bounds[-1])
            for piece in read_pieces(path, options):
                if not piece.num_rows:
                    continue
                if schema is not None:
                    piece = _conform(piece, schema, path)
                elif not seen or piece.schema != seen[-1][1]:
                    seen.append((path, piece.schema))
                bounds[-1] += piece.num_rows
                yield piece

    parts = on_disk(pieces(), folder)
    if not parts:
        raise ValueError(f"{files[0].name}{f' and the other {len(files) - 1}' * (len(files) > 1)} has no rows")
    if schema is None:
        schema = _common_schema(seen, fill=True)
        parts = [_conform(part, schema, path) for part, (path, _) in zip(parts, seen, strict=True)]
    table = pa.concat_tables(parts)
    if file_kind(files[0]) in ("csv", "tsv", "txt"):
        for position, name in enumerate(table.column_names):
            if name in ("rating", "timestamp") and name != options.label:
                table = table.set_column(position, name, as_numbers(table.column(name)))
    rows = list(zip(files, bounds[:-1], bounds[1:], strict=True))
    return pa.concat_tables(
        [labelled(table.slice(start, end - start), options, path.name, 0) for path, start, end in rows if start < end]
    )


def stream_files(files: Sequence[Path], options: FileOptions) -> IterableDataset:
    """The rows of all files, read whenever they are iterated over; a file is a shard, for workers and for resuming."""
    shards = [(path, read_schema(path, options)) for path in files]
    schema = _common_schema(shards, fill=file_kind(files[0]).startswith("json"))
    features = Features.from_arrow_schema(labelled(schema.empty_table(), options, files[0].name, 0).schema)
    rows = ArrowExamplesIterable(
        _stream, {"paths": list(map(str, files)), "options": options, "schema": schema, "num_files": len(files)}
    )
    return IterableDataset(rows, info=DatasetInfo(features=features))


def _stream(
    paths: list[str], options: FileOptions, schema: pa.Schema, num_files: int
) -> Iterator[tuple[tuple[int, int], pa.Table]]:
    for shard, path in enumerate(map(Path, paths)):
        num_rows = 0
        for number, piece in enumerate(read_pieces(path, options)):
            if piece.num_rows:
                yield (shard, number), labelled(_conform(piece, schema, path), options, path.name, num_rows)
            num_rows += piece.num_rows
        if num_rows == 0 and num_files == 1:
            raise ValueError(f"{path.name} has no rows")


# --- rows in memory --------------------------------------------------------------------------------------------------


def as_dataset(rows: Any) -> Dataset:
    """
    A table in any of the forms that `as_columns` takes -> a `Dataset`, without an index of pandas.

    Raises:
        TypeError: for splits or anything else.
        ValueError: if a column holds values of several types, or `as_columns` does not take the rows.
    """
    if isinstance(rows, Dataset):
        return rows
    if isinstance(rows, Mapping) and any(hasattr(rows[name], "column_names") for name in rows):
        raise TypeError(f"this is split already, into {', '.join(rows)}: pass one of them")
    columns = {}
    for name, column in as_columns(rows).items():
        if not isinstance(column, pa.Array | pa.ChunkedArray):
            try:
                column = pa.array(column, from_pandas=True)  # nan is no value, also among strings
            except (pa.ArrowException, OverflowError) as error:
                raise ValueError(
                    f"column {str(name)!r} holds values of several types ({error}): make it of one, such as strings"
                ) from error
        columns[str(name)] = column.cast(_plain_type(column.type))
    return Dataset(without_index(pa.table(columns)))


def label_rows(dataset: Dataset, options: FileOptions) -> Dataset:
    """A table in memory with its label column checked and made 0 and 1, as that of a file is."""
    table = spell_classes(dataset.with_format("arrow")[:], dataset.features, options)
    table = labelled(without_index(table), options, "the table", 0)
    return Dataset(table, DatasetInfo(description=dataset.info.description))


# --- labels ----------------------------------------------------------------------------------------------------------


def labelled(table: pa.Table, options: FileOptions, source: str, first_row: int) -> pa.Table:
    """Rows of a file from `first_row` on, their label column checked, made 0 and 1 and put last, if they have one."""
    names = table.column_names
    name, threshold = options.label or "label", options.threshold
    if options.label is None and name not in names:
        if threshold is not None or options.label_map is not None:
            given = "label_map" if threshold is None else f"label_threshold={threshold:g}"
            raise ValueError(f"{given} needs a label column: name one with label; {source} has {', '.join(names)}")
        return table
    if name not in names:
        raise ValueError(f"{source} has no label column {name!r}; it has {', '.join(names)}")
    if name != "label" and "label" in names:
        raise ValueError(f"{source} has a column 'label' beside the label column {name!r}: rename or drop one of them")
    others, values = table.drop_columns([name]), table.column(name)
    return with_label(others, values, threshold, name, f"{source}: ", first_row, options.label_map)


def as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings -> int64, float64 where that cannot be, or the strings themselves where one of them is no number."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            pass
    return column


def label_key(value: Any) -> str:
    """How a value is looked up in `label_map`: -1, -1.0 and "-1" are one, and so are True and "true"."""
    text = canonical_value(value) or ""
    number = read_number(text)
    return text.lower() if number is None or np.isnan(number) else canonical_value(number) or text


def _mapped(
    values: pa.ChunkedArray, label_map: Mapping[str, int], name: str, where: str, first_row: int
) -> pa.ChunkedArray:
    """A label column as float64, nulls where it has no value, by what `label_map` says of its values."""
    distinct = values.unique()
    spelled = [None if canonical_value(value) is None else label_key(value) for value in distinct.to_pylist()]
    for value, key in zip(distinct, spelled, strict=True):
        if key is not None and key not in label_map:
            row = first_row + pc.index(values, value).as_py()
            raise ValueError(
                f"{where}label {value.as_py()!r} in row {row} (from 0) of column {name!r} is not in label_map, which "
                f"has {', '.join(label_map)}"
            )
    numbers = pa.array([None if key is None else float(label_map[key]) for key in spelled], pa.float64())
    return numbers.take(pc.index_in(values, distinct))


def _remedy(values: pa.ChunkedArray) -> str:
    """What to do about a column of labels that are not 0 and 1."""
    distinct = values.unique().drop_null()
    if len(distinct) == 2:
        low, high = sorted(distinct.to_pylist())
        return f"label_map={{{low!r}: 0, {high!r}: 1}} says which of the two is a click"
    return (
        "for a rating, label_threshold=3 makes the label 1 where it is above 3; for words, label_map={'yes': 1, ...}"
    )


def _label_numbers(values: pa.ChunkedArray, name: str, where: str, first_row: int) -> pa.ChunkedArray:
    """A label column as float64, nulls where it has no value; what is no number is an error that names it."""
    kind = values.type
    if pa.types.is_boolean(kind):
        return values.cast(pa.int8()).cast(pa.float64())
    if any(
        is_kind(kind) for is_kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
    ):
        return values.cast(pa.float64(), safe=False)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{where}label column {name!r} has the type {kind}: 0 and 1, or numbers, are expected")
    words = pc.utf8_lower(pc.utf8_trim_whitespace(values.cast(pa.string())))
    words = pc.if_else(pc.equal(words, "true"), "1", pc.if_else(pc.equal(words, "false"), "0", words))
    words = pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)
    wrong = pc.index(pc.match_substring_regex(words, r"^-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$"), False).as_py()
    if wrong >= 0:
        raise ValueError(
            f"{where}label {values[wrong].as_py()!r} in row {first_row + wrong} (from 0) of column {name!r} is not a "
            f"number: 0 and 1 are expected; {_remedy(values)}"
        )
    return words.cast(pa.float64())


def with_label(
    table: pa.Table,
    values: pa.ChunkedArray,
    threshold: float | None,
    name: str,
    where: str = "",
    first_row: int = 0,
    label_map: Mapping[str, int] | None = None,
) -> pa.Table:
    """
    Appends `label` int8, after checking every value of the label column `name`.

    Raises:
        ValueError: for a label that is missing or not 0 or 1, naming it and its row (counted from `first_row`), after
            `where`.
    """
    if label_map is None:
        numbers = _label_numbers(values, name, where, first_row)
    else:
        numbers = _mapped(values, label_map, name, where, first_row)
    hole = pc.index(pc.is_null(numbers, nan_is_null=True), True).as_py()
    if hole >= 0:
        raise ValueError(
            f"{where}label column {name!r} has no value in row {first_row + hole} (from 0): drop such rows, or fill "
            "them"
        )
    if threshold is not None:
        return table.append_column("label", pc.greater(numbers, float(threshold)).cast(pa.int8()))
    wrong = pc.index(pc.or_(pc.equal(numbers, 0.0), pc.equal(numbers, 1.0)), False).as_py()
    if wrong >= 0:
        raise ValueError(
            f"{where}label {values[wrong].as_py()!r} in row {first_row + wrong} (from 0) of column {name!r} is "
            f"neither 0 nor 1: {_remedy(values)}"
        )
    return table.append_column("label", numbers.cast(pa.int8()))
