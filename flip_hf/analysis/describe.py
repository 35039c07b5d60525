# SPDX-License-Identifier: Apache-2.0
"""A table -> the report on it: what is counted of its fields, and what looks wrong with them. It is read once, in
batches; of a field with a million distinct values and more the first million are counted, so that memory is bounded.

Letters: B rows, F fields, S slots, n distinct values, K folds (`NUM_FOLDS`).
"""

import hashlib
import heapq
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..columns_flip import CodedColumn, read_labels
from ..feature_encoding_flip import NUM_FOLDS, statistics
from ..fields_flip import StatisticField
from ..fitting.counts import Counts, rows_and_clicks
from ..fitting.schema import batches, is_split
from .metrics import pairs_won
from .rates import count_occurrences, shares_of
from .report import FieldReport, FlipReport, FrequentValue, SplitReport, percent


# values of a field that are counted, some hundred bytes each: what comes later is left out of its figures
_MAX_VALUES = 1_000_000
# rows whose tokens are held at once
_BATCH_SIZE = 20_000
# what the label is predicted by: the mean of a row's value in the other folds, as if ten more rows had that of all
_LABEL_MEAN = StatisticField(name="label_mean", statistic="label_mean", source="value", smoothing=10.0)
# of the folds: one that no made-up table was drawn with, or its values would follow the folds
_SEED = 0x9E3779B97F4A7C15
_DATE = re.compile(r"(\d{4}([-/.])\d{1,2}\2\d{1,2}|\d{1,2}([-/. ])(\d{1,2}|[A-Za-z]{3,9})\3\d{4})([T ].*)?")
# whole numbers are amounts if the field's name says so: most of them are ids
_AMOUNTS = set("age amount count days duration income price quantity score size total views weight year".split())


def describe_rows(extractor: Any, dataset: Any, processor: Any = None, show_values: bool = True) -> FlipReport:
    """
    As [`FlipFeatureExtractor.describe`], which documents it. With a processor that has a tokenizer, tokens are counted
    as well. Of splits, `train` (or else the first) is what the fields' figures are of.
    """
    if processor is not None and (processor.tokenizer is None or not extractor.text_fields):
        processor = None
    has_splits = is_split(dataset)
    tables = dataset if has_splits else {"rows": dataset}
    main_name = "train" if "train" in tables else next(iter(tables))
    splits = {name: _Split(extractor, processor, is_main=name == main_name) for name in tables}
    for name, split in splits.items():
        split.read(tables[name])
        if not split.num_rows:
            raise ValueError(f"{f'split {name!r}' if has_splits else 'the table'} has no rows to describe")
    main = splits[main_name]
    report = FlipReport(
        splits={name: split.report() for name, split in splits.items()},
        fields=[_describe_field(number, splits, main) for number in range(extractor.num_fields)],
        max_length=None if processor is None else processor.max_length,
    )
    report.warnings = list(_warnings(report, splits, main))
    for one in [] if show_values else report.fields:
        one.most_frequent = [value._replace(text=None) for value in one.most_frequent]
    return report


class _Split:
    """What is counted of one split; of the main one also what its values are."""

    def __init__(self, extractor: Any, processor: Any, is_main: bool):
        self.extractor, self.processor, self.is_main = extractor, processor, is_main
        self.num_rows = self.num_labelled = self.num_positive = 0
        self.occurrences = np.zeros((extractor.num_fields, 4), np.int64)  # rows, values, unseen, missing
        # of each field the rows and clicks of its values in each fold; of numbers and lists also those of buckets and
        # whole lists, which say more of the label
        self.values: dict[int, Counts] = defaultdict(lambda: Counts(NUM_FOLDS, 2))
        self.judged: dict[int, Counts] = defaultdict(lambda: Counts(NUM_FOLDS, 2))
        self.folds = np.random.default_rng(_SEED)
        self.lengths: list[np.ndarray] = []  # tokens of the rows of each batch
        self.truncated = np.zeros(extractor.num_fields, np.int64)  # rows that lose tokens of a field

    def read(self, dataset: Any) -> None:
        """All rows of a table or split, in any of the forms that the extractor takes."""
        label = self.extractor.label
        for batch in batches(dataset, label):
            columns = self.extractor.select_columns(batch)
            num_rows = columns[0].num_rows
            labels = read_labels(batch[label], label) if label in batch else np.full(num_rows, np.nan)
            if len(labels) != num_rows:
                raise ValueError(f"{len(labels)} labels in column {label!r} for {num_rows} rows")
            for start in range(0, num_rows, _BATCH_SIZE):
                rows = slice(start, start + _BATCH_SIZE)
                self._add([_rows_of(column, rows) for column in columns], labels[rows])

    def _add(self, columns: list[CodedColumn], labels: np.ndarray) -> None:
        ids = self._encode(columns)
        self.num_rows += len(labels)
        self.num_labelled += int((~np.isnan(labels)).sum())
        self.num_positive += int((labels == 1).sum())
        self.occurrences += count_occurrences(self.extractor, ids)
        folds = self.folds.integers(NUM_FOLDS, size=len(labels))
        for number, (field, column) in enumerate(zip(self.extractor.fields, columns, strict=True)):
            texts = [self.extractor.value_text(number, value) for value in column.values]
            if not field.num_slots:
                missing = column.counts()[[text is None for text in texts]].sum()
                self.occurrences[number] += [len(labels), 0, 0, missing]
            if not self.is_main:
                continue
            keys, counts = list(map(_key, texts)), rows_and_clicks(column.indices, len(texts), folds, labels)
            if hasattr(field, "numbers") and field.num_slots:
                slot = self.extractor.slot_fields.index(number)
                buckets, indices = np.unique(ids[:, slot], return_inverse=True)
                names = [None if name == "[MISSING]" else name for name in self.extractor.decode(buckets)]
                self.judged[number].add(names, rows_and_clicks(indices, len(names), folds, labels))
            elif field.kind == "multivalued":
                self.judged[number].add(keys, counts)
                lists = [field.elements(value) or [None] for value in column.values]
                keys, counts = list(itertools.chain(*lists)), counts.repeat(list(map(len, lists)), axis=0)
            known = self.values[number]
            if len(known.rows) >= _MAX_VALUES:
                is_known = np.array([key in known.rows for key in keys])
                keys, counts = list(itertools.compress(keys, is_known)), counts[is_known]
            known.add(keys, counts)

    def _encode(self, columns: list[CodedColumn]) -> np.ndarray:
        """Ids `(B, S)`; of the text what is counted of it. Statistics of a training row leave out its own label."""
        if self.processor is None:
            return self.extractor.encode_columns(columns, out_of_fold=self.is_main)
        encoded = self.processor.encode_columns(columns, out_of_fold=self.is_main, max_length=1 << 30)
        self.lengths.append(encoded.lengths.astype(np.int32))
        if encoded.lengths.max() > self.processor.max_length:
            cut = self.processor.encode_columns(columns)
            tokens_left, tokens = (_tokens_by_field(rows, len(columns)) for rows in (cut, encoded))
            self.truncated += (tokens_left < tokens).sum(0)
        return encoded.feature_ids

    def length_at(self, share: float) -> int:  # tokens that hold so large a share of the rows
        return int(np.quantile(np.concatenate(self.lengths), share, method="inverted_cdf"))

    def report(self) -> SplitReport:
        report = SplitReport(self.num_rows, self.num_positive / self.num_labelled if self.num_labelled else None)
        if self.processor is not None:
            lengths = np.concatenate(self.lengths)
            report.tokens_mean = float(lengths.mean())
            report.tokens_p95, report.tokens_max = self.length_at(0.95), int(lengths.max())
            report.share_truncated = float((lengths > self.processor.max_length).mean())
        return report


def _key(text: str | None) -> str | None:
    """A long text is told apart by its beginning and a digest."""
    if text is None or len(text) < 64:
        return text
    return f"{text[:48]}…{hashlib.blake2b(text.encode('utf-8', 'replace'), digest_size=8).hexdigest()}"


def _rows_of(column: CodedColumn, rows: slice) -> CodedColumn:
    """Some rows of a coded column, with the values that these rows have."""
    used, indices = np.unique(column.indices[rows], return_inverse=True)
    return CodedColumn([column.values[value] for value in used.tolist()], indices)


def _tokens_by_field(encoded: Any, num_fields: int) -> np.ndarray:
    """Tokens that spell the value of each field in each row `(B, F)`."""
    rows = np.repeat(np.arange(len(encoded.lengths)), encoded.lengths)
    places = (rows * num_fields + encoded.token_fields)[encoded.token_fields >= 0]
    return np.bincount(places, minlength=len(encoded.lengths) * num_fields).reshape(-1, num_fields)


def _most_frequent(counts: Counts, number: int) -> list[tuple[str, int, int]]:
    """Values with their rows and clicks, the most frequent first, equally frequent ones by alphabet."""
    values = zip(counts.rows, *counts.sums.sum(1).T.tolist(), strict=True)
    present = (value for value in values if value[0] is not None)
    return heapq.nsmallest(number, present, key=lambda value: (-value[1], value[0]))


def _label_auc(counts: Counts) -> float:
    """AUC of the label mean of a row's value, or hole, in the other folds; rows of one fold are compared."""
    sums = counts.sums  # (n, K, 2)
    scores = statistics(_LABEL_MEAN, sums, sums.sum(0))
    won = pairs = 0.0
    for fold in range(NUM_FOLDS):
        _, levels = np.unique(scores[:, fold], return_inverse=True)
        rows, clicks = (np.bincount(levels, part) for part in sums[:, fold].T)
        of_fold = pairs_won(clicks, rows - clicks)
        won, pairs = won + of_fold[0], pairs + of_fold[1]
    return won / pairs if pairs else 0.5


def _describe_field(number: int, splits: Mapping[str, _Split], main: _Split) -> FieldReport:
    field, judged = main.extractor.fields[number], main.judged.get(number, main.values[number])
    # the column of a statistic holds the values that it is of
    values = judged if field.kind == "statistic" else main.values[number]
    shares = {name: shares_of(split.occurrences)[number].tolist() for name, split in splits.items()}
    one = FieldReport(
        name=field.name,
        kind=field.kind,
        view=field.view,
        type="number" if hasattr(field, "numbers") else field.type,
        num_distinct=len(values.rows) - (None in values.rows),
        unseen={name: unseen if field.num_slots else None for name, (unseen, _) in shares.items()},
        missing={name: missing for name, (_, missing) in shares.items()},
        most_frequent=[
            FrequentValue(text, rows, clicks / rows if main.num_labelled else None)
            for text, rows, clicks in _most_frequent(values, 3)
        ],
    )
    if main.processor is not None and field.view != "tabular":
        one.share_truncated = float(main.truncated[number] / main.num_rows)
    if min(main.num_positive, main.num_labelled - main.num_positive) >= 10:  # an AUC of fewer is chance
        one.auc = _label_auc(judged)
    return one


def _warnings(report: FlipReport, splits: Mapping[str, _Split], main: _Split) -> Iterator[str]:
    """Each names field, figure and remedy."""
    for name, split in splits.items():
        if split.num_labelled and split.num_positive in (0, split.num_labelled):
            yield (
                f"{main.extractor.label}: all {split.num_labelled:,} labels of {_rows(name)} are "
                f"{int(split.num_positive > 0)}, so nothing can be learnt or judged by them. Look at the rule that "
                "makes the label (label_threshold), or split the rows at random"
            )
    for number, one in enumerate(report.fields):
        for warning in _warnings_of_field(one, number, splits, main):
            yield f"{one.name}: {warning}"
    shares = {name: split.share_truncated or 0.0 for name, split in report.splits.items()}
    too_long = {name: share for name, share in shares.items() if share > 0.001}
    if too_long:
        split = splits[next(iter(too_long))]
        losers = zip(main.extractor.field_names, (split.truncated / split.num_rows).tolist(), strict=True)
        by_share = sorted(losers, key=lambda loser: -loser[1])
        names = ", ".join(f"{name} ({percent(share)})" for name, share in by_share if share)
        yield (
            f"{names}: lose tokens, since {_where(too_long)} are longer than max_length={report.max_length}. "
            f"max_length={split.length_at(0.99)} holds 99%, {max(one.length_at(1.0) for one in splits.values())} "
            f"holds all rows, and the language model takes {main.processor.tokenizer.model_max_length}"
        )


def _warnings_of_field(one: FieldReport, number: int, splits: Mapping[str, _Split], main: _Split) -> Iterator[str]:
    empty = {name: share for name, share in one.missing.items() if share > 0.95}
    if empty:
        yield f"missing in {_where(empty)}. Leave it out of `fields`, unless a hole says something"
    # of dates, numbers and texts read as categories the new ones are unseen: what is said of them mends both
    yield from list(_warn_of_values(one, number, main)) or _warn_of_unseen(one, number, splits)
    if one.auc is not None and one.auc > 0.98:
        yield (
            f"predicts the label suspiciously well, AUC {one.auc:.3f} on its own. If it is not known before the "
            "click, leave it out of `fields`"
        )


def _warn_of_values(one: FieldReport, number: int, main: _Split) -> Iterator[str]:
    present, distinct = main.num_rows - int(main.occurrences[number, 3]), f"{one.num_distinct:,}"
    if one.num_distinct == 1 and present == main.num_rows:
        yield f"has one value in all {present:,} rows and says nothing. Leave it out of `fields`"
    if one.kind != "categorical" or one.view == "text":
        return
    if present > 100 and one.num_distinct > 0.95 * present:
        yield (
            f"{distinct} distinct values in {present:,} rows, so hardly any id occurs twice and nothing is learnt of "
            "it. Leave it out of `fields`, or, if it is a text, give it to the language model alone: "
            f"{_options(one, view='text')}"
        )
    texts = [text for text, _, _ in _most_frequent(main.values[number], 2_000)]
    is_date = [one.type == "time" or _DATE.fullmatch(text) is not None for text in texts]
    is_amount = one.type == "number" or (one.type == "integer" and _AMOUNTS & {*one.name.lower().split("_")})
    if len(texts) > 1 and np.mean(is_date) >= 0.95:
        yield (
            f"its {distinct} values are dates read as categories, and every new day will be unseen. Write them in the "
            "ISO way (2024-05-31) and take their parts: "
            f"{_options(one, kind='datetime', parts=['hour', 'weekday', 'age'])}"
        )
    elif is_amount and one.num_distinct > 100:
        yield (
            f"its {distinct} values are numbers read as categories, so that 7 and 8 have nothing in common. If they "
            f"are amounts: {_options(one, kind='numeric')}"
        )


def _warn_of_unseen(one: FieldReport, number: int, splits: Mapping[str, _Split]) -> Iterator[str]:
    is_number, shares = one.kind == "numeric", {}
    for name, split in splits.items():
        _, values, unseen, missing = split.occurrences[number].tolist()
        share = unseen / max(values - missing, 1)
        if share > (0.05 if is_number else 0.9):
            shares[name] = share
    where = _where(shares, "its values in ")
    if shares and is_number:
        remedy = "Clean the column, or read it as categories"
        yield f"{where} are no numbers. {remedy}: {_options(one, kind='categorical')}"
    elif shares:
        yield (
            f"{where} are not in the vocabulary, so their ids say nothing. Add them (extractor.extend), lower "
            "min_frequency, split the rows in another way, or give the field to the language model alone: "
            f"{_options(one, view='text')}"
        )


def _rows(split: str) -> str:
    return "the rows" if split == "rows" else f"the rows of {split}"


def _where(shares: Mapping[str, float], what: str = "") -> str:
    return " and ".join(f"{percent(share)} of {what}{_rows(name)}" for name, share in shares.items())


def _options(one: FieldReport, **options: Any) -> str:
    return f"field_options={{{one.name!r}: {options}}}"
