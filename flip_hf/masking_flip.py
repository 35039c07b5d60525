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


def hide_features(feature_ids: Any, hidden: Any, extractor: Any) -> Any:
    """Ids `(..., S)` without the values of the fields that `hidden` `(..., F)` marks, in each row or in all of them:
    a copy, in which pads stay. Arrays, or tensors."""
    slot_fields, sources = np.asarray(extractor.slot_fields), extractor.statistic_sources
    of_slots = hidden[..., beside(hidden, slot_fields)]
    masked = _fill(feature_ids, of_slots & (feature_ids != PAD_FEATURE_ID), MASK_FEATURE_ID)
    for slot in np.flatnonzero(sources[slot_fields] >= 0):  # a statistic of a hidden value gives it away
        field = int(slot_fields[slot])
        masked[..., slot] = _fill(masked[..., slot], hidden[..., int(sources[field])], missing_id(field))
    return masked


def hide_tokens(tokens: Any, hidden: Any, mask_token_id: int | None) -> Any:
    """Tokens, of any shape, with those that `hidden` marks out of sight: a copy. Arrays, or tensors."""
    return _fill(tokens, hidden, HIDDEN if mask_token_id is None else mask_token_id)


def _fill(values: Any, where: Any, fill: int) -> Any:
    if isinstance(values, np.ndarray):
        return np.where(where, fill, values).astype(values.dtype, copy=False)
    return values.masked_fill(where, fill)


def beside(values: Any, array: np.ndarray) -> Any:
    """An array for work with `values`: beside a tensor it is one on that device, which is not waited for."""
    if isinstance(values, np.ndarray):
        return array
    import torch  # which serving without it never comes to

    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if values.is_cuda else tensor).to(values.device, non_blocking=True)


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
