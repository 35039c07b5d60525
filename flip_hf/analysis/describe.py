# SPDX-License-Identifier: Apache-2.0
"""A table -> the report on it: what is counted of its fields, and what looks wrong with them.

Letters: B rows, F fields, S slots, D distinct values, K folds.

A table is read once, in batches, and what is kept of it does not grow with its rows: counts by value and fold. Of a
field with very many values those are kept whose hash is small, a sample of values (not of rows) whose counts are
exact, and the most frequent ones.
"""

import copy
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..columns_flip import CodedColumn, as_list, batches, read_labels, select_columns
from ..configuration_flip import PAD_FEATURE_ID
from ..fields_flip import (
    AgeField,
    CategoricalField,
    DatePartField,
    Field,
    MultivaluedField,
    NumericField,
    StatisticField,
)
from ..values_flip import infer_type
from .report import FieldReport, FlipReport, FrequentValue, SplitReport, percent, shortened


_BATCH_SIZE = 100_000
# with text, whose tokens are held for all rows of a batch at once
_TEXT_BATCH_SIZE = 20_000
# K: the label mean of a value is judged on rows that it was not taken from
_NUM_FOLDS = 5
# a value's label mean is drawn towards that of all rows as if so many more rows had it
_SMOOTHING = 10.0
# distinct values counted for each field, before a sample of them has to do
_MAX_VALUES = 1 << 18
# the most frequent ones, which stay whatever their hash
_NUM_FREQUENT_KEPT = 1 << 10
# from so many characters on, texts are told apart by their first 48 and a digest of 16
_LONGEST_KEY = 64
_NUM_FREQUENT_SHOWN = 3
# longer rows than this count as so long in the quantiles; the largest length is exact
_LONGEST_COUNTED = 1 << 16
# values looked at to find out whether they are dates or numbers, the most frequent first
_NUM_JUDGED = 2_000

_FEW_ROWS = 100
_NEARLY_UNIQUE = 0.95
_MOSTLY_UNSEEN = 0.9
_MOSTLY_MISSING = 0.95
_MANY_UNREADABLE = 0.05
_SUSPICIOUS_AUC = 0.98
_RARELY_CUT = 0.001
# of either class: an AUC of fewer is chance
_FEW_LABELS = 10
_MANY_NUMBERS = 100

_DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}|\d{1,2}[ -][A-Za-z]{3}[a-z]*[ -]\d{4})"
    r"([T ]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?( ?[AaPp][Mm])?( ?(Z|UTC|[+-]\d{2}:?\d{2}))?)?"
)
# whole numbers are quantities if the field's name says so: most of them are ids
_QUANTITY_WORDS = frozenset(
    "age amount avg average cost count day days discount distance duration fee height hours income length likes "
    "mean minutes mileage pages percent population price qty quantity ratio revenue salary score seconds size "
    "spend sum total views visits volume weight width year years".split()
)


class _ValueCounts:
    """
    Rows and clicks of each value of a field in each fold, of missing ones apart.

    Beyond `_MAX_VALUES` a value stays if its 64-bit hash is below `limit`, which is halved as often as necessary, or
    if it is among the most frequent ones. Whether a value's hash is below the final limit does not depend on the order
    or number of batches, and the counts of such a value are exact.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.hashes = np.zeros(1 << 8, np.uint64)
        self.counts = np.zeros((1 << 8, _NUM_FOLDS, 2), np.int32)  # rows, clicks
        self.missing = np.zeros((_NUM_FOLDS, 2), np.int64)
        self.limit = 1 << 64

    def add(self, values: Sequence[str | None], counts: np.ndarray) -> None:
        """`D` values, which may repeat, with their rows and clicks by fold `(D, K, 2)`."""
        numbers = self.numbers
        positions = np.empty(len(values), np.int64)
        for place, value in enumerate(values):
            if value is None:
                positions[place] = -1
                continue
            if len(value) >= _LONGEST_KEY:
                value = f"{value[: _LONGEST_KEY - 16]}{_digest(value)}"
            number = numbers.get(value)
            if number is None:
                number = numbers[value] = len(numbers)
                if number == len(self.hashes):
                    self.hashes = np.concatenate([self.hashes, np.zeros_like(self.hashes)])
                    self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
                self.hashes[number] = int(_digest(value), 16)
            positions[place] = number
        present = positions >= 0
        np.add.at(self.counts, positions[present], counts[present])
        self.missing += counts[~present].sum(0)
        if len(numbers) > _MAX_VALUES:
            self._forget_most()

    def _forget_most(self) -> None:
        self._settle()
        keep = self._is_sampled()
        frequent = np.argsort(-self._rows(), kind="stable")[:_NUM_FREQUENT_KEPT]
        keep[frequent] = True
        kept = np.flatnonzero(keep)
        texts = list(self.numbers)
        self.numbers = {texts[number]: place for place, number in enumerate(kept.tolist())}
        for name in ("hashes", "counts"):
            array = getattr(self, name)
            shrunk = np.zeros_like(array[: 1 << max(8, len(kept).bit_length())])
            shrunk[: len(kept)] = array[kept]
            setattr(self, name, shrunk)

    def _settle(self) -> None:
        """Halves the limit until the sample leaves room for as many new values again."""
        while self._is_sampled().sum() > _MAX_VALUES // 2:
            self.limit //= 2

    def _rows(self) -> np.ndarray:
        return self.counts[: len(self.numbers), :, 0].sum(1)

    def _is_sampled(self) -> np.ndarray:
        return self.hashes[: len(self.numbers)] <= np.uint64(self.limit - 1)

    def finish(self) -> None:
        if self.limit < 1 << 64:
            self._settle()

    @property
    def is_estimate(self) -> bool:
        return self.limit < 1 << 64

    def num_distinct(self) -> int:
        return round(int(self._is_sampled().sum()) * (1 << 64) / self.limit)

    def most_frequent(self, number: int) -> list[tuple[str, int, int]]:
        """Values with their rows and clicks, the most frequent first, equally frequent ones by alphabet."""
        rows = self._rows()
        if not len(rows):
            return []
        least = np.partition(rows, -min(number, len(rows)))[-min(number, len(rows))]
        texts, clicks = list(self.numbers), self.counts[: len(rows), :, 1].sum(1)
        places = np.flatnonzero(rows >= least).tolist()
        chosen = sorted(places, key=lambda place: (-rows[place], texts[place]))[:number]
        return [(_without_digest(texts[place]), int(rows[place]), int(clicks[place])) for place in chosen]

    def with_missing(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Rows and clicks of sampled values and of missing ones `(D + 1, K, 2)`, weight of each `(D + 1,)`: a hole says
        as much as a value.
        """
        counts = np.concatenate([self.counts[: len(self.numbers)][self._is_sampled()], self.missing[None]])
        weights = np.ones(len(counts))
        weights[-1] = self.limit / (1 << 64)  # of missing rows nothing was left out
        return counts, weights


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _without_digest(text: str) -> str:
    return f"{text[: _LONGEST_KEY - 16]}…" if len(text) == _LONGEST_KEY else text


def _out_of_fold_auc(counts: np.ndarray, weights: np.ndarray, totals: np.ndarray) -> float:
    """
    AUC of the smoothed label mean of a row's value in the other folds, within each fold and over all folds together.

    Args:
        counts (`np.ndarray` of shape `(D, K, 2)`): rows and clicks of each value in each fold.
        weights (`np.ndarray` of shape `(D,)`): of each value's rows.
        totals (`np.ndarray` of shape `(K, 2)`): rows and clicks of all values in each fold.

    Returns:
        `float`, 0.5 where no fold has rows of both classes.
    """
    others = counts.sum(1, keepdims=True) - counts  # (D, K, 2)
    rest = totals.sum(0) - totals  # (K, 2)
    prior = rest[:, 1] / np.maximum(rest[:, 0], 1)
    scores = (others[..., 1] + _SMOOTHING * prior) / (others[..., 0] + _SMOOTHING)  # (D, K)
    clicks = counts[..., 1] * weights[:, None]
    misses = counts[..., 0] * weights[:, None] - clicks
    won = pairs = 0.0
    for fold in range(_NUM_FOLDS):  # rows of different folds have different priors and do not compare
        _, tie = np.unique(scores[:, fold], return_inverse=True)
        tied_clicks = np.bincount(tie, clicks[:, fold])
        tied_misses = np.bincount(tie, misses[:, fold])
        won += float((tied_clicks * (np.cumsum(tied_misses) - tied_misses / 2)).sum())
        pairs += float(tied_clicks.sum() * tied_misses.sum())
    return won / pairs if pairs else 0.5


def _label_mean_range(counts: np.ndarray, weights: np.ndarray, prior: float) -> tuple[float, float]:
    """Smoothed label means by value `(D, K, 2)`: those of the rows at 5 % and at 95 %."""
    rows, clicks = np.moveaxis(counts.sum(1), -1, 0)
    means = (clicks + _SMOOTHING * prior) / (rows + _SMOOTHING)
    order = np.argsort(means)
    reached = np.cumsum((rows * weights)[order])
    low, high = np.searchsorted(reached, [0.05 * reached[-1], 0.95 * reached[-1]])
    return float(means[order[low]]), float(means[order[min(high, len(order) - 1)]])


class _SplitCounts:
    """What is counted of one split; of the main one also what its values are."""

    def __init__(self, extractor: Any, processor: Any, roomy: Any, is_main: bool):
        self.extractor, self.processor, self.roomy = extractor, processor, roomy
        self.fields: list[Field] = extractor.fields
        self.is_main = is_main
        self.raw_names = list(dict.fromkeys(name for field in self.fields for name in field.columns))
        self.num_rows = self.num_labelled = self.num_positive = 0
        num_fields = len(self.fields)
        self.unseen, self.missing, self.num_ids = np.zeros((3, num_fields), np.int64)
        self.totals = np.zeros((_NUM_FOLDS, 2), np.int64)
        # of the main split: values as texts, and apart from them what the label is judged by (buckets, whole lists)
        self.values = [_ValueCounts() for _ in self.fields if is_main]
        apart = [
            isinstance(field, MultivaluedField) or (isinstance(field, NumericField) and field.num_slots > 0)
            for field in self.fields
        ]
        self.judged = {number: _ValueCounts() for number in np.flatnonzero(apart).tolist() if is_main}
        self.lengths = np.zeros(1, np.int64)  # rows of each length
        self.longest = self.num_tokens = self.num_truncated = 0
        self.value_tokens, self.values_with_tokens, self.most_tokens, self.truncated = np.zeros(
            (4, num_fields), np.int64
        )

    def read(self, dataset: Any, name: str) -> None:
        """
        All rows of a table or split, in any of the forms that the extractor takes; errors call it `name`.

        Raises:
            ValueError: if there are none, a field has no column, or a label is not 0 or 1.
        """
        size = _BATCH_SIZE if self.processor is None else _TEXT_BATCH_SIZE
        label = self.extractor.label
        for columns in batches(dataset, label):
            selected = dict(zip(self.raw_names, select_columns(columns, self.raw_names), strict=True))
            num_rows = len(next(iter(selected.values())))
            if label in columns:
                labels = read_labels(columns[label], label)
                if len(labels) != num_rows:
                    raise ValueError(f"{len(labels)} labels in column {label!r} for {num_rows} rows")
                selected[label] = labels
            for start in range(0, num_rows, size):
                rows = slice(start, start + size)
                self._add({name: _rows_of(column, rows) for name, column in selected.items()})
        if not self.num_rows:
            raise ValueError(f"{name} has no rows: there is nothing to describe")
        for counts in (*self.values, *self.judged.values()):
            counts.finish()

    def _add(self, rows: Mapping[str, Any]) -> None:
        labels = rows.get(self.extractor.label)
        columns = self.extractor.select_columns(rows)
        num_rows = columns[0].num_rows
        # statistics of rows that may be the training rows: a label would be predicted from itself
        if self.processor is None:
            ids = self.extractor.encode_columns(columns, out_of_fold=self.is_main)  # (B, S)
        else:
            whole = self.roomy.encode(rows, out_of_fold=self.is_main)
            ids = whole.feature_ids
            self._add_text(rows, whole)
        clicks = np.zeros(num_rows, np.int64) if labels is None else labels.astype(np.int64)
        # hashed, or a table in which every fifth row is a click would have folds of one class
        row_numbers = np.arange(self.num_rows, self.num_rows + num_rows, dtype=np.uint64)
        folds = ((row_numbers * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)).astype(np.int64) % _NUM_FOLDS
        self.num_rows += num_rows
        self.num_labelled += 0 if labels is None else num_rows
        self.num_positive += int(clicks.sum())
        self.totals += _count_by_fold(np.zeros(num_rows, np.int64), folds, clicks, 1)[0]
        slot_fields = np.asarray(self.extractor.slot_fields)
        for number, column in enumerate(columns):
            own = ids[:, slot_fields == number]  # (B, slots of this field)
            if own.shape[1]:
                self.unseen[number] += int((own == self.extractor.unseen_id(number)).sum())
                self.missing[number] += int((own[:, 0] == self.extractor.missing_id(number)).sum())
                self.num_ids[number] += int((own != PAD_FEATURE_ID).sum())
            else:
                holes = [self.extractor.value_text(number, value) is None for value in column.values]
                self.missing[number] += int(column.counts()[holes].sum())
            if self.is_main:
                self._add_values(number, column, own, folds, clicks)

    def _add_values(
        self, number: int, column: CodedColumn, ids: np.ndarray, folds: np.ndarray, clicks: np.ndarray
    ) -> None:
        field, values = self.fields[number], self.values[number]
        if isinstance(field, NumericField) and field.num_slots:
            buckets, bucket = np.unique(ids[:, 0], return_inverse=True)
            names = self.extractor.decode(buckets)
            counts = _count_by_fold(bucket, folds, clicks, len(buckets))
            self.judged[number].add(names, counts)
            if isinstance(field, StatisticField):  # its column holds the values that it is of
                values.add([None if name == "[MISSING]" else name for name in names], counts)
                return
        counts = _count_by_fold(column.indices, folds, clicks, len(column.values))
        used = np.flatnonzero(counts[..., 0].any(1)).tolist()  # an Arrow column names None in any case
        counts = counts[used]
        texts = [self.extractor.value_text(number, column.values[place]) for place in used]
        if not isinstance(field, MultivaluedField):
            values.add(texts, counts)
            return
        self.judged[number].add(texts, counts)
        lists = [field.elements(column.values[place]) or [None] for place in used]
        of_list = np.repeat(np.arange(len(used)), [len(elements) for elements in lists])
        values.add([element for elements in lists for element in elements], counts[of_list])

    def _add_text(self, rows: Mapping[str, Any], whole: Any) -> None:
        tokens = _tokens_by_field(whole, len(self.fields))  # (B, F)
        self.num_tokens += int(whole.lengths.sum())
        self.longest = max(self.longest, int(whole.lengths.max()))
        lengths = np.bincount(np.minimum(whole.lengths, _LONGEST_COUNTED))
        size = max(len(lengths), len(self.lengths))
        self.lengths = np.pad(self.lengths, (0, size - len(self.lengths))) + np.pad(lengths, (0, size - len(lengths)))
        self.value_tokens += tokens.sum(0)
        self.values_with_tokens += (tokens > 0).sum(0)
        self.most_tokens = np.maximum(self.most_tokens, tokens.max(0))
        too_long = np.flatnonzero(whole.lengths > self.processor.max_length)
        if len(too_long):
            cut = self.processor.encode({name: _rows_of(column, too_long) for name, column in rows.items()})
            self.num_truncated += len(too_long)
            self.truncated += (_tokens_by_field(cut, len(self.fields)) < tokens[too_long]).sum(0)

    def length_at(self, share: float) -> int:
        """Tokens that hold so large a share of the rows."""
        return min(int(np.searchsorted(np.cumsum(self.lengths), share * self.num_rows)), self.longest)

    def report(self) -> SplitReport:
        report = SplitReport(self.num_rows)
        if self.num_labelled:
            report.share_positive = self.num_positive / self.num_labelled
        if self.processor is not None:
            report.tokens_mean = self.num_tokens / self.num_rows
            report.tokens_p95, report.tokens_max = self.length_at(0.95), self.longest
            report.share_truncated = self.num_truncated / self.num_rows
        return report


def _count_by_fold(indices: np.ndarray, folds: np.ndarray, clicks: np.ndarray, size: int) -> np.ndarray:
    """Number of each row's value, its fold, and 1 where it is a click, `(B,)` each -> rows and clicks `(D, K, 2)`."""
    cells = indices * _NUM_FOLDS + folds
    rows = np.bincount(cells, minlength=size * _NUM_FOLDS)
    clicked = np.bincount(cells[clicks == 1], minlength=size * _NUM_FOLDS)
    return np.stack([rows, clicked], axis=-1).reshape(size, _NUM_FOLDS, 2)


def _tokens_by_field(encoded: Any, num_fields: int) -> np.ndarray:
    """Tokens that spell the value of each field in each row `(B, F)`."""
    num_rows = len(encoded.lengths)
    spells = encoded.token_fields >= 0
    cells = (np.repeat(np.arange(num_rows) * num_fields, encoded.lengths) + encoded.token_fields)[spells]
    return np.bincount(cells, minlength=num_rows * num_fields).reshape(num_rows, num_fields)


def _rows_of(column: Any, rows: slice | np.ndarray) -> Any:
    """Some rows of a column, whatever holds it, by their numbers."""
    if hasattr(column, "iloc"):  # pandas
        return column.iloc[rows]
    if isinstance(rows, np.ndarray) and hasattr(column, "take"):  # Arrow and numpy
        return column.take(rows)
    values = column if hasattr(column, "__getitem__") else as_list(column)
    return values[rows] if isinstance(rows, slice) else [values[number] for number in rows.tolist()]


# --- what is wrong ---------------------------------------------------------------------------------------------------


class _Judge:
    """Warnings about a table. Each names field, figure and remedy."""

    def __init__(self, splits: Mapping[str, _SplitCounts], main: str):
        self.splits, self.main = splits, splits[main]

    def rows_of(self, split: str) -> str:
        return f"the rows of {split}" if len(self.splits) > 1 else "the rows"

    def warnings(self, fields: Sequence[FieldReport]) -> Iterator[str]:
        yield from self.of_labels()
        for number, one in enumerate(fields):
            yield from self.of_holes(one)
            # of dates, numbers and texts read as categories the new ones are unseen: what is said of them mends both
            yield from list(self.of_values(one, number)) or self.of_unseen(one, number)
            if one.auc is not None and one.auc > _SUSPICIOUS_AUC:
                yield (
                    f"{one.name}: predicts the label suspiciously well, AUC {one.auc:.3f} on its own. If it is not "
                    "known before the click, leave it out of `fields`"
                )
        yield from self.of_lengths(fields)

    def of_labels(self) -> Iterator[str]:
        label = self.main.extractor.label
        alike = {name: one for name, one in self.splits.items() if one.num_positive in (0, one.num_labelled)}
        alike = {name: one for name, one in alike.items() if one.num_labelled}
        if alike:
            where = " and ".join(
                f"all {one.num_labelled:,} labels of {self.rows_of(name)} are {int(one.num_positive > 0)}"
                for name, one in alike.items()
            )
            so = "nothing can be learnt" if self.main in alike.values() else "there is no AUC"
            yield (
                f"{label}: {where}, so {so}. Look at the rule that makes the label (label_threshold), or split the "
                "rows at random"
            )

    def of_holes(self, one: FieldReport) -> Iterator[str]:
        empty = [name for name, share in one.missing.items() if share > _MOSTLY_MISSING]
        if empty:
            where = " and ".join(f"{percent(one.missing[name])} of {self.rows_of(name)}" for name in empty)
            yield f"{one.name}: missing in {where}. Leave it out of `fields`, unless a hole says something"

    def of_unseen(self, one: FieldReport, number: int) -> Iterator[str]:
        is_numeric = isinstance(self.main.fields[number], NumericField)
        shares = {}
        for name, split in self.splits.items():
            num_values = split.num_ids[number] - split.missing[number]  # which a field of text alone has none of
            share = split.unseen[number] / num_values if num_values > 0 else 0.0
            if share > (_MANY_UNREADABLE if is_numeric else _MOSTLY_UNSEEN):
                shares[name] = share
        if not shares:
            return
        where = " and ".join(
            f"{percent(share)} of its values in {self.rows_of(name)}" for name, share in shares.items()
        )
        if is_numeric:
            yield (
                f"{one.name}: {where} are no numbers. Clean the column, or read it as categories: "
                f'field_options={{{one.name!r}: {{"kind": "categorical"}}}}'
            )
            return
        remedies = ["lower min_frequency"] if any(self.splits[name] is self.main for name in shares) else []
        remedies += ["split the rows in another way"] if len(remedies) < len(shares) else []
        yield (
            f"{one.name}: {where} are not in the vocabulary, so their ids say nothing. Add them (extractor.extend), "
            f"{', '.join(remedies)}, or give the field to the language model alone: {_to_text(one.name)}"
        )

    def of_values(self, one: FieldReport, number: int) -> Iterator[str]:
        spec = self.main.fields[number]
        present = self.main.num_rows - int(self.main.missing[number])
        if one.num_distinct == 1 and present == self.main.num_rows:
            value = one.most_frequent[0].text
            shown = "one value" if value is None else f"the one value {shortened(value)!r}"
            yield f"{one.name}: has {shown} in all {present:,} rows and says nothing. Leave it out of `fields`"
        if isinstance(spec, DatePartField | MultivaluedField) or not isinstance(spec, CategoricalField):
            return
        if spec.view == "text":
            return
        if present > _FEW_ROWS and one.num_distinct > _NEARLY_UNIQUE * present:
            yield (
                f"{one.name}: {one.num_distinct:,} distinct values in {present:,} rows, so hardly any id occurs twice "
                "and nothing is learnt of it. Leave it out of `fields`, or, if it is a text, give it to the language "
                f"model alone: {_to_text(one.name)}"
            )
        texts = [text for text, _, _ in self.main.values[number].most_frequent(_NUM_JUDGED)]
        dates = [text for text in texts if spec.type == "time" or _DATE.fullmatch(text)]
        named = not _QUANTITY_WORDS.isdisjoint(re.split(r"[^a-z]+", one.name.lower()))
        if len(texts) > 1 and len(dates) >= _NEARLY_UNIQUE * len(texts):
            first = "" if infer_type(dates)[0] == "time" else "write them in the ISO way (2024-05-31), then "
            yield (
                f"{one.name}: its {one.num_distinct:,} values are dates read as categories, and every new day will be "
                f'unseen. Take their parts: {first}field_options={{{one.name!r}: {{"kind": "datetime", "parts": '
                '["hour", "weekday", "age"]}}'
            )
        elif one.num_distinct > _MANY_NUMBERS and (spec.type == "number" or (spec.type == "integer" and named)):
            yield (
                f"{one.name}: its {one.num_distinct:,} values are numbers read as categories, so that 7 and 8 have "
                f'nothing in common. If they are amounts: field_options={{{one.name!r}: {{"kind": "numeric"}}}}'
            )

    def of_lengths(self, fields: Sequence[FieldReport]) -> Iterator[str]:
        cut = {name: one for name, one in self.splits.items() if one.num_truncated > _RARELY_CUT * one.num_rows}
        if not cut:
            return
        split = self.main if self.main in cut.values() else next(iter(cut.values()))
        losers = [
            f"{fields[number].name} ({percent(split.truncated[number] / split.num_rows)})"
            for number in np.argsort(-split.truncated, kind="stable").tolist()
            if split.truncated[number]
        ]
        shares = [f"{percent(one.num_truncated / one.num_rows)} of {self.rows_of(name)}" for name, one in cut.items()]
        longest = max(one.longest for one in self.splits.values())
        limit, nearly_all = split.processor.tokenizer.model_max_length, split.length_at(0.99)
        remedies = [f"{longest} holds all rows"] if longest <= limit else []
        if split.processor.max_length < nearly_all <= min(longest - 1, limit):
            remedies.insert(0, f"{nearly_all} holds 99%")
        yield (
            f"{', '.join(losers)}: lose tokens, since {', '.join(shares)} are longer than "
            f"max_length={split.processor.max_length}. "
            + (f"max_length={' and '.join(remedies)}" if remedies else "Shorten the longest values beforehand")
            + (f"; the language model takes no more than {limit}" if longest > limit else "")
        )


def _to_text(name: str) -> str:
    return f'field_options={{{name!r}: {{"view": "text"}}}}'


def describe_rows(extractor: Any, dataset: Any, processor: Any = None, show_values: bool = True) -> FlipReport:
    """
    Looks at a table once and says what is in it, and what looks wrong.

    Args:
        extractor ([`FlipFeatureExtractor`]): fitted on the training rows.
        dataset: a `datasets.Dataset`, a streamed `IterableDataset`, any rows that the extractor takes, an iterator of
            such batches, or a mapping of splits (`DatasetDict`). Of splits, `train` (or else the first) is what the
            fields' figures are of; for the others they say what is unseen and missing. Labels are read if they are
            there.
        processor ([`FlipProcessor`], *optional*): with a tokenizer, tokens are counted as well.
        show_values (`bool`): `False` leaves examples of values out, for data that must not be shown.

    Returns:
        [`FlipReport`].

    Raises:
        ValueError: if a split has no rows, a field has no column, or a label is not 0 or 1.
    """
    if processor is not None and (processor.tokenizer is None or not extractor.text_fields):
        processor = None
    roomy = copy.copy(processor)  # one that cuts nothing off
    if roomy is not None:
        roomy.max_length = 1 << 30
    has_splits = isinstance(dataset, Mapping) and any(
        isinstance(part, Mapping)
        or hasattr(part, "column_names")
        or (hasattr(part, "iloc") and hasattr(part, "columns"))
        for part in dataset.values()
    )
    splits = dict(dataset) if has_splits else {"rows": dataset}
    main = "train" if "train" in splits else next(iter(splits))
    counted = {}
    for name, rows in splits.items():
        counted[name] = _SplitCounts(extractor, processor, roomy, is_main=name == main)
        counted[name].read(rows, f"split {name!r}" if has_splits else "the table")
    fields = [_describe_field(number, counted, counted[main], show_values) for number in range(extractor.num_fields)]
    return FlipReport(
        splits={name: counts.report() for name, counts in counted.items()},
        fields=fields,
        warnings=list(_Judge(counted, main).warnings(fields)),
        max_length=None if processor is None else processor.max_length,
        label_mean=counted[main].num_positive / counted[main].num_labelled if counted[main].num_labelled else None,
    )


def _type_and_why(spec: Field, values: _ValueCounts, show_values: bool) -> tuple[str, str]:
    if isinstance(spec, StatisticField):
        return "number", f"of {spec.source}"
    if isinstance(spec, DatePartField | AgeField):
        return "time", "as asked"
    found, why = infer_type([text for text, _, _ in values.most_frequent(_NUM_JUDGED)])
    value_type = getattr(spec, "type", found if found == "integer" else "number")
    if value_type != found:
        return value_type, "as asked"
    return value_type, why if show_values or found not in ("text", "number") else ""


def _describe_field(
    number: int, splits: Mapping[str, _SplitCounts], main: _SplitCounts, show_values: bool
) -> FieldReport:
    values, spec = main.values[number], main.fields[number]
    is_labelled = main.num_labelled > 0
    value_type, why = _type_and_why(spec, values, show_values)
    one = FieldReport(
        name=spec.name,
        kind=spec.kind,
        view=spec.view,
        type=value_type,
        why=why,
        num_distinct=values.num_distinct(),
        is_estimate=values.is_estimate,
        unseen={
            name: None if spec.num_slots == 0 else float(counts.unseen[number] / counts.num_ids[number])
            for name, counts in splits.items()
        },
        missing={name: float(counts.missing[number] / counts.num_rows) for name, counts in splits.items()},
        most_frequent=[
            FrequentValue(text if show_values else None, count, clicks / count if is_labelled else None)
            for text, count, clicks in values.most_frequent(_NUM_FREQUENT_SHOWN)
        ],
    )
    if main.processor is not None and main.values_with_tokens[number]:
        one.tokens_mean = float(main.value_tokens[number] / main.values_with_tokens[number])
        one.tokens_max = int(main.most_tokens[number])
        one.share_truncated = float(main.truncated[number] / main.num_rows)
    if is_labelled:
        by_value = values if isinstance(spec, MultivaluedField) else main.judged.get(number, values)
        prior = main.num_positive / main.num_labelled
        one.label_mean_low, one.label_mean_high = _label_mean_range(*by_value.with_missing(), prior)
    if min(main.num_positive, main.num_labelled - main.num_positive) >= _FEW_LABELS:
        judged = [] if isinstance(spec, MultivaluedField | StatisticField) else [values]
        judged += [main.judged[number]] if number in main.judged else []
        one.auc = max(_out_of_fold_auc(*counts.with_missing(), main.totals) for counts in judged)
    return one


__all__ = ["describe_rows"]
