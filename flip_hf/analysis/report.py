# SPDX-License-Identifier: Apache-2.0
"""A report on a table, as data, and what a person reads of it: text, markdown and HTML of the same tables."""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


_STYLE = """<style>
.flip-report { font: 14px/1.5 system-ui, sans-serif; }
.flip-report table { border-collapse: collapse; margin: 0 0 1.5em; }
.flip-report :is(th, td) { border-bottom: 1px solid #8885; padding: 0.2em 1em 0.2em 0; text-align: left; }
</style>"""


class FrequentValue(NamedTuple):
    text: str | None  # as a text reads it; None where examples are left out
    occurrences: int  # rows that have it; of a multivalued field, how often it is in a list
    label_mean: float | None  # share of those rows whose label is 1


@dataclass
class FieldReport:
    """One field. Shares are between 0 and 1; where nothing is said of splits, a figure is of the training rows."""

    name: str
    kind: str  # as in the extractor's `field_specs`, and so is `view`
    view: str
    type: str  # of its values: "text", "integer", "number", "boolean" or "time"
    num_distinct: int  # values, missing ones aside; of a multivalued field, entries
    unseen: dict[str, float | None]  # by split, of its values; None for a field that is text alone
    missing: dict[str, float]  # by split, of its rows
    most_frequent: list[FrequentValue]
    share_truncated: float | None = None  # rows that lose tokens of this field's value at `max_length`
    # of the smoothed label mean of a row's value (of a number its bucket), taken from rows of other folds, as a
    # prediction of the label: 0.5 says nothing; None with fewer than 10 labels of either class
    auc: float | None = None


@dataclass
class SplitReport:
    """One table, or one split of it. Lengths are of the row's whole text before it is cut, special tokens included."""

    num_rows: int
    share_positive: float | None = None  # rows whose label is 1
    tokens_mean: float | None = None
    tokens_p95: int | None = None
    tokens_max: int | None = None
    share_truncated: float | None = None  # rows that are longer than `max_length`


@dataclass
class FlipReport:
    """What [`FlipFeatureExtractor.describe`] and [`FlipProcessor.describe`] found. `print` and notebooks show it."""

    splits: dict[str, SplitReport]  # a table without splits is "rows"
    fields: list[FieldReport]
    warnings: list[str] = field(default_factory=list)  # each names the field, the figure and the remedy
    max_length: int | None = None  # most tokens of a row; None where no text was made

    def to_text(self) -> str:
        """Aligned plain text."""
        return self._render(printable)

    __str__ = to_text

    def to_markdown(self) -> str:
        """Tables of GitHub's and the Hub's markdown, without headings; values cannot act as markup."""
        return self._render(markdown)

    def to_html(self) -> str:
        """A whole page, which a notebook shows as well; values cannot act as markup."""
        import pandas as pd

        with pd.option_context("display.max_colwidth", None):
            parts = [pd.DataFrame(rows).map(printable).to_html(index=False, border=0) for rows in self._tables()]
        parts += [f"<p>{html.escape(printable(line))}</p>" for line in self._lines()]
        head = '<!DOCTYPE html>\n<meta charset="utf-8"/>\n<title>Data report</title>\n' + _STYLE
        return "\n".join([head, '<div class="flip-report">', *parts, "</div>"]) + "\n"

    _repr_html_ = to_html

    def _render(self, written: Callable[[str], str]) -> str:
        tables = [text_table(rows, written) for rows in self._tables()]
        return "\n\n".join([*tables, *map(written, self._lines())]) + "\n"

    def _tables(self) -> list[list[dict[str, str]]]:
        """Splits, fields and frequent values, each as rows of equal keys, without columns that say nothing."""
        splits = [{"split": name, **vars(split)} for name, split in self.splits.items()]
        fields = [{name: value for name, value in vars(one).items() if name != "most_frequent"} for one in self.fields]
        frequent = [{"name": one.name, "most_frequent": one.most_frequent} for one in self.fields]
        tables = []
        for rows in (splits, fields, frequent):
            shown = [{name: _figure(name, value) for name, value in row.items()} for row in rows]
            names = [name for name in shown[0] if any(row[name].strip("-/ ") for row in shown)]
            tables.append([{name: row[name] for name in names} for row in shown])
        return tables

    def _lines(self) -> list[str]:
        """What the tables mean, then the warnings."""
        lines = []
        if len(self.splits) > 1:
            lines.append(f"Unseen and missing: {' / '.join(self.splits)}.")
        if any(one.auc is not None for one in self.fields):
            lines.append("auc: of the label mean of a row's value, taken from other rows; 0.5 says nothing.")
        return lines + ([f"! {warning}" for warning in self.warnings] or ["No warnings."])


def _figure(name: str, value: Any) -> str:
    """As a person reads it."""
    if isinstance(value, dict):
        return " / ".join(_figure(name, share) for share in value.values())
    if isinstance(value, list):
        return "; ".join(_figure(name, one) for one in value) or "-"
    if isinstance(value, FrequentValue):
        text = "" if value.text is None else f"{shortened(value.text)} "
        mean = "" if value.label_mean is None else f", label 1: {percent(value.label_mean)}"
        return f"{text}({value.occurrences:,}{mean})"
    if isinstance(value, float):
        return f"{value:.3g}" if name in ("auc", "tokens_mean") else percent(value)
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else value


def percent(share: float | None) -> str:
    """With one decimal; below 1 % with two digits that count, since clicks may be rare."""
    if share is None:
        return "-"
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.01:
        return f"{100 * share:.2g}%" if share >= 1e-6 else "<0.0001%"
    return ">99.9%" if share >= 0.9995 else f"{share:.1%}"


def printable(text: str) -> str:
    """On one line: whatever a terminal would act upon, writing direction included, becomes a space."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def shortened(text: str, longest: int = 40) -> str:
    text = " ".join(printable(text).split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


_MARKUP = str.maketrans(
    {letter: f"\\{letter}" for letter in "\\|*`[]~#"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;"}
)


def markdown(text: str) -> str:
    """Plain text -> markdown that reads as that text: no tables, emphasis, formulas, tags or links come of it."""
    text = printable(text).translate(_MARKUP)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word it is no markup
    return text.replace("://", "&#58;//").replace("www.", "www&#46;")


def text_table(rows: list[dict[str, str]], written: Callable[[str], str] = printable) -> str:
    """Rows of equal keys -> an aligned table, in markdown; columns without letters are numbers."""
    columns = []
    for name in rows[0]:
        header, *cells = (written(text) for text in (name, *(row[name] for row in rows)))
        width = max(map(len, (header, *cells)))
        align = str.ljust if any(map(str.isalpha, "".join(cells))) else str.rjust
        columns.append([align(cell, width) for cell in (header, "-" * width, *cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))
