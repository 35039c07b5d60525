# SPDX-License-Identifier: Apache-2.0
"""Pictures of what a model does inside. Needs matplotlib, which is imported when something is drawn.

Letters: T tokens of a row's text, C cells of it (a value's tokens one by one, the words around a value as one), H
fields that are hidden one after another.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import logging

from .explain import AlignmentExplanation, Answer, HiddenFeature
from .report import shortened


logger = logging.get_logger(__name__)

_INK, _FAINT, _BAND = "#1d2433", "#7d8594", "#f3f5f8"
_HEAT = ("#ffffff", "#dbe6f5", "#8fb3de", "#3a6fb0", "#12356b")
_RECOVERED = ("#ffffff", "#d9efe2", "#86c8a1", "#2e8b57", "#0f5132")
_BAR, _TRUE_BAR = "#d5deea", "#8fd0a8"
_TRUE_INK = "#0f5132"
_READINGS = (
    ("whole", "reads the whole text"),
    ("hidden", "reads it without this value"),
    ("blank", "reads it without any value"),
)
# families with letters that matplotlib's own lacks, where they are installed
_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Microsoft YaHei", "Hiragino Sans", "PingFang SC"),
    *("WenQuanYi Micro Hei", "Malgun Gothic", "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Thai"),
)
_GUESSES_SHOWN = 3
# inches
_CELL, _LINE, _GAP, _LABELS, _BARS, _STRIP = 0.158, 0.165, 0.12, 1.75, 1.95, 0.21


@dataclass
class _Cell:
    """A column of the heat: the tokens that it sums over, and what is written above it."""

    text: str
    tokens: list[int]
    field: str | None
    kind: str  # "value", "name", "special"


def draw_alignment(
    explanation: AlignmentExplanation, path: str | os.PathLike, title: str | None = None, dpi: int = 110
) -> None:
    """
    Draws one row as [`FlipForPreTraining.explain_alignment`] has seen it.

    On top the row's sentence, a column for each token of a value and one for the words around it. Below, a line for
    each field that was hidden in the ids: blue is where the model looks for it (its own place is framed; numbers are
    percent), and to the right what it would put into the hole after three readings of the text, the row's own value in
    green. At the bottom, in green, how likely each word piece is to be recovered when its field is hidden in the text,
    with the ids and without.

    Args:
        explanation ([`AlignmentExplanation`]): of one row.
        path: file to write, `.png` or `.svg`.
        title (`str`, *optional*): above everything.
        dpi (`int`): dots per inch of a `.png`.

    Raises:
        ValueError: if nothing was asked for, so that there is nothing to draw.
    """
    if not explanation.features and not explanation.words:
        raise ValueError("this explanation holds no hidden field, so there is nothing to draw: ask for other fields")
    import matplotlib
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    settings: Any = {
        "font.family": ["DejaVu Sans", *(name for name in _FONTS if name in installed)],
        "text.parse_math": False,  # a "$" is money
        "svg.fonttype": "none",
        "svg.hashsalt": "flip_hf",
        "axes.linewidth": 0.0,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = _Picture(explanation, title).figure
        if str(path).lower().endswith(".svg"):
            figure.savefig(path, metadata={"Date": None})
        else:
            figure.savefig(path, dpi=dpi, metadata={"Software": None}, pil_kwargs={"optimize": True})
    glyphs = [warning for warning in caught if "missing from font" in str(warning.message)]
    if glyphs:
        logger.warning(f"{path}: no installed font has all letters of this row, which are drawn as boxes")
    for warning in caught:
        if warning not in glyphs:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _cells(explanation: AlignmentExplanation) -> list[_Cell]:
    """The columns, in the order of the text; the words around a value stand where the first of them does."""
    cells: list[_Cell] = []
    names: dict[str, _Cell] = {}
    valued = {name for name in explanation.token_fields if name is not None}
    of_tokens = zip(
        explanation.tokens,
        explanation.token_fields,
        explanation.sentence_fields,
        explanation.is_special,
        strict=True,
    )
    for token, (piece, field, sentence, is_special) in enumerate(of_tokens):
        if field is not None:
            cells.append(_Cell(piece, [token], field, "value"))
        elif is_special or sentence is None:
            cells.append(_Cell(piece, [token], None, "special"))
        elif sentence in names:
            names[sentence].tokens.append(token)
        else:
            words = _short_name(sentence, 20)
            names[sentence] = _Cell(words if sentence in valued else f"{words}: –", [token], sentence, "name")
            cells.append(names[sentence])
    return cells


def _short(text: str, longest: int) -> str:
    """A value on one line, cut at its end."""
    text = shortened(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _short_name(name: str, longest: int) -> str:
    """A field's name in words, cut in the middle: its last letters may be what tells it from others."""
    name = " ".join(name.replace("_", " ").split())
    return name if len(name) <= longest else f"{name[: longest // 2 - 1]}…{name[-(longest - longest // 2) :]}"


def _percent(share: float) -> str:
    if share >= 0.995:
        return "100%"
    return f"{share:.0%}" if share >= 0.095 else f"{share:.1%}" if share >= 0.0005 else "<0.1%"


class _Picture:
    """One figure; all measures in inches from its upper left corner."""

    def __init__(self, explanation: AlignmentExplanation, title: str | None):
        from matplotlib.colors import LinearSegmentedColormap, PowerNorm
        from matplotlib.figure import Figure

        self.explanation, self.cells = explanation, _cells(explanation)
        self.features = explanation.features
        self.lines = [self._num_lines(one) for one in self.features]
        self.cell = max(_CELL, 6.0 / len(self.cells))
        self.heat_width = self.cell * len(self.cells)
        longest = max(len(_short(cell.text, 24)) for cell in self.cells)
        self.top = 0.35 + (0.35 if title else 0.0) + 0.075 * max(longest, 5)
        self.height = self.top + sum(n * _LINE + _GAP for n in self.lines) + 0.1
        self.strip_top = self.height
        if explanation.words:
            self.height += 0.25 + 2 * _STRIP
        self.height += 0.55  # legend
        readings = len(_READINGS) if self.features else 0
        self.width = 0.15 + _LABELS + self.heat_width + 0.25 + readings * (_BARS + 0.15) + 0.1
        self.figure = Figure(figsize=(self.width, self.height), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        self.axes.axis("off")
        self.left = 0.15 + _LABELS
        self.heat = LinearSegmentedColormap.from_list("heat", _HEAT)
        self.recovered = LinearSegmentedColormap.from_list("recovered", _RECOVERED)
        self.norm = PowerNorm(0.5, 0.0, 1.0)  # half the colours for weights below a quarter

        if title:
            self._text(0.15, 0.25, " ".join(title.split()), size=13, weight="bold")
        self._sentence()
        y = self.top
        for number, (one, lines) in enumerate(zip(self.features, self.lines, strict=True)):
            height = lines * _LINE + _GAP
            self._feature(one, y, height, number % 2 == 0)
            y += height
        if explanation.words:
            self._words(self.strip_top + 0.1)
        self._legend(self.height - 0.22)

    # --- pieces ---------------------------------------------------------------------------------------------------

    def _text(self, x: float, y: float, text: str, size: float = 8.0, color: str = _INK, **options: Any) -> None:
        self.axes.text(x, y, text, fontsize=size, color=color, **{"va": "center", **options})

    def _box(self, x: float, y: float, width: float, height: float, **options: Any) -> None:
        from matplotlib.patches import Rectangle

        self.axes.add_patch(Rectangle((x, y), width, height, **{"linewidth": 0.0, **options}))

    def _number(self, x: float, y: float, share: float, color: str) -> None:
        """Percent, in a cell that holds two digits well."""
        percent = f"{100 * share:.0f}"
        self._text(x, y, percent, size=4.6 if len(percent) > 2 else 6, color=color, ha="center")

    def _column(self, number: int) -> float:
        return self.left + number * self.cell

    def _sentence(self) -> None:
        size = min(9.0, max(7.5, 50 * self.cell))
        for number, cell in enumerate(self.cells):
            style = {
                "value": {"color": _INK, "weight": "normal"},
                "name": {"color": "#3a6fb0", "style": "italic"},
                "special": {"color": _FAINT},
            }[cell.kind]
            x = self._column(number) + self.cell / 2
            text = _short(cell.text, 24)
            self._text(x, self.top - 0.07, text, size=size, rotation=90, ha="center", va="bottom", **style)
        if self.features:
            right = self.left + self.heat_width + 0.25
            for number, (_, words) in enumerate(_READINGS):
                x = right + number * (_BARS + 0.15)
                self._text(x, self.top - 0.13, words, size=8.5, weight="bold")
            self._text(0.15, self.top - 0.13, "hidden in the ids", size=8.5, weight="bold")

    def _feature(self, one: HiddenFeature, y: float, height: float, banded: bool) -> None:
        if banded:
            self._box(0.08, y, self.width - 0.16, height, color=_BAND)
        middle = y + height / 2
        value = {"missing": "(missing)", "unseen": f"{one.value} (unseen)"}.get(one.status, one.value or "")
        self._text(0.15, middle - 0.085, _short_name(one.field, 22), size=9, weight="bold")
        self._text(
            0.15, middle + 0.085, _short(value, 26), size=8, color=_FAINT if one.status != "known" else _TRUE_INK
        )

        attention = one.answer.attention
        assert attention is not None
        low, tall = y + 0.05, height - 0.1
        for number, cell in enumerate(self.cells):
            weight = sum(attention.tokens[token] for token in cell.tokens)
            x = self._column(number)
            self._box(x + 0.006, low, self.cell - 0.012, tall, color=self.heat(self.norm(min(weight, 1.0))))
            if weight >= 0.045:
                ink = "white" if weight > 0.3 else _INK
                self._number(x + self.cell / 2, middle, weight, ink)
        own = [number for number, cell in enumerate(self.cells) if cell.field == one.field]
        if own:
            x = self._column(own[0])
            width = self._column(own[-1] + 1) - x
            self._box(x - 0.005, low - 0.02, width + 0.01, tall + 0.04, fill=False, edgecolor=_INK, linewidth=0.9)

        right = self.left + self.heat_width + 0.25
        for number, (reading, _) in enumerate(_READINGS):
            x = right + number * (_BARS + 0.15)
            answer = getattr(one, reading)
            if answer is None:
                self._text(x, middle, "the text says nothing of it", size=7.5, color=_FAINT, style="italic")
            else:
                self._answer(answer, x, y + _GAP / 2)

    def _shown(self, answer: Answer) -> list[tuple[str, float, bool]]:
        """The first guesses, and the best of what is right where it is not among them."""
        guesses = answer.guesses[:_GUESSES_SHOWN]
        shown = [(guess.value, guess.probability, guess.is_true) for guess in guesses]
        if answer.truths and not any(guess.is_true for guess in guesses):
            best = min(answer.truths, key=lambda truth: truth.rank)
            shown.append((f"{best.rank:,}. {best.value}", best.probability, True))
        return shown

    def _num_lines(self, one: HiddenFeature) -> int:
        answers = [getattr(one, reading) for reading, _ in _READINGS]
        return max(3, *(len(self._shown(answer)) for answer in answers if answer is not None))

    def _answer(self, answer: Answer, x: float, y: float) -> None:
        for number, (value, probability, is_true) in enumerate(self._shown(answer)):
            low = y + number * _LINE
            self._box(x, low + 0.015, _BARS, _LINE - 0.03, color="#ffffff", alpha=0.6)
            bar = max(_BARS * probability, 0.012)
            self._box(x, low + 0.015, bar, _LINE - 0.03, color=_TRUE_BAR if is_true else _BAR)
            ink = {"color": _TRUE_INK, "weight": "bold"} if is_true else {}
            middle = low + _LINE / 2 + 0.003
            self._text(x + 0.04, middle, _short(value, 22), size=7, **ink)
            self._text(x + _BARS - 0.03, middle, _percent(probability), size=7, ha="right", **ink)

    def _words(self, y: float) -> None:
        self._text(0.15, y - 0.05, "hidden in the text: recovered", size=8.5, weight="bold")
        y += 0.1
        by_position = {token.position: token for one in self.explanation.words for token in one.tokens}
        for row, words in enumerate(("with the ids", "without them")):
            low = y + row * _STRIP
            self._text(0.3, low + _STRIP / 2, words, size=8.5)
            for number, cell in enumerate(self.cells):
                token = by_position.get(cell.tokens[0])
                if cell.kind != "value" or token is None:
                    continue
                answer = token.with_ids if row == 0 else token.without_ids
                probability = answer.probability or 0.0
                x = self._column(number)
                color = self.recovered(self.norm(probability))
                self._box(x + 0.006, low + 0.015, self.cell - 0.012, _STRIP - 0.03, color=color)
                if probability >= 0.045:
                    ink = "white" if probability > 0.3 else _INK
                    self._number(x + self.cell / 2, low + _STRIP / 2, probability, ink)
        means = [
            float(np.mean([one.probability(with_ids) for one in self.explanation.words])) for with_ids in (True, False)
        ]
        x = self.left + self.heat_width + 0.25
        for row, mean in enumerate(means):
            self._text(x, y + (row + 0.5) * _STRIP, f"{_percent(mean)} on average, by field", size=8)

    def _legend(self, y: float) -> None:
        x = self.left

        def ramp(colors: Any, words: str) -> float:
            for step in range(40):
                self._box(x + step * 0.025, y - 0.05, 0.026, 0.1, color=colors(self.norm(step / 39)))
            self._text(x + 1.07, y, words, size=7.5, color=_FAINT)
            return x + 1.2 + 0.068 * len(words)

        if self.features:
            x = ramp(self.heat, "attention, 0 to 100%")
            self._box(x, y - 0.055, 0.2, 0.11, fill=False, edgecolor=_INK, linewidth=0.9)
            self._text(x + 0.27, y, "the hidden field's own words", size=7.5, color=_FAINT)
            x += 2.3
            self._box(x, y - 0.055, 0.2, 0.11, color=_TRUE_BAR)
            self._text(x + 0.27, y, "what the row has", size=7.5, color=_FAINT)
            x += 1.55
        if self.explanation.words:
            ramp(self.recovered, "probability of the right word piece")


__all__ = ["draw_alignment"]
