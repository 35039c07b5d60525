# SPDX-License-Identifier: Apache-2.0
"""Single values as tables hold them -> the string, number or time that they stand for."""

import datetime
import decimal
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


# how objects that stand for nothing print: an empty value, pandas.NaT, pandas.NA, decimal.Decimal("nan")
_MISSING_OBJECTS = ("", "NaT", "<NA>", "NaN", "sNaN")
# how people write "no number" into a column of numbers
_MISSING_NUMBERS = {"", "-", "--", ".", "?", "na", "n/a", "nan", "<na>", "nat", "none", "null"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_INTEGER = re.compile(r"([+-]?\d+)(\.0*)?", re.ASCII)
# what a code with zeros at its front is after something has read it as a number
_LOST_ZEROS = re.compile(r"(0|-?[1-9]\d*)(\.0+)?", re.ASCII)
# floats beyond are not all whole numbers
_EXACT = 2.0**53
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

    Numbers are themselves, infinities included; `True` and "true" are 1. Of strings, "1,234.5" is 1234.5 (commas
    between groups of three digits), "inf" an infinity; "-", "--", ".", "", "?", "na", "n/a", "nan", "none" and "null"
    are missing, and everything else, "1,5", "0,123" and "$3" too, is no number.

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
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true")
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


# from when to when a number is believed to be a time
_EPOCHS = tuple(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC).timestamp() for year in (1990, 2101))
# dates and times without dashes, by their number of digits
_COMPACT = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


def read_times(values: Sequence[Any], field: str = "", format: str | None = None) -> np.ndarray:
    """
    Values `(n,)` -> seconds since 1970 in UTC, float64 `(n,)`, nan where missing: the one reader of times.

    Reads dates, datetimes (one without a zone is taken as UTC), `numpy.datetime64`, ISO strings, and numbers: seconds
    since 1970, milliseconds from 1e11 on, microseconds from 1e14 on, nanoseconds from 1e17 on.

    Args:
        format (`str`, *optional*): as for `datetime.strptime`, `"%y%m%d%H"` say: numbers and strings are read so.

    Raises:
        ValueError: for what is no time, naming value and field: also for a number that would be a time before 1990 or
            after 2100, or that spells a date without dashes (2014102100), which need a `format`.
    """
    numbers = np.empty(len(values), np.float64)
    is_number = np.zeros(len(values), bool)
    for place, value in enumerate(values):
        numbers[place], is_number[place] = _time_or_number(value, field, format)
    is_number &= ~np.isnan(numbers)
    epochs = numbers[is_number]
    size = np.abs(epochs)
    seconds = epochs / np.select([size >= 1e17, size >= 1e14, size >= 1e11], [1e9, 1e6, 1e3], 1.0)
    wrong = np.flatnonzero(~((seconds >= _EPOCHS[0]) & (seconds < _EPOCHS[1])) | _spells_date(epochs))
    if len(wrong):
        raise ValueError(_no_epoch(float(epochs[wrong[0]]), float(seconds[wrong[0]]), field))
    numbers[is_number] = seconds
    return numbers


def _time_or_number(value: Any, field: str, format: str | None) -> tuple[float, bool]:
    """Seconds since 1970 and False, or a number that is still to be understood and True; nan where missing."""
    if type(value) is float and format is None:
        return value, True
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, np.datetime64):
        return math.nan if np.isnat(value) else float(value.astype("datetime64[us]").astype(np.int64)) / 1e6, False
    if isinstance(value, datetime.date):  # a datetime is one, and pandas.NaT a datetime
        if str(value) in _MISSING_OBJECTS:
            return math.nan, False
        if not isinstance(value, datetime.datetime):
            value = datetime.datetime(value.year, value.month, value.day)
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp(), False
    number = read_number(value, field)
    if number is not None and math.isnan(number):
        return math.nan, False
    if number is not None and format is None:
        return number, True
    text = whole_number(canonical_value(value, field)) or canonical_value(value, field) or ""
    if format is not None and text.isdigit():  # a number has lost the zeros it began with
        text = text.zfill(len(datetime.datetime(2000, 12, 31, 23, 59, 59).strftime(format)))
    try:
        time = datetime.datetime.strptime(text, format) if format else datetime.datetime.fromisoformat(text)
    except ValueError:
        known = f"format={format!r}" if format else "ISO dates (2024-05-31, 2024-05-31T18:30Z) and seconds since 1970"
        raise ValueError(f"field {field!r}: {value!r} is no date or time that {known} would read") from None
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).timestamp(), False


def _spells_date(numbers: np.ndarray) -> np.ndarray:
    """Which numbers, taken as digits, are a date without dashes, with or without the time of day: bool `(n,)`."""
    numbers = np.where(np.isfinite(numbers), numbers, 0.0)
    spells = np.zeros(len(numbers), bool)
    for digits in _COMPACT:
        rest = numbers
        in_range = (numbers == np.floor(numbers)) & (numbers >= 10 ** (digits - 1)) & (numbers < 10**digits)
        for limit in [60, 60, 24][(14 - digits) // 2 :]:  # seconds, minutes, hours
            in_range &= rest % 100 < limit
            rest = rest // 100
        first_year = 1900 if digits == 8 else 1990
        day, month, year = rest % 100, rest // 100 % 100, rest // 10_000
        spells |= (
            in_range & (1 <= day) & (day <= 31) & (1 <= month) & (month <= 12) & (first_year <= year) & (year <= 2100)
        )
    return spells


def _no_epoch(number: float, seconds: float, field: str) -> str:
    shown = number_text(number)
    if _spells_date(np.array([number]))[0]:
        return (
            f"field {field!r}: {shown} is a date without dashes, or a number of seconds since 1970: say which with "
            f"format={_COMPACT[len(shown)]!r}, or write ISO dates"
        )
    year = 1970 + seconds / 31_556_952
    return (
        f"field {field!r}: {shown} as a time since 1970 would be in the year {year:.0f}, and only 1990 to 2100 are "
        "believed: a date without dashes needs its format ('%y%m%d%H' for 14102100), another time an ISO date"
    )


# what the values of a field are: decided once, when an extractor is fitted, and what every container is brought to
VALUE_TYPES = ("integer", "number", "boolean", "time", "text")
_TRUTHS = {"true": "true", "false": "false", "1": "true", "0": "false"}
# a number that begins so is a code, whose zeros matter
_CODE = re.compile(r"[+-]?0\d", re.ASCII)


def infer_type(values: Sequence[Any]) -> tuple[str, str]:
    """
    Distinct values of a column -> one of `VALUE_TYPES`, and why, in words.

    A type is what all values are, however the container holds them: `"2008"`, 2008 and 2008.0 are integers, `"true"`
    and `True` booleans, `"2024-05-31"` and a date times. A code with zeros at its front (`"00012"`) is text.
    """
    found: dict[str, Any] = {}
    types = set(map(type, values))
    if types == {int} or (types == {str} and all(map(_is_plain, values))):
        return "integer", "whole numbers"
    if types <= {float, type(None)}:  # one that is not whole decides
        fractions = (v for v in values if v is not None and v == v and not (v.is_integer() and abs(v) <= _EXACT))
        values = list(itertools.islice(fractions, 1)) or values
    for value in values:
        kind = _type_of(value)
        if kind is not None:
            found.setdefault(kind, value)
            if kind == "text":
                shown = repr(value if isinstance(value, str) else str(value))[:40]
                return "text", f"{shown} begins with a zero" if is_code(value) else f"{shown} is no number"
    if not found:
        return "text", "no value"
    if set(found) == {"integer"}:
        return "integer", "whole numbers"
    if set(found) <= {"integer", "number"}:
        return "number", f"such as {canonical_value(found['number'])}"
    if len(found) == 1:
        (kind,) = found
        return kind, {"boolean": "true and false", "time": "dates or times"}[kind]
    return "text", " beside ".join(repr(str(value))[:40] for value in found.values())


def _is_plain(text: str) -> bool:
    """Whether a string is a whole number as Python writes it."""
    return text.isdigit() and text.isascii() and (text[0] != "0" or len(text) == 1)


def is_code(value: Any) -> bool:
    """Whether a value is a string of digits that would lose the zeros at its front as a number."""
    return isinstance(value, str) and _CODE.match(value.strip()) is not None and read_number(value) is not None


def _type_of(value: Any) -> str | None:
    """The type of one value; `None` for one that is missing in any type that is not text."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, bool | np.bool_) or (isinstance(value, str) and value.strip().lower() in ("true", "false")):
        return "boolean"
    if isinstance(value, datetime.date | np.datetime64):  # nan of either is missing
        return None if str(value) in _MISSING_OBJECTS else "time"
    if isinstance(value, str) and is_code(value):
        return "text"
    number = read_number(value)
    if number is not None:
        if math.isnan(number):
            return None
        is_exact = abs(number) <= _EXACT or not isinstance(value, float | str) or whole_number(value) is not None
        return "integer" if number.is_integer() and is_exact else "number"
    try:
        datetime.datetime.fromisoformat(value.strip())
    except (ValueError, AttributeError):
        return "text"
    return "time"


def read_values(
    values: Sequence[Any],
    value_type: str,
    field: str = "",
    codes: Callable[[], Mapping[Any, str]] | None = None,
) -> list[str | None]:
    """
    Distinct values of a categorical field `(n,)` -> the string that each stands for under a type, `None` where it is
    missing: the same whatever container they came in.

    - `"integer"` and `"number"`: the shortest spelling (`7`, 7.0, "7.0" and "+7" are "7"); 3.50 is "3.5". A float
      beyond 2**53, which several whole numbers are, is no known integer.
    - `"boolean"`: "true" or "false", of 1 and 0 as well.
    - `"time"`: an ISO date, with the time of day where it is not midnight, in UTC.
    - `"text"`: see `canonical_value`; of a number (12, 12.0, "12.0") the one known value that has that number
      (`codes`), and of digits ("12") too where that is a code with zeros ("00012"): a csv that lost them and what
      pandas reads of it are one table.

    What is no value of the type is the string that it is in any case: no training row has it.

    Args:
        codes (`Callable`, *optional*): called if needed; a whole number, as Python writes it -> the known value that
            is written so.

    """
    types = set(map(type, values))
    if value_type != "text":
        if types == {int} and value_type in ("integer", "number"):
            return list(map(str, values))
        read = _READERS[value_type]
        return [read(value, field) for value in values]
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


def _number_value(value: Any, field: str) -> str | None:
    if type(value) is str and _is_plain(value):
        return value
    if isinstance(value, str):
        text = value.strip()
        number = read_number(text, field)
        return whole_number(text) or (text or None if number is None else canonical_value(number))
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, decimal.Decimal) and value.is_finite() and value == value.to_integral_value():
        return str(int(value))
    return canonical_value(float(value) if isinstance(value, decimal.Decimal) else value, field)


def whole_number(value: Any) -> str | None:
    """A string of digits, with zeros behind the point perhaps, as Python writes that number, exact; else `None`."""
    found = _INTEGER.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return None
    digits = found[1].lstrip("+-").lstrip("0")
    return f"-{digits}" if digits and found[1][0] == "-" else digits or "0"


def _integer_value(value: Any, field: str) -> str | None:
    number = value
    if isinstance(value, str) and not value.strip().lstrip("+-").isdigit():
        number = read_number(value, field)
    if isinstance(number, float) and math.isfinite(number) and abs(number) > _EXACT:
        # several whole numbers are this float: it is none of them, however it came
        whole = whole_number(value)
        return repr(number) if whole is None else f"{whole}.0"
    return _number_value(value, field)


def _truth_value(value: Any, field: str) -> str | None:
    text = canonical_value(value, field)
    if text is None or text.lower() in _MISSING_NUMBERS:
        return None
    return _TRUTHS.get(whole_number(text) or text.lower(), text)


def _time_value(value: Any, field: str) -> str | None:
    try:
        (seconds,) = read_times([value], field).tolist()
    except ValueError:
        return canonical_value(value, field)
    if math.isnan(seconds):
        return None
    time = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=seconds)
    return (time.date() if time.time() == datetime.time() else time).isoformat()


_READERS = {"integer": _integer_value, "number": _number_value, "boolean": _truth_value, "time": _time_value}


def is_container(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset | Mapping) or getattr(value, "ndim", 0) > 0


def container_message(value: Any, field: str, row: int | None = None) -> str:
    where = "" if row is None else f" in row {row}"
    return (
        f"field {field!r} holds a {type(value).__name__}{where} ({str(value)[:60]}) and not one value per row: "
        f'make it multivalued (field_options={{{field!r}: {{"kind": "multivalued"}}}}), join it into a string '
        '(", ".join(values)), or leave the field out'
    )
