# SPDX-License-Identifier: Apache-2.0
"""What a field is: kind and options, and how the raw values of its column are read and said in words.

A kind is one class with `read` (distinct raw values -> what they stand for), `text` (what they stand for -> words),
and one entry of `_KINDS`. What is learnt from rows lives in `fitting/counts.py` and `feature_encoding_flip.py`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .columns_flip import (
    VALUE_TYPES,
    CodedColumn,
    Codes,
    arrow_lists,
    as_list,
    canonical_value,
    code_scalars,
    code_values,
    is_arrow,
    is_container,
    number_text,
    plain_values,
    read_number,
    read_times,
    read_values,
    select_columns,
    short_float,
    time_of,
)


_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = "January February March April May June July August September October November December".split()
DATE_PARTS = {
    "hour": lambda time: str(time.hour),
    "weekday": lambda time: _WEEKDAYS[time.weekday()],
    "month": lambda time: _MONTHS[time.month - 1],
}
STATISTICS = ("frequency", "label_mean")
# what options of any kind may be: one of these, or at least 1
_CHOICES = {
    "view": ("joint", "tabular", "text"),
    "type": VALUE_TYPES,
    "part": tuple(DATE_PARTS),
    "bucketing": ("quantile", "log", "fixed"),
    "statistic": STATISTICS,
    "pooling": ("mean", "sum", "attention"),
}
_SIZES = ("min_frequency", "vocabulary_size", "hash_buckets", "num_buckets", "max_values")


@dataclass(frozen=True, kw_only=True)
class Field:
    """What all kinds have in common."""

    kind: ClassVar[str]
    has_vocabulary: ClassVar[bool] = False
    reads_hours: ClassVar[bool] = False  # which become ages when the newest training row is known
    read_by: ClassVar[tuple[str, ...]] = ()  # options that decide what values stand for
    name: str  # also in the text
    view: str = "joint"  # ids and text; "tabular", ids alone, for a hash that says nothing; or "text", text alone
    column: str | None = None  # the raw column, where it is not `name`

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value, allowed = getattr(self, option.name), _CHOICES.get(option.name)
            shown = f"{option.name}={value!r}"
            self._check(allowed is None or value in allowed, f"{shown} is not one of {', '.join(allowed or ())}")
            if option.name in _SIZES and value != option.default:
                self._check(isinstance(value, int) and value >= 1, f"{shown} has to be an integer of at least 1")
            if isinstance(value, list):  # of json
                object.__setattr__(self, option.name, tuple(value))

    def _check(self, is_right: bool, message: str) -> None:
        if not is_right:
            raise ValueError(message)

    @property
    def columns(self) -> tuple[str, ...]:
        """Raw columns it reads."""
        return (self.name if self.column is None else self.column,)

    @property
    def num_slots(self) -> int:
        """Columns of `feature_ids` that it takes."""
        return 0 if self.view == "text" else 1

    def code(self, columns: Sequence[Any], codes: Codes = None, first_row: int = 0) -> CodedColumn:
        """Raw columns -> distinct values, brought to the field's type. Errors count rows from `first_row`."""
        raw = code_scalars(columns[0], self.name, first_row)
        return raw.mapped(self.read(raw.values, codes))

    def read(self, values: Sequence[Any], codes: Codes = None) -> list[Any]:
        """Distinct raw values -> what they stand for, `None` where that is missing."""
        raise NotImplementedError

    def text(self, value: Any) -> str | None:
        """What the text says of a value that `read` gave; `None` where it is missing."""
        return value

    def to_dict(self) -> dict[str, Any]:
        """For json: kind, number of slots, and every option that is not at its default."""
        options = {o.name: (getattr(self, o.name), o.default) for o in dataclasses.fields(self)}
        changed = {name: value for name, (value, default) in options.items() if value != default}
        changed = {name: value.item() if isinstance(value, np.generic) else value for name, value in changed.items()}
        return {"name": self.name, "kind": self.kind, "num_slots": self.num_slots, "view": self.view, **changed}


@dataclass(frozen=True, kw_only=True)
class ValueField(Field):
    """What reads one value of a vocabulary: a categorical field, and the statistics of one."""

    read_by: ClassVar[tuple[str, ...]] = ("type", "classes")
    type: str = "text"  # what values are, one of `VALUE_TYPES` (see `read_values`)
    # of a `ClassLabel`: what the whole numbers from 0 on stand for, where rows hold no more than the numbers
    classes: tuple[str, ...] | None = None

    def read(self, values: Sequence[Any], codes: Codes = None) -> list[Any]:
        if self.classes is not None:
            numbers: dict[Any, str] = {str(number): name for number, name in enumerate(self.classes)}
            names = {**numbers, **dict(enumerate(self.classes)), **{name: name for name in self.classes}}
            values = [value if isinstance(value, bool) else names.get(value, value) for value in values]
        return read_values(values, self.type, self.name, codes)


@dataclass(frozen=True, kw_only=True)
class CategoricalField(ValueField):
    """One value of a vocabulary."""

    kind: ClassVar[str] = "categorical"
    min_frequency: int | None = None  # rarer values count as unseen; default: the extractor's
    vocabulary_size: int | None = None  # at most so many values, the most frequent ones
    hash_buckets: int | None = None  # no vocabulary is stored: nothing is unseen, and values share so many ids

    def __post_init__(self) -> None:
        super().__post_init__()
        is_limited = self.min_frequency or self.vocabulary_size
        self._check(not (self.hash_buckets and is_limited), "hash_buckets stores no vocabulary that could be limited")

    @property
    def has_vocabulary(self) -> bool:  # type: ignore[override]
        return not self.hash_buckets


@dataclass(frozen=True, kw_only=True)
class DatePartField(CategoricalField):
    """A part of a date or time (see `read_times`), in UTC."""

    kind: ClassVar[str] = "date_part"
    read_by: ClassVar[tuple[str, ...]] = ("part", "format")
    part: str  # "hour" (0 to 23), "weekday" ("Monday") or "month" ("January")
    format: str | None = None  # of times without dashes, "%y%m%d%H" say

    def read(self, values: Sequence[Any], codes: Codes = None) -> list[Any]:
        say, seconds = DATE_PARTS[self.part], read_times(values, self.name, self.format).tolist()
        return [None if math.isnan(second) else say(time_of(second)) for second in seconds]


@dataclass(frozen=True, kw_only=True)
class NumericField(Field):
    """A number, which the ID tower reads as the bucket it falls into and the text as a number. Outside the training
    rows' range that is the first or last bucket. What is no number (see `read_number`) has the field's id for unseen
    values, and the text says it as it is."""

    kind: ClassVar[str] = "numeric"
    # "quantile": equally many training rows in each bucket; "log": 0 and the powers of two from 2^-20 to 2^63, of both
    # signs, that lie between the training rows; "fixed": `edges`
    bucketing: str = "quantile"
    num_buckets: int = 32  # of quantile bucketing; fewer where values repeat
    edges: tuple[float, ...] | None = None  # increasing; bucket k holds edges[k - 1] <= x < edges[k]
    text_format: str | None = None  # as Python's `format`, ",.2f" say; default: six significant digits

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edges is not None:
            edges = np.array(self.edges, np.float64).ravel()
            is_right = bool(np.isfinite(edges).all() and (np.diff(edges) > 0).all())
            self._check(is_right, f"edges={self.edges!r} have to be finite numbers that increase")
            object.__setattr__(self, "edges", tuple(edges.tolist()))
            if self.bucketing == "quantile":
                object.__setattr__(self, "bucketing", "fixed")
        self._check((self.bucketing == "fixed") == (self.edges is not None), "bucketing='fixed' goes with edges=[...]")
        format(1.5, self.text_format or "")  # raises for what formats no number

    def read(self, values: Sequence[Any], codes: Codes = None) -> list[Any]:
        """Numbers; what is none, as the string that it is."""
        numbers = [value if type(value) is float else read_number(value, self.name) for value in values]
        return [
            canonical_value(value) if number is None else None if math.isnan(number) else number
            for value, number in zip(values, numbers, strict=True)
        ]

    def numbers(self, values: Sequence[float | str | None]) -> tuple[np.ndarray, np.ndarray]:
        """What `read` gave -> float64 `(n,)`, nan where missing; bool `(n,)`, true where a value is no number."""
        unreadable = np.array([type(value) is str for value in values], bool)
        return np.array([math.nan if type(value) is str else value for value in values], np.float64), unreadable

    def text(self, value: Any) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return number_text(value) if self.text_format is None else format(value + 0.0, self.text_format)  # no "-0"


@dataclass(frozen=True, kw_only=True)
class AgeField(NumericField):
    """Days from a date or time (see `read_times`) to a later one."""

    kind: ClassVar[str] = "age"
    read_by: ClassVar[tuple[str, ...]] = ("format",)
    reference: str | None = None  # column with the later time; default: the newest of training rows, in whole hours
    format: str | None = None  # of times without dashes, "%y%m%d%H" say

    @property
    def reads_hours(self) -> bool:  # type: ignore[override]
        return self.reference is None

    @property
    def columns(self) -> tuple[str, ...]:
        return super().columns if self.reference is None else (*super().columns, self.reference)

    def code(self, columns: Sequence[Any], codes: Codes = None, first_row: int = 0) -> CodedColumn:
        if self.reference is None:
            return super().code(columns, codes, first_row)
        coded = [code_scalars(column, self.name, first_row) for column in columns]
        start, end = (read_times(column.values, self.name, self.format)[column.indices] for column in coded)
        days = ((end - start) / 86_400).tolist()
        return code_values([None if math.isnan(age) else age for age in days])

    def read(self, values: Sequence[Any], codes: Codes = None) -> list[Any]:
        """Whole hours since 1970, where the age is counted from the newest training row."""
        hours = np.floor(read_times(values, self.name, self.format) / 3600).tolist()
        return [None if math.isnan(hour) else hour for hour in hours]

    def ages(self, numbers: np.ndarray, newest: float) -> np.ndarray:
        """What `numbers` gives, and the newest of training rows -> days `(n,)`."""
        return numbers if self.reference else (newest - numbers) / 24

    def age_text(self, age: float) -> str | None:
        if math.isnan(age):
            return None
        if self.text_format:
            return format(age, self.text_format)
        days = number_text(float(round(age)))
        return f"{days} day" if days == "1" else f"{days} days"


@dataclass(frozen=True, kw_only=True)
class StatisticField(ValueField, NumericField):
    """What the training rows say of the value of a categorical field, for the ID tower alone. A training row counts
    the others, and has the mean label of the folds that it is not in; an unseen value has that of all rows."""

    kind: ClassVar[str] = "statistic"
    view: str = "tabular"
    source: str  # the categorical field, whose `type` and `classes` it has
    # "frequency", how many rows have the value, or "label_mean", their mean label, smoothed:
    # (sum of labels + smoothing x mean of all labels) / (rows + smoothing)
    statistic: str
    smoothing: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(self.view == "tabular", f"view={self.view!r}, and a statistic is for the ID tower alone")
        self._check(self.smoothing > 0, f"smoothing={self.smoothing!r} has to be above 0")


@dataclass(frozen=True, kw_only=True)
class MultivaluedField(CategoricalField):
    """Several values of one vocabulary: genres, or a history in the order of time. Values that are missing themselves
    are left out, and a row with none is missing. A set is sorted."""

    kind: ClassVar[str] = "multivalued"
    read_by: ClassVar[tuple[str, ...]] = ("separator", "type", "classes")
    separator: str | None = None  # splits strings, "|" say; lists need none
    max_values: int = 20  # the last so many are kept, in their order; fewer slots where the training rows have fewer
    pooling: str = "mean"  # in the ID tower: "mean", "sum" or "attention"
    joiner: str = ", "  # between values in the text

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(self.separator != "", "separator='' splits nothing; leave it out for lists")

    @property
    def num_slots(self) -> int:
        return 0 if self.view == "text" else self.max_values

    def code(self, columns: Sequence[Any], codes: Codes = None, first_row: int = 0) -> CodedColumn:
        column, indices = columns[0], None
        lists = arrow_lists(column, self.name)
        if lists is None:
            if is_arrow(column):
                column, indices, _ = code_scalars(column, self.name)
            parts = list(map(self.split, as_list(column)))
            elements = plain_values(list(itertools.chain.from_iterable(parts)), self.name)
            lists = code_values(elements), list(map(len, parts))
        (values, places, _), lengths = lists
        texts = list(map(self.read(values, codes).__getitem__, places.tolist()))
        bounds = itertools.pairwise(itertools.accumulate(lengths, initial=0))
        rows = [tuple(texts[start:end]) for start, end in bounds]
        if None in texts:
            rows = [tuple(text for text in row if text is not None) for row in rows]
        coded = code_values(rows)
        return coded if indices is None else CodedColumn(coded.values, coded.indices[indices])

    def split(self, value: Any) -> Sequence[Any]:
        """A raw value -> its elements."""
        if hasattr(value, "as_py"):  # one of Arrow
            value = value.as_py()
        if value is None:
            return ()
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str) and self.separator:
            return value.split(self.separator)
        if isinstance(value, set | frozenset):
            return sorted(value, key=str)
        if short_float(getattr(value, "dtype", "")):  # a list of Python's would have other digits
            return list(value)
        return as_list(value) if is_container(value) and not isinstance(value, Mapping) else (value,)

    def elements(self, value: tuple[str, ...]) -> tuple[str, ...]:
        """The last `max_values` values of one row, in order."""
        return value[-self.max_values :]

    def text(self, value: Any) -> str | None:
        return value if isinstance(value, str) else self.joiner.join(self.elements(value)) or None


_KINDS = (CategoricalField, NumericField, MultivaluedField, DatePartField, AgeField, StatisticField)
FIELD_KINDS: dict[str, type[Field]] = {cls.kind: cls for cls in _KINDS}


def field_from_dict(spec: Mapping[str, Any]) -> Field:
    """The inverse of `Field.to_dict`. Raises `ValueError` for a kind, an option or a value that is not known."""
    options = {name: value for name, value in spec.items() if name not in ("kind", "num_slots")}
    kind, name = spec.get("kind", "categorical"), spec.get("name")
    if kind not in FIELD_KINDS:
        raise ValueError(f"field {name!r}: kind={kind!r} is not one of {', '.join([*FIELD_KINDS, 'datetime'])}")
    try:
        return FIELD_KINDS[kind](**options)
    except (TypeError, ValueError) as error:
        known = ", ".join(sorted(option.name for option in dataclasses.fields(FIELD_KINDS[kind])))
        raise ValueError(f"field {name!r}: {error}, of {options}; of kind {kind!r} it has {known}") from error


def code_columns(
    fields: Sequence[Field],
    rows: Mapping[str, Any],
    first_row: int = 0,
    codes: Callable[[str], Mapping[Any, str]] | None = None,
) -> list[CodedColumn]:
    """The column of each field, coded and brought to the field's type; fields that read a column in the same way share
    one result. Errors count rows from `first_row`; `codes` gives the `Codes` of the field of a name."""
    names = list(dict.fromkeys(name for field in fields for name in field.columns))
    of_lists = [name for field in fields if isinstance(field, MultivaluedField) for name in field.columns]
    raw = dict(zip(names, select_columns(rows, names, of_lists), strict=True))
    coded: dict[tuple, CodedColumn] = {}
    keys = [(type(f).code, type(f).read, *f.columns, *(getattr(f, option) for option in f.read_by)) for f in fields]
    for field, key in zip(fields, keys, strict=True):
        if key not in coded:
            known = None if codes is None else functools.partial(codes, field.name)
            coded[key] = field.code([raw[name] for name in field.columns], known, first_row)
    return [coded[key] for key in keys]
