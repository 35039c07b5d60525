# SPDX-License-Identifier: Apache-2.0
"""A table in batches, and what a column's first values and its options say of its kind: a column -> its fields."""

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..columns_flip import (
    EXACT,
    PLAIN_INTEGER,
    VALUE_TYPES,
    as_columns,
    as_list,
    canonical_value,
    code_scalars,
    is_arrow,
    is_code,
    is_container,
    plain_value,
    plain_values,
    read_number,
    whole_number,
    with_class_names,
)
from ..fields_flip import DATE_PARTS, STATISTICS, Field, MultivaluedField, field_from_dict


BATCH_SIZE = 100_000  # rows read at a time from what is larger than memory
# the kind of a field whose values are of a type, unless its options say otherwise: whole numbers are ids more often
# than amounts
KIND_OF_TYPE = {**dict.fromkeys(VALUE_TYPES, "categorical"), "number": "numeric", "time": "datetime"}
# and the kind that an option asks for, since no other has it
KIND_OF_OPTION = {
    **dict.fromkeys(("bucketing", "edges", "num_buckets", "text_format"), "numeric"),
    **dict.fromkeys(("separator", "max_values", "pooling", "joiner"), "multivalued"),
    **dict.fromkeys(("parts", "reference", "format"), "datetime"),
    **dict.fromkeys(("min_frequency", "vocabulary_size", "hash_buckets", "statistics"), "categorical"),
}


def is_split(dataset: Any) -> bool:
    """Whether a data set is a mapping of splits, and not of columns, nor a row of which some value is a dict."""
    parts = dataset.values() if isinstance(dataset, Mapping) and len(dataset) else [None]
    return all(
        isinstance(part, Mapping) or hasattr(part, "column_names") or hasattr(part, "columns") for part in parts
    )


def gives_arrow(dataset: Any) -> bool:
    """Whether a data set has Arrow tables to give. Of a stream of rows made in Python `datasets` would make a table of
    each row, and those of rows with and without holes do not fit together."""
    return getattr(getattr(dataset, "_ex_iterable", None), "iter_arrow", True) is not None


def batches(dataset: Any, label: str | None = None) -> Iterator[Mapping[str, Any]]:
    """Batches of columns of whatever `fit` is given; a `datasets.Dataset` as Arrow, a piece at a time."""
    if hasattr(dataset, "with_format") and hasattr(dataset, "iter"):
        for batch in dataset.with_format("arrow" if gives_arrow(dataset) else None).iter(batch_size=BATCH_SIZE):
            yield with_class_names(batch, dataset.features, label)
    else:
        for batch in dataset if isinstance(dataset, Iterator) else [dataset]:
            yield as_columns(batch, label)


def infer_type(values: Sequence[Any]) -> tuple[str, str]:
    """Distinct values of a column -> one of `VALUE_TYPES`, and why, in words. A type is what all values are, however
    they are held: `"2008"`, 2008 and 2008.0 are integers, `"true"` and `True` booleans, `"2024-05-31"` and a date
    times. A code with zeros at its front (`"00012"`) is text."""
    types = set(map(type, values))  # the usual ones first
    if types == {int} or (types == {str} and all(map(PLAIN_INTEGER.fullmatch, values))):
        return "integer", "whole numbers"
    found: dict[str | None, Any] = {}  # the first value of each type
    for value in map(plain_value, values):
        kind = _type_of(value)
        if kind == "text":
            return "text", f"{value!r:.40} {'begins with a zero' if is_code(value) else 'is no number'}"
        found.setdefault(kind, value)
    found.pop(None, None)
    if "number" in found:
        found.pop("integer", None)
    if len(found) != 1:
        return "text", " beside ".join(f"{str(value)!r:.40}" for value in found.values()) or "no value"
    ((kind, value),) = found.items()
    reasons = {"integer": "whole numbers", "boolean": "true and false", "time": "dates or times"}
    return str(kind), reasons.get(str(kind)) or f"such as {canonical_value(value)}"


def _type_of(value: Any) -> str | None:
    """The type of one plain value; `None` for one that is missing in any type that is not text."""
    if isinstance(value, bool | str) and str(value).strip().lower() in ("true", "false"):
        return "boolean"
    number = read_number(value)
    if is_code(value):
        return "text"
    if number is None:
        try:
            datetime.datetime.fromisoformat(str(value).strip())
        except ValueError:
            return "text"
        return "time"
    is_whole = number.is_integer() and (abs(number) <= EXACT or whole_number(value) is not None)
    return None if math.isnan(number) else "integer" if is_whole else "number"


def infer_column(pieces: Sequence[Any], name: str, separator: str | None = None) -> tuple[bool, str, str]:
    """The first rows of a column, in pieces -> whether its rows are lists, the value type of what they hold, and why:
    the same for a csv, a parquet file and a pandas frame of one table."""
    splitter = MultivaluedField(name=name, separator=separator)
    elements: dict[Any, None] = {}
    num_rows, has_lists, has_scalars = 0, False, False
    for piece in pieces:
        piece = piece[: BATCH_SIZE - num_rows]
        num_rows += len(piece)
        values = () if is_arrow(piece) else as_list(piece)
        lists = [value for value in values if is_container(value)]
        if any(isinstance(value, Mapping) for value in lists):
            return False, "text", "not one value"
        scalars = [value for value in values if not is_container(value)] if lists else code_scalars(piece, name).values
        has_lists |= bool(lists)
        has_scalars |= any(canonical_value(value) is not None for value in scalars)
        if lists or separator is not None:
            scalars = [element for value in (*lists, *scalars) for element in splitter.split(value)]
        elements |= dict.fromkeys(plain_values(scalars, name))
    return has_lists and not has_scalars, *infer_type(list(elements))


def expand_field(name: str, options: Mapping[str, Any]) -> tuple[list[Field], list[Field]]:
    """One column with its options -> its fields, and the statistics of it, which stand after all other fields.

    `kind="datetime"` becomes a field for each of `parts` (the age with `reference`), `statistics=[...]` of a
    categorical field a `StatisticField` for each, with `smoothing` and `num_buckets`."""
    rest: dict[str, Any] = {"kind": "categorical", **options}
    if rest["kind"] == "datetime":
        parts = rest.get("parts", ["hour", "weekday", "age"])
        is_known = rest.keys() <= {"kind", "parts", "reference", "format", "view"}
        if not is_known or isinstance(parts, str) or not parts or not {*parts} <= {*DATE_PARTS, "age"}:
            raise ValueError(
                f"field {name!r}: a datetime field has the options parts (some of {', '.join(DATE_PARTS)}, age), "
                f"reference, format and view, not {rest | {'parts': parts}}"
            )
        common = {"column": name, "view": rest.get("view", "joint"), "format": rest.get("format")}
        of_parts: dict[str, dict[str, Any]] = {part: {"kind": "date_part", "part": part} for part in parts}
        if "age" in of_parts:
            of_parts["age"] = {"kind": "age", "reference": rest.get("reference")}
        return [field_from_dict({"name": f"{name}_{part}", **common, **of_parts[part]}) for part in parts], []
    statistics = rest.pop("statistics", [])
    moved = [option for option in ("smoothing", "num_buckets") if statistics and option in rest]
    of_statistics: dict[str, Any] = {option: rest.pop(option) for option in moved}
    field = field_from_dict({"name": name, **rest})
    if statistics and (field.kind != "categorical" or field.view == "text" or isinstance(statistics, str)):
        raise ValueError(
            f"field {name!r}: statistics={statistics!r} has to be a list of {', '.join(STATISTICS)}, and of a "
            f"categorical field that has ids; this one is {field.kind} with view={field.view!r}"
        )
    of_statistics |= {"source": name, "column": name}
    of_statistics |= {option: getattr(field, option) for option in ("type", "classes") if statistics}
    specs = [{"kind": "statistic", "name": f"{name}_{word}", "statistic": word} | of_statistics for word in statistics]
    return [field], list(map(field_from_dict, specs))
