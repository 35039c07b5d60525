# SPDX-License-Identifier: Apache-2.0
"""What has to be known of training rows to build vocabularies, buckets and statistics, counted in one pass.

Counts of parts of a table add up to the counts of the whole, bit by bit and in any order: numbers are counted in bins
that are fixed beforehand, and the fold of a row follows from its content.

Letters: B rows, n distinct values, K folds (`NUM_FOLDS`).
"""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers.utils import logging

from ..columns_flip import BATCH_SIZE, CodedColumn, as_columns, batches, class_names, read_labels
from ..feature_extraction_flip import NO_FIELDS, NUM_FOLDS, hash_buckets, row_folds
from ..fields_flip import (
    AgeField,
    CategoricalField,
    Field,
    MultivaluedField,
    NumericField,
    StatisticField,
    code_columns,
    field_from_dict,
)
from ..values_flip import VALUE_TYPES, is_code
from .schema import KIND_OF_OPTION, KIND_OF_TYPE, expand_field, infer_column


logger = logging.get_logger(__name__)

# numbers whose first bits after the leading one agree share a bin: with 10, integers up to 2048 have bins of their own
NUMBER_BITS = 10
# of hours since 1970 only the distance from the newest is read: up to 2^21 each has a bin of its own
HOUR_BITS = 20
# what pandas calls the index that it wrote
_INDEX = re.compile(r"Unnamed: \d+|__index_level_\d+__")
_SIGN = np.int64(0x7FFFFFFFFFFFFFFF)


def number_bins(numbers: np.ndarray, num_bits: int = NUMBER_BITS) -> np.ndarray:
    """float64 `(n,)` -> int64 bins `(n,)`, in the order of the numbers; at most 0.1 % of a number wide."""
    bits = (numbers + 0.0).view(np.int64)  # -0.0 + 0.0 is 0.0
    return np.where(bits < 0, bits ^ _SIGN, bits) >> (52 - num_bits)


def bin_starts(bins: np.ndarray, num_bits: int = NUMBER_BITS) -> np.ndarray:
    """The smallest number of each bin."""
    bits = bins << (52 - num_bits)
    numbers = np.where(bits < 0, bits ^ _SIGN, bits).view(np.float64)
    return np.where(np.isnan(numbers), -np.inf, numbers)  # the bin of -inf starts among the bits of nan


def _packed(values: Iterable[str]) -> dict[str, np.ndarray]:
    encoded = [value.encode() for value in values]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return {"bytes": np.frombuffer(b"".join(encoded), np.uint8), "lengths": lengths}


def _unpacked(arrays: Mapping[str, np.ndarray]) -> list[str]:
    content, ends = arrays["bytes"].tobytes(), np.cumsum(arrays["lengths"])
    starts = ends - arrays["lengths"]
    return [content[start:end].decode() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


class ValueCounts:
    """Values of a vocabulary. `None` is a missing value; of a multivalued field, a row without values."""

    def __init__(self) -> None:
        self.counts: dict[str | None, int] = {}
        self.longest = 1

    def add(self, field: CategoricalField, column: CodedColumn) -> None:
        counts = self.counts
        occurrences = column.counts().tolist()
        if isinstance(field, MultivaluedField):
            for value, count in zip(column.values, occurrences, strict=True):
                elements = field.elements(value)
                self.longest = max(self.longest, len(elements))
                for element in elements or (None,):
                    counts[element] = counts.get(element, 0) + count
            return
        for value, count in zip(column.values, occurrences, strict=True):
            counts[value] = counts.get(value, 0) + count

    def merge(self, other: "ValueCounts") -> None:
        self.longest = max(self.longest, other.longest)
        for value, count in other.counts.items():
            self.counts[value] = self.counts.get(value, 0) + count

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            **_packed(value for value in self.counts if value is not None),
            "counts": np.array([count for value, count in self.counts.items() if value is not None], np.int64),
            "rest": np.array([self.counts.get(None, 0), self.longest], np.int64),
        }

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.counts = dict(zip(_unpacked(arrays), arrays["counts"].tolist(), strict=True))
        missing, self.longest = arrays["rest"].tolist()
        if missing:
            self.counts[None] = missing


class HashCounts:
    """Buckets of a field without a vocabulary; the last entry counts missing values."""

    def __init__(self, field: CategoricalField) -> None:
        self.counts = np.zeros(field.hash_buckets + 1, np.int64)
        self.longest = 1

    def add(self, field: CategoricalField, column: CodedColumn) -> None:
        for_missing = len(self.counts) - 1
        if isinstance(field, MultivaluedField):
            for value, count in zip(column.values, column.counts().tolist(), strict=True):
                elements = field.elements(value)
                self.longest = max(self.longest, len(elements))
                np.add.at(self.counts, hash_buckets(elements or (None,), for_missing), count)
            return
        np.add.at(self.counts, hash_buckets(column.values, for_missing), column.counts())

    def merge(self, other: "HashCounts") -> None:
        self.longest = max(self.longest, other.longest)
        self.counts += other.counts

    def arrays(self) -> dict[str, np.ndarray]:
        return {"counts": self.counts, "longest": np.array([self.longest], np.int64)}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.counts, self.longest = arrays["counts"].copy(), int(arrays["longest"][0])


class NumberCounts:
    """Numbers in bins; where edges are known, in buckets. Beside them missing values, and what was no number."""

    def __init__(self, edges: Sequence[float] | None = None, num_bits: int = NUMBER_BITS) -> None:
        self.edges = None if edges is None else np.array(edges)
        self.num_bits = num_bits
        self.counts: dict[int, int] = {}
        self.missing = self.unreadable = 0
        self.newest = -np.inf

    def add(self, field: NumericField, column: CodedColumn) -> None:
        numbers, unreadable = field.numbers(column.values)
        counts = column.counts()
        is_number = ~np.isnan(numbers)
        self.unreadable += int(counts[unreadable].sum())
        self.missing += int(counts[~is_number & ~unreadable].sum())
        self.add_numbers(numbers[is_number], counts[is_number])

    def add_numbers(self, numbers: np.ndarray, counts: np.ndarray) -> None:
        """Distinct numbers `(n,)` and how often each occurs `(n,)`."""
        if not len(numbers):
            return
        self.newest = max(self.newest, float(numbers.max()))
        if self.edges is None:
            keys = number_bins(numbers, self.num_bits)
        else:
            keys = np.searchsorted(self.edges, numbers, side="right")
        distinct, position = np.unique(keys, return_inverse=True)
        totals = np.zeros(len(distinct), np.int64)
        np.add.at(totals, position, counts)
        for key, count in zip(distinct.tolist(), totals.tolist(), strict=True):
            self.counts[key] = self.counts.get(key, 0) + count

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Bins, or buckets of known edges, in order `(n,)`, and numbers in each `(n,)`."""
        keys = np.array(sorted(self.counts), np.int64)
        return keys, np.array([self.counts[key] for key in keys.tolist()], np.int64)

    def starts(self) -> np.ndarray:
        """The smallest number of each bin `(n,)`."""
        return bin_starts(self.bins()[0], self.num_bits)

    def merge(self, other: "NumberCounts") -> None:
        self.missing += other.missing
        self.unreadable += other.unreadable
        self.newest = max(self.newest, other.newest)
        for key, count in other.counts.items():
            self.counts[key] = self.counts.get(key, 0) + count

    def arrays(self) -> dict[str, np.ndarray]:
        keys, counts = self.bins()
        rest = np.array([self.missing, self.unreadable], np.int64)
        return {"keys": keys, "counts": counts, "rest": rest, "newest": np.array([self.newest])}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.counts = dict(zip(arrays["keys"].tolist(), arrays["counts"].tolist(), strict=True))
        self.missing, self.unreadable = arrays["rest"].tolist()
        self.newest = float(arrays["newest"][0])


class LabelCounts:
    """Rows and clicks of each value of a categorical field in each fold, those of a missing one under ""; of all rows
    in `totals`."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.sums = np.zeros((64, NUM_FOLDS, 2), np.int64)  # rows, clicks
        self.totals = np.zeros((NUM_FOLDS, 2), np.int64)

    def _row(self, value: str) -> int:
        row = self.rows.setdefault(value, len(self.rows))
        if row == len(self.sums):
            self.sums = np.concatenate([self.sums, np.zeros_like(self.sums)])
        return row

    def add(self, field: CategoricalField, column: CodedColumn, folds: np.ndarray, labels: np.ndarray | None) -> None:
        clicks = np.zeros(column.num_rows, np.int64) if labels is None else labels.astype(np.int64)
        self.totals += np.stack(
            [np.bincount(folds, weights, NUM_FOLDS).astype(np.int64) for weights in (None, clicks)], axis=1
        )
        of_value = np.array([self._row(text or "") for text in column.values], np.int64)
        rows = of_value[column.indices]
        np.add.at(self.sums[:, :, 0], (rows, folds), 1)
        np.add.at(self.sums[:, :, 1], (rows, folds), clicks)

    def merge(self, other: "LabelCounts") -> None:
        self.totals += other.totals
        for value, row in other.rows.items():
            self.sums[self._row(value)] += other.sums[row]

    def of(self, values: Sequence[str]) -> np.ndarray:
        """Values -> rows and clicks in each fold `(n, K, 2)`, zeros for values that no row has."""
        rows = np.array([self.rows.get(value, -1) for value in values], np.int64)
        return np.where((rows >= 0)[:, None, None], self.sums[rows], 0)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            **_packed(self.rows),
            "sums": np.ascontiguousarray(self.sums[: len(self.rows)]),
            "totals": self.totals,
        }

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.rows = {value: row for row, value in enumerate(_unpacked(arrays))}
        self.sums = np.concatenate([arrays["sums"], np.zeros((64, NUM_FOLDS, 2), np.int64)])
        self.totals = arrays["totals"].copy()


def choose_fields(
    heads: Sequence[Mapping[str, Any]],
    fields: Sequence[str] | None,
    label: str,
    exclude: Sequence[str],
    field_options: Mapping[str, Mapping[str, Any]] | None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> list[Field]:
    """
    The schema of a table: named fields (or all columns but the label and `exclude`), type and kind of each from
    `field_options` or from its values. What was decided, and why, is logged.

    Args:
        heads (`list[dict]`): the first rows, in batches of columns.
        classes (`dict[str, list[str]]`, *optional*): names of the classes of columns that have some.

    Raises:
        ValueError: for a field, an excluded column, an option or a label (other than the defaults) that is not there,
            or if no field is left.
        TypeError: if `fields` is one string.
    """
    if isinstance(fields, str):
        raise TypeError(f"fields={fields!r} is one string: pass a list of column names, [{fields!r}]")
    options = {name: dict(given) for name, given in (field_options or {}).items()}
    names, are_named = list(heads[0]), fields is not None
    if label != "label" and label not in names:  # misspelt, and the real one would be a field
        raise ValueError(f"there is no label column {label!r}; the table has {', '.join(names)}")
    if fields is None:
        no_fields = {name for name in names if name in exclude or _INDEX.fullmatch(name)}
        fields = [name for name in names if name != label and (name not in no_fields or name in options)]
    unknown = [name for name in fields if name not in names]
    if unknown:
        raise ValueError(f"no such field: {', '.join(map(repr, unknown))}; the table has {', '.join(names)}")
    absent = [name for name in exclude if name not in names and name not in NO_FIELDS]
    if absent:
        raise ValueError(f"exclude has {', '.join(map(repr, absent))}; the table has {', '.join(names)}")
    if label in fields:
        raise ValueError(f"the label column {label!r} cannot be a field: the model would read the answer")
    if len(set(fields)) != len(fields):
        raise ValueError(f"a field is named twice: {list(fields)}")
    unused = [name for name in options if name not in fields]
    if unused:
        raise ValueError(
            f"field_options has {', '.join(map(repr, unused))}, which is no field; the fields are {', '.join(fields)}"
        )
    chosen: list[Field] = []
    statistics: list[Field] = []
    said = []
    for name in fields:
        given = options.get(name, {})
        is_list, value_type, why = infer_column(
            [head[name] for head in heads if name in head], name, given.get("separator")
        )
        if "type" in given:
            value_type, why = given.pop("type"), "as asked"
            if value_type not in VALUE_TYPES:
                raise ValueError(f"field {name!r}: type={value_type!r} is not one of {', '.join(VALUE_TYPES)}")
        is_asked = "kind" in given
        kind = "multivalued" if is_list else KIND_OF_TYPE[value_type]
        for option in given:  # statistics is the last word: it has buckets, too
            asked = KIND_OF_OPTION.get(option, kind)
            if "statistics" not in given and not (asked == "categorical" and is_list):
                kind = asked
        if kind == "datetime" and set(given) == {"view"}:  # the date itself, as a text reads it
            kind = "categorical"
        kind = given.pop("kind", kind)
        if kind == "datetime" and not is_asked and not given and not are_named and why != "as asked":
            said.append(
                f'{name}: time ({why}), left out; for its parts field_options={{{name!r}: {{"kind": "datetime", '
                '"parts": ["hour", "weekday", "age"]}}'
            )
            continue
        fitting = {"numeric": ("integer", "number"), "datetime": ("time",)}.get(kind, VALUE_TYPES)
        if why == "as asked" and value_type not in fitting:
            raise ValueError(f"field {name!r}: kind={kind!r} reads {' or '.join(fitting)}, not type={value_type!r}")
        of_type: dict[str, Any] = {"type": value_type} if kind in ("categorical", "multivalued") else {}
        if of_type and name in (classes or {}):
            of_type |= {"type": "text", "classes": classes[name]}
        of_column, of_its_statistics = expand_field(name, {"kind": kind, **of_type, **given})
        chosen += of_column
        statistics += of_its_statistics
        said.append(f"{name}: {value_type} ({why}), {kind}{' as asked' if is_asked else ''}")
    left_out = [name for name in names if name not in fields and name != label]
    if left_out:
        said.append(f"no fields: {', '.join(left_out)}")
    logger.warning("the fields, by what their values are (field_options says otherwise):\n  " + "\n  ".join(said))
    chosen += statistics
    if not chosen:
        raise ValueError(f"no field is left: the table has {', '.join(names) or 'no columns'}")
    repeated = [field.name for field in chosen if [other.name for other in chosen].count(field.name) > 1]
    if repeated:
        raise ValueError(f"field {repeated[0]!r} is both a column and made of another one: rename the column")
    return chosen


class FeatureCounts:
    """
    Counts of training rows, from which [`FlipFeatureExtractor.from_counts`] builds a feature extractor.

    Parts of a table can be counted apart, on several machines, and merged; the result is the same as that of counting
    the whole. A count that was cut off goes on from its last checkpoint.

    Args:
        fields (`list[Field]`): the schema (`choose_fields`).
        label (`str`): name of the label column.

    Attributes:
        num_rows (`int`): rows counted so far.

    Example:
        ```python
        first = FeatureCounts.count(load_ctr_dataset(paths[0]))
        parts = [FeatureCounts.count(load_ctr_dataset(path), fields=first.fields) for path in paths[1:]]  # anywhere
        extractor = FlipFeatureExtractor.from_counts(FeatureCounts.merge([first, *parts]))
        ```
    """

    def __init__(self, fields: Sequence[Field], label: str = "label"):
        self.fields = list(fields)
        self.label = label
        self.num_rows = 0
        # one counter per field; statistics and most fields of text alone need none
        self.of_field: list[Any] = [self._counter(field) for field in self.fields]
        sources = dict.fromkeys(field.source for field in self.fields if isinstance(field, StatisticField))
        self.of_source: dict[str, LabelCounts] = {source: LabelCounts() for source in sources}
        self.first_rows = ""  # a digest, by which a checkpoint knows the table that it is of
        self._said: set[str] = set()

    @staticmethod
    def _counter(field: Field) -> Any:
        if isinstance(field, AgeField) and field.reference is None:  # its text, too, needs the newest row
            return NumberCounts(num_bits=HOUR_BITS)
        if field.num_slots == 0 or isinstance(field, StatisticField):
            return None
        if isinstance(field, NumericField):
            return NumberCounts(field.known_edges)
        return ValueCounts() if field.has_vocabulary else HashCounts(field)  # type: ignore[arg-type]

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
    ) -> "FeatureCounts":
        """
        Counts rows in one pass.

        Args:
            dataset: training rows: a `Dataset` or streamed `IterableDataset`, any form that `extractor(rows)` takes,
                or an iterator of such batches.
            fields, label, exclude, field_options: as for [`FlipFeatureExtractor.fit`]; `fields` may also be the
                `fields` of other counts, of a part of the same table: what was decided there holds here.
            checkpoint (`str`, *optional*): file that is written every `checkpoint_rows` rows. If it is there at the
                start, counting goes on behind the rows it holds, which have to be the first rows of `dataset`.

        Raises:
            ValueError: if the table is empty, a field has no column, or the checkpoint is of other fields or rows.
        """
        if isinstance(dataset, Mapping) and any(
            hasattr(part, "column_names") or (hasattr(part, "iloc") and hasattr(part, "columns"))
            for part in dataset.values()
        ):
            raise ValueError(
                f"vocabularies come from training rows alone and this has the splits {list(dataset)}: "
                "FlipFeatureExtractor.fit(splits['train'])"
            )
        if checkpoint is not None and not hasattr(dataset, "skip"):
            raise TypeError(
                f"a {type(dataset).__name__} cannot be resumed: checkpoint needs a datasets.Dataset or IterableDataset"
            )
        rest = batches(dataset, label)
        heads: list[Mapping[str, Any]] = []
        num_head_rows = 0
        while num_head_rows < BATCH_SIZE and (head := next(rest, None)):
            heads.append(head)
            num_head_rows += len(next(iter(head.values())))
        if not heads:
            raise ValueError("the table has no rows: there is nothing to fit vocabularies on")
        if fields and all(isinstance(field, Field) for field in fields):
            counts = cls(fields, label)  # type: ignore[arg-type]
        else:
            classes = class_names(getattr(dataset, "features", None))
            chosen = choose_fields(heads, fields, label, exclude, field_options, classes)  # type: ignore[arg-type]
            counts = cls(chosen, label)
        counts.first_rows = _digest_of_rows(counts.fields, heads[0])
        rest = itertools.chain(heads, rest)
        if checkpoint is not None and os.path.isfile(checkpoint):
            saved = cls.load(checkpoint)
            if (saved.fields, saved.label) != (counts.fields, label):
                raise ValueError(
                    f"{checkpoint} holds counts of other fields or options ({', '.join(saved.field_names)}): delete "
                    "it to count from the start"
                )
            num_rows = len(dataset) if hasattr(dataset, "__len__") else None  # a stream does not know
            if num_rows is not None and saved.num_rows > num_rows:
                raise ValueError(
                    f"{checkpoint} holds the counts of {saved.num_rows} rows and the table has {num_rows}: delete it "
                    "to count from the start"
                )
            if saved.first_rows != counts.first_rows:
                raise ValueError(
                    f"{checkpoint} holds counts of a table that begins with other rows: delete it to count from the "
                    "start"
                )
            logger.info(f"{checkpoint} holds the counts of {saved.num_rows} rows: going on behind them")
            counts = saved
            rest = iter(()) if saved.num_rows == num_rows else batches(dataset.skip(saved.num_rows), label)
        saved_rows = counts.num_rows
        for columns in rest:
            counts.add(columns)
            if checkpoint is not None and counts.num_rows - saved_rows >= checkpoint_rows:
                counts.save(checkpoint)
                saved_rows = counts.num_rows
        if counts.num_rows == 0:
            raise ValueError("the table has no rows: there is nothing to fit vocabularies on")
        if checkpoint is not None:
            counts.save(checkpoint)
        return counts

    @property
    def field_names(self) -> list[str]:
        return [field.name for field in self.fields]

    def add(self, rows: Any, codes: Callable[[str], Mapping[Any, str]] | None = None) -> None:
        """Counts rows, in any form that `extractor(rows)` takes; `codes` as for `code_columns`."""
        rows = as_columns(rows, self.label)
        coded = code_columns(self.fields, rows, self.num_rows, codes)
        for field, column in zip(self.fields, coded, strict=True):
            if getattr(field, "type", "text") in ("integer", "number") and column.raw is not None:
                self._say_of_codes(field, column.raw)
        labels = None
        if any(isinstance(field, StatisticField) and field.statistic == "label_mean" for field in self.fields):
            if self.label not in rows:
                raise ValueError(
                    f"label_mean needs the label column {self.label!r}; the rows have {', '.join(map(str, rows))}"
                )
            labels = read_labels(rows[self.label], self.label)
        for field, counter, column in zip(self.fields, self.of_field, coded, strict=True):
            if counter is not None:
                counter.add(field, column)
        if self.of_source:
            folds = row_folds(self.fields, coded)
            for source, label_counts in self.of_source.items():
                number = self.field_names.index(source)
                label_counts.add(self.fields[number], coded[number], folds, labels)  # type: ignore[arg-type]
        self.num_rows += coded[0].num_rows

    def _say_of_codes(self, field: Field, values: Sequence[Any]) -> None:
        code = next((value for value in values if is_code(value)), None)
        if code is not None and field.name not in self._said:
            self._said.add(field.name)
            logger.warning(
                f"field {field.name!r} is read as numbers and has {code!r} in its later rows: if zeros at the front "
                f'matter, say so: field_options={{{field.name!r}: {{"type": "text"}}}}'
            )

    @classmethod
    def merge(cls, parts: Sequence["FeatureCounts"]) -> "FeatureCounts":
        """
        The counts of all parts together, a new object.

        Raises:
            ValueError: if there are none, or they are of different fields, naming the first that differs.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("there is nothing to merge: the list is empty")
        merged = cls(parts[0].fields, parts[0].label)
        for part in parts:
            if part.fields != merged.fields or part.label != merged.label:
                ours, theirs = ([repr(field) for field in counts.fields] for counts in (merged, part))
                pairs = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
                raise ValueError(
                    "the parts were counted with different fields, so they do not add up: "
                    + (" and ".join(pairs[0]) if pairs else f"{merged.field_names} and {part.field_names}")
                    + "; count the others with fields=counts.fields of the first, or name types and kinds with "
                    "field_options"
                )
            merged.num_rows += part.num_rows
            for mine, other in zip(merged.of_field, part.of_field, strict=True):
                if mine is not None:
                    mine.merge(other)
            for source, label_counts in merged.of_source.items():
                label_counts.merge(part.of_source[source])
        return merged

    def save(self, path: str | os.PathLike) -> None:
        """Writes a safetensors file, by way of a temporary one, so that no crash leaves half of it."""
        arrays: dict[str, np.ndarray] = {}
        for number, counter in enumerate(self.of_field):
            if counter is not None:
                arrays |= {f"field.{number}.{name}": array for name, array in counter.arrays().items()}
        for source, label_counts in self.of_source.items():
            number = self.field_names.index(source)
            arrays |= {f"label.{number}.{name}": array for name, array in label_counts.arrays().items()}
        arrays["num_rows"] = np.array([self.num_rows], np.int64)
        fields = [field.to_dict() for field in self.fields]
        state = json.dumps({"fields": fields, "label": self.label, "first_rows": self.first_rows})
        save_file(arrays, f"{path}.tmp", metadata={"feature_counts": state})
        os.replace(f"{path}.tmp", path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "FeatureCounts":
        """
        Raises:
            ValueError: if the file is cut off, or holds something else.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                state = (file.metadata() or {}).get("feature_counts")
                arrays = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or holds no feature counts ({error})") from error
        if state is None:
            raise ValueError(f"{path} holds no feature counts")
        saved = json.loads(state)
        counts = cls([field_from_dict(spec) for spec in saved["fields"]], saved["label"])
        counts.num_rows, counts.first_rows = int(arrays["num_rows"][0]), saved.get("first_rows", "")
        for number, counter in enumerate(counts.of_field):
            if counter is not None:
                start = f"field.{number}."
                counter.load({name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)})
        for source, label_counts in counts.of_source.items():
            start = f"label.{counts.field_names.index(source)}."
            label_counts.load({name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)})
        return counts


def _digest_of_rows(fields: Sequence[Field], rows: Mapping[str, Any], number: int = 1000) -> str:
    """Of what the fields read of the first rows."""
    coded = code_columns(fields, {name: column[:number] for name, column in rows.items()})
    content = hashlib.blake2b(digest_size=16)
    for column in coded:
        content.update(repr([column.values[place] for place in column.indices.tolist()]).encode("utf-8", "replace"))
    return content.hexdigest()


__all__ = ["FeatureCounts"]
