# SPDX-License-Identifier: Apache-2.0
"""Single values as tables hold them -> the string, number or time that they stand for."""

import datetime
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np


# how objects that stand for nothing print: an empty value, pandas.NaT, pandas.NA, decimal.Decimal("nan")
_MISSING_OBJECTS = ("", "NaT", "<NA>", "NaN", "sNaN")
# how people write "no number" into a column of numbers
_MISSING_NUMBERS = {"", "-", "--", ".", "?", "na", "n/a", "nan", "<na>", "nat", "none", "null"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_GROUPED_NUMBER = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", re.ASCII)
_INFINITY = re.compile(r"([+-]?)(inf|infinity|∞)", re.IGNORECASE)


def canonical_value(value: Any, field: str = "") -> str | None:
    """
    The string that a value of a categorical field stands for; `None` where it is missing.

    Strings lose surrounding whitespace. `1` and `1.0` are the same value as `"1"` (a column of ints with a hole
    becomes floats in pandas); `"1.0"` is another, and so are `True` and `False`. `None`, nan, `pandas.NA`, `NaT`, `""`
    and whitespace are missing. Half a surrogate pair, which no encoding holds, becomes "?".

    Raises:
        TypeError: for a list, dict or other container, naming the field.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-8", "replace").decode()
        return text or None
    if value is None:
        return None
    if is_container(value):
        raise TypeError(container_message(value, field))
    if hasattr(value, "ndim") and not isinstance(value, np.generic):  # an array or tensor of no dimension
        value = value.item()
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        return str(int(value)) if math.isfinite(value) and value == int(value) else repr(float(value))
    if isinstance(value, bytes):
        return canonical_value(value.decode("utf-8", "replace"), field)
    text = str(value)
    return None if text in _MISSING_OBJECTS else canonical_value(text)


def read_number(value: Any, field: str = "") -> float | None:
    """
    The number that a value of a numeric field stands for: nan where it is missing, `None` where it is no number.

    Numbers are themselves, infinities included; `True` is 1. Of strings, "1,234.5" is 1234.5 (commas between groups of
    three digits), "inf" an infinity; "-", "--", ".", "", "?", "na", "n/a", "nan", "none" and "null" are missing, and
    everything else, "1,5", "0,123" and "$3" too, is no number.

    Raises:
        TypeError: for a list, dict or other container, naming the field.
    """
    if value is None:
        return math.nan
    if not isinstance(value, str):
        if is_container(value):
            raise TypeError(container_message(value, field))
        if isinstance(value, bytes):
            return read_number(value.decode("utf-8", "replace"), field)
        try:
            return float(value)
        except OverflowError:  # an integer beyond the floats
            return math.inf if value > 0 else -math.inf
        except (TypeError, ValueError):  # pandas.NA, pandas.NaT, a date
            return math.nan if str(value) in _MISSING_OBJECTS else None
    text = value.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if text.lower() in _MISSING_NUMBERS:
        return math.nan
    if _GROUPED_NUMBER.fullmatch(text):
        return float(text.replace(",", ""))
    infinity = _INFINITY.fullmatch(text)
    if infinity:
        return -math.inf if infinity[1] == "-" else math.inf
    return None


def number_text(number: float) -> str:
    """A number as a person would write it: no exponent, six significant digits, all of them before the point."""
    if math.isinf(number):
        return "infinity" if number > 0 else "-infinity"
    if abs(number) < 1e15 and (abs(number) >= 1e5 or number == int(number)):
        return str(round(number))
    return np.format_float_positional(number, precision=6, fractional=False, trim="-")


def read_time(value: Any, field: str = "") -> float:
    """
    Seconds since 1970 in UTC, nan where missing.

    Reads dates, datetimes (one without a zone is taken as UTC), `numpy.datetime64`, ISO strings, and numbers: seconds,
    milliseconds from 1e11 on, microseconds from 1e14 on, nanoseconds from 1e17 to 1e20.

    Raises:
        ValueError: for what is no time, naming value and field; also for 20240531, which is a date without dashes
            more likely than a second of 1970.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    if isinstance(value, np.datetime64):
        return math.nan if np.isnat(value) else float(value.astype("datetime64[us]").astype(np.int64)) / 1e6
    if isinstance(value, str):
        number = read_number(value, field)
        if number is None:
            try:
                value = datetime.datetime.fromisoformat(value.strip())
            except ValueError:
                raise ValueError(
                    f"field {field!r}: {value!r} is no date or time; ISO dates (2024-05-31, 2024-05-31T18:30) and "
                    "seconds since 1970 are read"
                ) from None
        else:
            value = number
    if isinstance(value, datetime.datetime):
        if str(value) in _MISSING_OBJECTS:  # pandas.NaT is a datetime
            return math.nan
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC).timestamp()
    number = read_number(value, field)
    if number is None or abs(number) >= 1e20:
        raise ValueError(f"field {field!r}: {str(value)[:60]!r} is no date or time")
    if 19000101 <= number <= 21001231 and number % 100 <= 31 and number % 10_000 <= 1231:
        date = f"{number:.0f}"
        raise ValueError(
            f"field {field!r}: {date} looks like a date without dashes and would be a second of 1970: write "
            f"{date[:4]}-{date[4:6]}-{date[6:]}"
        )
    for border, unit in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)):
        if abs(number) >= border:
            return number / unit
    return number


def is_container(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset | Mapping) or getattr(value, "ndim", 0) > 0


def container_message(value: Any, field: str, row: int | None = None) -> str:
    where = "" if row is None else f" in row {row}"
    return (
        f"field {field!r} holds a {type(value).__name__}{where} ({str(value)[:60]}) and not one value per row: "
        f'make it multivalued (field_options={{{field!r}: {{"kind": "multivalued"}}}}), join it into a string '
        '(", ".join(values)), or leave the field out'
    )
