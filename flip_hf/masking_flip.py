# SPDX-License-Identifier: Apache-2.0
"""Reserved ids; and where a field is hidden, in a row's ids and in its text, and where rows are padded: the only place
that does either.

Hidden ids are the mask id, statistics of a hidden value are missing, and hidden tokens the tokenizer's mask token. A
tokenizer without one (a decoder's) has nothing to write there: such tokens are `HIDDEN`, and padding leaves them out
of the attention mask, so that nobody reads them.

Letters: B rows, F fields, S slots (columns of `feature_ids`), L tokens of all rows end to end, T of the longest row.
"""

from typing import Any

import numpy as np


# Reserved feature ids: two that mean the same in every FLIP model, then two of each field.
PAD_FEATURE_ID = 0
MASK_FEATURE_ID = 1

# in place of a token that is hidden where there is no mask token
HIDDEN = -1


def unseen_id(field: Any) -> Any:
    """Id of a value of field number `field` (or of several: an array) that the training rows do not have."""
    return 2 + 2 * field


def missing_id(field: Any) -> Any:
    """Id of a hole in field number `field`."""
    return 3 + 2 * field


def num_reserved_features(num_fields: int) -> int:
    """Ids below this one are no real features: pad, mask, and two per field."""
    return unseen_id(num_fields)


def hide_features(feature_ids: np.ndarray, hidden: np.ndarray, extractor: Any) -> np.ndarray:
    """Ids `(..., S)` without the values of the fields that `hidden` `(..., F)` marks, in each row or in all of them:
    a copy, in which pads stay."""
    slot_fields, sources = np.asarray(extractor.slot_fields), extractor.statistic_sources
    masked = np.where(hidden[..., slot_fields] & (feature_ids != PAD_FEATURE_ID), MASK_FEATURE_ID, feature_ids)
    missing = np.array([extractor.missing_id(field) for field in slot_fields])
    source = sources[slot_fields]  # (S,)
    gives_away = hidden[..., source] & (source >= 0)  # a statistic of a hidden value
    return np.where(gives_away, missing, masked).astype(feature_ids.dtype, copy=False)


def hide_tokens(tokens: np.ndarray, hidden: np.ndarray, mask_token_id: int | None) -> np.ndarray:
    """Tokens, of any shape, with those that `hidden` marks out of sight: a copy."""
    return np.where(hidden, HIDDEN if mask_token_id is None else mask_token_id, tokens).astype(
        tokens.dtype, copy=False
    )


def pad_rows(
    flat: np.ndarray, lengths: np.ndarray, fill: int, width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows end to end `(L,)`, of `lengths` `(B,)`, -> int64 `(B, T)`, padded at the right with `fill`, and their
    attention mask `(B, T)`, int64. T is the longest row, or `width` if that is more. What is `HIDDEN` is a pad."""
    is_real = np.arange(max(int(lengths.max(initial=0)), width or 0)) < lengths[:, None]
    padded = np.full(is_real.shape, fill, np.int64)
    padded[is_real] = flat
    is_read = is_real & (padded != HIDDEN)
    return np.where(is_read, padded, fill), is_read.astype(np.int64)
