# SPDX-License-Identifier: Apache-2.0
"""Single values as tables hold them -> the string, number or time that they stand for, all by way of `plain_value`;
and B rows in any of the forms users have them -> columns, and a column -> its distinct values."""

import datetime
import decimal
import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


# what the values of a field are: decided once, when an extractor is fitted, and what every container is brought to
VALUE_TYPES = ("integer", "number", "boolean", "time", "text")
# whole numbers, as Python writes them -> the known values that are written so (see `read_values`)
Codes = Callable[[], Mapping[Any, str]] | None

_MISSING_OBJECTS = ("NaT", "<NA>", "NaN", "sNaN")  # how pandas.NaT, pandas.NA and decimal.Decimal("nan") print
_NUMBER = re.compile(r"(?i)[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[1-9]\d{0,2}(,\d{3})+(\.\d*)?)", re.ASCII)
# words that stand for numbers, in a column of numbers; "-" and its like are how people write "no number"
_NUMBER_WORDS = {
    **dict.fromkeys(["", "-", "--", ".", "?", "na", "n/a", "nan", "<na>", "nat", "none", "null"], math.nan),
    **dict.fromkeys(["inf", "infinity", "∞", "+inf", "+infinity", "+∞"], math.inf),
    **dict.fromkeys(["-inf", "-infinity", "-∞"], -math.inf),
    "true": 1.0,
    "false": 0.0,
}
_WHOLE_NUMBER = re.compile(r"(?:\+|(-))?0*(\d+)(?:\.0*)?", re.ASCII)
PLAIN_INTEGER = re.compile(r"0|[1-9]\d*", re.ASCII)
# what would lose zeros at its front as a number, and what may have lost them: something has read it as a number
_CODE = re.compile(r"(?i)[+-]?0\d+\.?\d*(e[+-]?\d+)?", re.ASCII)
_LOST_ZEROS = re.compile(r"(0|-?[1-9]\d*)(\.0+)?", re.ASCII)
_DATE_AND_HOUR = re.compile(r"(199\d|20\d\d|2100)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])([01]\d|2[0-3])\.")
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800.0, 253_402_300_799.0
EXACT = 2.0**53  # a float beyond is several whole numbers
_SHORT_FLOATS = {"float32": np.float32, "float": np.float32, "float16": np.float16, "halffloat": np.float16}
_NANOSECONDS = {np.dtype(f"{kind}[ns]"): f"{kind}[us]" for kind in ("datetime64", "timedelta64")}
_LABELS: dict[str | None, float] = {"0": 0.0, "1": 1.0, "False": 0.0, "True": 1.0}


def is_container(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset | Mapping) or getattr(value, "ndim", 0) > 0:
        return True
    return hasattr(value, "as_py") and is_container(value.as_py())  # one of Arrow


def short_float(kind: Any) -> Any:
    """numpy's type for a type of values, of any library, that are floats of 32 or 16 bits; else `None`."""
    kind = getattr(kind, "value_type", getattr(getattr(kind, "categories", None), "dtype", kind))  # of Arrow, pandas
    return _SHORT_FLOATS.get(str(kind).lower().removeprefix("torch.").removesuffix("[pyarrow]"))


def plain_value(value: Any, field: str = "", row: int | None = None) -> Any:
    """One value as Python has it: str, bool, int, float, Decimal, date, datetime, or `None` where it is missing. Bytes
    are UTF-8, and any other object is what it prints. Raises `TypeError` for a container."""
    if type(value) in (str, int, float, bool):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "as_py"):  # one of Arrow
        return plain_value(value.as_py(), field, row)
    if is_container(value):
        where = "" if row is None else f" in row {row}"
        raise TypeError(
            f"field {field!r} holds a {type(value).__name__}{where} ({str(value)[:60]}) and not one value per row: "
            f'make it multivalued (field_options={{{field!r}: {{"kind": "multivalued"}}}}), join it, or leave it out'
        )
    if getattr(value, "dtype", None) in _NANOSECONDS:  # item would make an integer of it
        value = value.astype(_NANOSECONDS[value.dtype])
    if hasattr(value, "item"):  # of numpy or torch
        short, value = short_float(getattr(value, "dtype", "")), value.item()
        value = value if short is None else float(str(short(value)))
    if value is None or isinstance(value, str | int | float):
        return value
    text = str(value)
    if text in _MISSING_OBJECTS:
        return None
    if isinstance(value, datetime.timedelta):  # as Python writes it, whatever pandas does
        return str(datetime.timedelta(value.days, value.seconds, value.microseconds))
    return value if isinstance(value, datetime.date | decimal.Decimal) else text


def canonical_value(value: Any, field: str = "") -> str | None:
    """The string that a value of a categorical field stands for, without whitespace around it; `None` where it is
    missing. 1, 1.0 and Decimal("1.00") are `"1"` (a column of ints with a hole becomes floats in pandas), and `"1.0"`
    is another value. Half a surrogate pair, which no encoding holds, becomes "?"."""
    value = plain_value(value, field)
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else repr(float(value))
    if isinstance(value, decimal.Decimal):  # Arrow writes all of a column to one place
        if not value or value.is_infinite():  # as the float that it is equal to
            return canonical_value(float(value))
        whole, _, fraction = f"{value:f}".partition(".")
        return f"{whole}.{fraction}".rstrip("0").removesuffix(".") if fraction else whole
    text = "" if value is None else str(value).strip()
    return (text if text.isascii() else text.encode("utf-8", "replace").decode()) or None


def read_number(value: Any, field: str = "") -> float | None:
    """The number that a value of a numeric field stands for: nan where it is missing, `None` where it is no number.
    `True` and "true" are 1, "1,234.5" is 1234.5 (commas between groups of three digits), "inf" an infinity, and "-",
    "?", "n/a" and their like are missing; everything else, "1,5", "0,123" and "$3" too, is no number."""
    value = plain_value(value, field)
    if isinstance(value, int | float) and abs(value) <= EXACT:
        return float(value)
    text = str(value).strip()
    if _NUMBER.fullmatch(text):
        return float(text.replace(",", ""))
    return _NUMBER_WORDS.get(text.lower())


def whole_number(value: Any) -> str | None:
    """An int, a Decimal, or a string such as "007" or "7.0", as Python writes that whole number; else `None`."""
    if isinstance(value, float):
        return None
    found = _WHOLE_NUMBER.fullmatch(f"{value:f}" if isinstance(value, decimal.Decimal) else str(value).strip())
    if found is None:
        return None
    return f"-{found[2]}" if found[1] and found[2] != "0" else found[2]


def is_code(value: Any) -> bool:
    """Whether a value is a string of digits that would lose the zeros at its front as a number."""
    return isinstance(value, str) and _CODE.fullmatch(value.strip()) is not None


def number_text(number: float) -> str:
    """A number as a person would write it: no exponent, six significant digits, all of them before the point."""
    if math.isinf(number):
        return "infinity" if number > 0 else "-infinity"
    if abs(number) < 1e15 and (abs(number) >= 1e5 or number == int(number)):
        return str(round(number))
    return np.format_float_positional(number, precision=6, fractional=False, trim="-")


def read_times(values: Sequence[Any], field: str = "", format: str | None = None) -> np.ndarray:
    """Values `(n,)` -> seconds since 1970 in UTC, float64 `(n,)`, nan where missing. Reads dates, datetimes (in UTC
    without a zone), ISO strings, and numbers: seconds since 1970, milliseconds from 1e11 on, microseconds from 1e14
    on, nanoseconds from 1e17 on. With `format`, as for `datetime.strptime`, numbers and strings are read so. Raises
    `ValueError` for what is no time, also for a number that would be a time before 1990 or after 2100, or that may be
    a date and hour without dashes (2014102100)."""
    return np.array([_read_time(plain_value(value, field), field, format) for value in values], np.float64)


def _read_time(value: Any, field: str, format: str | None = None) -> float:
    if isinstance(value, datetime.datetime):
        time = value
    elif isinstance(value, datetime.date):
        time = datetime.datetime.combine(value, datetime.time())
    else:
        number = read_number(value)
        try:
            if number is not None and (format is None or math.isnan(number)):
                return _seconds(number)
            text = whole_number(value) or canonical_value(value) or ""
            if format is None:
                time = datetime.datetime.fromisoformat(text)
            else:  # a number has lost the zeros it began with
                width = len(datetime.datetime(2000, 12, 31, 23, 59, 59).strftime(format)) if text.isdigit() else 0
                time = datetime.datetime.strptime(text.zfill(width), format)
            time = time.astimezone(datetime.UTC) if time.tzinfo else time
        except (ValueError, OverflowError) as error:  # in UTC it may be beyond the year 9999
            raise ValueError(
                f"field {field!r}: {value!r} is no date or time ({error}); write ISO dates (2024-05-31T18:30Z) or "
                "seconds since 1970, or pass its format ('%Y%m%d%H' for 2014102100)"
            ) from None
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp()


def _seconds(number: float) -> float:
    """A number of seconds, milliseconds, microseconds or nanoseconds since 1970 -> seconds (see `read_times`)."""
    size = abs(number)
    seconds = number / (1.0 if size < 1e11 else 1e3 if size < 1e14 else 1e6 if size < 1e17 else 1e9)
    is_date = number >= 1990_01_01_00 and _DATE_AND_HOUR.match(str(number))
    if math.isnan(number) or (631_152_000 <= seconds < 4_133_980_800 and not is_date):
        return seconds
    year = f"{1970 + seconds / 31_556_952:.0f}"
    raise ValueError(f"as a number of {year}; only 1990 to 2100 are believed, and nothing like a date without dashes")


def time_of(seconds: float) -> datetime.datetime:
    """Seconds since 1970 -> the time in UTC, without a zone; what is beyond the years 1 to 9999 is their end."""
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=min(max(seconds, _FIRST_SECOND), _LAST_SECOND))


def read_values(values: Sequence[Any], value_type: str, field: str = "", codes: Codes = None) -> list[str | None]:
    """Distinct values of a categorical field `(n,)` -> the string that each stands for under a type, `None` if it is
    missing: the same whatever container they came in. What is no value of the type is the string that it is anyway.
    Numbers have their shortest spelling (7.0 and "+7" are "7", 3.50 is "3.5"; a float beyond 2**53, which is several
    whole numbers, is no known integer), truths are "true" and "false", of 1 and 0 as well, and times are ISO dates in
    UTC, with the time of day where it is not midnight. Of text see `canonical_value`; a number (12, 12.0, "12.0") is
    the one known value that is written so, and digits ("12") too if that is a code with zeros ("00012")."""
    if value_type != "text":
        if value_type in ("integer", "number") and set(map(type, values)) == {int}:
            return list(map(str, values))
        return [_read_typed(value, value_type, field) for value in values]
    texts = [
        (value.strip() or None) if type(value) is str and value.isascii() else canonical_value(value, field)
        for value in values
    ]
    digits = [place for place, text in enumerate(texts) if text is not None and _LOST_ZEROS.fullmatch(text)]
    known_by_number = codes() if codes is not None and digits else {}
    for place in digits:
        known = known_by_number.get(whole_number(texts[place]))
        was_number = not isinstance(values[place], str) or "." in values[place]
        if known is not None and (was_number or is_code(known)):
            texts[place] = known
    return texts


def _read_typed(value: Any, value_type: str, field: str) -> str | None:
    """One value of a type that is not text."""
    if type(value) is str and value_type in ("integer", "number") and PLAIN_INTEGER.fullmatch(value):
        return value
    value = plain_value(value, field)
    if value_type == "time":
        try:
            second = _read_time(value, field)
        except ValueError:
            return canonical_value(value)
        return None if math.isnan(second) else time_of(second).isoformat().removesuffix("T00:00:00")
    number = read_number(value)
    if number is not None and math.isnan(number):
        return None
    if value_type == "boolean" or number is None:
        return {0.0: "false", 1.0: "true"}.get(number, canonical_value(value))
    whole = whole_number(value)
    is_float = whole is None or (isinstance(value, str) and "." in value)
    if value_type == "integer" and is_float and EXACT < abs(number) < math.inf:
        return repr(number) if whole is None else f"{whole}.0"
    return whole or canonical_value(number)


def is_column(value: Any) -> bool:
    """Whether a value holds one value for each row, and is not the value of one row itself."""
    return hasattr(value, "__len__") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0


def as_columns(rows: Any, label: str | None = None) -> Mapping[str, Any]:
    """Rows as a dict of lists, a list of dicts (a key that some lack is missing there), one dict (a batch of one), a
    batch or row of `datasets.map`, a `datasets.Dataset` (of a `ClassLabel` the names, but for the column `label`), an
    Arrow table, a frame or a row of pandas, records of numpy, or a frame of polars -> a mapping of columns."""
    if isinstance(rows, Mapping):
        # the first column of a batch ends this: a lazy batch need not decode the others
        if not all(isinstance(name, str) for name in rows):
            return as_columns(_by_name(list(rows.items())), label)
        return rows if any(is_column(rows[name]) for name in rows) else {name: [rows[name]] for name in rows}
    if hasattr(rows, "with_format") and hasattr(rows, "__getitem__"):  # a datasets.Dataset, whatever its format
        if rows.format["type"] == "custom":
            raise ValueError("a transform (set_transform) is of single rows, and the data set is read whole: .map it")
        return with_class_names(rows.with_format("arrow")[:], rows.features, label)
    if hasattr(rows, "column_names") and hasattr(rows, "columns"):  # an Arrow table
        return _by_name(list(zip(rows.column_names, rows.columns, strict=True)))
    if hasattr(rows, "iloc"):  # a frame or a row of pandas
        is_frame = hasattr(rows, "columns")
        return _by_name([(name, value if is_frame else [value]) for name, value in rows.items()])
    if getattr(getattr(rows, "dtype", None), "names", None):  # records of numpy
        return {name: rows[name] if rows.ndim else [rows[name]] for name in rows.dtype.names}
    if hasattr(rows, "to_arrow"):  # of polars, whose categories have names that Arrow cannot look up
        columns = as_columns(rows.to_arrow()).items()
        return {name: as_list(column) if hasattr(column.type, "index_type") else column for name, column in columns}
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        if not len(rows):
            raise ValueError("the table has no rows: the list is empty")
        if all(isinstance(row, Mapping) for row in rows):
            names = dict.fromkeys(name for row in rows for name in row)
            return as_columns({name: [row.get(name) for row in rows] for name in names})
    known = "a dict of lists, a list of dicts, one dict, a datasets.Dataset, an Arrow table, a pandas or polars frame"
    raise TypeError(f"rows are a {type(rows).__name__}: pass {known}")


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
    if isinstance(column, np.ndarray) and column.dtype in _NANOSECONDS:  # tolist would make integers of it
        column = column.astype(_NANOSECONDS[column.dtype])
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
        dtype = column.type
        encoded = (column.cast("float32") if dtype == "halffloat" else column).dictionary_encode()
        if hasattr(encoded, "combine_chunks"):
            encoded = encoded.combine_chunks()
        values = plain_values(encoded.dictionary.to_pylist(), field)
        indices = encoded.indices.cast("int64").fill_null(len(values)).to_numpy(zero_copy_only=False)
        coded = CodedColumn([*values, None] if encoded.indices.null_count else values, indices)
    else:
        dtype = getattr(column, "dtype", "")
        coded = code_values(plain_values(as_list(column), field, first_row))
    short = short_float(dtype)
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
        remedy = "make it so (label_map or label_threshold of load_ctr_dataset), or leave the column out to predict"
        raise ValueError(f"label {label!r} in row {row} of column {name!r} is neither 0 nor 1: {remedy}")
    return labels.astype(np.float32)
