# SPDX-License-Identifier: Apache-2.0
"""What a field is: its kind, its options, and how the raw values of its column are read and said in words.

A kind is one class with `code` (raw columns -> distinct values and each row's index into them) and `text` (a value ->
words, `None` where it is missing), and one entry of `FIELD_KINDS`. What is learnt from rows lives elsewhere: counts in
`feature_counts_flip.py`, ids in `feature_extraction_flip.py`.
"""

import dataclasses
import datetime
import decimal
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .columns_flip import CodedColumn, as_list, code_scalars, code_values, is_arrow, list_rows, plain_values
from .configuration_flip import POOLINGS
from .values_flip import canonical_value, is_container, number_text, read_number, read_time


VIEWS = ("joint", "tabular", "text")
BUCKETINGS = ("quantile", "log", "fixed")
# zero and the powers of two of both signs, between which a CTR model tells amounts apart
_POWERS = tuple(2.0**exponent for exponent in range(-20, 64))
LOG_EDGES = (*(-power for power in reversed(_POWERS)), 0.0, *_POWERS)
DATE_PARTS = ("hour", "weekday", "month")
STATISTICS = ("frequency", "label_mean")

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = "January February March April May June July August September October November December".split()
SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Field:
    """
    What all kinds have in common.

    Args:
        name (`str`): of the field, and of its words in the text.
        view (`str`): `"joint"` (ids and text), `"tabular"` (ids alone, for a hash that says nothing) or `"text"` (text
            alone, for a description).
        column (`str`, *optional*): raw column, where it is not `name`.
    """

    kind: ClassVar[str]
    has_vocabulary: ClassVar[bool] = False
    # whether 1, 1.0 and True may be one value, as they are to Python
    reads_numbers: ClassVar[bool] = False
    name: str
    view: str = "joint"
    column: str | None = None

    def __post_init__(self) -> None:
        self._check_choice("view", VIEWS)

    def _check_choice(self, option: str, allowed: Sequence[str]) -> None:
        if getattr(self, option) not in allowed:
            raise ValueError(
                f"field {self.name!r}: {option}={getattr(self, option)!r} is not one of {', '.join(allowed)}"
            )

    def _check_at_least(self, option: str, least: int) -> None:
        value = getattr(self, option)
        if not isinstance(value, int) or value < least:
            raise ValueError(f"field {self.name!r}: {option}={value!r} has to be an integer of at least {least}")

    @property
    def columns(self) -> tuple[str, ...]:
        """Raw columns it reads."""
        return (self.name if self.column is None else self.column,)

    @property
    def num_slots(self) -> int:
        """Columns of `feature_ids` that it takes."""
        return 0 if self.view == "text" else 1

    @property
    def coding(self) -> tuple:
        """Fields of equal coding have equal `CodedColumn`s."""
        return (*self.columns, self.reads_numbers)

    def code(self, columns: Sequence[Any], first_row: int = 0) -> CodedColumn:
        """Raw columns -> distinct values and indices. Raises `TypeError` for a container, naming field and row."""
        return code_scalars(columns[0], self.name, self.reads_numbers, first_row)

    def text(self, value: Any) -> str | None:
        """What the text says of a value; `None` where it is missing."""
        return canonical_value(value, self.name)

    def to_dict(self) -> dict[str, Any]:
        """For json: kind, number of slots, and every option that is not at its default."""
        given = {
            option.name: getattr(self, option.name)
            for option in dataclasses.fields(self)
            if getattr(self, option.name) != option.default
        }
        return {"name": self.name, "kind": self.kind, "num_slots": self.num_slots, "view": self.view, **given}


@dataclass(frozen=True, kw_only=True)
class CategoricalField(Field):
    """
    One value of a vocabulary.

    Args:
        min_frequency (`int`, *optional*): rarer values count as unseen; default: the extractor's.
        vocabulary_size (`int`, *optional*): at most so many values, the most frequent ones.
        hash_buckets (`int`, *optional*): values are hashed to so many ids and no vocabulary is stored: nothing is
            unseen, and values share ids.
    """

    kind: ClassVar[str] = "categorical"
    min_frequency: int | None = None
    vocabulary_size: int | None = None
    hash_buckets: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("min_frequency", "vocabulary_size", "hash_buckets"):
            if getattr(self, option) is not None:
                self._check_at_least(option, 1)
        if self.hash_buckets and (self.min_frequency or self.vocabulary_size):
            raise ValueError(
                f"field {self.name!r}: hash_buckets stores no vocabulary that min_frequency or vocabulary_size could "
                "limit"
            )

    @property
    def has_vocabulary(self) -> bool:  # type: ignore[override]
        return not self.hash_buckets

    def canonical(self, values: Sequence[Any]) -> list[str | None]:
        """Distinct values -> what the vocabulary holds."""
        if set(map(type, values)) == {str} and all(map(str.isascii, values)):  # nothing to lose but white space
            return [value.strip() or None for value in values]
        return [canonical_value(value, self.name) for value in values]


@dataclass(frozen=True, kw_only=True)
class DatePartField(CategoricalField):
    """
    A part of a date or time (see `read_time`), in UTC.

    Args:
        part (`str`): `"hour"` (0 to 23), `"weekday"` ("Monday") or `"month"` ("January").
    """

    kind: ClassVar[str] = "date_part"
    reads_numbers: ClassVar[bool] = True
    part: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("part", DATE_PARTS)

    def text(self, value: Any) -> str | None:
        seconds = read_time(value, self.name)
        if math.isnan(seconds):
            return None
        days, second = divmod(seconds, SECONDS_PER_DAY)
        if self.part == "hour":
            return str(int(second // 3600))
        if self.part == "weekday":
            return _WEEKDAYS[(int(days) + 3) % 7]  # 1970 began on a Thursday
        return _MONTHS[np.datetime64(int(days), "D").astype("datetime64[M]").astype(int) % 12]

    def canonical(self, values: Sequence[Any]) -> list[str | None]:
        return [self.text(value) for value in values]


@dataclass(frozen=True, kw_only=True)
class NumericField(Field):
    """
    A number, which the ID tower reads as the bucket it falls into and the text as a number.

    Args:
        bucketing (`str`): `"quantile"` (equally many training rows in each bucket), `"log"` (0 and the powers of two
            from 2^-20 to 2^63, of both signs, that lie between the training rows) or `"fixed"` (`edges`).
        num_buckets (`int`): of quantile bucketing; fewer where values repeat.
        edges (`tuple[float, ...]`, *optional*): increasing; bucket k holds edges[k - 1] <= x < edges[k].
        text_format (`str`, *optional*): as Python's `format`, `",.2f"` say; default: strings as they are, numbers with
            six significant digits.

    A number outside the training rows' range falls into the first or last bucket. What is no number (see
    `read_number`) takes the field's id for unseen values, and the text says it as it is.
    """

    kind: ClassVar[str] = "numeric"
    reads_numbers: ClassVar[bool] = True
    bucketing: str = "quantile"
    num_buckets: int = 32
    edges: tuple[float, ...] | None = None
    text_format: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edges is not None:
            try:
                object.__setattr__(self, "edges", tuple(float(edge) for edge in self.edges))
            except (TypeError, ValueError):
                raise ValueError(f"field {self.name!r}: edges={self.edges!r} is no list of numbers") from None
            if self.bucketing == "quantile":
                object.__setattr__(self, "bucketing", "fixed")
        self._check_choice("bucketing", BUCKETINGS)
        self._check_at_least("num_buckets", 1)
        if (self.bucketing == "fixed") != (self.edges is not None):
            raise ValueError(f"field {self.name!r}: bucketing='fixed' and edges=[...] go together")
        if self.edges is not None and not (np.isfinite(self.edges).all() and (np.diff(self.edges) > 0).all()):
            raise ValueError(f"field {self.name!r}: edges {list(self.edges)} do not increase, or are not finite")
        if self.text_format is not None:
            try:
                format(1.5, self.text_format)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"field {self.name!r}: text_format={self.text_format!r} formats no number ({error}): ',.2f' say"
                ) from None

    @property
    def known_edges(self) -> tuple[float, ...] | None:
        """Edges that training rows do not decide."""
        return LOG_EDGES if self.bucketing == "log" else self.edges

    def numbers(self, values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Distinct values -> float64 `(n,)`, nan where missing; bool `(n,)`, true where a value is no number."""
        if set(map(type, values)) <= {float, type(None)}:
            return np.array(values, np.float64), np.zeros(len(values), bool)
        read = [read_number(value, self.name) for value in values]
        unreadable = np.array([number is None for number in read], bool)
        return np.array([math.nan if number is None else number for number in read], np.float64), unreadable

    def text(self, value: Any) -> str | None:
        number = read_number(value, self.name)
        if number is None:
            return canonical_value(value)
        if math.isnan(number):
            return None
        if self.text_format is not None:
            return format(number + 0.0, self.text_format)  # -0.0 + 0.0 is 0.0, which it is equal to
        return value.strip() if isinstance(value, str) else number_text(number)


@dataclass(frozen=True, kw_only=True)
class AgeField(NumericField):
    """
    Days from a date or time (see `read_time`) to a later one.

    Args:
        reference (`str`, *optional*): column with the later time of the same row (when the ad was shown); default: the
            newest time of the training rows, counted in whole hours.
    """

    kind: ClassVar[str] = "age"
    reference: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        own = super().columns
        return own if self.reference is None else (*own, self.reference)

    def code(self, columns: Sequence[Any], first_row: int = 0) -> CodedColumn:
        if self.reference is None:
            return super().code(columns, first_row)
        start, end = (plain_values(as_list(column), self.name, True, first_row) for column in columns)
        return code_values(list(zip(start, end, strict=True)))

    def numbers(self, values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Age in days, or whole hours since 1970 where the age is counted from the newest training row."""
        if self.reference is None:
            times = np.array([read_time(value, self.name) for value in values], np.float64)
            return np.floor(times / 3600), np.zeros(len(values), bool)
        pairs = [[read_time(value, self.name) for value in pair] for pair in values]
        start, end = np.array(pairs, np.float64).reshape(-1, 2).T
        return (end - start) / SECONDS_PER_DAY, np.zeros(len(values), bool)

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
class StatisticField(NumericField):
    """
    What the training rows say of the value of a categorical field: how often it occurs, or the mean label of its rows.

    Args:
        source (`str`): the categorical field.
        statistic (`str`): `"frequency"` (other training rows with the value) or `"label_mean"`, smoothed: (sum of
            labels + smoothing x mean of all labels) / (rows + smoothing). A training row sees the mean over the folds
            it is not in, so never its own label; an unseen value has the mean of all labels.
        smoothing (`float`): see above.
    """

    kind: ClassVar[str] = "statistic"
    reads_numbers: ClassVar[bool] = False  # its column holds the values of its source
    view: str = "tabular"
    source: str
    statistic: str
    smoothing: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("statistic", STATISTICS)
        if self.view != "tabular":
            raise ValueError(f"field {self.name!r}: view={self.view!r}, and a statistic is for the ID tower alone")
        if not self.smoothing > 0:
            raise ValueError(f"field {self.name!r}: smoothing={self.smoothing!r} has to be above 0")


@dataclass(frozen=True, kw_only=True)
class MultivaluedField(CategoricalField):
    """
    Several values of one vocabulary: genres, or a history in the order of time.

    Args:
        separator (`str`, *optional*): splits strings, `"|"` say; lists need none.
        max_values (`int`): the last so many values are kept, in their order; fewer slots where the training rows have
            fewer.
        pooling (`str`): in the ID tower: `"mean"`, `"sum"` or `"attention"`.
        joiner (`str`): between values in the text.

    Values that are missing themselves are left out; a row with none is missing. A set has the order of its sorted
    values.
    """

    kind: ClassVar[str] = "multivalued"
    separator: str | None = None
    max_values: int = 20
    pooling: str = "mean"
    joiner: str = ", "

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("max_values", 1)
        self._check_choice("pooling", POOLINGS)
        if self.separator == "":
            raise ValueError(f"field {self.name!r}: separator='' splits nothing; leave it out for lists")

    @property
    def num_slots(self) -> int:
        return 0 if self.view == "text" else self.max_values

    @property
    def coding(self) -> tuple:
        return (*self.columns, "lists")

    def code(self, columns: Sequence[Any], first_row: int = 0) -> CodedColumn:
        column = columns[0]
        if is_arrow(column):
            return code_scalars(column, self.name, keep_numbers=False, first_row=first_row)
        rows = list_rows(column, self.name)
        return code_values([self._row(value) for value in as_list(column)] if rows is None else rows)

    def _row(self, value: Any) -> tuple | str | None:
        """The values of one row, fit to be a key: as in a column of its own, 1 and True differ."""
        if not is_container(value) or isinstance(value, Mapping):
            return canonical_value(value, self.name)
        row = [
            part if type(part) is str or part is None else canonical_value(part, self.name) for part in as_list(value)
        ]
        return tuple(sorted(filter(None, row)) if isinstance(value, set | frozenset) else row)

    def elements(self, value: Any) -> list[str]:
        """The last `max_values` values of one row, in order, without those that are missing."""
        if value is None:
            return []
        parts = value
        if not isinstance(value, tuple):
            parts = str(value).split(self.separator) if self.separator else [value]
        kept = [text for text in (canonical_value(part, self.name) for part in parts) if text is not None]
        return kept[-self.max_values :]

    def text(self, value: Any) -> str | None:
        if type(value) is not str and type(value) is not tuple:
            value = self._row(value)
        return self.joiner.join(self.elements(value)) or None


FIELD_KINDS: dict[str, type[Field]] = {
    cls.kind: cls
    for cls in (CategoricalField, NumericField, MultivaluedField, DatePartField, AgeField, StatisticField)
}


def field_from_dict(spec: Mapping[str, Any]) -> Field:
    """
    The inverse of `Field.to_dict`.

    Raises:
        ValueError: for an unknown kind or option, naming the closest one, or a value that an option does not take.
    """
    options = {name: value for name, value in spec.items() if name not in ("kind", "num_slots")}
    kind = spec.get("kind", "categorical")
    name = spec.get("name")
    if kind not in FIELD_KINDS:
        raise ValueError(f"field {name!r}: kind={kind!r} is not one of {', '.join([*FIELD_KINDS, 'datetime'])}")
    cls = FIELD_KINDS[kind]
    known = {option.name for option in dataclasses.fields(cls)}
    for needed in dataclasses.fields(cls):
        if needed.default is dataclasses.MISSING and needed.name not in options:
            raise ValueError(f"field {name!r}: a {kind} field needs the option {needed.name!r}")
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, 1)
            raise ValueError(
                f"field {name!r}: a {kind} field has no option {option!r}"
                + (f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(known - {'name'}))}")
            )
    return cls(**options)


def infer_kind(column: Any) -> str:
    """
    `"numeric"` for floats and decimals, `"multivalued"` for lists, `"datetime"` for dates and times, otherwise
    `"categorical"`: strings, booleans, and integers, which are ids more often than amounts.
    """
    kind = getattr(column, "type", None)
    if kind is not None and hasattr(column, "dictionary_encode"):  # Arrow
        name = str(getattr(kind, "value_type", kind)) if hasattr(kind, "index_type") else str(kind)
        if name.startswith(("list", "large_list", "fixed_size_list")):
            return "multivalued"
        if name.startswith(("float", "double", "halffloat", "decimal")):
            return "numeric"
        return "datetime" if name.startswith(("timestamp", "date")) else "categorical"
    dtype = getattr(column, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind != "O":
        if getattr(column, "ndim", 1) > 1:
            return "multivalued"
        return {"f": "numeric", "M": "datetime"}.get(dtype.kind, "categorical")
    values = as_list(column)
    types = {kind for kind in set(map(type, values)) if kind.__name__ not in ("NoneType", "NAType", "NaTType")}

    def are(*kinds: type) -> bool:
        return bool(types) and all(issubclass(kind, kinds) for kind in types)

    if are(int, np.integer):
        return "categorical"
    # integers beside floats are floats, as in Arrow
    if bool not in types and are(int, float, np.integer, np.floating, decimal.Decimal):
        return "numeric"
    if float in types and all(math.isnan(value) for value in values if type(value) is float):
        types.remove(float)  # the holes that pandas makes
    if are(list, tuple, set, frozenset, np.ndarray):
        return "multivalued"
    return "datetime" if are(datetime.date, np.datetime64) else "categorical"


def expand_field(name: str, options: Mapping[str, Any]) -> tuple[list[Field], list[Field]]:
    """
    One column with its options -> its fields, and the statistics of it, which stand after all other fields.

    `kind="datetime"` becomes a field for each of `parts` (`"hour"`, `"weekday"`, `"month"`, `"age"`; the age with
    `reference`), `statistics=[...]` of a categorical field a `StatisticField` for each, with `smoothing` and
    `num_buckets`.

    Raises:
        ValueError: for an option that is not there or does not take the value.
    """
    options = dict(options)
    kind = options.pop("kind", "categorical")
    if kind == "datetime":
        parts = options.pop("parts", ["hour", "weekday", "age"])
        reference, view = options.pop("reference", None), options.pop("view", "joint")
        if options or isinstance(parts, str) or not parts or not set(parts) <= {*DATE_PARTS, "age"}:
            raise ValueError(
                f"field {name!r}: a datetime field has the options parts (some of {', '.join(DATE_PARTS)}, age), "
                f"reference and view, not {dict(options, parts=parts)}"
            )
        fields: list[Field] = []
        for part in parts:
            common = {"name": f"{name}_{part}", "column": name, "view": view}
            if part == "age":
                fields.append(AgeField(reference=reference, **common))
            else:
                fields.append(DatePartField(part=part, **common))
        return fields, []
    wanted = options.pop("statistics", [])
    given = [option for option in ("smoothing", "num_buckets") if wanted and option in options]
    statistic_options = {option: options.pop(option) for option in given}
    field = field_from_dict({"name": name, "kind": kind, **options})
    if wanted and (kind != "categorical" or field.view == "text" or isinstance(wanted, str)):
        raise ValueError(
            f"field {name!r}: statistics={wanted!r} has to be a list of {', '.join(STATISTICS)}, and of a categorical "
            f"field that has ids; this one is {kind} with view={field.view!r}"
        )
    return [field], [
        StatisticField(name=f"{name}_{statistic}", source=name, column=name, statistic=statistic, **statistic_options)
        for statistic in wanted
    ]
