# SPDX-License-Identifier: Apache-2.0
"""A report on a table that a person can read: what it holds, and how it looks as text, markdown and HTML."""

import html
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


_LONGEST_SHOWN = 40
# label means below this are shown as lift: 0.004 and 0.006 both read 0.00, and are 1 and 1.5 times the mean
_RARE_CLICKS = 0.05


class FrequentValue(NamedTuple):
    """
    Args:
        text (`str`, *optional*): the value as a text reads it; `None` where examples are left out.
        occurrences (`int`): rows that have it; for a multivalued field, how often it is in a list.
        label_mean (`float`, *optional*): share of those rows whose label is 1.
    """

    text: str | None
    occurrences: int
    label_mean: float | None


@dataclass
class FieldReport:
    """
    One field. Shares are between 0 and 1; where nothing is said of splits, a figure is of the training rows.

    Args:
        name, kind, view (`str`): as in the extractor's `field_specs`.
        type, why (`str`): value type of the field, and what made it so.
        num_distinct (`int`): distinct values, missing ones aside; for a multi-valued field, distinct entries.
        is_estimate (`bool`): whether `num_distinct` is estimated, to about 1 %, since there are very many.
        unseen, missing (`dict[str, float | None]`, `dict[str, float]`): for each split, as
            [`FlipFeatureExtractor.rates`] has them; a field that is text alone has no vocabulary and so nothing unseen
            (`None`).
        most_frequent (`list[FrequentValue]`): most frequent first.
        tokens_mean, tokens_max (`float`, `int`, *optional*): tokens of a value, before anything is cut off.
        share_truncated (`float`, *optional*): rows that lose tokens of this field's value at `max_length`.
        label_mean_low, label_mean_high (`float`, *optional*): smoothed label means by value (numeric: by bucket); 90 %
            of the rows lie between the two.
        auc (`float`, *optional*): of the smoothed label mean of a row's value, taken from rows of other folds, as a
            prediction of the label: 0.5 says nothing. `None` with fewer than 10 labels of either class.
    """

    name: str
    kind: str
    view: str
    type: str
    why: str
    num_distinct: int
    is_estimate: bool
    unseen: dict[str, float | None]
    missing: dict[str, float]
    most_frequent: list[FrequentValue]
    tokens_mean: float | None = None
    tokens_max: int | None = None
    share_truncated: float | None = None
    label_mean_low: float | None = None
    label_mean_high: float | None = None
    auc: float | None = None


@dataclass
class SplitReport:
    """
    One table, or one split of it. Lengths are of the row's whole text, special tokens included.

    Args:
        num_rows (`int`): rows.
        share_positive (`float`, *optional*): rows whose label is 1; `None` without labels.
        tokens_mean, tokens_p95, tokens_max (`float`, `int`, `int`, *optional*): tokens of a row, before it is cut.
        share_truncated (`float`, *optional*): rows that are longer than `max_length`.
    """

    num_rows: int
    share_positive: float | None = None
    tokens_mean: float | None = None
    tokens_p95: int | None = None
    tokens_max: int | None = None
    share_truncated: float | None = None


@dataclass
class FlipReport:
    """
    What [`FlipFeatureExtractor.describe`] and [`FlipProcessor.describe`] found. `print` shows it, and so does a
    notebook.

    Args:
        splits (`dict[str, SplitReport]`): the splits by name; a table without splits is `"rows"`.
        fields (`list[FieldReport]`): the fields in order.
        warnings (`list[str]`): what should be looked at; each names the field, the figure and the remedy.
        max_length (`int`, *optional*): most tokens of a row; `None` where no text was made.
        label_mean (`float`, *optional*): share of rows whose label is 1, of the rows that the fields' figures are of.
            Where it is below 5 %, label means of values are shown as lift, as so many times this mean.
    """

    splits: dict[str, SplitReport]
    fields: list[FieldReport]
    warnings: list[str] = field(default_factory=list)
    max_length: int | None = None
    label_mean: float | None = None

    def to_text(self) -> str:
        """Aligned plain text."""
        parts = [_text_table(*table) for table in self._tables()]
        parts += ["\n".join(self._notes())] if self._notes() else []
        warnings = "\n".join(f"  ! {_printable(warning)}" for warning in self.warnings)
        parts.append(f"{self._verdict()}\n{warnings}" if warnings else self._verdict())
        return "\n\n".join(parts) + "\n"

    def to_markdown(self) -> str:
        """Tables of GitHub's and the Hub's markdown, without headings; values cannot act as markup."""
        parts = [_markdown_table(*table) for table in self._tables()]
        parts += [_markdown(note) for note in self._notes()]
        parts.append(f"**{self._verdict()}**")
        if self.warnings:
            parts.append("\n".join(f"- {_markdown(_printable(warning))}" for warning in self.warnings))
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """A whole page; values cannot act as markup."""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n<title>Data report</title>\n'
            f"</head>\n<body>\n{self._repr_html_()}</body>\n</html>\n"
        )

    def _repr_html_(self) -> str:
        parts = [_html_table(*table) for table in self._tables()]
        parts += [f"<p>{html.escape(note)}</p>" for note in self._notes()]
        parts.append(f"<p><strong>{html.escape(self._verdict())}</strong></p>")
        if self.warnings:
            items = "\n".join(f"<li>{html.escape(_printable(warning))}</li>" for warning in self.warnings)
            parts.append(f"<ul>\n{items}\n</ul>")
        body = "\n".join(parts)
        return f'<div class="flip-report">\n<style>\n{_STYLE}</style>\n{body}\n</div>\n'

    def __str__(self) -> str:
        return self.to_text()

    def _verdict(self) -> str:
        number = len(self.warnings)
        return "No warnings." if not number else f"{number} warning{'s' if number > 1 else ''}:"

    def _notes(self) -> list[str]:
        notes = []
        if len(self.splits) > 1:
            notes.append(f"Unseen and missing: {' / '.join(map(_printable, self.splits))}.")
        if any(one.label_mean_low is not None for one in self.fields):
            what = (
                f"Lift: smoothed label mean by value over that of all rows, {_rate(self.label_mean)}"
                if self._shows_lift()
                else "Label mean: smoothed mean by value"
            )
            notes.append(
                f"{what}; 90% of the rows lie in the range. AUC: of that mean alone, taken from other rows; 0.5 says "
                "nothing."
            )
        if any(one.is_estimate for one in self.fields):
            notes.append("~: estimated from a sample of the values.")
        return notes

    def _shows_lift(self) -> bool:
        return self.label_mean is not None and 0.0 < self.label_mean < _RARE_CLICKS

    def _label_mean(self, value: float) -> str:
        if not self._shows_lift():
            return f"{value:.2f}"
        lift = value / self.label_mean
        return f"{lift:.0f}x" if lift >= 9.995 else f"{lift:.2f}x"

    def _tables(self) -> Iterator[tuple[list[str], list[list[str]], list[bool]]]:
        """Header, rows and whether a column holds numbers, all plain text, of each table."""
        splits, fields = self.splits.values(), self.fields
        labelled = any(split.share_positive is not None for split in splits)
        with_text = self.max_length is not None

        columns = {"split": list(map(_printable, self.splits)), "rows": [f"{split.num_rows:,}" for split in splits]}
        if labelled:
            columns["positive"] = [_rate(split.share_positive) for split in splits]
        if with_text:
            columns["tokens mean"] = [_decimal(split.tokens_mean, 1) for split in splits]
            columns["p95"] = [_whole(split.tokens_p95) for split in splits]
            columns["max"] = [_whole(split.tokens_max) for split in splits]
            columns[f"longer than {self.max_length}"] = [percent(split.share_truncated) for split in splits]
        yield _table(columns, num_texts=1)

        of_label = "lift" if self._shows_lift() else "label mean"
        only = {"tabular": ", id only", "text": ", text only"}
        columns = {
            "field": [_printable(one.name) for one in fields],
            "type": [_printable(f"{one.type} ({one.why})" if one.why else one.type) for one in fields],
            "kind": [f"{one.kind}{only.get(one.view, '')}" for one in fields],
            "distinct": [f"{'~' if one.is_estimate else ''}{one.num_distinct:,}" for one in fields],
            "unseen": [" / ".join(percent(one.unseen[name]) for name in self.splits) for one in fields],
            "missing": [" / ".join(percent(one.missing[name]) for name in self.splits) for one in fields],
        }
        if labelled:
            columns[of_label] = [
                "-"
                if one.label_mean_low is None
                else f"{self._label_mean(one.label_mean_low)} to {self._label_mean(one.label_mean_high)}"
                for one in fields
            ]
            columns["AUC"] = [_decimal(one.auc, 3) for one in fields]
        if with_text:
            columns["tokens mean"] = [_decimal(one.tokens_mean, 1) for one in fields]
            columns["max"] = [_whole(one.tokens_max) for one in fields]
            columns["cut"] = [percent(one.share_truncated) for one in fields]
        yield _table(columns, num_texts=3)

        figures = f"rows, {of_label}" if labelled else "rows"
        shown = ["; ".join(map(self._frequent, one.most_frequent)) or "-" for one in fields]
        yield _table({"field": [_printable(one.name) for one in fields], f"most frequent ({figures})": shown}, 2)

    def _frequent(self, value: FrequentValue) -> str:
        figures = f"{value.occurrences:,}"
        figures += f", {self._label_mean(value.label_mean)}" if value.label_mean is not None else ""
        return f"({figures})" if value.text is None else f"{shortened(value.text)} ({figures})"


# --- how it looks ----------------------------------------------------------------------------------------------------


def _table(columns: dict[str, list[str]], num_texts: int) -> tuple[list[str], list[list[str]], list[bool]]:
    """Columns by header, the first `num_texts` of them texts, as header, rows and whether a column holds numbers."""
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return list(columns), rows, [place >= num_texts for place in range(len(columns))]


def _rate(value: float | None) -> str:
    """Of clicks, which may be rare: below 1 % two digits that count, however small."""
    return f"{float(f'{100 * value:.1e}'):.10g}%" if value is not None and 0 < value < 0.01 else percent(value)


def percent(value: float | None) -> str:
    if value is None:
        return "-"
    if value in (0, 1):
        return f"{value:.0%}"
    if value < 0.0005:
        return "<0.1%"
    return ">99.9%" if value >= 0.9995 else f"{value:.1%}"


def _decimal(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _printable(text: str) -> str:
    """On one line: whatever a terminal would act upon, writing direction included, becomes a space."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def shortened(text: str) -> str:
    text = " ".join(_printable(text).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def _width(text: str) -> int:
    """Columns of a terminal: Chinese, Japanese and Korean letters take two, accents on their own none."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def _text_table(header: list[str], rows: list[list[str]], is_number: list[bool]) -> str:
    widths = [max(map(_width, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for cells in (header, ["-" * width for width in widths], *rows):
        padded = [
            " " * (width - _width(cell)) + cell if number else cell + " " * (width - _width(cell))
            for cell, width, number in zip(cells, widths, is_number, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


_MARKUP = str.maketrans(
    {letter: f"\\{letter}" for letter in "\\|*`[]~#"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}
)


def _markdown(text: str) -> str:
    """Plain text -> markdown that reads as that text: no tables, emphasis, formulas, tags or links come of it."""
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text.translate(_MARKUP))  # inside a word it is no markup
    return text.replace("://", "&#58;//").replace("www.", "www&#46;")


def _markdown_table(header: list[str], rows: list[list[str]], is_number: list[bool]) -> str:
    lines = ["| " + " | ".join(map(_markdown, cells)) + " |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "|".join("---:" if number else "---" for number in is_number) + "|", *lines[1:]])


_STYLE = """\
.flip-report {font-family: sans-serif}
.flip-report table {border-collapse: collapse; margin-bottom: 1em}
.flip-report th, .flip-report td {padding: 2px 8px; border-bottom: 1px solid #999; text-align: left}
.flip-report .number {text-align: right}
"""


def _html_table(header: list[str], rows: list[list[str]], is_number: list[bool]) -> str:
    def row(cells: list[str], tag: str) -> str:
        styles = [' class="number"' if number else "" for number in is_number]
        filled = (f"<{tag}{style}>{html.escape(cell)}</{tag}>" for cell, style in zip(cells, styles, strict=True))
        return f"<tr>{''.join(filled)}</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f"<table>\n<thead>\n{row(header, 'th')}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


__all__ = ["FieldReport", "FlipReport", "FrequentValue", "SplitReport"]
