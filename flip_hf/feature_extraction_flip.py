# SPDX-License-Identifier: Apache-2.0
"""Rows of a table -> ids of one global feature space, by vocabularies, buckets and statistics of the training rows.

Letters: B rows, F fields, S slots (columns of `feature_ids`), N features, n distinct values, K folds.

Ids never move: 0 pad, 1 mask, then 2 + 2f and 3 + 2f for an unseen and a missing value of field f, then the real
features: those of the first fit field by field, later ones (`extend`) behind them. The fitted state is a file of
arrays that is mapped into memory: a million ids load at once, and processes that load the same file share them. It is
never json and never pickle (a pickled extractor carries a copy of it).
"""

import copy
import hashlib
import itertools
import json
import os
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import logging

from .columns_flip import CodedColumn, as_columns
from .configuration_flip import MASK_FEATURE_ID, PAD_FEATURE_ID, missing_id, num_reserved_features, unseen_id
from .fields_flip import (
    AgeField,
    CategoricalField,
    Field,
    MultivaluedField,
    NumericField,
    StatisticField,
    code_columns,
    field_from_dict,
)
from .pulling_flip import fetch, hub_arguments, workshop
from .values_flip import whole_number


logger = logging.get_logger(__name__)

# columns that are carried along and are no fields unless somebody names them
NO_FIELDS = ("rating", "timestamp")
# folds of the training rows in which a statistic of the label is computed without the rows that read it
NUM_FOLDS = 5
VOCABULARY_NAME = "feature_vocabulary.safetensors"
ARRAYS = {
    "value_bytes": np.uint8,  # of all real features, end to end: values, names of buckets
    "value_offsets": np.int64,  # (N - reserved + 1,)
    "sorted_hashes": np.int64,  # of the values of vocabularies, and
    "sorted_ids": np.int32,  # their ids
    "feature_counts": np.int64,  # (N,)
    "feature_fields": np.int32,  # (N,)
    "edges": np.float64,  # of all numeric fields, end to end
    "edge_offsets": np.int64,  # (F + 1,)
    "references": np.float64,  # (F,), the hour that an age is counted to; else nan
    "label_features": np.int32,  # the features that statistics are of, and
    "label_sums": np.int64,  # (features, K, 2), rows and clicks in each fold
    "label_totals": np.int64,  # (F, K, 2), those of all rows, at the source of a statistic
}
# values remembered, so that a value is looked up once and not once per row
_MAX_CACHED_VALUES = 1 << 16
# and no more characters of them, since the values of a field may be whole reviews
_MAX_CACHED_CHARACTERS = 1 << 26

# held by whoever adds to a cache or empties it; readers need none. A fork waits for it: a child that inherited it
# locked would wait for ever
_LOCK = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class FlipFeatureExtractor(FeatureExtractionMixin):
    r"""
    Fitted fields of a table: `extractor(rows)` gives `feature_ids`.

    Build one with [`FlipFeatureExtractor.fit`], [`FlipFeatureExtractor.from_counts`] or
    [`FlipFeatureExtractor.from_pretrained`].

    Attributes:
        fields (`list[Field]`): kind and options of each field, in order.
        field_names (`list[str]`): the fields, in order.
        num_features (`int`): N, reserved ids included.
        feature_counts (`np.ndarray` of shape `(N,)`, int64): how often each feature occurs in the training rows.
        feature_fields (`np.ndarray` of shape `(N,)`, int32): field of each feature, -1 for pad and mask.
        label (`str`): the label column, never a field.
    """

    model_input_names = ["feature_ids"]
    _cached_characters: int
    _num_cached: int
    _label_positions: np.ndarray | None
    _hash_starts: np.ndarray | None
    _field_digests: dict[int, list[str]]

    def __init__(
        self,
        field_specs: Sequence[dict[str, Any]] | None = None,
        label: str = "label",
        min_frequency: int = 1,
        **kwargs: Any,
    ):
        self.fields: list[Field] = [field_from_dict(spec) for spec in field_specs or []]
        self.label = label
        self.min_frequency = min_frequency
        for name in ARRAYS:
            self.__dict__.setdefault(f"_{name}", None)
        self._reset_caches()
        super().__init__(**{key: value for key, value in kwargs.items() if key != "feature_extractor_type"})

    # --- shape ----------------------------------------------------------------------------------------------------

    @property
    def field_specs(self) -> list[dict[str, Any]]:
        """The fields as json: name, kind, num_slots, view, and options that are not at their default."""
        return [field.to_dict() for field in self.fields]

    @property
    def field_names(self) -> list[str]:
        return [field.name for field in self.fields]

    @property
    def num_fields(self) -> int:
        """F."""
        return len(self.fields)

    @property
    def slot_fields(self) -> list[int]:
        """Field index of each of the S columns of `feature_ids`."""
        return [index for index, field in enumerate(self.fields) for _ in range(field.num_slots)]

    @property
    def text_fields(self) -> list[int]:
        """Fields that the text says something of."""
        return [index for index, field in enumerate(self.fields) if field.view != "tabular"]

    @property
    def statistic_sources(self) -> np.ndarray:
        """For each field `(F,)` the field that it is a statistic of, or -1. Whoever hides a field hides these too."""
        names = self.field_names
        sources = [names.index(field.source) if isinstance(field, StatisticField) else -1 for field in self.fields]
        return np.array(sources, np.int64)

    @property
    def has_label_statistics(self) -> bool:
        """Whether training rows have to be encoded out of fold (`out_of_fold=True`)."""
        return any(isinstance(field, StatisticField) for field in self.fields)

    @property
    def num_reserved_features(self) -> int:
        """Real features start here."""
        return num_reserved_features(self.num_fields)

    @property
    def num_features(self) -> int:
        """N, reserved ids included."""
        return len(self.feature_counts)

    @property
    def feature_counts(self) -> np.ndarray:
        return self._array("feature_counts")

    @property
    def feature_fields(self) -> np.ndarray:
        return self._array("feature_fields")

    def unseen_id(self, field: int) -> int:
        """Id of a value of field number `field` that the training rows do not have."""
        return unseen_id(field)

    def missing_id(self, field: int) -> int:
        """Id of a hole in field number `field`."""
        return missing_id(field)

    def _array(self, name: str) -> np.ndarray:
        array = self.__dict__.get(f"_{name}")
        if array is None:
            raise ValueError("this feature extractor is not fitted: use FlipFeatureExtractor.fit(training_rows)")
        return array

    # --- fitting --------------------------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        dataset: Any,
        fields: Sequence[str] | None = None,
        label: str = "label",
        exclude: Sequence[str] = NO_FIELDS,
        min_frequency: int = 1,
        field_options: Mapping[str, Mapping[str, Any]] | None = None,
        checkpoint: str | os.PathLike | None = None,
    ) -> "FlipFeatureExtractor":
        """
        Builds vocabularies, buckets and statistics from training rows, in one pass, and from nothing else.

        Args:
            dataset: training rows: a `Dataset` or a streamed `IterableDataset`, any form that `extractor(rows)` takes,
                or an iterator of such batches.
            fields (`list[str]`, *optional*): the columns to use, in this order; default: all but `label` and
                `exclude`.
            label (`str`): name of the label column.
            exclude (`list[str]`): columns that are no fields unless `fields` or `field_options` names them.
            min_frequency (`int`): values that occur less often are treated as unseen.
            field_options (`dict[str, dict]`, *optional*): for each column that is not to be read as its values say
                (see below) its `type` or `kind` and the options of that kind, as the classes of `fields_flip.py` name
                them; also `statistics=["frequency", "label_mean"]` of a categorical field, and `kind="datetime"` with
                `parts`.
            checkpoint (`str`, *optional*): file that lets a pass that was cut off go on (see
                [`FeatureCounts.count`]).

        Each column has the type that its values have in the first rows, whatever container holds them (`infer_type`):
        without options numbers that are not all whole are numeric, lists multivalued, whole numbers, truths and text
        categorical; columns of dates or times are left out. What was decided, and why, is logged.

        Raises:
            ValueError: if the table is empty, a field is not there or has no value at all, columns differ in length,
                an option does not fit, `min_frequency` is less than 1, or validation and test rows are passed as well.
            TypeError: if a value is a list where a single value is expected, or `fields` is one string.

        Example:
            ```python
            extractor = FlipFeatureExtractor.fit(
                splits["train"],
                field_options={
                    "price": {"kind": "numeric", "num_buckets": 20},
                    "genre": {"kind": "multivalued", "separator": "|"},
                    "user_id": {"statistics": ["frequency", "label_mean"]},
                    "description": {"view": "text"},
                },
            )
            ```
        """
        if min_frequency < 1:
            raise ValueError(f"min_frequency={min_frequency} is less than 1, which keeps every value")
        count = workshop("fitting.counts").FeatureCounts.count
        return cls.from_counts(count(dataset, fields, label, exclude, field_options, checkpoint), min_frequency)

    @classmethod
    def from_counts(cls, counts: Any, min_frequency: int = 1) -> "FlipFeatureExtractor":
        """
        Builds an extractor from [`FeatureCounts`] of training rows, merged from parts perhaps; `counts` stays as it
        is.

        Raises:
            ValueError: if a field has no value in any row.
        """
        specs, arrays = workshop("fitting.building").build(counts, min_frequency)
        extractor = cls(specs, counts.label, min_frequency)
        extractor._set_arrays(**arrays)
        return extractor

    def extend(self, rows: Any) -> dict[str, int]:
        """
        Adds the values of new rows that are unseen so far, with ids behind all others: no id moves.

        Frequencies of values that are known grow by those of the new rows. Buckets, statistics and fields that are
        hashed stay what they are, and so does a vocabulary that its `vocabulary_size` caps. The model has to grow as
        well: `model.resize_feature_embeddings(extractor)`.

        Args:
            rows: new training rows, in any form that `fit` takes; labels are not read.

        Returns:
            For each field that grew the number of its new features.

        Raises:
            ValueError: if a field has no column.
        """
        arrays, grown = workshop("fitting.building").extended(self, rows)
        self._set_arrays(**arrays)
        return grown

    def _set_arrays(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            self.__dict__[f"_{name}"] = array
        self._reset_caches()

    # --- rows -> ids ----------------------------------------------------------------------------------------------

    def __call__(self, rows: Any, out_of_fold: bool = False) -> np.ndarray:
        """
        Args:
            rows: rows in any form that [`as_columns`] takes; columns that are no fields are ignored.
            out_of_fold (`bool`): for the rows the extractor was fitted on: statistics leave out the fold a row is in,
                so that no row reads its own label.

        Returns:
            `np.ndarray` of shape `(batch_size, num_slots)`, int32: never out of range; unseen and missing values have
            ids of their own, and a multivalued field is padded with 0.

        Raises:
            ValueError: if a field has no column.
            TypeError: if a value is a list where a single value is expected.
        """
        return self.encode_columns(self.select_columns(rows), out_of_fold)

    def select_columns(self, rows: Any) -> list[CodedColumn]:
        """The columns of the fields, in order, coded, after checking that they are there and equally long."""
        return code_columns(self.fields, as_columns(rows), codes=self.known_by_number)

    def encode_columns(self, columns: Sequence[CodedColumn], out_of_fold: bool = False) -> np.ndarray:
        """What `select_columns` gives -> ids `(B, S)`, int32."""
        ids = np.empty((columns[0].num_rows, len(self.slot_fields)), np.int32)
        folds = row_folds(self.fields, columns) if out_of_fold and self.has_label_statistics else None
        slot = 0
        for index, (field, column) in enumerate(zip(self.fields, columns, strict=True)):
            if field.num_slots == 0:
                continue
            if isinstance(field, StatisticField):
                of_values = self._statistic_ids(index, field, column.values)  # (n, K + 1)
                ids[:, slot] = of_values[column.indices, NUM_FOLDS if folds is None else folds]
            elif isinstance(field, MultivaluedField):
                ids[:, slot : slot + field.num_slots] = self._list_ids(index, field, column.values)[column.indices]
            else:
                ids[:, slot] = self._ids(index, field, column.values)[column.indices]
            slot += field.num_slots
        return ids

    def _ids(self, index: int, field: Field, values: Sequence[Any]) -> np.ndarray:
        """Distinct values of a field of one slot -> ids `(n,)`."""
        if isinstance(field, NumericField):
            numbers, unreadable = field.numbers(values)
            if isinstance(field, AgeField):
                numbers = field.ages(numbers, self._array("references")[index])
            ids = self._bucket_ids(index, numbers)
            ids[unreadable] = self.unseen_id(index)
            return ids
        assert isinstance(field, CategoricalField)
        if field.hash_buckets:
            return self._hashed_ids(index, field, values)
        return self._lookup(index, values)

    def _list_ids(self, index: int, field: MultivaluedField, values: Sequence[Any]) -> np.ndarray:
        """Distinct rows of values of a multivalued field -> ids `(n, num_slots)`, padded at the end."""
        lists = [field.elements(value) for value in values]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        elements = [element for row in lists for element in row]
        distinct = list(dict.fromkeys(elements))
        if field.hash_buckets:
            of_element = dict(zip(distinct, self._hashed_ids(index, field, distinct).tolist(), strict=True))
        else:
            of_element = dict(zip(distinct, self._lookup(index, distinct).tolist(), strict=True))
        ids = np.full((len(lists), field.num_slots), PAD_FEATURE_ID, np.int32)
        ids[np.arange(field.num_slots) < lengths[:, None]] = [of_element[element] for element in elements]
        ids[lengths == 0, 0] = self.missing_id(index)
        return ids

    def _hashed_ids(self, index: int, field: CategoricalField, values: Sequence[str | None]) -> np.ndarray:
        buckets = hash_buckets(values, field.hash_buckets)
        return np.where(buckets == field.hash_buckets, self.missing_id(index), self._base(index) + buckets)

    def _bucket_ids(self, index: int, numbers: np.ndarray) -> np.ndarray:
        """Numbers -> ids of their buckets, that of a missing value for nan."""
        start, end = self._array("edge_offsets")[index : index + 2]
        buckets = np.searchsorted(self._array("edges")[start:end], numbers, side="right")
        return np.where(np.isnan(numbers), self.missing_id(index), self._base(index) + buckets).astype(np.int32)

    def _base(self, index: int) -> int:
        """First feature of a field whose features are buckets: they follow one another."""
        if index not in self._bases:
            reserved = self.num_reserved_features
            self._bases[index] = reserved + int(np.argmax(self.feature_fields[reserved:] == index))
        return self._bases[index]

    def _statistic_ids(self, index: int, field: StatisticField, values: Sequence[Any]) -> np.ndarray:
        """Distinct values of the source -> ids `(n, K + 1)`, for rows of each fold and for rows of none."""
        source = self.field_names.index(field.source)
        ids = self._ids(source, self.fields[source], values)
        rows, clicks = self._label_sums_of(ids)
        totals = self._array("label_totals")[source]
        buckets = self._bucket_ids(index, statistics(field, rows, clicks, totals))
        buckets[ids == self.missing_id(source)] = self.missing_id(index)
        return buckets

    def _label_sums_of(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features `(n,)` -> rows and clicks in each fold `(n, K)`, 0 for those that training rows do not have."""
        positions = self._label_positions
        if positions is None:
            positions = np.full(self.num_features, -1, np.int64)
            positions[self._array("label_features")] = np.arange(len(self._array("label_features")))
            self._label_positions = positions  # filled, as other threads read it at once
        positions = positions[ids]
        sums = np.where((positions >= 0)[:, None, None], self._array("label_sums")[positions], 0)
        return sums[:, :, 0], sums[:, :, 1]

    def _lookup(self, field: int, values: Sequence[Any]) -> np.ndarray:
        """Distinct values of field number `field` -> their ids `(n,)`."""
        ids = list(map(self._caches[field].get, values))
        positions = [position for position, feature in enumerate(ids) if feature is None]
        if positions:
            new = [values[position] for position in positions]
            found = self._look_up_all(field, new)
            self._remember(field, new, found)
            for position, feature in zip(positions, found, strict=True):
                ids[position] = feature
        return np.array(ids, np.int32)

    def _look_up_all(self, field: int, values: Sequence[Any]) -> list[int]:
        found = iter(self._find(field, [value.encode() for value in values if value is not None]).tolist())
        return [self.missing_id(field) if value is None else next(found) for value in values]

    def _remember(self, field: int, values: Sequence[Any], ids: Sequence[int]) -> None:
        """Puts values into the field's cache. When the caches are full they are emptied, all of them."""
        characters = _characters(values)
        with _LOCK:
            if (
                self._num_cached + len(values) > _MAX_CACHED_VALUES
                or self._cached_characters + characters > _MAX_CACHED_CHARACTERS
            ):
                for cache in self._caches.values():
                    cache.clear()
                self._cached_characters = self._num_cached = 0
                if len(values) > _MAX_CACHED_VALUES or characters > _MAX_CACHED_CHARACTERS:
                    return
            self._caches[field].update(zip(values, ids, strict=True))
            self._num_cached += len(values)
            self._cached_characters += characters

    def known_by_number(self, name: str) -> Mapping[Any, str]:
        """Whole numbers -> the values of a field's vocabulary that are written so, the only ones: "12" -> "00012"."""
        index = self.field_names.index(name)
        spec = self.fields[index]
        if isinstance(spec, StatisticField):
            return self.known_by_number(spec.source)
        known = self._codes.get(index)
        if known is None:
            spelled: dict[str, list[str]] = {}
            if getattr(spec, "has_vocabulary", False):
                for value in self.decode(np.flatnonzero(self.feature_fields == index)[2:]):
                    number = whole_number(value)
                    if number is not None:
                        spelled.setdefault(number, []).append(value)
            known = {number: values[0] for number, values in spelled.items() if len(values) == 1}
            self._codes[index] = known
        return known

    def _find(self, field: int, values: Sequence[bytes]) -> np.ndarray:
        """
        Bytes of distinct values -> ids `(n,)`, int32, by their hashes, and by a comparison of the bytes: values that
        share 64 bits with others are told apart.
        """
        hashes = value_hashes(values, field)
        sorted_hashes, sorted_ids = self._array("sorted_hashes"), self._array("sorted_ids")
        ids = np.full(len(values), self.unseen_id(field), np.int32)
        positions = self._first_positions(hashes)
        left = np.arange(len(values))
        while len(left):
            left = left[positions[left] < len(sorted_hashes)]
            left = left[sorted_hashes[positions[left]] <= hashes[left]]
            equal = left[sorted_hashes[positions[left]] == hashes[left]]
            features = sorted_ids[positions[equal]]
            is_same = self._spell(features, field, [values[number] for number in equal.tolist()])
            ids[equal[is_same]] = features[is_same]
            positions[left] += 1
            left = left[ids[left] == self.unseen_id(field)]
        return ids

    def _first_positions(self, hashes: np.ndarray) -> np.ndarray:
        """
        Where hashes with the same first bits start among the sorted ones `(n,)`. 2 to 4 of those share so many,
        and a step or two in one place of memory are faster than a binary search all over it.
        """
        num_bits = max(len(self._array("sorted_hashes")).bit_length() - 2, 1)
        middle = 1 << (num_bits - 1)
        starts = self._hash_starts
        if starts is None:
            borders = np.arange(-middle, middle) << (64 - num_bits)
            starts = self._hash_starts = np.searchsorted(self._array("sorted_hashes"), borders).astype(np.int32)
        return starts[(hashes >> (64 - num_bits)) + middle]

    def _spell(self, features: np.ndarray, field: int, values: Sequence[bytes]) -> np.ndarray:
        """Which of the features `(n,)` belong to the field and are these values, one for each: bool `(n,)`."""
        numbers = features - self.num_reserved_features
        starts, ends = self._array("value_offsets")[numbers], self._array("value_offsets")[numbers + 1]
        is_same = (self.feature_fields[features] == field) & (ends - starts == np.fromiter(map(len, values), np.int64))
        compared = np.flatnonzero(is_same)
        if len(compared):
            lengths = (ends - starts)[compared]
            firsts = np.cumsum(lengths) - lengths  # of each value, end to end
            own = np.frombuffer(b"".join([values[number] for number in compared.tolist()]), np.uint8)
            theirs = self._array("value_bytes")[np.repeat(starts[compared] - firsts, lengths) + np.arange(len(own))]
            is_same[compared] = np.logical_and.reduceat(own == theirs, firsts)
        return is_same

    def _value_bytes_of(self, feature: int) -> bytes:
        offsets, index = self._array("value_offsets"), feature - self.num_reserved_features
        return self._array("value_bytes")[offsets[index] : offsets[index + 1]].tobytes()

    def decode(self, feature_ids: Any) -> list[str]:
        """Ids -> values, and of buckets their names; reserved ids as `"[PAD]"`, `"[MASK]"`, `"[UNSEEN]"`,
        `"[MISSING]"`."""
        decoded = []
        for feature in np.asarray(feature_ids).reshape(-1).tolist():
            if feature in (PAD_FEATURE_ID, MASK_FEATURE_ID):
                decoded.append("[PAD]" if feature == PAD_FEATURE_ID else "[MASK]")
            elif feature < self.num_reserved_features:
                decoded.append("[MISSING]" if feature % 2 else "[UNSEEN]")
            else:
                decoded.append(self._value_bytes_of(feature).decode())
        return decoded

    def value_text(self, field: int, value: Any) -> str | None:
        """What the text says of a value of field number `field` in what `select_columns` gives; `None` where it is
        missing."""
        spec = self.fields[field]
        if isinstance(spec, AgeField):
            numbers, _ = spec.numbers([value])
            return spec.age_text(float(spec.ages(numbers, self._array("references")[field])[0]))
        return spec.text(value)

    def occurrences(self, feature_ids: Any) -> np.ndarray:
        """`(B, S)` -> for each field `(F, 4)`, int64: rows, values (a missing one included), and how many of them are
        unseen and missing. Zeros for a field without ids."""
        ids = np.asarray(feature_ids)
        is_reserved = (ids >= unseen_id(0)) & (ids < self.num_reserved_features)
        reserved = np.bincount(ids[is_reserved] - unseen_id(0), minlength=2 * self.num_fields)
        slots = np.asarray(self.slot_fields, np.int64)
        values = np.bincount(slots, (ids != PAD_FEATURE_ID).sum(0), self.num_fields).astype(np.int64)
        rows = np.where(np.bincount(slots, minlength=self.num_fields) > 0, len(ids), 0)
        return np.column_stack([rows, values, reserved.reshape(-1, 2)])

    @staticmethod
    def shares_of(occurrences: np.ndarray) -> np.ndarray:
        """What `occurrences` counts -> shares `(F, 2)`: of values that are unseen, of rows that are missing."""
        return occurrences[:, 2:] / np.maximum(occurrences[:, [1, 0]], 1)

    def rates(self, feature_ids: Any) -> dict[str, dict[str, float]]:
        """`(B, S)` -> for each field that has ids the shares of values that are unseen, and of rows that are
        missing."""
        shares = self.shares_of(self.occurrences(feature_ids)).tolist()
        with_ids = set(self.slot_fields)
        return {
            name: {"unseen": shares[field][0], "missing": shares[field][1]}
            for field, name in enumerate(self.field_names)
            if field in with_ids
        }

    # --- state ----------------------------------------------------------------------------------------------------

    def _reset_caches(self) -> None:
        # all of them from the start: no thread adds one while another empties them
        self._caches: dict[int, dict[Any, int]] = {index: {} for index in range(self.num_fields)}
        self._codes: dict[int, dict[Any, str]] = {}
        self._bases: dict[int, int] = {}
        self._label_positions = self._hash_starts = None
        self._cached_characters = self._num_cached = 0
        self._field_digests = {}

    def __getstate__(self) -> dict[str, Any]:
        empty: dict[str, Any] = {
            "_caches": {index: {} for index in range(self.num_fields)},
            "_codes": {},
            "_bases": {},
            "_label_positions": None,
            "_hash_starts": None,
            "_field_digests": {},
        }
        return {**self.__dict__, **empty, "_cached_characters": 0, "_num_cached": 0}

    def without_arrays(self) -> "FlipFeatureExtractor":
        """The same fields, not fitted: for whoever will `load_vocabulary` from a file."""
        other = copy.copy(self)
        other._set_arrays(**dict.fromkeys(ARRAYS))
        return other

    def describe(self, dataset: Any, show_values: bool = True) -> Any:
        """
        What a person should know of a table before training on it, and warnings: `print(extractor.describe(splits))`.

        Args:
            dataset: a table in any form that `fit` takes, or a mapping of splits, of which `"train"` is compared with
                the others.
            show_values (`bool`): examples of values; `False` for data that may not be shown.
        """
        return workshop("analysis.describe").describe_rows(self, dataset, show_values=show_values)

    def digest(self) -> str:
        """Of everything fitted: equal digests give equal ids. Cheap, whatever the number of features."""
        content = hashlib.blake2b(digest_size=16)
        content.update(json.dumps([self.field_specs, self.label, self.min_frequency], sort_keys=True).encode())
        content.update(_checksum({name: self._array(name) for name in ARRAYS}).encode())
        return content.hexdigest()

    def field_digests(self, num_features: int | None = None) -> list[str]:
        """
        For each field a digest of all that decides its ids: options, values and their ids, buckets, label statistics.
        How often values occur is left out.

        Args:
            num_features (`int`, *optional*): leave out features from this id on: what the digests were before
                [`extend`] added those.
        """
        limit = self.num_features if num_features is None else num_features
        if limit in self._field_digests:
            return self._field_digests[limit]
        fields, reserved = self.feature_fields[:limit], self.num_reserved_features
        starts = np.flatnonzero(
            np.diff(fields, prepend=-2)
        )  # features of a field follow one another, but for `extend`
        ends = np.append(starts[1:], limit)

        def by_field(features: np.ndarray) -> list[np.ndarray]:
            """Positions of the features of each field; what is out of range, in a corrupt file, belongs to none."""
            of_feature = np.where((features >= 0) & (features < limit), np.take(fields, features, mode="clip"), -1)
            of_feature = np.clip(of_feature, -1, self.num_fields).astype(np.int16)
            order = np.argsort(of_feature, kind="stable")
            borders = np.searchsorted(of_feature[order], np.arange(self.num_fields + 1))
            return [order[start:end] for start, end in itertools.pairwise(borders)]

        array = self._array
        of_hashes, of_sums = by_field(array("sorted_ids")), by_field(array("label_features"))
        digests = []
        for index, (field, source) in enumerate(zip(self.fields, self.statistic_sources.tolist(), strict=True)):
            content = hashlib.blake2b(json.dumps(field.to_dict(), sort_keys=True).encode(), digest_size=8)
            parts = [fields[:reserved], array("references")[index]]
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
                if start >= reserved and fields[start] == index:
                    offsets = array("value_offsets")[start - reserved : end - reserved + 1]
                    parts += [np.array([start, end]), np.diff(offsets), array("value_bytes")[offsets[0] : offsets[-1]]]
            parts += [array(name)[of_hashes[index]] for name in ("sorted_hashes", "sorted_ids")]
            edges = array("edge_offsets")[index : index + 2]
            parts += [np.diff(edges), array("edges")[edges[0] : edges[1]]]
            if source >= 0:
                parts += [array(name)[of_sums[source]] for name in ("label_features", "label_sums")]
                parts.append(array("label_totals")[source])
            for part in parts:
                content.update(_bytes_of(part))
            digests.append(content.hexdigest())
        self._field_digests[limit] = digests
        return digests

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FlipFeatureExtractor) and self.digest() == other.digest()

    __hash__ = object.__hash__

    def to_dict(self) -> dict[str, Any]:
        """What goes into json: the fields, never a value."""
        output = {
            "feature_extractor_type": type(self).__name__,
            "field_specs": self.field_specs,
            "label": self.label,
            "min_frequency": self.min_frequency,
        }
        if "auto_map" in self.__dict__:
            output["auto_map"] = self.__dict__["auto_map"]
        return output

    def __repr__(self) -> str:
        fitted = f"{self.num_features} features" if self.__dict__.get("_feature_counts") is not None else "not fitted"
        return f"{type(self).__name__}({', '.join(self.field_names)}; {fitted})"

    def save_vocabulary(self, folder: str | os.PathLike) -> str:
        """Writes the arrays to `folder`, by way of a temporary file, so that no crash leaves half of them."""
        path = os.path.join(folder, VOCABULARY_NAME)
        arrays = {name: np.ascontiguousarray(self._array(name)) for name in ARRAYS}
        save_file(arrays, f"{path}.tmp", metadata={"checksum": _checksum(arrays)})
        os.replace(f"{path}.tmp", path)
        return path

    def load_vocabulary(self, path: str | os.PathLike) -> None:
        """
        Maps the arrays of a file into memory.

        Raises:
            ValueError: if the file is cut off, corrupt or another kind of file.
        """
        try:
            with safe_open(path, framework="pt") as file:  # torch's tensors, unlike numpy's, stay mapped
                arrays = {name: file.get_tensor(name).numpy() for name in ARRAYS}
                checksum = (file.metadata() or {}).get("checksum")  # none in files of before
        except SafetensorError as error:
            raise ValueError(
                f"{path} is cut off or no {VOCABULARY_NAME} ({error}): copy or download the folder again"
            ) from error
        if checksum not in (None, _checksum(arrays)):
            raise ValueError(f"{path} is corrupt (its checksum is another): copy or download the folder again")
        if len(arrays["feature_counts"]) < self.num_reserved_features or len(arrays["references"]) != self.num_fields:
            raise ValueError(f"{path} does not belong to the fields {self.field_names}")
        self._set_arrays(**arrays)

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes `preprocessor_config.json` and `feature_vocabulary.safetensors`."""
        os.makedirs(save_directory, exist_ok=True)
        path = self.save_vocabulary(save_directory)
        return [*super().save_pretrained(str(save_directory), push_to_hub=push_to_hub, **kwargs), path]

    def _upload_modified_files(
        self, working_dir: str | os.PathLike, repo_id: str, files_timestamps: dict[str, float], **kwargs: Any
    ) -> Any:
        # the vocabulary is written before transformers looks at the folder, and has to travel with what follows
        files_timestamps.pop(VOCABULARY_NAME, None)
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """
        Loads a fitted extractor from a folder or the Hub; `token`, `revision`, `subfolder`, `cache_dir` and
        `local_files_only` hold for all of its files.

        Raises:
            OSError: if a file is not there.
            ValueError: if the vocabulary is cut off or corrupt.
        """
        where = hub_arguments(str(pretrained_model_name_or_path), kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, **{**kwargs, **where})
        extractor = loaded[0] if isinstance(loaded, tuple) else loaded
        extractor.load_vocabulary(fetch(str(pretrained_model_name_or_path), VOCABULARY_NAME, where))
        return loaded


# bytes of a value that are hashed and compared together with those of all others; longer values are few
MAX_HASHED_BYTES = 64


def value_hashes(values: Sequence[bytes], field: int) -> np.ndarray:
    """
    64 bits of each value of field number `field`, int64 `(n,)`, under which the vocabulary file finds it again: the
    same on every machine, whatever else is hashed with it.
    """
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    num_words = -(-min(int(lengths.max(initial=1)), MAX_HASHED_BYTES) // 8)
    words = np.array(values, f"S{8 * num_words}").view("<u8").reshape(-1, num_words)
    hashes = _mixed(lengths.astype(np.uint64) + np.uint64(field << 32))
    for number in range(num_words):
        longer = np.flatnonzero(lengths > 8 * number)
        hashes[longer] = _mixed(hashes[longer] ^ words[longer, number])
    longer = np.flatnonzero(lengths > MAX_HASHED_BYTES)
    digests = b"".join(hashlib.blake2b(values[number], digest_size=8).digest() for number in longer.tolist())
    hashes[longer] = _mixed(hashes[longer] ^ np.frombuffer(digests, "<u8"))
    return hashes.view(np.int64)


def _mixed(bits: np.ndarray) -> np.ndarray:
    """uint64 `(n,)` -> as many, all of whose bits depend on all bits: what ends a MurmurHash3, public domain."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(33))


def content_hashes(field: Field, values: Sequence[Any]) -> np.ndarray:
    """Distinct values -> uint64 `(n,)`, the same for the same value however it is stored."""
    if isinstance(field, MultivaluedField):
        texts: Iterable[str] = ("\0".join(field.elements(value)) for value in values)
    elif isinstance(field, CategoricalField):
        texts = (text or "" for text in values)
    else:
        numbers, _ = field.numbers(values)  # type: ignore[attr-defined]
        return np.where(np.isnan(numbers), np.nan, numbers + 0.0).view(np.uint64)  # one nan of many
    return np.fromiter((zlib.crc32(text.encode()) for text in texts), np.uint64, len(values))


def row_folds(fields: Sequence[Field], columns: Sequence[CodedColumn]) -> np.ndarray:
    """
    The fold of each row `(B,)`, in [0, K), from what its fields hold: the same row is in the same fold wherever it
    stands, and rows that are alike in every field share one.
    """
    mixed = np.zeros(columns[0].num_rows, np.uint64)
    for number, (field, column) in enumerate(zip(fields, columns, strict=True)):
        if not isinstance(field, StatisticField):
            mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + np.uint64(number + 1)
            mixed ^= content_hashes(field, column.values)[column.indices]
            mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed ^ (mixed >> np.uint64(32))) % np.uint64(NUM_FOLDS)).astype(np.int64)


def hash_buckets(values: Sequence[str | None], num_buckets: int) -> np.ndarray:
    """Values -> int64 bucket in [0, num_buckets), `num_buckets` itself where one is missing."""
    return np.fromiter(
        (num_buckets if value is None else zlib.crc32(value.encode()) % num_buckets for value in values),
        np.int64,
        len(values),
    )


def statistics(field: StatisticField, rows: np.ndarray, clicks: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """
    Rows and clicks of n values in each fold `(n, K)`, and of all rows `(K, 2)` -> the statistic `(n, K + 1)`, as a row
    of each fold reads it, and as a row that was not counted does.
    """
    if field.statistic == "frequency":
        # a training row counts the others: a value that it alone has is as rare as one that is new
        total = rows.sum(1, keepdims=True)
        return np.hstack([np.maximum(total - 1, 0).repeat(NUM_FOLDS, 1), total]).astype(np.float64)
    own = np.hstack([rows, np.zeros((len(rows), 1), np.int64)])
    own_clicks = np.hstack([clicks, np.zeros((len(rows), 1), np.int64)])
    others = rows.sum(1, keepdims=True) - own
    other_clicks = clicks.sum(1, keepdims=True) - own_clicks
    all_rows, all_clicks = totals[:, 0], totals[:, 1]
    prior = (all_clicks.sum() - np.append(all_clicks, 0)) / np.maximum(all_rows.sum() - np.append(all_rows, 0), 1)
    return (other_clicks + field.smoothing * prior) / (others + field.smoothing)


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    content = hashlib.blake2b(digest_size=16)
    for name in ARRAYS:
        content.update(_bytes_of(arrays[name]))
    return content.hexdigest()


def _characters(values: Sequence[Any]) -> int:
    return sum(map(len, [value for value in values if type(value) is str]))


FlipFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")


__all__ = ["FlipFeatureExtractor"]
