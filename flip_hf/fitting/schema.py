# SPDX-License-Identifier: Apache-2.0
"""What a column's first values and its options say of its kind: a column -> its fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..columns_flip import BATCH_SIZE, as_list, code_scalars, is_arrow, plain_values
from ..fields_flip import DATE_PARTS, STATISTICS, Field, MultivaluedField, field_from_dict
from ..values_flip import VALUE_TYPES, canonical_value, infer_type, is_container


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
    """
    One column with its options -> its fields, and the statistics of it, which stand after all other fields.

    `kind="datetime"` becomes a field for each of `parts` (the age with `reference`), `statistics=[...]` of a
    categorical field a `StatisticField` for each, with `smoothing` and `num_buckets`.
    """
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
