# SPDX-License-Identifier: Apache-2.0
"""Do the rows that a model is asked about (F fields) look like those it was trained on? Unseen and missing values."""

import functools
import logging
import threading
from typing import Any

import numpy as np

from ..masking_flip import PAD_FEATURE_ID, unseen_id


logger = logging.getLogger(__name__)
MIN_ROWS = 100  # fewer say too little of a share


def count_occurrences(extractor: Any, feature_ids: Any) -> np.ndarray:
    """`(B, S)` -> for each field `(F, 4)`, int64: rows, values (a missing one included), and how many of them are
    unseen and missing. Zeros for a field without ids."""
    ids, slots = np.asarray(feature_ids), np.asarray(extractor.slot_fields, np.int64)
    is_reserved = (ids >= unseen_id(0)) & (ids < extractor.num_reserved_features)
    reserved = np.bincount(ids[is_reserved] - unseen_id(0), minlength=2 * extractor.num_fields)
    values = np.bincount(slots, (ids != PAD_FEATURE_ID).sum(0), extractor.num_fields).astype(np.int64)
    rows = np.where(np.bincount(slots, minlength=extractor.num_fields) > 0, len(ids), 0)
    return np.column_stack([rows, values, reserved.reshape(-1, 2)])


def shares_of(occurrences: np.ndarray) -> np.ndarray:
    """What `count_occurrences` gives -> shares `(F, 2)`: of values that are unseen, of rows that are missing."""
    return occurrences[:, 2:] / np.maximum(occurrences[:, [1, 0]], 1)


def rates(extractor: Any, feature_ids: Any) -> dict[str, dict[str, float]]:
    """[`FlipFeatureExtractor.rates`]."""
    shares = shares_of(count_occurrences(extractor, feature_ids)).tolist()
    with_ids = dict.fromkeys(extractor.slot_fields)
    return {extractor.field_names[f]: dict(zip(("unseen", "missing"), shares[f], strict=True)) for f in with_ids}


@functools.lru_cache(maxsize=1)  # `rank` asks in every call, and millions of features take a while
def expected_occurrences(vocabulary: Any, min_frequency: int) -> np.ndarray:
    """What `count_occurrences` of new rows like the training rows would give `(F, 4)`: a value is unseen if the
    training rows *without its own* had it too rarely (Good, 1953: so many are new as occur once)."""
    first, num_fields = vocabulary.num_reserved, len(vocabulary.fields)
    reserved = vocabulary["feature_counts"][unseen_id(0) : first].reshape(-1, 2).copy()  # unseen, missing
    counts, fields = vocabulary["feature_counts"][first:], vocabulary["feature_fields"][first:]
    values = (reserved.sum(1) + np.bincount(fields, counts, num_fields)).astype(np.int64)
    # a bucket, of hashes or of numbers, is there whatever rows it had
    least = [field.has_vocabulary and (field.min_frequency or min_frequency) for field in vocabulary.fields]
    is_rarest = counts == np.array(least, np.int64)[fields]
    reserved[:, 0] += np.bincount(fields, counts * is_rarest, num_fields).astype(np.int64)
    # rows of lists are not counted: as many as the other fields have, 0 if there are none
    is_list = np.array([field.kind == "multivalued" for field in vocabulary.fields])
    rows = np.where(is_list, values[~is_list].max(initial=0), values)
    return np.column_stack([rows, values, reserved])


def is_far(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Occurrences `(F, 4)` of some rows, and the expected ones -> bool `(F, 2)`: where the share of unseen values is
    higher, or that of missing ones another, by more than 0.1 and by five standard errors: once in a million by chance.
    """
    shares, usual = shares_of(found), shares_of(expected)
    difference = shares - usual
    difference[:, 1] = np.abs(difference[:, 1])  # training rows themselves have fewer unseen values
    variances = np.maximum(shares * (1 - shares), usual * (1 - usual))
    # the elements of a list are no rows of their own
    errors = np.sqrt(variances * (1 / np.maximum(found[:, :1], 1) + 1 / np.maximum(expected[:, 1:2], 1)))
    is_known = (found[:, :1] > 0) & (expected[:, [1, 0]] > 0)
    return is_known & (difference > np.maximum(0.1, 5.0 * errors))


class RateWatch:
    """Warns, once per field, of rows that are not like the training rows: of each 100 that came together over calls.
    Safe to share between threads; a copy starts anew."""

    def __init__(self, extractor: Any):
        self.extractor = extractor
        self._lock = threading.Lock()
        self._recent = np.zeros((extractor.num_fields, 4), np.int64)
        # what is said of a statistic is said of its source
        self._said = set(np.flatnonzero(extractor.statistic_sources >= 0).tolist())

    def __reduce__(self) -> Any:
        return RateWatch, (self.extractor,)

    def _expected(self) -> np.ndarray:
        return expected_occurrences(self.extractor.vocabulary, self.extractor.min_frequency)

    def add(self, occurrences: np.ndarray) -> None:
        with self._lock:
            recent = self._recent + occurrences
            is_due = recent[:, :1] >= MIN_ROWS
            self._recent = np.where(is_due, 0, recent)
            if not is_due.any():
                return
            expected = self._expected()
            is_new = is_far(recent, expected) & is_due
            fields = [field for field in np.flatnonzero(is_new.any(1)).tolist() if field not in self._said]
            self._said.update(fields)
        for field in fields:
            kind = int(is_new[field].argmax())
            share, usual = (shares_of(counts)[field, kind] for counts in (recent, expected))
            logger.warning(
                f"field {self.extractor.field_names[field]!r}: {share:.1%} are {('unseen', 'missing')[kind]} in the "
                f"last {recent[field, 0]:,} rows, {usual:.1%} in rows like those of the training: is the column spelt "
                "as it was there? (said once per field)"
            )

    def rates(self, occurrences: np.ndarray) -> dict[str, dict[str, float]]:
        """For each field with ids its shares, and the expected ones (nan where training rows do not say)."""
        names, expected = ("unseen", "missing", "expected_unseen", "expected_missing"), self._expected()
        usual = np.where(expected[:, [1, 0]] > 0, shares_of(expected), np.nan)
        shares = np.hstack([shares_of(occurrences), usual]).tolist()
        with_ids = sorted(set(self.extractor.slot_fields))
        return {self.extractor.field_names[field]: dict(zip(names, shares[field], strict=True)) for field in with_ids}
