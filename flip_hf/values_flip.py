# SPDX-License-Identifier: Apache-2.0
"""Single values as tables hold them -> the string, number or time that they stand for.

`plain_value` is the one door: behind it a value is a string, a truth, a number, a date or time, or `None`.
"""

import datetime
import decimal
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


# what the values of a field are: decided once, when an extractor is fitted, and what every container is brought to
VALUE_TYPES = ("integer", "number", "boolean", "time", "text")

_PLAIN_TYPES = {str, bool, int, float, type(None)}
# how objects that stand for nothing print: pandas.NaT, pandas.NA, decimal.Decimal("nan")
_MISSING_OBJECTS = ("NaT", "<NA>", "NaN", "sNaN")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_GROUPED_NUMBER = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", re.ASCII)
# words that stand for numbers, in a column of numbers; "-" and its like are how people write "no number"
_NUMBER_WORDS = {
    **dict.fromkeys(["", "-", "--", ".", "?", "na", "n/a", "nan", "<na>", "nat", "none", "null"], math.nan),
    **{f"{sign}{word}": math.inf for sign in ("", "+") for word in ("inf", "infinity", "∞")},
    **{f"-{word}": -math.inf for word in ("inf", "infinity", "∞")},
    "true": 1.0,
    "false": 0.0,
}
_INTEGER = re.compile(r"([+-]?\d+)(\.0*)?", re.ASCII)
# a number that begins so is a code, whose zeros matter; and what it is after something has read it as a number
_CODE = re.compile(r"[+-]?0\d", re.ASCII)
_LOST_ZEROS = re.compile(r"(0|-?[1-9]\d*)(\.0+)?", re.ASCII)
# floats beyond are not all whole numbers
_EXACT = 2.0**53


def is_container(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset | Mapping) or getattr(value, "ndim", 0) > 0


def container_error(value: Any, field: str, row: int | None = None) -> TypeError:
    where = "" if row is None else f" in row {row}"
    return TypeError(
        f"field {field!r} holds a {type(value).__name__}{where} ({str(value)[:60]}) and not one value per row: "
        f'make it multivalued (field_options={{{field!r}: {{"kind": "multivalued"}}}}), join it into a string '
        '(", ".join(values)), or leave the field out'
    )


def plain_value(value: Any, field: str = "", row: int | None = None) -> Any:
    """
    One value as Python has it: str, bool, int, float, Decimal, date, datetime, `numpy.datetime64`, or `None` where it
    is missing. Bytes are UTF-8, and any other object is what it prints.

    Raises:
        TypeError: for a list, dict or other container, naming the field and the row.
    """
    if type(value) in _PLAIN_TYPES:
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if is_container(value):
        raise container_error(value, field, row)
    if hasattr(value, "item") and not isinstance(value, np.datetime64):  # of numpy or torch
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    text = str(value)
    if text in _MISSING_OBJECTS:
        return None
    return value if isinstance(value, datetime.date | np.datetime64 | decimal.Decimal) else text


def canonical_value(value: Any, field: str = "") -> str | None:
    """
    The string that a value of a categorical field stands for; `None` where it is missing.

    Strings lose surrounding whitespace. `1` and `1.0` are the same value as `"1"` (a column of ints with a hole
    becomes floats in pandas); `"1.0"` is another. Half a surrogate pair, which no encoding holds, becomes "?".
    """
    value = plain_value(value, field)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(float(value))
    if value is None or isinstance(value, bool):
        return None if value is None else str(value)
    if isinstance(value, int):
        return str(int(value))  # also of an enumeration
    text = str(value).strip()
    return (text if text.isascii() else text.encode("utf-8", "replace").decode()) or None


def read_number(value: Any, field: str = "") -> float | None:
    """
    The number that a value of a numeric field stands for: nan where it is missing, `None` where it is no number.

    `True` and "true" are 1, "1,234.5" is 1234.5 (commas between groups of three digits), "inf" an infinity, and "-",
    "?", "n/a" and their like are missing; everything else, "1,5", "0,123" and "$3" too, is no number.
    """
    value = plain_value(value, field)
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            return float(text)
        if _GROUPED_NUMBER.fullmatch(text):
            return float(text.replace(",", ""))
        return _NUMBER_WORDS.get(text.lower())
    if value is None or isinstance(value, datetime.date | np.datetime64):
        return math.nan if value is None else None
    try:
        return float(value)
    except OverflowError:  # an integer beyond the floats
        return math.inf if value > 0 else -math.inf


def whole_number(value: Any) -> str | None:
    """A string of digits, with zeros behind the point perhaps, as Python writes that number, exact; else `None`."""
    found = _INTEGER.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return None
    digits = found[1].lstrip("+-").lstrip("0")
    return f"-{digits}" if digits and found[1][0] == "-" else digits or "0"


def is_code(value: Any) -> bool:
    """Whether a value is a string of digits that would lose the zeros at its front as a number."""
    return isinstance(value, str) and _CODE.match(value.strip()) is not None and read_number(value) is not None


def number_text(number: float) -> str:
    """A number as a person would write it: no exponent, six significant digits, all of them before the point."""
    if math.isinf(number):
        return "infinity" if number > 0 else "-infinity"
    if abs(number) < 1e15 and (abs(number) >= 1e5 or number == int(number)):
        return str(round(number))
    return np.format_float_positional(number, precision=6, fractional=False, trim="-")


# --- times -----------------------------------------------------------------------------------------------------------

# from when to when a number is believed to be a time
_BELIEVED = tuple(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp() for year in (1990, 2101))


def read_times(values: Sequence[Any], field: str = "", format: str | None = None) -> np.ndarray:
    """
    Values `(n,)` -> seconds since 1970 in UTC, float64 `(n,)`, nan where missing: the one reader of times.

    Reads dates, datetimes (one without a zone is taken as UTC), `numpy.datetime64`, ISO strings, and numbers: seconds
    since 1970, milliseconds from 1e11 on, microseconds from 1e14 on, nanoseconds from 1e17 on. With `format`, as for
    `datetime.strptime`, numbers and strings are read so.

    Raises:
        ValueError: for what is no time, naming value and field: also for a number that would be a time before 1990 or
            after 2100, or that may be a date without dashes (2014102100).
    """
    seconds = np.empty(len(values), np.float64)
    is_number = np.zeros(len(values), bool)
    for place, value in enumerate(values):
        seconds[place], is_number[place] = _time_or_number(value, field, format)
    is_number &= ~np.isnan(seconds)
    numbers, size = seconds[is_number], np.abs(seconds[is_number])
    epochs = numbers / np.select([size >= 1e17, size >= 1e14, size >= 1e11], [1e9, 1e6, 1e3], 1.0)
    with np.errstate(invalid="ignore"):  # of infinities
        year, month, day, hour = numbers // 1e6, numbers // 1e4 % 100, numbers // 1e2 % 100, numbers % 100
    is_date = (1990 <= year) & (year <= 2100) & (1 <= month) & (month <= 12) & (1 <= day) & (day <= 31) & (hour < 24)
    wrong = np.flatnonzero(is_date | ~((epochs >= _BELIEVED[0]) & (epochs < _BELIEVED[1])))
    if len(wrong):
        year_of_epoch = 1970 + epochs[wrong[0]] / 31_556_952
        raise ValueError(
            f"field {field!r}: {number_text(numbers[wrong[0]])} as a time since 1970 would be in the year "
            f"{year_of_epoch:.0f}; only 1990 to 2100 are believed, and nothing that may be a date without dashes: "
            "pass its format ('%Y%m%d%H' for 2014102100), or write ISO dates"
        )
    seconds[is_number] = epochs
    return seconds


def _time_or_number(value: Any, field: str, format: str | None) -> tuple[float, bool]:
    """Seconds since 1970 and False, or a number that is still to be understood and True; nan where missing."""
    value = plain_value(value, field)
    if isinstance(value, np.datetime64):
        return float(value.astype("datetime64[us]").astype(np.int64)) / 1e6, False
    if isinstance(value, datetime.date):
        midnight = datetime.time()
        time = value if isinstance(value, datetime.datetime) else datetime.datetime.combine(value, midnight)
    else:
        number = read_number(value)
        if number is not None and (format is None or math.isnan(number)):
            return number, True
        text = canonical_value(value) or ""
        text = whole_number(text) or text
        if format is not None and text.isdigit():  # a number has lost the zeros it began with
            text = text.zfill(len(datetime.datetime(2000, 12, 31, 23, 59, 59).strftime(format)))
        try:
            time = datetime.datetime.strptime(text, format) if format else datetime.datetime.fromisoformat(text)
        except ValueError:
            known = f"format={format!r}" if format else "ISO dates (2024-05-31T18:30Z) and seconds since 1970"
            raise ValueError(f"field {field!r}: {value!r} is no date or time that {known} would read") from None
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp(), False


def time_of(seconds: float) -> datetime.datetime:
    """Seconds since 1970 -> the time in UTC, without a zone."""
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)


# --- types -----------------------------------------------------------------------------------------------------------


def infer_type(values: Sequence[Any]) -> tuple[str, str]:
    """
    Distinct values of a column -> one of `VALUE_TYPES`, and why, in words.

    A type is what all values are, however the container holds them: `"2008"`, 2008 and 2008.0 are integers, `"true"`
    and `True` booleans, `"2024-05-31"` and a date times. A code with zeros at its front (`"00012"`) is text.
    """
    types = set(map(type, values))
    if types == {int} or (types == {str} and all(map(_is_plain, values))):
        return "integer", "whole numbers"
    if types <= {float, type(None)}:  # one that is not whole decides
        fractions = (v for v in values if v is not None and v == v and not (v.is_integer() and abs(v) <= _EXACT))
        values = list(itertools.islice(fractions, 1)) or values
    found: dict[str, Any] = {}
    for value in map(plain_value, values):
        kind = _type_of(value)
        if kind == "text":
            return "text", f"{value!r:.40} {'begins with a zero' if is_code(value) else 'is no number'}"
        if kind is not None:
            found.setdefault(kind, value)
    if set(found) == {"integer", "number"}:
        del found["integer"]
    if len(found) > 1:
        return "text", " beside ".join(f"{str(value)!r:.40}" for value in found.values())
    for kind, value in found.items():
        reasons = {"integer": "whole numbers", "boolean": "true and false", "time": "dates or times"}
        return kind, reasons.get(kind) or f"such as {canonical_value(value)}"
    return "text", "no value"


def _is_plain(text: str) -> bool:
    """Whether a string is a whole number as Python writes it."""
    return text.isdigit() and text.isascii() and (text[0] != "0" or len(text) == 1)


def _type_of(value: Any) -> str | None:
    """The type of one plain value; `None` for one that is missing in any type that is not text."""
    if isinstance(value, datetime.date | np.datetime64):
        return "time"
    if str(value).strip().lower() in ("true", "false"):
        return "boolean"
    number = read_number(value)
    if number is not None and not is_code(value):
        is_exact = abs(number) <= _EXACT or not isinstance(value, float | str) or whole_number(value) is not None
        return None if math.isnan(number) else "integer" if number.is_integer() and is_exact else "number"
    try:
        datetime.datetime.fromisoformat(value.strip())
    except ValueError:
        return "text"
    return "text" if is_code(value) else "time"


def read_values(
    values: Sequence[Any],
    value_type: str,
    field: str = "",
    codes: Callable[[], Mapping[Any, str]] | None = None,
) -> list[str | None]:
    """
    Distinct values of a categorical field `(n,)` -> the string that each stands for under a type, `None` where it is
    missing: the same whatever container they came in. What is no value of the type is the string that it is anyway.

    - `"integer"` and `"number"`: the shortest spelling (`7`, 7.0, "7.0" and "+7" are "7"); 3.50 is "3.5". A float
      beyond 2**53, which several whole numbers are, is no known integer.
    - `"boolean"`: "true" or "false", of 1 and 0 as well.
    - `"time"`: an ISO date, with the time of day where it is not midnight, in UTC.
    - `"text"`: see `canonical_value`; of a number (12, 12.0, "12.0") the one known value that is written so, and of
      digits ("12") too where that is a code with zeros ("00012"): a csv that lost them and what pandas reads of it are
      one table. `codes`, called if needed, maps whole numbers as Python writes them to those known values.
    """
    types = set(map(type, values))
    if value_type != "text":
        if types == {int} and value_type in ("integer", "number"):
            return list(map(str, values))
        return [_read_typed(value, value_type, field) for value in values]
    if types == {str} and all(map(str.isascii, values)):  # nothing to lose but white space
        texts = [value.strip() or None for value in values]
    else:
        texts = [canonical_value(value, field) for value in values]
    digits = [place for place, text in enumerate(texts) if text is not None and _LOST_ZEROS.fullmatch(text)]
    if codes is not None and digits:
        of_number = codes()
        for place in digits:
            known = of_number.get(whole_number(texts[place]))
            was_number = not isinstance(values[place], str) or "." in values[place]
            if known is not None and (was_number or is_code(known)):
                texts[place] = known
    return texts


def _read_typed(value: Any, value_type: str, field: str) -> str | None:
    """One value of a type that is not text."""
    if type(value) is str and value_type in ("integer", "number") and _is_plain(value):
        return value
    value = plain_value(value, field)
    text = canonical_value(value)
    if value_type == "time":
        try:
            (seconds,) = read_times([value], field).tolist()
        except ValueError:
            return text
        if math.isnan(seconds):
            return None
        time = time_of(seconds)
        return (time.date() if time.time() == datetime.time() else time).isoformat()
    number = read_number(value)
    if number is None or math.isnan(number):
        return text if number is None else None
    if value_type == "boolean":
        return {0.0: "false", 1.0: "true"}.get(number, text)
    if isinstance(value, decimal.Decimal) and value.is_finite() and value == value.to_integral_value():
        value = int(value)
    whole = str(int(value)) if isinstance(value, int) else whole_number(value)
    if value_type == "integer" and _EXACT < abs(number) < math.inf and (whole is None or "." in str(value)):
        return repr(number) if whole is None else f"{whole}.0"  # several whole numbers are this float
    return whole or canonical_value(number)
