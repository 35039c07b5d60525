# SPDX-License-Identifier: Apache-2.0
"""Counts of training rows -> the arrays of a feature extractor: vocabularies, buckets and statistics.

Letters: F fields, N features, n distinct values, K folds.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from ..columns_flip import batches
from ..configuration_flip import missing_id, num_reserved_features, unseen_id
from ..feature_extraction_flip import MAX_HASHED_BYTES, NUM_FOLDS, FlipFeatureExtractor, statistics, value_hashes
from ..fields_flip import AgeField, CategoricalField, Field, MultivaluedField, NumericField, StatisticField
from ..values_flip import number_text
from .counts import HOUR_BITS, UNREADABLE, Counts, FeatureCounts, bin_starts, number_keys


logger = logging.get_logger(__name__)

# hours from 1970 to 2101: what is newer ("9999-12-31") says that there is no time
_LATEST_HOUR = 1_148_328


def most_frequent(counts: Counts, least: int, most: int | None = None) -> tuple[list[bytes], np.ndarray]:
    """
    Values that occur at least `least` times, and how often each does, int64 `(n,)`: the frequent ones first, equally
    frequent ones in the order of their bytes, so that the order of the rows does not matter.
    """
    is_frequent = counts.sums >= least
    if None in counts.rows:
        is_frequent[counts.rows[None]] = False
    values = [value.encode() for value in itertools.compress(counts.rows, is_frequent.tolist())]
    occurrences = counts.sums[is_frequent]
    # arrays are sorted fast, by the first bytes of values and as if zeros at their end were not there: a last key
    # tells apart what is alike then
    last = np.fromiter(map(len, values), np.int64, len(values))
    longer = sorted(np.flatnonzero(last > MAX_HASHED_BYTES).tolist(), key=values.__getitem__)
    last[longer] = MAX_HASHED_BYTES + 1 + np.arange(len(longer))
    first = np.array(values, f"S{min(last.max(initial=1), MAX_HASHED_BYTES)}")
    order = np.lexsort((last, first, -occurrences))[:most]
    return [values[number] for number in order.tolist()], occurrences[order]


def build(counts: FeatureCounts, min_frequency: int) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Counts -> what an extractor is made of: the fields' specs, and its arrays."""
    fields = list(counts.fields)
    for index, (field, of_field) in enumerate(zip(fields, counts.of_field, strict=True)):
        if isinstance(field, MultivaluedField) and of_field is not None:
            longest = int(max(of_field.largest, 1))
            fields[index] = dataclasses.replace(field, max_values=min(field.max_values, longest))
    builder = FeatureBuilder(fields, counts, min_frequency)
    for index in range(len(fields)):
        builder.add(index)
    return [field.to_dict() for field in fields], builder.arrays()


def installed(extractor: Any) -> FlipFeatureExtractor:
    """An extractor as the installed package's own class: one that was loaded from a folder's code is of another."""
    if isinstance(extractor, FlipFeatureExtractor):
        return extractor
    copied = FlipFeatureExtractor(extractor.field_specs, extractor.label, extractor.min_frequency)
    copied._set_arrays(**extractor.vocabulary.arrays)
    return copied


def extended(extractor: Any, rows: Any) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """[`FlipFeatureExtractor.extend`]: the arrays that change, and for each field that grew its new features."""
    extractor = installed(extractor)
    # statistics would need labels, and are not extended
    indices = [index for index, field in enumerate(extractor.fields) if not isinstance(field, StatisticField)]
    counts = FeatureCounts([extractor.fields[index] for index in indices], extractor.label)
    for columns in batches(rows):
        counts.add(columns, extractor.known_by_number)
    totals = extractor.feature_counts.copy()
    features = FeatureList({**extractor.vocabulary.arrays, "feature_counts": totals})
    grown: dict[str, int] = {}
    for index, of_field in zip(indices, counts.of_field, strict=True):
        field = extractor.fields[index]
        if of_field is None or not isinstance(field, CategoricalField) or field.hash_buckets:
            continue
        ids = extractor.vocabulary.lookup(index, list(of_field.rows))
        is_new = ids == unseen_id(index)
        np.add.at(totals, ids, of_field.sums)
        if field.vocabulary_size is not None:
            continue
        unknown = Counts()
        unknown.add(itertools.compress(of_field.rows, is_new.tolist()), of_field.sums[is_new])
        new, occurrences = most_frequent(unknown, field.min_frequency or extractor.min_frequency)
        if new:
            totals[unseen_id(index)] -= occurrences.sum()
            features.add(index, new, occurrences, can_be_found=True)
            grown[field.name] = len(new)
    return features.arrays(), grown


class FeatureList:
    """
    Features in the order of their ids, as arrays: `arrays` and what is added behind them.

    Args:
        arrays (`dict[str, np.ndarray]`): those of `NAMES`, as an extractor holds them.
    """

    NAMES = ("value_bytes", "value_offsets", "sorted_hashes", "sorted_ids", "feature_counts", "feature_fields")

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.parts = {name: [arrays[name]] for name in self.NAMES}
        self.num_features = len(arrays["feature_counts"])

    def add(self, field: int, names: Sequence[bytes], counts: np.ndarray, can_be_found: bool) -> None:
        """Features of field number `field`, and whether they are values that are looked up by their hashes."""
        if not len(names):
            return
        ids = np.arange(self.num_features, self.num_features + len(names), dtype=np.int32)
        self.num_features += len(names)
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        added = {
            "value_bytes": np.frombuffer(b"".join(names), np.uint8),
            "value_offsets": self.parts["value_offsets"][-1][-1] + np.cumsum(lengths),
            "feature_counts": counts,
            "feature_fields": np.full(len(names), field, np.int32),
        }
        if can_be_found:
            added |= {"sorted_hashes": value_hashes(names, field), "sorted_ids": ids}
        for name, part in added.items():
            self.parts[name].append(part)

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        order = np.argsort(arrays["sorted_hashes"], kind="stable")
        return arrays | {name: arrays[name][order] for name in ("sorted_hashes", "sorted_ids")}


class FeatureBuilder:
    """Counts of training rows, field by field -> the arrays of an extractor."""

    def __init__(self, fields: Sequence[Field], counts: FeatureCounts, min_frequency: int):
        self.fields, self.counts, self.min_frequency = fields, counts, min_frequency
        self.reserved = np.zeros(num_reserved_features(len(fields)), np.int64)  # how often each reserved id occurs
        self.features = FeatureList(
            {
                "value_bytes": np.zeros(0, np.uint8),
                "value_offsets": np.zeros(1, np.int64),
                "sorted_hashes": np.zeros(0, np.int64),
                "sorted_ids": np.zeros(0, np.int32),
                "feature_counts": self.reserved,
                "feature_fields": np.repeat(np.arange(-1, len(fields), dtype=np.int32), 2),
            }
        )
        self.edges = [np.zeros(0) for _ in fields]
        self.references = np.full(len(fields), np.nan)
        self.label_features = [np.zeros(0, np.int32)]
        self.label_sums: dict[int, np.ndarray] = {}  # of the values of each source
        self.label_totals = np.zeros((len(fields), NUM_FOLDS, 2), np.int64)

    def add(self, index: int) -> None:
        """The features of field number `index`."""
        field, counts = self.fields[index], self.counts.of_field[index]
        if counts is not None:
            self.reserved[missing_id(index)] = counts.of([None])[0]
        if isinstance(field, StatisticField):
            self._add_statistic(index, field)
        elif isinstance(field, NumericField) and counts is not None:
            self._add_numbers(index, field, counts)
        elif isinstance(field, CategoricalField) and counts is not None:
            self._add_values(index, field, counts)

    def _check_any(self, field: Field, num_values: int) -> None:
        if not num_values:
            raise ValueError(
                f"field {field.name!r} has no value in any of the {self.counts.num_rows} rows: leave it out"
            )

    def _add_values(self, index: int, field: CategoricalField, counts: Counts) -> None:
        keys: list[Any]
        if field.hash_buckets:
            keys = list(range(field.hash_buckets))
            names, occurrences = [b"hash %d" % key for key in keys], counts.of(keys)
        else:
            values = counts.rows.keys() - {None}
            self._check_any(field, len(values))
            if len(values) == 1:
                (value,) = values
                logger.warning(f"field {field.name!r} has the one value {value[:40]!r} in all rows: it says nothing")
            least = field.min_frequency or self.min_frequency
            names, occurrences = most_frequent(counts, least, field.vocabulary_size)
            keys = [name.decode() for name in names]
            known = occurrences.sum() + self.reserved[missing_id(index)]
            self.reserved[unseen_id(index)] = counts.sums.sum() - known
        first = self.features.num_features
        self.features.add(index, names, occurrences, can_be_found=not field.hash_buckets)
        if field.name in self.counts.of_source:
            source = self.counts.of_source[field.name]
            self.label_features.append(np.arange(first, self.features.num_features, dtype=np.int32))
            self.label_sums[index] = source.of(keys)
            self.label_totals[index] = source.sums.sum(0)

    def _add_numbers(self, index: int, field: NumericField, counts: Counts) -> None:
        (num_unreadable,) = counts.of([UNREADABLE]).tolist()
        self.reserved[unseen_id(index)] = num_unreadable
        if num_unreadable:
            logger.warning(
                f"field {field.name!r}: {num_unreadable} of {self.counts.num_rows} rows hold no number: they take the "
                "id of unseen values"
            )
        bins, occurrences = counts.bins()
        self._check_any(field, len(bins))
        if isinstance(field, AgeField) and field.reference is None:
            newest = counts.largest
            if newest > _LATEST_HOUR:
                raise ValueError(
                    f"field {field.name!r}: ages are counted to the newest time of the training rows, and that is in "
                    f"the year {1970 + newest / 8_765.8:.0f}: make times that stand for none missing (None)"
                )
            self.references[index] = newest
            if not field.num_slots:
                return
            ages = Counts()
            ages.add(
                number_keys(field.ages(bin_starts(bins, HOUR_BITS), newest), field.known_edges).tolist(), occurrences
            )
            bins, occurrences = ages.bins()
        self._add_buckets(index, field, bins, occurrences)

    def _add_statistic(self, index: int, field: StatisticField) -> None:
        """Buckets of what training rows will read, which follows from the counts: no second pass."""
        source = self.counts.field_names.index(field.source)
        sums, totals = self.label_sums[source], self.label_totals[source]
        missing = self.counts.of_source[field.source].of([None])[0]
        # values that are too rare for the vocabulary are read as unseen
        num_rows = np.vstack([sums, (totals - sums.sum(0) - missing)[None]])[:, :, 0]
        numbers = statistics(field, np.vstack([sums, np.zeros_like(missing)[None]]), totals)[:, :NUM_FOLDS]
        counts = Counts()
        counts.add(number_keys(numbers[num_rows > 0], None).tolist(), num_rows[num_rows > 0])
        self.reserved[missing_id(index)] = self.reserved[missing_id(source)]
        bins, occurrences = counts.bins()
        self._check_any(field, len(bins))
        self._add_buckets(index, field, bins, occurrences)

    def _add_buckets(self, index: int, field: NumericField, bins: np.ndarray, occurrences: np.ndarray) -> None:
        if field.known_edges is None:
            starts = bin_starts(bins)
            edges = quantile_edges(starts, occurrences, field.num_buckets)
            buckets = np.searchsorted(edges, starts, side="right")
        else:
            edges, buckets = np.array(field.known_edges), bins
            if field.bucketing == "log":  # the edges between the smallest and the largest number
                edges, buckets = edges[bins[0] : bins[-1]], bins - bins[0]
        self.edges[index] = edges
        counts = np.bincount(buckets, occurrences, len(edges) + 1).astype(np.int64)
        self.features.add(index, bucket_names(edges), counts, can_be_found=False)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            **self.features.arrays(),
            "edges": np.concatenate([np.zeros(0), *self.edges]),
            "edge_offsets": np.cumsum([0, *map(len, self.edges)]).astype(np.int64),
            "references": self.references,
            "label_features": np.concatenate(self.label_features),
            "label_sums": np.concatenate([self.label_totals[:0], *self.label_sums.values()]),
            "label_totals": self.label_totals,
        }


def quantile_edges(numbers: np.ndarray, counts: np.ndarray, num_buckets: int) -> np.ndarray:
    """Sorted distinct numbers and how often each occurs -> at most `num_buckets` - 1 edges between them."""
    below = np.cumsum(counts)[:-1]  # rows below the number that follows
    wanted = counts.sum() * np.arange(1, num_buckets) / num_buckets
    positions = np.unique(np.searchsorted(below, wanted - 1e-9))
    return numbers[1:][positions[positions < len(below)]]


def bucket_names(edges: np.ndarray) -> list[bytes]:
    names = [number_text(float(edge)) for edge in edges]
    if not names:
        return [b"any number"]
    between = [f"{low} to below {high}" for low, high in itertools.pairwise(names)]
    return [name.encode() for name in (f"below {names[0]}", *between, f"from {names[-1]}")]
