# SPDX-License-Identifier: Apache-2.0
"""What has to be known of training rows to build vocabularies, buckets and statistics, counted in one pass.

Counts of parts of a table add up to the counts of the whole, bit by bit and in any order: numbers are counted in bins
that are fixed beforehand, and the fold of a row follows from its content.

Letters: B rows, n distinct keys, K folds (`NUM_FOLDS`).
"""

import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers.utils import logging

from ..columns_flip import CodedColumn, as_columns, class_names, is_code, read_labels, whole_number
from ..feature_encoding_flip import NUM_FOLDS, hash_buckets
from ..feature_extraction_flip import NO_FIELDS
from ..fields_flip import Field, MultivaluedField, NumericField, StatisticField, code_columns, field_from_dict
from .schema import BATCH_SIZE, batches, choose_fields, is_split


logger = logging.get_logger(__name__)

# numbers whose first bits after the leading one agree share a bin: with 10, integers up to 2048 have bins of their own
NUMBER_BITS = 10
# of hours since 1970 only the distance from the newest is read: up to 2^21 each has a bin of its own
HOUR_BITS = 20
# the key of what is no number, beside the bins of numbers; that of a missing value is `None`
UNREADABLE = "unreadable"
# of the file of counts: what an older one holds is named otherwise
_FORMAT = "feature_counts_4"
_SIGN = np.int64(0x7FFFFFFFFFFFFFFF)
# zero and the powers of two of both signs, between which a CTR model tells amounts apart
LOG_EDGES = (*(-(2.0**power) for power in range(63, -21, -1)), 0.0, *(2.0**power for power in range(-20, 64)))


def number_bins(numbers: np.ndarray, num_bits: int = NUMBER_BITS) -> np.ndarray:
    """float64 `(n,)` -> int64 bins `(n,)`, in the order of the numbers; at most 0.1 % of a number wide."""
    bits = (numbers + 0.0).view(np.int64)  # -0.0 + 0.0 is 0.0
    return np.where(bits < 0, bits ^ _SIGN, bits) >> (52 - num_bits)


def bin_starts(bins: np.ndarray, num_bits: int = NUMBER_BITS) -> np.ndarray:
    """The smallest number of each bin."""
    bits = bins << (52 - num_bits)
    numbers = np.where(bits < 0, bits ^ _SIGN, bits).view(np.float64)
    return np.where(np.isnan(numbers), -np.inf, numbers)  # the bin of -inf starts among the bits of nan


def known_edges(field: NumericField) -> Sequence[float] | None:
    """Edges that training rows do not decide."""
    return LOG_EDGES if field.bucketing == "log" else field.edges


def number_keys(field: NumericField, numbers: np.ndarray) -> np.ndarray:
    """Numbers `(n,)` -> the buckets that they are in, where the edges are known beforehand, or else their bins."""
    edges = known_edges(field)
    return number_bins(numbers) if edges is None else np.searchsorted(edges, numbers, side="right")


def row_folds(fields: Sequence[Any], columns: Sequence[CodedColumn]) -> np.ndarray:
    """The fold of each row `(B,)`, in [0, K), from what its fields hold: it is the same wherever the row stands."""
    mixed = np.zeros(columns[0].num_rows, np.uint64)
    for number, (field, column) in enumerate(zip(fields, columns, strict=True)):
        if field.kind != StatisticField.kind:  # its class may be that of a folder's own code
            mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + np.uint64(number + 1)
            mixed ^= _content_hashes(field, column.values)[column.indices]
            mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return ((mixed ^ (mixed >> np.uint64(32))) % np.uint64(NUM_FOLDS)).astype(np.int64)


def _content_hashes(field: Any, values: Sequence[Any]) -> np.ndarray:
    """Distinct values -> uint64 `(n,)`, the same for the same value however it is stored."""
    if hasattr(field, "numbers"):
        numbers, _ = field.numbers(values)
        return np.where(np.isnan(numbers), np.nan, numbers + 0.0).view(np.uint64)  # one nan of many
    is_text = getattr(field, "type", "") == "text"  # of which 501 may have become the known 00501 since
    rows = map(field.elements, values) if hasattr(field, "elements") else ([text or ""] for text in values)
    texts = ("\0".join(whole_number(text) or text for text in row) if is_text else "\0".join(row) for row in rows)
    return np.array([zlib.crc32(text.encode()) for text in texts], np.uint64)


def rows_and_clicks(indices: np.ndarray, num_values: int, folds: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of each row's value, its fold, its label `(B,)` -> of each value rows and clicks by fold `(n, K, 2)`."""
    cells = indices * NUM_FOLDS + folds
    counts = [np.bincount(some, minlength=num_values * NUM_FOLDS) for some in (cells, cells[labels == 1])]
    return np.stack(counts, axis=-1).reshape(-1, NUM_FOLDS, 2)


class Counts:
    """Whole numbers `(..., *shape)` under keys, which add up, and the largest of something else. Keys are values,
    buckets of hashes or bins of numbers, and `None` for missing values."""

    def __init__(self, *shape: int):
        self.rows: dict[Any, int] = {}
        self._sums = np.zeros((64, *shape), np.int64)
        self.largest = -np.inf

    @property
    def sums(self) -> np.ndarray:
        """Of the keys in `rows`, in order."""
        return self._sums[: len(self.rows)]

    def add(self, keys: Iterable[Any], sums: Any, largest: float = -np.inf) -> None:
        """Adds `(n, *shape)` to what is under keys, of which some may be equal."""
        rows = np.array([self.rows.setdefault(key, len(self.rows)) for key in keys], np.int64)
        while len(self.rows) > len(self._sums):
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
        np.add.at(self._sums, rows, sums)
        self.largest = max(self.largest, largest)

    def occurrences(self, keys: Sequence[Any] | None = None) -> np.ndarray:
        """How many rows there are of each of `keys`, by default of all, in all folds `(n,)`."""
        sums = self.sums if keys is None else self.of(keys)
        return sums if sums.ndim == 1 else sums[:, :, 0].sum(1)

    def of(self, keys: Sequence[Any]) -> np.ndarray:
        """Keys -> what is under them `(n, *shape)`, zeros for keys that are not there."""
        rows = np.array([self.rows.get(key, -1) for key in keys], np.int64)
        found = self._sums[rows]
        found[rows < 0] = 0
        return found

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Of numbers the bins in order `(n,)`, and how many there are in each `(n,)`."""
        bins = sorted(key for key in self.rows if type(key) is int)
        return np.array(bins, np.int64), self.of(bins)


def _keys(field: Any, values: Sequence[Any]) -> Sequence[Any]:
    """What distinct values of a field are counted under: themselves, buckets of hashes, or bins of numbers."""
    if isinstance(field, NumericField):
        numbers, unreadable = field.numbers(values)
        bins = number_bins(numbers, HOUR_BITS) if field.reads_hours else number_keys(field, numbers)
        found = zip(bins.tolist(), np.isnan(numbers).tolist(), unreadable.tolist(), strict=True)
        return [UNREADABLE if is_text else None if is_nan else key for key, is_nan, is_text in found]
    if field.hash_buckets:
        buckets = hash_buckets(values, field.hash_buckets).tolist()
        return [None if bucket == field.hash_buckets else bucket for bucket in buckets]
    return values


class FeatureCounts:
    """Counts of training rows, from which [`FlipFeatureExtractor.from_counts`] builds a feature extractor.

    Parts of a table can be counted apart, on several machines, and merged (docs/fields.md has an example); the result
    is that of counting the whole. A count that was cut off goes on from its last checkpoint.

    Attributes:
        fields (`list[Field]`): the schema (`choose_fields`).
        num_rows (`int`): rows counted so far.
        of_field (`list[Counts]`): of each field; `None` where there is nothing to count. Of a field with statistics
            rows and clicks in each fold `(K, 2)`.
    """

    def __init__(self, fields: Sequence[Field], label: str = "label"):
        self.fields = list(fields)
        self.label, self.num_rows = label, 0
        self.of_field: list[Counts | None] = []
        sources = {field.source for field in self.fields if isinstance(field, StatisticField)}
        for field in self.fields:
            # statistics follow from counts of their sources, and text needs none; an age has to know the newest row
            is_counted = field.num_slots and not isinstance(field, StatisticField)
            shape = (NUM_FOLDS, 2) if field.name in sources else ()
            self.of_field.append(Counts(*shape) if is_counted or field.reads_hours else None)
        self.first_rows = ""  # a digest, by which a checkpoint knows the table that it is of
        self._warned_of: set[str] = set()

    @property
    def field_names(self) -> list[str]:
        return [field.name for field in self.fields]

    @classmethod
    def count(
        cls,
        dataset: Any,
        fields: Sequence[str] | Sequence[Field] | None = None,
        label: str = "label",
        exclude: Sequence[str] = NO_FIELDS,
        field_options: Mapping[str, Mapping[str, Any]] | None = None,
        checkpoint: str | os.PathLike | None = None,
        checkpoint_rows: int = 5_000_000,
        statistics: str | None = None,
    ) -> "FeatureCounts":
        """Counts rows in one pass.

        Args:
            dataset, fields, label, exclude, field_options, statistics: as for [`FlipFeatureExtractor.fit`]; `fields`
                may also be the `fields` of other counts, of a part of the same table: what was decided holds here.
            checkpoint (`str`, *optional*): file that is written every `checkpoint_rows` rows. If it is there at the
                start, counting goes on behind the rows it holds, which have to be the first rows of `dataset`.
        """
        if is_split(dataset):
            problem = f"vocabularies come from training rows alone and this has the splits {list(dataset)}"
            raise ValueError(f"{problem}: FlipFeatureExtractor.fit(splits['train'])")
        if checkpoint is not None and not hasattr(dataset, "skip"):
            kind = type(dataset).__name__
            raise TypeError(f"a {kind} cannot be resumed: checkpoint needs a datasets.Dataset or IterableDataset")
        if checkpoint is not None:
            os.makedirs(os.path.dirname(os.path.abspath(checkpoint)), exist_ok=True)  # now, and not after hours
        rest = batches(dataset, label)
        heads: list[Mapping[str, Any]] = []
        num_head_rows = 0
        while num_head_rows < BATCH_SIZE and (head := next(rest, None)):
            heads.append(head)
            num_head_rows += len(next(iter(head.values())))
        if not num_head_rows:
            raise ValueError("the table has no rows: there is nothing to fit vocabularies on")
        if not fields or not all(isinstance(field, Field) for field in fields):
            classes = class_names(getattr(dataset, "features", None))
            fields = choose_fields(heads, fields, label, exclude, field_options, classes, statistics)  # type: ignore[arg-type]
        counts = cls(fields, label)  # type: ignore[arg-type]
        first = code_columns(counts.fields, {name: column[:1000] for name, column in heads[0].items()})
        read = repr([list(map(column.values.__getitem__, column.indices.tolist())) for column in first])
        counts.first_rows = hashlib.blake2b(read.encode("utf-8", "replace"), digest_size=16).hexdigest()
        rest = itertools.chain(heads, rest)
        if checkpoint is not None and os.path.isfile(checkpoint):
            counts = counts._read_checkpoint(checkpoint, dataset)
            is_complete = hasattr(dataset, "__len__") and len(dataset) == counts.num_rows
            rest = iter(()) if is_complete else batches(dataset.skip(counts.num_rows), label)
        saved_rows = counts.num_rows
        for columns in rest:
            counts.add(columns)
            if checkpoint is not None and counts.num_rows - saved_rows >= checkpoint_rows:
                counts.save(checkpoint)
                saved_rows = counts.num_rows
        if checkpoint is not None:
            counts.save(checkpoint)
        return counts

    def _read_checkpoint(self, path: str | os.PathLike, dataset: Any) -> "FeatureCounts":
        saved = FeatureCounts.load(path)
        num_rows = len(dataset) if hasattr(dataset, "__len__") else saved.num_rows  # a stream does not know
        is_same = (saved.fields, saved.label, saved.first_rows) == (self.fields, self.label, self.first_rows)
        if not is_same or saved.num_rows > num_rows:
            other = f"of {saved.num_rows} rows and the fields {', '.join(saved.field_names)}"
            remedy = "delete it to count from the start"
            raise ValueError(f"{path} holds counts {other}, with other options or of other rows than these: {remedy}")
        return saved

    def add(self, rows: Any, codes: Callable[[str], Mapping[Any, str]] | None = None) -> None:
        """Counts rows, in any form that `extractor(rows)` takes; `codes` as for `code_columns`."""
        rows = as_columns(rows, self.label)
        coded = code_columns(self.fields, rows, self.num_rows, codes)
        statistics = {field.statistic for field in self.fields if isinstance(field, StatisticField)}
        folds = row_folds(self.fields, coded) if statistics else None
        labels: Any = np.zeros(coded[0].num_rows)
        if "label_mean" in statistics:
            if self.label not in rows:
                found = ", ".join(map(str, rows))
                raise ValueError(f"label_mean needs the label column {self.label!r}; the rows have {found}")
            labels = read_labels(rows[self.label], self.label)
            if len(labels) != coded[0].num_rows:
                raise ValueError(f"{len(labels)} labels in column {self.label!r} for {coded[0].num_rows} rows")
        for field, column, counts in zip(self.fields, coded, self.of_field, strict=True):
            self._warn_of_codes(field, column)
            if counts is None:
                continue
            values, sums, largest = column.values, column.counts(), -np.inf
            if counts.sums.ndim > 1:
                sums = rows_and_clicks(column.indices, len(values), folds, labels)
            elif isinstance(field, MultivaluedField):
                lists = [field.elements(value) or (None,) for value in values]
                lengths = list(map(len, lists))
                values, sums = list(itertools.chain.from_iterable(lists)), sums.repeat(lengths)
                largest = max(lengths, default=largest)
            elif field.reads_hours:
                largest = max((hour for hour in values if hour is not None), default=largest)
            counts.add(_keys(field, values), sums, largest)
        self.num_rows += coded[0].num_rows

    def _warn_of_codes(self, field: Field, column: CodedColumn) -> None:
        if getattr(field, "type", "text") not in ("integer", "number") or field.name in self._warned_of:
            return
        code = next(filter(is_code, column.raw or ()), None)
        if code is not None:
            self._warned_of.add(field.name)
            logger.warning(
                f"field {field.name!r} is read as numbers and has {code!r} in its later rows: if zeros at the front "
                f'matter, say so: field_options={{{field.name!r}: {{"type": "text"}}}}'
            )

    @classmethod
    def merge(cls, parts: Sequence["FeatureCounts"]) -> "FeatureCounts":
        """The counts of all parts together, a new object. Raises `ValueError` if fields differ, or there are none."""
        parts = list(parts)
        if not parts:
            raise ValueError("there is nothing to merge: the list is empty")
        merged = cls(parts[0].fields, parts[0].label)
        for part in parts:
            pairs = [*itertools.zip_longest(merged.fields, part.fields), (merged.label, part.label)]
            for mine, other in (pair for pair in pairs if pair[0] != pair[1]):
                problem = f"the parts have different fields, so they do not add up: {mine!r} and {other!r}"
                raise ValueError(f"{problem}; count the others with fields=counts.fields of the first")
            merged.num_rows += part.num_rows
            for counts, others in zip(merged.of_field, part.of_field, strict=True):
                if counts is not None:
                    counts.add(others.rows, others.sums, others.largest)
        return merged

    def save(self, path: str | os.PathLike) -> None:
        """Writes a safetensors file, by way of a temporary one, so that no crash leaves half of it."""
        arrays = {"num_rows": np.array([self.num_rows])}
        for number, counts in enumerate(self.of_field):
            if counts is not None:
                arrays[f"{number}.keys"] = np.frombuffer(json.dumps(list(counts.rows)).encode(), np.uint8)
                arrays[f"{number}.sums"] = np.ascontiguousarray(counts.sums)
                arrays[f"{number}.largest"] = np.array([counts.largest], np.float64)
        fields = [field.to_dict() for field in self.fields]
        state = json.dumps({"fields": fields, "label": self.label, "first_rows": self.first_rows})
        save_file(arrays, f"{path}.tmp", metadata={_FORMAT: state})
        os.replace(f"{path}.tmp", path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "FeatureCounts":
        """Raises `ValueError` if the file is cut off, or holds something else."""
        try:
            with safe_open(path, framework="numpy") as file:
                state = (file.metadata() or {}).get(_FORMAT)
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or holds no feature counts ({error})") from error
        if state is None:
            raise ValueError(f"{path} holds no counts, or those of an older flip_hf: delete it and count again")
        saved = json.loads(state)
        loaded = cls([field_from_dict(spec) for spec in saved["fields"]], saved["label"])
        loaded.num_rows, loaded.first_rows = int(arrays["num_rows"][0]), saved["first_rows"]
        for number, counts in enumerate(loaded.of_field):
            if counts is not None:
                keys, sums, largest = (arrays[f"{number}.{part}"] for part in ("keys", "sums", "largest"))
                counts.add(json.loads(keys.tobytes()), sums, float(largest[0]))
        return loaded
