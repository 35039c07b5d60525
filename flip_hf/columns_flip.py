# SPDX-License-Identifier: Apache-2.0
"""Rows in any of the forms users have them -> columns, and a column -> its distinct values.

Letters: B rows.
"""

import datetime
import decimal
import importlib
import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .values_flip import canonical_value, container_message, is_container


# rows read at a time from what is larger than memory
BATCH_SIZE = 100_000


def is_column(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0


def as_columns(rows: Any, label: str | None = None) -> Mapping[str, Any]:
    """
    A batch in any of the forms users have it -> a mapping of columns.

    Takes a dict of lists, a list of dicts, one dict (a batch of one), a batch or row of `datasets.map`, a
    `datasets.Dataset` (of a `ClassLabel` the names), an Arrow table, a pandas frame or one row of it (a Series), a
    record or an array of records of numpy, or whatever hands out Arrow tables (polars). A key that some of the dicts
    lack is missing there. Classes of the column `label` stay numbers.

    Raises:
        TypeError: for anything else.
        ValueError: if a list of rows is empty, or two columns of a table have one name.
    """
    if isinstance(rows, Mapping):
        # the first column of a batch ends this: a lazy batch need not decode the others
        if any(is_column(rows[name]) for name in rows):
            return rows
        return {name: [rows[name]] for name in rows}
    if hasattr(rows, "with_format") and hasattr(rows, "__getitem__"):  # a datasets.Dataset, whatever its format
        return with_class_names(rows.with_format("arrow")[:], rows.features, label)
    if hasattr(rows, "column_names") and hasattr(rows, "column"):  # an Arrow table
        return _by_name(rows.column_names, rows.column)
    if hasattr(rows, "iloc"):  # of pandas
        if hasattr(rows, "columns"):
            return _by_name(rows.columns, lambda number: rows.iloc[:, number])
        return as_columns(rows.to_dict())
    if getattr(getattr(rows, "dtype", None), "names", None):  # records of numpy
        return as_columns(
            {name: rows[name] if np.ndim(rows) else np.asarray(rows)[name].item() for name in rows.dtype.names}
        )
    if hasattr(rows, "__arrow_c_stream__"):
        return {name: _signed(column) for name, column in as_columns(_pyarrow().table(rows)).items()}
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        if not len(rows):
            raise ValueError("no rows: the list is empty")
        if all(isinstance(row, Mapping) for row in rows):
            names = dict.fromkeys(name for row in rows for name in row)
            return {name: [row.get(name) for row in rows] for name in names}
    raise TypeError(
        f"rows are a {type(rows).__name__}: pass a dict of lists, a list of dicts, one dict, a datasets.Dataset, an "
        "Arrow table, or a frame of pandas or polars"
    )


def _pyarrow() -> Any:
    """For those who bring Arrow tables: what travels with a checkpoint does not ask for it."""
    return importlib.import_module("pyarrow")


def _signed(column: Any) -> Any:
    """Categories of polars, whose numbers have no sign and whose values are views, as those of Arrow's own."""
    if not hasattr(column.type, "index_type"):
        return column
    chunks = [
        type(chunk).from_arrays(chunk.indices.cast("int64"), chunk.dictionary.cast("string"))
        for chunk in column.chunks
    ]
    return _pyarrow().chunked_array(chunks) if chunks else column


def with_class_names(table: Any, features: Any, label: str | None = None) -> Mapping[str, Any]:
    """
    Columns of an Arrow table of a `datasets.Dataset`, with the names of classes instead of their numbers, also where a
    row is a list of them, but for the column `label`.
    """
    columns = dict(as_columns(table))
    for name, names in class_names(features).items():
        if name in columns and name != label:
            by_number = dict(enumerate(names))
            columns[name] = [
                [by_number.get(number) for number in value] if isinstance(value, list) else by_number.get(value)
                for value in as_list(columns[name])
            ]
    return columns


def class_names(features: Any) -> dict[str, list[str]]:
    """Of `datasets.Features`: the names of the classes of each column that has some, alone or in lists."""
    names = {name: getattr(getattr(one, "feature", one), "names", None) for name, one in (features or {}).items()}
    return {name: of_column for name, of_column in names.items() if of_column is not None}


def _by_name(names: Sequence[Any], column: Callable[[int], Any]) -> dict[str, Any]:
    columns = {str(name): column(number) for number, name in enumerate(names)}
    if len(columns) < len(names):
        twice = [name for name in columns if list(map(str, names)).count(name) > 1]
        raise ValueError(f"two columns of the table are named {twice[0]!r}: rename one")
    return columns


def select_columns(columns: Mapping[str, Any], names: Sequence[str], of_lists: Sequence[str] = ()) -> list[Any]:
    """
    The columns `names`, after checking that they are there, are columns, and are equally long. What a single row holds
    of the columns `of_lists` may be a list.
    """
    absent = [name for name in names if name not in columns]
    if absent:
        raise ValueError(
            f"no column for field {', '.join(map(repr, absent))}; the rows have {', '.join(map(str, columns))}. A "
            "value may be missing (None), a column may not"
        )
    selected = [columns[name] for name in names]
    single = [name for name, column in zip(names, selected, strict=True) if not is_column(column)]
    if single and {*single, *of_lists} >= {*names}:  # one row; no field is a column, or it holds lists
        return [[value] for value in selected]
    if single:
        raise ValueError(
            f"field {single[0]!r} is the one value {str(columns[single[0]])[:40]!r} and others are columns: pass a "
            "list for every field, or one value for every field"
        )
    sizes = {name: len(column) for name, column in zip(names, selected, strict=True)}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"columns differ in length: {sizes}")
    return selected


def gives_arrow(dataset: Any) -> bool:
    """
    Whether a `Dataset` or `IterableDataset` has Arrow tables to give. A stream of rows made in Python has none:
    `datasets` would make a table of each row, and tables of rows with and without holes do not fit together.
    """
    return getattr(getattr(dataset, "_ex_iterable", None), "iter_arrow", True) is not None


def batches(dataset: Any, label: str | None = None) -> Iterator[Mapping[str, Any]]:
    """
    Batches of columns of whatever `fit` is given; a `datasets.Dataset` as Arrow, a piece at a time. Classes of the
    column `label` stay numbers.
    """
    if hasattr(dataset, "with_format") and hasattr(dataset, "iter"):
        for batch in dataset.with_format("arrow" if gives_arrow(dataset) else None).iter(batch_size=BATCH_SIZE):
            yield with_class_names(batch, dataset.features, label)
    elif isinstance(dataset, Iterator):
        for batch in dataset:
            yield as_columns(batch, label)
    elif isinstance(dataset, Sequence) and not len(dataset):
        return
    else:
        yield as_columns(dataset, label)


class CodedColumn(NamedTuple):
    """
    A column as its distinct values, and for each row the number of its value: what is done per value is done once.

    Args:
        values (`Sequence`): distinct values that can be keys of one dict.
        indices (`np.ndarray` of shape `(B,)`, int64): position of each row's value in `values`.
        raw (`Sequence`, *optional*): the distinct values before `mapped`, where it changed them.
    """

    values: Sequence[Any]
    indices: np.ndarray
    raw: Sequence[Any] | None = None

    @property
    def num_rows(self) -> int:
        return len(self.indices)

    def counts(self) -> np.ndarray:
        """How often each of the values occurs."""
        return np.bincount(self.indices, minlength=len(self.values))

    def mapped(self, values: Sequence[Any]) -> "CodedColumn":
        """Other values in the place of these, of which several may become one."""
        if all(map(operator.is_, values, self.values)):  # equal is not enough: Decimal(1) is equal to 1.0
            return self
        coded = code_values(values)
        return CodedColumn(coded.values, coded.indices[self.indices], self.values)


def as_list(column: Any) -> Sequence[Any]:
    """A column as a Python sequence, whatever holds it."""
    if isinstance(column, np.ndarray) and column.dtype == "datetime64[ns]":  # tolist would make integers of it
        column = column.astype("datetime64[us]")
    for method in ("to_pylist", "tolist", "to_list"):  # arrow; numpy, pandas and torch; polars
        if hasattr(column, method):
            return getattr(column, method)()
    return column if isinstance(column, list | tuple) else list(column)


def code_values(values: Sequence[Any]) -> CodedColumn:
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return CodedColumn(list(numbers), np.fromiter(map(numbers.__getitem__, values), np.int64, len(values)))


def is_arrow(column: Any) -> bool:
    """An Arrow column whose distinct values Arrow itself can find: lists, structs and extensions are none."""
    return (
        hasattr(column, "dictionary_encode")
        and not column.type.num_fields
        and not hasattr(column.type, "extension_name")
    )


def _arrow_codes(column: Any) -> tuple[np.ndarray, Sequence[Any]]:
    """An Arrow column -> index of each row's value in the list of distinct values (-1 where it is null), that list."""
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
        if hasattr(column, "num_chunks"):  # more than one array can hold
            column = column.chunk(0) if column.num_chunks == 1 else column
    if hasattr(column, "num_chunks"):
        column = column.unify_dictionaries() if hasattr(column.type, "index_type") else column.dictionary_encode()
        dictionary = column.chunk(0).dictionary.to_pylist() if column.num_chunks else []
        parts = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in column.chunks]
        return np.concatenate([np.zeros(0, np.int64), *parts]), dictionary
    encoded = column.dictionary_encode() if not hasattr(column, "indices") else column
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()


def code_scalars(column: Any, field: str, first_row: int = 0) -> CodedColumn:
    """
    A column of single values as they are: strings, numbers, truths, times, `None`.

    Raises:
        TypeError: at the first list or other container, naming the field and the row, counted from `first_row`.
    """
    if is_arrow(column):
        indices, values = _arrow_codes(column)
        values = plain_values(values, field)
        indices = indices.astype(np.int64)
        is_null = indices < 0
        if is_null.any():
            values, indices = [*values, None], np.where(is_null, len(values), indices)
        coded, dtype = CodedColumn(values, indices), str(column.type)
    else:
        coded = code_values(plain_values(as_list(column), field, first_row))
        dtype = str(getattr(column, "dtype", "")).lower().removeprefix("torch.")
    short = {"float32": np.float32, "float": np.float32, "float16": np.float16, "halffloat": np.float16}.get(dtype)
    if short is None:
        return coded
    # as it prints: 3.3 of 32 bits is 3.3, and not the 3.2999999523 that it is stored as
    printed = np.array(coded.values, short).astype(str).astype(np.float64).tolist()
    return coded.mapped([None if value != value else value for value in printed])


def list_rows(column: Any, field: str, read: Callable[[Sequence[Any]], list[str | None]]) -> list[tuple] | None:
    """
    Rows of an Arrow column of lists, as tuples of the strings that `read` makes of their distinct elements, missing
    ones left out, and empty where the row is null; `None` for every other column.
    """
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    is_map = hasattr(column, "keys")
    if is_map or not hasattr(column, "value_lengths") or not is_arrow(column.flatten()):
        return None
    elements = code_scalars(column.flatten(), field)
    return tuples_of(elements, column.value_lengths().fill_null(0).to_numpy(), read)


def tuples_of(
    elements: CodedColumn, lengths: Sequence[int] | np.ndarray, read: Callable[[Sequence[Any]], list[str | None]]
) -> list[tuple]:
    """Elements of all rows, end to end, and how many each row has `(B,)` -> a tuple of strings for each row."""
    texts = read(elements.values)
    flat = list(map(texts.__getitem__, elements.indices.tolist()))
    bounds = np.append(0, np.cumsum(lengths, dtype=np.int64)).tolist()
    rows = [tuple(flat[start:end]) for start, end in itertools.pairwise(bounds)]
    return rows if None not in texts else [tuple(text for text in row if text is not None) for row in rows]


def plain_values(column: Sequence[Any], field: str, first_row: int = 0) -> Sequence[Any]:
    """Values as Python has them, fit to be keys. Beside numbers a truth becomes a word: 1 and `True` are one key."""
    types = set(map(type, column))
    if types <= {str, int, float, type(None)} or types <= {bool, type(None)}:
        return column
    for row, value in enumerate(column):
        if is_container(value):
            raise TypeError(container_message(value, field, first_row + row))
    plain = [_plain_value(value) for value in column]
    if {bool} < set(map(type, plain)) - {str, type(None)}:
        return [str(value) if type(value) is bool else value for value in plain]
    return plain


def _plain_value(value: Any) -> Any:
    if hasattr(value, "item") and not isinstance(value, np.datetime64):  # of numpy or torch
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, datetime.date | np.datetime64 | decimal.Decimal):
        return None if canonical_value(value) is None else value
    return canonical_value(value)


_LABELS = {"0": 0.0, "1": 1.0, "False": 0.0, "True": 1.0}


def read_labels(column: Any, name: str) -> np.ndarray:
    """
    A label column `(B,)` as float32 0.0 or 1.0.

    Raises:
        ValueError: at the first label that is not 0 or 1 (as number, text, or true and false), naming it and its row.
        TypeError: if labels are lists.
    """
    if is_arrow(column) and not column.null_count and str(column.type).startswith(("int", "uint", "float", "bool")):
        values: Any = np.asarray(column)  # ten million labels are no list of Python numbers
    else:
        values = as_list(column) if hasattr(column, "__len__") and not isinstance(column, str | bytes) else [column]
    array = np.asarray(values)
    if array.ndim > 1:
        raise TypeError(f"column {name!r} holds lists ({str(values[0])[:60]}) and not one label, 0 or 1, per row")
    if array.dtype.kind not in "biuf":
        array = np.array([_LABELS.get(canonical_value(value, name), np.nan) for value in values])
    array = array.astype(np.float64)
    wrong = np.flatnonzero((array != 0.0) & (array != 1.0))
    if len(wrong):
        label = as_list(values)[int(wrong[0])]
        raise ValueError(
            f"label {label!r} in row {int(wrong[0])} of column {name!r} is neither 0 nor 1: make "
            "it so (load_ctr_dataset has label_map for words and classes, label_threshold for a rating), or leave the "
            "column out to predict"
        )
    return array.astype(np.float32)
