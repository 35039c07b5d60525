# SPDX-License-Identifier: Apache-2.0
"""A table -> chunks, and encoded rows -> batches of rows of similar length, as arrays, and what has to be said of
their logits: for whoever scores them, with torch or without.

Letters: B rows, S slots, L tokens of all rows together, T tokens of the longest row of a batch.
"""

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..columns_flip import as_columns, select_columns, with_class_names
from ..masking_flip import pad_rows
from ..text_encoding_flip import EncodedRows
from .rows import raw_names


# batches that are encoded, and put in order of length, together; a stream is read ahead so far
BATCHES_OF_TABLE, BATCHES_OF_STREAM = 32, 8


def check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} has to be 1 or more")


def chunks(rows: Any, fields: Iterable[Any], batch_size: int, stream: Iterator[Any] | None = None) -> Iterator[Any]:
    """Tables of at most so many batches, one after another; none of an empty list. `stream` gives the rows of one that
    come one by one: keys that rows of it had before are missing in rows that lack them."""
    check_batch_size(batch_size)
    size = batch_size * BATCHES_OF_TABLE
    if stream is not None:
        keys: dict[str, None] = {}
        while chunk := list(itertools.islice(stream, batch_size * BATCHES_OF_STREAM)):
            table = with_class_names(chunk, getattr(rows, "features", None))
            keys |= dict.fromkeys(table)
            yield {name: table.get(name, [None] * len(chunk)) for name in keys}
    elif hasattr(rows, "with_format") and hasattr(rows, "select"):  # a datasets.Dataset, larger than memory perhaps
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


def check_finite(is_finite: np.ndarray, name: str = "logits", remedy: str = "") -> None:
    """Whether a figure of each row is `(B,)`; raises `ValueError` if one is not."""
    wrong = int((~is_finite).sum())
    if wrong:
        of_them = f"{name} of {wrong} of {len(is_finite)} rows"
        raise ValueError(f"{of_them} are not finite: a weight of the model is not{remedy}")


def warn_if_not_calibrated(calibration: dict[str, Any] | None, mode: str) -> None:
    """Of a calibration that was fitted on the logits of another mode."""
    if calibration is not None and calibration.get("mode", mode) != mode:
        problem = f'the calibration was fitted in mode "{calibration["mode"]}" and is left aside in mode "{mode}"'
        warnings.warn(f"{problem}: fit one for this mode", stacklevel=3)
