# SPDX-License-Identifier: Apache-2.0
"""A table in batches, and its first batches -> its fields: what values and options say of the kind of a column."""

import collections
import datetime
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformers.utils import logging

from .. import columns_flip
from ..feature_extraction_flip import NO_FIELDS
from ..fields_flip import DATE_PARTS, STATISTICS, Field, MultivaluedField, field_from_dict


logger = logging.get_logger(__name__)

BATCH_SIZE = 100_000  # rows read at a time from what is larger than memory
# what pandas calls the index that it wrote
_INDEX = re.compile(r"Unnamed: \d+|__index_level_\d+__")
# the kind of a field whose values are of a type, unless its options say otherwise: whole numbers are ids more often
# than amounts
KIND_OF_TYPE = {**dict.fromkeys(columns_flip.VALUE_TYPES, "categorical"), "number": "numeric", "time": "datetime"}
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
            yield columns_flip.with_class_names(batch, dataset.features, label)
    else:
        for batch in dataset if isinstance(dataset, Iterator) else [dataset]:
            yield columns_flip.as_columns(batch, label)


def infer_type(values: Sequence[Any]) -> tuple[str, str]:
    """Distinct values of a column -> one of `VALUE_TYPES`, and why, in words. A type is what all values are, however
    they are held: `"2008"`, 2008 and 2008.0 are integers, `"true"` and `True` booleans, `"2024-05-31"` and a date
    times. A code with zeros at its front (`"00012"`) is text."""
    types = set(map(type, values))  # the usual ones first
    if types == {int} or (types == {str} and all(map(columns_flip.PLAIN_INTEGER.fullmatch, values))):
        return "integer", "whole numbers"
    found: dict[str | None, Any] = {}  # the first value of each type
    for value in map(columns_flip.plain_value, values):
        kind = _type_of(value)
        if kind == "text":
            return "text", f"{value!r:.40} {'begins with a zero' if columns_flip.is_code(value) else 'is no number'}"
        found.setdefault(kind, value)
    found.pop(None, None)
    if "number" in found:
        found.pop("integer", None)
    if len(found) != 1:
        return "text", " beside ".join(f"{str(value)!r:.40}" for value in found.values()) or "no value"
    ((kind, value),) = found.items()
    reasons = {"integer": "whole numbers", "boolean": "true and false", "time": "dates or times"}
    return str(kind), reasons.get(str(kind)) or f"such as {columns_flip.canonical_value(value)}"


def _type_of(value: Any) -> str | None:
    """The type of one plain value; `None` for one that is missing in any type that is not text."""
    if isinstance(value, bool | str) and str(value).strip().lower() in ("true", "false"):
        return "boolean"
    number = columns_flip.read_number(value)
    if columns_flip.is_code(value):
        return "text"
    if number is None:
        try:
            datetime.datetime.fromisoformat(str(value).strip())
        except ValueError:
            return "text"
        return "time"
    if math.isnan(number):
        return None
    is_exact = abs(number) <= columns_flip.EXACT or columns_flip.whole_number(value) is not None
    return "integer" if number.is_integer() and is_exact else "number"


def infer_column(pieces: Sequence[Any], name: str, separator: str | None = None) -> tuple[bool, str, str]:
    """The first rows of a column, in pieces -> whether its rows are lists, the value type of what they hold, and why:
    the same for a csv, a parquet file and a pandas frame of one table."""
    splitter = MultivaluedField(name=name, separator=separator)
    elements: dict[Any, None] = {}
    num_rows, has_lists, has_scalars = 0, False, False
    for piece in pieces:
        piece = piece[: BATCH_SIZE - num_rows]
        num_rows += len(piece)
        in_arrow = columns_flip.arrow_lists(piece, name)
        if in_arrow is not None:
            has_lists |= piece.null_count < len(piece)
            elements |= dict.fromkeys(in_arrow[0].values)
            continue
        values = () if columns_flip.is_arrow(piece) else columns_flip.as_list(piece)
        lists = [value for value in values if columns_flip.is_container(value)]
        if any(isinstance(value, Mapping) for value in lists):
            return False, "text", "not one value"
        if lists:
            scalars: Sequence[Any] = [value for value in values if not columns_flip.is_container(value)]
        else:
            scalars = columns_flip.code_scalars(piece, name).values
        has_lists |= bool(lists)
        has_scalars |= any(columns_flip.canonical_value(value) is not None for value in scalars)
        if lists or separator is not None:
            scalars = [element for value in (*lists, *scalars) for element in splitter.split(value)]
        elements |= dict.fromkeys(columns_flip.plain_values(scalars, name))
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


def _check_names(argument: str, asked: Iterable[str], names: Sequence[str], owner: str = "the table has") -> None:
    unknown = [repr(name) for name in asked if name not in names]
    if unknown:
        raise ValueError(f"{argument} has {', '.join(unknown)}, and {owner} {', '.join(names)}")


def choose_fields(
    heads: Sequence[Mapping[str, Any]],
    fields: Sequence[str] | None,
    label: str,
    exclude: Sequence[str],
    field_options: Mapping[str, Mapping[str, Any]] | None,
    classes: Mapping[str, Sequence[str]] | None = None,
    statistics: str | None = None,
) -> list[Field]:
    """The schema of a table, of which `heads` are the first batches: named fields (or all columns but the label and
    `exclude`), type and kind of each from `field_options`, from its values or the names of its `classes`. What was
    decided, and why, is logged."""
    if isinstance(fields, str):
        raise TypeError(f"fields={fields!r} is one string: pass a list of column names, [{fields!r}]")
    options, names, are_named = field_options or {}, list(heads[0]), fields is not None
    if label != "label":  # misspelt, and the real one would be a field
        _check_names("label", [label], names)
    if fields is None:
        no_fields = {name for name in names if name in exclude or _INDEX.fullmatch(name)}
        fields = [name for name in names if name != label and (name not in no_fields or name in options)]
    _check_names("fields", fields, names)
    _check_names("exclude", set(exclude) - set(NO_FIELDS), names)
    _check_names("field_options", options, fields, "the fields are")
    if label in fields:
        raise ValueError(f"the label column {label!r} cannot be a field: the model would read the answer")
    if statistics not in (None, "auto"):
        raise ValueError(f"statistics={statistics!r} is not 'auto': those of one field are an option of the field")
    chosen: list[Field] = []
    of_chosen: list[Field] = []
    said = []
    for name in fields:
        pieces = [head[name] for head in heads if name in head]
        asked = options.get(name, {})
        kind, options_of_kind, why = _choose_kind(name, pieces, asked, (classes or {}).get(name))
        if kind == "datetime" and not asked and not are_named:
            example = f'{{{name!r}: {{"kind": "datetime", "parts": ["hour", "weekday", "age"]}}}}'
            said.append(f"{name}: {why}, left out; for its parts field_options={example}")
            continue
        why += f", {kind}{' as asked' if 'kind' in asked else ''}"
        has_ids = kind == "categorical" and options_of_kind.get("view") != "text"
        if statistics and has_ids and "statistics" not in options_of_kind and _has_many_values(name, pieces):
            options_of_kind["statistics"] = STATISTICS
            why += f" with {' and '.join(STATISTICS)}"
        columns, of_column = expand_field(name, {"kind": kind, **options_of_kind})
        chosen += columns
        of_chosen += of_column
        said.append(f"{name}: {why}")
    left_out = [name for name in names if name not in fields and name != label]
    if left_out:
        said.append(f"no fields: {', '.join(left_out)}")
    logger.warning("the fields, by what their values are (field_options says otherwise):\n  " + "\n  ".join(said))
    chosen += of_chosen
    if not chosen:
        raise ValueError(f"no field is left: the table has {', '.join(names) or 'no columns'}")
    (name, number), *_ = collections.Counter(field.name for field in chosen).most_common(1)
    if number > 1:
        raise ValueError(f"there are two fields {name!r}, named or made of a column: rename one, or name it once")
    return chosen


def _has_many_values(name: str, pieces: Sequence[Any]) -> bool:
    """Whether statistics of its values are worth their fields: those of MovieLens-100K, of 795 to 1,652 values, gave
    nothing, and those of BookCrossing, of 2,016 to 45,490 values, 0.01 of AUC."""
    return len({value for piece in pieces for value in columns_flip.code_scalars(piece, name).values}) > 2_000


def _choose_kind(
    name: str, pieces: Sequence[Any], options: Mapping[str, Any], classes: Sequence[str] | None
) -> tuple[str, dict[str, Any], str]:
    """The first rows of a column, and what was asked -> the kind of its field, options for it, and why, in words."""
    options = dict(options)
    is_list, value_type, why = infer_column(pieces, name, options.get("separator"))
    is_asked = "type" in options
    if is_asked:
        value_type, why = options.pop("type"), "as asked"
    kind = "multivalued" if is_list else KIND_OF_TYPE.get(value_type, "categorical")
    for option in options:  # statistics is the last word: it has buckets, too
        asked = KIND_OF_OPTION.get(option, kind)
        if "statistics" not in options and not (asked == "categorical" and is_list):
            kind = asked
    if kind == "datetime" and set(options) == {"view"}:  # the date itself, as a text reads it
        kind = "categorical"
    kind = options.pop("kind", kind)
    types = {"numeric": ("integer", "number"), "datetime": ("time",)}.get(kind, columns_flip.VALUE_TYPES)
    if is_asked and value_type not in types:
        raise ValueError(f"field {name!r}: kind={kind!r} reads {' or '.join(types)}, not type={value_type!r}")
    if kind in ("categorical", "multivalued"):
        of_type = {"type": value_type} if classes is None else {"type": "text", "classes": classes}
        options = of_type | options
    return kind, options, f"{value_type} ({why})"
