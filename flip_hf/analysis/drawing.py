# SPDX-License-Identifier: Apache-2.0
"""A picture of what a model does inside. Needs matplotlib, which is imported when something is drawn.

Letters: T tokens of a row's text, H fields that are hidden one after another.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .report import shortened


_READINGS = {"whole": "reads the whole text", "hidden": "without this value", "blank": "without any value"}


def draw_alignment(explanation: Any, path: str | os.PathLike, title: str | None = None, dpi: int = 110) -> None:
    """
    Draws the fields that were hidden in the ids of one row, as [`FlipForPreTraining.explain_alignment`] has seen it;
    `.png` or `.svg` by the path's ending. Blue is where in the row's sentence the model looks for each, in percent
    (the field's value is framed), and to the right what it would put into the hole after three readings of the text,
    the row's value with a star.
    """
    features, owners = explanation.features, explanation.token_fields
    if not features:
        raise ValueError("this explanation holds no field hidden in the ids: there is nothing to draw")
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    width, height = max(0.17 * len(owners), 4.0), 0.55 * len(features)  # inches
    # a "$" is money
    with matplotlib.rc_context({"font.size": 8, "text.parse_math": False, "svg.fonttype": "none"}):
        figure = Figure((width + 8.5, height + 2), layout="constrained")
        axes, right = figure.subplots(1, 2, width_ratios=[width, 6])
        weights = np.array([one.answer.attention for one in features])  # (H, T)
        axes.imshow(np.sqrt(weights), cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        for (row, column), share in np.ndenumerate(weights):
            if share >= 0.05:
                ink = "white" if share > 0.3 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=6)
        for row, one in enumerate(features):
            if one.field in owners:
                corner = (owners.index(one.field) - 0.5, row - 0.45)
                axes.add_patch(Rectangle(corner, owners.count(one.field), 0.9, fill=False))
        axes.set_xticks(range(len(owners)), [shortened(piece, 24) for piece in explanation.tokens], rotation=90)
        axes.set_yticks(range(len(features)), [f"{one.field}\n{shortened(one.value or '', 30)}" for one in features])
        axes.set_xlabel("hidden in the ids: where the model looks for it (framed: the field's value)")
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        _draw_guesses(right, features)
        figure.suptitle(title or "", fontsize=12, fontweight="bold")
        figure.savefig(path, dpi=dpi)


def _draw_guesses(axes: Any, features: Sequence[Any]) -> None:
    axes.set(xlim=(0, len(_READINGS)), ylim=(len(features) - 0.5, -0.5))
    axes.axis("off")
    for column, (reading, words) in enumerate(_READINGS.items()):
        axes.text(column, -0.55, words, fontweight="bold", va="bottom")
        for row, one in enumerate(features):
            answer = getattr(one, reading)
            said = "the text says nothing of it" if answer is None else "\n".join(answer.lines())
            axes.text(column, row, said, va="center", fontsize=7)


__all__ = ["draw_alignment"]
