# SPDX-License-Identifier: Apache-2.0
"""Rows of a table -> ids of one global feature space, by vocabularies fitted on the training rows.

Letters: B rows, F fields, S slots (columns of `feature_ids`; one per field so far), N features.

Ids never move: 0 pad, 1 mask, then 2 + 2f and 3 + 2f for an unseen and a missing value of field f, then the real
features. The fitted state is a file of arrays that is mapped into memory: a million ids load at once, and processes
that load the same file share them. It is never json and never pickle (a pickled extractor carries a copy of it).
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import cached_file, logging

from .configuration_flip import MASK_FEATURE_ID, NUM_SHARED_FEATURE_IDS, PAD_FEATURE_ID


logger = logging.get_logger(__name__)

VOCABULARY_NAME = "feature_vocabulary.safetensors"
_ARRAYS = ("value_bytes", "value_offsets", "sorted_hashes", "sorted_ids", "feature_counts", "feature_fields")
# raw values remembered per field, so that a value is looked up once and not once per row
_MAX_CACHED_VALUES = 1 << 18
# and no more characters of them, since the values of a field may be whole reviews
_MAX_CACHED_CHARACTERS = 1 << 26
_FIT_BATCH_SIZE = 100_000
# how objects that stand for nothing print: an empty value, pandas.NaT, pandas.NA, decimal.Decimal("nan")
_MISSING_OBJECTS = ("", "NaT", "<NA>", "NaN", "sNaN")


def canonical_value(value: Any, field: str = "") -> str | None:
    """
    The string that a value of a categorical field stands for; `None` where it is missing.

    Strings lose surrounding whitespace. `1` and `1.0` are the same value as `"1"` (a column of ints with a hole
    becomes floats in pandas); `"1.0"` is another, and so are `True` and `False`. `None`, nan, `pandas.NA`, `NaT`, `""`
    and whitespace are missing. Half a surrogate pair, which no encoding holds, becomes "?".

    Raises:
        TypeError: for a list, dict or other container, naming the field.
    """
    if isinstance(value, str):
        text = value.strip()
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-8", "replace").decode()
        return text or None
    if value is None:
        return None
    if _is_container(value):
        raise TypeError(_container_message(value, field))
    if hasattr(value, "ndim") and not isinstance(value, np.generic):  # an array or tensor of no dimension
        value = value.item()
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        return str(int(value)) if math.isfinite(value) and value == int(value) else repr(float(value))
    if isinstance(value, bytes):
        return canonical_value(value.decode("utf-8", "replace"), field)
    text = str(value).strip()
    return None if text in _MISSING_OBJECTS else text


def _is_container(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset | Mapping) or getattr(value, "ndim", 0) > 0


def _container_message(value: Any, field: str, row: int | None = None) -> str:
    where = "" if row is None else f" in row {row}"
    return (
        f"field {field!r} holds a {type(value).__name__}{where} ({str(value)[:60]}), a categorical field one value "
        'per row: join it into a string (", ".join(values)) or leave the field out'
    )


def as_list(column: Any) -> Sequence[Any]:
    """A column as a Python sequence, whatever holds it."""
    for method in ("to_pylist", "tolist"):  # arrow; numpy, pandas and torch
        if hasattr(column, method):
            return getattr(column, method)()
    return column if isinstance(column, list | tuple) else list(column)


class CodedColumn:
    """
    A column as its distinct values, and for each row the number of its value: what is done per value is done once.

    Args:
        values (`list`): distinct values that can be keys of one dict, raw or already canonical.
        indices (`np.ndarray` of shape `(B,)`, int64): position of each row's value in `values`.
    """

    def __init__(self, column: Any, field: str = ""):
        if _is_arrow(column):  # a null is -1, the last of the values
            indices, values = _arrow_codes(column)
            self.values, self.indices = [*_plain_values(values, field), None], indices.astype(np.int64)
            return
        plain = _plain_values(as_list(column), field)
        numbers = {value: number for number, value in enumerate(dict.fromkeys(plain))}
        self.values = list(numbers)
        self.indices = np.fromiter(map(numbers.__getitem__, plain), np.int64, len(plain))

    def __len__(self) -> int:
        return len(self.indices)


def _plain_values(column: Sequence[Any], field: str = "", first_row: int = 0) -> Sequence[Any]:
    """
    A column -> values that can be keys of one dict: 1, 1.0 and True are equal to Python and different here.

    Raises:
        TypeError: at the first list or other container, naming the field and the row, counted from `first_row`.
    """
    types = set(map(type, column))
    if types <= {str, type(None)} or types == {int}:
        return column
    for row, value in enumerate(column):
        if _is_container(value):
            raise TypeError(_container_message(value, field, first_row + row))
    return [value if type(value) is str else canonical_value(value) for value in column]


def _is_arrow(column: Any) -> bool:
    """An Arrow column whose distinct values Arrow itself can find: lists and structs are none."""
    return hasattr(column, "dictionary_encode") and not column.type.num_fields


def _is_column(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0


def as_columns(rows: Any) -> Mapping[str, Any]:
    """
    A batch in any of the forms users have it -> a mapping of columns.

    Takes a dict of lists, a list of dicts, one dict (a batch of one), a batch or row of `datasets.map`, a
    `datasets.Dataset`, an Arrow table or a pandas frame. A key that some of the dicts lack is missing there.

    Raises:
        TypeError: for anything else.
        ValueError: if a list of rows is empty.
    """
    if isinstance(rows, Mapping):
        # the first column of a batch ends this: a lazy batch need not decode the others
        if any(_is_column(rows[name]) for name in rows):
            return rows
        return {name: [rows[name]] for name in rows}
    if hasattr(rows, "with_format") and hasattr(rows, "__getitem__"):  # a datasets.Dataset, whatever its format
        rows = rows.with_format("arrow")[:]
    if hasattr(rows, "column_names") and hasattr(rows, "column"):  # an Arrow table
        return {name: rows.column(name) for name in rows.column_names}
    if hasattr(rows, "columns") and hasattr(rows, "iloc"):  # a pandas frame
        return {str(name): rows[name] for name in rows.columns}
    if isinstance(rows, Sequence) and not isinstance(rows, str | bytes):
        if not len(rows):
            raise ValueError("no rows: the list is empty")
        if all(isinstance(row, Mapping) for row in rows):
            names = dict.fromkeys(name for row in rows for name in row)
            return {name: [row.get(name) for row in rows] for name in names}
    raise TypeError(
        f"rows are a {type(rows).__name__}: pass a dict of lists, a list of dicts, one dict, a datasets.Dataset, an "
        "Arrow table or a pandas frame"
    )


def _select(columns: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    """The columns `names`, after checking that they are there, are columns, and are equally long."""
    absent = [name for name in names if name not in columns]
    if absent:
        raise ValueError(
            f"no column for field {', '.join(map(repr, absent))}; the rows have {', '.join(map(str, columns))}. A "
            "value may be missing (None), a column may not"
        )
    selected = [columns[name] for name in names]
    single = [name for name, column in zip(names, selected, strict=True) if not _is_column(column)]
    if len(single) == len(names):  # one row, beside something that is no field
        return [[value] for value in selected]
    if single:
        raise ValueError(
            f"field {single[0]!r} is the one value {str(columns[single[0]])[:40]!r} and others are columns: pass a "
            "list for every field, or one value for every field"
        )
    sizes = {name: len(column) for name, column in zip(names, selected, strict=True)}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"columns differ in length: {sizes}")
    return selected


class FlipFeatureExtractor(FeatureExtractionMixin):
    r"""
    Fitted vocabularies of the fields of a table: `extractor(rows)` gives `feature_ids`.

    Build one with [`FlipFeatureExtractor.fit`] or [`FlipFeatureExtractor.from_pretrained`].

    Attributes:
        field_names (`list[str]`): the fields, in order.
        num_features (`int`): N, reserved ids included.
        feature_counts (`np.ndarray` of shape `(N,)`, int64): how often each feature occurs in the training rows.
        feature_fields (`np.ndarray` of shape `(N,)`, int32): field of each feature, -1 for pad and mask.
        label (`str`): the label column, never a field.
    """

    model_input_names = ["feature_ids"]
    _cached_characters: int

    def __init__(
        self,
        field_specs: Sequence[dict[str, Any]] | None = None,
        label: str = "label",
        min_frequency: int = 1,
        **kwargs: Any,
    ):
        self.field_specs = [dict(spec) for spec in field_specs or []]
        self.label = label
        self.min_frequency = min_frequency
        self._reset_caches()
        for name in _ARRAYS:
            self.__dict__.setdefault(f"_{name}", None)
        super().__init__(**{key: value for key, value in kwargs.items() if key != "feature_extractor_type"})

    # --- shape ----------------------------------------------------------------------------------------------------

    @property
    def field_names(self) -> list[str]:
        return [spec["name"] for spec in self.field_specs]

    @property
    def num_fields(self) -> int:
        """F."""
        return len(self.field_specs)

    @property
    def slot_fields(self) -> list[int]:
        """Field index of each of the S columns of `feature_ids`."""
        return [index for index, spec in enumerate(self.field_specs) for _ in range(spec["num_slots"])]

    @property
    def num_reserved_features(self) -> int:
        """Real features start here."""
        return NUM_SHARED_FEATURE_IDS + 2 * self.num_fields

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
        return NUM_SHARED_FEATURE_IDS + 2 * field

    def missing_id(self, field: int) -> int:
        """Id of a hole in field number `field`."""
        return NUM_SHARED_FEATURE_IDS + 2 * field + 1

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
        exclude: Sequence[str] = ("rating", "timestamp"),
        min_frequency: int = 1,
    ) -> "FlipFeatureExtractor":
        """
        Builds the vocabularies from training rows, and from nothing else.

        Args:
            dataset: training rows, in any form that `extractor(rows)` takes, or an iterable of such batches.
            fields (`list[str]`, *optional*): the columns to use, in this order; default: all but `label` and
                `exclude`.
            label (`str`): name of the label column.
            exclude (`list[str]`): columns that are no fields unless `fields` names them.
            min_frequency (`int`): values that occur less often are treated as unseen.

        Raises:
            ValueError: if the table is empty, a field is not there or has no value at all, columns differ in length,
                `min_frequency` is less than 1, or validation and test rows are passed as well.
            TypeError: if a value is a list or another container, or `fields` is one string.
        """
        if isinstance(fields, str):
            raise TypeError(f"fields={fields!r} is one string: pass a list of column names, [{fields!r}]")
        if min_frequency < 1:
            raise ValueError(f"min_frequency={min_frequency} is less than 1, which keeps every value")
        if isinstance(dataset, Mapping) and any(
            hasattr(part, "column_names") or (hasattr(part, "iloc") and hasattr(part, "columns"))
            for part in dataset.values()
        ):
            raise ValueError(
                f"vocabularies come from training rows alone and this has the splits {list(dataset)}: "
                "FlipFeatureExtractor.fit(splits['train'])"
            )
        counters: list[dict[str | None, int]] = []
        names: list[str] = []
        num_rows = 0
        for columns in _batches(dataset):
            if not counters:
                names = cls._choose_fields(list(columns), fields, label, exclude)
                counters = [{} for _ in names]
            selected = _select(columns, names)
            for name, counter, column in zip(names, counters, selected, strict=True):
                _count(column, name, counter, num_rows)
            num_rows += len(selected[0])
        if num_rows == 0:
            raise ValueError("the table has no rows: there is nothing to fit vocabularies on")
        return cls._from_counts(names, counters, label, min_frequency, num_rows)

    @staticmethod
    def _choose_fields(
        columns: list[str], fields: Sequence[str] | None, label: str, exclude: Sequence[str]
    ) -> list[str]:
        if fields is None:
            fields = [name for name in columns if name != label and name not in exclude]
        unknown = [name for name in fields if name not in columns]
        if unknown:
            raise ValueError(f"no such field: {', '.join(map(repr, unknown))}; the table has {', '.join(columns)}")
        if label in fields:
            raise ValueError(f"the label column {label!r} cannot be a field: the model would read the answer")
        if len(set(fields)) != len(fields):
            raise ValueError(f"a field is named twice: {list(fields)}")
        if not fields:
            raise ValueError(f"no field is left: the table has {', '.join(columns) or 'no columns'}")
        return list(fields)

    @classmethod
    def _from_counts(
        cls, names: list[str], counters: list[dict[str | None, int]], label: str, min_frequency: int, num_rows: int
    ) -> "FlipFeatureExtractor":
        extractor = cls(
            [{"name": name, "kind": "categorical", "num_slots": 1} for name in names], label, min_frequency
        )
        reserved = extractor.num_reserved_features
        counts, fields, values = [0] * reserved, [-1] * reserved, []
        for index, (name, counter) in enumerate(zip(names, counters, strict=True)):
            unseen, missing = extractor.unseen_id(index), extractor.missing_id(index)
            fields[unseen] = fields[missing] = index
            counts[missing] = counter.pop(None, 0)
            if not counter:
                raise ValueError(
                    f"field {name!r} has no value in any of the {num_rows} rows: leave it out of `fields`"
                )
            if len(counter) == 1:
                logger.warning(
                    f"field {name!r} has the one value {next(iter(counter))[:40]!r} in all rows: it says nothing"
                )
            kept = [(value, count) for value, count in counter.items() if count >= min_frequency]
            counts[unseen] = sum(counter.values()) - sum(count for _, count in kept)
            # an order that the order of the rows does not change
            for value, count in sorted(kept, key=lambda pair: (-pair[1], pair[0])):
                values.append(value.encode())
                counts.append(count)
                fields.append(index)
        offsets = np.zeros(len(values) + 1, np.int64)
        np.cumsum([len(value) for value in values], out=offsets[1:])
        hashes = np.array(
            [_hash(value, field) for value, field in zip(values, fields[reserved:], strict=True)], np.int64
        )
        order = np.argsort(hashes, kind="stable")
        extractor._set_arrays(
            value_bytes=np.frombuffer(b"".join(values) or b"\0", np.uint8),
            value_offsets=offsets,
            sorted_hashes=hashes[order],
            sorted_ids=(order + reserved).astype(np.int32),
            feature_counts=np.array(counts, np.int64),
            feature_fields=np.array(fields, np.int32),
        )
        return extractor

    def _set_arrays(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            self.__dict__[f"_{name}"] = array
        self._reset_caches()

    # --- rows -> ids ----------------------------------------------------------------------------------------------

    def __call__(self, rows: Any) -> np.ndarray:
        """
        Args:
            rows: a dict of lists, a list of dicts, one dict, a batch of `datasets.map`, an Arrow table or a pandas
                frame; columns that are no fields are ignored.

        Returns:
            `np.ndarray` of shape `(batch_size, num_slots)`, int32: never out of range; unseen and missing values have
            ids of their own.

        Raises:
            ValueError: if a field has no column.
            TypeError: if a value is a list or another container.
        """
        return self.encode_columns(self.select_columns(rows))

    def select_columns(self, rows: Any) -> list[CodedColumn]:
        """The columns of the fields, in order, coded, after checking that they are there and equally long."""
        selected = _select(as_columns(rows), self.field_names)
        return [CodedColumn(column, name) for column, name in zip(selected, self.field_names, strict=True)]

    def encode_columns(self, columns: Sequence[CodedColumn]) -> np.ndarray:
        """What `select_columns` gives -> ids `(B, S)`, int32."""
        ids = np.empty((len(columns[0]), len(columns)), np.int32)
        for field, column in enumerate(columns):
            ids[:, field] = np.array(self._lookup(field, column.values), np.int32).take(column.indices)
        return ids

    def _lookup(self, field: int, values: Sequence[Any]) -> list[int]:
        """Distinct values of field number `field` -> their ids."""
        cache = self._caches.setdefault(field, {})
        try:
            return list(map(cache.__getitem__, values))
        except KeyError:
            self._remember(field, values, cache)
            return list(map(cache.__getitem__, values))

    def _remember(self, field: int, values: Sequence[Any], cache: dict[Any, int]) -> None:
        """Looks up, all at once, the distinct values that the field's cache does not hold yet."""
        name = self.field_names[field]
        new = [value for value in values if value not in cache]
        self._cached_characters += _characters(new)
        if len(cache) + len(new) > _MAX_CACHED_VALUES or self._cached_characters > _MAX_CACHED_CHARACTERS:
            for other in self._caches.values():
                other.clear()
            new = list(values)
            self._cached_characters = _characters(new)
        canonical = [canonical_value(value, name) for value in new]
        present = [value.encode() for value in canonical if value is not None]
        found = iter(self._find(field, present))
        for value, text in zip(new, canonical, strict=True):
            cache[value] = self.missing_id(field) if text is None else next(found)

    def _find(self, field: int, values: list[bytes]) -> list[int]:
        """Bytes of distinct values -> ids, by binary search in the sorted hashes and a comparison of the bytes."""
        hashes = np.array([_hash(value, field) for value in values], np.int64)
        sorted_hashes, sorted_ids = self._array("sorted_hashes"), self._array("sorted_ids")
        positions = np.searchsorted(sorted_hashes, hashes)
        ids = []
        for value, wanted, position in zip(values, hashes.tolist(), positions.tolist(), strict=True):
            found = self.unseen_id(field)
            while position < len(sorted_hashes) and sorted_hashes[position] == wanted:
                candidate = int(sorted_ids[position])
                if self.feature_fields[candidate] == field and self._value_bytes_of(candidate) == value:
                    found = candidate
                    break
                position += 1  # another value with the same 64 bits
            ids.append(found)
        return ids

    def _value_bytes_of(self, feature: int) -> bytes:
        offsets, index = self._array("value_offsets"), feature - self.num_reserved_features
        return self._array("value_bytes")[offsets[index] : offsets[index + 1]].tobytes()

    def decode(self, feature_ids: Any) -> list[str]:
        """Ids -> values; reserved ids as `"[PAD]"`, `"[MASK]"`, `"[UNSEEN]"`, `"[MISSING]"`."""
        decoded = []
        for feature in np.asarray(feature_ids).reshape(-1).tolist():
            if feature in (PAD_FEATURE_ID, MASK_FEATURE_ID):
                decoded.append("[PAD]" if feature == PAD_FEATURE_ID else "[MASK]")
            elif feature < self.num_reserved_features:
                decoded.append("[MISSING]" if feature % 2 else "[UNSEEN]")
            else:
                decoded.append(self._value_bytes_of(feature).decode())
        return decoded

    def rates(self, feature_ids: Any) -> dict[str, dict[str, float]]:
        """`(B, S)` -> for each field the shares of rows whose value is unseen, and missing."""
        ids = np.asarray(feature_ids)
        slots = np.asarray(self.slot_fields)
        return {
            name: {
                "unseen": float((ids[:, slots == index] == self.unseen_id(index)).mean()) if len(ids) else 0.0,
                "missing": float((ids[:, slots == index] == self.missing_id(index)).mean()) if len(ids) else 0.0,
            }
            for index, name in enumerate(self.field_names)
        }

    # --- state ----------------------------------------------------------------------------------------------------

    def _reset_caches(self) -> None:
        self._caches: dict[int, dict[Any, int]] = {}
        self._cached_characters = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_caches": {}, "_cached_characters": 0}

    def digest(self) -> str:
        """Of everything fitted: equal digests give equal ids. Cheap, whatever the number of features."""
        content = hashlib.blake2b(digest_size=16)
        content.update(json.dumps([self.field_specs, self.label, self.min_frequency], sort_keys=True).encode())
        for name in _ARRAYS:
            content.update(np.ascontiguousarray(self._array(name)).data)
        return content.hexdigest()

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
        save_file({name: np.ascontiguousarray(self._array(name)) for name in _ARRAYS}, f"{path}.tmp")
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
                arrays = {name: file.get_tensor(name).numpy() for name in _ARRAYS}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is cut off or no {VOCABULARY_NAME} ({error}): copy or download the folder again"
            ) from error
        if len(arrays["feature_counts"]) < self.num_reserved_features:
            raise ValueError(f"{path} does not belong to the fields {self.field_names}")
        self._set_arrays(**arrays)

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Writes `preprocessor_config.json` and `feature_vocabulary.safetensors`."""
        os.makedirs(save_directory, exist_ok=True)
        path = self.save_vocabulary(save_directory)
        return [*super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs), path]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """
        Loads a fitted extractor from a folder or the Hub; `token`, `revision`, `subfolder`, `cache_dir` and
        `local_files_only` hold for all of its files.

        Raises:
            OSError: if a file is not there.
            ValueError: if the vocabulary is cut off or corrupt.
        """
        where = {
            key: kwargs[key]
            for key in ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")
            if kwargs.get(key) is not None
        }
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        extractor = loaded[0] if isinstance(loaded, tuple) else loaded
        extractor.load_vocabulary(cached_file(str(pretrained_model_name_or_path), VOCABULARY_NAME, **where))
        return loaded


def _batches(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """Batches of columns of whatever `fit` is given; a `datasets.Dataset` as Arrow, a piece at a time."""
    if hasattr(dataset, "with_format") and hasattr(dataset, "iter"):
        for table in dataset.with_format("arrow").iter(batch_size=_FIT_BATCH_SIZE):
            yield as_columns(table)
    elif isinstance(dataset, Iterator):
        for batch in dataset:
            yield as_columns(batch)
    elif isinstance(dataset, Sequence) and not len(dataset):
        return
    else:
        yield as_columns(dataset)


def _arrow_codes(column: Any) -> tuple[np.ndarray, list[Any]]:
    """An Arrow column -> index of each row's value in the list of distinct values (-1 where it is null), that list."""
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
        if hasattr(column, "num_chunks"):  # more than one array can hold
            column = column.chunk(0) if column.num_chunks == 1 else column
    encoded = column.dictionary_encode() if not hasattr(column, "indices") else column
    return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()


def _count(column: Any, name: str, counter: dict[str | None, int], first_row: int) -> None:
    """Adds a column's values to `counter`, missing ones under None; `first_row` is what errors count rows from."""
    if _is_arrow(column):
        pairs: Iterable[tuple[Any, int]] = (
            (pair["values"], pair["counts"]) for pair in column.value_counts().to_pylist()
        )
    else:
        pairs = Counter(_plain_values(as_list(column), name, first_row)).items()
    for value, count in pairs:
        text = canonical_value(value, name)
        counter[text] = counter.get(text, 0) + count


def _characters(values: Sequence[Any]) -> int:
    return sum(len(value) for value in values if type(value) is str)


def _hash(value: bytes, field: int) -> int:
    digest = hashlib.blake2b(value, digest_size=8, salt=field.to_bytes(4, "little")).digest()
    return int.from_bytes(digest, "little", signed=True)


FlipFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")


__all__ = ["FlipFeatureExtractor"]
