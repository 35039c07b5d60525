# SPDX-License-Identifier: Apache-2.0
"""A picture of what a model does inside. Needs matplotlib, which is imported when something is drawn.

Letters: T tokens of a row's text, C cells of it (a value's tokens one by one, the words around a value as one), H
fields that are hidden one after another.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .report import percent, shortened


_READINGS = {"whole": "reads the whole text", "hidden": "without this value", "blank": "without any value"}


class _Cell(NamedTuple):  # a column of the picture
    text: str
    field: str | None
    tokens: list[int]  # whose weights it adds up


def draw_alignment(explanation: Any, path: str | os.PathLike, title: str | None = None) -> None:
    """
    Draws one row as [`FlipForPreTraining.explain_alignment`] has seen it; `.png` or `.svg` by the path's ending.

    On top the row's sentence. Below, a line for each field that was hidden in the ids: blue is where the model looks
    for it (the field's words are framed), and to the right what it would put into the hole after three readings of the
    text, the row's value with a star. At the bottom, in green, how likely each word piece is to be recovered when its
    field is hidden in the text, with the ids and without. Numbers are percent.
    """
    features, words = explanation.features, explanation.words
    if not features and not words:
        raise ValueError("this explanation holds no hidden field, so there is nothing to draw: ask for other fields")
    import matplotlib
    from matplotlib.figure import Figure

    cells = _cells(explanation)
    width, height = max(0.17 * len(cells), 4.0), 0.55 * len(features)  # inches
    # a "$" is money
    with matplotlib.rc_context({"font.size": 8, "text.parse_math": False, "svg.fonttype": "none"}):
        figure = Figure((width + 2 + 6.5 * bool(features), height + 2 + 0.8 * bool(words)), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=[width, 6], height_ratios=[max(height, 0.1), 0.5])
        if features:
            _draw_attention(figure.add_subplot(grid[0, 0]), features, cells)
            _draw_guesses(figure.add_subplot(grid[0, 1]), features)
        if words:
            _draw_recovered(figure.add_subplot(grid[1, 0] if features else grid[:, :]), words, cells, bool(features))
        figure.suptitle(title or "", fontsize=12, fontweight="bold")
        figure.savefig(path, dpi=110)


def _cells(explanation: Any) -> list[_Cell]:
    """In the order of the text; the words around a value stand where the first of them does."""
    cells: dict[Any, _Cell] = {}
    owners = zip(explanation.tokens, explanation.token_fields, explanation.sentence_fields, strict=True)
    for token, (piece, field, sentence) in enumerate(owners):
        if field is not None or sentence is None:
            cells[token] = _Cell(shortened(piece, 24), field, [token])
        else:
            cells.setdefault(sentence, _Cell(f"{shortened(sentence, 20)}:", sentence, [])).tokens.append(token)
    return list(cells.values())


def _draw_heat(axes: Any, shares: np.ndarray, names: Sequence[str], cells: Sequence[_Cell], colors: str) -> None:
    """Shares `(H, C)`, nan where there is none; half of the colours are for those below a quarter."""
    axes.imshow(np.sqrt(shares), cmap=colors, vmin=0.0, vmax=1.0, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.05:
            ink = "white" if share > 0.3 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=6)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(cells)), [cell.text for cell in cells], rotation=90)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_attention(axes: Any, features: Sequence[Any], cells: Sequence[_Cell]) -> None:
    from matplotlib.patches import Rectangle

    weights = np.array([one.answer.attention for one in features])  # (H, T)
    shares = np.stack([weights[:, cell.tokens].sum(1) for cell in cells], axis=1)
    _draw_heat(axes, shares, [f"{shortened(one.field, 24)}\n{one.shown_value}" for one in features], cells, "Blues")
    axes.set_xlabel("hidden in the ids: where the model looks for it (framed: the field's words)")
    for row, one in enumerate(features):
        columns = [column for column, cell in enumerate(cells) if cell.field == one.field]
        if columns:
            axes.add_patch(Rectangle((columns[0] - 0.5, row - 0.45), len(columns), 0.9, fill=False))


def _draw_guesses(axes: Any, features: Sequence[Any]) -> None:
    axes.set(xlim=(0, len(_READINGS)), ylim=(len(features) - 0.5, -0.5))
    axes.axis("off")
    for column, (reading, words) in enumerate(_READINGS.items()):
        axes.text(column, -0.55, words, fontweight="bold", va="bottom")
        for row, one in enumerate(features):
            answer = getattr(one, reading)
            said = "the text says nothing of it" if answer is None else "\n".join(answer.lines())
            axes.text(column, row, said, va="center", fontsize=7)


def _draw_recovered(axes: Any, words: Sequence[Any], cells: Sequence[_Cell], below: bool) -> None:
    answers = {token.position: (token.with_ids, token.without_ids) for token in words}
    shares = np.full((2, len(cells)), np.nan)
    for column, cell in enumerate(cells):
        shares[:, column] = [answer.probability for answer in answers.get(cell.tokens[0], ())] or np.nan
    with_ids, without_ids = np.nanmean(shares, axis=1)
    names = [f"with ids: {percent(with_ids)}", f"without ids: {percent(without_ids)}"]
    _draw_heat(axes, shares, names, [] if below else cells, "Greens")
    axes.set_xlabel("hidden in the text: how likely the right word pieces are")
