# SPDX-License-Identifier: Apache-2.0
"""Counts of training rows -> the arrays of a feature extractor: vocabularies, buckets and statistics.

Letters: F fields, N features, n distinct values, K folds.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from .feature_counts_flip import (
    NUM_FOLDS,
    FeatureCounts,
    HashCounts,
    LabelCounts,
    NumberCounts,
    ValueCounts,
    bin_starts,
    hash_buckets,
)
from .fields_flip import AgeField, CategoricalField, Field, NumericField, StatisticField
from .values_flip import number_text


logger = logging.get_logger(__name__)


def value_hash(value: bytes, field: int) -> int:
    """64 bits of a value of field number `field`, under which the vocabulary file finds it again."""
    digest = hashlib.blake2b(value, digest_size=8, salt=field.to_bytes(4, "little")).digest()
    return int.from_bytes(digest, "little", signed=True)


class FeatureBuilder:
    """Counts of training rows, field by field -> the arrays of an extractor."""

    def __init__(self, extractor: Any, counts: FeatureCounts):
        self.extractor = extractor
        self.sources = {counts.field_names.index(name): found for name, found in counts.of_source.items()}
        self.num_rows = counts.num_rows
        reserved, num_fields = extractor.num_reserved_features, extractor.num_fields
        self.counts = [0] * reserved
        self.fields = [-1] * reserved
        self.names: list[bytes] = []
        self.vocabulary: list[tuple[bytes, int, int]] = []  # value, field, id
        self.edges: list[np.ndarray] = [np.zeros(0)] * num_fields
        self.references = np.full(num_fields, np.nan)
        self.label_features: list[np.ndarray] = [np.zeros(0, np.int32)]
        self.label_sums: list[np.ndarray] = [np.zeros((0, NUM_FOLDS, 2), np.int64)]
        self.sum_numbers: dict[int, int] = {}  # where the sums of a source stand in these two lists
        self.label_totals = np.zeros((num_fields, NUM_FOLDS, 2), np.int64)
        for index in range(num_fields):
            self.fields[extractor.unseen_id(index)] = self.fields[extractor.missing_id(index)] = index

    def add(self, index: int, field: Field, counter: Any) -> None:
        """The features of field number `index`."""
        if isinstance(field, StatisticField):
            self._add_statistic(index, field)
        elif isinstance(counter, NumberCounts):
            assert isinstance(field, NumericField)
            self._add_buckets(index, field, counter)
        else:
            assert isinstance(field, CategoricalField)
            first = len(self.counts)
            if isinstance(counter, HashCounts):
                self._add_hashed(index, counter)
                sums = self._hashed_sums(field, self.sources[index]) if index in self.sources else None
            else:
                values = self._add_vocabulary(index, field, counter)
                sums = self.sources[index].of(values) if index in self.sources else None
            if sums is not None:
                self.sum_numbers[index] = len(self.label_sums)
                self.label_features.append(np.arange(first, len(self.counts), dtype=np.int32))
                self.label_sums.append(sums)
                self.label_totals[index] = self.sources[index].totals

    def _add_features(self, index: int, names: Sequence[bytes], counts: Sequence[int]) -> None:
        self.names.extend(names)
        self.counts.extend(counts)
        self.fields.extend([index] * len(names))

    def _nothing(self, field: Field) -> ValueError:
        return ValueError(
            f"field {field.name!r} has no value in any of the {self.num_rows} rows: leave it out of `fields`"
        )

    def _add_vocabulary(self, index: int, field: CategoricalField, counter: ValueCounts) -> list[str]:
        values = {value: count for value, count in counter.counts.items() if value is not None}
        if not values:
            raise self._nothing(field)
        if len(values) == 1:
            logger.warning(
                f"field {field.name!r} has the one value {next(iter(values))[:40]!r} in all rows: it says nothing"
            )
        least = field.min_frequency or self.extractor.min_frequency
        kept = [(value, count) for value, count in values.items() if count >= least]
        # an order that the order of the rows does not change
        kept = sorted(kept, key=lambda pair: (-pair[1], pair[0]))[: field.vocabulary_size]
        self.counts[self.extractor.missing_id(index)] = counter.counts.get(None, 0)
        self.counts[self.extractor.unseen_id(index)] = sum(values.values()) - sum(count for _, count in kept)
        names = [value.encode() for value, _ in kept]
        first = len(self.counts)
        self.vocabulary.extend((name, index, first + number) for number, name in enumerate(names))
        self._add_features(index, names, [count for _, count in kept])
        return [value for value, _ in kept]

    def _add_hashed(self, index: int, counter: HashCounts) -> None:
        *counts, missing = counter.counts.tolist()
        self.counts[self.extractor.missing_id(index)] = missing
        self._add_features(index, [f"hash {number}".encode() for number in range(len(counts))], counts)

    @staticmethod
    def _hashed_sums(field: CategoricalField, label_counts: LabelCounts) -> np.ndarray:
        sums = np.zeros((field.hash_buckets, NUM_FOLDS, 2), np.int64)
        values = list(label_counts.rows)
        np.add.at(sums, hash_buckets(values, field.hash_buckets), label_counts.of(values))
        return sums

    def _add_buckets(self, index: int, field: NumericField, counter: NumberCounts) -> None:
        self.counts[self.extractor.missing_id(index)] = counter.missing
        self.counts[self.extractor.unseen_id(index)] = counter.unreadable
        if counter.unreadable:
            logger.warning(
                f"field {field.name!r}: {counter.unreadable} of {self.num_rows} rows hold no number: they take the id "
                "of unseen values"
            )
        keys, counts = counter.bins()
        if not len(keys):
            raise self._nothing(field)
        if counter.edges is not None:
            edges, of_bucket = counter.edges, keys
        else:
            starts = bin_starts(keys)
            if isinstance(field, AgeField) and field.reference is None:
                self.references[index] = counter.newest
                ages = NumberCounts(field)
                ages.add_numbers(counter.newest - starts, counts)
                keys, counts = ages.bins()
                starts = bin_starts(keys)
            if field.bucketing == "log":
                edges = log_edges(float(starts[0]), float(starts[-1]))
            else:
                edges = quantile_edges(starts, counts, field.num_buckets)
            of_bucket = np.searchsorted(edges, starts, side="right")
        self.edges[index] = edges
        self._add_features(
            index, bucket_names(edges), np.bincount(of_bucket, counts, len(edges) + 1).astype(np.int64).tolist()
        )

    def _add_statistic(self, index: int, field: StatisticField) -> None:
        """Buckets of what training rows will read, which follows from the counts: no second pass."""
        extractor = self.extractor
        source = extractor.field_names.index(field.source)
        number = self.sum_numbers[source]
        rows, clicks = self.label_sums[number][:, :, 0], self.label_sums[number][:, :, 1]
        totals = self.label_totals[source]
        # values that are too rare for the vocabulary are read as unseen
        rare = np.maximum(totals[:, 0] - rows.sum(0), 0) * (self.counts[extractor.unseen_id(source)] > 0)
        rows_seen, weights = np.vstack([rows, np.zeros_like(rare)]), np.vstack([rows, rare])
        of_rows = statistics(field, rows_seen, np.vstack([clicks, np.zeros_like(rare)]), totals)[:, :NUM_FOLDS]
        counter = NumberCounts(field)
        counter.add_numbers(of_rows[weights > 0], weights[weights > 0])
        counter.missing = self.counts[extractor.missing_id(source)]
        self._add_buckets(index, field, counter)

    def arrays(self) -> dict[str, np.ndarray]:
        offsets = np.zeros(len(self.names) + 1, np.int64)
        np.cumsum([len(name) for name in self.names], out=offsets[1:])
        hashes = np.fromiter((value_hash(value, field) for value, field, _ in self.vocabulary), np.int64)
        ids = np.fromiter((feature for _, _, feature in self.vocabulary), np.int32)
        order = np.argsort(hashes, kind="stable")
        return {
            "value_bytes": np.frombuffer(b"".join(self.names), np.uint8),
            "value_offsets": offsets,
            "sorted_hashes": hashes[order],
            "sorted_ids": ids[order],
            "feature_counts": np.array(self.counts, np.int64),
            "feature_fields": np.array(self.fields, np.int32),
            "edges": np.concatenate([np.zeros(0), *self.edges]),
            "edge_offsets": np.cumsum([0, *map(len, self.edges)]).astype(np.int64),
            "references": self.references,
            "label_features": np.concatenate(self.label_features),
            "label_sums": np.concatenate(self.label_sums),
            "label_totals": self.label_totals,
        }


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


def quantile_edges(numbers: np.ndarray, counts: np.ndarray, num_buckets: int) -> np.ndarray:
    """Sorted distinct numbers and how often each occurs -> at most `num_buckets` - 1 edges between them."""
    below = np.cumsum(counts)[:-1]  # rows below the number that follows
    wanted = counts.sum() * np.arange(1, num_buckets) / num_buckets
    positions = np.unique(np.searchsorted(below, wanted - 1e-9))
    return numbers[1:][positions[positions < len(below)]]


def log_edges(smallest: float, largest: float) -> np.ndarray:
    """0 and the powers of two, of both signs, that lie between two numbers; none below 2^-20 or above 2^63."""
    powers = 2.0 ** np.arange(-20, 64)
    edges = np.concatenate([-powers[::-1], [0.0], powers])
    return edges[(edges > smallest) & (edges <= largest)]


def bucket_names(edges: np.ndarray) -> list[bytes]:
    names = [number_text(float(edge)) for edge in edges]
    if not names:
        return [b"any number"]
    between = [f"{low} to below {high}" for low, high in itertools.pairwise(names)]
    return [name.encode() for name in (f"below {names[0]}", *between, f"from {names[-1]}")]
