# SPDX-License-Identifier: Apache-2.0
"""A table -> chunks, and encoded rows -> batches of rows of similar length, as arrays: for whoever scores them, with
torch or without.

Letters: B rows, S slots, L tokens of all rows together, T tokens of the longest row of a batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..columns_flip import as_columns, select_columns
from ..masking_flip import pad_rows
from ..text_encoding_flip import EncodedRows
from .rows import raw_names


# batches of a table that are encoded, and put in order of length, together
BATCHES_OF_TABLE = 32


def chunks_of_table(rows: Any, fields: Iterable[Any], size: int) -> Iterator[Any]:
    """Tables of at most `size` rows, one after another; none of an empty list."""
    if hasattr(rows, "with_format") and hasattr(rows, "select"):  # a datasets.Dataset, larger than memory perhaps
        for start in range(0, len(rows), size):
            yield rows.select(range(start, min(start + size, len(rows))))
    elif not isinstance(rows, Sequence) or len(rows):  # an empty list has no columns
        names = raw_names(fields)
        of_lists = raw_names(field for field in fields if field.kind == "multivalued")
        columns = select_columns(as_columns(rows), names, of_lists)
        for start in range(0, len(columns[0]), size):
            parts = (getattr(column, "iloc", column)[start : start + size] for column in columns)
            yield dict(zip(names, parts, strict=True))


def order_of_lengths(encoded: EncodedRows) -> np.ndarray:
    """Numbers of the rows `(B,)`, by the length of their text; rows of one length stay in their order."""
    if encoded.lengths is None:
        return np.arange(len(encoded.feature_ids))
    return np.argsort(encoded.lengths, kind="stable")


def batches(
    encoded: EncodedRows, order: np.ndarray, mode: str, encoder: Any, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """What a model of a mode reads of rows number `order`, so many at a time: `feature_ids` `(batch, S)`, `input_ids`
    and `attention_mask` `(batch, T)`, int64. The `encoder` is that of the rows."""
    feature_ids = encoded.feature_ids[order].astype(np.int64)  # (B, S)
    if mode != "tabular":
        lengths = encoded.lengths[order]
        ends, starts = np.cumsum(lengths), (np.cumsum(encoded.lengths) - encoded.lengths)[order]
        tokens = encoded.tokens[np.repeat(starts - (ends - lengths), lengths) + np.arange(lengths.sum())]  # (L,)
    for first in range(0, len(feature_ids), batch_size):
        rows = slice(first, first + batch_size)
        batch = {} if mode == "text" else {"feature_ids": feature_ids[rows]}
        if mode != "tabular":
            part = tokens[ends[first] - lengths[first] : ends[rows][-1]]
            batch["input_ids"], batch["attention_mask"] = pad_rows(part, lengths[rows], encoder.pad_token_id)
        yield batch
