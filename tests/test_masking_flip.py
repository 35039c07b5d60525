# SPDX-License-Identifier: Apache-2.0
"""Hidden values leave no trace in ids and text, also where there is no mask token."""

from types import SimpleNamespace

import numpy as np
import pytest

from flip_hf.masking_flip import hide_features, hide_tokens, missing_id, pad_rows


# a, its statistic, and a list of two slots
EXTRACTOR = SimpleNamespace(slot_fields=[0, 1, 2, 2], statistic_sources=np.array([-1, 0, -1]), missing_id=missing_id)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_values_of_a_hidden_field_are_masked_and_its_statistics_missing_and_pads_stay(dtype):
    ids = np.array([[8, 9, 10, 11], [8, 9, 12, 0]], dtype)
    before = ids.copy()
    hidden = hide_features(ids, np.array([[True, False, False], [False, False, True]]), EXTRACTOR)
    assert hidden.tolist() == [[1, 5, 10, 11], [8, 9, 1, 0]] and hidden.dtype == dtype
    assert hide_features(ids, np.array([True, True, True]), EXTRACTOR).tolist() == [[1, 5, 1, 1], [1, 5, 1, 0]]
    assert np.array_equal(ids, before)


def test_tokens_without_a_mask_token_are_left_out_of_the_attention_as_pads_are():
    tokens, hidden = np.array([5, 6, 7, 8]), np.array([False, True, False, False])
    for mask_token_id, expected, attention in (
        (4, [[5, 4, 7, 3], [8, 3, 3, 3]], [[1, 1, 1, 0], [1, 0, 0, 0]]),
        (None, [[5, 3, 7, 3], [8, 3, 3, 3]], [[1, 0, 1, 0], [1, 0, 0, 0]]),
    ):
        padded, mask = pad_rows(hide_tokens(tokens, hidden, mask_token_id), np.array([3, 1]), fill=3, width=4)
        assert padded.tolist() == expected and mask.tolist() == attention and padded.dtype == mask.dtype == np.int64
    padded, mask = pad_rows(tokens, np.array([1, 0, 3]), fill=0)
    assert padded.tolist() == [[5, 0, 0], [0, 0, 0], [6, 7, 8]] and mask.sum() == 4
    assert pad_rows(tokens[:0], np.array([], np.int64), fill=0)[0].shape == (0, 0)
