# SPDX-License-Identifier: Apache-2.0
"""Rows of a table -> ids of one global feature space, by vocabularies, buckets and statistics of the training rows:
numpy alone, so that it serves where neither torch nor transformers is.

Letters: B rows, F fields, S slots (columns of `feature_ids`), N features, n distinct values, K folds.

Ids never move: 0 pad, 1 mask, then 2 + 2f and 3 + 2f for an unseen and a missing value of field f, then the real
features: those of the first fit field by field, later ones (`extend`) behind them. The fitted state is a file of
arrays that is mapped into memory: a million ids load at once, and processes that load the same file share them. It is
never json and never pickle (a pickled extractor carries a copy of it).
"""

import functools
import hashlib
import itertools
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .columns_flip import CodedColumn, as_columns, code_values, whole_number
from .fields_flip import AgeField, Field, MultivaluedField, NumericField, StatisticField, code_columns, field_from_dict
from .masking_flip import PAD_FEATURE_ID, missing_id, num_reserved_features, unseen_id
from .pulling_flip import workshop


# folds of the training rows in which a statistic of the label is computed without the rows that read it
NUM_FOLDS = 5
VOCABULARY_NAME = "feature_vocabulary.safetensors"
ARRAYS = (
    "value_bytes",  # uint8, of all real features, end to end: values, names of buckets
    "value_offsets",  # (N - reserved + 1,), int64
    "sorted_hashes",  # int64, of the values of vocabularies, and
    "sorted_ids",  # int32, their ids
    "feature_counts",  # (N,), int64
    "feature_fields",  # (N,), int32
    "edges",  # float64, of all numeric fields, end to end
    "edge_offsets",  # (F + 1,), int64
    "references",  # (F,), float64, the hour that an age is counted to; else nan
    "label_features",  # int32, the features that statistics are of, and
    "label_sums",  # (features, K, 2), int64, rows and clicks in each fold
    "label_totals",  # (F, K, 2), int64, those of all rows, at the source of a statistic
)
# values whose ids are remembered, so that serving looks a value up once; longer ones, whole reviews perhaps, are not
_MAX_CACHED_VALUES = 1 << 16
_MAX_CACHED_LENGTH = 1 << 8


class Vocabulary:
    """What training rows taught, as arrays (`ARRAYS`) that do not change. What follows is computed when it is first
    needed; threads that compute it at the same time get the same, so there is no lock."""

    def __init__(self, fields: Sequence[Field], arrays: Mapping[str, np.ndarray]):
        self.fields, self.arrays = list(fields), dict(arrays)
        self.num_reserved = num_reserved_features(len(self.fields))
        self._cached_ids = self._empty_cache()
        self._spelled: dict[int, dict[str, str]] = {}
        self._digests: dict[int, list[str]] = {}

    def __reduce__(self) -> Any:
        return type(self), (self.fields, self.arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def lookup(self, field: int, values: Sequence[str | None]) -> np.ndarray:
        """Distinct values of field number `field`, `None` where missing -> ids `(n,)`, int32."""
        known = self._cached_ids[field]
        new = [value for value in values if value not in known]
        if not new:
            return np.array([known[value] for value in values], np.int32)
        found = dict(zip(new, self.find(field, [value.encode() for value in new]).tolist(), strict=True))
        ids = [found[value] if value in found else known[value] for value in values]
        short = {value: feature for value, feature in found.items() if len(value) <= _MAX_CACHED_LENGTH}
        if sum(map(len, self._cached_ids)) + len(short) > _MAX_CACHED_VALUES:  # others go on with the old ones
            self._cached_ids = self._empty_cache()
        if len(short) <= _MAX_CACHED_VALUES:
            self._cached_ids[field].update(short)
        return np.array(ids, np.int32)

    def _empty_cache(self) -> list[dict[str | None, int]]:
        return [{None: missing_id(field)} for field in range(len(self.fields))]

    def find(self, field: int, values: Sequence[bytes]) -> np.ndarray:
        """Bytes of distinct values -> ids `(n,)`, int32. Those that share a hash with others are told apart."""
        hashes, sorted_hashes = value_hashes(values, field), self["sorted_hashes"]
        stored, offsets = self["value_bytes"].data, self["value_offsets"]
        ids = np.full(len(values), unseen_id(field), np.int32)
        positions = np.searchsorted(sorted_hashes, hashes)
        left = np.arange(len(values))
        while len(left):
            left = left[positions[left] < len(sorted_hashes)]
            left = left[sorted_hashes[positions[left]] == hashes[left]]
            features = self["sorted_ids"][positions[left]]
            numbers = features - self.num_reserved
            spans = zip(left.tolist(), offsets[numbers].tolist(), offsets[numbers + 1].tolist(), strict=True)
            is_same = np.array([stored[start:end] == values[number] for number, start, end in spans], bool)
            is_same &= self["feature_fields"][features] == field
            ids[left[is_same]] = features[is_same]
            left = left[~is_same]
            positions[left] += 1
        return ids

    def value(self, feature: int) -> str:
        """The value of a real feature, or the name of a bucket."""
        start, end = self["value_offsets"][feature - self.num_reserved :][:2]
        return self["value_bytes"][start:end].tobytes().decode()

    def known_by_number(self, field: int) -> dict[str, str]:
        """Whole numbers -> the values of field number `field` that are written so, the only ones: "12" -> "00012"."""
        if field not in self._spelled:
            spelled: dict[str, list[str]] = {}
            features = np.flatnonzero(self["feature_fields"] == field)
            for value in map(self.value, features[features >= self.num_reserved].tolist()):
                number = whole_number(value)
                if number is not None:
                    spelled.setdefault(number, []).append(value)
            self._spelled[field] = {number: values[0] for number, values in spelled.items() if len(values) == 1}
        return self._spelled[field]

    @functools.cached_property
    def first_features(self) -> dict[int, int]:
        """The first real feature of each field. Buckets follow one another."""
        fields = self["feature_fields"]
        starts = np.flatnonzero(np.diff(fields[self.num_reserved :], prepend=-1))[::-1] + self.num_reserved
        return dict(zip(fields[starts].tolist(), starts.tolist(), strict=True))

    def edges(self, field: int) -> np.ndarray:
        start, end = self["edge_offsets"][field : field + 2]
        return self["edges"][start:end]

    def bucket_ids(self, field: int, numbers: np.ndarray) -> np.ndarray:
        """Numbers -> ids of their buckets, int32, of the same shape; that of a missing value for nan."""
        ids = self.first_features[field] + np.searchsorted(self.edges(field), numbers, side="right")
        return np.where(np.isnan(numbers), missing_id(field), ids).astype(np.int32)

    def label_sums(self, ids: np.ndarray) -> np.ndarray:
        """Features `(n,)` -> rows and clicks in each fold `(n, K, 2)`, 0 for those that training rows do not have."""
        first, last = (np.searchsorted(self["label_features"], ids, side) for side in ("left", "right"))
        sums = np.zeros((len(ids), NUM_FOLDS, 2), np.int64)
        sums[first < last] = self["label_sums"][first[first < last]]
        return sums

    @functools.cached_property
    def checksum(self) -> str:
        return _digest(16, *(self[name] for name in ARRAYS))

    def field_digests(self, limit: int) -> list[str]:
        """See [`FlipFeatureExtractor.field_digests`]; `limit` is a number of features."""
        if limit not in self._digests:
            self._digests[limit] = [self._field_digest(index, limit) for index in range(len(self.fields))]
        return self._digests[limit]

    def _field_digest(self, index: int, limit: int) -> str:
        field, fields = self.fields[index], self["feature_fields"][:limit]

        def of(features: np.ndarray, owner: int) -> np.ndarray:
            """Which features are the owner's: one that is out of range, in a corrupt file, is nobody's."""
            return (features >= 0) & (features < limit) & (np.take(fields, features, mode="clip") == owner)

        parts = [fields[: self.num_reserved], self["references"][index]]
        bounds = np.flatnonzero(np.diff(fields, prepend=-2, append=-2))  # one run of features, and more by `extend`
        for start, end in itertools.pairwise(bounds.tolist()):
            if start >= self.num_reserved and fields[start] == index:
                offsets = self["value_offsets"][start - self.num_reserved : end - self.num_reserved + 1]
                parts += [np.array([start, end]), np.diff(offsets), self["value_bytes"][offsets[0] : offsets[-1]]]
        is_known = of(self["sorted_ids"], index)
        parts += [self["sorted_hashes"][is_known], self["sorted_ids"][is_known]]
        parts += [np.diff(self["edge_offsets"][index : index + 2]), self.edges(index)]
        if isinstance(field, StatisticField):
            source = [other.name for other in self.fields].index(field.source)
            is_counted = of(self["label_features"], source)
            parts += [self["label_features"][is_counted], self["label_sums"][is_counted], self["label_totals"][source]]
        return _digest(8, json.dumps(field.to_dict(), sort_keys=True).encode(), *parts)

    def save(self, folder: str | os.PathLike) -> str:
        """Writes the arrays to `folder`, by way of a temporary file, so that no crash leaves half of them."""
        path = os.path.join(folder, VOCABULARY_NAME)
        arrays = {name: np.ascontiguousarray(self[name]) for name in ARRAYS}
        save_file(arrays, f"{path}.tmp", metadata={"checksum": self.checksum})
        os.replace(f"{path}.tmp", path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike, fields: Sequence[Field]) -> "Vocabulary":
        """Maps the arrays of a file into memory. Raises `ValueError` if it is cut off, corrupt or of other fields."""
        again = "copy or download the folder again"
        try:
            arrays, checksum = _mapped(path)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is cut off or no {VOCABULARY_NAME} ({error}): {again}") from error
        vocabulary = cls(fields, arrays)
        if checksum not in (None, vocabulary.checksum):
            raise ValueError(f"{path} is corrupt (its checksum is another): {again}")
        num_features, num_fields = len(vocabulary["feature_counts"]), len(vocabulary["references"])
        if num_features < vocabulary.num_reserved or num_fields != len(fields):
            raise ValueError(f"{path} does not belong to the fields {[field.name for field in fields]}")
        return vocabulary


def _mapped(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], str | None]:
    """Arrays of a safetensors file, which is not read before they are (`safe_open` copies those of numpy), and their
    checksum: behind 8 bytes, the length of what follows, json says of each its type, shape, and place behind it."""
    whole = np.memmap(path, np.uint8, mode="c").view(np.ndarray)
    start = 8 + int(whole[:8].view("<u8")[0])
    header, arrays = json.loads(whole[8:start].tobytes()), {}
    for name in ARRAYS:
        dtype, (first, last) = header[name]["dtype"], header[name]["data_offsets"]
        array = whole[start + first : start + last].view(f"<{dtype[0].lower()}{int(dtype[1:]) // 8}")
        arrays[name] = array.reshape(header[name]["shape"])
    return arrays, header.get("__metadata__", {}).get("checksum")  # none in files of before


class FeatureEncoder:
    """Fitted fields of a table: `encoder(rows)` gives `feature_ids`. What fits, saves and finds one is
    [`FlipFeatureExtractor`].

    Attributes:
        fields (`list[Field]`): kind and options of each field, in order; their names are `field_names`.
        label (`str`): the label column, never a field.
        slot_fields (`list[int]`): field of each of the S columns of `feature_ids`.
        text_fields (`list[int]`): fields that the text says something of.
        statistic_sources (`np.ndarray` of shape `(F,)`): the field that each is a statistic of, or -1. Whoever hides a
            field hides its statistics too.
        has_label_statistics (`bool`): training rows have to be encoded out of fold (`out_of_fold=True`).
        num_reserved_features (`int`): real features start here.
    """

    # ids of a value of field number `field` that the training rows do not have, and of a hole in it
    unseen_id, missing_id = staticmethod(unseen_id), staticmethod(missing_id)

    def __init__(
        self,
        field_specs: Sequence[dict[str, Any]] | None = None,
        label: str = "label",
        min_frequency: int = 1,
        **kwargs: Any,
    ):
        self.fields: list[Field] = [field_from_dict(spec) for spec in field_specs or []]
        self.label, self.min_frequency = label, min_frequency
        self.field_names = names = [field.name for field in self.fields]
        self.num_fields = len(names)
        self.num_reserved_features = num_reserved_features(self.num_fields)
        self.slot_fields = [index for index, field in enumerate(self.fields) for _ in range(field.num_slots)]
        self.text_fields = [index for index, field in enumerate(self.fields) if field.view != "tabular"]
        sources = [names.index(field.source) if isinstance(field, StatisticField) else -1 for field in self.fields]
        self.statistic_sources = np.array(sources, np.int64)
        self.has_label_statistics = max(sources, default=-1) >= 0
        self._vocabulary: Vocabulary | None = None
        super().__init__(**kwargs)  # of transformers, where it has a part in this

    @property
    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            raise ValueError("this feature extractor is not fitted: use FlipFeatureExtractor.fit(training_rows)")
        return self._vocabulary

    @property
    def feature_counts(self) -> np.ndarray:
        """How often each feature occurs in the training rows `(N,)`, int64."""
        return self.vocabulary["feature_counts"]

    @property
    def feature_fields(self) -> np.ndarray:
        """Field of each feature `(N,)`, int32, -1 for pad and mask."""
        return self.vocabulary["feature_fields"]

    @property
    def num_features(self) -> int:
        """N, reserved ids included."""
        return len(self.feature_counts)

    @property
    def field_specs(self) -> list[dict[str, Any]]:
        """The fields as json: name, kind, num_slots, view, and options that are not at their default."""
        return [field.to_dict() for field in self.fields]

    def _set_arrays(self, **arrays: np.ndarray) -> None:
        """Puts arrays in the place of those of the same name."""
        known = {} if self._vocabulary is None else self._vocabulary.arrays
        self._vocabulary = Vocabulary(self.fields, {**known, **arrays})

    def __call__(self, rows: Any, out_of_fold: bool = False) -> np.ndarray:
        """Rows in any form that [`as_columns`] takes -> `np.ndarray` of shape `(batch_size, num_slots)`, int32: never
        out of range; unseen and missing values have ids of their own, and a multivalued field is padded with 0.
        Columns that are no fields are ignored. With `out_of_fold`, for the rows the extractor was fitted on,
        statistics leave out the fold a row is in, so that no row reads its own label."""
        return self.encode_columns(self.select_columns(rows), out_of_fold)

    def select_columns(self, rows: Any, first_row: int = 0) -> list[CodedColumn]:
        """The columns of the fields, in order, coded, after checking that they are there and equally long. Errors
        count rows from `first_row`."""
        return code_columns(self.fields, as_columns(rows), first_row, self.known_by_number)

    def known_by_number(self, name: str) -> Mapping[str, str]:
        """[`Vocabulary.known_by_number`] of a field, or of the source of a statistic."""
        index = self.field_names.index(name)
        source = int(self.statistic_sources[index])
        index = index if source < 0 else source
        return self.vocabulary.known_by_number(index) if self.fields[index].has_vocabulary else {}

    def encode_columns(self, columns: Sequence[CodedColumn], out_of_fold: bool = False) -> np.ndarray:
        """What `select_columns` gives -> ids `(B, S)`, int32."""
        ids = np.empty((columns[0].num_rows, len(self.slot_fields)), np.int32)
        folds: Any = NUM_FOLDS  # none is left out
        if out_of_fold and self.has_label_statistics:
            folds = workshop("fitting.counts").row_folds(self.fields, columns)
        slot = 0
        for index, (field, column) in enumerate(zip(self.fields, columns, strict=True)):
            if field.num_slots:
                rows = (column.indices, folds) if isinstance(field, StatisticField) else column.indices
                found = self._ids(index, field, column.values)[rows].reshape(len(ids), field.num_slots)
                ids[:, slot : slot + field.num_slots] = found
                slot += field.num_slots
        return ids

    def _lookup(self, index: int, values: Sequence[Any]) -> np.ndarray:
        """Distinct strings of categorical field number `index`, `None` where missing -> ids `(n,)`."""
        num_buckets = self.fields[index].hash_buckets  # type: ignore[attr-defined]
        if not num_buckets:
            return self.vocabulary.lookup(index, values)
        buckets = hash_buckets(values, num_buckets)
        return np.where(buckets == num_buckets, missing_id(index), self.vocabulary.first_features[index] + buckets)

    def _ids(self, index: int, field: Field, values: Sequence[Any]) -> np.ndarray:
        """Distinct values that field number `index` read -> ids `(n,)`; of lists `(n, num_slots)`, padded at the end;
        of a statistic `(n, K + 1)`, for rows of each fold and for rows of none."""
        vocabulary = self.vocabulary
        if isinstance(field, StatisticField):
            source = self.statistic_sources[index]
            ids = self._lookup(source, values)
            numbers = statistics(field, vocabulary.label_sums(ids), vocabulary["label_totals"][source])
            buckets = vocabulary.bucket_ids(index, numbers)
            return np.where((ids == missing_id(source))[:, None], missing_id(index), buckets)
        if isinstance(field, NumericField):
            numbers, unreadable = field.numbers(values)
            if isinstance(field, AgeField):
                numbers = field.ages(numbers, vocabulary["references"][index])
            return np.where(unreadable, unseen_id(index), vocabulary.bucket_ids(index, numbers))
        if not isinstance(field, MultivaluedField):
            return self._lookup(index, values)
        lists = [field.elements(value) for value in values]
        lengths = np.array(list(map(len, lists)))
        elements = code_values(list(itertools.chain.from_iterable(lists)))
        ids = np.full((len(lists), field.num_slots), PAD_FEATURE_ID, np.int32)
        ids[np.arange(field.num_slots) < lengths[:, None]] = self._lookup(index, elements.values)[elements.indices]
        ids[lengths == 0, 0] = missing_id(index)
        return ids

    def decode(self, feature_ids: Any) -> list[str]:
        """Ids -> values, and of buckets their names; reserved ids as `"[PAD]"`, `"[MASK]"`, `"[UNSEEN]"`,
        `"[MISSING]"`."""
        reserved = ["[PAD]", "[MASK]", *["[UNSEEN]", "[MISSING]"] * self.num_fields]
        ids = np.asarray(feature_ids).reshape(-1).tolist()
        return [reserved[feature] if feature < len(reserved) else self.vocabulary.value(feature) for feature in ids]

    def value_text(self, field: int, value: Any) -> str | None:
        """What the text says of a value of field number `field` in what `select_columns` gives; `None` where it is
        missing."""
        spec = self.fields[field]
        if isinstance(spec, AgeField):
            numbers, _ = spec.numbers([value])
            return spec.age_text(float(spec.ages(numbers, self.vocabulary["references"][field])[0]))
        return spec.text(value)

    def digest(self) -> str:
        """Of everything fitted: equal digests give equal ids. Cheap, whatever the number of features."""
        settings = json.dumps([self.field_specs, self.label, self.min_frequency], sort_keys=True)
        return _digest(16, settings.encode(), self.vocabulary.checksum.encode())

    def field_digests(self, num_features: int | None = None) -> list[str]:
        """For each field a digest of all that decides its ids, but not of how often values occur; without features
        from id `num_features` on what it was before [`extend`] added those."""
        return self.vocabulary.field_digests(self.num_features if num_features is None else num_features)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureEncoder) and self.digest() == other.digest()

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        fitted = "not fitted" if self._vocabulary is None else f"{self.num_features} features"
        return f"{type(self).__name__}({', '.join(self.field_names)}; {fitted})"

    def save_vocabulary(self, folder: str | os.PathLike) -> str:
        """Writes the arrays to `folder`; returns the path of the file."""
        return self.vocabulary.save(folder)

    def load_vocabulary(self, path: str | os.PathLike) -> None:
        self._vocabulary = Vocabulary.load(path, self.fields)


def fields_that_differ(extractor: Any, num_features: int, digests: Sequence[str] | None) -> list[str]:
    """Fields whose first `num_features` ids mean something else than they did to an extractor of other `digests`."""
    if digests is None:
        return []
    pairs = zip(extractor.field_names, extractor.field_digests(num_features), digests, strict=True)
    return [name for name, digest, other in pairs if digest != other]


def ids_problem(
    extractor: Any, fields: Sequence[Mapping[str, Any]], num_features: int, digests: Sequence[str] | None
) -> str | None:
    """Why a model whose configuration has these `fields`, `num_features` and `feature_digests` cannot read the ids of
    an extractor."""
    remedy = "load the processor from the model's own folder"
    names = [field["name"] for field in fields]
    slots = [index for index, field in enumerate(fields) for _ in range(field.get("num_slots", 1))]
    if list(extractor.field_names) != names:
        return f"it has the fields {list(extractor.field_names)}, the model {names}; {remedy}"
    if list(extractor.slot_fields) != slots:
        return f"its ids have {len(extractor.slot_fields)} columns, the model reads {len(slots)}; {remedy}"
    if extractor.num_features != num_features:
        problem = f"it knows {extractor.num_features} features, the model {num_features}; {remedy}, or, if it was "
        return f"{problem}extended, grow the model with resize_feature_embeddings(processor)"
    changed = fields_that_differ(extractor, num_features, digests)
    if changed:
        problem = f"its ids of {', '.join(changed)} stand for other values than the model's, or are read with other "
        return f"{problem}options; {remedy} (if you know that they mean the same: config.feature_digests = None)"
    return None


# bytes of a value that are hashed and compared together with those of all others; longer values are few
MAX_HASHED_BYTES = 64


def value_hashes(values: Sequence[bytes], field: int) -> np.ndarray:
    """64 bits of each value of field number `field`, int64 `(n,)`, under which the vocabulary file finds it again."""
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


def hash_buckets(values: Sequence[str | None], num_buckets: int) -> np.ndarray:
    """Values -> int64 bucket in [0, num_buckets), `num_buckets` itself where one is missing."""
    buckets = (num_buckets if value is None else zlib.crc32(value.encode()) % num_buckets for value in values)
    return np.fromiter(buckets, np.int64, len(values))


def statistics(field: StatisticField, sums: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Rows and clicks in each fold, of n values `(n, K, 2)` and of all rows `(K, 2)` -> the statistic `(n, K + 1)`, as
    rows of each fold read it, and those that were not counted."""
    if field.statistic == "frequency":
        # a training row counts the others: a value that it alone has is as rare as one that is new
        num_rows = sums[:, :, 0].sum(1, keepdims=True)
        return np.hstack([np.maximum(num_rows - 1, 0).repeat(NUM_FOLDS, 1), num_rows]).astype(np.float64)
    # (n, K + 1) each, what the other folds have
    rows, clicks = np.moveaxis(sums.sum(1, keepdims=True) - np.pad(sums, ((0, 0), (0, 1), (0, 0))), -1, 0)
    all_rows, all_clicks = (totals.sum(0) - np.pad(totals, ((0, 1), (0, 0)))).T
    prior = all_clicks / np.maximum(all_rows, 1)
    return (clicks + field.smoothing * prior) / (rows + field.smoothing)


def _digest(size: int, *parts: bytes | np.ndarray) -> str:
    """Hexadecimal, of `size` bytes."""
    content = hashlib.blake2b(digest_size=size)
    for part in parts:
        content.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return content.hexdigest()
