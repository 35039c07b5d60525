# SPDX-License-Identifier: Apache-2.0
"""What a field is: its kind, its options, and how the raw values of its column are read and said in words.

A kind is one class with `read` (distinct raw values -> what they stand for), `text` (what they stand for -> words,
`None` where it is missing), and one entry of `FIELD_KINDS`. `Field.code` is the one door for raw values: whatever
container they come in, behind it they are strings or numbers of the field's value type. What is learnt from rows lives
elsewhere: counts in `fitting/counts.py`, ids in `feature_extraction_flip.py`.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .columns_flip import (
    BATCH_SIZE,
    CodedColumn,
    as_list,
    code_scalars,
    code_values,
    is_arrow,
    list_rows,
    plain_values,
    select_columns,
    tuples_of,
)
from .configuration_flip import POOLINGS
from .values_flip import (
    VALUE_TYPES,
    canonical_value,
    container_message,
    infer_type,
    is_container,
    number_text,
    read_number,
    read_times,
    read_values,
)


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
        return (*self.columns, self.kind)

    def code(
        self, columns: Sequence[Any], codes: Callable[[], Mapping[Any, str]] | None = None, first_row: int = 0
    ) -> CodedColumn:
        """
        Raw columns -> distinct values, brought to the field's type, and indices.

        Args:
            codes (`Callable`, *optional*): see `read_values`.
            first_row (`int`): errors count rows from here.

        Raises:
            TypeError: for a container, naming field and row.
        """
        raw = code_scalars(columns[0], self.name, first_row)
        return raw.mapped(self.read(raw.values, codes))

    def read(self, values: Sequence[Any], codes: Callable[[], Mapping[Any, str]] | None = None) -> list[Any]:
        """Distinct raw values -> what they stand for, `None` where that is missing."""
        raise NotImplementedError

    def text(self, value: Any) -> str | None:
        """What the text says of a value that `read` gave; `None` where it is missing."""
        return value

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
        type (`str`): what values are, one of `VALUE_TYPES` (see `read_values`).
        classes (`tuple[str, ...]`, *optional*): what the whole numbers from 0 on stand for, of a `ClassLabel`.
    """

    kind: ClassVar[str] = "categorical"
    type: str = "text"
    classes: tuple[str, ...] | None = None
    min_frequency: int | None = None
    vocabulary_size: int | None = None
    hash_buckets: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("type", VALUE_TYPES)
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
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

    @property
    def coding(self) -> tuple:
        return (*self.columns, "categorical", self.type, self.classes)

    def read(self, values: Sequence[Any], codes: Callable[[], Mapping[Any, str]] | None = None) -> list[str | None]:
        return _read_values(self, values, codes)


def _read_values(field: Any, values: Sequence[Any], codes: Callable[[], Mapping[Any, str]] | None) -> list[str | None]:
    """What a categorical field, or a statistic of one, makes of raw values."""
    if field.classes is not None:
        names = dict(enumerate(field.classes))
        values = [value if isinstance(value, str | bool) else names.get(value, value) for value in values]
    return read_values(values, field.type, field.name, codes)


@dataclass(frozen=True, kw_only=True)
class DatePartField(CategoricalField):
    """
    A part of a date or time (see `read_times`), in UTC.

    Args:
        part (`str`): `"hour"` (0 to 23), `"weekday"` ("Monday") or `"month"` ("January").
        format (`str`, *optional*): of times without dashes, `"%y%m%d%H"` say.
    """

    kind: ClassVar[str] = "date_part"
    part: str
    format: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("part", DATE_PARTS)

    @property
    def coding(self) -> tuple:
        return (*self.columns, self.part, self.format)

    def read(self, values: Sequence[Any], codes: Callable[[], Mapping[Any, str]] | None = None) -> list[str | None]:
        return [
            None if math.isnan(seconds) else self._part_of(*divmod(seconds, SECONDS_PER_DAY))
            for seconds in read_times(values, self.name, self.format).tolist()
        ]

    def _part_of(self, days: float, second: float) -> str:
        if self.part == "hour":
            return str(int(second // 3600))
        if self.part == "weekday":
            return _WEEKDAYS[(int(days) + 3) % 7]  # 1970 began on a Thursday
        return _MONTHS[np.datetime64(int(days), "D").astype("datetime64[M]").astype(int) % 12]


@dataclass(frozen=True, kw_only=True)
class NumericField(Field):
    """
    A number, which the ID tower reads as the bucket it falls into and the text as a number.

    Args:
        bucketing (`str`): `"quantile"` (equally many training rows in each bucket), `"log"` (0 and the powers of two
            from 2^-20 to 2^63, of both signs, that lie between the training rows) or `"fixed"` (`edges`).
        num_buckets (`int`): of quantile bucketing; fewer where values repeat.
        edges (`tuple[float, ...]`, *optional*): increasing; bucket k holds edges[k - 1] <= x < edges[k].
        text_format (`str`, *optional*): as Python's `format`, `",.2f"` say; default: six significant digits.

    A number outside the training rows' range falls into the first or last bucket. What is no number (see
    `read_number`) takes the field's id for unseen values, and the text says it as it is.
    """

    kind: ClassVar[str] = "numeric"
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

    def read(
        self, values: Sequence[Any], codes: Callable[[], Mapping[Any, str]] | None = None
    ) -> list[float | str | None]:
        """Numbers; what is none, as the string that it is."""
        if set(map(type, values)) <= {float, type(None)}:
            return [None if value is None or math.isnan(value) else value for value in values]
        numbers: list[float | str | None] = []
        for value in values:
            number = value if type(value) is float else read_number(value, self.name)
            numbers.append(
                canonical_value(value, self.name) if number is None else None if math.isnan(number) else number
            )
        return numbers

    def numbers(self, values: Sequence[float | str | None]) -> tuple[np.ndarray, np.ndarray]:
        """What `read` gave -> float64 `(n,)`, nan where missing; bool `(n,)`, true where a value is no number."""
        unreadable = np.array([type(value) is str for value in values], bool)
        return np.array([math.nan if type(value) is str else value for value in values], np.float64), unreadable

    def text(self, value: float | str | None) -> str | None:
        if value is None or isinstance(value, str):
            return value
        return number_text(value) if self.text_format is None else format(value + 0.0, self.text_format)  # no "-0"


@dataclass(frozen=True, kw_only=True)
class AgeField(NumericField):
    """
    Days from a date or time (see `read_times`) to a later one.

    Args:
        reference (`str`, *optional*): column with the later time of the same row (when the ad was shown); default: the
            newest time of the training rows, counted in whole hours.
        format (`str`, *optional*): of times without dashes, `"%y%m%d%H"` say.
    """

    kind: ClassVar[str] = "age"
    reference: str | None = None
    format: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        own = super().columns
        return own if self.reference is None else (*own, self.reference)

    @property
    def coding(self) -> tuple:
        return (*self.columns, "age", self.format)

    def code(
        self, columns: Sequence[Any], codes: Callable[[], Mapping[Any, str]] | None = None, first_row: int = 0
    ) -> CodedColumn:
        if self.reference is None:
            return super().code(columns, codes, first_row)
        start, end = (
            read_times(coded.values, self.name, self.format)[coded.indices]
            for coded in (code_scalars(column, self.name, first_row) for column in columns)
        )
        days = ((end - start) / SECONDS_PER_DAY).tolist()
        return code_values([None if math.isnan(age) else age for age in days])

    def read(
        self, values: Sequence[Any], codes: Callable[[], Mapping[Any, str]] | None = None
    ) -> list[float | str | None]:
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
class StatisticField(NumericField):
    """
    What the training rows say of the value of a categorical field: how often it occurs, or the mean label of its rows.

    Args:
        source (`str`): the categorical field.
        statistic (`str`): `"frequency"` (other training rows with the value) or `"label_mean"`, smoothed: (sum of
            labels + smoothing x mean of all labels) / (rows + smoothing). A training row sees the mean over the folds
            it is not in, so never its own label; an unseen value has the mean of all labels.
        smoothing (`float`): see above.
        type, classes: those of its source.
    """

    kind: ClassVar[str] = "statistic"
    view: str = "tabular"
    source: str
    statistic: str
    smoothing: float = 20.0
    type: str = "text"
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("statistic", STATISTICS)
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
        if self.view != "tabular":
            raise ValueError(f"field {self.name!r}: view={self.view!r}, and a statistic is for the ID tower alone")
        if not self.smoothing > 0:
            raise ValueError(f"field {self.name!r}: smoothing={self.smoothing!r} has to be above 0")

    @property
    def coding(self) -> tuple:
        return (*self.columns, "categorical", self.type, self.classes)

    def read(self, values: Sequence[Any], codes: Callable[[], Mapping[Any, str]] | None = None) -> list[str | None]:  # type: ignore[override]
        return _read_values(self, values, codes)


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
        return (*self.columns, "lists", self.separator, self.type, self.classes)

    def code(
        self, columns: Sequence[Any], codes: Callable[[], Mapping[Any, str]] | None = None, first_row: int = 0
    ) -> CodedColumn:
        def read(values: Sequence[Any]) -> list[str | None]:
            return self.read(values, codes)

        rows = list_rows(columns[0], self.name, read)
        if rows is not None:
            return code_values(rows)
        if is_arrow(columns[0]):
            coded = code_scalars(columns[0], self.name, first_row)
            values, indices = coded.values, coded.indices
        else:
            values = as_list(columns[0])
            indices = np.arange(len(values))
        lists = [self.split(value, row) for row, value in enumerate(values, first_row)]
        elements = code_values(plain_values([element for parts in lists for element in parts], self.name, first_row))
        rows = tuples_of(elements, list(map(len, lists)), read)
        if any(isinstance(value, set | frozenset) for value in values):
            rows = [
                tuple(sorted(row)) if isinstance(value, set | frozenset) else row
                for value, row in zip(values, rows, strict=True)
            ]
        coded = code_values(rows)
        return CodedColumn(coded.values, coded.indices[indices])

    def split(self, value: Any, row: int | None = None) -> Sequence[Any]:
        """A raw value -> its elements."""
        if value is None:
            return ()
        if isinstance(value, str) and self.separator:
            return value.split(self.separator)
        if isinstance(value, Mapping):
            raise TypeError(container_message(value, self.name, row))
        return as_list(value) if is_container(value) else (value,)

    def elements(self, value: tuple[str, ...]) -> tuple[str, ...]:
        """The last `max_values` values of one row, in order."""
        return value[-self.max_values :]

    def text(self, value: tuple[str, ...] | str) -> str | None:
        return value if isinstance(value, str) else self.joiner.join(self.elements(value)) or None


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


# the kind of a field whose values are of a type, unless its options say otherwise
KIND_OF_TYPE = {
    "integer": "categorical",  # ids more often than amounts
    "number": "numeric",
    "boolean": "categorical",
    "time": "datetime",
    "text": "categorical",
}


# and the kind that an option asks for, since no other has it
KIND_OF_OPTION = {
    **dict.fromkeys(("bucketing", "edges", "num_buckets", "text_format"), "numeric"),
    **dict.fromkeys(("separator", "max_values", "pooling", "joiner"), "multivalued"),
    **dict.fromkeys(("parts", "reference", "format"), "datetime"),
    **dict.fromkeys(("min_frequency", "vocabulary_size", "hash_buckets"), "categorical"),
    "statistics": "categorical",
}


def infer_column(pieces: Sequence[Any], name: str, separator: str | None = None) -> tuple[bool, str, str]:
    """
    The first rows of a column, in pieces -> whether its rows are lists, the value type of what they hold, and why.

    It follows from the values and not from how they are stored: a csv, a parquet file and a pandas frame of the same
    table give the same.
    """
    splitter = MultivaluedField(name=name, separator=separator)
    values: dict[Any, None] = {}
    rows, has_lists, has_scalars = 0, False, False
    for piece in pieces:
        piece = piece[: BATCH_SIZE - rows]
        rows += len(piece)
        if not is_arrow(piece) and any(map(is_container, listed := as_list(piece))):
            has_lists = True
            if any(isinstance(value, Mapping) for value in listed):
                return False, "text", "not one value"
            scalars: Sequence[Any] = [value for value in listed if not is_container(value)]
            elements: Sequence[Any] = [e for value in listed if is_container(value) for e in splitter.split(value)]
        else:
            elements = scalars = code_scalars(piece, name).values
            if separator is not None:
                elements = [element for value in scalars for element in splitter.split(value)]
        has_scalars = has_scalars or any(canonical_value(value) is not None for value in scalars)
        values |= dict.fromkeys(plain_values(elements, name))
    return has_lists and not has_scalars, *infer_type(list(values))


def expand_field(name: str, options: Mapping[str, Any]) -> tuple[list[Field], list[Field]]:
    """
    One column with its options -> its fields, and the statistics of it, which stand after all other fields.

    `kind="datetime"` becomes a field for each of `parts` (`"hour"`, `"weekday"`, `"month"`, `"age"`; the age with
    `reference`), read by `format`; `statistics=[...]` of a categorical field a `StatisticField` for each, with
    `smoothing` and `num_buckets`.

    Raises:
        ValueError: for an option that is not there or does not take the value.
    """
    options = dict(options)
    kind = options.pop("kind", "categorical")
    if kind == "datetime":
        parts = options.pop("parts", ["hour", "weekday", "age"])
        reference, view = options.pop("reference", None), options.pop("view", "joint")
        format = options.pop("format", None)
        if options or isinstance(parts, str) or not parts or not set(parts) <= {*DATE_PARTS, "age"}:
            raise ValueError(
                f"field {name!r}: a datetime field has the options parts (some of {', '.join(DATE_PARTS)}, age), "
                f"reference, format and view, not {dict(options, parts=parts)}"
            )
        fields: list[Field] = []
        for part in parts:
            common = {"name": f"{name}_{part}", "column": name, "view": view, "format": format}
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
        StatisticField(
            name=f"{name}_{statistic}",
            source=name,
            column=name,
            statistic=statistic,
            type=field.type,  # type: ignore[attr-defined]
            classes=field.classes,  # type: ignore[attr-defined]
            **statistic_options,
        )
        for statistic in wanted
    ]


def code_columns(
    fields: Sequence[Field],
    rows: Mapping[str, Any],
    first_row: int = 0,
    codes: Callable[[str], Mapping[Any, str]] | None = None,
) -> list[CodedColumn]:
    """
    The column of each field, coded and brought to the field's type; fields that read the same column in the same way
    share one result.

    Args:
        first_row (`int`): errors count rows from here.
        codes (`Callable`, *optional*): name of a field -> number -> the known value that is written so.
    """
    names = list(dict.fromkeys(name for field in fields for name in field.columns))
    of_lists = [name for field in fields if isinstance(field, MultivaluedField) for name in field.columns]
    raw = dict(zip(names, select_columns(rows, names, of_lists), strict=True))
    coded: dict[tuple, CodedColumn] = {}
    for field in fields:
        if field.coding not in coded:
            own = None if codes is None else functools.partial(codes, field.name)
            coded[field.coding] = field.code([raw[name] for name in field.columns], own, first_row)
    return [coded[field.coding] for field in fields]
