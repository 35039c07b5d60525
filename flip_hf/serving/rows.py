# SPDX-License-Identifier: Apache-2.0
"""The rows that a model is asked about: which columns they have, one user and n candidate items joined, an example."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..columns_flip import CodedColumn, as_columns, is_column


def raw_names(fields: Iterable[Any]) -> list[str]:
    """Of the columns that the fields read."""
    return list(dict.fromkeys(name for field in fields for name in field.columns))


def _table(items: Any) -> Mapping[str, Any]:
    is_one = isinstance(items, Mapping) and not all(map(is_column, items.values()))  # and its lists are values
    return as_columns([items] if is_one else items)


def join(extractor: Any, user_row: Mapping[str, Any], items: Any) -> dict[str, Any]:
    """The columns that the fields read, with the user's value n times. Raises `ValueError` if one is on both sides."""
    table = _table(items)
    needed = raw_names(extractor.fields)
    joined = {name: table[name] for name in needed if name in table}
    of_user = {name: user_row[name] for name in needed if name in user_row}
    twice = [name for name in joined if name in of_user]
    if twice:
        raise ValueError(f"{', '.join(map(repr, twice))}: in the user's row and among the items, leave out one")
    if not joined:
        raise ValueError(f"the items have no column of any field, only {', '.join(map(str, table))}: nothing to rank")
    num_items = len(next(iter(joined.values())))
    return joined | {name: [value] * num_items for name, value in of_user.items()}


def columns_of_texts(extractor: Any, items: Any) -> list[CodedColumn]:
    """Items -> columns of all fields, those that only the ID tower reads empty. Raises `ValueError` if the text says
    something that the items do not have."""
    table = _table(items)
    fields = [extractor.fields[index] for index in extractor.text_fields]
    absent = [name for name in raw_names(fields) if name not in table]
    if absent:
        raise ValueError(
            f"the text also says {', '.join(map(repr, absent))}, which the items do not have: no text is theirs "
            'alone. Fit with field_options={...: {"view": "tabular"}} for what belongs to the user'
        )
    of_others = {name: None for name in raw_names(extractor.fields) if name not in raw_names(fields)}
    return extractor.select_columns(join(extractor, of_others, {name: table[name] for name in raw_names(fields)}))


def distinct(columns: list[CodedColumn]) -> tuple[list[CodedColumn], np.ndarray]:
    """Columns of n rows -> of the distinct rows, in the order of their first, and which one each row is `(n,)`."""
    numbers = np.zeros(columns[0].num_rows, np.int64)  # of the combination of the values so far
    for column in columns:
        _, numbers = np.unique(numbers * len(column.values) + column.indices, return_inverse=True)
    _, first, numbers = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return [CodedColumn(column.values, column.indices[first[order]]) for column in columns], np.argsort(order)[numbers]


def example_row(extractor: Any) -> dict[str, Any]:
    """A row as the model reads it: of each column the value that most training rows have, or a number or a time that
    the training rows could have; `None` where nothing was kept (of text alone, of hashed values, of rare ones)."""
    vocabulary, row = extractor.vocabulary, dict.fromkeys(raw_names(extractor.fields))
    for index, field in enumerate(extractor.fields):
        value: Any = None
        if field.kind in ("date_part", "age"):
            value = time.strftime(field.format or "%Y-%m-%d", time.gmtime(1.7e9))
        elif field.kind == "numeric" and field.num_slots:
            edges = vocabulary.edges(index)
            value = float(edges[len(edges) // 2]) if len(edges) else 0.0
        elif field.has_vocabulary and field.num_slots:
            features = np.flatnonzero(vocabulary["feature_fields"] == index)
            features = features[features >= vocabulary.num_reserved]
            if len(features):
                value = vocabulary.value(int(features[vocabulary["feature_counts"][features].argmax()]))
                value = [value] if field.kind == "multivalued" and field.separator is None else value
        row |= {name: value for name in field.columns if row[name] is None}
    return row
