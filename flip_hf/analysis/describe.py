# SPDX-License-Identifier: Apache-2.0
"""A table -> the report on it: what is counted of its fields, and what looks wrong with them.

Letters: B rows, F fields, S slots, D distinct values, K folds.

A table is read once, in batches, and what is remembered of it does not grow with its rows: counts by value and fold.
Of a field with very many values those are remembered whose hash is small, a sample of values (not of rows) whose
counts are exact, and the most frequent ones.
"""

import hashlib
import heapq
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..columns_flip import CodedColumn, batches, read_labels
from ..fields_flip import MultivaluedField, NumericField, StatisticField
from ..fitting.building import installed
from .report import FieldReport, FlipReport, FrequentValue, SplitReport, percent


# rows read at a time; with text fewer, since all their tokens are held at once
_BATCH_SIZE, _TEXT_BATCH_SIZE = 100_000, 20_000
# K: the label mean of a value is judged on rows that it was not taken from
_NUM_FOLDS = 5
# a value's label mean is drawn towards that of all rows as if so many more rows had it
_SMOOTHING = 10.0
# distinct values counted for each field, before a sample of them has to do, and the most frequent, which always stay
_MAX_VALUES, _NUM_FREQUENT = 1 << 18, 1 << 10
_ALL_HASHES = 1 << 64
_DATE = re.compile(r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/. ])(\d{1,2}|[A-Za-z]{3,9})\3\d{4})([T ].*)?")
# whole numbers are amounts if the field's name says so: most of them are ids
_AMOUNTS = set("age amount count days duration income price quantity score size total views weight year".split())


def describe_rows(extractor: Any, dataset: Any, processor: Any = None, show_values: bool = True) -> FlipReport:
    """
    As [`FlipFeatureExtractor.describe`], which documents it. With a processor that has a tokenizer, tokens are counted
    as well. Of splits, `train` (or else the first) is what the fields' figures are of.

    Raises:
        ValueError: if a split has no rows, a field has no column, or a label is not 0 or 1.
    """
    extractor = installed(extractor)
    if processor is not None and (processor.tokenizer is None or not extractor.text_fields):
        processor = None
    has_splits = isinstance(dataset, Mapping) and any(
        isinstance(part, Mapping) or hasattr(part, "column_names") or hasattr(part, "columns")
        for part in dataset.values()
    )
    tables = dataset if has_splits else {"rows": dataset}
    main_name = "train" if "train" in tables else next(iter(tables))
    splits = {name: _SplitCounts(extractor, processor, is_main=name == main_name) for name in tables}
    for name, split in splits.items():
        split.read(tables[name])
        if not split.num_rows:
            raise ValueError(f"{f'split {name!r}' if has_splits else 'the table'} has no rows to describe")
    fields = [_describe_field(number, splits, splits[main_name]) for number in range(extractor.num_fields)]
    report = FlipReport({name: split.report() for name, split in splits.items()}, fields)
    report.warnings = list(_warnings(fields, splits, splits[main_name]))
    report.max_length = None if processor is None else processor.max_length
    report.label_mean = report.splits[main_name].share_positive
    for one in fields if not show_values else []:
        one.most_frequent = [value._replace(text=None) for value in one.most_frequent]
    return report


# --- what is counted -------------------------------------------------------------------------------------------------


class _ValueCounts:
    """
    Rows and clicks of each value of a field in each fold, of missing ones apart.

    Beyond `_MAX_VALUES` a value stays if its 64-bit hash is below `limit`, which is halved as often as necessary, or
    if it is among the most frequent ones. Whether a value's hash is below the final limit does not depend on the order
    or number of batches, and the counts of such a value are exact.
    """

    def __init__(self) -> None:
        self.counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((_NUM_FOLDS, 2), np.int32))  # rows, clicks
        self.missing = np.zeros((_NUM_FOLDS, 2), np.int64)
        self.limit = _ALL_HASHES

    def add(self, values: Sequence[str | None], counts: np.ndarray) -> None:
        """`D` values, which may repeat, with their rows and clicks by fold `(D, K, 2)`."""
        for value, more in zip(values, counts, strict=True):
            if value is None:
                self.missing += more
            else:  # a long text is told apart by its beginning and a digest
                self.counts[value if len(value) < 64 else f"{value[:48]}…{_digest(value)}"] += more
        if len(self.counts) > _MAX_VALUES:
            stays = self.sample()
            stays[np.argsort(-self.by_value()[:, :, 0].sum(1), kind="stable")[:_NUM_FREQUENT]] = True
            remembered = dict(itertools.compress(self.counts.items(), stays))
            self.counts.clear()
            self.counts.update(remembered)

    def sample(self) -> np.ndarray:
        """Which of the values `(D,)` are below the limit, after halving it until as many new ones have room again."""
        if len(self.counts) <= _MAX_VALUES and self.limit == _ALL_HASHES:
            return np.ones(len(self.counts), bool)
        hashes = np.array([int(_digest(value), 16) for value in self.counts], np.uint64)
        while (hashes <= np.uint64(self.limit - 1)).sum() > _MAX_VALUES // 2:
            self.limit //= 2
        return hashes <= np.uint64(self.limit - 1)

    def by_value(self) -> np.ndarray:
        """`(D, K, 2)`."""
        return np.array(list(self.counts.values()), np.int64).reshape(-1, _NUM_FOLDS, 2)

    def num_distinct(self) -> int:
        return round(int(self.sample().sum()) * _ALL_HASHES / self.limit)

    def most_frequent(self, number: int) -> list[tuple[str, int, int]]:
        """Values with their rows and clicks, the most frequent first, equally frequent ones by alphabet."""
        rows, clicks = self.by_value().sum(1).T.tolist()
        return heapq.nsmallest(
            number, zip(self.counts, rows, clicks, strict=True), key=lambda value: (-value[1], value[0])
        )

    def auc(self, totals: np.ndarray) -> float:
        """
        Of the smoothed label mean that a row's value, or hole, has in the other folds. Rows of one fold are compared;
        0.5 where none has rows of both classes.

        Args:
            totals (`np.ndarray` of shape `(K, 2)`): rows and clicks of all values in each fold.
        """
        counts = np.concatenate([self.by_value()[self.sample()], self.missing[None]])  # (D + 1, K, 2)
        weights = np.ones((len(counts), 1))
        weights[-1] = self.limit / _ALL_HASHES  # of missing rows nothing was left out
        others = counts.sum(1, keepdims=True) - counts
        rest = totals.sum(0) - totals
        prior = rest[:, 1] / np.maximum(rest[:, 0], 1)  # (K,)
        scores = (others[..., 1] + _SMOOTHING * prior) / (others[..., 0] + _SMOOTHING)  # (D + 1, K)
        clicks = counts[..., 1] * weights
        misses = counts[..., 0] * weights - clicks
        won = pairs = 0.0
        for fold in range(_NUM_FOLDS):
            _, tie = np.unique(scores[:, fold], return_inverse=True)
            tied_clicks, tied_misses = np.bincount(tie, clicks[:, fold]), np.bincount(tie, misses[:, fold])
            won += float((tied_clicks * (np.cumsum(tied_misses) - tied_misses / 2)).sum())
            pairs += float(tied_clicks.sum() * tied_misses.sum())
        return won / pairs if pairs else 0.5


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


class _SplitCounts:
    """What is counted of one split; of the main one also what its values are."""

    def __init__(self, extractor: Any, processor: Any, is_main: bool):
        self.extractor, self.processor, self.is_main = extractor, processor, is_main
        self.num_rows = self.num_labelled = self.num_positive = self.num_truncated = 0
        self.totals = np.zeros((_NUM_FOLDS, 2), np.int64)  # rows, clicks
        self.occurrences = np.zeros((extractor.num_fields, 4), np.int64)  # rows, values, unseen, missing
        self.values = [_ValueCounts() for _ in extractor.fields]
        # the label is judged by the buckets of a number and by whole lists as well
        self.judged = [
            _ValueCounts() if isinstance(field, NumericField | MultivaluedField) else values
            for field, values in zip(extractor.fields, self.values, strict=True)
        ]
        self.lengths: Counter[int] = Counter()  # tokens of a row
        tokens = np.zeros((4, extractor.num_fields), np.int64)
        self.value_tokens, self.values_with_tokens, self.most_tokens, self.truncated = tokens

    def read(self, dataset: Any) -> None:
        """All rows of a table or split, in any of the forms that the extractor takes."""
        size = _BATCH_SIZE if self.processor is None else _TEXT_BATCH_SIZE
        label = self.extractor.label
        for batch in batches(dataset, label):
            columns = self.extractor.select_columns(batch)
            num_rows = columns[0].num_rows
            labels = read_labels(batch[label], label) if label in batch else np.full(num_rows, np.nan)
            if len(labels) != num_rows:
                raise ValueError(f"{len(labels)} labels in column {label!r} for {num_rows} rows")
            for start in range(0, num_rows, size):
                rows = slice(start, start + size)
                self._add([_rows_of(column, rows) for column in columns], labels[rows])

    def _add(self, columns: list[CodedColumn], labels: np.ndarray) -> None:
        # statistics of rows that may be the training rows: a label would be predicted from itself
        if self.processor is None:
            ids = self.extractor.encode_columns(columns, out_of_fold=self.is_main)  # (B, S)
        else:
            encoded = self.processor.encode_columns(columns, out_of_fold=self.is_main, max_length=1 << 30)
            ids = encoded.feature_ids
            self._add_text(columns, encoded)
        # hashed, or a table in which every fifth row is a click would have folds of one class
        row_numbers = np.arange(self.num_rows, self.num_rows + len(labels), dtype=np.uint64)
        folds = ((row_numbers * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)).astype(np.int64) % _NUM_FOLDS

        def count(indices: np.ndarray, size: int) -> np.ndarray:
            """Number of each row's value `(B,)` -> rows and clicks by fold `(size, K, 2)`."""
            cells = indices * _NUM_FOLDS + folds
            counts = [np.bincount(some, minlength=size * _NUM_FOLDS) for some in (cells, cells[labels == 1])]
            return np.stack(counts, axis=-1).reshape(size, _NUM_FOLDS, 2)

        self.num_rows += len(labels)
        self.num_labelled += int((~np.isnan(labels)).sum())
        self.num_positive += int((labels == 1).sum())
        self.totals += count(np.zeros_like(folds), 1)[0]
        self.occurrences += self.extractor.occurrences(ids)
        for number, column in enumerate(columns):
            texts = [self.extractor.value_text(number, value) for value in column.values]
            if number not in self.extractor.slot_fields:  # of text alone
                missing = column.counts()[[text is None for text in texts]].sum()
                self.occurrences[number] += [len(labels), 0, 0, missing]
            if self.is_main:
                self._add_values(number, column, texts, ids, count)

    def _add_values(
        self, number: int, column: CodedColumn, texts: list[str | None], ids: np.ndarray, count: Callable
    ) -> None:
        field, values, judged = self.extractor.fields[number], self.values[number], self.judged[number]
        counts = count(column.indices, len(texts))
        if isinstance(field, NumericField) and field.num_slots:
            buckets, bucket = np.unique(ids[:, self.extractor.slot_fields.index(number)], return_inverse=True)
            names = [None if name == "[MISSING]" else name for name in self.extractor.decode(buckets)]
            judged.add(names, count(bucket, len(buckets)))
        elif judged is not values:
            judged.add(texts, counts)
        if isinstance(field, StatisticField):  # its column holds the values that it is of
            self.values[number] = judged
        elif isinstance(field, MultivaluedField):
            elements = [field.elements(value) or [None] for value in column.values]
            values.add(list(itertools.chain(*elements)), np.repeat(counts, list(map(len, elements)), axis=0))
        else:
            values.add(texts, counts)

    def _add_text(self, columns: list[CodedColumn], encoded: Any) -> None:
        tokens = _tokens_by_field(encoded, len(columns))  # (B, F)
        self.lengths.update(encoded.lengths.tolist())
        self.value_tokens += tokens.sum(0)
        self.values_with_tokens += (tokens > 0).sum(0)
        self.most_tokens = np.maximum(self.most_tokens, tokens.max(0))
        too_long = encoded.lengths > self.processor.max_length
        if too_long.any():
            cut = self.processor.encode_columns(columns)
            self.num_truncated += int(too_long.sum())
            self.truncated += (_tokens_by_field(cut, len(columns)) < tokens).sum(0)

    def length_at(self, share: float) -> int:
        """Tokens that hold so large a share of the rows."""
        lengths, rows = np.array(sorted(self.lengths.items())).T
        return int(lengths[np.searchsorted(np.cumsum(rows), share * self.num_rows)])

    def report(self) -> SplitReport:
        report = SplitReport(self.num_rows, self.num_positive / self.num_labelled if self.num_labelled else None)
        if self.processor is not None:
            report.tokens_mean = sum(length * rows for length, rows in self.lengths.items()) / self.num_rows
            report.tokens_p95, report.tokens_max = self.length_at(0.95), max(self.lengths)
            report.share_truncated = self.num_truncated / self.num_rows
        return report


def _rows_of(column: CodedColumn, rows: slice) -> CodedColumn:
    """Some rows of a coded column, with the values that these rows have."""
    used, indices = np.unique(column.indices[rows], return_inverse=True)
    return CodedColumn([column.values[value] for value in used.tolist()], indices)


def _tokens_by_field(encoded: Any, num_fields: int) -> np.ndarray:
    """Tokens that spell the value of each field in each row `(B, F)`."""
    spells = encoded.token_fields >= 0
    rows = np.repeat(np.arange(len(encoded.lengths)), encoded.lengths)[spells]
    tokens = np.zeros((len(encoded.lengths), num_fields), np.int64)
    np.add.at(tokens, (rows, encoded.token_fields[spells]), 1)
    return tokens


def _describe_field(number: int, splits: Mapping[str, _SplitCounts], main: _SplitCounts) -> FieldReport:
    values, field = main.values[number], main.extractor.fields[number]
    shares = {name: main.extractor.shares_of(split.occurrences)[number].tolist() for name, split in splits.items()}
    one = FieldReport(
        name=field.name,
        kind=field.kind,
        view=field.view,
        type="number" if isinstance(field, NumericField) else field.type,
        num_distinct=values.num_distinct(),
        is_estimate=values.limit < _ALL_HASHES,
        unseen={name: unseen if field.num_slots else None for name, (unseen, _) in shares.items()},
        missing={name: missing for name, (_, missing) in shares.items()},
        most_frequent=[
            FrequentValue(text, rows, clicks / rows if main.num_labelled else None)
            for text, rows, clicks in values.most_frequent(3)
        ],
    )
    if main.values_with_tokens[number]:
        one.tokens_mean = float(main.value_tokens[number] / main.values_with_tokens[number])
        one.tokens_max = int(main.most_tokens[number])
        one.share_truncated = float(main.truncated[number] / main.num_rows)
    if min(main.num_positive, main.num_labelled - main.num_positive) >= 10:  # an AUC of fewer is chance
        judged = {main.judged[number]} if isinstance(field, MultivaluedField) else {values, main.judged[number]}
        one.auc = max(counts.auc(main.totals) for counts in judged)
    return one


# --- what looks wrong ------------------------------------------------------------------------------------------------


def _warnings(fields: Sequence[FieldReport], splits: Mapping[str, _SplitCounts], main: _SplitCounts) -> Iterator[str]:
    """Each names field, figure and remedy."""
    for name, split in splits.items():
        if split.num_labelled and split.num_positive in (0, split.num_labelled):
            yield (
                f"{main.extractor.label}: all {split.num_labelled:,} labels of {_rows(name)} are "
                f"{int(split.num_positive > 0)}, so nothing can be learnt or judged by them. Look at the rule that "
                "makes the label (label_threshold), or split the rows at random"
            )
    for number, one in enumerate(fields):
        empty = {name: share for name, share in one.missing.items() if share > 0.95}
        if empty:
            yield f"{one.name}: missing in {_where(empty)}. Leave it out of `fields`, unless a hole says something"
        # of dates, numbers and texts read as categories the new ones are unseen: what is said of them mends both
        yield from list(_warn_of_values(one, number, main)) or _warn_of_unseen(one, number, splits)
        if one.auc is not None and one.auc > 0.98:
            yield (
                f"{one.name}: predicts the label suspiciously well, AUC {one.auc:.3f} on its own. If it is not known "
                "before the click, leave it out of `fields`"
            )
    too_long = {name: split.num_truncated / split.num_rows for name, split in splits.items()}
    too_long = {name: share for name, share in too_long.items() if share > 0.001}
    if too_long:
        split = main if main.num_truncated else splits[next(iter(too_long))]
        order = np.argsort(-split.truncated, kind="stable")
        losers = {fields[number].name: split.truncated[number] / split.num_rows for number in order.tolist()}
        names = ", ".join(f"{name} ({percent(share)})" for name, share in losers.items() if share)
        longest = max(max(one.lengths) for one in splits.values())
        yield (
            f"{names}: lose tokens, since {_where(too_long)} are longer than max_length={main.processor.max_length}. "
            f"max_length={split.length_at(0.99)} holds 99%, {longest} holds all rows, and the language model takes "
            f"{main.processor.tokenizer.model_max_length}"
        )


def _rows(split: str) -> str:
    return "the rows" if split == "rows" else f"the rows of {split}"


def _where(shares: Mapping[str, float], what: str = "") -> str:
    return " and ".join(f"{percent(share)} of {what}{_rows(name)}" for name, share in shares.items())


def _options(one: FieldReport, **options: Any) -> str:
    return f"field_options={{{one.name!r}: {options}}}"


def _warn_of_values(one: FieldReport, number: int, main: _SplitCounts) -> Iterator[str]:
    present = main.num_rows - int(main.occurrences[number, 3])
    if one.num_distinct == 1 and present == main.num_rows:
        yield f"{one.name}: has one value in all {present:,} rows and says nothing. Leave it out of `fields`"
    if one.kind != "categorical" or one.view == "text":
        return
    if present > 100 and one.num_distinct > 0.95 * present:
        yield (
            f"{one.name}: {one.num_distinct:,} distinct values in {present:,} rows, so hardly any id occurs twice and "
            "nothing is learnt of it. Leave it out of `fields`, or, if it is a text, give it to the language model "
            f"alone: {_options(one, view='text')}"
        )
    texts = [text for text, _, _ in main.values[number].most_frequent(2_000)]
    is_date = [one.type == "time" or _DATE.fullmatch(text) is not None for text in texts]
    is_amount = one.type == "number" or (one.type == "integer" and _AMOUNTS & {*one.name.lower().split("_")})
    if len(texts) > 1 and np.mean(is_date) >= 0.95:
        yield (
            f"{one.name}: its {one.num_distinct:,} values are dates read as categories, and every new day will be "
            "unseen. Write them in the ISO way (2024-05-31) and take their parts: "
            f"{_options(one, kind='datetime', parts=['hour', 'weekday', 'age'])}"
        )
    elif is_amount and one.num_distinct > 100:
        yield (
            f"{one.name}: its {one.num_distinct:,} values are numbers read as categories, so that 7 and 8 have "
            f"nothing in common. If they are amounts: {_options(one, kind='numeric')}"
        )


def _warn_of_unseen(one: FieldReport, number: int, splits: Mapping[str, _SplitCounts]) -> Iterator[str]:
    is_number = one.kind == "numeric"
    shares = {}
    for name, split in splits.items():
        _, values, unseen, missing = split.occurrences[number].tolist()
        shares[name] = unseen / max(values - missing, 1)
    shares = {name: share for name, share in shares.items() if share > (0.05 if is_number else 0.9)}
    where = _where(shares, "its values in ")
    if shares and is_number:
        yield (
            f"{one.name}: {where} are no numbers. Clean the column, or read it as categories: "
            f"{_options(one, kind='categorical')}"
        )
    elif shares:
        yield (
            f"{one.name}: {where} are not in the vocabulary, so their ids say nothing. Add them (extractor.extend), "
            "lower min_frequency, split the rows in another way, or give the field to the language model alone: "
            f"{_options(one, view='text')}"
        )


__all__ = ["describe_rows"]
