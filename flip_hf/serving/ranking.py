# SPDX-License-Identifier: Apache-2.0
"""One user, many candidate items: which come first.

Letters: n candidates, F fields, k of them shown.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..columns_flip import CodedColumn, as_columns, as_list, is_column, select_columns, with_class_names
from ..fields_flip import MultivaluedField
from .rates import RateWatch
from .scoring import as_stream, check_click_model, score


class Ranking(NamedTuple):
    """
    Args:
        indices (`np.ndarray` of shape `(k,)`, int64): rows of the items, the best first.
        probabilities (`np.ndarray` of shape `(k,)`, float64): of a click on each, calibrated like the pipeline's.
    """

    indices: np.ndarray
    probabilities: np.ndarray


def rank(
    model: Any,
    processor: Any,
    user_row: Mapping[str, Any],
    items: Any,
    top_k: int | None = None,
    batch_size: int = 256,
    watch: RateWatch | None = None,
) -> Ranking:
    """
    Ranks items for one user, as the pipeline would score the user's row joined to each item's.

    Each side is read once: the user's values are looked up for one row, each item's once per distinct value; sentences
    are put together from the processor's stored pieces, and candidates that are equal in all fields are computed once.

    Args:
        model ([`FlipForCTR`]): a finetuned model.
        processor ([`FlipProcessor`]): the model's own.
        user_row (`dict`, or another form of one row): one value for each field of the user (and of the context).
        items: a table of candidates, or a stream of them, in any form that the pipeline takes, with the other fields.
            Its order is what `indices` count. Columns that are no fields are not read.
        top_k (`int`, *optional*): how many to return; default: all.
        batch_size (`int`): rows at a time.
        watch ([`RateWatch`], *optional*): what `pipeline.rank` has to warn once per field of unseen and missing
            values, those of the user counting as one row. Without it every call warns, of a hundred items or more.

    Returns:
        [`Ranking`]: `indices`, the best first (equally good ones in the order of the items), and `probabilities`.

    Raises:
        ValueError: if a field stands on both sides or on neither, naming it; if `top_k` is less than 1, `user_row`
            is not one row, or a logit is not finite.
        TypeError: for a model without click probabilities, or rows in no such form.

    Example:
        ```python
        best = flip_hf.rank(model, processor, {"user_id": "u7", "hour": 20}, items, top_k=10)
        print(items.select(best.indices)["title"])
        ```
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} has to be 1 or more")
    check_click_model(model, processor)
    extractor = processor.feature_extractor
    user_row, stream = _one_row(user_row), as_stream(items)
    if stream is not None:
        features, items = getattr(items, "features", None), list(stream)
        items = with_class_names(items, features) if items else items
    if isinstance(items, Sequence) and not len(items):  # without columns
        return Ranking(np.zeros(0, np.int64), np.zeros(0))
    columns = join_columns(extractor, user_row, items)
    columns, candidate = _distinct(columns)
    encoded = processor.encode_columns(columns, return_text=model.config.mode != "tabular")
    occurrences = extractor.occurrences(encoded.feature_ids[candidate])
    of_user = [all(name in user_row for name in field.columns) for field in extractor.fields]
    occurrences[of_user] = extractor.occurrences(encoded.feature_ids[:1])[of_user]
    (watch or RateWatch(extractor)).add(occurrences)
    # one call, in the order of the items, whatever the lengths: ties are settled below
    logits = score(model, processor, encoded, batch_size).logits
    probabilities = model.predict_probabilities(logits).numpy()[candidate]
    # by logits: an isotonic calibration makes ties of what the model tells apart
    indices = np.argsort(-logits.numpy()[candidate], kind="stable")[:top_k]
    return Ranking(indices, probabilities[indices])


def _one_row(row: Any) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    columns = as_columns(row)
    if any(not is_column(column) for column in columns.values()):  # a row with lists
        return columns
    if {len(column) for column in columns.values()} != {1}:
        raise ValueError("user_row is not one row: pass a dict of one value for each field of the user")
    return {name: as_list(column)[0] for name, column in columns.items()}


def join_columns(extractor: Any, user_row: Mapping[str, Any], items: Any) -> list[CodedColumn]:
    """
    The coded column of each field, of n rows, the user's having one value each.

    Raises:
        ValueError: if a column that a field reads is on both sides or on neither.
    """
    fields, table = extractor.fields, as_columns(items)
    needed = dict.fromkeys(name for field in fields for name in field.columns)
    twice = [name for name in needed if name in user_row and name in table]
    if twice:
        raise ValueError(
            f"{', '.join(map(repr, twice))} stands in the user's row and among the items' columns: leave it out on "
            "one side"
        )
    absent = [name for name in needed if name not in user_row and name not in table]
    if absent:
        raise ValueError(
            f"no column for field {', '.join(map(repr, absent))}: the user's row has {', '.join(map(str, user_row))}, "
            f"the items have {', '.join(map(str, table))}. A value may be missing (None), a column may not"
        )
    of_items = [name for name in needed if name in table]
    if not of_items:
        raise ValueError("the items have no column of any field: there is nothing to rank by")
    of_lists = [name for field in fields if isinstance(field, MultivaluedField) for name in field.columns]
    raw = dict(zip(of_items, select_columns(table, of_items, of_lists), strict=True))
    num_items = len(raw[of_items[0]])
    coded: dict[tuple, CodedColumn] = {}
    for field in fields:
        if field.coding in coded:
            continue
        codes = functools.partial(extractor.known_by_number, field.name)
        if not any(name in raw for name in field.columns):
            values = field.code([[user_row[name]] for name in field.columns], codes).values
            coded[field.coding] = CodedColumn(values, np.zeros(num_items, np.int64))
        else:  # a field of two columns may take one from each side
            sources = [raw[name] if name in raw else [user_row[name]] * num_items for name in field.columns]
            coded[field.coding] = field.code(sources, codes)
    return [coded[field.coding] for field in fields]


def _distinct(columns: list[CodedColumn]) -> tuple[list[CodedColumn], np.ndarray]:
    """Columns of n rows -> of the distinct rows, in the order of their first, and which one each row is `(n,)`."""
    numbers = np.zeros(columns[0].num_rows, np.int64)  # of the combination of the values so far
    for column in columns:
        if len(column.values) > 1:
            _, numbers = np.unique(numbers * len(column.values) + column.indices, return_inverse=True)
    _, first, candidate = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    if len(first) == len(numbers):
        return columns, np.arange(len(numbers))
    kept = first[order]
    return [CodedColumn(column.values, column.indices[kept]) for column in columns], place[candidate]


__all__ = ["Ranking", "join_columns", "rank"]
