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
from ..feature_extraction_flip import (
    ARRAYS,
    MAX_HASHED_BYTES,
    NUM_FOLDS,
    FlipFeatureExtractor,
    hash_buckets,
    statistics,
    value_hashes,
)
from ..fields_flip import AgeField, CategoricalField, Field, MultivaluedField, NumericField, StatisticField
from ..values_flip import number_text
from .counts import (
    FeatureCounts,
    HashCounts,
    LabelCounts,
    NumberCounts,
    ValueCounts,
)


logger = logging.get_logger(__name__)

# hours from 1970 to 2101: what is newer ("9999-12-31") says that there is no time
_LATEST_HOUR = 1_148_328


def most_frequent(
    counts: Mapping[str | None, int], least: int, most: int | None = None
) -> tuple[list[bytes], np.ndarray]:
    """
    Values that occur at least `least` times, and how often each does, int64 `(n,)`: the frequent ones first, equally
    frequent ones in the order of their bytes, so that the order of the rows does not matter.
    """
    values = [value.encode() for value, count in counts.items() if value is not None and count >= least]
    kept = (count for value, count in counts.items() if value is not None and count >= least)
    occurrences = np.fromiter(kept, np.int64, len(values))
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
    for index, (field, counter) in enumerate(zip(fields, counts.of_field, strict=True)):
        if isinstance(field, MultivaluedField) and counter is not None:
            fields[index] = dataclasses.replace(field, max_values=min(field.max_values, counter.longest))
    specs = [field.to_dict() for field in fields]
    builder = FeatureBuilder(FlipFeatureExtractor(specs, counts.label, min_frequency), counts)
    for index, (field, counter) in enumerate(zip(fields, counts.of_field, strict=True)):
        if field.num_slots or counter is not None:
            builder.add(index, field, counter)
    return specs, builder.arrays()


def installed(extractor: Any) -> FlipFeatureExtractor:
    """An extractor as the installed package's own class: one that was loaded from a folder's code is of another."""
    if isinstance(extractor, FlipFeatureExtractor):
        return extractor
    own = FlipFeatureExtractor(extractor.field_specs, extractor.label, extractor.min_frequency)
    own._set_arrays(**{name: extractor._array(name) for name in ARRAYS})
    return own


def extended(extractor: Any, rows: Any) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """[`FlipFeatureExtractor.extend`]: the arrays that change, and for each field that grew its new features."""
    extractor = installed(extractor)
    # statistics would need labels, and are not extended
    kept = [index for index, field in enumerate(extractor.fields) if not isinstance(field, StatisticField)]
    counts = FeatureCounts([extractor.fields[index] for index in kept], extractor.label)
    for columns in batches(rows):
        counts.add(columns, extractor.known_by_number)
    totals = extractor.feature_counts.copy()
    features = FeatureList({**{name: extractor._array(name) for name in FeatureList.NAMES}, "feature_counts": totals})
    grown: dict[str, int] = {}
    for index, counter in zip(kept, counts.of_field, strict=True):
        if not isinstance(counter, ValueCounts):
            continue
        field = extractor.fields[index]
        assert isinstance(field, CategoricalField)
        totals[extractor.missing_id(index)] += counter.counts.pop(None, 0)
        ids = extractor._find(index, [value.encode() for value in counter.counts])
        occurrences = np.fromiter(counter.counts.values(), np.int64, len(ids))
        known = ids >= extractor.num_reserved_features
        totals[ids[known]] += occurrences[known]  # distinct values have distinct ids
        totals[extractor.unseen_id(index)] += occurrences[~known].sum()
        if field.vocabulary_size is not None:
            continue
        unknown = dict(itertools.compress(counter.counts.items(), (~known).tolist()))
        new, of_new = most_frequent(unknown, field.min_frequency or extractor.min_frequency)
        if new:
            totals[extractor.unseen_id(index)] -= of_new.sum()
            features.add(index, new, of_new, can_be_found=True)
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

    def __init__(self, extractor: Any, counts: FeatureCounts):
        self.extractor = extractor
        self.sources = {counts.field_names.index(name): found for name, found in counts.of_source.items()}
        self.num_rows = counts.num_rows
        reserved, num_fields = extractor.num_reserved_features, extractor.num_fields
        self.counts = np.zeros(reserved, np.int64)  # of reserved ids
        fields = np.repeat(np.arange(-1, num_fields, dtype=np.int32), 2)
        empty: dict[str, np.ndarray] = {"value_bytes": np.zeros(0, np.uint8), "value_offsets": np.zeros(1, np.int64)}
        empty |= {"sorted_hashes": np.zeros(0, np.int64), "sorted_ids": np.zeros(0, np.int32)}
        self.features = FeatureList({**empty, "feature_counts": self.counts, "feature_fields": fields})
        self.edges: list[np.ndarray] = [np.zeros(0)] * num_fields
        self.references = np.full(num_fields, np.nan)
        self.label_features: list[np.ndarray] = [np.zeros(0, np.int32)]
        self.label_sums: list[np.ndarray] = [np.zeros((0, NUM_FOLDS, 2), np.int64)]
        self.sum_numbers: dict[int, int] = {}  # where the sums of a source stand in these two lists
        self.label_totals = np.zeros((num_fields, NUM_FOLDS, 2), np.int64)
        self.missing_rows = np.zeros((num_fields, NUM_FOLDS), np.int64)

    def add(self, index: int, field: Field, counter: Any) -> None:
        """The features of field number `index`."""
        if isinstance(field, StatisticField):
            self._add_statistic(index, field)
        elif isinstance(counter, NumberCounts):
            assert isinstance(field, NumericField)
            self._add_buckets(index, field, counter)
        else:
            assert isinstance(field, CategoricalField)
            first = self.features.num_features
            if isinstance(counter, HashCounts):
                self._add_hashed(index, counter)
                sums = self._hashed_sums(field, self.sources[index]) if index in self.sources else None
            else:
                values = self._add_vocabulary(index, field, counter)
                sums = self.sources[index].of([value.decode() for value in values]) if index in self.sources else None
            if sums is not None:
                self.sum_numbers[index] = len(self.label_sums)
                self.label_features.append(np.arange(first, self.features.num_features, dtype=np.int32))
                self.label_sums.append(sums)
                self.label_totals[index] = self.sources[index].totals
                self.missing_rows[index] = self.sources[index].of([""])[0, :, 0]

    def _nothing(self, field: Field) -> ValueError:
        return ValueError(
            f"field {field.name!r} has no value in any of the {self.num_rows} rows: leave it out of `fields`"
        )

    def _add_vocabulary(self, index: int, field: CategoricalField, counter: ValueCounts) -> list[bytes]:
        occurrences = counter.counts
        missing = occurrences.get(None, 0)
        num_values = len(occurrences) - (None in occurrences)
        if not num_values:
            raise self._nothing(field)
        if num_values == 1:
            (value,) = set(occurrences) - {None}
            logger.warning(f"field {field.name!r} has the one value {value[:40]!r} in all rows: it says nothing")
        least = field.min_frequency or self.extractor.min_frequency
        kept, counts = most_frequent(occurrences, least, field.vocabulary_size)
        self.counts[self.extractor.missing_id(index)] = missing
        self.counts[self.extractor.unseen_id(index)] = sum(occurrences.values()) - missing - counts.sum()
        self.features.add(index, kept, counts, can_be_found=True)
        return kept

    def _add_hashed(self, index: int, counter: HashCounts) -> None:
        self.counts[self.extractor.missing_id(index)] = counter.counts[-1]
        counts = counter.counts[:-1]
        self.features.add(index, [b"hash %d" % number for number in range(len(counts))], counts, can_be_found=False)

    @staticmethod
    def _hashed_sums(field: CategoricalField, label_counts: LabelCounts) -> np.ndarray:
        sums = np.zeros((field.hash_buckets, NUM_FOLDS, 2), np.int64)
        values = [value for value in label_counts.rows if value]  # "" is a missing one
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
        if isinstance(field, AgeField) and field.reference is None:
            if counter.newest > _LATEST_HOUR:
                year = 1970 + counter.newest / 8_765.8
                raise ValueError(
                    f"field {field.name!r}: ages are counted to the newest time of the training rows, and that is in "
                    f"the year {year:.0f}: make times that stand for none missing (None)"
                )
            self.references[index] = counter.newest
            if not field.num_slots:
                return
            ages = NumberCounts(field.known_edges)
            ages.add_numbers(field.ages(counter.starts(), counter.newest), counts)
            counter = ages
            keys, counts = counter.bins()
        if counter.edges is not None:
            edges, of_bucket = counter.edges, keys
            if field.bucketing == "log":  # those between the smallest and the largest number
                edges, of_bucket = edges[keys[0] : keys[-1]], keys - keys[0]
        else:
            starts = counter.starts()
            edges = quantile_edges(starts, counts, field.num_buckets)
            of_bucket = np.searchsorted(edges, starts, side="right")
        self.edges[index] = edges
        of_buckets = np.bincount(of_bucket, counts, len(edges) + 1).astype(np.int64)
        self.features.add(index, bucket_names(edges), of_buckets, can_be_found=False)

    def _add_statistic(self, index: int, field: StatisticField) -> None:
        """Buckets of what training rows will read, which follows from the counts: no second pass."""
        extractor = self.extractor
        source = extractor.field_names.index(field.source)
        number = self.sum_numbers[source]
        rows, clicks = self.label_sums[number][:, :, 0], self.label_sums[number][:, :, 1]
        totals = self.label_totals[source]
        # values that are too rare for the vocabulary are read as unseen
        rare = totals[:, 0] - rows.sum(0) - self.missing_rows[source]
        rows_seen, weights = np.vstack([rows, np.zeros_like(rare)]), np.vstack([rows, rare])
        of_rows = statistics(field, rows_seen, np.vstack([clicks, np.zeros_like(rare)]), totals)[:, :NUM_FOLDS]
        counter = NumberCounts()
        counter.add_numbers(of_rows[weights > 0], weights[weights > 0])
        counter.missing = self.counts[extractor.missing_id(source)]
        self._add_buckets(index, field, counter)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            **self.features.arrays(),
            "edges": np.concatenate([np.zeros(0), *self.edges]),
            "edge_offsets": np.cumsum([0, *map(len, self.edges)]).astype(np.int64),
            "references": self.references,
            "label_features": np.concatenate(self.label_features),
            "label_sums": np.concatenate(self.label_sums),
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
