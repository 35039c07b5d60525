# SPDX-License-Identifier: Apache-2.0
"""Single values as tables hold them -> the string, number or time that they stand for, all by way of `plain_value`."""

import datetime
import decimal
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
EXACT = 2.0**53  # a float beyond is several whole numbers


def is_container(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset | Mapping) or getattr(value, "ndim", 0) > 0


def plain_value(value: Any, field: str = "", row: int | None = None) -> Any:
    """One value as Python has it: str, bool, int, float, Decimal, date, datetime, or `None` where it is missing. Bytes
    are UTF-8, and any other object is what it prints. Raises `TypeError` for a container."""
    if type(value) in (str, int, float, bool):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if is_container(value):
        where = "" if row is None else f" in row {row}"
        raise TypeError(
            f"field {field!r} holds a {type(value).__name__}{where} ({str(value)[:60]}) and not one value per row: "
            f'make it multivalued (field_options={{{field!r}: {{"kind": "multivalued"}}}}), join it, or leave it out'
        )
    if isinstance(value, np.datetime64) and value.dtype == "datetime64[ns]":  # item would make an integer of it
        value = value.astype("datetime64[us]")
    if hasattr(value, "item"):  # of numpy or torch
        value = value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    text = str(value)
    if text in _MISSING_OBJECTS:
        return None
    return value if isinstance(value, datetime.date | decimal.Decimal) else text


def canonical_value(value: Any, field: str = "") -> str | None:
    """The string that a value of a categorical field stands for, without whitespace around it; `None` where it is
    missing. 1 and 1.0 are `"1"` (a column of ints with a hole becomes floats in pandas), and `"1.0"` is another value.
    Half a surrogate pair, which no encoding holds, becomes "?"."""
    value = plain_value(value, field)
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else repr(float(value))
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
        except ValueError as error:
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
    """Seconds since 1970 -> the time in UTC, without a zone."""
    return datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)


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
