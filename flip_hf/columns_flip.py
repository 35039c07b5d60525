# SPDX-License-Identifier: Apache-2.0
"""B rows in any of the forms users have them -> columns, and a column -> its distinct values."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .values_flip import canonical_value, plain_value


_SHORT_FLOATS = {"float32": np.float32, "float": np.float32, "float16": np.float16, "halffloat": np.float16}
_LABELS: dict[str | None, float] = {"0": 0.0, "1": 1.0, "False": 0.0, "True": 1.0}


def is_column(value: Any) -> bool:
    """Whether a value holds one value for each row, and is not the value of one row itself."""
    return hasattr(value, "__len__") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0


def as_columns(rows: Any, label: str | None = None) -> Mapping[str, Any]:
    """Rows as a dict of lists, a list of dicts (a key that some lack is missing there), one dict (a batch of one), a
    batch or row of `datasets.map`, a `datasets.Dataset` (of a `ClassLabel` the names, but for the column `label`), an
    Arrow table, a frame or a row of pandas, records of numpy, or a frame of polars -> a mapping of columns."""
    if isinstance(rows, Mapping):
        # the first column of a batch ends this: a lazy batch need not decode the others
        return rows if any(is_column(rows[name]) for name in rows) else {name: [rows[name]] for name in rows}
    if hasattr(rows, "with_format") and hasattr(rows, "__getitem__"):  # a datasets.Dataset, whatever its format
        return with_class_names(rows.with_format("arrow")[:], rows.features, label)
    if hasattr(rows, "column_names") and hasattr(rows, "columns"):  # an Arrow table
        return _by_name(list(zip(rows.column_names, rows.columns, strict=True)))
    if hasattr(rows, "iloc"):  # a frame or a row of pandas
        return _by_name(list(rows.items())) if hasattr(rows, "columns") else as_columns(rows.to_dict())
    if getattr(getattr(rows, "dtype", None), "names", None):  # records of numpy
        return as_columns({name: rows[name] for name in rows.dtype.names})
    if hasattr(rows, "to_arrow"):  # of polars, whose categories have names that Arrow cannot look up
        columns = as_columns(rows.to_arrow()).items()
        return {name: as_list(column) if hasattr(column.type, "index_type") else column for name, column in columns}
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        if not len(rows):
            raise ValueError("the table has no rows: the list is empty")
        if all(isinstance(row, Mapping) for row in rows):
            names = dict.fromkeys(name for row in rows for name in row)
            return {name: [row.get(name) for row in rows] for name in names}
    raise TypeError(
        f"rows are a {type(rows).__name__}: pass a dict of lists, a list of dicts, one dict, a datasets.Dataset, an "
        "Arrow table, or a frame of pandas or polars"
    )


def _by_name(pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    names = [str(name) for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"two columns of the table are named {max(names, key=names.count)!r}: rename one")
    return dict(zip(names, (column for _, column in pairs), strict=True))


def class_names(features: Any) -> dict[str, list[str]]:
    """Of `datasets.Features`: the names of the classes of each column that has some, alone or in lists."""
    kinds = {name: getattr(feature, "feature", feature) for name, feature in (features or {}).items()}
    return {name: kind.names for name, kind in kinds.items() if getattr(kind, "names", None) is not None}


def with_class_names(table: Any, features: Any, label: str | None = None) -> Mapping[str, Any]:
    """Columns of a table of a `datasets.Dataset`, with the names of classes in place of their numbers, also in lists,
    but for the column `label`."""
    columns = dict(as_columns(table))
    for name, names in class_names(features).items():
        if name in columns and name != label:
            spell = dict(enumerate(names)).get
            values = as_list(columns[name])
            columns[name] = [list(map(spell, v)) if isinstance(v, list) else spell(v) for v in values]
    return columns


def select_columns(columns: Mapping[str, Any], names: Sequence[str], of_lists: Sequence[str] = ()) -> list[Any]:
    """The columns `names`, after checking that they are there, are columns, and are equally long. What a single row
    holds of the columns `of_lists` may be a list."""
    absent = [name for name in names if name not in columns]
    if absent:
        found = ", ".join(map(str, columns))
        raise ValueError(f"no column for field {', '.join(map(repr, absent))}; the rows have {found}")
    selected = {name: columns[name] for name in names}
    single = [name for name, column in selected.items() if not is_column(column)]
    if single and {*single, *of_lists} >= {*names}:  # one row; no field is a column, or it holds lists
        return [[value] for value in selected.values()]
    if single:
        value = str(columns[single[0]])[:40]
        raise ValueError(f"field {single[0]!r} is the one value {value!r} and others are columns: pass lists for all")
    sizes = {name: len(column) for name, column in selected.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"columns differ in length: {sizes}")
    return list(selected.values())


class CodedColumn(NamedTuple):
    """A column as its distinct values, the keys of one dict, and for each row the position of its value `(B,)`, int64:
    what is done per value is done once."""

    values: Sequence[Any]
    indices: np.ndarray
    raw: Sequence[Any] | None = None  # the distinct values before `mapped`, where it changed them

    @property
    def num_rows(self) -> int:
        return len(self.indices)

    def counts(self) -> np.ndarray:
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
    kind = getattr(column, "type", None)
    return hasattr(column, "dictionary_encode") and not kind.num_fields and not hasattr(kind, "extension_name")


def code_scalars(column: Any, field: str, first_row: int = 0) -> CodedColumn:
    """A column of single values as they are. Raises `TypeError` at the first container, naming its field and row."""
    if is_arrow(column):
        dtype, encoded = column.type, column.dictionary_encode()
        if hasattr(encoded, "combine_chunks"):
            encoded = encoded.combine_chunks()
        values = plain_values(encoded.dictionary.to_pylist(), field)
        indices = encoded.indices.cast("int64").fill_null(len(values)).to_numpy(zero_copy_only=False)
        coded = CodedColumn([*values, None] if encoded.indices.null_count else values, indices)
    else:
        dtype = getattr(column, "dtype", "")
        coded = code_values(plain_values(as_list(column), field, first_row))
    short = _SHORT_FLOATS.get(str(dtype).lower().removeprefix("torch."))
    if short is None:
        return coded
    # as it prints: 3.3 of 32 bits is 3.3, and not the 3.2999999523 that it is stored as
    printed = np.array(coded.values, short).astype(str).astype(np.float64).tolist()
    return coded.mapped([None if value != value else value for value in printed])


def plain_values(column: Sequence[Any], field: str, first_row: int | None = None) -> Sequence[Any]:
    """Values as Python has them, fit to be keys. Beside numbers a truth becomes a word: 1 and `True` are one key."""
    types = set(map(type, column))
    if types <= {str, int, float, type(None)} or types <= {bool, type(None)}:
        return column
    rows = itertools.repeat(None) if first_row is None else itertools.count(first_row)
    plain = list(map(plain_value, column, itertools.repeat(field), rows))
    if {bool} < set(map(type, plain)) - {str, type(None)}:
        return [str(value) if type(value) is bool else value for value in plain]
    return plain


def arrow_lists(column: Any, field: str) -> tuple[CodedColumn, list[int]] | None:
    """An Arrow column of lists -> the elements of all rows, end to end, and how many each has; else `None`."""
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    if not hasattr(column, "value_lengths") or hasattr(column, "keys") or not is_arrow(column.flatten()):
        return None  # a map has keys
    return code_scalars(column.flatten(), field), column.value_lengths().fill_null(0).to_pylist()


def read_labels(column: Any, name: str) -> np.ndarray:
    """Labels `(B,)`, float32 0 or 1. Raises `ValueError` at the first that is neither (as number, text or truth)."""
    column = column if is_column(column) else [column]
    labels = np.asarray(column if is_arrow(column) else as_list(column))
    if labels.ndim > 1:
        raise TypeError(f"column {name!r} holds lists ({labels[0]!s:.60}) and not one label, 0 or 1, per row")
    if labels.dtype.kind not in "biuf":
        labels = np.array([_LABELS.get(canonical_value(value, name), np.nan) for value in as_list(column)])
    wrong = np.flatnonzero((labels != 0) & (labels != 1))
    if len(wrong):
        label, row = as_list(column)[int(wrong[0])], int(wrong[0])
        raise ValueError(
            f"label {label!r} in row {row} of column {name!r} is neither 0 nor 1: make it so (label_map or "
            "label_threshold of load_ctr_dataset), or leave the column out to predict"
        )
    return labels.astype(np.float32)
