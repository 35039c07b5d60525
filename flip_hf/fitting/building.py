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

from ..columns_flip import number_text
from ..feature_encoding_flip import NUM_FOLDS, statistics, value_hashes
from ..feature_extraction_flip import FlipFeatureExtractor
from ..fields_flip import AgeField, CategoricalField, MultivaluedField, NumericField, StatisticField
from ..masking_flip import missing_id, num_reserved_features, unseen_id
from .counts import HOUR_BITS, UNREADABLE, Counts, FeatureCounts, bin_starts, known_edges, number_keys
from .schema import batches


logger = logging.get_logger(__name__)

# hours from 1970 to 2101: what is newer ("9999-12-31") says that there is no time
_LATEST_HOUR = 1_148_328


def most_frequent(counts: Counts, least: int, most: int | None = None) -> tuple[list[bytes], np.ndarray]:
    """Values that occur at least `least` times, and how often each does, int64 `(n,)`: the frequent ones first,
    equally frequent ones in the order of their bytes, so that the order of the rows does not matter."""
    occurrences = counts.occurrences()
    is_frequent = occurrences >= least
    if None in counts.rows:
        is_frequent[counts.rows[None]] = False
    values = [value.encode() for value in itertools.compress(counts.rows, is_frequent.tolist())]
    occurrences = occurrences[is_frequent]
    order = np.array(sorted(range(len(values)), key=values.__getitem__), np.int64)
    order = order[np.argsort(-occurrences[order], kind="stable")][:most]
    return [values[number] for number in order.tolist()], occurrences[order]


def extended(extractor: Any, rows: Any) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """[`FlipFeatureExtractor.extend`]: the arrays that change, and for each field that grew its new features."""
    if not isinstance(extractor, FlipFeatureExtractor):  # but of a folder's own code
        arrays = extractor.vocabulary.arrays
        extractor = FlipFeatureExtractor(extractor.field_specs, extractor.label, extractor.min_frequency)
        extractor._set_arrays(**arrays)
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
        if of_field is None or not field.has_vocabulary:
            continue
        ids = extractor.vocabulary.lookup(index, list(of_field.rows))
        np.add.at(totals, ids, of_field.sums)
        if field.vocabulary_size is not None:
            continue
        is_new = ids == unseen_id(index)
        unknown = Counts()
        unknown.add(itertools.compress(of_field.rows, is_new.tolist()), of_field.sums[is_new])
        new, occurrences = most_frequent(unknown, field.min_frequency or extractor.min_frequency)
        if new:
            totals[unseen_id(index)] -= occurrences.sum()
            features.add(index, new, occurrences, can_be_found=True)
            grown[field.name] = len(new)
    return features.arrays(), grown


class FeatureList:
    """Features in the order of their ids, as arrays of an extractor (`NAMES`): some, and what is added behind them."""

    NAMES = ("value_bytes", "value_offsets", "sorted_hashes", "sorted_ids", "feature_counts", "feature_fields")

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.parts = {name: [arrays[name]] for name in self.NAMES}
        self.num_features = len(arrays["feature_counts"])

    def add(self, field: int, names: Sequence[bytes], counts: np.ndarray, can_be_found: bool) -> np.ndarray:
        """Features of field number `field`, and whether they are values that are looked up by their hashes; returns
        their ids."""
        ids = np.arange(self.num_features, self.num_features + len(names), dtype=np.int32)
        self.num_features += len(names)
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        added: dict[str, Any] = {
            "value_bytes": np.frombuffer(b"".join(names), np.uint8),
            "value_offsets": sum(map(len, self.parts["value_bytes"])) + np.cumsum(lengths),
            "feature_counts": counts,
            "feature_fields": np.full(len(names), field, np.int32),
        }
        if can_be_found:
            added |= {"sorted_hashes": value_hashes(names, field), "sorted_ids": ids}
        for name, part in added.items():
            self.parts[name].append(part)
        return ids

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        order = np.argsort(arrays["sorted_hashes"], kind="stable")
        return arrays | {name: arrays[name][order] for name in ("sorted_hashes", "sorted_ids")}


class FeatureBuilder:
    """Counts of training rows, field by field -> the `fields` of an extractor, and its `arrays`."""

    def __init__(self, counts: FeatureCounts, min_frequency: int):
        self.fields, self.counts, self.min_frequency = list(counts.fields), counts, min_frequency
        num_fields = len(self.fields)
        self.reserved = np.zeros(num_reserved_features(num_fields), np.int64)  # how often each reserved id occurs
        self.features = FeatureList(
            {
                "value_bytes": np.zeros(0, np.uint8),
                "value_offsets": np.zeros(1, np.int64),
                "sorted_hashes": np.zeros(0, np.int64),
                "sorted_ids": np.zeros(0, np.int32),
                "feature_counts": self.reserved,
                "feature_fields": np.repeat(np.arange(-1, num_fields, dtype=np.int32), 2),
            }
        )
        self.edges = [np.zeros(0) for _ in self.fields]
        self.references = np.full(num_fields, np.nan)
        self.label_features = [np.zeros(0, np.int32)]
        self.label_sums: dict[int, np.ndarray] = {}  # of the values of each source
        self.label_totals = np.zeros((num_fields, NUM_FOLDS, 2), np.int64)
        for index, (field, of_field) in enumerate(zip(counts.fields, counts.of_field, strict=True)):
            if of_field is not None:
                self.reserved[missing_id(index)] = of_field.occurrences([None])[0]
            if isinstance(field, StatisticField):
                self._add_statistic(index, field)
            elif isinstance(field, NumericField) and of_field is not None:
                self._add_numbers(index, field, of_field)
            elif isinstance(field, CategoricalField) and of_field is not None:
                self._add_values(index, field, of_field)

    def _check_any(self, index: int, num_values: int) -> None:
        if not num_values:
            field, rows = self.fields[index], f"any of the {self.counts.num_rows} rows"
            what = "number" if isinstance(field, NumericField) else "value"
            raise ValueError(f"field {field.name!r} has no {what} in {rows}: leave it out (exclude)")

    def _add_values(self, index: int, field: CategoricalField, counts: Counts) -> None:
        if isinstance(field, MultivaluedField):
            longest = int(max(counts.largest, 1))
            self.fields[index] = dataclasses.replace(field, max_values=min(field.max_values, longest))
        keys: list[Any]
        if field.hash_buckets:
            keys = list(range(field.hash_buckets))
            names, occurrences = [b"hash %d" % key for key in keys], counts.occurrences(keys)
        else:
            values = counts.rows.keys() - {None}
            self._check_any(index, len(values))
            if len(values) == 1:
                (value,) = values
                logger.warning(f"field {field.name!r} has the one value {value[:40]!r} in all rows: it says nothing")
            least = field.min_frequency or self.min_frequency
            names, occurrences = most_frequent(counts, least, field.vocabulary_size)
            keys = [name.decode() for name in names]
            known = occurrences.sum() + self.reserved[missing_id(index)]
            self.reserved[unseen_id(index)] = counts.occurrences().sum() - known
        ids = self.features.add(index, names, occurrences, can_be_found=not field.hash_buckets)
        if counts.sums.ndim > 1:  # a source of statistics
            self.label_features.append(ids)
            self.label_sums[index] = counts.of(keys)
            self.label_totals[index] = counts.sums.sum(0)

    def _add_numbers(self, index: int, field: NumericField, counts: Counts) -> None:
        self.reserved[unseen_id(index)] = num_unreadable = counts.of([UNREADABLE])[0]
        if num_unreadable:
            share = f"{num_unreadable} of {self.counts.num_rows} rows"
            logger.warning(f"field {field.name!r}: {share} hold no number: they take the id of unseen values")
        bins, occurrences = counts.bins()
        if isinstance(field, AgeField) and field.reads_hours:
            self._check_any(index, len(bins))
            self.references[index] = newest = counts.largest
            if newest > _LATEST_HOUR:
                problem = f"ages are counted to the newest training row, of the year {1970 + newest / 8_765.8:.0f}"
                raise ValueError(f"field {field.name!r}: {problem}: make times that stand for none missing (None)")
            if not field.num_slots:
                return
            bins, occurrences = binned(field, field.ages(bin_starts(bins, HOUR_BITS), newest), occurrences)
        self._add_buckets(index, field, bins, occurrences)

    def _add_statistic(self, index: int, field: StatisticField) -> None:
        """Buckets of what training rows will read, which follows from the counts: no second pass."""
        source = self.counts.field_names.index(field.source)
        sums, totals = self.label_sums[source], self.label_totals[source]
        missing = self.counts.of_field[source].of([None])[0]
        # values that are too rare for the vocabulary are read as unseen
        num_rows = np.vstack([sums, (totals - sums.sum(0) - missing)[None]])[:, :, 0]
        numbers = statistics(field, np.vstack([sums, np.zeros_like(missing)[None]]), totals)[:, :NUM_FOLDS]
        self.reserved[missing_id(index)] = self.reserved[missing_id(source)]
        self._add_buckets(index, field, *binned(field, numbers[num_rows > 0], num_rows[num_rows > 0]))

    def _add_buckets(self, index: int, field: NumericField, bins: np.ndarray, occurrences: np.ndarray) -> None:
        self._check_any(index, len(bins))
        known = known_edges(field)
        if known is None:
            starts = bin_starts(bins)
            edges = quantile_edges(starts, occurrences, field.num_buckets)
            buckets = np.searchsorted(edges, starts, side="right")
        else:
            edges, buckets = np.array(known), bins
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


def binned(field: NumericField, numbers: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and how often each occurs `(n,)` -> the bins or buckets they are in, in order, and how many in each."""
    bins, places = np.unique(number_keys(field, numbers), return_inverse=True)
    return bins, np.bincount(places, counts).astype(np.int64)


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
